from __future__ import annotations

import codecs
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
    bytes_of,
    digest_of,
    path_to,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ecr_parts import LayerUploader, SourceChangedError
from ecr_parts._sources import RunningDigest, open_source
from ecr_parts.testing import LocalECR

BLOB = bytes_of(100)


@pytest.mark.parametrize("kind", SOURCES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(size=st.integers(1, 60), seed=st.integers(0, 9), known=st.booleans())
def test_every_kind_gives_its_bytes_in_pieces_of_the_size_asked_for(
    kind: str, tmp_path: Path, size: int, seed: int, known: bool
) -> None:
    made = SOURCES[kind](BLOB, tmp_path, random.Random(seed))
    with open_source(made, len(BLOB) if known else None) as source:
        assert source.replayable == (kind in REPLAYABLE)
        assert source.size == (len(BLOB) if known or kind in REPLAYABLE else None)
        read = b""
        while piece := source.read(len(read), size):
            assert len(piece) == min(size, len(BLOB) - len(read))
            assert source.read(len(read), size) == piece  # held until released
            read += piece
            source.release(len(read))
        assert read == BLOB
        assert source.size == len(BLOB)
        assert source.error_if_changed() is None


@pytest.mark.parametrize("kind", REPLAYABLE)
def test_what_can_be_replayed_is_read_at_any_place(kind: str, tmp_path: Path) -> None:
    with open_source(SOURCES[kind](BLOB, tmp_path, random.Random(0))) as source:
        assert source.read(90, 50) == BLOB[90:]
        assert source.read(0, 10) == BLOB[:10]
        source.release(50)
        assert source.can_reread_from(0)
        assert source.read(100, 1) == b""


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_holds_what_was_not_released(kind: str, tmp_path: Path) -> None:
    with open_source(STREAMS[kind](BLOB, tmp_path, random.Random(0))) as source:
        source.read(0, 50)
        assert source.can_reread_from(0)
        source.release(30)
        assert not source.can_reread_from(29)
        assert source.can_reread_from(30)
        assert source.read(30, 30) == BLOB[30:60]


@pytest.mark.parametrize("size", [99, 101])
@pytest.mark.parametrize("kind", REPLAYABLE)
def test_a_size_that_is_not_the_sources_is_refused_at_once(
    kind: str, size: int, tmp_path: Path
) -> None:
    made = REPLAYABLE[kind](BLOB, tmp_path, random.Random(0))
    with (
        pytest.raises(SourceChangedError, match=f"size is {size} bytes, but the source has 100"),
        open_source(made, size),
    ):
        pass


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_that_ends_before_its_size(kind: str, tmp_path: Path) -> None:
    made = STREAMS[kind](BLOB, tmp_path, random.Random(0))
    with open_source(made, 120) as source:
        assert source.read(0, 90) == BLOB[:90]
        assert source.read(90, 90) == BLOB[90:]
        assert "after 100 bytes, before its size of 120" in str(source.error_at_end(100))
        assert source.error_at_end(120) is None


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_that_continues_past_its_size(kind: str, tmp_path: Path) -> None:
    """It is noticed where the bytes are there anyway; none is read to find out."""
    made = STREAMS[kind](BLOB, tmp_path, random.Random(0))
    with open_source(made, 80) as source:
        assert source.read(0, 200) == BLOB[:80]
        if hasattr(made, "read"):
            assert source.error_if_changed() is None
            assert made.read(1) == BLOB[80:81]
        else:
            assert "past its size of 80 bytes" in str(source.error_if_changed())


def test_a_path_that_is_a_pipe_is_a_stream(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(BLOB,))
    writer.start()
    with open_source(fifo) as source:
        assert not source.replayable
        assert not source.background_readable
        assert source.read(0, 70) == BLOB[:70]
        assert source.read(70, 70) == BLOB[70:]
    writer.join()


def test_a_file_is_read_from_where_it_stands_and_left_open() -> None:
    file = io.BytesIO(b"before" + BLOB)
    file.seek(6)
    with open_source(file) as source:
        assert source.read(0, 200) == BLOB
        assert not source.background_readable
    assert not file.closed


def test_a_file_that_stands_behind_its_end_is_empty() -> None:
    file = io.BytesIO(BLOB)
    file.seek(200)
    with open_source(file) as source:
        assert source.size == 0


def mmap_of(blob: bytes) -> mmap.mmap:
    file = mmap.mmap(-1, len(blob))
    file.write(blob)
    return file


class ShortSeekable(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(7, size or 0))


def test_a_seekable_file_may_answer_short() -> None:
    with open_source(ShortSeekable(BLOB)) as source:
        assert source.read(3, 50) == BLOB[3:53]


def test_a_view_of_bigger_items_is_its_bytes() -> None:
    view = memoryview(BLOB).cast("I")
    with open_source(view) as source:
        assert source.read(0, 200) == BLOB


class Gives:
    """A file object that gives something else, after a while."""

    def __init__(self, what: Any) -> None:
        self._gifts = iter([b"good", what])

    def read(self, size: int, /) -> Any:
        return next(self._gifts)


@pytest.mark.parametrize(
    ("what", "hint"),
    [
        (None, "non-blocking"),
        ("text", "'rb'"),
        (5, "return bytes"),
        ([1], "return bytes"),
    ],
)
def test_what_gives_no_bytes_is_a_type_error(what: Any, hint: str) -> None:
    for made in (Gives(what), iter([b"good", what])):
        with open_source(made) as source, pytest.raises(TypeError, match=hint):
            source.read(0, 100)


def test_text_is_no_layer(tmp_path: Path) -> None:
    path = path_to(b"text", tmp_path)
    with (
        path.open() as file,
        pytest.raises(TypeError, match="open it in binary mode"),
        open_source(file),  # type: ignore[arg-type]  # the point of the test
    ):
        pass
    with (
        codecs.open(str(path), encoding="utf-8") as reader,
        open_source(reader) as source,
        pytest.raises(TypeError, match="'rb'"),
    ):
        source.read(0, 1)


@pytest.mark.parametrize("source", [None, 5, 1.5, object()])
def test_no_source_at_all(source: Any) -> None:
    with pytest.raises(TypeError, match="must be a path, bytes"), open_source(source):
        pass


@pytest.mark.parametrize(("size", "error"), [(-1, ValueError), ("1", TypeError), (True, TypeError)])
def test_no_size_at_all(size: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="size must be"), open_source(BLOB, size):
        pass


def test_what_opening_a_path_raises_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), open_source(tmp_path / "nothing"):
        pass
    with pytest.raises(IsADirectoryError), open_source(tmp_path):
        pass


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
def test_a_file_that_changed_is_noticed(change: Any, message: str, tmp_path: Path) -> None:
    path = path_to(BLOB, tmp_path)
    with open_source(path) as source:
        source.read(0, 10)
        assert source.error_if_changed() is None
        change(path)
        changed = source.error_if_changed()
        assert isinstance(changed, SourceChangedError)
        assert message in str(changed)
        assert str(path) in str(changed)


