"""``open_layer``: what is written arrives, once, in parts, and the block decides when."""

from __future__ import annotations

import array
import csv
import gzip
import io
import json
import random
import shutil
import struct
import tarfile
import threading
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    NO_WAIT,
    SMALL_LIMITS,
    chunks_of,
    digest_of,
    operations,
    random_bytes,
    wait_until,
    waits_for_a_piece,
)
from interrupts import joining_new_threads

from ecr_parts import (
    DigestMismatchError,
    EmptyLayerError,
    LayerFile,
    LayerTooLargeError,
    LayerUploader,
    Limits,
    ServiceError,
    SourceChangedError,
    UploadedLayer,
    UploadLostError,
)
from ecr_parts.testing import Fault, LocalECR

BLOB = random_bytes(45)  # six parts of 8 bytes, the last of 5
DIGEST = digest_of(BLOB)
ASK, START, PART, COMPLETE = (
    "BatchCheckLayerAvailability",
    "InitiateLayerUpload",
    "UploadLayerPart",
    "CompleteLayerUpload",
)
MIB = 1024 * 1024
MIB_LIMITS = Limits(min_part=1, max_part=2 * MIB, max_parts=100, max_layer=100 * MIB)
"""With parts of 1 MiB."""


def write_in_pieces(file: LayerFile, blob: bytes, next_size: Callable[[], int]) -> None:
    for chunk in chunks_of(blob, next_size):
        assert file.write(chunk) == len(chunk)


def upload(uploader: LayerUploader, blob: bytes, **options: Any) -> UploadedLayer:
    with uploader.open_layer(**options) as file:
        file.write(blob)
    return file.layer


@pytest.fixture
def mib_ecr() -> Any:
    with LocalECR(limits=MIB_LIMITS, part_size=MIB) as ecr:
        yield ecr


@pytest.fixture
def mib_uploader(mib_ecr: LocalECR) -> LayerUploader:
    return LayerUploader(mib_ecr.client(), "demo", limits=MIB_LIMITS, retrying=NO_WAIT)


# Content


@pytest.mark.parametrize("size", [1, 7, 8, 9, 16, 17, 45, 500])
@pytest.mark.parametrize("known", ["", "digest", "size", "both"])
def test_layer_arrives_however_it_is_written(
    size: int, known: str, ecr: LocalECR, uploader: LayerUploader
) -> None:
    rng = random.Random(size)
    for seed in range(3):
        blob = random_bytes(size, seed)
        options: dict[str, Any] = {}
        if known in ("digest", "both"):
            options["digest"] = digest_of(blob)
        if known in ("size", "both"):
            options["size"] = size
        reported: list[int] = []
        with uploader.open_layer(progress=reported.append, **options) as file:
            write_in_pieces(file, blob, lambda: rng.randint(0, 30))
            assert file.tell() == size
        assert file.layer == UploadedLayer(digest_of(blob), size, existed=False)
        assert sum(part.part.size for part in file.layer.parts) == size
        assert file.diff_id == digest_of(blob)
        assert ecr.layer("demo", digest_of(blob)) == blob
        assert sum(reported) == size


WRITERS: dict[str, Callable[[LayerFile], object]] = {
    "bytes": lambda file: file.write(BLOB),
    "bytearray": lambda file: file.write(bytearray(BLOB)),
    "memoryview": lambda file: file.write(memoryview(BLOB)),
    "sparse memoryview": lambda file: file.write(
        memoryview(bytes(b for byte in BLOB for b in (byte, 0)))[::2]
    ),
    "array": lambda file: file.write(array.array("b", BLOB)) == 45,
    "lines": lambda file: file.writelines([BLOB[:10], b"", BLOB[10:]]),
    "copyfileobj": lambda file: shutil.copyfileobj(io.BytesIO(BLOB), file, 7),
    "buffered writer": lambda file: io.BufferedWriter(file, 7).write(BLOB),
    "nothing": lambda file: [file.write(b""), file.write(BLOB), file.write(bytearray())],
}


