"""Layer sources: paths, buffers, file objects and iterables, all read at byte offsets."""

from __future__ import annotations

import errno
import io
import os
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Protocol, TypeAlias, cast

from typing_extensions import override

from ecr_parts._base.files import NotRegularError, open_regular
from ecr_parts._base.validation import check_int, check_path, short_repr
from ecr_parts._model.layers import Blob, FileRegion, LayerSource, Readable, UnnamedFile, is_path
from ecr_parts._sources.base import Source
from ecr_parts._sources.chunks import (
    READ_ADVICE,
    check_chunk,
    contiguous_view,
    count_missing,
    pull_from,
    read_all,
    to_bytes,
)
from ecr_parts._sources.stream import Stream
from ecr_parts.errors import SourceChangedError

BetweenReads: TypeAlias = Callable[[], None]
_INTERVAL = 0.5  # seconds


class _Seekable(Readable, Protocol):
    def seek(self, offset: int, whence: int = ..., /) -> object: ...
    def tell(self) -> int: ...
    def seekable(self) -> bool: ...


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
        """Always ``None``: a buffer cannot be resized while a view of it is held."""

    @override
    def close(self) -> None:
        self._bytes.release()


class _SeekableFile(Source):
    """A seekable file object. The layer starts at its current position."""

    replayable = True
    background_readable = False

    def __init__(self, file: _Seekable, size: int, between_reads: BetweenReads) -> None:
        self._file = file
        self._between_reads = between_reads
        self._start = file.tell()
        self.size: int = size

    @override
    def read(self, first_byte: int, size: int) -> Blob:
        size = min(size, self.size - first_byte)
        self._file.seek(self._start + first_byte)
        return read_all(self._read_chunk, size)

    def _read_chunk(self, max_size: int) -> Blob:
        self._between_reads()
        return to_bytes(check_chunk(self._file.read(max_size), READ_ADVICE), max_size)

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
    """A regular file, opened here by its path, or a temporary one."""

    background_readable = True

    def __init__(
        self, file: io.FileIO, path: str | os.PathLike[str] | None, size: int | None = None
    ) -> None:
        self._path = None if path is None else os.path.abspath(os.fspath(path))
        self.name = "the temporary file" if path is None else repr(os.fspath(path))
        self._opened = file
        self._stat = os.fstat(file.fileno())
        self._buffers = [bytearray(), bytearray()]
        size = self._stat.st_size if size is None else size
        super().__init__(file, size, lambda: None)  # it is not read by the caller's code

    @override
    def read(self, first_byte: int, size: int) -> Blob:
        size = min(size, self.size - first_byte)
        self._file.seek(self._start + first_byte)
        # The same two buffers for the whole file: new ones would fragment the heap.
        self._buffers.reverse()
        if len(self._buffers[0]) < size:
            self._buffers[0] = bytearray(size)
        view = memoryview(self._buffers[0])
        filled = 0
        while filled < size and (read := self._opened.readinto(view[filled:size])):
            filled += read
        return view[:filled]

    @override
    def error_if_changed(self) -> SourceChangedError | None:
        now = os.fstat(self._opened.fileno())
        if self._path is not None:
            with suppress(FileNotFoundError):  # deleted, but still readable
                now = os.stat(self._path)
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


def open_source(
    source: LayerSource,
    size: int | None = None,
    *,
    between_reads: Callable[[], object] = lambda: None,
    must_be_regular: bool = False,
) -> Source:
    """Open ``source``. The result is a context manager that closes what was opened here.

    ``size`` is the expected size in bytes, if known. ``between_reads`` is called between two reads
    of what only the caller's thread may read, about twice a second. With ``must_be_regular``, a
    path must be that of a regular file. Raises ``TypeError`` for an unsupported type,
    ``ValueError`` for a closed file, ``SourceChangedError`` if the size differs from ``size`` or a
    file is not regular any more, and whatever opening the path raises.
    """
    if size is not None:
        check_int("size", size, minimum=0)
    opened = _open(source, size, _twice_a_second(between_reads), must_be_regular)
    if size is not None and opened.size != size:
        opened.close()
        raise SourceChangedError(
            f"the source has {opened.size:,} bytes, but the size that was passed is {size:,}: omit "
            "the size, or wait until the source is complete"
        )
    return opened


def _twice_a_second(function: Callable[[], object]) -> BetweenReads:
    next_call = time.monotonic() + _INTERVAL

    def between_reads() -> None:
        nonlocal next_call
        now = time.monotonic()
        if now >= next_call:
            next_call = now + _INTERVAL
            function()

    return between_reads


