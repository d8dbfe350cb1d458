"""Helpers shared by the tests: bytes, limits, a retry policy, sources, terminals and threads."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import pty
import random
import resource
import struct
import subprocess
import sys
import tarfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from typing_extensions import override

from ecr_parts import EcrPartsError, LayerSource, Limits, UploadLostError, default_retrying
from ecr_parts.testing import LocalECR

NO_WAIT = default_retrying().copy(sleep=lambda _seconds: None)
"""The default retry policy without its waits."""

OPERATIONS = {
    "BatchCheckLayerAvailability": "batch_check_layer_availability",
    "InitiateLayerUpload": "initiate_layer_upload",
    "UploadLayerPart": "upload_layer_part",
    "CompleteLayerUpload": "complete_layer_upload",
}
"""The operations that the library calls, and the client's method for each."""

SMALL_LIMITS = Limits(min_part=4, max_part=16, max_parts=60, max_layer=500)
"""Limits that divide a few bytes into many parts, for example of 8 bytes."""


KINDS: list[type[BaseException]] = [
    EcrPartsError,
    UploadLostError,
    OSError,
    ValueError,
    StopIteration,
    KeyboardInterrupt,
]
"""One of each kind of exception that some code could tell apart."""


# Terminals


def read_terminal(terminal: int, until: str | None = None) -> str:
    """What is written to a terminal until ``until`` was written or its other end is closed."""
    output = b""
    while until is None or until.encode() not in output:
        try:
            block = os.read(terminal, 10_000)
        except OSError:  # EIO: on Linux, the other end is closed
            block = b""
        if not block:
            break
        output += block
    return output.decode()


def run_on_terminal(start: Callable[..., subprocess.Popen[Any]], columns: int = 80) -> str:
    """The output of a process that must succeed.

    ``start`` starts it, and is called with a terminal as ``stdout`` and ``stderr``.
    """
    terminal, other_end = pty.openpty()
    fcntl.ioctl(other_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with start(stdout=other_end, stderr=other_end) as process:
        os.close(other_end)
        output = read_terminal(terminal)
    os.close(terminal)
    assert process.returncode == 0
    return output


# Threads and calls


def wait_for_threads(seconds: float = 10) -> None:
    """Wait until each thread of the library has ended or has no task.

    The threads of an upload end with it. Those of single calls end after 5 seconds without a task.
    """
    deadline = time.monotonic() + seconds
    for thread in threading.enumerate():
        if thread.name.startswith("ecr_parts "):
            while thread.is_alive() and not _is_idle(thread):
                assert time.monotonic() < deadline, thread
                thread.join(0.01)


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until ``condition()`` holds.

    For what threads do that are only being started, and that ``threading`` does not know yet.
    """
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline
        pause.wait(0.005)


def _is_idle(thread: threading.Thread) -> bool:
    """Whether a thread of the library waits for a task.

    If the library's method is renamed, this is always false, and ``wait_for_threads`` waits until
    the thread ends.
    """
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and (
        frame.f_globals["__name__"] == "ecr_parts._base.threads" and frame.f_code.co_name == "_run"
    )


def waits_for_a_piece() -> bool:
    """Whether a thread uploads a layer that is written, and waits for more to be written.

    If the library's method is renamed, this is always false.
    """
    for thread in threading.enumerate():
        frame = sys._current_frames().get(thread.ident or 0)
        while thread.name == "ecr_parts layer" and frame is not None:
            if frame.f_code.co_name == "pieces":
                return True
            frame = frame.f_back
    return False


def operations(ecr: LocalECR) -> list[str]:
    """The operations that were called, in order."""
    return [call.operation for call in ecr.calls]


class StopUploadError(Exception):
    """Raised by the callback of ``stop_after`` to end an upload."""


def stop_after(confirmed: int) -> Callable[[int], None]:
    """A ``progress`` callback that ends the upload once ``confirmed`` bytes are confirmed."""
    total = 0

    def progress(newly_confirmed: int) -> None:
        nonlocal total
        total += newly_confirmed
        if newly_confirmed and total >= confirmed:
            raise StopUploadError

    return progress


# Layers and their sources


def random_bytes(size: int, seed: int = 0) -> bytes:
    """Random bytes, always the same for the same ``size`` and ``seed``."""
    return random.Random(seed).randbytes(size)


def digest_of(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


class Unseekable(io.RawIOBase):
    """A file object that cannot seek and whose reads are short, like that of a pipe."""

    def __init__(self, blob: bytes, max_read: int) -> None:
        self._file = io.BytesIO(blob)
        self._max_read = max_read

    @override
    def readable(self) -> bool:
        return True

    @override
    def read(self, size: int = -1, /) -> bytes:
        return self._file.read(min(size, self._max_read) if size >= 0 else self._max_read)


class BareReader:
    """A file object with the only method that the library requires."""

    def __init__(self, blob: bytes) -> None:
        self._file = io.BytesIO(blob)

    def read(self, size: int, /) -> bytes:
        return self._file.read(size)


def chunks_of(blob: bytes, next_size: Callable[[], int]) -> Iterator[bytes]:
    """The bytes of ``blob`` in chunks, each of the size that ``next_size`` returns."""
    offset = 0
    while offset < len(blob):
        size = next_size()
        yield blob[offset : offset + size]
        offset += size


def tar_member(blob: bytes) -> IO[bytes]:
    """A member of a tar that is read as a stream: its ``seekable()`` raises."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        info = tarfile.TarInfo("layer")
        info.size = len(blob)
        tar.addfile(info, io.BytesIO(blob))
    archive.seek(0)
    stream = tarfile.open(fileobj=archive, mode="r|")  # noqa: SIM115  (its member is read later)
    member = stream.next()
    assert member is not None
    file = stream.extractfile(member)
    assert file is not None
    return file


def file_at_offset(blob: bytes) -> io.BytesIO:
    """A file object whose current position is not its start."""
    file = io.BytesIO(b"before" + blob)
    file.seek(6)
    return file


def write_layer(blob: bytes, directory: Path) -> Path:
    """The path of a file with the content ``blob``, written only if it has another content."""
    path = directory / "layer.tar.gz"
    if not path.exists() or path.read_bytes() != blob:
        path.write_bytes(blob)
    return path


SourceMaker = Callable[[bytes, Path, random.Random], LayerSource]

REPLAYABLE: dict[str, SourceMaker] = {
    "path": lambda blob, tmp, _: write_layer(blob, tmp),
    "str": lambda blob, tmp, _: str(write_layer(blob, tmp)),
    "bytes": lambda blob, _tmp, _: blob,
    "bytearray": lambda blob, _tmp, _: bytearray(blob),
    "memoryview": lambda blob, _tmp, _: memoryview(blob),
    "sparse memoryview": lambda blob, _tmp, _: memoryview(
        bytes(b for byte in blob for b in (byte, 0))
    )[::2],
    "file": lambda blob, _tmp, _: file_at_offset(blob),
}
"""The kinds of sources that can be read again."""
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
"""The kinds of sources that can be read once."""
SOURCES = REPLAYABLE | STREAMS


@contextmanager
def limited_file_size(size: int) -> Iterator[None]:
    """No file of this process can become larger: a full disk, as far as a program sees it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
