"""What is known about one of several layers before it is uploaded."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from ecr_parts._model.layers import FileRegion, Layer, is_path
from ecr_parts._sources.kinds import is_background_readable, open_source
from ecr_parts._upload.checkpoint import Checkpoint


@dataclass(eq=False)
class Item:
    """One of the layers, and what is known about it."""

    index: int
    """The index of its result."""
    layer: Layer
    """As the caller passed it."""
    resolved: Layer
    """The same with absolute paths, because the working directory may change."""
    background_readable: bool
    identity: object
    """Equal for layers with the same source."""
    size: int | None
    """Bytes; ``None`` for a stream whose size the caller did not pass."""
    digest: str | None

    @property
    def size_or_0(self) -> int:
        return self.size or 0


def with_absolute_paths(layer: Layer) -> Layer:
    """``layer`` with absolute paths of its source and its checkpoint."""
    source, checkpoint = layer.source, layer.checkpoint
    if is_path(source) and not isinstance(source, FileRegion):
        source = os.path.abspath(source)
    if checkpoint is not None:
        checkpoint = Checkpoint(checkpoint).absolute
    return replace(layer, source=source, checkpoint=checkpoint)


def create_item(index: int, layer: Layer, resolved: Layer) -> Item:
    """Find out what is known about a layer, which may access the disk."""
    source, size = resolved.source, resolved.size
    identity: object = id(source)
    background_readable = is_background_readable(source)
    if background_readable:
        with open_source(source, size, must_be_regular=is_path(source)) as opened:
            size, background_readable = opened.size, opened.background_readable
        if isinstance(source, FileRegion):
            identity = source
        elif is_path(source):
            status = os.stat(source)
            identity = (status.st_dev, status.st_ino)
    return Item(index, layer, resolved, background_readable, identity, size, layer.digest)
