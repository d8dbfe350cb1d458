"""The files of an image: in a directory, or in a tar archive, where they are read in place."""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from dataclasses import dataclass
from typing import Protocol

from ecr_parts._base.files import NotRegularError, open_regular
from ecr_parts._base.validation import short_repr
from ecr_parts._images.tar import TarError, read_entries
from ecr_parts._model.layers import FileRegion
from ecr_parts.errors import InvalidImageError

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


def image_error(path: str, problem: str) -> InvalidImageError:
    """The error that there is a ``problem`` with the image at ``path``."""
    return InvalidImageError(f"{path!r}: {problem}")


def read_file(region: FileRegion) -> bytes:
    """The content of a file. The caller has checked its size."""
    try:
        with open_regular(region.path) as file:
            file.seek(region.offset)
            return file.read(region.size)
    except NotRegularError as error:
        raise image_error(region.path, "it is not a regular file any more") from error


@dataclass(frozen=True)
class _Directory:
    path: str

    def find(self, name: str) -> FileRegion | None:
        path = os.path.join(self.path, *name.split("/"))
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENAMETOOLONG):
                raise
            raise image_error(self.path, f"{short_repr(name)}: {error.strerror}") from error
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


def _read_entries(path: str) -> dict[str, FileRegion | str]:
    """The files and links of the archive at ``path``, by name."""
    entries: dict[str, FileRegion | str] = {}
    with open_regular(path) as file:
        start = file.read(8)
        for magic, command in _COMPRESSIONS.items():
            if start.startswith(magic):
                raise InvalidImageError(
                    f"{path!r} is a compressed archive, whose blobs cannot be read in place: "
                    f"decompress it first, for example with {command}"
                )
        file.seek(0)
        try:
            for entry in read_entries(file):
                name = posixpath.normpath(entry.name)
                if entry.target is None:
                    entries[name] = FileRegion(path, entry.offset, entry.size)
                else:  # a link that leaves the archive has a target that no entry has
                    entries[name] = posixpath.normpath(entry.target)
        except TarError as error:
            raise InvalidImageError(
                f"{path!r} is not a tar archive of an image: {error}. Pass an OCI image layout, an "
                "archive of one, or what docker save or podman save wrote"
            ) from error
    return entries
