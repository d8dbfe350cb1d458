"""Push an image to Amazon ECR without docker, resumably.

    python examples/push_oci_image.py [IMAGE REPOSITORY] [--tag TAG] [--public]

IMAGE is what docker save, buildx, podman, skopeo and others write. Without IMAGE, the script
creates a small image, and pushes it to a local ECR twice. The second push sends no blob.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path

import botocore.session

from ecr_parts import CLIENT_CONFIG, EcrPartsError, LayerUploader, PushedImage
from ecr_parts.testing import LocalECR


def push(uploader: LayerUploader, image: Path, tags: list[str] | None) -> PushedImage:
    """Push an image, and print what was sent. If it is killed, the next push continues."""
    pushed = uploader.push_image(image, tags=tags, checkpoint_dir=f"{image}.checkpoints")
    sent = [layer.size for layer in pushed.layers if not layer.existed]
    print(f"{len(sent)} of {len(pushed.layers)} blobs sent, {sum(sent):,} bytes")
    print(pushed.digest, *pushed.tags)
    return pushed


def make_layout(layout: Path) -> None:
    """Create the OCI image layout of a small image."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def add(content: bytes, media_type: str) -> dict[str, object]:
        value = hashlib.sha256(content).hexdigest()
        (blobs / value).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{value}", "size": len(content)}

    media_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": add(b"{}", "application/vnd.oci.empty.v1+json"),
        "layers": [add(b"hello\n" * 1_000, "text/plain")],
        "artifactType": "application/vnd.example.greeting",
    }
    descriptor = add(json.dumps(manifest).encode(), media_type)
    descriptor["annotations"] = {"org.opencontainers.image.ref.name": "v1"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", nargs="?", type=Path, metavar="IMAGE")
    parser.add_argument("repository", nargs="?", metavar="REPOSITORY")
    parser.add_argument("--tag", action="append", dest="tags", help="may be repeated")
    parser.add_argument("--public", action="store_true", help="push to ECR Public")
    options = parser.parse_args()
    if options.image is None:
        with tempfile.TemporaryDirectory() as directory, LocalECR() as ecr:
            make_layout(Path(directory) / "layout")
            for _ in range(2):
                push(LayerUploader(ecr.client(), "demo"), Path(directory) / "layout", options.tags)
        return
    if options.repository is None:
        parser.error("IMAGE requires REPOSITORY")
    client = botocore.session.get_session().create_client(
        "ecr-public" if options.public else "ecr", config=CLIENT_CONFIG
    )
    try:
        push(LayerUploader(client, options.repository), options.image, options.tags)
    except (EcrPartsError, OSError) as error:
        sys.exit(f"push failed: {error}")


if __name__ == "__main__":
    main()
