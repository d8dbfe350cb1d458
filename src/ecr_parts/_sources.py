"""What a layer is read from: every kind of source as bytes at an offset."""

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
from typing import Protocol, cast

import urllib3.response
from typing_extensions import Self, override

from ecr_parts._models import Blob, LayerSource, Readable
from ecr_parts._validation import check_int, short_repr
from ecr_parts.errors import SourceChangedError


class _Seekable(Readable, Protocol):
    def seek(self, offset: int, whence: int = ..., /) -> object: ...
    def tell(self) -> int: ...
    def seekable(self) -> bool: ...


class Source(ABC):
    """A layer's bytes. Offsets count from the layer's first byte; sizes are in bytes."""

    name = "the source"
    """For messages."""
    opened_file: io.FileIO | None = None
    """The file that ``open_source`` opened, if any."""
    size: int | None
    """The layer's size; ``None`` until a stream has ended."""
    replayable: bool
    """Whether the whole layer can be read more than once."""
    background_readable: bool
    """Whether a thread of this library may read it: a regular file or a buffer. Each ``read``
    may overwrite what the one before returned."""

    @abstractmethod
    def read(self, first_byte: int, size: int) -> Blob:
        """``size`` bytes from ``first_byte`` on; fewer only at the source's end.

        Raises what the source raises, and nothing of this library.
        """

    def error_at_end(self, next_byte: int) -> SourceChangedError | None:
        """The error to raise if the source ends before ``next_byte``; ``None`` if it may."""
        if self.size is None or next_byte >= self.size:
            return None
        return SourceChangedError(
            f"{self.name} ended after {next_byte:,} bytes, before its size of {self.size:,} bytes. "
            "Upload it again once it is complete"
        )

    def can_reread_from(self, _first_byte: int) -> bool:
        """Whether the bytes from ``first_byte`` on can still be read."""
        return True

    def release(self, next_byte: int) -> None:  # noqa: B027  (only streams hold bytes)
        """Drop what is held of the bytes before ``next_byte``."""

    @abstractmethod
    def error_if_changed(self) -> SourceChangedError | None:
        """The error to raise if the source is no longer what was read."""

    def close(self) -> None:
        """Release what is held, and close the file that was opened here."""
        if self.opened_file is not None:
            self.opened_file.close()

    # Not a ``contextmanager`` generator, which would change a StopIteration that passes.
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class _Buffer(Source):
    replayable = True
    background_readable = True

    def __init__(self, blob: Blob) -> None:
        self._bytes = contiguous_view(blob)
        self.size: int = len(self._bytes)

    @override
    def read(self, first_byte: int, size: int) -> Blob:
        return self._bytes[first_byte : first_byte + size]

    @override
    def error_if_changed(self) -> None:
        """Never: a buffer cannot be resized while a view of it is held."""

    @override
    def close(self) -> None:
        self._bytes.release()


class _SeekableFile(Source):
    """A seekable file object; the layer starts at its current position."""

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

    def _read_chunk(self, max_size: int) -> Blob:
        return _first_bytes(_check_chunk(self._file.read(max_size), "read()"), max_size)

    @override
    def error_if_changed(self) -> SourceChangedError | None:
        self._file.seek(0, os.SEEK_END)
        size = self._file.tell() - self._start
        if size == self.size:
            return None
        return SourceChangedError(
            f"the file had {self.size:,} bytes when the upload started and has {size:,} now. "
            "Upload it again once nothing writes to it"
        )


class _RegularFile(_SeekableFile):
    """A regular file, opened here by its path."""

    background_readable = True

    def __init__(self, path: str | os.PathLike[str], file: io.FileIO) -> None:
        self._path = os.path.abspath(os.fspath(path))  # the caller may change the directory
        self.name = repr(os.fspath(path))
        self._opened = file
        self._stat = os.fstat(file.fileno())
        self._buffer = bytearray()
        super().__init__(file, self._stat.st_size)

    @override
    def _read_all(self, size: int) -> Blob:
        # One buffer for all parts: new ones would fragment the memory around the encoded parts.
        if len(self._buffer) < size:
            self._buffer = bytearray(size)
        view = memoryview(self._buffer)
        filled = 0
        while filled < size and (read := self._opened.readinto(view[filled:size])):
            filled += read
        return view[:filled]

    @override
    def error_if_changed(self) -> SourceChangedError | None:
        try:
            now = os.stat(self._path)
        except FileNotFoundError:
            now = os.fstat(self._opened.fileno())  # deleted, and still readable
        before = self._stat
        if (now.st_dev, now.st_ino) != (before.st_dev, before.st_ino):
            change = "was replaced"
        elif now.st_size != before.st_size:
            change = f"changed its size from {before.st_size:,} to {now.st_size:,} bytes"
        elif now.st_mtime_ns != before.st_mtime_ns:
            change = "was written to"
        else:
            return None
        return SourceChangedError(
            f"{self.name} {change} during the upload. Upload it again once nothing writes to it"
        )


