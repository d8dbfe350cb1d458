"""Push an OCI image layout to Amazon ECR, without docker.

    python examples/push_oci_image.py [LAYOUT REPOSITORY]
        [--tag TAG] [--public] [--endpoint-url URL]

Blobs go first, side by side, and only those that ECR does not have; then the manifests, byte for
byte, children before their index. Without LAYOUT, a small multi-platform image is made and pushed
to a local ECR, twice.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.session
from botocore.exceptions import ClientError

from ecr_parts import CLIENT_CONFIG, EcrPartsError, Layer, LayerUploader, default_retrying
from ecr_parts.testing import LocalECR

INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


class LayoutError(Exception):
    """The layout cannot be pushed: says which blob or tag, and why."""


@dataclass(frozen=True)
class Manifest:
    """A manifest or an index, as it stands in the layout."""

    digest: str
    media_type: str
    text: str
    blobs: tuple[Layer, ...]
    tag: str | None = None


def read_blob(layout: Path, descriptor: dict[str, Any]) -> bytes:
    """A manifest's bytes, proven by its digest."""
    content = blob_path(layout, descriptor).read_bytes()
    if f"sha256:{hashlib.sha256(content).hexdigest()}" != descriptor["digest"]:
        raise LayoutError(f"blob {descriptor['digest']} has another content than its digest")
    return content


def blob_path(layout: Path, descriptor: dict[str, Any]) -> Path:
    """Where a blob is; ``LayoutError`` where it is not, or not of its size."""
    algorithm, _, value = descriptor["digest"].partition(":")
    path: Path = layout / "blobs" / algorithm / value
    if not path.is_file():
        raise LayoutError(f"blob {descriptor['digest']} is missing: {path}")
    if path.stat().st_size != descriptor["size"]:
        raise LayoutError(f"blob {descriptor['digest']} has not the {descriptor['size']} bytes")
    return path


def manifests(layout: Path, descriptor: dict[str, Any], tag: str | None) -> Iterator[Manifest]:
    """What has to be put for ``descriptor``: children first, each with its blobs."""
    media_type = descriptor["mediaType"]
    if media_type not in INDEXES + MANIFESTS:
        raise LayoutError(f"blob {descriptor['digest']} has the unknown media type {media_type}")
    text = read_blob(layout, descriptor).decode()
    document = json.loads(text)
    blobs: list[Layer] = []
    if media_type in INDEXES:
        for child in document["manifests"]:
            yield from manifests(layout, child, None)
    else:
        for blob in (document["config"], *document["layers"]):
            if "urls" not in blob:  # a layer that is to be had elsewhere, and only there
                path = blob_path(layout, blob)
                blobs.append(Layer(path, digest=blob["digest"], size=blob["size"]))
    yield Manifest(descriptor["digest"], media_type, text, tuple(blobs), tag)


def read_layout(layout: Path, tag: str | None) -> list[Manifest]:
    """Everything in the layout, checked, in the order it has to be put."""
    if not (layout / "oci-layout").is_file():
        raise LayoutError(f"{layout} is no OCI image layout: it has no file 'oci-layout'")
    entries = json.loads((layout / "index.json").read_text())["manifests"]
    if tag is not None and len(entries) != 1:
        raise LayoutError(f"the layout has {len(entries)} images, and --tag can name one")
    found: list[Manifest] = []
    for entry in entries:
        name = entry.get("annotations", {}).get("org.opencontainers.image.ref.name")
        found += manifests(layout, entry, tag or name)
    return found


def put(client: Any, repository: str, manifest: Manifest) -> None:
    """Put a manifest as it is. That it is there already is as good."""
    tag = {} if manifest.tag is None else {"imageTag": manifest.tag}
    try:
        answer = default_retrying()(
            client.put_image,
            repositoryName=repository,
            imageManifest=manifest.text,
            imageManifestMediaType=manifest.media_type,
            imageDigest=manifest.digest,
            **tag,
        )
    except client.exceptions.ImageAlreadyExistsException:
        return
    except client.exceptions.ImageTagAlreadyExistsException as error:
        raise LayoutError(f"tag {manifest.tag} names another image, and is immutable") from error
    if answer["image"]["imageId"]["imageDigest"] != manifest.digest:
        raise LayoutError(f"ECR stored manifest {manifest.digest} under another digest")


