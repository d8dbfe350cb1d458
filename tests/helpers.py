"""What the tests share: bytes, a policy that never sleeps, small limits, every kind of source."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import pty
import random
import struct
import subprocess
import tarfile
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from typing_extensions import override

from ecr_parts import LayerSource, Limits, default_retrying
from ecr_parts.testing import LocalECR

PATIENT = default_retrying().copy(sleep=lambda _seconds: None)
"""The default policy without its waits."""

OPERATIONS = {
    "BatchCheckLayerAvailability": "batch_check_layer_availability",
    "InitiateLayerUpload": "initiate_layer_upload",
    "UploadLayerPart": "upload_layer_part",
    "CompleteLayerUpload": "complete_layer_upload",
}
"""The calls that are used, and the client's methods for them."""

SMALL = Limits(min_part=4, max_part=16, max_parts=60, max_layer=500)
"""Limits that make an upload of many parts out of a few bytes; parts of 8 bytes suit them."""


def shown_by(terminal: int, until: str | None = None) -> str:
    """What a terminal's program writes until it has written ``until``, or to its end."""
    shown = b""
    while until is None or until.encode() not in shown:
        try:
            more = os.read(terminal, 10_000)
        except OSError:  # how Linux says that nobody writes there any more
            more = b""
        if not more:
            break
        shown += more
    return shown.decode()


def shown_on_a_terminal(start: Callable[..., subprocess.Popen[Any]], columns: int = 80) -> str:
    """What a process that succeeds shows, started with ``stdout=`` and ``stderr=`` a terminal."""
    terminal, its_end = pty.openpty()
    fcntl.ioctl(its_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with start(stdout=its_end, stderr=its_end) as process:
        os.close(its_end)
        shown = shown_by(terminal)
    os.close(terminal)
    assert process.returncode == 0
    return shown


def join_threads(seconds: float = 10) -> None:
    """Wait for the library's threads, which end once an upload is over.

    Those of single steps end when they have had nothing to do for 5 seconds.
    """
    for thread in threading.enumerate():
        if thread.name.startswith("ecr_parts "):
            thread.join(seconds)
            assert not thread.is_alive(), thread


def operations(ecr: LocalECR) -> list[str]:
    """The operations that were called, in order."""
    return [call.operation for call in ecr.calls]


def bytes_of(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def digest_of(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


class Unseekable(io.RawIOBase):
    """A pipe of sorts: short reads, no seeking."""

    def __init__(self, blob: bytes, most: int) -> None:
        self._file = io.BytesIO(blob)
        self._most = most

    @override
    def readable(self) -> bool:
        return True

    @override
    def read(self, size: int = -1, /) -> bytes:
        return self._file.read(min(size, self._most) if size >= 0 else self._most)


class BareReader:
    """The least a file object may be."""

    def __init__(self, blob: bytes) -> None:
        self._file = io.BytesIO(blob)

    def read(self, size: int, /) -> bytes:
        return self._file.read(size)


def chunks_of(blob: bytes, sizes: Callable[[], int]) -> Iterator[bytes]:
    at = 0
    while at < len(blob):
        size = sizes()
        yield blob[at : at + size]
        at += size


def tar_member(blob: bytes) -> IO[bytes]:
    """A member of a tar read as a stream: its ``seekable()`` raises."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo("layer")
        member.size = len(blob)
        tar.addfile(member, io.BytesIO(blob))
    packed.seek(0)
    stream = tarfile.open(fileobj=packed, mode="r|")  # noqa: SIM115  (its member is read later)
    first = stream.next()
    assert first is not None
    file = stream.extractfile(first)
    assert file is not None
    return file


def offset_file(blob: bytes) -> io.BytesIO:
    """A file that does not stand at its beginning."""
    file = io.BytesIO(b"before" + blob)
    file.seek(6)
    return file


def path_to(blob: bytes, directory: Path) -> Path:
    path = directory / "layer.tar.gz"
    if not path.exists() or path.read_bytes() != blob:
        path.write_bytes(blob)
    return path


SourceMaker = Callable[[bytes, Path, random.Random], LayerSource]

REPLAYABLE: dict[str, SourceMaker] = {
    "path": lambda blob, tmp, _: path_to(blob, tmp),
    "str": lambda blob, tmp, _: str(path_to(blob, tmp)),
    "bytes": lambda blob, _tmp, _: blob,
    "bytearray": lambda blob, _tmp, _: bytearray(blob),
    "memoryview": lambda blob, _tmp, _: memoryview(blob),
    "sparse memoryview": lambda blob, _tmp, _: memoryview(
        bytes(b for byte in blob for b in (byte, 0))
    )[::2],
    "file": lambda blob, _tmp, _: offset_file(blob),
}
STREAMS: dict[str, SourceMaker] = {
    "unseekable": lambda blob, _tmp, rng: Unseekable(blob, rng.randint(1, 20)),
    "bare reader": lambda blob, _tmp, _: BareReader(blob),
    "tar member": lambda blob, _tmp, _: tar_member(blob),
    "chunks": lambda blob, _tmp, rng: chunks_of(blob, lambda: rng.randint(0, 30)),
    "list": lambda blob, _tmp, rng: list(chunks_of(blob, lambda: rng.randint(0, 30))),
    "bytearrays": lambda blob, _tmp, rng: map(
        bytearray, chunks_of(blob, lambda: rng.randint(1, 30))
    ),
    "memoryviews": lambda blob, _tmp, rng: map(
        memoryview, chunks_of(blob, lambda: rng.randint(1, 30))
    ),
}
SOURCES = REPLAYABLE | STREAMS
