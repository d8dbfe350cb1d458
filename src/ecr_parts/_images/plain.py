"""Layers that are not yet as they are sent: plain ones are compressed.

A registry gets layers compressed, as docker and other clients push them. What ``docker save`` and
others write has plain ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeAlias

from ecr_parts._base.temporary import TemporaryFile
from ecr_parts._base.threads import Waiter
from ecr_parts._images.files import image_error, read_file
from ecr_parts._images.rewrite import CompressedLayer
from ecr_parts._model.layers import FileRegion, Layer, UnnamedFile
from ecr_parts._sources.base import Source
from ecr_parts._sources.compression import (
    CORES,
    MAGIC_SIZE,
    PIECE_SIZE,
    DamagedError,
    compression_of,
    decompress,
    gzip_in_threads,
)
from ecr_parts._sources.digest import RunningDigest
from ecr_parts._sources.kinds import open_source

Heartbeat: TypeAlias = Callable[[int], object]
"""Called with the number of bytes that were read of the layer since the last time."""


@dataclass(frozen=True)
class PlainLayer:
    """A layer that is compressed before it is sent, or that is compressed but to be checked."""

    diff_id: str
    """The digest of the layer before compression."""
    region: FileRegion
    compression: str
    """What it has in the file; empty if it is plain."""


def stored_compression(region: FileRegion) -> str:
    """The compression of a layer in the file, told by its first bytes; empty if it is plain."""
    start = FileRegion(region.path, region.offset, min(MAGIC_SIZE, region.size))
    return compression_of(read_file(start)) if region.size else ""


def prepare_layer(
    layer: PlainLayer, path: str, files: ExitStack, heartbeat: Heartbeat
) -> tuple[CompressedLayer, Layer]:
    """Compress a layer into a temporary file, which ``files`` removes; or check a compressed one.

    ``path`` is that of the image, for messages. The pieces of a plain layer are compressed in as
    many threads as there are cores, and hashed and written in this one. Raises
    ``InvalidImageError`` if the content does not match the diff ID.
    """
    with open_source(layer.region) as source:
        try:
            if layer.compression:
                prepared, diff_id = _check(layer, source, heartbeat)
            else:
                prepared, diff_id = _compress(layer, source, heartbeat, files)
        except DamagedError as error:
            problem = f"is damaged: {error}"
        else:
            problem = f"does not match {layer.diff_id}, the config's diff ID"
            if diff_id == layer.diff_id:
                problem = ""
        changed = source.error_at_end(layer.region.size) or source.error_if_changed()
    if changed is not None:
        raise changed
    if problem:
        raise image_error(
            path, f"the layer at byte {layer.region.offset:,} {problem}. Save the image again"
        )
    digest, size = str(prepared.digest), prepared.size or 0
    return CompressedLayer(digest, size, layer.compression or "gzip"), prepared


def _compress(
    layer: PlainLayer, source: Source, heartbeat: Heartbeat, files: ExitStack
) -> tuple[Layer, str]:
    """A layer as it is sent, and the digest of its content."""
    copy = TemporaryFile(files, "compressing a layer")
    content, compressed = hashlib.sha256(), hashlib.sha256()

    def pieces() -> Iterator[bytes]:
        first_byte = 0
        while piece := bytes(source.read(first_byte, PIECE_SIZE)):
            yield piece
            content.update(piece)  # while it is compressed
            first_byte += len(piece)
            heartbeat(len(piece))

    with Waiter(lambda: heartbeat(0)) as waiter:
        for piece in gzip_in_threads(pieces(), waiter, CORES):
            compressed.update(piece)
            copy.write(piece)
    file = UnnamedFile(copy.file, copy.size, f"the compressed layer {layer.diff_id}")
    blob = Layer(file, digest=f"sha256:{compressed.hexdigest()}", size=copy.size)
    return blob, f"sha256:{content.hexdigest()}"


def _check(layer: PlainLayer, source: Source, heartbeat: Heartbeat) -> tuple[Layer, str]:
    """A layer that is compressed, and the digest of its content."""
    running, content = RunningDigest(), hashlib.sha256()
    next_byte = 0

    def read(size: int) -> bytes:
        nonlocal next_byte
        blob = bytes(source.read(next_byte, size))
        heartbeat(len(blob))
        running.feed(next_byte, blob)
        next_byte += len(blob)
        return blob

    for piece in decompress(read, layer.compression):
        content.update(piece)
    blob = Layer(layer.region, digest=running.digest(), size=layer.region.size)
    return blob, f"sha256:{content.hexdigest()}"
