"""Upload a layer that takes longer than one Lambda invocation is allowed to run.

    python examples/lambda_resume.py

Each invocation is simulated by a process with a deadline. It saves the session to a file, where a
real function might use an object in S3. The next invocation loads the session and resumes at the
byte ECR has.
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
OUT_OF_TIME = 75  # the exit status of an invocation that ran out of time


class OutOfTimeError(Exception):
    """The deadline is near. The next invocation resumes the upload."""


def handler(
    client: Any, repository: str, layer: Path, session_file: Path, out_of_time: Callable[[], bool]
) -> UploadedLayer:
    """Run one invocation. In Lambda, ``out_of_time`` calls ``get_remaining_time_in_millis``."""
    uploader = LayerUploader(client, repository)
    if session_file.exists():
        session = UploadSession.from_json(session_file.read_text())
    else:
        session = uploader.initiate(layer_size=layer.stat().st_size)

    def progress(newly_confirmed: int) -> None:
        if newly_confirmed:
            session_file.write_text(session.to_json())
        if out_of_time():
            raise OutOfTimeError

    return uploader.upload(layer, session=session, progress=progress)


def invoke(endpoint_url: str, layer: Path, session_file: Path) -> None:
    """Simulate an invocation that runs out of time after two parts."""
    client = LocalECR().client(endpoint_url=endpoint_url)  # in Lambda: create_client("ecr")

    def confirmed_bytes() -> int:
        if not session_file.exists():
            return 0
        return UploadSession.from_json(session_file.read_text()).next_byte

    confirmed_before = confirmed_bytes()

    def out_of_time() -> bool:
        return confirmed_bytes() >= confirmed_before + 20 * MIB

    try:
        uploaded = handler(client, "demo", layer, session_file, out_of_time)
    except OutOfTimeError:
        size = layer.stat().st_size
        print(f"out of time: ECR has {confirmed_bytes():,} of {size:,} bytes")
        sys.exit(OUT_OF_TIME)
    print(f"uploaded {uploaded.digest}")


def main() -> None:
    """Invoke the function until the upload is complete, then verify the stored layer."""
    with tempfile.TemporaryDirectory() as directory, LocalECR(["demo"]) as ecr:
        layer, session_file = Path(directory) / "layer.tar.gz", Path(directory) / "session.json"
        layer.write_bytes(os.urandom(25 * MIB))
        arguments = ["--invoke", ecr.endpoint_url, str(layer), str(session_file)]
        command = [sys.executable, __file__, *arguments]
        while (status := subprocess.run(command, check=False).returncode) == OUT_OF_TIME:
            pass
        digest = f"sha256:{hashlib.sha256(layer.read_bytes()).hexdigest()}"
        if status != 0 or ecr.layer("demo", digest) != layer.read_bytes():
            sys.exit("the layer did not arrive whole")
        print("the layer arrived whole")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--invoke", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.invoke:
        invoke(options.invoke[0], Path(options.invoke[1]), Path(options.invoke[2]))
    else:
        main()
