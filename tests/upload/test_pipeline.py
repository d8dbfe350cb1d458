"""Reading ahead: how often, how far and in which order a source is read, hashed and sent."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from helpers import (
    NO_WAIT,
    StopUploadError,
    chunks_of,
    digest_of,
    random_bytes,
    stop_after,
    write_layer,
)
from pytest_mock import MockerFixture
from typing_extensions import override

from ecr_parts import Chunker, LayerUploader, Limits
from ecr_parts._base.threads import Task, Waiter
from ecr_parts._sources.chunks import SLICE_SIZE
from ecr_parts._sources.kinds import _RegularFile, open_source
from ecr_parts._upload.pipeline import Pipeline
from ecr_parts._upload.plan import PlannedPart
from ecr_parts._wire.call import CallOptions, Target
from ecr_parts._wire.repository import Repository
from ecr_parts.testing import LocalECR

BLOB = random_bytes(45)  # six parts of 8 bytes, the last of 5
DIGEST = digest_of(BLOB)
_T = TypeVar("_T")


class ReluctantHashing(Waiter):
    """Hashes a part as late as possible: only when the pipeline waits for its hash."""

    @override
    def start(self, name: str, function: Callable[[], _T]) -> Task[_T]:
        if name != "hash":
            return super().start(name, function)
        task = Task(function, self.cancelled)
        task.without_thread = True  # so the thread that waits for the task runs it
        task.ended.release()
        return task


def test_hashes_part_before_next_read_overwrites_it(
    ecr: LocalECR, tmp_path: Path, mocker: MockerFixture
) -> None:
    """A file is read into one buffer for all parts."""
    with ReluctantHashing() as waiter, open_source(write_layer(BLOB, tmp_path)) as source:
        read = mocker.spy(source, "read")
        repository = Repository(Target(ecr.client(), "demo"), CallOptions(NO_WAIT), waiter)
        with Pipeline(source, repository, with_digest=True) as pipeline:
            parts = (PlannedPart(part, smallest=False) for part in Chunker(45, part_size=8))
            pipeline.start(parts, "u-1", 0)
            blobs: list[Any] = []
            while (call := pipeline.next_part()) is not None:
                pipeline.prepare_after(call)
                blobs.append(call.parameters["layerPartBlob"])
            digest = pipeline.digest()

    assert digest == DIGEST
    assert b"".join(blobs) == BLOB
    assert read.call_count == 6


def test_reads_file_once_if_digest_is_not_needed_before_upload(uploader: LayerUploader) -> None:
    class CountingFile(io.BytesIO):
        bytes_read = 0

        @override
        def read(self, size: int | None = -1, /) -> bytes:
            blob = super().read(size)
            self.bytes_read += len(blob)
            return blob

    sent, hashed = CountingFile(BLOB), CountingFile(BLOB)
    uploader.upload(sent, check_existing=False)
    uploader.upload(hashed)

    # One byte more is read first, to see whether the layer is empty.
    assert sent.bytes_read == 45 + 1
    assert hashed.bytes_read == 45 + 1  # the layer exists by now, so nothing is sent


def test_reads_path_once_if_digest_is_not_needed_before_upload(
    uploader: LayerUploader, tmp_path: Path, mocker: MockerFixture
) -> None:
    read = mocker.spy(_RegularFile, "read")

    layer = uploader.upload(write_layer(BLOB, tmp_path), check_existing=False)

    assert layer.digest == DIGEST
    assert read.call_count == 1 + 6  # the first read only finds out whether the layer is empty


def test_hashes_parts_of_several_slices(tmp_path: Path) -> None:
    """They are encoded and hashed slice by slice."""
    blob = random_bytes(4 * SLICE_SIZE)
    limits = Limits(min_part=1, max_part=2 * SLICE_SIZE, max_parts=9, max_layer=len(blob))
    with LocalECR(limits=limits, part_size=2 * SLICE_SIZE) as ecr:
        uploader = LayerUploader(ecr.client(), "demo", limits=limits)
        for source in (iter([blob]), write_layer(blob, tmp_path)):
            layer = uploader.upload(source, check_existing=False)
            assert layer.digest == digest_of(blob)


def test_reads_iterable_one_part_ahead(uploader: LayerUploader) -> None:
    chunks_read = 0

    def chunks() -> Iterator[bytes]:
        nonlocal chunks_read
        for chunk in chunks_of(BLOB, lambda: 5):
            chunks_read += 1
            yield chunk

    with pytest.raises(StopUploadError):
        uploader.upload(chunks(), progress=stop_after(8))

    assert chunks_read == 4  # 20 bytes, for the two parts of bytes 0 to 15
