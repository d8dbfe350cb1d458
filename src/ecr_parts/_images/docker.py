"""Docker archives: ``docker save`` before version 25, ``podman save``, kaniko, jib, Bazel, Nix.

They have no manifest, so one is made, whose layers are those of the archive. They are mostly not
compressed, and are when the image is pushed. Reference: "Combined Image JSON + Filesystem Changeset
Format" in https://github.com/moby/moby/blob/v27.0.0/image/spec/v1.2.md
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from typing import Any

from ecr_parts._base.validation import is_digest, short_repr
from ecr_parts._images.contents import (
    DOCKER_CONFIG,
    Contents,
    Descriptor,
    Manifest,
    digest_of,
    parse_manifest,
    platform_name,
)
from ecr_parts._images.documents import find_json, member, parse_json, write_json
from ecr_parts._images.files import ImageFiles, image_error, read_file
from ecr_parts._images.rewrite import DOCKER_LAYER
from ecr_parts._model.layers import FileRegion
from ecr_parts._model.manifests import DOCKER_MANIFEST
from ecr_parts.errors import InvalidImageError


def read_docker_archive(files: ImageFiles, images: list[Any]) -> Contents:
    """The contents of a docker archive, whose ``manifest.json`` is ``images``."""
    reader = _DockerReader(files)
    listed: list[Descriptor] = []
    for number, image in enumerate(images):
        listed += reader.read(number, image)
    return Contents(files.path, tuple(listed), reader.manifests, reader.problems, reader.blobs.get)


class _DockerReader:
    def __init__(self, files: ImageFiles) -> None:
        self._files = files
        self._error_of = partial(image_error, files.path)
        self.manifests: dict[str, Manifest] = {}
        self.problems: dict[str, InvalidImageError] = {}
        self.blobs: dict[str, FileRegion] = {}
        """By digest: configs, and layers by their diff IDs."""

    def read(self, number: int, image: object) -> Iterable[Descriptor]:
        """Read an image; its descriptors, one for each name."""
        names = image.get("RepoTags") if isinstance(image, dict) else None
        names = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
        platform = ""
        try:
            manifest, platform = self._read(image)
            digest, size = manifest.digest, len(manifest.content)
            self.manifests[digest] = manifest
        except InvalidImageError as error:  # matters only if this image is pushed
            digest, size = digest_of(b"%d" % number), 0
            self.problems[digest] = error
        each: list[tuple[str, ...]] = [(name,) for name in names] or [()]
        return [Descriptor(DOCKER_MANIFEST, digest, size, platform, one) for one in each]

    def _read(self, image: object) -> tuple[Manifest, str]:
        """The manifest that is made for an image, and its platform."""
        error_of, blobs = self._error_of, self.blobs
        name = member(image, "Config", str, error_of, "manifest.json")
        region = find_json(self._files, name, error_of)
        content = read_file(region)
        config = parse_json(content, error_of, name)
        digest = digest_of(content)
        named = re.search(r"([0-9a-f]{64})(\.json)?$", name)
        if named is not None and f"sha256:{named[1]}" != digest:
            raise error_of(f"{name} has other content than its name says. Save it again")
        blobs[digest] = region
        names = member(image, "Layers", list, error_of, "manifest.json")
        rootfs = member(config, "rootfs", dict, error_of, name)
        diff_ids = rootfs.get("diff_ids") or []
        if not isinstance(diff_ids, list) or len(names) != len(diff_ids):
            count = len(diff_ids) if isinstance(diff_ids, list) else 0
            raise error_of(f"{name} has {count} layers, and manifest.json {len(names)}")
        layers = []
        for file, diff_id in zip(names, diff_ids, strict=True):
            blobs[diff_id] = layer = self._find_layer(file, diff_id)
            layers.append(_descriptor(DOCKER_LAYER, diff_id, layer))
        document = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": _descriptor(DOCKER_CONFIG, digest, region),
            "layers": layers,
        }
        made = write_json(document)
        manifest = parse_manifest(made, digest_of(made), DOCKER_MANIFEST, error_of, is_made=True)
        return manifest, platform_name(config)

    def _find_layer(self, name: object, diff_id: object) -> FileRegion:
        region = self._files.find(name) if isinstance(name, str) else None
        if region is None:
            raise self._error_of(f"it has no layer {short_repr(name)}. Save the image again, whole")
        if self._files.is_linked(region):
            raise self._error_of(f"the layer {short_repr(name)} is a link to a file elsewhere")
        if not isinstance(diff_id, str) or not is_digest(diff_id):
            raise self._error_of(
                f"the config names the layer {short_repr(diff_id)}. Save the image again"
            )
        return region


def _descriptor(media_type: str, digest: str, region: FileRegion) -> dict[str, object]:
    return {"mediaType": media_type, "size": region.size, "digest": digest}