@pytest.mark.parametrize("writer", WRITERS)
def test_writes_buffers_of_every_kind(writer: str, ecr: LocalECR, uploader: LayerUploader) -> None:
    with uploader.open_layer() as file:
        WRITERS[writer](file)
    assert ecr.layer("demo", file.layer.digest) == BLOB


def test_counts_the_bytes_of_items_that_are_larger(ecr: LocalECR, uploader: LayerUploader) -> None:
    numbers = array.array("I", range(10))
    matrix = memoryview(bytes(range(24))).cast("B", (4, 6))
    with uploader.open_layer() as file:
        assert file.write(numbers) == numbers.itemsize * 10
        assert file.write(matrix) == 24
    assert ecr.layer("demo", file.layer.digest) == numbers.tobytes() + bytes(range(24))


def test_buffer_may_be_changed_after_it_was_written(ecr: LocalECR, uploader: LayerUploader) -> None:
    buffer = bytearray(8)
    with uploader.open_layer() as file:
        for number in range(6):
            buffer[:] = bytes([number]) * 8
            file.write(buffer)
        buffer.clear()  # it is not locked either
    assert ecr.layer("demo", file.layer.digest) == bytes(n for n in range(6) for _ in range(8))


@pytest.mark.parametrize("data", ["text", 5, None, [b"list"]])
def test_argument_of_wrong_type_leaves_the_layer_intact(
    data: Any, ecr: LocalECR, uploader: LayerUploader
) -> None:
    """Some libraries try to write text first."""
    with uploader.open_layer() as file:
        with pytest.raises(TypeError):
            file.write(data)
        file.write(BLOB)
    assert ecr.layer("demo", file.layer.digest) == BLOB


def test_is_a_file_that_can_only_be_written(uploader: LayerUploader) -> None:
    with uploader.open_layer() as file:
        assert file.writable()
        assert not any([file.readable(), file.seekable(), file.isatty(), file.closed])
        for unsupported in (file.read, file.readline, file.fileno, file.truncate, file.detach):
            with pytest.raises(io.UnsupportedOperation):
                unsupported()
        with pytest.raises(io.UnsupportedOperation):
            file.seek(0)
        file.flush()
        file.write(BLOB)
    assert file.closed


def test_layer_is_sent_while_it_is_written(ecr: LocalECR, uploader: LayerUploader) -> None:
    reported: list[int] = []
    with uploader.open_layer(progress=reported.append) as file:
        file.write(BLOB[:30])
        wait_until(lambda: len(ecr.calls_of(PART)) >= 2)
        file.write(BLOB[30:40])
        assert sum(reported) >= 8
    assert file.layer.size == 40


def test_progress_is_called_in_the_writing_thread(uploader: LayerUploader) -> None:
    threads = set()
    with uploader.open_layer(progress=lambda _: threads.add(threading.get_ident())) as file:
        file.write(BLOB)
    assert threads == {threading.get_ident()}


# Wrappers


def make_tar(file: Any, mode: Any) -> None:
    with tarfile.open(fileobj=file, mode=mode) as tar:
        member = tarfile.TarInfo("app/data")
        member.size = 45
        tar.addfile(member, io.BytesIO(BLOB))


@pytest.mark.parametrize("mode", ["w|", "w|gz", "w|bz2", "w", "w:gz", "w:xz"])
def test_tarfile_writes_a_layer(mode: str, mib_ecr: LocalECR, mib_uploader: LayerUploader) -> None:
    with mib_uploader.open_layer() as file:
        make_tar(file, mode)
    with tarfile.open(fileobj=io.BytesIO(mib_ecr.layer("demo", file.layer.digest))) as tar:
        member = tar.extractfile("app/data")
        assert member is not None
        assert member.read() == BLOB