def push(client: Any, layout: Path, repository: str, tag: str | None = None) -> str:
    """Push a layout. Returns the digest of what was put last."""
    found = read_layout(layout, tag)
    uploader = LayerUploader(client, repository)
    uploaded = uploader.upload_many(blob for manifest in found for blob in manifest.blobs)
    sent = sum(layer.size for layer in uploaded if not layer.existed)
    print(f"{len(uploaded)} blobs, {sent:,} bytes sent")
    for manifest in found:
        try:
            put(client, repository, manifest)
        except client.exceptions.LayersNotFoundException:
            # ECR may clean up layers that no image refers to at any time: between the two, too.
            uploader.upload_many(manifest.blobs)
            put(client, repository, manifest)
        print(f"put {manifest.digest}" + (f" as {manifest.tag}" if manifest.tag else ""))
    return found[-1].digest


def make_layout(layout: Path) -> None:
    """A small image for two platforms that share a layer."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def add(content: bytes, media_type: str, **more: object) -> dict[str, object]:
        value = hashlib.sha256(content).hexdigest()
        (blobs / value).write_bytes(content)
        digest = f"sha256:{value}"
        return {"mediaType": media_type, "digest": digest, "size": len(content), **more}

    def add_json(document: object, media_type: str, **more: object) -> dict[str, object]:
        return add(json.dumps(document).encode(), media_type, **more)

    def layer(name: str, content: bytes) -> tuple[bytes, str]:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        diff_id = hashlib.sha256(packed.getvalue()).hexdigest()
        return gzip.compress(packed.getvalue(), mtime=0), f"sha256:{diff_id}"

    images = []
    for architecture in ("amd64", "arm64"):
        files = [("etc/shared", b"of both\n" * 1_000), ("etc/own", architecture.encode() * 1_000)]
        layers = [layer(*file) for file in files]
        config = add_json(
            {
                "architecture": architecture,
                "os": "linux",
                "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
            },
            "application/vnd.oci.image.config.v1+json",
        )
        media_type = "application/vnd.oci.image.layer.v1.tar+gzip"
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFESTS[0],
            "config": config,
            "layers": [add(content, media_type) for content, _ in layers],
        }
        platform = {"architecture": architecture, "os": "linux"}
        images.append(add_json(manifest, MANIFESTS[0], platform=platform))
    index = {"schemaVersion": 2, "mediaType": INDEXES[0], "manifests": images}
    name = {"org.opencontainers.image.ref.name": "latest"}
    top = {"schemaVersion": 2, "manifests": [add_json(index, INDEXES[0], annotations=name)]}
    (layout / "index.json").write_text(json.dumps(top))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("layout", nargs="?", type=Path)
    parser.add_argument("repository", nargs="?")
    parser.add_argument("--tag")
    parser.add_argument("--public", action="store_true", help="to ECR Public")
    parser.add_argument("--endpoint-url")
    options = parser.parse_args()
    if options.layout is None:
        with tempfile.TemporaryDirectory() as directory, LocalECR(["demo"]) as ecr:
            make_layout(Path(directory))
            for _ in range(2):
                push(ecr.client(), Path(directory), "demo")
        return
    if options.repository is None:
        parser.error("LAYOUT takes a REPOSITORY")
    client = botocore.session.get_session().create_client(
        "ecr-public" if options.public else "ecr",
        endpoint_url=options.endpoint_url,
        config=CLIENT_CONFIG,
    )
    try:
        push(client, options.layout, options.repository, options.tag)
    except (LayoutError, EcrPartsError, ClientError) as error:
        sys.exit(f"not pushed: {error}")


if __name__ == "__main__":
    main()
