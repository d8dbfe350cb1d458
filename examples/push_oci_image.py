"""Push an OCI image layout to Amazon ECR without docker.

    python examples/push_oci_image.py [LAYOUT REPOSITORY]
        [--tag TAG] [--public] [--endpoint-url URL]

Blobs that ECR does not have are uploaded first, in parallel. Then the manifests are put, byte for
byte, each index after its children. Without LAYOUT, the script creates a small multi-platform image
and pushes it to a local ECR twice.
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

INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


class LayoutError(Exception):
    """The layout cannot be pushed. The message names the blob or the tag, and the reason."""


@dataclass(frozen=True)
class Manifest:
    """A manifest or an index, exactly as stored in the layout."""

    digest: str
    media_type: str
    text: str
    blobs: tuple[Layer, ...]
    tag: str | None = None


def read_blob(layout: Path, descriptor: dict[str, Any]) -> bytes:
    """Return the content of a blob. Raises ``LayoutError`` if it does not match its digest."""
    content = blob_path(layout, descriptor).read_bytes()
    if f"sha256:{hashlib.sha256(content).hexdigest()}" != descriptor["digest"]:
        raise LayoutError(f"the content of blob {descriptor['digest']} does not match its digest")
    return content


def blob_path(layout: Path, descriptor: dict[str, Any]) -> Path:
    """Return the path of a blob. Raises ``LayoutError`` if it is missing or has the wrong size."""
    algorithm, _, value = descriptor["digest"].partition(":")
    path: Path = layout / "blobs" / algorithm / value
    if not path.is_file():
        raise LayoutError(f"blob {descriptor['digest']} is missing: {path}")
    size = path.stat().st_size
    if size != descriptor["size"]:
        raise LayoutError(
            f"blob {descriptor['digest']} has {size:,} bytes instead of {descriptor['size']:,}"
        )
    return path


def read_manifests(layout: Path, descriptor: dict[str, Any], tag: str | None) -> Iterator[Manifest]:
    """Yield the manifest that ``descriptor`` refers to. An index is preceded by its children."""
    media_type = descriptor["mediaType"]
    if media_type not in INDEX_TYPES + MANIFEST_TYPES:
        raise LayoutError(f"manifest {descriptor['digest']} has unknown media type {media_type}")
    text = read_blob(layout, descriptor).decode()
    document = json.loads(text)
    blobs: list[Layer] = []
    if media_type in INDEX_TYPES:
        for child in document["manifests"]:
            yield from read_manifests(layout, child, None)
    else:
        for blob in (document["config"], *document["layers"]):
            if "urls" not in blob:  # a blob with URLs is downloaded from there, not from ECR
                path = blob_path(layout, blob)
                blobs.append(Layer(path, digest=blob["digest"], size=blob["size"]))
    yield Manifest(descriptor["digest"], media_type, text, tuple(blobs), tag)


def read_layout(layout: Path, tag: str | None) -> list[Manifest]:
    """Read and check the layout. Returns its manifests in the order in which to put them."""
    if not (layout / "oci-layout").is_file():
        raise LayoutError(f"{layout} is not an OCI image layout: it has no 'oci-layout' file")
    descriptors = json.loads((layout / "index.json").read_text())["manifests"]
    if tag is not None and len(descriptors) != 1:
        raise LayoutError(f"--tag requires a layout with one image, not {len(descriptors)}")
    manifests: list[Manifest] = []
    for descriptor in descriptors:
        ref_name = descriptor.get("annotations", {}).get("org.opencontainers.image.ref.name")
        manifests += read_manifests(layout, descriptor, tag or ref_name)
    return manifests


def put(client: Any, repository: str, manifest: Manifest) -> None:
    """Put a manifest, byte for byte. If ECR already has it, nothing is changed."""
    tag = {} if manifest.tag is None else {"imageTag": manifest.tag}
    try:
        response = default_retrying()(
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
        raise LayoutError(
            f"tag {manifest.tag} is immutable and already refers to another image"
        ) from error
    stored_digest = response["image"]["imageId"]["imageDigest"]
    if stored_digest != manifest.digest:
        raise LayoutError(f"ECR stored manifest {manifest.digest} with digest {stored_digest}")


def push(client: Any, layout: Path, repository: str, tag: str | None = None) -> str:
    """Push a layout. Returns the digest of its image, or of the last one if it has several."""
    manifests = read_layout(layout, tag)
    uploader = LayerUploader(client, repository)
    layers = uploader.upload_many(blob for manifest in manifests for blob in manifest.blobs)
    bytes_sent = sum(layer.size for layer in layers if not layer.existed)
    print(f"{len(layers)} blobs, {bytes_sent:,} bytes sent")
    for manifest in manifests:
        try:
            put(client, repository, manifest)
        except client.exceptions.LayersNotFoundException:
            # ECR may delete layers that no image refers to at any time, so upload them again.
            uploader.upload_many(manifest.blobs)
            put(client, repository, manifest)
        print(f"put manifest {manifest.digest}" + (f" as {manifest.tag}" if manifest.tag else ""))
    return manifests[-1].digest


def make_layout(layout: Path) -> None:
    """Create the layout of a small image for two platforms that share a layer."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def add(content: bytes, media_type: str, **fields: object) -> dict[str, object]:
        value = hashlib.sha256(content).hexdigest()
        (blobs / value).write_bytes(content)
        digest = f"sha256:{value}"
        return {"mediaType": media_type, "digest": digest, "size": len(content), **fields}

    def add_json(document: object, media_type: str, **fields: object) -> dict[str, object]:
        return add(json.dumps(document).encode(), media_type, **fields)

    def make_layer(name: str, content: bytes) -> tuple[bytes, str]:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        diff_id = hashlib.sha256(archive.getvalue()).hexdigest()
        return gzip.compress(archive.getvalue(), mtime=0), f"sha256:{diff_id}"

    images = []
    for architecture in ("amd64", "arm64"):
        files = [
            ("etc/shared", b"shared\n" * 1_000),
            ("etc/architecture", architecture.encode() * 1_000),
        ]
        layers = [make_layer(*file) for file in files]
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
            "mediaType": MANIFEST_TYPES[0],
            "config": config,
            "layers": [add(content, media_type) for content, _ in layers],
        }
        platform = {"architecture": architecture, "os": "linux"}
        images.append(add_json(manifest, MANIFEST_TYPES[0], platform=platform))
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPES[0], "manifests": images}
    annotations = {"org.opencontainers.image.ref.name": "latest"}
    descriptor = add_json(index, INDEX_TYPES[0], annotations=annotations)
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("layout", nargs="?", type=Path, metavar="LAYOUT")
    parser.add_argument("repository", nargs="?", metavar="REPOSITORY")
    parser.add_argument("--tag")
    parser.add_argument("--public", action="store_true", help="push to ECR Public")
    parser.add_argument("--endpoint-url", metavar="URL")
    options = parser.parse_args()
    if options.layout is None:
        with tempfile.TemporaryDirectory() as directory, LocalECR(["demo"]) as ecr:
            make_layout(Path(directory))
            for _ in range(2):
                push(ecr.client(), Path(directory), "demo")
        return
    if options.repository is None:
        parser.error("LAYOUT requires REPOSITORY")
    client = botocore.session.get_session().create_client(
        "ecr-public" if options.public else "ecr",
        endpoint_url=options.endpoint_url,
        config=CLIENT_CONFIG,
    )
    try:
        push(client, options.layout, options.repository, options.tag)
    except (LayoutError, EcrPartsError, ClientError) as error:
        sys.exit(f"push failed: {error}")


if __name__ == "__main__":
    main()
