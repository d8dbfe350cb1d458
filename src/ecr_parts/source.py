"""What a layer is read from: every kind of source as bytes at a position."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from http.client import HTTPResponse
from typing import Protocol, TypeAlias, cast

import urllib3.response
from typing_extensions import Self, override

from ecr_parts._validation import shown, whole_number
from ecr_parts.errors import EcrPartsError, SourceChangedError

Blob: TypeAlias = bytes | bytearray | memoryview


class Readable(Protocol):
    """A binary file object, as far as one is needed. Answers may be short; empty is the end."""

    def read(self, size: int, /) -> Blob: ...


LayerSource: TypeAlias = str | os.PathLike[str] | Blob | Readable | Iterable[Blob]
"""A path, a buffer, a binary file object (read from where it stands) or an iterable of bytes."""


class _Seekable(Readable, Protocol):
    def seek(self, offset: int, whence: int = ..., /) -> object: ...
    def tell(self) -> int: ...
    def seekable(self) -> bool: ...


class Source(ABC):
    """A layer's bytes, by position. Positions are the layer's, sizes are bytes."""

    name = "the source"
    """In messages."""
    file_opened_here: io.FileIO | None = None
    size: int | None
    """The layer's size, or ``None`` until a stream has ended."""
    replayable: bool
    """Whether the whole layer can be read twice."""
    background_readable: bool
    """Whether it is a regular file or a buffer, which may be read in a thread of this library.
    Each ``read`` invalidates the previous one then."""

    @abstractmethod
    def read(self, first_byte: int, size: int) -> Blob:
        """The bytes from ``first_byte`` on: ``size`` of them, fewer only at the source's end.

        Raises nothing of this library's: what comes out was raised by the source.
        """

    def ended_at(self, next_byte: int) -> SourceChangedError | None:
        """What to raise when a ``read`` found the source's end there: nothing, if it may end."""
        if self.size is None or next_byte >= self.size:
            return None
        return SourceChangedError(
            f"{self.name} ended after {next_byte:,} bytes, before its size of {self.size:,} bytes"
        )

    def can_reread_from(self, _first_byte: int) -> bool:
        """Whether the bytes from ``first_byte`` on can be read (again)."""
        return True

    def release(self, next_byte: int) -> None:  # noqa: B027  (nothing is held by default)
        """What lies before ``next_byte`` is not needed again."""

    @abstractmethod
    def changed(self) -> SourceChangedError | None:
        """What to raise if the source is no longer what was read."""

    def close(self) -> None:
        """Release what is the caller's, and close what was opened here."""
        if self.file_opened_here is not None:
            self.file_opened_here.close()

    # Not a generator with ``contextmanager``: that changes a StopIteration that passes.
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class _Buffer(Source):
    replayable = True
    background_readable = True

    def __init__(self, blob: Blob) -> None:
        self._bytes = contiguous(blob)
        self.size: int = len(self._bytes)

    @override
    def read(self, first_byte: int, size: int) -> Blob:
        return self._bytes[first_byte : first_byte + size]

    @override
    def changed(self) -> None:
        """A buffer keeps its size while a view of it is held."""

    @override
    def close(self) -> None:
        self._bytes.release()


class _SeekableFile(Source):
    """A file object that can be read again from where it stood."""

    replayable = True
    background_readable = False

    def __init__(self, file: _Seekable, size: int) -> None:
        self._file = file
        self._start = file.tell()
        self.size: int = size

    @override
    def read(self, first_byte: int, size: int) -> Blob:
        size = min(size, self.size - first_byte)
        self._file.seek(self._start + first_byte)
        return self._read_all(size)

    def _read_all(self, size: int) -> Blob:
        return _read_all(self._read_chunk, size)

    def _read_chunk(self, most: int) -> Blob:
        return _taken(_chunk(self._file.read(most), "read()"), most)

    @override
    def changed(self) -> SourceChangedError | None:
        self._file.seek(0, os.SEEK_END)
        now = self._file.tell() - self._start
        if now == self.size:
            return None
        return SourceChangedError(
            f"the file had {self.size:,} bytes when the upload began and has {now:,} now"
        )


class _RegularFile(_SeekableFile):
    """A file opened here, by its path."""

    background_readable = True

    def __init__(self, path: str | os.PathLike[str], file: io.FileIO) -> None:
        self._path = os.path.abspath(os.fspath(path))  # where the caller is now
        self.name = repr(os.fspath(path))
        self._opened = file
        self._stat = os.fstat(file.fileno())
        self._buffer = bytearray()
        super().__init__(file, self._stat.st_size)

    @override
    def _read_all(self, size: int) -> Blob:
        # Into one buffer for all parts: fresh ones fragment the memory around the encoded parts.
        if len(self._buffer) < size:
            self._buffer = bytearray(size)
        view = memoryview(self._buffer)
        at = 0
        while at < size and (read := self._opened.readinto(view[at:size])):
            at += read
        return view[:at]

    @override
    def changed(self) -> SourceChangedError | None:
        try:
            now = os.stat(self._path)
        except FileNotFoundError:
            now = os.fstat(self._opened.fileno())  # unlinked, and still whole
        before = self._stat
        if (now.st_dev, now.st_ino) != (before.st_dev, before.st_ino):
            what = "was replaced"
        elif now.st_size != before.st_size:
            what = f"had {before.st_size:,} bytes and has {now.st_size:,} now"
        elif now.st_mtime_ns != before.st_mtime_ns:
            what = "was written to"
        else:
            return None
        return SourceChangedError(
            f"{self.name} {what} during the upload: upload it again once it is done"
        )


