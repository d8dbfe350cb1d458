"""Sources: every kind is read as bytes at an offset, and changes are noticed."""

from __future__ import annotations

import codecs
import ctypes
import errno
import io
import mmap
import os
import random
import threading
import tracemalloc
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import urllib3
from helpers import (
    REPLAYABLE,
    SOURCES,
    STREAMS,
    BareReader,
    Unseekable,
    digest_of,
    random_bytes,
    write_layer,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typing_extensions import override

from ecr_parts import LayerUploader, SourceChangedError
from ecr_parts._sources.digest import RunningDigest
from ecr_parts._sources.kinds import open_source
from ecr_parts.testing import LocalECR

BLOB = random_bytes(100)


# Every kind of source


@pytest.mark.parametrize("kind", SOURCES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(size=st.integers(1, 60), seed=st.integers(0, 9), size_given=st.booleans())
def test_reads_every_kind_in_pieces_of_requested_size(
    kind: str, tmp_path: Path, size: int, seed: int, size_given: bool
) -> None:
    layer = SOURCES[kind](BLOB, tmp_path, random.Random(seed))
    with open_source(layer, len(BLOB) if size_given else None) as source:
        assert source.replayable == (kind in REPLAYABLE)
        assert source.size == (len(BLOB) if size_given or kind in REPLAYABLE else None)
        read = b""
        while piece := source.read(len(read), size):
            assert len(piece) == min(size, len(BLOB) - len(read))
            assert source.read(len(read), size) == piece  # until it is released
            read += piece
            source.release(len(read))
        assert read == BLOB
        assert source.size == len(BLOB)
        assert source.error_if_changed() is None


@pytest.mark.parametrize("kind", REPLAYABLE)
def test_reads_replayable_source_at_any_offset(kind: str, tmp_path: Path) -> None:
    with open_source(REPLAYABLE[kind](BLOB, tmp_path, random.Random(0))) as source:
        assert source.read(90, 50) == BLOB[90:]
        assert source.read(0, 10) == BLOB[:10]
        source.release(50)
        assert source.can_reread()
        assert source.read(100, 1) == b""


@pytest.mark.parametrize("kind", STREAMS)
def test_stream_holds_unreleased_bytes(kind: str, tmp_path: Path) -> None:
    with open_source(STREAMS[kind](BLOB, tmp_path, random.Random(0))) as source:
        source.read(0, 50)
        assert source.can_reread()
        source.release(30)
        assert not source.can_reread()
        assert source.read(30, 30) == BLOB[30:60]


@pytest.mark.parametrize("size", [99, 101])
@pytest.mark.parametrize("kind", REPLAYABLE)
def test_rejects_size_that_differs_from_replayable_source(
    kind: str, size: int, tmp_path: Path
) -> None:
    layer = REPLAYABLE[kind](BLOB, tmp_path, random.Random(0))
    with (
        pytest.raises(SourceChangedError, match=f"100 bytes, but the size .* is {size}"),
        open_source(layer, size),
    ):
        pass


@pytest.mark.parametrize("kind", STREAMS)
def test_stream_that_ends_before_its_size_is_an_error(kind: str, tmp_path: Path) -> None:
    layer = STREAMS[kind](BLOB, tmp_path, random.Random(0))
    with open_source(layer, 120) as source:
        assert source.read(0, 90) == BLOB[:90]
        assert source.read(90, 90) == BLOB[90:]
        assert "after 100 of 120 bytes" in str(source.error_at_end(100))
        assert source.error_at_end(120) is None


@pytest.mark.parametrize("kind", STREAMS)
def test_never_reads_past_size_of_stream(kind: str, tmp_path: Path) -> None:
    """A chunk that continues past the size is an error, but no more is read to find out."""
    layer = STREAMS[kind](BLOB, tmp_path, random.Random(0))
    with open_source(layer, 80) as source:
        assert source.read(0, 200) == BLOB[:80]
        if hasattr(layer, "read"):
            assert source.error_if_changed() is None
            assert layer.read(1) == BLOB[80:81]
        else:
            assert "more than 80 bytes, the size that was passed" in str(source.error_if_changed())


# Paths and buffers


def test_named_pipe_is_read_as_stream(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(BLOB,))
    writer.start()
    with open_source(pipe) as source:
        assert not source.replayable
        assert not source.background_readable
        assert source.read(0, 70) == BLOB[:70]
        assert source.read(70, 70) == BLOB[70:]
    writer.join()


def test_relative_path_is_resolved_when_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_layer(BLOB, tmp_path)
    monkeypatch.chdir(tmp_path)
    with open_source("layer.tar.gz") as source:
        monkeypatch.chdir("/")
        source.read(0, 10)
        assert source.error_if_changed() is None


def test_propagates_errors_of_opening_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), open_source(tmp_path / "missing"):
        pass
    with pytest.raises(IsADirectoryError), open_source(tmp_path):
        pass


def test_buffer_of_wide_items_is_read_as_bytes() -> None:
    view = memoryview(BLOB).cast("I")
    with open_source(view) as source:
        assert source.read(0, 200) == BLOB


def test_buffer_cannot_be_resized_while_it_is_open() -> None:
    blob = bytearray(BLOB)
    with open_source(blob) as source, pytest.raises(BufferError):
        blob += b"more"
    assert source.size == 100


def test_buffer_can_be_resized_once_it_is_closed() -> None:
    blob = bytearray(BLOB)
    with open_source(blob) as source:
        source.read(0, 10)
    blob += b"more"


# File objects


def mmap_of(blob: bytes) -> mmap.mmap:
    file = mmap.mmap(-1, len(blob))
    file.write(blob)
    return file


class FileWithPath(io.BytesIO):
    """A file object that is also path-like, as those of fsspec are."""

    def __fspath__(self) -> str:
        return "/missing"


@pytest.mark.parametrize("open_file", [FileWithPath, mmap_of])
def test_reads_seekable_file_from_its_position(open_file: Any) -> None:
    file = open_file(BLOB)
    file.seek(40)
    with open_source(file) as source:
        assert source.replayable
        assert source.read(0, 200) == BLOB[40:]


def test_callers_file_stays_open() -> None:
    file = io.BytesIO(b"before" + BLOB)
    file.seek(6)
    with open_source(file) as source:
        assert source.read(0, 200) == BLOB
        assert not source.background_readable
    assert not file.closed


def test_file_positioned_past_its_end_is_empty() -> None:
    file = io.BytesIO(BLOB)
    file.seek(200)
    with open_source(file) as source:
        assert source.size == 0


def test_seekable_file_may_read_short() -> None:
    class ShortReads(io.BytesIO):
        @override
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(7, size or 0))

    with open_source(ShortReads(BLOB)) as source:
        assert source.read(3, 50) == BLOB[3:53]


