"""Upload a layer that takes longer than one invocation may, as a Lambda function would.

    python examples/lambda_resume.py

Each invocation is a process of its own, with a deadline. It keeps the session where it likes (a
file here, standing for an object in S3), and the next one goes on at the byte ECR has.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ecr_parts import LayerUploader, UploadedLayer, UploadSession
from ecr_parts.testing import LocalECR

MIB = 1024 * 1024
COME_AGAIN = 75  # the exit status of an invocation that ran out of time


class OutOfTimeError(Exception):
    """The deadline is near: the next invocation goes on."""


def handler(
    client: Any, repository: str, layer: Path, kept: Path, out_of_time: Callable[[], bool]
) -> UploadedLayer:
    """One invocation. In Lambda, ``out_of_time`` looks at ``get_remaining_time_in_millis``."""
    uploader = LayerUploader(client, repository)
    if kept.exists():
        session = UploadSession.from_json(kept.read_text())
    else:
        session = uploader.initiate(layer_size=layer.stat().st_size)

    def progress(confirmed: int) -> None:
        if confirmed:
            kept.write_text(session.to_json())
        if out_of_time():
            raise OutOfTimeError

    return uploader.upload(layer, session=session, progress=progress)


def invoke(url: str, layer: Path, kept: Path) -> None:
    """An invocation whose simulated time is up once it has sent two parts."""
    client = LocalECR().client(endpoint_url=url)  # in Lambda: create_client("ecr")
    before = UploadSession.from_json(kept.read_text()).next_byte if kept.exists() else 0

    def out_of_time() -> bool:
        now = UploadSession.from_json(kept.read_text()).next_byte if kept.exists() else 0
        return now >= before + 20 * MIB

    try:
        uploaded = handler(client, "demo", layer, kept, out_of_time)
    except OutOfTimeError:
        stands = UploadSession.from_json(kept.read_text())
        print(f"out of time: ECR has {stands.next_byte:,} bytes of {stands.layer_size:,}")
        sys.exit(COME_AGAIN)
    print(f"done: {uploaded.digest}")


def main() -> None:
    """Invoke until the layer is there, and compare."""
    with tempfile.TemporaryDirectory() as directory, LocalECR(["demo"]) as ecr:
        layer, kept = Path(directory) / "layer.tar.gz", Path(directory) / "session.json"
        layer.write_bytes(os.urandom(45 * MIB))
        command = [sys.executable, __file__, "--invoke", ecr.endpoint_url, str(layer), str(kept)]
        while (status := subprocess.run(command, check=False).returncode) == COME_AGAIN:
            pass
        digest = f"sha256:{hashlib.sha256(layer.read_bytes()).hexdigest()}"
        if status != 0 or ecr.layer("demo", digest) != layer.read_bytes():
            sys.exit("the layer did not arrive whole")
        print("the layer arrived whole")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--invoke", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.invoke:
        invoke(options.invoke[0], Path(options.invoke[1]), Path(options.invoke[2]))
    else:
        main()