class _Stream(Source):
    """Bytes that come once. What ECR has not confirmed is held, in the pieces it was read in."""

    replayable = False
    background_readable = False

    def __init__(
        self,
        pull: Callable[[int], Blob],
        size: int | None,
        missing: Callable[[], int] = lambda: 0,
    ) -> None:
        self.size = size
        self._pull = pull
        self._missing = missing
        self._expected = size
        self._pieces: deque[bytes | bytearray] = deque()
        self._first_held = 0
        self._end = 0
        self._surplus = memoryview(b"")
        """What was pulled and not asked for yet: a view, as the chunk may be larger than memory
        has room for twice."""
        self._ended = False
        self._missing_bytes = 0

    @override
    def read(self, first_byte: int, size: int) -> Blob:
        if self._expected is not None:
            size = min(size, self._expected - first_byte)
        if first_byte + size > self._end:
            self._read_on(first_byte + size - self._end)
        wanted, at = [], self._first_held
        for piece in self._pieces:
            start, stop = max(first_byte - at, 0), first_byte + size - at
            if start < len(piece) and stop > 0:
                whole = start == 0 and stop >= len(piece)
                wanted.append(piece if whole else piece[start:stop])
            at += len(piece)
        return wanted[0] if len(wanted) == 1 else b"".join(wanted)

    def _read_on(self, size: int) -> None:
        piece = _read_all(self._next_chunk, size)
        if piece:
            self._pieces.append(piece)
            self._end += len(piece)
        if len(piece) < size:
            self._ended = True
            self._missing_bytes = self._missing()
            if self._expected is None:
                self.size = self._end

    def _next_chunk(self, most: int) -> Blob:
        if not self._surplus.nbytes:
            chunk = b"" if self._ended else self._pull(most)
            if len(chunk) <= most:
                return _taken(chunk, most)
            self._surplus = memoryview(chunk)
        taken = self._surplus[:most].tobytes()
        self._surplus = self._surplus[most:]
        if not self._surplus.nbytes:
            self._surplus = memoryview(b"")  # the chunk is the caller's again
        return taken

    @override
    def ended_at(self, next_byte: int) -> SourceChangedError | None:
        if self._expected is None and self._missing_bytes:
            return SourceChangedError(
                f"the source ended after {next_byte:,} bytes: its connection broke "
                f"{self._missing_bytes:,} bytes before the end. Upload it again"
            )
        return super().ended_at(next_byte)

    @override
    def can_reread_from(self, first_byte: int) -> bool:
        return first_byte >= self._first_held

    @override
    def release(self, next_byte: int) -> None:
        while self._pieces and self._first_held < next_byte:
            piece = self._pieces.popleft()
            left = piece[next_byte - self._first_held :]
            self._first_held += len(piece) - len(left)
            if left:
                self._pieces.appendleft(left)

    @override
    def changed(self) -> SourceChangedError | None:
        # No read to find out: what follows may be somebody else's, or never come.
        if self._expected is None or not self._surplus.nbytes:
            return None
        return SourceChangedError(
            f"the source continues past the {self._expected:,} bytes that were its size"
        )

    @override
    def close(self) -> None:
        self._surplus = memoryview(b"")
        self._pieces.clear()
        super().close()


def open_source(source: LayerSource, size: int | None = None) -> Source:
    """``source`` ready to be read: a context that releases what it opened or holds.

    ``size`` (bytes) is what the caller knows of it. Raises ``TypeError`` for what is no source,
    ``SourceChangedError`` where it has another size than the caller says, and whatever opening
    the path raises.
    """
    if size is not None:
        whole_number("size", size, at_least=0)
    opened = _open(source, size)
    if size is not None and opened.size != size:
        opened.close()
        raise SourceChangedError(f"size is {size:,} bytes, and the source has {opened.size:,}")
    return opened


def is_background_readable(source: LayerSource) -> bool:
    """Whether ``open_source`` gives what a thread may read: a regular file, or a buffer."""
    if isinstance(source, str | os.PathLike) and not isinstance(source, io.IOBase):
        return os.path.isfile(source) or not os.path.exists(source)
    return isinstance(source, bytes | bytearray | memoryview)


