"""The examples: each script runs, and another client can pull the image that was pushed."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers import random_bytes, run_on_terminal, write_layer

from ecr_parts.testing import LocalECR

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> Any:
    """Import an example, which is not in a package."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


push_oci_image = load("push_oci_image")


def run(name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run an example. Standard output and standard error are pipes."""
    return subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


# Scripts. ``test_readme`` runs the quickstart without arguments.


def test_lambda_resume() -> None:
    completed = run("lambda_resume")
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.endswith("the layer arrived whole\n")


def test_quickstart_with_path(tmp_path: Path) -> None:
    layer = write_layer(random_bytes(1000), tmp_path)
    missing = run("quickstart", str(tmp_path / "missing"))
    assert missing.returncode == 2
    assert f"{tmp_path / 'missing'} is not a regular file" in missing.stderr
    completed = run("quickstart", str(layer), AWS_PROFILE="does-not-exist")
    assert completed.returncode == 0, completed.stderr
    assert "\x1b" not in completed.stdout + completed.stderr


@pytest.mark.parametrize("colour", [True, False])
def test_quickstart_on_terminal(colour: bool, tmp_path: Path) -> None:
    layer = write_layer(random_bytes(1000), tmp_path)
    command = [sys.executable, EXAMPLES / "quickstart.py", layer]
    environ = {**os.environ, **({} if colour else {"NO_COLOR": "1"})}
    output = run_on_terminal(
        partial(subprocess.Popen, command, env=environ, stdin=subprocess.DEVNULL)
    )
    assert "[##############################] 100%" in output
    assert ("\x1b[32mthe layer arrived whole\x1b[0m" in output) == colour
    assert "killed while the part at byte 0 was in flight" in output
    assert " at byte 0\r\n" in output
    assert "ECR already has this part; continuing at byte 1000" in output


def test_copied_tests_pass(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "test_your_tool.py", tmp_path)
    command = [sys.executable, "-m", "pytest", "-W", "error", "-p", "no:cacheprovider"]
    completed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stdout
    assert "6 passed" in completed.stdout


# push_oci_image.py


def test_push_oci_image_as_command(local_ecr: LocalECR, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    push_oci_image.make_layout(layout)
    command = [str(layout), "demo", "--tag", "v2", "--tag", "latest"]
    completed = run("push_oci_image", *command, **local_ecr.environ())
    assert completed.returncode == 0, completed.stderr
    assert set(local_ecr.registry.repositories["demo"].tags) == {"v2", "latest"}
    failed = run("push_oci_image", str(layout), "none", **local_ecr.environ())
    assert failed.returncode == 1
    assert "push failed: BatchCheckLayerAvailability in repository 'none'" in failed.stderr
    missing = run("push_oci_image", str(tmp_path / "none"), "demo", **local_ecr.environ())
    assert missing.stderr.startswith("push failed: ")
    assert run("push_oci_image", str(layout)).returncode == 2


def test_push_oci_image_sends_no_blob_twice() -> None:
    completed = run("push_oci_image")
    assert completed.returncode == 0, completed.stderr
    assert re.findall(r"^(\d) of (\d) blobs sent", completed.stdout, re.MULTILINE) == [
        ("2", "2"),
        ("0", "2"),
    ]
