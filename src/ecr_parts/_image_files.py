"""The files of an image: in a directory, or in a tar archive, where they are read in place."""

from __future__ import annotations

import os
import posixpath
import stat
import tarfile
from dataclasses import dataclass
from typing import Protocol

from ecr_parts._models import FileRegion
from ecr_parts._validation import short_repr
from ecr_parts.errors import InvalidImageError

# What an archive can take of memory is bounded, whatever is in it.
_MAX_ENTRIES = 100_000
_MAX_HEADER = 1024 * 1024  # bytes
_MAX_LINKS = 10  # that lead from one name to the next
_COMPRESSIONS = {
    b"\x1f\x8b": "gzip -d",
    b"BZh": "bzip2 -d",
    b"\xfd7zXZ": "xz -d",
    b"\x28\xb5\x2f\xfd": "zstd -d",
}


class ImageFiles(Protocol):
    """The files of an image. Names are relative, with slashes."""

    @property
    def path(self) -> str:
        """The directory or the archive."""

    def find(self, name: str) -> FileRegion | None:
        """Where a file is; ``None`` if there is none with this name."""


def open_image_files(path: str | os.PathLike[str]) -> ImageFiles:
    """Find out what is at ``path``. Raises ``InvalidImageError``, and what opening it raises."""
    name = os.fspath(path)
    mode = os.stat(name).st_mode
    if stat.S_ISDIR(mode):
        return _Directory(name)
    if not stat.S_ISREG(mode):
        raise InvalidImageError(
            f"{short_repr(name)} is neither a directory nor a file: save the image to a file first"
        )
    return _Archive(name, _read_entries(name))


def read_file(region: FileRegion) -> bytes:
    """The content of a file. The caller has checked its size."""
    with open(region.path, "rb") as file:
        file.seek(region.offset)
        return file.read(region.size)


@dataclass(frozen=True)
class _Directory:
    path: str

    def find(self, name: str) -> FileRegion | None:
        path = os.path.join(self.path, *name.split("/"))
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        return FileRegion(path, 0, status.st_size)


@dataclass(frozen=True)
class _Archive:
    path: str
    entries: dict[str, FileRegion | str]
    """By name: a file, or for a link, the name that it leads to."""

    def find(self, name: str) -> FileRegion | None:
        entry: FileRegion | str | None = posixpath.normpath(name)
        for _ in range(_MAX_LINKS):
            if not isinstance(entry, str):
                return entry
            entry = self.entries.get(entry)
        raise InvalidImageError(
            f"{self.path!r}: {short_repr(name)} is a link that leads nowhere. Save the image again"
        )


class _BoundedFile:
    """A file for ``tarfile`` that does not read headers of any size."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "rb")  # noqa: SIM115  (closed with this)
        self.seek = self._file.seek
        self.tell = self._file.tell
        self.close = self._file.close

    def read(self, size: int) -> bytes:
        if size > _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)


def _read_entries(path: str) -> dict[str, FileRegion | str]:
    """The files and links of the archive at ``path``, by name."""
    with open(path, "rb") as opened:
        start = opened.read(8)
    for magic, command in _COMPRESSIONS.items():
        if start.startswith(magic):
            raise InvalidImageError(
                f"{path!r} is a compressed archive, whose blobs cannot be read in place: "
                f"decompress it first, for example with: {command} < {path} > image.tar"
            )
    file = _BoundedFile(path)
    entries: dict[str, FileRegion | str] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:  # type: ignore[call-overload]  # a file
            end = -1
            while (member := tar.next()) is not None:
                tar.members.clear()  # they would all be kept in memory
                if tar.offset <= end or len(entries) == _MAX_ENTRIES:
                    raise tarfile.ReadError(f"more than {_MAX_ENTRIES:,} entries, or a loop")
                end = tar.offset
                _add_entry(path, entries, member)
    except (tarfile.TarError, EOFError, OverflowError, ValueError) as error:
        raise InvalidImageError(
            f"{path!r} is not a tar archive of an image: {error}. Pass an OCI image layout, an "
            "archive of one, or what docker save or podman save wrote"
        ) from error
    finally:
        file.close()
    return entries


def _add_entry(path: str, entries: dict[str, FileRegion | str], member: tarfile.TarInfo) -> None:
    name = posixpath.normpath(member.name)
    if member.isreg() and not member.issparse():
        entries[name] = FileRegion(path, member.offset_data, member.size)
    elif member.issym():
        # A link that leaves the archive has a name that no entry has.
        entries[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
    elif member.islnk():
        entries[name] = posixpath.normpath(member.linkname)