class FileFailingToSeek:
    """A file object without ``seekable``, whose ``seek`` fails."""

    def __init__(self, error: OSError) -> None:
        self._file = io.BytesIO(BLOB)
        self._error = error

    def read(self, size: int, /) -> bytes:
        return self._file.read(size)

    def seek(self, _offset: int, _whence: int = 0, /) -> int:
        raise self._error

    def tell(self) -> int:
        return 0


def test_file_that_cannot_seek_is_a_stream() -> None:
    with open_source(FileFailingToSeek(OSError(errno.ESPIPE, "Illegal seek"))) as source:
        assert not source.replayable
        assert source.read(0, 200) == BLOB


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), TimeoutError("time is up")], ids=repr
)
def test_propagates_other_errors_of_seek(error: OSError) -> None:
    with pytest.raises(type(error)), open_source(FileFailingToSeek(error)):
        pass


def test_rejects_closed_file() -> None:
    file = io.BytesIO(BLOB)
    file.close()
    with pytest.raises(ValueError, match="is closed"), open_source(file):
        pass


def test_reads_stream_no_further_than_requested() -> None:
    """A stream may block when it is read further."""
    file = Unseekable(BLOB, 1_000)
    with open_source(file) as source:
        source.read(0, 10)
    assert file.read(1) == BLOB[10:11]


def test_size_of_empty_stream_is_known_after_first_read() -> None:
    with open_source(BareReader(b"")) as source:
        assert source.read(0, 1) == b""
        assert source.size == 0


# Iterables


def test_propagates_exception_of_iterable() -> None:
    def chunks() -> Iterator[bytes]:
        yield b"good"
        raise ConnectionError("the producer died")

    with open_source(chunks()) as source, pytest.raises(ConnectionError, match="the producer died"):
        source.read(0, 100)


