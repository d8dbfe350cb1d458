"""Images as other tools write them: OCI image layouts, archives of them, and docker archives."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from helpers import digest_of, random_bytes

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
PLAIN_TYPE = "application/vnd.oci.image.layer.v1.tar"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
REF_NAME = "org.opencontainers.image.ref.name"
FULL_NAME = "io.containerd.image.name"
"""The annotation that docker and buildx write beside the tag."""

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

    def add_plain_image(
        self, architecture: str, layers: Sequence[bytes], **fields: object
    ) -> Descriptor:
        """Write an image whose layers are not compressed, as ``docker save`` does since 25."""
        platform = {"architecture": architecture, "os": "linux"}
        rootfs = {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]}
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": self.add_json({**platform, "config": {}, "rootfs": rootfs}, CONFIG_TYPE),
            "layers": [self.add(layer, PLAIN_TYPE) for layer in layers],
            **fields,
        }
        return self.add_json(document, MANIFEST_TYPE, platform=platform)

    def add_artifact(self, subject: Descriptor | None = None, **fields: object) -> Descriptor:
        """Write what is no image, such as a signature that refers to ``subject``."""
        empty = self.add(b"{}", EMPTY_TYPE)
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": "application/vnd.example.signature",
            "config": empty,
            "layers": [self.add(b"signature", "application/octet-stream")],
            **({} if subject is None else {"subject": referred(subject)}),
            **fields,
        }
        return self.add_json(document, MANIFEST_TYPE)

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


def referred(descriptor: Descriptor) -> Descriptor:
    """What a subject says about a manifest."""
    return {name: descriptor[name] for name in ("mediaType", "digest", "size")}


def saved(image: Descriptor, full_name: str) -> Descriptor:
    """``image`` in the ``index.json`` of ``docker save`` and buildx: with its name and its tag."""
    tag = full_name.rpartition(":")[2]
    return {**image, "annotations": {FULL_NAME: full_name, REF_NAME: tag}}


def attested(image: Descriptor, attestation: Descriptor) -> Descriptor:
    """An attestation of buildkit in the index of the image that it describes."""
    annotations = {
        "vnd.docker.reference.digest": image["digest"],
        "vnd.docker.reference.type": "attestation-manifest",
    }
    platform = {"architecture": "unknown", "os": "unknown"}
    return {**attestation, "annotations": annotations, "platform": platform}


def named(image: Descriptor, *names: str) -> list[Descriptor]:
    """``image`` once for each of its names."""
    return [{**image, "annotations": {REF_NAME: name}} for name in names]


class Zstd(ModuleType):
    """Stands for ``compression.zstd``: a frame is b"\\x28\\xb5\\x2f\\xfd", a content and b"."."""

    class ZstdError(Exception):
        pass

    class ZstdDecompressor:
        def __init__(self) -> None:
            self.eof, self.unused_data = False, b""

        def decompress(self, data: bytes, _size: int) -> bytes:
            content, dot, self.unused_data = data.partition(b".")
            if b"!" in data:
                raise Zstd.ZstdError("damaged")
            self.eof = bool(dot)
            return content.removeprefix(b"\x28\xb5\x2f\xfd")


LAYERS = [random_bytes(size) for size in (60, 45, 20)]  # four parts of 16 bytes, three, two


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


def directory_format(layout: Layout, root: Descriptor, path: Path) -> Path:
    """What ``skopeo copy --all … dir:PATH`` writes of an image, and buildah and podman do."""
    path.mkdir()
    (path / "version").write_text("Directory Transport Version: 1.1\n")
    (path / "manifest.json").write_bytes(layout.blob_path(root).read_bytes())
    for file in layout.blobs.iterdir():
        is_manifest = b'"schemaVersion"' in file.read_bytes()
        suffix = ".manifest.json" if is_manifest else ""
        (path / f"{file.name}{suffix}").write_bytes(file.read_bytes())
    return path


def several_in_docker_archive(
    path: Path, images: Mapping[tuple[str, ...], Sequence[bytes]]
) -> Path:
    """What docker 20.10 writes of several images: the layers of each, by its names.

    Each layer is in a directory, with files that older versions need; a layer that was written
    already is a link.
    """
    written: dict[str, str] = {}
    manifest = []
    with tarfile.open(path, "w") as tar:

        def add(name: str, content: bytes, kind: bytes = tarfile.REGTYPE, target: str = "") -> None:
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(content), kind, target
            tar.addfile(member, io.BytesIO(content))

        for names, layers in images.items():
            files = []
            for number, layer in enumerate(layers):
                directory = digest_of(f"{names} {number}".encode())[7:]
                add(directory, b"", tarfile.DIRTYPE)
                add(f"{directory}/VERSION", b"1.0")
                files.append(f"{directory}/layer.tar")
                if (first := written.setdefault(digest_of(layer), directory)) == directory:
                    add(files[-1], layer)
                else:
                    add(files[-1], b"", tarfile.SYMTYPE, f"../{first}/layer.tar")
            rootfs = {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]}
            config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).encode()
            config_name = f"{digest_of(config)[7:]}.json"
            add(config_name, config)
            manifest.append({"Config": config_name, "RepoTags": [*names], "Layers": files})
        add("manifest.json", json.dumps(manifest).encode())
        add("repositories", b"{}")
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
