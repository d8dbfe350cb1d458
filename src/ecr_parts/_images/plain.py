"""Layers that are not yet as they are sent: plain ones are compressed.

A registry gets layers compressed, as docker and other clients push them. What ``docker save`` and
others write has plain ones.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from ecr_parts._base.temporary import TemporaryFile
from ecr_parts._images.files import image_error, read_file
from ecr_parts._images.rewrite import CompressedLayer
from ecr_parts._model.layers import Blob, FileRegion, Layer, UnnamedFile
from ecr_parts._sources.base import Source
from ecr_parts._sources.compression import (
    MAGIC_SIZE,
    PIECE_SIZE,
    DamagedError,
    NoDecompressorError,
    compression_of,
    decompress,
    gzip_of,
)
from ecr_parts._sources.digest import RunningDigest
from ecr_parts._sources.kinds import open_source

_log = logging.getLogger("ecr_parts")
REGISTRY_COMPRESSIONS = ("gzip", "zstd")
"""Those that clients can decompress when they pull."""


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
    layer: PlainLayer, path: str, files: ExitStack, heartbeat: Callable[[], object]
) -> tuple[CompressedLayer, Layer]:
    """Compress a layer into a temporary file, which ``files`` removes; or check a compressed one.

    ``path`` is that of the image, for messages. Raises ``InvalidImageError`` if the content does
    not match the diff ID.
    """
    with open_source(layer.region) as source:
        prepare = _check if layer.compression else partial(_compress, files)
        prepared = prepare(layer, path, source, heartbeat)
        error = source.error_at_end(layer.region.size) or source.error_if_changed()
    if error is not None:
        raise error
    digest, size = str(prepared.digest), prepared.size or 0
    return CompressedLayer(digest, size, layer.compression or "gzip"), prepared


def _compress(
    files: ExitStack,
    layer: PlainLayer,
    path: str,
    source: Source,
    heartbeat: Callable[[], object],
) -> Layer:
    copy = TemporaryFile(files, "compressing a layer")
    content, compressed = hashlib.sha256(), hashlib.sha256()

    def pieces() -> Iterator[Blob]:
        first_byte = 0
        while piece := source.read(first_byte, PIECE_SIZE):
            heartbeat()
            content.update(piece)
            yield piece
            first_byte += len(piece)

    for piece in gzip_of(pieces()):
        compressed.update(piece)
        copy.write(piece)
    _check_diff_id(layer, path, content.hexdigest())
    file = UnnamedFile(copy.file, copy.size, f"the compressed layer {layer.diff_id}")
    return Layer(file, digest=f"sha256:{compressed.hexdigest()}", size=copy.size)


def _check(layer: PlainLayer, path: str, source: Source, heartbeat: Callable[[], object]) -> Layer:
    """Compute the digest of a compressed layer, and verify its diff ID where it can be read."""
    running, content = RunningDigest(), hashlib.sha256()
    next_byte = 0

    def read(size: int) -> bytes:
        nonlocal next_byte
        heartbeat()
        blob = bytes(source.read(next_byte, size))
        running.feed(next_byte, blob)
        next_byte += len(blob)
        return blob

    try:
        for piece in decompress(read, layer.compression):
            content.update(piece)
        _check_diff_id(layer, path, content.hexdigest())
    except NoDecompressorError:
        _log.info("the diff ID of the layer %s cannot be verified without zstd", layer.diff_id)
    except DamagedError as error:
        raise image_error(
            path,
            f"the compressed layer at byte {layer.region.offset:,} is damaged: {error}. Save the "
            "image again",
        ) from error
    while read(PIECE_SIZE):  # what follows the compressed data, too
        pass
    return Layer(layer.region, digest=running.digest(), size=layer.region.size)


def _check_diff_id(layer: PlainLayer, path: str, digest: str) -> None:
    if f"sha256:{digest}" != layer.diff_id:
        raise image_error(
            path,
            f"the layer at byte {layer.region.offset:,} does not match {layer.diff_id}, the "
            "config's diff ID. Save the image again",
        )
