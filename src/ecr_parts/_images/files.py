"""The files of an image: in a directory, or in a tar archive, where they are read in place."""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Protocol

from ecr_parts._base.files import NotRegularError, open_regular
from ecr_parts._base.temporary import TemporaryFile
from ecr_parts._base.validation import short_repr
from ecr_parts._images.tar import TarEntry, TarError, is_tar, read_entries
from ecr_parts._model.layers import FileRegion
from ecr_parts._sources.compression import (
    DamagedError,
    NoDecompressorError,
    compression_of,
    decompress,
)
from ecr_parts.errors import InvalidImageError

_MAX_LINKS = 10  # that lead from one name to the next
_HEADER_SIZE = 512  # bytes of the header of a tar entry
_COPY_SIZE = 1024 * 1024  # bytes
_ROOTS = ("index.json", "manifest.json", "repositories")
"""Files that images have in their top directory."""
_EXPECTED = "Pass an OCI image layout, an archive of one, or what docker save or podman save wrote"


class ImageFiles(Protocol):
    """The files of an image. Names are relative, with slashes."""

    @property
    def path(self) -> str:
        """The directory or the archive, for messages."""

    @property
    def heartbeat(self) -> Callable[[], object]:
        """To be called while much is read."""

    def find(self, name: str) -> FileRegion | None:
        """Where a file is; ``None`` if there is none with this name."""

    def is_linked(self, region: FileRegion, /) -> bool:
        """Whether a link leads from the image to this file elsewhere, as Bazel writes them."""


def is_compressed_archive(path: str) -> bool:
    """Whether there is a file at ``path`` that must be decompressed before it can be read."""
    if not os.path.isfile(path):
        return False
    with open_regular(path) as file:
        start = file.read(_HEADER_SIZE)
    return not is_tar(start) and bool(compression_of(start))


def open_image_files(
    path: str,
    temporary_files: ExitStack,
    heartbeat: Callable[[], object],
    decompressed: Callable[[int, int], object] = lambda _position, _size: None,
) -> ImageFiles:
    """Find out what is at ``path``. Raises ``InvalidImageError``, and what opening it raises.

    A compressed archive is decompressed into a temporary file, which ``temporary_files`` removes.
    ``decompressed`` is called with how many of the archive's bytes were read, and how many it has.
    """
    status = os.stat(path)
    mode, size = status.st_mode, status.st_size
    if stat.S_ISDIR(mode):
        return _Directory(path, os.path.realpath(path), heartbeat)
    if not stat.S_ISREG(mode):
        raise InvalidImageError(
            f"{short_repr(path)} is neither a directory nor a file: save the image to a file first"
        )
    with open_regular(path) as file:
        start = file.read(_HEADER_SIZE)
    compression = "" if is_tar(start) else compression_of(start)
    readable = path
    if compression:

        def report(position: int) -> None:
            heartbeat()
            decompressed(position, size)

        readable = _decompress(path, compression, temporary_files, report)
    elif any(start) and not is_tar(start):
        raise InvalidImageError(
            f"{path!r} is not a tar archive of an image: it does not begin as one. {_EXPECTED}"
        )
    entries = _read_entries(path, readable, heartbeat)
    return _Archive(path, readable, _without_top_directory(entries), temporary_files, heartbeat)


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
    real_path: str
    heartbeat: Callable[[], object]

    def find(self, name: str) -> FileRegion | None:
        normal = posixpath.normpath(name)
        if normal.startswith(("/", "..")):
            return None
        path = os.path.join(self.path, *normal.split("/"))
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no file name
            return None
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENAMETOOLONG):
                raise
            raise image_error(self.path, f"{short_repr(name)}: {error.strerror}") from error
        if stat.S_ISDIR(status.st_mode):
            return None
        if not stat.S_ISREG(status.st_mode):
            raise image_error(self.path, f"{short_repr(name)} is not a regular file")
        return FileRegion(path, 0, status.st_size)

    def is_linked(self, region: FileRegion) -> bool:
        inside = os.path.join(self.real_path, "")
        return not os.path.realpath(region.path).startswith(inside)