def test_a_file_that_shrank_ends_early(tmp_path: Path) -> None:
    path = path_to(BLOB, tmp_path)
    with open_source(path) as source:
        truncate(path)
        assert source.read(40, 20) == BLOB[40:50]
        assert "layer.tar.gz' ended after 50 bytes" in str(source.error_at_end(50))


def test_a_file_that_is_only_unlinked_is_still_whole(tmp_path: Path) -> None:
    path = path_to(BLOB, tmp_path)
    with open_source(path) as source:
        path.unlink()
        assert source.read(0, 100) == BLOB
        assert source.error_if_changed() is None


def test_a_callers_file_that_grew_is_noticed() -> None:
    file = io.BytesIO(BLOB)
    with open_source(file) as source:
        file.seek(0, os.SEEK_END)
        file.write(b"more")
        assert source.read(0, 200) == BLOB
        assert "had 100 bytes when the upload started and has 104 now" in str(
            source.error_if_changed()
        )


def test_what_is_the_callers_is_let_go_of() -> None:
    blob = bytearray(BLOB)
    with open_source(blob) as source:
        source.read(0, 10)
    blob += b"more"


class Opener(io.BytesIO):
    """A file object that is a path, too, as fsspec's are."""

    def __fspath__(self) -> str:
        return "/nothing"


@pytest.mark.parametrize("make", [Opener, mmap_of])
def test_other_files_are_read_from_where_they_stand(make: Any) -> None:
    file = make(BLOB)
    file.seek(40)
    with open_source(file) as source:
        assert source.replayable
        assert source.read(0, 200) == BLOB[40:]


class Pipe:
    """A file object that finds out when it is asked: no ``seekable``."""

    def __init__(self, error: OSError) -> None:
        self._file = io.BytesIO(BLOB)
        self._error = error

    def read(self, size: int, /) -> bytes:
        return self._file.read(size)

    def seek(self, _offset: int, _whence: int = 0, /) -> int:
        raise self._error

    def tell(self) -> int:
        return 0