@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview])
def test_never_copies_huge_chunk_as_a_whole(buffer: Callable[[bytes], Any]) -> None:
    """Copying the rest of the chunk for each part would take quadratic time."""
    size, part_size = 8_000_000, 50_000
    chunk = buffer(bytes(size))
    with open_source(iter([chunk])) as source:
        tracemalloc.start()
        try:
            for first_byte in range(0, size, part_size):
                assert len(source.read(first_byte, part_size)) == part_size
                source.release(first_byte + part_size)
            assert tracemalloc.get_traced_memory()[1] < 10 * part_size
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("size", [7, 30, 45])
@pytest.mark.parametrize(
    "wrap", [bytearray, memoryview, lambda buffer: buffer], ids=["copy", "view", "buffer itself"]
)
def test_producer_may_reuse_its_buffer(wrap: Callable[[bytearray], Any], size: int) -> None:
    def chunks() -> Iterator[Any]:
        buffer = bytearray()
        for first_byte in range(0, 100, 30):
            buffer[:] = BLOB[first_byte : first_byte + 30]  # a BufferError if a view still existed
            yield wrap(buffer)

    with open_source(chunks()) as source:
        pieces = [source.read(first_byte, size) for first_byte in range(0, 100, size)]
    assert b"".join(pieces) == BLOB


# Objects that are not sources


@pytest.mark.parametrize("source", [None, 5, 1.5, object()])
def test_rejects_object_that_is_not_a_source(source: Any) -> None:
    with pytest.raises(TypeError, match="must be a path, bytes"), open_source(source):
        pass


@pytest.mark.parametrize(("size", "error"), [(-1, ValueError), ("1", TypeError), (True, TypeError)])
def test_rejects_invalid_size(size: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="size must be"), open_source(BLOB, size):
        pass


class Reader:
    """A file object whose second read returns ``answer``."""

    def __init__(self, answer: Any) -> None:
        self._answers = iter([b"good", answer])

    def read(self, size: int, /) -> Any:
        return next(self._answers)


@pytest.mark.parametrize(
    ("answer", "advice"),
    [(None, "non-blocking"), ("text", "'rb'"), (5, "bytes, not int"), ([1], "bytes, not list")],
)
def test_rejects_file_that_returns_other_types(answer: Any, advice: str) -> None:
    with open_source(Reader(answer)) as source, pytest.raises(TypeError, match=advice):
        source.read(0, 100)


@pytest.mark.parametrize("item", [None, "text", 5, [1]])
def test_rejects_iterable_that_yields_other_types(item: Any) -> None:
    with (
        open_source(iter([b"good", item])) as source,
        pytest.raises(TypeError, match=f"must yield bytes, not {type(item).__name__}"),
    ):
        source.read(0, 100)


def test_reads_memoryview_in_fortran_order() -> None:
    numpy = pytest.importorskip("numpy", reason="only numpy makes such views")
    view = memoryview(numpy.arange(6, dtype="uint8").reshape(2, 3).T)
    with open_source(view) as source:
        assert bytes(source.read(0, 100)) == view.tobytes() == bytes([0, 3, 1, 4, 2, 5])


def test_empty_memoryview_of_several_dimensions_has_no_bytes() -> None:
    view = memoryview((ctypes.c_ubyte * 0 * 3)())
    with open_source(view) as source:
        assert source.size == 0


def test_rejects_file_open_as_text(tmp_path: Path) -> None:
    path = write_layer(b"text", tmp_path)
    with (
        path.open() as file,
        pytest.raises(TypeError, match="open it in binary mode"),
        open_source(file),  # type: ignore[arg-type]  # checks the error for wrong types
    ):
        pass


def test_rejects_codecs_reader(tmp_path: Path) -> None:
    """It is not an ``io.TextIOBase``, so it is only recognized by what it returns."""
    path = write_layer(b"text", tmp_path)
    with (
        codecs.getreader("utf-8")(path.open("rb")) as reader,
        open_source(reader) as source,
        pytest.raises(TypeError, match="'rb'"),
    ):
        source.read(0, 1)


def test_seekable_file_may_return_views_and_too_much() -> None:
    class Views(io.BytesIO):
        def read(self, size: int | None = -1, /) -> Any:
            return memoryview(super().read(-1))

    with open_source(Views(BLOB)) as source:
        assert source.read(10, 20) == BLOB[10:30]


@pytest.mark.skipif(not os.path.exists("/proc/version"), reason="requires Linux")
def test_reads_file_without_size_as_stream(uploader: LayerUploader, ecr: LocalECR) -> None:
    """The files in /proc are regular and have no size, but content."""
    content = Path("/proc/version").read_bytes()
    with open_source("/proc/version") as source:
        assert not source.background_readable
        assert source.read(0, 1000) == content
    layer = uploader.upload_many(["/proc/version"])[0]
    assert ecr.layer("demo", layer.digest) == content


# Files that change