@dataclass(frozen=True)
class _Archive:
    path: str
    readable: str
    """The path at which it is read: that of a temporary file if it was compressed."""
    entries: dict[str, TarEntry | str]
    """By name: a file, or for a link, the name that it leads to."""
    temporary_files: ExitStack
    heartbeat: Callable[[], object]

    def find(self, name: str) -> FileRegion | None:
        entry: TarEntry | str | None = posixpath.normpath(name)
        for _ in range(_MAX_LINKS):
            if not isinstance(entry, str):
                break
            entry = self.entries.get(entry)
        else:
            raise image_error(
                self.path, f"{short_repr(name)} is a link that leads nowhere. Save the image again"
            )
        if entry is None:
            return None
        if entry.segments is None:
            return FileRegion(self.readable, entry.offset, entry.size)
        return self._without_holes(entry)

    def is_linked(self, _region: FileRegion) -> bool:
        return False  # a link that leaves the archive has a target that no entry has

    def _without_holes(self, entry: TarEntry) -> FileRegion:
        """A copy of a sparse file that has its holes again."""
        copy = TemporaryFile(self.temporary_files, "copying a sparse file of the image")
        with open_regular(self.readable) as file:
            for segment in entry.segments or ():
                copy.skip_to(segment.position)
                file.seek(segment.offset)
                for offset in range(0, segment.size, _COPY_SIZE):
                    self.heartbeat()
                    copy.write(file.read(min(_COPY_SIZE, segment.size - offset)))
        copy.skip_to(entry.size)
        return FileRegion(copy.path, 0, entry.size)


def _decompress(
    path: str, compression: str, temporary_files: ExitStack, report: Callable[[int], object]
) -> str:
    """The path of a temporary file with the content of a compressed archive."""
    copy = TemporaryFile(temporary_files, "decompressing the image")
    start = b""
    report(0)
    try:
        with open_regular(path) as file:
            for piece in decompress(file.read, compression, may_be_followed=True):
                report(file.tell())
                copy.write(piece)
                if len(start) < _HEADER_SIZE:
                    start += piece
                    if len(start) >= _HEADER_SIZE:
                        _check_is_tar(path, compression, start)
            if len(start) < _HEADER_SIZE:
                _check_is_tar(path, compression, start)
    except DamagedError as error:
        raise image_error(
            path, f"it is compressed with {compression}, and damaged: {error}. Save it again"
        ) from error
    except NoDecompressorError as error:
        advice = {"lz4": "lz4 -d", "lzip": "lzip -d", "zstd": "zstd -d"}.get(compression, "xz -d")
        more = ", or install backports.zstd" if compression == "zstd" else ""
        raise image_error(
            path,
            f"it is compressed with {compression}, which cannot be read here: decompress it with "
            f"{advice}{more}",
        ) from error
    return copy.path


def _check_is_tar(path: str, compression: str, start: bytes) -> None:
    if not is_tar(start):
        inner = compression_of(start)
        content = f"compressed with {inner} again" if inner else "no tar archive"
        raise image_error(
            path, f"it is compressed with {compression}, and its content is {content}"
        )


def _read_entries(
    path: str, readable: str, heartbeat: Callable[[], object]
) -> dict[str, TarEntry | str]:
    """The files and links of an archive, by name."""
    entries: dict[str, TarEntry | str] = {}
    with open_regular(readable) as file:
        try:
            for entry in read_entries(file):
                heartbeat()
                name = posixpath.normpath(entry.name)
                if entry.target is None:
                    entries[name] = entry
                else:
                    entries[name] = posixpath.normpath(entry.target)
        except TarError as error:
            raise InvalidImageError(
                f"{path!r} is not a tar archive of an image: {error}. {_EXPECTED}"
            ) from error
    return entries


def _without_top_directory(entries: dict[str, TarEntry | str]) -> dict[str, TarEntry | str]:
    """``entries`` without the directory that has all of them: "tar -cf image.tar layout"."""
    names = [name for name in entries if not posixpath.basename(name).startswith("._")]  # macOS
    top = f"{posixpath.commonpath(names)}/" if len({name[:1] == "/" for name in names}) == 1 else ""
    if top.startswith(("/", "../")) or not any(f"{top}{name}" in entries for name in _ROOTS):
        return entries

    def below(name: str) -> str:
        return name.removeprefix(top)

    return {
        below(name): below(entry) if isinstance(entry, str) else replace(entry, name=below(name))
        for name, entry in entries.items()
    }
