"""The files in a tar archive: where their bytes are.

The module ``tarfile`` takes memory and time without a limit for what extended headers can say. This
one reads no more than images need (names, links and sizes), and each archive takes a bounded time
and a bounded amount of memory.

Reference: "pax Interchange Format" and "ustar Interchange Format" in POSIX, under ``pax``, and
"Basic Tar Format" in the manual of GNU tar.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

_BLOCK = 512  # bytes
_MAX_HEADERS = 100_000
_MAX_EXTENDED_HEADER = 64 * 1024  # bytes
_MAX_NAMES = 32 * 1024 * 1024  # bytes of all names and links
_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")  # whatever size they have
_HARD_LINK, _SYMBOLIC_LINK = b"1", b"2"
_SPARSE = "GNU.sparse"  # begins the keys of a file whose holes are not stored
_LONG_NAME, _LONG_LINK, _EXTENDED, _GLOBAL = b"L", b"K", b"x", b"g"


class TarError(Exception):
    """The archive is damaged, or has more in it than an image has."""


@dataclass(frozen=True)
class TarEntry:
    """A file or a link."""

    name: str
    target: str | None
    """The name that a link leads to; ``None`` for a file."""
    offset: int = 0
    size: int = 0
    """The bytes of a file."""


def read_entries(file: BinaryIO) -> Iterator[TarEntry]:
    """Yield the files and the links of an archive. Raises ``TarError``."""
    names = 0
    extended: dict[str, bytes] = {}
    """What extended headers say about the entry after them."""
    file_size = file.seek(0, os.SEEK_END)
    file.seek(0)
    for _ in range(_MAX_HEADERS):
        header = file.read(_BLOCK)
        if len(header) < _BLOCK or not any(header):
            return
        if sum(header[:148]) + 8 * ord(" ") + sum(header[156:]) != _number(header[148:156]):
            raise TarError("bad checksum")
        kind, size, offset = header[156:157], _number(header[124:136]), file.tell()
        if kind in (_LONG_NAME, _LONG_LINK, _EXTENDED):
            if size > _MAX_EXTENDED_HEADER:
                raise TarError(f"a header of {size:,} bytes")
            content = file.read(size)
            if kind == _EXTENDED:
                extended.update(_needed(_pax_records(content)))
            else:
                member = "path" if kind == _LONG_NAME else "linkpath"
                extended[member] = content.partition(b"\0")[0]
        elif kind != _GLOBAL:
            if "size" in extended:
                size = _pax_number(extended["size"])
            name = extended.get("path", _name(header))
            link = extended.get("linkpath", header[157:257].partition(b"\0")[0])
            names += len(name) + len(link)
            if names > _MAX_NAMES:
                raise TarError(f"names of more than {_MAX_NAMES:,} bytes")
            is_sparse = _SPARSE in extended
            extended = {}
            if kind in _REGULAR and not is_sparse:
                yield TarEntry(_decode(name), None, offset, size)
            elif kind == _SYMBOLIC_LINK:
                target = posixpath.join(posixpath.dirname(_decode(name)), _decode(link))
                yield TarEntry(_decode(name), target)
            elif kind == _HARD_LINK:
                yield TarEntry(_decode(name), _decode(link))
            if kind in _WITHOUT_CONTENT:
                size = 0
        end = offset + -(-size // _BLOCK) * _BLOCK
        if offset + size > file_size:
            raise TarError(f"it is cut off after {file_size:,} bytes")
        file.seek(end)
    raise TarError(f"more than {_MAX_HEADERS:,} entries")


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _decode(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _number(field: bytes) -> int:
    """A number in octal digits or, in the format of GNU, in base 256."""
    if field[0] == 0x80:  # 0xff would be negative
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not digits:
        return 0
    try:
        number = int(digits, 8)
    except ValueError as error:
        raise TarError("a number that is not octal") from error
    if number < 0:
        raise TarError("a negative number")
    return number


def _pax_number(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 18:
        raise TarError("a size that is not a number")
    return int(digits)


def _needed(records: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """Those of ``records`` that say something about where the bytes of a file are."""
    for key, value in records:
        if key in ("path", "linkpath", "size"):
            yield key, value
        elif key.startswith(_SPARSE):
            yield _SPARSE, b""


def _pax_records(content: bytes) -> Iterator[tuple[str, bytes]]:
    """The records ``LENGTH KEY=VALUE`` of an extended header."""
    start, end = 0, len(content.rstrip(b"\0"))
    while start < end:
        digits, _, rest = content[start : start + 20].partition(b" ")
        length = _pax_number(digits)
        record = content[start + len(digits) + 1 : start + length]
        key, equals, value = record.partition(b"=")
        if not rest or not equals or not value.endswith(b"\n"):
            raise TarError("an extended header that is malformed")
        yield _decode(key), value[:-1]
        start += length
