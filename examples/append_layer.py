"""Add a directory to an image that is in ECR, as one more layer, without pulling the image.

``append(LayerUploader.for_repository(REPOSITORY), TAG, DIRECTORY, NEW_TAG)`` downloads only the
manifest and the config. The image cannot be in ECR Public, whose API has no download. Here, it is
in a local ECR.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from ecr_parts import LayerUploader, PushedImage, UploadedLayer
from ecr_parts.testing import LocalECR

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYERS = {
    MANIFEST: "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.docker.distribution.manifest.v2+json": (
        "application/vnd.docker.image.rootfs.diff.tar.gzip"
    ),
}
"""The media type of a layer in each kind of manifest."""


def append(uploader: LayerUploader, tag: str, directory: Path, new_tag: str) -> PushedImage:
    """Put an image with the layers of ``tag`` and one with the files of ``directory``."""
    manifest, media_type = read_manifest(uploader, tag)
    config = json.loads(read_blob(uploader, manifest["config"]["digest"]))
    layer, diff_id = upload_directory(uploader, directory)
    config["rootfs"]["diff_ids"].append(diff_id)
    config.setdefault("history", []).append({"created_by": f"append_layer.py {directory.name}"})
    new_config = uploader.upload(json.dumps(config).encode())
    manifest["config"] = new_config.descriptor(manifest["config"]["mediaType"])
    manifest["layers"].append(layer.descriptor(LAYERS[media_type]))
    return uploader.put_manifest(manifest, media_type=media_type, tags=[new_tag])


def read_manifest(uploader: LayerUploader, tag: str) -> tuple[dict[str, Any], str]:
    """The manifest of an image for one platform, and its media type."""
    answer = uploader.client.batch_get_image(**uploader.location, imageIds=[{"imageTag": tag}])
    for failure in answer["failures"]:
        raise ValueError(f"{tag}: {failure['failureReason']}")
    (image,) = answer["images"]
    check_digest(image["imageManifest"].encode(), image["imageId"]["imageDigest"])
    manifest = json.loads(image["imageManifest"])
    media_type = image.get("imageManifestMediaType") or manifest["mediaType"]
    if media_type not in LAYERS:
        raise ValueError(f"{tag} is not an image for one platform, but {media_type}")
    return manifest, media_type


def read_blob(uploader: LayerUploader, digest: str) -> bytes:
    """A small blob, such as a config."""
    answer = uploader.client.get_download_url_for_layer(**uploader.location, layerDigest=digest)
    with urllib.request.urlopen(answer["downloadUrl"], timeout=60) as response:
        content: bytes = response.read()
    check_digest(content, digest)
    return content


def check_digest(content: bytes, digest: str) -> None:
    """Raise ``ValueError`` unless this is the content."""
    if f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
        raise ValueError(f"what was downloaded is not {digest}")


def upload_directory(uploader: LayerUploader, directory: Path) -> tuple[UploadedLayer, str]:
    """The layer, and its diff ID: the digest of what was compressed."""
    with (
        uploader.open_layer(compress=True) as file,
        tarfile.open(fileobj=file, mode="w|") as tar,
    ):
        tar.add(directory, ".")
    return file.layer, file.diff_id


def demonstrate() -> None:
    """Append to an image in a local ECR, and compare."""
    with tempfile.TemporaryDirectory() as name, LocalECR() as ecr:
        (Path(name) / "hello").write_text("hello\n")
        uploader = LayerUploader(ecr.client(), "demo")
        layer, diff_id = upload_directory(uploader, Path(name))
        rootfs = {"type": "layers", "diff_ids": [diff_id]}
        config = {"architecture": "amd64", "os": "linux", "rootfs": rootfs}
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": uploader.upload(json.dumps(config).encode()).descriptor(CONFIG),
            "layers": [layer.descriptor(LAYERS[MANIFEST])],
        }
        uploader.put_manifest(manifest, tags=["base"])
        (Path(name) / "hello").write_text("hello again\n")
        image = append(uploader, "base", Path(name), "app")
        appended, _ = read_manifest(uploader, "app")
        layers = [layer["size"] for layer in appended["layers"]]
        print(f"{image.digest} has {len(layers)} layers, {sum(layers)} bytes")


if __name__ == "__main__":
    demonstrate()
