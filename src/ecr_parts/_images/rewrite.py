"""New manifests and indexes, where something below them is left out or compressed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ecr_parts._images.contents import (
    OCI_CONFIG,
    Manifest,
    digest_of,
    parse_manifest,
)
from ecr_parts._images.documents import ErrorOf, parse_json, write_json
from ecr_parts._model.manifests import OCI_MANIFEST

OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
PLAIN_TYPES = (OCI_LAYER, DOCKER_LAYER)


@dataclass(frozen=True)
class CompressedLayer:
    """What a layer becomes."""

    digest: str
    size: int
    compression: str
    """``"gzip"`` or ``"zstd"``."""


def rewrite_indexes(
    manifests: Sequence[Manifest], replaced: Mapping[str, Manifest | None], error_of: ErrorOf
) -> tuple[Manifest, ...]:
    """``manifests``, children before their index, with the indexes that follow from ``replaced``.

    ``replaced``, by digest: what a manifest becomes, or ``None`` if it is left out. An index of
    which nothing is left is left out too.
    """
    new: dict[str, Manifest | None] = dict(replaced)
    for manifest in manifests:
        if manifest.digest not in new:
            new[manifest.digest] = _rewrite_index(manifest, new, error_of)
    kept = (new[manifest.digest] for manifest in manifests)
    return tuple({one.digest: one for one in kept if one is not None}.values())


def _rewrite_index(
    index: Manifest, new: Mapping[str, Manifest | None], error_of: ErrorOf
) -> Manifest | None:
    """An index without what is left out, and with new digests. It may be a manifest, unchanged."""
    changes = {
        child.digest: new[child.digest]
        for child in index.children
        if child.digest in new and getattr(new[child.digest], "digest", None) != child.digest
    }
    if not changes:
        return index
    document = parse_json(index.content, error_of, f"manifest {index.digest}")
    items: list[dict[str, Any]] = []
    for item, child in zip(document["manifests"], index.children, strict=True):
        changed = changes.get(child.digest)
        if changed is not None:
            items.append(_changed(item, changed.media_type, changed.digest, len(changed.content)))
        elif child.digest not in changes:
            items.append(item)
    if not items:
        return None
    return _parsed({**document, "manifests": items}, index.media_type, error_of)


def with_compressed_layers(
    manifest: Manifest, compressed: Mapping[str, CompressedLayer], error_of: ErrorOf
) -> Manifest:
    """A manifest whose layers are ``compressed``; by their digests before."""
    document = parse_json(manifest.content, error_of, f"manifest {manifest.digest}")
    layers = [compressed.get(layer.digest) for layer in manifest.layers]
    # The manifest of a docker archive is made here. Its media types allow no zstd.
    becomes_oci = manifest.is_made and any(one and one.compression == "zstd" for one in layers)
    items = []
    for item, layer, new in zip(document["layers"], manifest.layers, layers, strict=True):
        if new is None:
            items.append(item)
        elif layer.media_type == DOCKER_LAYER and not becomes_oci:
            media_type = f"{DOCKER_LAYER}.{new.compression}"
            items.append(_changed(item, media_type, new.digest, new.size))
        else:
            media_type = f"{OCI_LAYER}+{new.compression}"
            items.append(_changed(item, media_type, new.digest, new.size))
    changed = {**document, "layers": items}
    if not becomes_oci:
        return _parsed(changed, manifest.media_type, error_of)
    changed["config"] = {**document["config"], "mediaType": OCI_CONFIG}
    return _parsed({**changed, "mediaType": OCI_MANIFEST}, OCI_MANIFEST, error_of)


def _changed(item: dict[str, Any], media_type: str, digest: str, size: int) -> dict[str, Any]:
    """A descriptor of something else. What it says about where the content is does not apply."""
    kept = {key: value for key, value in item.items() if key not in ("data", "urls")}
    return {**kept, "mediaType": media_type, "digest": digest, "size": size}


def _parsed(document: Mapping[str, Any], media_type: str, error_of: ErrorOf) -> Manifest:
    content = write_json(document)
    return parse_manifest(content, digest_of(content), media_type, error_of)