def test_zipfile_gzip_and_text_write_a_layer(
    mib_ecr: LocalECR, mib_uploader: LayerUploader
) -> None:
    with mib_uploader.open_layer() as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data", BLOB)
    with zipfile.ZipFile(io.BytesIO(mib_ecr.layer("demo", file.layer.digest))) as read:
        assert read.read("data") == BLOB

    with mib_uploader.open_layer() as file, gzip.GzipFile(fileobj=file, mode="wb") as zipped:
        zipped.write(BLOB)
    assert gzip.decompress(mib_ecr.layer("demo", file.layer.digest)) == BLOB

    with (
        mib_uploader.open_layer() as file,
        io.TextIOWrapper(file, encoding="utf-8", newline="") as text,
    ):
        csv.writer(text).writerows([["a", "b"], ["1", "ü"]])
    assert mib_ecr.layer("demo", file.layer.digest) == "a,b\r\n1,ü\r\n".encode()


# What is sent


def test_layer_of_one_part_is_sent_only_once(ecr: LocalECR, uploader: LayerUploader) -> None:
    for existed in (False, True):
        ecr.calls.clear()
        reported: list[int] = []
        layer = upload(uploader, BLOB[:8], progress=reported.append)
        assert layer == UploadedLayer(digest_of(BLOB[:8]), 8, existed)
        assert operations(ecr) == ([ASK] if existed else [ASK, START, PART, COMPLETE])
        assert sum(reported) == 8


@pytest.mark.parametrize("size", [9, 45])
def test_larger_layer_is_sent_each_time_unless_its_digest_is_known(
    size: int, ecr: LocalECR, uploader: LayerUploader
) -> None:
    blob = BLOB[:size]
    for _ in range(2):
        ecr.calls.clear()
        upload(uploader, blob)
        assert operations(ecr)[:3] == [START, PART, PART]
    ecr.calls.clear()
    reported: list[int] = []
    with uploader.open_layer(digest=digest_of(blob), progress=reported.append) as file:
        write_in_pieces(file, blob, lambda: 1)
    assert file.layer == UploadedLayer(digest_of(blob), size, existed=True)
    assert operations(ecr) == [ASK]
    assert sum(reported) == size


def test_part_size_of_the_uploader_is_what_is_held_back(ecr: LocalECR) -> None:
    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS, part_size=16)
    upload(uploader, BLOB[:16])
    assert operations(ecr)[0] == ASK
    ecr.calls.clear()
    upload(uploader, BLOB[:17])
    assert operations(ecr)[0] == START


@pytest.mark.parametrize("chunk", [1, 8, 24])
def test_layer_of_known_size_is_not_complete_before_the_block_ends(
    chunk: int, ecr: LocalECR, uploader: LayerUploader
) -> None:
    with joining_new_threads(), suppress(KeyError), uploader.open_layer(size=24) as file:
        write_in_pieces(file, BLOB[:24], lambda: chunk)
        wait_until(lambda: len(ecr.calls_of(PART)) == 2 and waits_for_a_piece())
        raise KeyError
    assert not ecr.calls_of(COMPLETE)


@pytest.mark.parametrize("known", ["size", "both"])
@pytest.mark.parametrize("size", [7, 8, 9, 16, 24, 44, 46, 100])
def test_wrong_size_is_an_error(
    size: int, known: str, ecr: LocalECR, uploader: LayerUploader
) -> None:
    written = BLOB if size < 60 else BLOB[:5]
    digest = digest_of(written) if known == "both" else None
    with (
        pytest.raises(SourceChangedError, match=f"{size:,}"),
        uploader.open_layer(size=size, digest=digest) as file,
    ):
        write_in_pieces(file, written, lambda: 3)
    assert not ecr.calls_of(COMPLETE)


