"""What users pass in and get back: sources, layers and the parts that were sent."""

# No ``from __future__ import annotations`` here: the classes report ``ecr_parts`` as their
# module, so ``typing.get_type_hints`` could not resolve names that only this module imports.

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from typing_extensions import Self

from ecr_parts._chunker import Part
from ecr_parts._validation import short_repr

Blob: TypeAlias = bytes | bytearray | memoryview
"""Raw bytes."""


class Readable(Protocol):
    """The part of a binary file object that is needed. Short reads are fine; b"" is the end."""

    def read(self, size: int, /) -> Blob: ...


LayerSource: TypeAlias = str | os.PathLike[str] | Blob | Readable | Iterable[Blob]
"""A path, a buffer, a binary file object (read from its current position), or an iterable of
bytes."""


@dataclass(frozen=True)
class SentPart:
    """A part that ECR confirmed."""

    __module__ = "ecr_parts"

    part: Part
    seconds: float
    """From the first attempt to the confirmation."""
    attempts: int


@dataclass(frozen=True)
class UploadedLayer:
    """A layer that is complete at ECR, its digest verified by ECR."""

    __module__ = "ecr_parts"

    digest: str
    """``"sha256:…"``."""
    size: int
    """Bytes."""
    existed: bool
    """Whether ECR had the layer already, so this call did not complete it."""
    parts: tuple[SentPart, ...] = field(default=(), repr=False, compare=False)
    """The parts sent by this call."""

    def descriptor(self, media_type: str) -> dict[str, str | int]:
        """The layer as an OCI content descriptor, ready to be put in a manifest's JSON."""
        return {"mediaType": media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True)
class Layer:
    """A layer for ``upload_many``, for when there is more to say than its source.

    The fields mean the same as in ``LayerUploader.upload``; ``progress`` is called for this layer
    only. A pickled layer (every pickled error may hold one) keeps its path, digest, size and
    checkpoint, but neither ``progress`` nor the content of a buffer or a stream.
    """

    __module__ = "ecr_parts"

    source: LayerSource
    digest: str | None = field(default=None, kw_only=True)
    size: int | None = field(default=None, kw_only=True)
    checkpoint: str | os.PathLike[str] | None = field(default=None, kw_only=True)
    progress: Callable[[int], object] | None = field(default=None, kw_only=True)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        source: object = self.source
        if isinstance(source, os.PathLike) and not hasattr(source, "read"):
            source = os.fspath(source)
        if not isinstance(source, str):
            source = _UnpickledSource(short_repr(source))
        checkpoint = None if self.checkpoint is None else os.fspath(self.checkpoint)
        return _unpickle_layer, (source, self.digest, self.size, checkpoint)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _memo: object) -> Self:
        return self


@dataclass(frozen=True, repr=False)
class _UnpickledSource:
    """Stands for a source that was not pickled. It cannot be uploaded."""

    description: str

    def __repr__(self) -> str:
        return f"<a source that was not pickled: {self.description}>"


def _unpickle_layer(
    source: LayerSource, digest: str | None, size: int | None, checkpoint: str | None
) -> Layer:
    return Layer(source, digest=digest, size=size, checkpoint=checkpoint)
