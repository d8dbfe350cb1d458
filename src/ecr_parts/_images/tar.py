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
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

_BLOCK = 512  # bytes
_MAX_HEADERS = 150_000
_MAX_EXTENDED_HEADER = 64 * 1024  # bytes
_MAX_NAMES = 32 * 1024 * 1024  # bytes of all names and links
_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")  # whatever size they have
_HARD_LINK, _SYMBOLIC_LINK = b"1", b"2"
_SPARSE = "GNU.sparse."  # begins the keys of a file whose holes are not stored
_OLD_SPARSE = b"S"
_MAX_SEGMENTS = 100_000  # of all sparse files together
_TOO_MANY_SEGMENTS = f"sparse files with more than {_MAX_SEGMENTS:,} pieces"
_LONG_NAME, _LONG_LINK, _EXTENDED, _GLOBAL = b"L", b"K", b"x", b"g"


class TarError(Exception):
    """The archive is damaged, or has more in it than an image has."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes of a sparse file that are stored."""

    position: int
    """Where they belong in the file."""
    offset: int
    """Where they are in the archive."""
    size: int


@dataclass(frozen=True, slots=True)
class TarEntry:
    """A file or a link."""

    name: str
    target: str | None
    """The name that a link leads to; ``None`` for a file."""
    offset: int = 0
    size: int = 0
    """The bytes of a file."""
    segments: tuple[Segment, ...] | None = None
    """Of a sparse file: what is stored. Everything else of it is zeros, and ``offset`` is 0."""


@dataclass
class _Extended:
    """What extended headers say about the entry after them."""

    values: dict[str, bytes] = field(default_factory=dict)
    sparse: list[tuple[str, bytes]] = field(default_factory=list)

    def add(self, content: bytes) -> None:
        """Take from pax records what images need."""
        for key, value in _pax_records(content):
            if key in ("path", "linkpath", "size"):
                self.values[key] = value
            elif key.startswith(_SPARSE):
                self.sparse.append((key.removeprefix(_SPARSE), value))
                if len(self.sparse) > _MAX_SEGMENTS:
                    raise TarError(_TOO_MANY_SEGMENTS)


def is_tar(start: bytes) -> bool:
    """Whether ``start`` begins with the header of an entry."""
    header = start[:_BLOCK]
    try:
        return len(header) == _BLOCK and _has_checksum(header)
    except TarError:
        return False


def read_entries(file: BinaryIO) -> Iterator[TarEntry]:
    """Yield the files and the links of an archive. Raises ``TarError``."""
    names = segment_count = 0
    extended = _Extended()
    file_size = file.seek(0, os.SEEK_END)
    file.seek(0)
    for _ in range(_MAX_HEADERS):
        header = file.read(_BLOCK)
        if len(header) < _BLOCK or not any(header):
            return
        if not _has_checksum(header):
            raise TarError("bad checksum")
        kind, size, offset = header[156:157], _number(header[124:136]), file.tell()
        if kind in (_LONG_NAME, _LONG_LINK, _EXTENDED):
            if size > _MAX_EXTENDED_HEADER:
                raise TarError(f"a header of {size:,} bytes")
            content = file.read(size)
            if kind == _EXTENDED:
                extended.add(content)
            else:
                member = "path" if kind == _LONG_NAME else "linkpath"
                extended.values[member] = content.partition(b"\0")[0]
        elif kind != _GLOBAL:
            if "size" in extended.values:
                size = _pax_number(extended.values["size"])
            name = dict(extended.sparse).get("name") or extended.values.get("path", _name(header))
            link = extended.values.get("linkpath", header[157:257].partition(b"\0")[0])
            names += len(name) + len(link)
            if names > _MAX_NAMES:
                raise TarError(f"names of more than {_MAX_NAMES:,} bytes")
            sparse, extended = extended.sparse, _Extended()
            if kind == _OLD_SPARSE or (kind in _REGULAR and sparse):
                entry = _sparse_entry(_decode(name), file, header, sparse, size)
                if kind == _OLD_SPARSE:
                    offset = file.tell()  # after its own headers
                segment_count += len(entry.segments or ())
                if segment_count > _MAX_SEGMENTS:
                    raise TarError(_TOO_MANY_SEGMENTS)
                yield entry
            elif kind in _REGULAR:
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


def _has_checksum(header: bytes) -> bool:
    checksum = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    return checksum == _number(header[148:156])


def _sparse_entry(
    name: str, file: BinaryIO, header: bytes, records: list[tuple[str, bytes]], stored: int
) -> TarEntry:
    """A file whose holes are not stored, in one of the four formats of GNU tar.

    ``stored`` is how many bytes the archive has. Reference: "Storing Sparse Files" in the manual of
    GNU tar.
    """
    values, end_of_content = dict(records), file.tell() + stored
    if not records:
        size, numbers = _old_sparse_map(file, header)
        end_of_content = file.tell() + stored
    elif "map" in values:  # version 0.1
        size, numbers = _pax_number(values.get("size", b"")), values["map"].split(b",")
    elif "major" in values:  # version 1.0
        size, numbers = _pax_number(values.get("realsize", b"")), _leading_numbers(file, stored)
    else:  # version 0.0
        size = _pax_number(values.get("size", b""))
        numbers = [value for key, value in records if key in ("offset", "numbytes")]
    segments, offset, end = [], file.tell(), 0
    for i in range(0, len(numbers) - 1, 2):
        position, length = _pax_number(numbers[i]), _pax_number(numbers[i + 1])
        if position < end or position + length > size or offset + length > end_of_content:
            raise TarError("a sparse file that is malformed")
        segments.append(Segment(position, offset, length))
        offset, end = offset + length, position + length
    return TarEntry(name, None, 0, size, tuple(segments))


def _old_sparse_map(file: BinaryIO, header: bytes) -> tuple[int, list[bytes]]:
    """The size of a file, and where its pieces belong and how long they are, in turns."""
    size, fields, continues = _number(header[483:495]), header[386:482], header[482]
    numbers: list[bytes] = []
    for _ in range(_MAX_SEGMENTS // 21):  # a block has 21 pieces
        for i in range(0, len(fields) - 23, 24):
            if any(fields[i + 12 : i + 24].strip(b"\0 0")) or any(fields[i : i + 12].strip(b"\0 ")):
                numbers += [b"%d" % _number(fields[i + j : i + j + 12]) for j in (0, 12)]
        if not continues:
            return size, numbers
        block = file.read(_BLOCK)
        if len(block) < _BLOCK:
            break
        fields, continues = block[:504], block[504]
    raise TarError("a sparse file that is malformed")


def _leading_numbers(file: BinaryIO, stored: int) -> list[bytes]:
    """The map in front of a sparse file's content: how many pieces, and two numbers for each."""
    end = file.tell() + stored
    lines: list[bytes] = []
    rest = b""
    while not lines or len(lines) <= 2 * _pax_number(lines[0]):
        block = file.read(_BLOCK)
        if len(block) < _BLOCK or file.tell() > end or len(lines) > 2 * _MAX_SEGMENTS:
            raise TarError("a sparse file that is malformed")
        *more, rest = (rest + block).split(b"\n")
        if len(rest) > _BLOCK:
            raise TarError("a sparse file that is malformed")
        lines += more
    return lines[1 : 2 * _pax_number(lines[0]) + 1]


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