def test_a_file_that_cannot_seek_is_a_stream_and_another_error_is_one() -> None:
    with open_source(Pipe(OSError(errno.ESPIPE, "Illegal seek"))) as source:
        assert not source.replayable
        assert source.read(0, 200) == BLOB
    for error in (OSError(errno.EIO, "Input/output error"), TimeoutError("time is up")):
        with pytest.raises(type(error)), open_source(Pipe(error)):
            pass


def test_a_closed_file_says_so() -> None:
    file = io.BytesIO(BLOB)
    file.close()
    with pytest.raises(ValueError, match="is closed"), open_source(file):
        pass


def test_a_relative_path_is_one_from_where_the_caller_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path_to(BLOB, tmp_path)
    monkeypatch.chdir(tmp_path)
    with open_source("layer.tar.gz") as source:
        monkeypatch.chdir("/")
        source.read(0, 10)
        assert source.error_if_changed() is None


def test_a_buffer_cannot_grow_while_it_is_read() -> None:
    blob = bytearray(BLOB)
    with open_source(blob) as source, pytest.raises(BufferError):
        blob += b"more"
    assert source.size == 100


def test_the_sources_own_error_comes_through() -> None:
    def items() -> Iterator[bytes]:
        yield b"good"
        raise ConnectionError("the producer died")

    with open_source(items()) as source, pytest.raises(ConnectionError, match="the producer died"):
        source.read(0, 100)


def test_only_what_is_asked_for_is_read() -> None:
    """A stream that blocks must not be read further than needed."""
    file = Unseekable(BLOB, 1_000)
    with open_source(file) as source:
        source.read(0, 10)
    assert file.read(1) == BLOB[10:11]
    with open_source(BareReader(b"")) as empty:
        assert empty.read(0, 1) == b""
        assert empty.size == 0


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 40)), max_size=20), st.integers(1, 40))
def test_the_running_digest_takes_each_byte_once(rereads: list[tuple[int, int]], step: int) -> None:
    running = RunningDigest()
    at = 0
    again = iter(rereads)
    while at < 100:
        first, size = next(again, (at, step))
        if first <= at:
            running.feed(first, BLOB[first : first + size])
            at = max(at, min(100, first + size))
    assert running.digest() == digest_of(BLOB)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_huge_chunk_is_never_copied_as_a_whole(kind: Callable[[bytes], Any]) -> None:
    """Neither at once nor once more for each part: that is quadratic."""
    size, part = 8_000_000, 50_000
    chunk = kind(bytes(size))
    with open_source(iter([chunk])) as source:
        tracemalloc.start()
        try:
            for first_byte in range(0, size, part):
                assert len(source.read(first_byte, part)) == part
                source.release(first_byte + part)
            assert tracemalloc.get_traced_memory()[1] < 10 * part
        finally:
            tracemalloc.stop()


def test_a_buffer_that_its_producer_fills_anew_is_free_by_then() -> None:
    def items(wrap: Callable[[bytearray], Any]) -> Iterator[Any]:
        buffer = bytearray()
        for at in range(0, 100, 30):
            buffer[:] = BLOB[at : at + 30]  # a view of it would be a BufferError
            yield wrap(buffer)

    for wrap in (bytearray, memoryview, lambda buffer: buffer):
        for size in (7, 30, 45):
            with open_source(items(wrap)) as source:
                pieces = [source.read(at, size) for at in range(0, 100, size)]
            assert b"".join(pieces) == BLOB


class HalfOfTheBody(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(BLOB[:40])

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def broken_url() -> Iterator[str]:
    """A server whose connection breaks after 40 of 100 bytes."""
    with HTTPServer(("127.0.0.1", 0), HalfOfTheBody) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("part", [1, 40, 70])
@pytest.mark.parametrize("with_urllib3", [False, True])
def test_a_response_whose_connection_broke_has_not_ended(
    part: int, with_urllib3: bool, broken_url: str, ecr: LocalECR, uploader: LayerUploader
) -> None:
    def open_broken() -> Any:
        if with_urllib3:
            return urllib3.PoolManager().request(
                "GET", broken_url, preload_content=False, enforce_content_length=False
            )
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(broken_url)

    with open_broken() as response, open_source(response) as source:
        at = 0
        while piece := source.read(at, part):
            at += len(piece)
        assert at == 40
        message = "ended after 40 bytes: its connection broke 60 bytes before the end"
        assert message in str(source.error_at_end(40))
    with pytest.raises(SourceChangedError, match="connection broke"):
        uploader.upload(open_broken())
    assert ecr.registry.repositories["demo"].layers == {}
    with open_source(iter([BLOB])) as whole:
        whole.read(0, 200)
        assert whole.error_at_end(100) is None
