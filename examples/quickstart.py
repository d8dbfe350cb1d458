"""Upload a layer to a local ECR, kill the upload, and resume it.

    python examples/quickstart.py [LAYER]

Without LAYER, the script creates a layer of 45 MiB. No AWS account is needed: the local ECR is part
of the library and is reached over real HTTP. It loses the answer to one part, and it answers slowly
so that the progress is visible.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from ecr_parts import Chunker
from ecr_parts.testing import LocalECR

MIB = 1024 * 1024
BOLD, RED, GREEN = 1, 31, 32


def echo(text: str, style: int | None = None) -> None:
    """Print a line, in ``style`` if standard output is a terminal."""
    styled = style is not None and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(f"\x1b[{style}m{text}\x1b[0m" if styled else text, flush=True)


def make_layer(directory: Path) -> Path:
    """Create a tar.gz file with one file in it, like an image layer."""
    path = directory / "layer.tar.gz"
    content = os.urandom(45 * MIB)
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        member = tarfile.TarInfo("opt/model.bin")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return path


def start_upload(path: Path, checkpoint: Path, ecr: LocalECR) -> subprocess.Popen[bytes]:
    """Start the upload in another process."""
    echo(f"\n$ ecr-parts upload {path.name} demo --checkpoint {checkpoint.name}", BOLD)
    without_aws = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return subprocess.Popen(
        [sys.executable, "-m", "ecr_parts", "upload", path, "demo", "--checkpoint", checkpoint],
        env={**without_aws, **ecr.environ()},
    )


def kill_during_part(first_byte: int, process: subprocess.Popen[bytes], ecr: LocalECR) -> None:
    """Kill the upload while it sends the part that starts at ``first_byte``."""
    while not any(call.first_byte == first_byte for call in ecr.calls_of("UploadLayerPart")):
        if process.poll() is not None:
            sys.exit("the upload ended before it could be killed")
        time.sleep(0.01)  # until the local ECR has received the part
    process.kill()
    process.wait()
    newline = "\n" if sys.stderr.isatty() else ""  # ends the line of the progress bar
    echo(f"{newline}killed while the part at byte {first_byte:,} was in flight", RED)


def main(path: Path, checkpoint: Path) -> None:
    """Upload ``path`` in two runs, and compare its digest with that of the stored layer."""
    parts = Chunker(path.stat().st_size, part_size=10 * MIB)
    with LocalECR(repositories=["demo"], slow=0.5) as ecr:
        size = f"{parts.layer_size:,} bytes"
        echo(f"uploading {path.name} ({size}) to a local ECR at {ecr.endpoint_url}")
        lost = min(3, len(parts))
        echo(f"the answer to part {lost} will be lost")
        ecr.fail("UploadLayerPart", "answer_lost", call=lost)
        ecr.fail("UploadLayerPart", "slow", times=1_000)

        killed_part = parts[:4][-1]  # the fourth part, or the last one of a smaller layer
        kill_during_part(killed_part.first_byte, start_upload(path, checkpoint, ecr), ecr)
        if start_upload(path, checkpoint, ecr).wait() != 0:
            sys.exit("the resumed upload failed")

        sent = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        arrived = f"sha256:{hashlib.sha256(ecr.layer('demo', sent)).hexdigest()}"
    echo(f"\nsent    {sent}\narrived {arrived}")
    if arrived != sent:
        sys.exit("the layer did not arrive whole")
    echo("the layer arrived whole", GREEN)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("layer", type=Path, nargs="?", metavar="LAYER")
    layer: Path | None = parser.parse_args().layer
    if layer is not None and not (layer.is_file() and layer.stat().st_size):
        parser.error(f"{layer} is not a regular file or is empty")
    with tempfile.TemporaryDirectory() as directory:
        main(layer or make_layer(Path(directory)), Path(directory) / "layer.checkpoint")
