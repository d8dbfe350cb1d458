"""What uploads leave in memory. Peak memory is measured in the benchmark."""

from __future__ import annotations

import contextlib
import gc
import io
import weakref
from collections.abc import Callable, Iterator

import pytest
from helpers import digest_of, random_bytes, wait_until

from ecr_parts import EcrPartsError, LayerUploader, ServiceError
from ecr_parts.testing import LocalECR


class File(io.BytesIO):
    """A source that can be referenced weakly."""


class ProgressError(Exception):
    pass


def raise_error(_newly_confirmed: int) -> None:
    raise ProgressError


def lines(source: File) -> Iterator[bytes]:
    yield source.read()


def send_part(uploader: LayerUploader, source: File) -> None:
    uploader.upload_part(uploader.initiate(), source.read(8))


def complete(uploader: LayerUploader, source: File) -> None:
    session = uploader.initiate()
    uploader.upload_part(session, source.read(4))
    uploader.complete(session, digest_of(b"another layer"))


INITIATE, PART, ASK = "InitiateLayerUpload", "UploadLayerPart", "BatchCheckLayerAvailability"
FAILURES: dict[str, tuple[str | None, Callable[[LayerUploader, File], object]]] = {
    "refused part": (PART, lambda uploader, source: uploader.upload(source)),
    "refused part of a stream": (PART, lambda uploader, source: uploader.upload(lines(source))),
    "refused part in a batch": (PART, lambda uploader, source: uploader.upload_many([source])),
    "refused initiate": (INITIATE, lambda uploader, _source: uploader.initiate()),
    "refused single part": (PART, send_part),
    "refused complete": (None, complete),
    "refused question": (ASK, lambda uploader, _source: uploader.missing([digest_of(b"")])),
    "wrong size": (None, lambda uploader, source: uploader.upload(source, size=46)),
    "exception of progress": (
        None,
        lambda uploader, source: uploader.upload(source, progress=raise_error),
    ),
}
"""The operation that ECR refuses, and the call that fails."""


@pytest.fixture
def without_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_gc")
@pytest.mark.parametrize("case", FAILURES)
def test_failed_upload_releases_source_without_garbage_collection(
    case: str, ecr: LocalECR, uploader: LayerUploader
) -> None:
    operation, fail = FAILURES[case]
    if operation is not None:
        ecr.fail(operation, "access_denied")
    source = File(random_bytes(45))
    reference = weakref.ref(source)
    with contextlib.suppress(EcrPartsError, ProgressError):
        fail(uploader, source)
    del source
    wait_until(lambda: reference() is None)  # a part that was sent ahead may be withdrawn first


class Buffer(bytearray):
    """A buffer that can be referenced weakly."""


@pytest.mark.usefixtures("without_gc")
@pytest.mark.parametrize("check_existing", [True, False])
def test_batch_releases_buffers_of_an_iterator_once_sent(
    check_existing: bool, uploader: LayerUploader
) -> None:
    references: list[weakref.ref[Buffer]] = []

    def buffers() -> Iterator[Buffer]:
        for seed in [*range(6), 0, 1]:
            alive = sum(reference() is not None for reference in references)
            assert alive <= 4  # two workers, one ahead, and the one that was just yielded
            buffer = Buffer(random_bytes(20, seed))
            references.append(weakref.ref(buffer))
            yield buffer

    results = uploader.upload_many(buffers(), max_workers=2, check_existing=check_existing)
    assert len(results) == 8


def test_batch_keeps_few_equal_buffers_while_the_first_is_sent(uploader: LayerUploader) -> None:
    references: list[weakref.ref[Buffer]] = []

    def equal_buffers() -> Iterator[Buffer]:
        for _ in range(10):
            assert sum(reference() is not None for reference in references) <= 4
            buffer = Buffer(random_bytes(45))
            references.append(weakref.ref(buffer))
            yield buffer

    results = uploader.upload_many(equal_buffers(), max_workers=2)
    assert [result.existed for result in results] == [False] + 9 * [True]


@pytest.mark.usefixtures("without_gc")
def test_batch_releases_sources_of_all_workers_that_failed(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    ecr.fail("UploadLayerPart", "access_denied", times=100)
    references: list[weakref.ref[Buffer]] = []
    for _ in range(5):
        buffers = [Buffer(random_bytes(45, seed)) for seed in range(4)]
        references += map(weakref.ref, buffers)
        with pytest.raises(ServiceError):
            uploader.upload_many(buffers, check_existing=False)
        del buffers
    wait_until(lambda: [reference() for reference in references] == 20 * [None])
