"""What users pass in and get back: sources, layers and the parts that were sent."""

# No ``from __future__ import annotations`` here. ``typing.get_type_hints`` looks up the names in
# string annotations in ``ecr_parts``, which is the ``__module__`` of these classes, and would not
# find the names that only this module imports.

import io
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, TypeGuard

from typing_extensions import Self

from ecr_parts._base.validation import short_repr
from ecr_parts._model.parts import Part

Blob: TypeAlias = bytes | bytearray | memoryview
"""Bytes, or a buffer of bytes."""


class Readable(Protocol):
    """A binary file object. Its ``read`` may return fewer bytes than asked for; b"" is the end."""

    def read(self, size: int, /) -> Blob: ...


LayerSource: TypeAlias = str | os.PathLike[str] | Blob | Readable | Iterable[Blob]
"""A path, a buffer, a binary file object (read from its current position), or an iterable of
bytes."""


def is_path(source: object) -> TypeGuard[str | os.PathLike[str]]:
    """Whether ``source`` is a path. Some file objects are also ``os.PathLike``."""
    return isinstance(source, str | os.PathLike) and not isinstance(source, io.IOBase)


@dataclass(frozen=True)
class FileRegion(os.PathLike[str]):
    """Bytes of a regular file, such as a blob in an archive, as the source of a layer."""

    path: str
    offset: int
    size: int
    """Bytes."""

    def __fspath__(self) -> str:
        return self.path


@dataclass(frozen=True, eq=False)
class UnnamedFile:
    """A temporary file that has no name, as the source of a layer."""

    file: io.FileIO
    size: int
    """Bytes."""
    description: str
    """For messages."""

    def __repr__(self) -> str:
        return f"<{self.description}>"

    def read(self, size: int, /) -> Blob:
        """The next bytes, as of any file object."""
        return self.file.read(size)


@dataclass(frozen=True)
class SentPart:
    """A part that ECR confirmed."""

    __module__ = "ecr_parts"

    part: Part
    seconds: float
    """The time until ECR confirmed the part, with retries and waits for a slow uplink: from when it
    was begun, or from when the part before was confirmed, if that was later."""
    attempts: int
    """The number of attempts of that call."""


@dataclass(frozen=True)
class UploadedLayer:
    """A layer that is complete at ECR, its digest verified by ECR."""

    __module__ = "ecr_parts"

    digest: str
    """``"sha256:…"``."""
    size: int
    """Bytes."""
    existed: bool
    """Whether ECR had the layer already, or got it with another layer of ``upload_many``."""
    parts: tuple[SentPart, ...] = field(default=(), repr=False, compare=False)
    """The parts sent by this call. Bytes that ECR stored of a request that was withdrawn, or that
    another process sent, are in none of them."""

    def descriptor(self, media_type: str) -> dict[str, str | int]:
        """The layer as an OCI content descriptor, ready for the JSON of a manifest."""
        return {"mediaType": media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True)
class PushedImage:
    """An image that ECR has, whole and under all its tags."""

    __module__ = "ecr_parts"

    digest: str
    """``"sha256:…"``, of the manifest or the index."""
    media_type: str
    """That of the manifest or the index."""
    tags: tuple[str, ...]
    layers: tuple[UploadedLayer, ...] = field(repr=False)
    """The layers and configs of all its platforms, each of them once. Empty for ``put_manifest``,
    which sends none."""
    size: int = field(kw_only=True)
    """That of the manifest or the index, in bytes."""

    def descriptor(self) -> dict[str, str | int]:
        """The image as an OCI content descriptor, as an index refers to it."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True)
class Layer:
    """A layer for ``upload_many``, with options of its own.

    The fields mean the same as in ``LayerUploader.upload``; ``progress`` is called for this layer
    only. A pickled layer (errors of ``upload_many`` have one) keeps its path, digest, size and
    checkpoint, but neither ``progress`` nor a source that is not a path.
    """

    __module__ = "ecr_parts"

    source: LayerSource
    digest: str | None = field(default=None, kw_only=True)
    size: int | None = field(default=None, kw_only=True)
    checkpoint: str | os.PathLike[str] | None = field(default=None, kw_only=True)
    progress: Callable[[int], object] | None = field(default=None, kw_only=True)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        path: Any = None
        if isinstance(self.source, FileRegion):
            path = self.source
        elif is_path(self.source):
            path = os.fspath(self.source)
        description = short_repr(self.source)
        checkpoint = os.fspath(self.checkpoint) if is_path(self.checkpoint) else None
        return self._unpickle, (path, description, self.digest, self.size, checkpoint)

    @classmethod
    def _unpickle(
        cls,
        path: LayerSource | None,
        description: str,
        digest: str | None,
        size: int | None,
        checkpoint: str | None,
    ) -> Self:
        source: Any = _OmittedSource(description) if path is None else path
        return cls(source, digest=digest, size=size, checkpoint=checkpoint)

    # Copies share the source, which ``__reduce__`` would omit.

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _memo: object) -> Self:
        return self


@dataclass(frozen=True)
class _OmittedSource:
    """Stands for a source that was not pickled. It cannot be uploaded."""

    description: str

    def __repr__(self) -> str:
        return f"<a source that was not pickled: {self.description}>"
