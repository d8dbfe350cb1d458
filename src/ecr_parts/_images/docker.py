"""Docker archives: ``docker save`` before version 25, ``podman save``, kaniko, jib, Bazel.

Their layers are mostly not compressed. A registry gets them with gzip, as docker pushes them.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from typing_extensions import override

from ecr_parts._base.validation import is_digest, short_repr
from ecr_parts._images.files import ImageFiles, image_error, read_file
from ecr_parts._images.layout import (
    DOCKER_MANIFEST,
    Image,
    check_layer_count,
    check_platform,
    create_manifest,
    find_json,
    member,
    parse_json,
    read_json,
    tag_of,
)
from ecr_parts._model.layers import FileRegion, Layer, UnnamedFile
from ecr_parts._sources.base import Source
from ecr_parts._sources.digest import RunningDigest
from ecr_parts._sources.kinds import open_source
from ecr_parts.errors import InvalidImageError

_CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
_LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_GZIP = b"\x1f\x8b"
_CHUNK_SIZE = 1024 * 1024  # bytes


@dataclass(frozen=True)
class StoredLayer:
    """A layer as it is in the archive."""

    region: FileRegion
    diff_id: str
    """The digest of the layer before compression."""
    is_compressed: bool


@dataclass(frozen=True)
class DockerArchive:
    """An image whose files are all there, but whose layers are yet to be compressed."""

    config: Layer
    layers: tuple[StoredLayer, ...]
    tags: tuple[str, ...]

    def image(self, blobs: Mapping[str, Layer]) -> Image:
        """The image whose layers are ``blobs``, by diff ID."""
        layers = [blobs[layer.diff_id] for layer in self.layers]
        document = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": _descriptor(_CONFIG_TYPE, self.config),
            "layers": [_descriptor(_LAYER_TYPE, layer) for layer in layers],
        }
        manifest = create_manifest(document, DOCKER_MANIFEST, (self.config, *layers))
        return Image((manifest,), self.tags)


def _descriptor(media_type: str, layer: Layer) -> dict[str, object]:
    return {"mediaType": media_type, "size": layer.size, "digest": layer.digest}


def read_docker_archive(files: ImageFiles, platforms: Sequence[str] | None) -> DockerArchive:
    """The image of a docker archive. Raises ``InvalidImageError``."""

    error_of = partial(image_error, files.path)
    images = read_json(files, "manifest.json", error_of)
    if not isinstance(images, list) or len(images) != 1:
        count = len(images) if isinstance(images, list) else 0
        raise error_of(f"it has {count} images: save one image to one archive")
    (image,) = images
    config_name = member(image, "Config", str, error_of, "manifest.json")
    region = find_json(files, config_name, error_of)
    content = read_file(region)
    config = parse_json(content, error_of, config_name)
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    named = re.search(r"([0-9a-f]{64})(\.json)?$", config_name)
    if named is not None and f"sha256:{named[1]}" != digest:
        raise error_of(f"{config_name} has other content than its name says. Save it again")
    names = member(image, "Layers", list, error_of, "manifest.json")
    file_system = member(config, "rootfs", dict, error_of, config_name)
    diff_ids = member(file_system, "diff_ids", list, error_of, config_name)
    check_layer_count(len(names), error_of, "the image")
    if len(names) != len(diff_ids):
        raise error_of(f"{config_name} has {len(diff_ids)} layers, and manifest.json {len(names)}")
    if platforms is not None:
        check_platform(config, platforms, error_of)
    tags = image.get("RepoTags")
    found = (tag_of(name) for name in (tags if isinstance(tags, list) else []))
    return DockerArchive(
        config=Layer(region, digest=digest, size=region.size),
        layers=tuple(
            _stored_layer(files, name, diff_id, error_of)
            for name, diff_id in zip(names, diff_ids, strict=True)
        ),
        tags=tuple(dict.fromkeys(tag for tag in found if tag is not None)),
    )


def _stored_layer(
    files: ImageFiles, name: object, diff_id: object, error_of: Callable[[str], InvalidImageError]
) -> StoredLayer:
    region = files.find(name) if isinstance(name, str) else None
    if region is None or not region.size:
        raise error_of(f"it has no layer {short_repr(name)}. Save the image again, whole")
    if not isinstance(diff_id, str) or not is_digest(diff_id):
        raise error_of(f"the config names the layer {short_repr(diff_id)}. Save the image again")
    start = read_file(FileRegion(region.path, region.offset, min(2, region.size)))
    return StoredLayer(region, diff_id, start == _GZIP)


def _check_compressed_layer(layer: StoredLayer, heartbeat: Callable[[], object]) -> Layer:
    content = hashlib.sha256()
    with open_source(layer.region) as source:
        reader = _HashingReader(source, heartbeat)
        try:
            with gzip.GzipFile(fileobj=io.BufferedReader(reader, _CHUNK_SIZE)) as file:
                while blob := file.read(_CHUNK_SIZE):
                    heartbeat()
                    content.update(blob)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InvalidImageError(
                f"{layer.region.path!r}: the compressed layer at byte {layer.region.offset:,} is "
                f"damaged: {error}. Save the image again"
            ) from error
    _check_diff_id(layer, content.hexdigest())
    return Layer(layer.region, digest=reader.digest.digest(), size=layer.region.size)


class _HashingReader(io.RawIOBase):
    """Reads a source from its start to its end, and computes its digest."""

    def __init__(self, source: Source, heartbeat: Callable[[], object]) -> None:
        self._source = source
        self._heartbeat = heartbeat
        self._next_byte = 0
        self.digest = RunningDigest()

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: Any) -> int:
        self._heartbeat()
        blob = self._source.read(self._next_byte, len(buffer))
        self.digest.feed(self._next_byte, blob)
        self._next_byte += len(blob)
        buffer[: len(blob)] = blob
        return len(blob)


def _check_diff_id(layer: StoredLayer, digest: str) -> None:
    if f"sha256:{digest}" != layer.diff_id:
        raise InvalidImageError(
            f"{layer.region.path!r}: the layer at byte {layer.region.offset:,} does not match "
            f"{layer.diff_id}, the config's diff ID. Save the image again"
        )


def compress_layer(layer: StoredLayer, files: ExitStack, heartbeat: Callable[[], object]) -> Layer:
    """Compress a layer into a temporary file without a name, which ``files`` will close.

    The same content gives the same digest, as long as the version of zlib is the same. A layer that
    is compressed already is only verified. Raises ``InvalidImageError`` if the content does not
    match the diff ID.
    """
    if layer.is_compressed:
        return _check_compressed_layer(layer, heartbeat)
    opened = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  (``files`` closes it)
    file = files.enter_context(opened)
    compressor = zlib.compressobj(wbits=31)  # gzip, without a name and a time
    content, compressed = hashlib.sha256(), hashlib.sha256()

    def write(data: bytes) -> None:
        compressed.update(data)
        view = memoryview(data)
        try:
            while view:
                view = view[file.write(view) :]
        except OSError as error:
            raise OSError(
                error.errno,
                f"compressing a layer into a temporary file failed: {error.strerror}: set TMPDIR "
                "to another directory",
            ) from error

    with open_source(layer.region) as source:
        first_byte = 0
        while blob := source.read(first_byte, _CHUNK_SIZE):
            heartbeat()
            content.update(blob)
            write(compressor.compress(blob))
            first_byte += len(blob)
        error = source.error_at_end(first_byte) or source.error_if_changed()
    if error is not None:
        raise error
    write(compressor.flush())
    _check_diff_id(layer, content.hexdigest())
    size = file.tell()
    compressed_layer = UnnamedFile(file, size, f"the compressed layer {layer.diff_id}")
    return Layer(compressed_layer, digest=f"sha256:{compressed.hexdigest()}", size=size)
