"""Upload a layer to a local ECR over real HTTP, lose an answer on the way, and compare.

    python examples/quickstart.py [LAYER]

Without LAYER, a layer of 45 MiB is made first. No AWS account is needed.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tarfile
import tempfile
from pathlib import Path

from ecr_parts import LayerUploader
from ecr_parts.testing import LocalECR

MIB = 1024 * 1024


def make_layer(directory: Path) -> Path:
    """A tar.gz with one file in it, as an image layer is."""
    path = directory / "layer.tar.gz"
    content = os.urandom(45 * MIB)
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        member = tarfile.TarInfo("opt/model.bin")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return path


def main(path: Path) -> None:
    """Upload ``path`` in parts."""
    with LocalECR(repositories=["demo"]) as ecr:
        # With AWS: client = botocore.session.get_session().create_client("ecr")
        client = ecr.client()
        ecr.fail("UploadLayerPart", "answer_lost", call=3)
        print(f"{path.name}: {path.stat().st_size:,} bytes, to {ecr.endpoint_url}")

        layer = LayerUploader(client, "demo").upload(path)

        for sent in layer.parts:
            print(
                f"  bytes {sent.part.first_byte:>11,} to {sent.part.last_byte:>11,}  "
                f"{sent.seconds:6.2f} s  attempts: {sent.attempts}"
            )
        for call in ecr.calls:
            if call.outcome != "ok" and call.first_byte is not None:
                print(f"  on the way, at byte {call.first_byte:,}: {call.outcome}")
        arrived = hashlib.sha256(ecr.layer("demo", layer.digest)).hexdigest()
        sent_digest = hashlib.sha256(path.read_bytes()).hexdigest()
    print(f"sent    sha256:{sent_digest}")
    print(f"arrived sha256:{arrived}")
    if arrived != sent_digest:
        sys.exit("the layer did not arrive whole")
    print("the layer arrived whole")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as directory:
            main(make_layer(Path(directory)))
