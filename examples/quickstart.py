"""Upload a layer to a local ECR, lose an answer on the way, kill the upload, and go on with it.

    python examples/quickstart.py [LAYER]

Without LAYER, a layer of 45 MiB is made first. No AWS account is needed: the local ECR is part of
the library, and is reached over real HTTP. It answers slowly here, so that there is something to
see.
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


def say(text: str, style: int | None = None) -> None:
    """Print, in colour on a terminal."""
    colour = style is not None and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(f"\x1b[{style}m{text}\x1b[0m" if colour else text, flush=True)


def make_layer(directory: Path) -> Path:
    """A tar.gz with one file in it, as an image layer is."""
    path = directory / "layer.tar.gz"
    content = os.urandom(45 * MIB)
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        member = tarfile.TarInfo("opt/model.bin")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return path


def upload(path: Path, checkpoint: Path, ecr: LocalECR) -> subprocess.Popen[bytes]:
    """The upload, in a process of its own."""
    say(f"\n$ python -m ecr_parts upload {path.name} demo --checkpoint {checkpoint.name}", BOLD)
    own = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return subprocess.Popen(
        [sys.executable, "-m", "ecr_parts", "upload", path, "demo", "--checkpoint", checkpoint],
        env={**own, **ecr.environ()},
    )


def kill_at(byte: int, uploading: subprocess.Popen[bytes], ecr: LocalECR) -> None:
    """Kill the upload while the part that begins at ``byte`` is on the way."""
    while not any(call.first_byte == byte for call in ecr.calls):
        if uploading.poll() is not None:
            sys.exit("the upload ended by itself")
        time.sleep(0.01)
    uploading.kill()
    uploading.wait()
    say(("\n" if sys.stderr.isatty() else "") + f"killed, with byte {byte:,} on the way", RED)


def main(path: Path, checkpoint: Path) -> None:
    """Upload ``path`` in parts, and compare what arrived."""
    parts = Chunker(path.stat().st_size, part_size=10 * MIB)
    with LocalECR(repositories=["demo"], slow=0.5) as ecr:
        say(f"{path.name}: {parts.layer_size:,} bytes, to a local ECR at {ecr.endpoint_url}")
        say(f"the answer to part {min(3, len(parts))} will be lost")
        ecr.fail("UploadLayerPart", "answer_lost", call=min(3, len(parts)))
        ecr.fail("UploadLayerPart", "slow", times=1_000)

        kill_at(parts[:4][-1].first_byte, upload(path, checkpoint, ecr), ecr)
        if upload(path, checkpoint, ecr).wait() != 0:
            sys.exit("the second upload failed, too")

        sent = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        arrived = f"sha256:{hashlib.sha256(ecr.layer('demo', sent)).hexdigest()}"
    say(f"\nsent    {sent}\narrived {arrived}")
    if arrived != sent:
        sys.exit("the layer did not arrive whole")
    say("the layer arrived whole", GREEN)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("layer", type=Path, nargs="?", metavar="LAYER")
    given = parser.parse_args().layer
    if given is not None and not (given.is_file() and given.stat().st_size):
        parser.error(f"{given} is no file, or an empty one")
    with tempfile.TemporaryDirectory() as directory:
        layer = given or make_layer(Path(directory))
        main(layer, Path(directory) / "layer.checkpoint")
