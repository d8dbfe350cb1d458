"""Compressed data: which format it has, and reading it; and writing gzip.

Formats are told by their first bytes, not by names. References: RFC 1952 (gzip), RFC 8878 (zstd),
and the specifications of the formats of xz, bzip2 and LZ4.
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

from ecr_parts._base.threads import Task, Waiter
from ecr_parts._model.layers import Blob

MAGIC_SIZE = 6  # bytes at the start that tell the format
PIECE_SIZE = 1024 * 1024  # bytes
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
REGISTRY_COMPRESSIONS = ("gzip", "zstd")
"""Those that clients can decompress when they pull."""
_READ_SIZE = 64 * 1024  # bytes
_DICTIONARY_SIZE = 32 * 1024  # bytes: how far back deflate can refer
_XZ_MEMORY = 200 * 1024 * 1024  # bytes: more than "xz -9" needs, which is 65 MiB
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\0": "xz",
    b"BZh": "bzip2",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x02\x21\x4c\x18": "lz4",
    b"\x5d\x00\x00": "lzma",
    b"LZIP": "lzip",
}
_GZIP_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # without a name and a time; written by any system
_LAST_BLOCK = b"\x03\0"  # of deflate: an empty one that says that it is the last


class DamagedError(Exception):
    """Compressed data that cannot be decompressed."""


class NoDecompressorError(Exception):
    """There is no module for the compression, or the data needs too much memory."""


def _module(*names: str) -> ModuleType | None:
    for name in names:
        with suppress(ImportError):
            return import_module(name)
    return None


_isal = _module("isal.isal_zlib")
_zstd = _module("compression.zstd", "backports.zstd")  # the first one since Python 3.14


def compression_of(start: bytes) -> str:
    """The format of data with these first bytes, such as ``"gzip"``; empty if it is unknown."""
    if start[1:4] == b"\x2a\x4d\x18" and start[0] >> 4 == 5:  # zstd may begin with such a frame
        return "zstd"
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic)), "")


def can_decompress(compression: str) -> bool:
    """Whether Python has a module for this."""
    try:
        _decompressor(compression)
    except NoDecompressorError:
        return False
    return True


def decompress(
    read: Callable[[int], bytes], compression: str, *, may_be_followed: bool = False
) -> Iterator[bytes]:
    """Yield the content of compressed data, in pieces of up to ``PIECE_SIZE`` bytes.

    ``read`` reads at most so many bytes. Several streams, one after the other, are read as one.
    With ``may_be_followed``, what follows them is ignored, as the command-line tools do. Raises
    ``DamagedError``, and ``NoDecompressorError`` if Python has no module for this.
    """
    create, errors = _decompressor(compression)
    data = read(_READ_SIZE)
    while True:
        decompressor, size = create(), 0
        while not decompressor.eof:
            if not data and size < PIECE_SIZE:  # a full piece may leave some inside
                data = read(_READ_SIZE)
                if not data:
                    raise DamagedError("it is cut off")
            try:
                piece = decompressor.decompress(data, PIECE_SIZE)
            except errors as error:
                if "memory" in str(error).lower():  # that it allows, for data of this kind
                    raise NoDecompressorError(compression) from error
                raise DamagedError(str(error)) from error
            size = len(piece)
            data = getattr(decompressor, "unconsumed_tail", b"")
            if piece:
                yield piece
        data = _start_of_next(decompressor.unused_data, read, skip_padding=may_be_followed)
        if compression_of(data) != compression:
            if data and not may_be_followed:
                raise DamagedError("it is followed by something else")
            return


def _start_of_next(data: bytes, read: Callable[[int], bytes], *, skip_padding: bool) -> bytes:
    """What follows a stream, or enough of it to tell what it is."""
    while True:
        data = data.lstrip(b"\0") if skip_padding else data
        if len(data) >= MAGIC_SIZE or not (more := read(_READ_SIZE)):
            return data
        data += more


def _decompressor(compression: str) -> tuple[Callable[[], Any], tuple[type[Exception], ...]]:
    """What decompresses one stream, and the errors that it raises."""
    if compression == "gzip":
        module: Any = _isal or zlib
        return (lambda: module.decompressobj(wbits=31)), (module.error,)
    if compression == "bzip2" and (bz2 := _module("bz2")) is not None:
        return bz2.BZ2Decompressor, (OSError,)
    if compression == "xz" and (lzma := _module("lzma")) is not None:
        create = lzma.LZMADecompressor
        return (lambda: create(lzma.FORMAT_XZ, _XZ_MEMORY)), (lzma.LZMAError,)
    if compression == "zstd" and _zstd is not None:
        return _zstd.ZstdDecompressor, (_zstd.ZstdError,)
    raise NoDecompressorError(compression)


class GzipWriter:
    """Compresses pieces of ``PIECE_SIZE`` bytes each, but the last.

    Each is compressed by itself, with the bytes before it as its dictionary, as pigz does. So the
    pieces can be compressed in threads, and the result does not depend on how many there are. It
    depends on the compressor: isal, if it is installed, or zlib. With ``portable``, it is always
    zlib, at its default level.
    """

    header = _GZIP_HEADER
    """What comes before the first piece."""

    def __init__(self, *, portable: bool = False) -> None:
        self._portable = portable
        self._checksum = 0
        self._size = 0
        self._dictionary = b""

    def add(self, piece: Blob) -> Callable[[], bytes]:
        """Take the next piece: what compresses it, in any thread."""
        self._checksum = zlib.crc32(piece, self._checksum)
        self._size += len(piece)
        dictionary, self._dictionary = (
            self._dictionary,
            bytes(memoryview(piece)[-_DICTIONARY_SIZE:]),
        )
        return partial(_deflate, piece, dictionary, portable=self._portable)

    @property
    def trailer(self) -> bytes:
        """What comes after the last piece."""
        size = self._size % 2**32
        return _LAST_BLOCK + self._checksum.to_bytes(4, "little") + size.to_bytes(4, "little")


def gzip_in_threads(
    pieces: Iterable[Blob], waiter: Waiter, threads: int, *, portable: bool = False
) -> Generator[bytes]:
    """Yield ``pieces`` as gzip. They, and ``portable``, are those of ``GzipWriter``.

    A piece is being compressed when the next one is asked for.
    """
    gzip, started = GzipWriter(portable=portable), deque[Task[bytes]]()
    yield gzip.header
    for number, piece in enumerate(pieces):
        if len(started) == threads:
            yield waiter.result(started.popleft())
        thread = f"gzip {number % threads}"  # the one that has nothing to do any more
        started.append(waiter.start(thread, gzip.add(piece)))
    while started:
        yield waiter.result(started.popleft())
    yield gzip.trailer


def _deflate(piece: Blob, dictionary: bytes, *, portable: bool) -> bytes:
    module: Any = zlib if portable else _isal or zlib
    level = zlib.Z_DEFAULT_COMPRESSION if portable else 1 if _isal is None else 2
    more = {"zdict": dictionary} if dictionary else {}
    compressor = module.compressobj(level, zlib.DEFLATED, -15, **more)
    compressed: bytes = compressor.compress(piece) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return compressed