@pytest.mark.parametrize("size", [5, 45])
@pytest.mark.parametrize("exists", [False, True])
def test_wrong_digest_is_an_error(
    size: int, exists: bool, ecr: LocalECR, uploader: LayerUploader
) -> None:
    """Also if ECR has a layer with this digest: then nothing is sent."""
    other = digest_of(b"another layer")
    if exists:
        uploader.upload(b"another layer")
        ecr.calls.clear()
    with pytest.raises(DigestMismatchError):
        upload(uploader, BLOB[:size], digest=other)
    if exists or size == 5:
        assert operations(ecr) in ([], [ASK])
    with pytest.raises(KeyError):
        ecr.layer("demo", digest_of(BLOB[:size]))


def test_limits_are_those_of_layers(uploader: LayerUploader) -> None:
    with pytest.raises(EmptyLayerError):
        uploader.open_layer(size=0)
    with pytest.raises(LayerTooLargeError):
        uploader.open_layer(size=501)
    with pytest.raises(EmptyLayerError), uploader.open_layer():
        pass
    with pytest.raises(LayerTooLargeError), uploader.open_layer() as file:
        write_in_pieces(file, random_bytes(600), lambda: 7)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"compress": 1}, TypeError),
        ({"digest": "sha256:1"}, ValueError),
        ({"digest": 1}, TypeError),
        ({"size": "1"}, TypeError),
        ({"size": -1}, ValueError),
        ({"progress": 1}, TypeError),
        ({"compress": True, "size": 1}, ValueError),
        ({"compress": True, "digest": DIGEST}, ValueError),
    ],
)
def test_rejects_bad_arguments_before_the_block(
    options: dict[str, Any], error: type[Exception], ecr: LocalECR, uploader: LayerUploader
) -> None:
    with pytest.raises(error):
        uploader.open_layer(**options)
    assert not ecr.calls


# Compression