def truncate(path: Path) -> None:
    os.truncate(path, 50)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(BLOB)
    other.replace(path)


def rewrite(path: Path) -> None:
    path.write_bytes(bytes(100))
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (truncate, "from 100 to 50 bytes"),
        (grow, "from 100 to 104 bytes"),
        (replace, "was replaced"),
        (rewrite, "was written to"),
    ],
)
def test_notices_change_of_file(
    change: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    path = write_layer(BLOB, tmp_path)
    with open_source(path) as source:
        source.read(0, 10)
        assert source.error_if_changed() is None
        change(path)
        error = source.error_if_changed()
        assert isinstance(error, SourceChangedError)
        assert message in str(error)
        assert str(path) in str(error)


def test_file_that_shrank_ends_early(tmp_path: Path) -> None:
    path = write_layer(BLOB, tmp_path)
    with open_source(path) as source:
        truncate(path)
        assert source.read(40, 20) == BLOB[40:50]
        assert "layer.tar.gz' ended after 50 of 100 bytes" in str(source.error_at_end(50))


def test_deleted_file_can_be_read_to_its_end(tmp_path: Path) -> None:
    path = write_layer(BLOB, tmp_path)
    with open_source(path) as source:
        path.unlink()
        assert source.read(0, 100) == BLOB
        assert source.error_if_changed() is None


def test_notices_that_callers_file_grew() -> None:
    file = io.BytesIO(BLOB)
    with open_source(file) as source:
        file.seek(0, os.SEEK_END)
        file.write(b"more")
        assert source.read(0, 200) == BLOB
        assert "had 100 bytes when the upload started and has 104 now" in str(
            source.error_if_changed()
        )


# HTTP responses


class IncompleteResponse(BaseHTTPRequestHandler):
    """Announces 100 bytes and sends 40."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(BLOB[:40])

    @override
    def log_message(self, format: str, *_: Any) -> None:
        """Log nothing."""


@pytest.fixture
def incomplete_url() -> Iterator[str]:
    """The URL of a server that closes the connection after 40 of 100 bytes."""
    with HTTPServer(("127.0.0.1", 0), IncompleteResponse) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def open_with_urllib(url: str) -> Any:
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url)


def open_with_urllib3(url: str) -> Any:
    """Without enforcing Content-Length, the default before urllib3 2."""
    return urllib3.PoolManager().request(
        "GET", url, preload_content=False, enforce_content_length=False
    )


OPENERS = pytest.mark.parametrize("open_url", [open_with_urllib, open_with_urllib3])


@pytest.mark.parametrize("size", [1, 40, 70])
@OPENERS
def test_notices_that_connection_of_response_broke(
    open_url: Callable[[str], Any], size: int, incomplete_url: str
) -> None:
    with open_url(incomplete_url) as response, open_source(response) as source:
        next_byte = 0
        while piece := source.read(next_byte, size):
            next_byte += len(piece)
        assert next_byte == 40
        message = "ended after 40 bytes: its connection broke 60 bytes before the end"
        assert message in str(source.error_at_end(40))


@OPENERS
def test_never_completes_response_whose_connection_broke(
    open_url: Callable[[str], Any], incomplete_url: str, ecr: LocalECR, uploader: LayerUploader
) -> None:
    with pytest.raises(SourceChangedError, match="connection broke"):
        uploader.upload(open_url(incomplete_url))
    assert ecr.registry.repositories["demo"].layers == {}


def test_end_of_other_streams_is_no_error() -> None:
    with open_source(iter([BLOB])) as source:
        source.read(0, 200)
        assert source.error_at_end(100) is None


# The digest


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 40)), max_size=20), st.integers(1, 40))
def test_running_digest_adds_each_byte_once(rereads: list[tuple[int, int]], step: int) -> None:
    running = RunningDigest()
    next_byte = 0
    repeated_parts = iter(rereads)
    while next_byte < 100:
        first_byte, size = next(repeated_parts, (next_byte, step))
        if first_byte <= next_byte:
            running.feed(first_byte, BLOB[first_byte : first_byte + size])
            next_byte = max(next_byte, min(100, first_byte + size))
    assert running.digest() == digest_of(BLOB)


class NotSeekableError(io.UnsupportedOperation):
    pass


class FailingTell(io.BytesIO):
    def tell(self) -> int:
        raise NotSeekableError


def test_reads_file_as_stream_if_it_raises_subclass_of_unsupported_operation() -> None:
    with open_source(FailingTell(b"bytes")) as source:
        assert not source.replayable
        assert source.read(0, 100) == b"bytes"
