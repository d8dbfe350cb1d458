"""Tests of a tool that pushes to ECR, against a local one: copy what fits yours.

    python -m pytest examples/test_your_tool.py

``local_ecr`` is a strict ECR over real HTTP, fresh for each test, with the repository ``demo``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import botocore.session
import pytest
import tenacity

from ecr_parts import (
    CLIENT_CONFIG,
    LayerUploader,
    Limits,
    ServiceError,
    UploadedLayer,
    default_retrying,
)
from ecr_parts.testing import LocalECR, Unknowns

pytest_plugins = ["ecr_parts.testing.pytest_plugin"]


def push(path: Path, repository: str, retrying: tenacity.Retrying | None = None) -> UploadedLayer:
    """The tool under test. It makes its own client, as most do."""
    client = botocore.session.get_session().create_client("ecr", config=CLIENT_CONFIG)
    return LayerUploader(client, repository, retrying=retrying).upload(path)


WITHOUT_WAITS = default_retrying().copy(sleep=lambda _seconds: None)
"""The same policy, but no test waits for it."""


@pytest.fixture
def ecr(local_ecr: LocalECR, monkeypatch: pytest.MonkeyPatch) -> LocalECR:
    """Any client made in the test talks to it."""
    for name, value in local_ecr.environ().items():
        monkeypatch.setenv(name, value)
    return local_ecr


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "layer.tar.gz"
    path.write_bytes(os.urandom(12 * 1024 * 1024))  # two parts of 10 MiB
    return path


def test_the_layer_arrives_whole_and_is_sent_once(ecr: LocalECR, path: Path) -> None:
    layer = push(path, "demo")
    assert ecr.layer("demo", layer.digest) == path.read_bytes()

    ecr.calls.clear()
    assert push(path, "demo").existed
    assert [call.operation for call in ecr.calls] == ["BatchCheckLayerAvailability"]


def test_an_answer_is_lost_on_the_way(ecr: LocalECR, path: Path) -> None:
    ecr.fail("UploadLayerPart", "answer_lost", call=2)
    ecr.fail("CompleteLayerUpload", "server_error", times=3)
    layer = push(path, "demo", WITHOUT_WAITS)
    assert ecr.layer("demo", layer.digest) == path.read_bytes()


def test_what_the_tool_says_when_it_may_not_push(ecr: LocalECR, path: Path) -> None:
    ecr.fail("InitiateLayerUpload", "access_denied")
    with pytest.raises(ServiceError, match="Allow ecr:InitiateLayerUpload"):
        push(path, "demo")
    with pytest.raises(ServiceError, match="Create the repository"):
        push(path, "no/such/repository")


def test_a_tool_that_is_another_program(local_ecr: LocalECR, path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ecr_parts", "upload", path, "demo"],
        env={**os.environ, **local_ecr.environ()},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    assert local_ecr.layer("demo", done.stdout.strip()) == path.read_bytes()


@pytest.fixture(params=["UploadNotFoundException", "LayerAlreadyExistsException"])
def tiny_ecr(request: pytest.FixtureRequest) -> Iterator[LocalECR]:
    """With limits so small that a few bytes are many parts; and as ECR may answer, or may not."""
    tiny = Limits(min_part=4, max_part=16, max_parts=100, max_layer=1_000)
    unknowns = Unknowns(completed_again=request.param)
    with LocalECR(["team/app"], limits=tiny, part_size=8, unknowns=unknowns) as ecr:
        yield ecr


def test_many_parts_of_a_few_bytes(tiny_ecr: LocalECR) -> None:
    uploader = LayerUploader(tiny_ecr.client(), "team/app", retrying=WITHOUT_WAITS)
    tiny_ecr.fail("UploadLayerPart", "stored_in_part", call=4)
    tiny_ecr.fail("CompleteLayerUpload", "answer_lost")
    layer = uploader.upload(b"a layer of 37 bytes, so of five parts")
    assert tiny_ecr.layer("team/app", layer.digest) == b"a layer of 37 bytes, so of five parts"