def compressible(size: int) -> bytes:
    return b"".join(b"%d," % number for number in range(size // 4))[:size]


def gzip_in_pieces(content: bytes) -> bytes:
    """The format, as described in ``GzipWriter``, by zlib alone."""
    blob = bytearray(b"\x1f\x8b\x08\0\0\0\0\0\0\xff")
    for start in range(0, len(content), MIB):
        dictionary = content[max(0, start - 32 * 1024) : start]
        more: dict[str, Any] = {"zdict": dictionary} if dictionary else {}
        compressor = zlib.compressobj(6, zlib.DEFLATED, -15, **more)
        blob += compressor.compress(content[start : start + MIB])
        blob += compressor.flush(zlib.Z_SYNC_FLUSH)
    return bytes(blob + b"\x03\0" + struct.pack("<II", zlib.crc32(content), len(content)))


@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1, 7 * MIB])
def test_compressed_layer_depends_on_its_content_only(
    size: int, mib_ecr: LocalECR, mib_uploader: LayerUploader
) -> None:
    content = compressible(size // 2) + random_bytes(size - size // 2)
    expected = gzip_in_pieces(content)
    assert gzip.decompress(expected) == content
    rng = random.Random(size)
    for next_size in (lambda: rng.randint(1, 3 * MIB), lambda: rng.randint(1, 100_000)):
        reported: list[int] = []
        with mib_uploader.open_layer(compress=True, progress=reported.append) as file:
            write_in_pieces(file, content, next_size)
        assert mib_ecr.layer("demo", file.layer.digest) == expected
        assert file.layer.size == sum(reported) == len(expected)
        assert file.diff_id == digest_of(content)
        assert file.tell() == size


def test_compressed_layer_does_not_depend_on_isal(
    mib_ecr: LocalECR, mib_uploader: LayerUploader, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = {upload(mib_uploader, compressible(MIB * 2), compress=True).digest}
    monkeypatch.setattr("ecr_parts._sources.compression._isal", None)
    digests.add(upload(mib_uploader, compressible(MIB * 2), compress=True).digest)
    assert digests == {digest_of(gzip_in_pieces(compressible(MIB * 2)))}


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("start", [b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"], ids=["gzip", "zstd"])
@pytest.mark.parametrize("part_size", [1, 8])
def test_compressed_content_has_no_diff_id(part_size: int, start: bytes, compress: bool) -> None:
    """Also if a part is shorter than what tells the format."""
    limits = Limits(min_part=1, max_part=8, max_parts=100, max_layer=500)
    with LocalECR(limits=limits) as ecr:
        uploader = LayerUploader(ecr.client(), "demo", limits=limits, part_size=part_size)
        with uploader.open_layer(compress=compress) as file:
            write_in_pieces(file, start + BLOB, lambda: 1)
    with pytest.raises(ValueError, match="the digest of the uncompressed content"):
        file.diff_id  # noqa: B018  (the point of the test)
    assert file.layer.size > 0


# Faults


@pytest.mark.parametrize(
    ("operation", "fault", "call"),
    [
        (START, "answer_lost", 1),
        (PART, "answer_lost", 1),
        (PART, "answer_lost", 3),
        (PART, "stored_in_part", 2),
        (PART, "throttled", 4),
        (PART, "reset", 5),
        (COMPLETE, "answer_lost", 1),
        (COMPLETE, "server_error", 1),
    ],
)
@pytest.mark.parametrize("size", [8, 45])
def test_layer_arrives_despite_faults(
    operation: str, fault: Fault, call: int, size: int, ecr: LocalECR, uploader: LayerUploader
) -> None:
    ecr.fail(operation, fault, call=call, times=2 if size > 8 else 1)
    with uploader.open_layer() as file:
        write_in_pieces(file, BLOB[:size], lambda: 3)
    assert ecr.layer("demo", file.layer.digest) == BLOB[:size]


def test_small_layer_starts_over_when_its_upload_is_lost(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    ecr.fail(COMPLETE, "upload_forgotten")
    assert ecr.layer("demo", upload(uploader, BLOB[:8]).digest) == BLOB[:8]


@pytest.mark.parametrize(
    ("fault", "error"),
    [("expired_token", ServiceError), ("upload_forgotten", UploadLostError)],
)
@pytest.mark.parametrize("call", [1, 3, 6])
def test_error_of_the_upload_leaves_write_or_the_block(
    fault: Fault, error: type[ServiceError], call: int, ecr: LocalECR, uploader: LayerUploader
) -> None:
    ecr.fail(PART, fault, call=call, times=100)
    with pytest.raises(error) as raised, uploader.open_layer() as file:
        write_in_pieces(file, BLOB, lambda: 1)
    assert raised.value.operation == PART
    assert raised.value.session is not None
    assert not ecr.calls_of(COMPLETE)
    with pytest.raises(ValueError, match="incomplete"):
        file.layer  # noqa: B018  (the point of the test)


# complete


def test_layer_can_be_completed_before_the_block_ends(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    with uploader.open_layer() as file:
        file.write(BLOB)
        for name in ("layer", "diff_id"):
            with pytest.raises(ValueError, match="once the block has ended"):
                getattr(file, name)
        layer = file.complete()
        assert file.closed
        assert file.complete() is file.layer is layer
        with pytest.raises(ValueError, match="closed"):
            file.write(b"more")
    assert file.layer is layer
    assert len(ecr.calls_of(COMPLETE)) == 1
    with pytest.raises(ValueError, match="closed"):
        file.write(b"more")


def test_layer_that_is_complete_stays_so_if_the_block_then_fails(uploader: LayerUploader) -> None:
    with suppress(KeyError), uploader.open_layer() as file:
        file.write(BLOB)
        file.complete()
        raise KeyError
    assert file.layer.digest == file.diff_id == DIGEST


def test_block_is_entered_once(uploader: LayerUploader) -> None:
    block = uploader.open_layer()
    with block as file:
        file.write(BLOB)
    with pytest.raises(RuntimeError, match="call open_layer"), block:
        pass


# A build tool


class BuildTool:
    """Builds an image whose layers have the file of one step each."""

    def __init__(self, uploader: LayerUploader) -> None:
        self.uploader = uploader

    def layer(self, number: int, content: bytes) -> LayerFile:
        with (
            self.uploader.open_layer(compress=True) as file,
            tarfile.open(fileobj=file, mode="w|") as tar,
        ):
            member = tarfile.TarInfo(f"step-{number}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        return file

    def build(self, contents: list[bytes]) -> list[bool]:
        """Push the image; whether each layer, and the config, existed."""
        layers = [self.layer(*numbered) for numbered in enumerate(contents)]
        rootfs = {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]}
        config = {"architecture": "amd64", "os": "linux", "rootfs": rootfs}
        config_layer = self.uploader.upload(json.dumps(config).encode())
        prefix = "application/vnd.oci.image"
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{prefix}.manifest.v1+json",
            "config": config_layer.descriptor(f"{prefix}.config.v1+json"),
            "layers": [file.layer.descriptor(f"{prefix}.layer.v1.tar+gzip") for file in layers],
        }
        self.uploader.put_manifest(manifest, tags=["v1"])
        return [file.layer.existed for file in layers] + [config_layer.existed]


def test_build_tool_sends_only_what_changed(local_ecr: LocalECR) -> None:
    tool = BuildTool(LayerUploader(local_ecr.client(), "demo"))
    steps = [random_bytes(10_000, seed) for seed in range(10)]
    assert tool.build(steps) == [False] * 11
    local_ecr.calls.clear()
    assert tool.build(steps) == [True] * 11
    assert not {START, PART, COMPLETE} & set(operations(local_ecr))
    steps[4] = b"changed"
    assert tool.build(steps) == [True] * 4 + [False] + [True] * 5 + [False]


# Memory


class DiscardingClient:
    """A client that keeps nothing."""

    def batch_check_layer_availability(self, **_call: object) -> dict[str, Any]:
        return {"layers": []}

    def initiate_layer_upload(self, **_call: object) -> dict[str, Any]:
        return {"uploadId": "upload", "partSize": MIB}

    def upload_layer_part(self, **call: Any) -> dict[str, Any]:
        return {"lastByteReceived": call["partLastByte"]}

    def complete_layer_upload(self, **call: Any) -> dict[str, Any]:
        return {"layerDigest": call["layerDigests"][0]}


@pytest.mark.parametrize("compress", [False, True])
def test_memory_does_not_grow_with_the_layer(compress: bool) -> None:
    client: Any = DiscardingClient()
    uploader = LayerUploader(client, "demo", limits=MIB_LIMITS)
    tracemalloc.start()
    try:
        with uploader.open_layer(compress=compress) as file:
            for number in range(40):
                file.write(random_bytes(MIB, number))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert file.layer.size >= 40 * MIB
    assert peak < 20 * MIB


def test_abandoned_file_keeps_no_content(mib_uploader: LayerUploader) -> None:
    files: list[LayerFile] = []
    tracemalloc.start()
    try:
        for _ in range(20):
            with joining_new_threads(), suppress(KeyError), mib_uploader.open_layer() as file:
                files.append(file)
                file.write(bytes(MIB))
                raise KeyError
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 5 * MIB


def test_many_small_writes_take_few_pieces(mib_ecr: LocalECR, mib_uploader: LayerUploader) -> None:
    with mib_uploader.open_layer() as file:
        for _ in range(300_000):
            file.write(b"12345")
    assert file.layer.size == 1_500_000
    assert len(mib_ecr.calls_of(PART)) == 2


def test_path_and_written_layer_are_the_same(
    tmp_path: Path, ecr: LocalECR, uploader: LayerUploader
) -> None:
    path = tmp_path / "layer"
    path.write_bytes(BLOB)
    with uploader.open_layer() as file:
        file.write(BLOB)
    assert uploader.upload(path) == UploadedLayer(DIGEST, 45, existed=True)
    assert file.layer.digest == DIGEST
