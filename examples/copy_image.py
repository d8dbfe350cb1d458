"""Copy an image from one repository to another, in any region or account, without docker.

``copy(LayerUploader.for_repository(SOURCE), LayerUploader.for_repository(TARGET), TAG)`` copies all
platforms, byte for byte. Each blob that the target lacks is sent while it is downloaded, without a
temporary file. The source cannot be in ECR Public, whose API has no download. Here, both are in a
local ECR.
"""

from __future__ import annotations

import hashlib
import json
import sys
import urllib.request
from typing import Any

from ecr_parts import LayerUploader, PushedImage
from ecr_parts.testing import LocalECR

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def copy(source: LayerUploader, target: LayerUploader, tag: str) -> PushedImage:
    """Copy the image, or the index and all images in it, that have ``tag``."""
    return copy_one(source, target, {"imageTag": tag}, [tag])


def copy_one(
    source: LayerUploader, target: LayerUploader, image_id: dict[str, str], tags: list[str]
) -> PushedImage:
    """Copy a manifest, after what it refers to."""
    text, media_type = read_manifest(source, image_id)
    document = json.loads(text)
    for child in document.get("manifests") or ():
        copy_one(source, target, {"imageDigest": child["digest"]}, [])
    if "config" in document:
        copy_blobs(source, target, [document["config"], *document["layers"]])
    return target.put_manifest(text, media_type=media_type, tags=tags)


def read_manifest(source: LayerUploader, image_id: dict[str, str]) -> tuple[str, str | None]:
    """A manifest or an index, byte for byte, and its media type."""
    answer = source.client.batch_get_image(**source.location, imageIds=[image_id])
    for failure in answer["failures"]:
        raise ValueError(f"{', '.join(image_id.values())}: {failure['failureReason']}")
    (image,) = answer["images"]
    text, digest = image["imageManifest"], image["imageId"]["imageDigest"]
    if f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" != digest:
        raise ValueError(f"what was downloaded is not {digest}")
    return text, image.get("imageManifestMediaType")


def copy_blobs(source: LayerUploader, target: LayerUploader, blobs: list[dict[str, Any]]) -> None:
    """Send the blobs that the target lacks. ECR compares each with its digest."""
    sizes = {blob["digest"]: blob["size"] for blob in blobs}
    for digest in target.missing(sizes):
        answer = source.client.get_download_url_for_layer(**source.location, layerDigest=digest)
        with urllib.request.urlopen(answer["downloadUrl"], timeout=60) as response:
            target.upload(response, digest=digest, size=sizes[digest])
        print(f"copied {digest}, {sizes[digest]:,} bytes")


def demonstrate() -> None:
    """Copy an index of two images in a local ECR, twice."""
    with LocalECR(["team/app", "mirror/app"]) as ecr:
        source = LayerUploader(ecr.client(), "team/app")
        target = LayerUploader(ecr.client(), "mirror/app")
        images = []
        for architecture in ("amd64", "arm64"):
            platform = {"architecture": architecture, "os": "linux"}
            config = source.upload(json.dumps(platform).encode())
            layer = source.upload(f"the files for {architecture}".encode())
            manifest = {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
                "layers": [layer.descriptor("application/vnd.oci.image.layer.v1.tar+gzip")],
            }
            images.append({**source.put_manifest(manifest).descriptor(), "platform": platform})
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": images}
        pushed = source.put_manifest(index, tags=["v1"])
        for _ in range(2):
            copied = copy(source, target, "v1")
            if copied.digest != pushed.digest:
                sys.exit("the image was changed")
            print(f"{copied.digest} is in both repositories")


if __name__ == "__main__":
    demonstrate()
