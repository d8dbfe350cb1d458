"""Images as other tools write them: OCI image layouts, archives of them, and docker archives."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers import digest_of, random_bytes

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
REF_NAME = "org.opencontainers.image.ref.name"

Descriptor = dict[str, Any]


class Layout:
    """An OCI image layout that is being written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blobs = path / "blobs" / "sha256"
        self.blobs.mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob_path(self, descriptor: Descriptor) -> Path:
        return self.blobs / str(descriptor["digest"]).removeprefix("sha256:")

    def add(self, content: bytes, media_type: str, **fields: object) -> Descriptor:
        """Write a blob; its descriptor."""
        digest = digest_of(content)
        descriptor = {"mediaType": media_type, "digest": digest, "size": len(content), **fields}
        self.blob_path(descriptor).write_bytes(content)
        return descriptor

    def add_json(self, document: object, media_type: str, **fields: object) -> Descriptor:
        return self.add(json.dumps(document).encode(), media_type, **fields)

    def add_image(self, architecture: str, layers: Sequence[bytes], **fields: object) -> Descriptor:
        """Write an image for Linux; its descriptor, with the platform."""
        platform = {"architecture": architecture, "os": "linux"}
        config = self.add_json({**platform, "rootfs": {"type": "layers"}}, CONFIG_TYPE)
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": config,
            "layers": [self.add(layer, LAYER_TYPE) for layer in layers],
            **fields,
        }
        return self.add_json(document, MANIFEST_TYPE, platform=platform)

    def add_index(self, *manifests: Descriptor) -> Descriptor:
        return self.add_json(
            {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}, INDEX_TYPE
        )

    def finish(self, *images: Descriptor) -> Path:
        """Write ``index.json``; the path of the layout."""
        index = {"schemaVersion": 2, "manifests": images}
        (self.path / "index.json").write_text(json.dumps(index))
        return self.path

    def content(self) -> dict[str, bytes]:
        """The blobs by digest."""
        return {f"sha256:{path.name}": path.read_bytes() for path in self.blobs.iterdir()}


def named(image: Descriptor, *names: str) -> list[Descriptor]:
    """``image`` once for each of its names."""
    return [{**image, "annotations": {REF_NAME: name}} for name in names]


LAYERS = [random_bytes(size) for size in (300, 45, 20)]


def two_platforms(path: Path) -> Layout:
    """An image with the tag ``v1`` for two platforms that share their first layer."""
    layout = Layout(path)
    images = [
        layout.add_image("amd64", LAYERS[:2]),
        layout.add_image("arm64", [LAYERS[0], LAYERS[2]]),
    ]
    layout.finish(*named(layout.add_index(*images), "app:v1"))
    return layout


def archive(directory: Path, path: Path) -> Path:
    """A tar archive of ``directory``, with names that start with ``./``."""
    with tarfile.open(path, "w") as tar:
        tar.add(directory, "./")
    return path


def docker_archive(
    path: Path,
    layers: Sequence[bytes],
    *,
    tags: Sequence[str] | None = ("registry:5000/team/app:v1",),
    linked: bool = False,
    compressed: bool = False,
    manifest: object = None,
    config: object = None,
) -> Path:
    """A docker archive. With ``linked``, it has links like those that skopeo and podman write."""
    rootfs = {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]}
    if config is None:
        config = {"architecture": "amd64", "os": "linux", "rootfs": rootfs}
    config_text = json.dumps(config).encode()
    config_name = f"{digest_of(config_text).removeprefix('sha256:')}.json"
    names: list[str] = []
    with tarfile.open(path, "w") as tar:

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

        def link(name: str, target: str, kind: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)

        for i, layer in enumerate(layers):
            content = gzip.compress(layer) if compressed else layer
            file = f"{digest_of(layer)[7:]}.tar"
            add(file, content)
            names.append(file)
            if linked:
                link(f"{i}/layer.tar", f"../{file}", tarfile.SYMTYPE)
                link(f"{i}/again.tar", f"{i}/layer.tar", tarfile.LNKTYPE)
                names[-1] = f"{i}/again.tar"
        add(config_name, config_text)
        image = {"Config": config_name, "RepoTags": tags, "Layers": names}
        add("manifest.json", json.dumps([image] if manifest is None else manifest).encode())
    return path