def is_background_readable(source: LayerSource) -> bool:
    """Whether the opened source may be ``background_readable``, without opening it.

    ``True`` for a missing file, too: then a worker reports that it is missing.
    """
    if isinstance(source, FileRegion | UnnamedFile):
        return True
    if is_path(source):
        return os.path.isfile(source) or not os.path.exists(source)
    return isinstance(source, bytes | bytearray | memoryview)


def check_source(source: LayerSource, name: str = "source") -> None:
    """Raise ``TypeError`` for an unsupported type, ``ValueError`` for a bad path or closed file."""
    if isinstance(source, io.TextIOBase):
        raise TypeError(
            f"{name}, {short_repr(source)}, is open as text: open it in binary mode, 'rb'"
        )
    if is_path(source):
        check_path(name, source)
    if isinstance(source, str | os.PathLike | bytes | bytearray | memoryview):
        return
    if not hasattr(source, "read") and not isinstance(source, Iterable):
        raise TypeError(
            f"{name} must be a path, bytes, a binary file object or an iterable of bytes, not "
            f"{short_repr(source)}"
        )
    if hasattr(source, "read") and getattr(source, "closed", False) is True:
        raise ValueError(f"{name}, {short_repr(source)}, is closed: pass an open file, or its path")


def _open(
    source: LayerSource, size: int | None, between_reads: BetweenReads, must_be_regular: bool
) -> Source:
    check_source(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return _Buffer(source)
    if isinstance(source, UnnamedFile):
        source.file.seek(0)
        return _RegularFile(source.file, None)
    if isinstance(source, FileRegion):
        return _open_region(source)
    if is_path(source):
        return _open_path(source, size, between_reads, must_be_regular)
    if hasattr(source, "read"):
        file_object = cast("_Seekable", source)
        available = _size_if_seekable(file_object)
        if available is None:
            return _stream(file_object, size, between_reads)
        return _SeekableFile(file_object, available, between_reads)
    items = iter(cast("Iterable[Blob]", source))
    return Stream(pull_from(items, between_reads), size)


def _open_path(
    path: str | os.PathLike[str],
    size: int | None,
    between_reads: BetweenReads,
    must_be_regular: bool,
) -> Source:
    if must_be_regular or stat.S_ISREG(os.stat(path).st_mode):
        file = _open_regular(path)
        if os.fstat(file.fileno()).st_size or not file.read(1):
            regular = _RegularFile(file, path)
            regular.opened_file = file
            return regular
        file.close()  # as in /proc, whose files have content but no size
    file = open(path, "rb", buffering=0)  # noqa: SIM115  (closed with the source)
    stream = _stream(file, size, between_reads)
    stream.opened_file = file
    return stream


def _open_regular(path: str | os.PathLike[str]) -> io.FileIO:
    try:
        return open_regular(path)
    except NotRegularError as error:
        raise SourceChangedError(
            f"{os.fspath(path)!r} is not a regular file any more. Upload it again once nothing "
            "replaces it"
        ) from error


def _open_region(region: FileRegion) -> Source:
    file = _open_regular(region.path)
    size = os.fstat(file.fileno()).st_size
    if size < region.offset + region.size:
        file.close()
        raise SourceChangedError(
            f"{region.path!r} has {size:,} bytes, but the layer in it ends at byte "
            f"{region.offset + region.size:,}: the file is cut off, or was replaced"
        )
    file.seek(region.offset)
    opened = _RegularFile(file, region, region.size)
    opened.opened_file = file
    return opened


def _size_if_seekable(file: _Seekable) -> int | None:
    try:
        if (
            hasattr(file, "seekable") and not file.seekable()
        ):  # mmap has no ``seekable`` before Python 3.13
            return None
        start = file.tell()
        file.seek(0, os.SEEK_END)
    except (AttributeError, NotImplementedError, OSError, ValueError) as error:
        # UnsupportedOperation, or exactly these types: a subclass may come from a signal handler.
        is_illegal_seek = type(error) is OSError and error.errno == errno.ESPIPE
        if isinstance(error, io.UnsupportedOperation) or is_illegal_seek:
            return None
        if type(error) in (AttributeError, NotImplementedError, ValueError):
            return None
        raise
    size = max(0, file.tell() - start)
    file.seek(start)
    return size


def _stream(file: Readable, size: int | None, between_reads: BetweenReads) -> Stream:
    def pull(max_size: int) -> Blob:
        between_reads()
        return check_chunk(file.read(max_size), READ_ADVICE)

    return Stream(pull, size, lambda: count_missing(file))