class _Stream(Source):
    """A source that can be read only once. Holds the bytes that ECR has not confirmed."""

    replayable = False
    background_readable = False

    def __init__(
        self,
        pull: Callable[[int], Blob],
        size: int | None,
        missing_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        self.size = size
        self._pull = pull
        self._count_missing_bytes = missing_bytes
        self._expected_size = size
        self._pieces: deque[bytes | bytearray] = deque()
        """The bytes from ``_first_held`` to ``_end``, in the pieces they were read in."""
        self._first_held = 0
        self._end = 0
        self._surplus = memoryview(b"")
        """The rest of a chunk that was larger than needed: a view, because there may not be
        enough memory for a copy."""
        self._ended = False
        self._missing_bytes = 0

    @override
    def read(self, first_byte: int, size: int) -> Blob:
        if self._expected_size is not None:
            size = min(size, self._expected_size - first_byte)
        if first_byte + size > self._end:
            self._read_on(first_byte + size - self._end)
        wanted, offset = [], self._first_held
        for piece in self._pieces:
            start, stop = max(first_byte - offset, 0), first_byte + size - offset
            if start < len(piece) and stop > 0:
                whole = start == 0 and stop >= len(piece)
                wanted.append(piece if whole else piece[start:stop])
            offset += len(piece)
        return wanted[0] if len(wanted) == 1 else b"".join(wanted)

    def _read_on(self, size: int) -> None:
        piece = _read_all(self._next_chunk, size)
        if piece:
            self._pieces.append(piece)
            self._end += len(piece)
        if len(piece) < size:
            self._ended = True
            self._missing_bytes = self._count_missing_bytes()
            if self._expected_size is None:
                self.size = self._end

    def _next_chunk(self, max_size: int) -> Blob:
        if not self._surplus.nbytes:
            chunk = b"" if self._ended else self._pull(max_size)
            if len(chunk) <= max_size:
                return _first_bytes(chunk, max_size)
            self._surplus = memoryview(chunk)
        taken = self._surplus[:max_size].tobytes()
        self._surplus = self._surplus[max_size:]
        if not self._surplus.nbytes:
            self._surplus = memoryview(b"")  # an empty view would still lock the caller's chunk
        return taken

    @override
    def error_at_end(self, next_byte: int) -> SourceChangedError | None:
        if self._expected_size is None and self._missing_bytes:
            return SourceChangedError(
                f"the source ended after {next_byte:,} bytes: its connection broke "
                f"{self._missing_bytes:,} bytes before the end. Upload it again"
            )
        return super().error_at_end(next_byte)

    @override
    def can_reread_from(self, first_byte: int) -> bool:
        return first_byte >= self._first_held

    @override
    def release(self, next_byte: int) -> None:
        while self._pieces and self._first_held < next_byte:
            piece = self._pieces.popleft()
            rest = piece[next_byte - self._first_held :]
            self._first_held += len(piece) - len(rest)
            if rest:
                self._pieces.appendleft(rest)

    @override
    def error_if_changed(self) -> SourceChangedError | None:
        # Only what was pulled already counts: another read could block, or take somebody's bytes.
        if self._expected_size is None or not self._surplus.nbytes:
            return None
        return SourceChangedError(
            f"the source continues past its size of {self._expected_size:,} bytes: check size="
        )

    @override
    def close(self) -> None:
        self._surplus = memoryview(b"")
        self._pieces.clear()
        super().close()


def open_source(source: LayerSource, size: int | None = None) -> Source:
    """Open ``source``: a context manager that closes what it opened.

    ``size`` (bytes) is what the caller knows. Raises ``TypeError`` if ``source`` is not one,
    ``SourceChangedError`` if its size differs from ``size``, and whatever opening the path raises.
    """
    if size is not None:
        check_int("size", size, minimum=0)
    opened = _open(source, size)
    if size is not None and opened.size != size:
        opened.close()
        raise SourceChangedError(
            f"size is {size:,} bytes, but the source has {opened.size:,}: leave size out, or wait "
            "until the source is complete"
        )
    return opened


def is_background_readable(source: LayerSource) -> bool:
    """Whether the opened source is ``background_readable``, a missing file included."""
    if isinstance(source, str | os.PathLike) and not isinstance(source, io.IOBase):
        return os.path.isfile(source) or not os.path.exists(source)
    return isinstance(source, bytes | bytearray | memoryview)


def check_source(source: LayerSource) -> None:
    """Raise ``TypeError`` if ``source`` is not one, ``ValueError`` for a closed file."""
    if isinstance(source, io.TextIOBase):
        raise TypeError(f"{short_repr(source)} is open as text: open it in binary mode, 'rb'")
    if isinstance(source, str | os.PathLike | bytes | bytearray | memoryview):
        return
    if not hasattr(source, "read") and not isinstance(source, Iterable):
        raise TypeError(
            "source must be a path, bytes, a binary file object or an iterable of bytes, not "
            f"{short_repr(source)}"
        )
    if hasattr(source, "read") and getattr(source, "closed", False) is True:
        raise ValueError(f"{short_repr(source)} is closed: pass an open file, or its path")


def _open(source: LayerSource, size: int | None) -> Source:
    check_source(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return _Buffer(source)
    if isinstance(source, str | os.PathLike) and not isinstance(source, io.IOBase):
        file = open(source, "rb", buffering=0)  # noqa: SIM115  (closed with the source)
        regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        opened = _RegularFile(source, file) if regular else _stream(file, size)
        opened.opened_file = file
        return opened
    if hasattr(source, "read"):
        file_object = cast("_Seekable", source)
        available = _size_if_seekable(file_object)
        if available is None:
            return _stream(file_object, size)
        return _SeekableFile(file_object, available)
    return _Stream(_pull_from(iter(source)), size)


def _size_if_seekable(file: _Seekable) -> int | None:
    try:
        if hasattr(file, "seekable") and not file.seekable():  # mmap is seekable without it
            return None
        start = file.tell()
        file.seek(0, os.SEEK_END)
    except (AttributeError, NotImplementedError, OSError, ValueError) as error:
        # These types exactly: an exception of a subclass may come from a signal handler.
        is_illegal_seek = type(error) is OSError and error.errno == errno.ESPIPE
        if type(error) in _NOT_SEEKABLE or is_illegal_seek:
            return None
        raise
    size = max(0, file.tell() - start)
    file.seek(start)
    return size


_NOT_SEEKABLE = frozenset(
    {AttributeError, NotImplementedError, ValueError, io.UnsupportedOperation}
)


def _stream(file: Readable, size: int | None) -> _Stream:
    return _Stream(
        lambda max_size: _check_chunk(file.read(max_size), "read()"),
        size,
        lambda: _missing_bytes_of(file),
    )


def _missing_bytes_of(file: Readable) -> int:
    """How many bytes of its body an HTTP response has not received at its end; 0 for others.

    ``http.client``, and so ``urllib.request``, ends a body normally when its connection breaks.
    So does urllib3 if ``enforce_content_length`` is off, the default before version 2.
    """
    if isinstance(file, HTTPResponse):
        return file.length or 0
    if isinstance(file, urllib3.response.HTTPResponse):
        return file.length_remaining or 0
    return 0


def _pull_from(items: Iterator[object]) -> Callable[[int], Blob]:
    def pull(_max_size: int) -> Blob:
        for item in items:
            chunk = _check_chunk(item, "the iterable")
            if len(chunk):
                return chunk
        return b""

    return pull


def _read_all(read: Callable[[int], Blob], size: int) -> bytes | bytearray:
    """``size`` bytes from as many reads as needed; fewer at the end."""
    chunk = read(size)
    if len(chunk) in (0, size):
        return bytes(chunk)
    blob, filled = bytearray(size), 0  # allocated once: a growing one needs twice the memory
    while len(chunk):
        blob[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
        chunk = read(size - filled) if filled < size else b""
    del blob[filled:]
    return blob


def contiguous_view(blob: Blob) -> memoryview:
    """A view of the bytes of ``blob``; of a copy only if ``blob`` is not contiguous."""
    view = memoryview(blob)
    return (view if view.contiguous else memoryview(view.tobytes())).cast("B")


def _first_bytes(chunk: Blob, max_size: int) -> bytes | bytearray:
    """The first ``max_size`` bytes of ``chunk``. A view would lock the caller's buffer."""
    if isinstance(chunk, memoryview) or len(chunk) > max_size:
        return memoryview(chunk)[:max_size].tobytes()
    return chunk


def _check_chunk(chunk: object, origin: str) -> Blob:
    if isinstance(chunk, bytes | bytearray):
        return chunk
    if isinstance(chunk, memoryview):
        return contiguous_view(chunk)
    advice = {
        type(None): "it must not be in non-blocking mode",
        str: "open it in binary mode, 'rb'",
    }.get(type(chunk), "it must return bytes")
    raise TypeError(f"{origin} of the source returned {type(chunk).__name__}: {advice}")


class RunningDigest:
    """The digest of a layer whose parts come in order, some of them repeatedly."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._next_byte = 0

    def feed(self, first_byte: int, blob: Blob) -> None:
        """Add the layer's bytes from ``first_byte`` on, except those that were added before."""
        seen = self._next_byte - first_byte
        if seen < len(blob):
            self._hash.update(memoryview(blob)[seen:])
            self._next_byte = first_byte + len(blob)

    def digest(self) -> str:
        """``"sha256:…"`` of everything so far."""
        return f"sha256:{self._hash.hexdigest()}"