def check_source(source: LayerSource) -> None:
    """``TypeError`` for what a layer cannot be read from, ``ValueError`` for a closed file."""
    if isinstance(source, io.TextIOBase):
        raise TypeError(f"{shown(source)} is open as text: open it in binary mode, 'rb'")
    if isinstance(source, str | os.PathLike | bytes | bytearray | memoryview):
        return
    if not hasattr(source, "read") and not isinstance(source, Iterable):
        raise TypeError(
            f"a layer cannot be read from {shown(source)}: pass a path, bytes, a binary file "
            "object or an iterable of bytes"
        )
    if hasattr(source, "read") and getattr(source, "closed", False) is True:
        raise ValueError(f"{shown(source)} is closed")


def _open(source: LayerSource, size: int | None) -> Source:
    check_source(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return _Buffer(source)
    if isinstance(source, str | os.PathLike) and not isinstance(source, io.IOBase):
        file = open(source, "rb", buffering=0)  # noqa: SIM115  (closed with the source)
        regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        opened = _RegularFile(source, file) if regular else _stream(file, size)
        opened.file_opened_here = file
        return opened
    if hasattr(source, "read"):
        file_object = cast("_Seekable", source)
        available = _size_if_seekable(file_object)
        if available is None:
            return _stream(file_object, size)
        return _SeekableFile(file_object, available)
    return _Stream(_from_items(iter(source)), size)


def _size_if_seekable(file: _Seekable) -> int | None:
    try:
        if hasattr(file, "seekable") and not file.seekable():  # mmap has none, and can
            return None
        start = file.tell()
        file.seek(0, os.SEEK_END)
    except EcrPartsError:  # some are a ValueError, and this one is not about seeking
        raise
    except (AttributeError, NotImplementedError, ValueError):  # tarfile's streams
        return None
    except OSError as error:  # and not a time limit's TimeoutError
        if error.errno != errno.ESPIPE:
            raise
        return None
    size = max(0, file.tell() - start)
    file.seek(start)
    return size


def _stream(file: Readable, size: int | None) -> _Stream:
    return _Stream(
        lambda most: _chunk(file.read(most), "read()"), size, lambda: _missing_bytes_of(file)
    )


def _missing_bytes_of(file: Readable) -> int:
    """How many bytes of its body an HTTP response at its end has not received; 0 for others.

    ``http.client``, and so ``urllib.request``, ends a body like any other when its connection
    breaks; so does urllib3 where ``enforce_content_length`` is off, its default before version 2.
    """
    if isinstance(file, HTTPResponse):
        return file.length or 0
    if isinstance(file, urllib3.response.HTTPResponse):
        return file.length_remaining or 0
    return 0


def _from_items(items: Iterator[object]) -> Callable[[int], Blob]:
    def pull(_most: int) -> Blob:
        for item in items:
            chunk = _chunk(item, "the iterable")
            if len(chunk):
                return chunk
        return b""

    return pull


def _read_all(read: Callable[[int], Blob], size: int) -> bytes | bytearray:
    """``size`` bytes, of as many reads as it takes; fewer at the end."""
    chunk = read(size)
    if len(chunk) in (0, size):
        return bytes(chunk)
    blob, at = bytearray(size), 0  # whole at once: one that grows needs its space twice
    while len(chunk):
        blob[at : at + len(chunk)] = chunk
        at += len(chunk)
        chunk = read(size - at) if at < size else b""
    del blob[at:]
    return blob


def contiguous(blob: Blob) -> memoryview:
    """A view of the bytes of ``blob``, of which only one that is not contiguous is copied."""
    view = memoryview(blob)
    return (view if view.contiguous else memoryview(view.tobytes())).cast("B")


def _taken(chunk: Blob, most: int) -> bytes | bytearray:
    """The first ``most`` bytes of ``chunk``. No view: that would lock the caller's buffer."""
    if isinstance(chunk, memoryview) or len(chunk) > most:
        return memoryview(chunk)[:most].tobytes()
    return chunk


def _chunk(chunk: object, giver: str) -> Blob:
    if isinstance(chunk, bytes | bytearray):
        return chunk
    if isinstance(chunk, memoryview):
        return contiguous(chunk)
    hint = {
        type(None): "it must not be in non-blocking mode",
        str: "open it in binary mode, 'rb'",
    }.get(type(chunk), "it must give bytes")
    raise TypeError(f"{giver} of the source gave {type(chunk).__name__}: {hint}")


class RunningDigest:
    """The digest of a layer whose parts come in order, some of them more than once."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._next_byte = 0

    def feed(self, first_byte: int, blob: Blob) -> None:
        """Take in the layer's bytes from ``first_byte`` on, as far as they are new."""
        seen = self._next_byte - first_byte
        if seen < len(blob):
            self._hash.update(memoryview(blob)[seen:])
            self._next_byte = first_byte + len(blob)

    def digest(self) -> str:
        """``"sha256:…"`` of everything so far."""
        return f"sha256:{self._hash.hexdigest()}"
