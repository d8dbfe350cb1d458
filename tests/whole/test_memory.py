"""What uploads leave in memory. Peak memory is measured in the benchmark."""

from __future__ import annotations

import contextlib
import gc
import io
import socket
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers import SMALL_LIMITS, digest_of, random_bytes, wait_until
from interrupts import joining_new_threads
from typing_extensions import Self

from ecr_parts import EcrPartsError, LayerUploader, Limits, ServiceError, UploadSession
from ecr_parts._wire.request import EncodedBlob
from ecr_parts.testing import LocalECR

PART_SIZE = 1024**2  # bytes
PART_LIMITS = Limits(min_part=1, max_part=PART_SIZE, max_parts=100, max_layer=100 * PART_SIZE)


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


@contextlib.contextmanager
def traced_memory() -> Iterator[Callable[[], int]]:
    """Trace memory in the block; yields a function that returns the bytes allocated since."""
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield lambda: tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


class SilentServer:
    """Reads requests and never answers."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.bytes_received = 0
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_error: object) -> None:
        for open_socket in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it was shut
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                thread = threading.Thread(target=self._read, args=[connection])
                self._threads.append(thread)
                thread.start()

    def _read(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while received := connection.recv(65_536):
                self.bytes_received += len(received)


@pytest.mark.usefixtures("without_gc")
@pytest.mark.parametrize("begun", ["initiate", "part"])
def test_hanging_attempt_keeps_neither_part_nor_source_after_upload_has_ended(
    begun: str, monkeypatch: pytest.MonkeyPatch, local_ecr: LocalECR
) -> None:
    monkeypatch.setattr(
        "ecr_parts._base.threads._WAKE_INTERVAL", 0.05
    )  # seconds, for a faster test
    with SilentServer() as server, joining_new_threads():
        client = local_ecr.client(endpoint_url=server.url)
        uploader = LayerUploader(client, "demo", limits=PART_LIMITS)
        session = UploadSession(repository_name="demo", upload_id="u", part_size=PART_SIZE)
        enough = PART_SIZE if begun == "part" else 100  # bytes of a request

        def stop_if_hanging(_newly_confirmed: int) -> None:
            if server.bytes_received > enough:
                raise ProgressError

        gc.collect()
        tracemalloc.start()
        try:
            source = File(bytes(3 * PART_SIZE))
            reference = weakref.ref(source)
            with pytest.raises(ProgressError):
                uploader.upload(
                    source,
                    check_existing=False,
                    session=session if begun == "part" else None,
                    progress=stop_if_hanging,
                )
            del source
            wait_until(
                lambda: reference() is None and tracemalloc.get_traced_memory()[0] < PART_SIZE
            )
            assert any(thread.name.startswith("ecr_parts ") for thread in threading.enumerate())
        finally:
            tracemalloc.stop()
        server.__exit__()  # ends the attempt


def test_part_is_dropped_once_it_is_answered(ecr: LocalECR) -> None:
    """Not only when the part after the next one takes its place."""
    client = ecr.client()
    uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS)
    confirmed = 0
    kept_before: list[bool] = []

    looking = threading.Lock()  # who looks at the parts keeps them meanwhile

    def is_kept(last_byte: int) -> bool:
        with looking:
            return any(
                type(blob) is EncodedBlob
                and blob.body
                and f'"partLastByte": {last_byte},' in blob.envelope.decode()
                for blob in gc.get_objects()
            )

    def check_before(params: dict[str, Any], **_event: object) -> None:
        kept_before.append(is_kept(params["partLastByte"]))

    client.meta.events.register_first("before-parameter-build.ecr.UploadLayerPart", check_before)

    def progress(newly_confirmed: int) -> None:
        nonlocal confirmed
        confirmed += newly_confirmed
        if newly_confirmed:
            assert not is_kept(confirmed - 1)

    uploader.upload(random_bytes(45), progress=progress)
    assert kept_before == 6 * [True]
