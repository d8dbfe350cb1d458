"""A CI job that keeps the state directory between its runs, so that a push that was killed resumes.

In a real pipeline, the cache is a directory that the CI system saves also after a failure, such as
``actions/cache/save`` with ``if: always()``, and the job is one line:

    XDG_STATE_HOME="$CACHE" ecr-parts push image.tar team/app:v1

Here, the first run ends in the middle, because the credentials of the job expire.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from ecr_parts.testing import LocalECR

MIB = 1024 * 1024


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def save_image(path: Path) -> None:
    """Write a docker archive, as a build does that has the same result in both runs."""
    layer = os.urandom(25 * MIB)
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]}
    config = {"architecture": "amd64", "os": "linux", "rootfs": rootfs}
    document = [{"Config": "config.json", "RepoTags": ["app:v1"], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as archive:
        add(archive, "layer.tar", layer)
        add(archive, "config.json", json.dumps(config).encode())
        add(archive, "manifest.json", json.dumps(document).encode())


def run_job(image: Path, cache: Path, ecr: LocalECR) -> int:
    """Run the job. Returns its exit status."""
    command = [sys.executable, "-m", "ecr_parts", "push", str(image), "demo:v1"]
    environ = {**os.environ, **ecr.environ(), "XDG_STATE_HOME": str(cache)}
    return subprocess.run(command, env=environ, check=False).returncode


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary, LocalECR() as ecr:
        image, cache = Path(temporary, "image.tar"), Path(temporary, "cache")
        save_image(image)
        ecr.fail("UploadLayerPart", "expired_token", call=3)
        assert run_job(image, cache, ecr) == 1
        sent = len(ecr.calls_of("UploadLayerPart"))
        assert run_job(image, cache, ecr) == 0
        again = ecr.calls_of("UploadLayerPart")[sent:]
        first = min(call.first_byte for call in again if call.first_byte)
        print(f"the second run continued at byte {first:,}")


if __name__ == "__main__":
    main()
