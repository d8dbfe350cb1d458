"""Build an image of two layers and push it, without docker and without temporary files.

    python examples/build_image.py

The layers are compressed and sent while they are written. The second build changes one of them: the
other one is at ECR already, and is not sent again.
"""

from __future__ import annotations

import io
import json
import tarfile

from ecr_parts import LayerFile, LayerUploader, PushedImage
from ecr_parts.testing import LocalECR

TYPE = "application/vnd.oci.image"


def write_layer(uploader: LayerUploader, files: dict[str, bytes]) -> LayerFile:
    with uploader.open_layer(compress=True) as file, tarfile.open(fileobj=file, mode="w|") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)  # without a time, so that the digest is the same again
            member.size = len(content)
            member.mode = 0o755
            tar.addfile(member, io.BytesIO(content))
    return file


def build(uploader: LayerUploader, layers: list[dict[str, bytes]], tag: str) -> PushedImage:
    written = [write_layer(uploader, files) for files in layers]
    rootfs = {"type": "layers", "diff_ids": [file.diff_id for file in written]}
    config = {"architecture": "amd64", "os": "linux", "rootfs": rootfs, "config": {"Cmd": ["/app"]}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{TYPE}.manifest.v1+json",
        "config": uploader.upload(json.dumps(config).encode()).descriptor(f"{TYPE}.config.v1+json"),
        "layers": [file.layer.descriptor(f"{TYPE}.layer.v1.tar+gzip") for file in written],
    }
    sent = sum(file.layer.size for file in written if not file.layer.existed)
    print(f"{tag}: {sent:,} bytes of layers sent")
    return uploader.put_manifest(manifest, tags=[tag])


def main() -> None:
    library = {f"lib/{number}.txt": b"%d\n" % number * 10_000 for number in range(20)}
    with LocalECR(["team/app"]) as ecr:
        uploader = LayerUploader(ecr.client(), "team/app")
        for tag in ("v1", "v2"):
            image = build(uploader, [library, {"app": f"#!/bin/sh\necho {tag}\n".encode()}], tag)
            print(image.digest, *image.tags)


if __name__ == "__main__":
    main()
