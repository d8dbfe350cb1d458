"""Example tests of a tool that pushes to ECR. Copy the ones that fit your tool.

    python -m pytest examples/test_your_tool.py

The fixture ``local_ecr`` is a strict local ECR, reached over real HTTP. Each test gets a new one,
with one repository, ``demo``.
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
    """The tool under test. Like most tools, it creates its own client."""
    client = botocore.session.get_session().create_client("ecr", config=CLIENT_CONFIG)
    return LayerUploader(client, repository, retrying=retrying).upload(path)


RETRY_WITHOUT_WAITING = default_retrying().copy(sleep=lambda _seconds: None)
"""The default policy without its waits, so that the tests are fast."""


@pytest.fixture
def ecr(local_ecr: LocalECR, monkeypatch: pytest.MonkeyPatch) -> LocalECR:
    """``local_ecr``, used by every client that the test or the tool creates."""
    for name, value in local_ecr.environ().items():
        monkeypatch.setenv(name, value)
    return local_ecr


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "layer.tar.gz"
    path.write_bytes(os.urandom(12 * 1024 * 1024))  # two parts: 10 MiB and 2 MiB
    return path


def test_uploads_layer_only_once(ecr: LocalECR, path: Path) -> None:
    layer = push(path, "demo")
    assert ecr.layer("demo", layer.digest) == path.read_bytes()

    ecr.calls.clear()
    assert push(path, "demo").existed
    assert [call.operation for call in ecr.calls] == ["BatchCheckLayerAvailability"]


def test_retries_after_lost_answer(ecr: LocalECR, path: Path) -> None:
    ecr.fail("UploadLayerPart", "answer_lost", call=2)
    ecr.fail("CompleteLayerUpload", "server_error", times=3)
    layer = push(path, "demo", RETRY_WITHOUT_WAITING)
    assert len(ecr.calls_of("UploadLayerPart")) == 3  # the second part is sent twice
    assert ecr.layer("demo", layer.digest) == path.read_bytes()


def test_reports_missing_permission_and_missing_repository(ecr: LocalECR, path: Path) -> None:
    ecr.fail("InitiateLayerUpload", "access_denied")
    with pytest.raises(ServiceError, match="Allow ecr:InitiateLayerUpload"):
        push(path, "demo")
    with pytest.raises(ServiceError, match="Create the repository"):
        push(path, "no/such/repository")


def test_uploads_from_another_process(local_ecr: LocalECR, path: Path) -> None:
    completed = subprocess.run(
        [sys.executable, "-m", "ecr_parts", "upload", path, "demo"],
        env={**os.environ, **local_ecr.environ()},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    digest = completed.stdout.strip()
    assert local_ecr.layer("demo", digest) == path.read_bytes()


@pytest.fixture(params=["UploadNotFoundException", "LayerAlreadyExistsException"])
def tiny_ecr(request: pytest.FixtureRequest) -> Iterator[LocalECR]:
    """A local ECR with tiny limits, so that a few bytes make many parts.

    It is not known which error ECR returns if an upload is completed twice, so both are tested.
    """
    limits = Limits(min_part=4, max_part=16, max_parts=100, max_layer=1_000)
    unknowns = Unknowns(completed_again=request.param)
    with LocalECR(["team/app"], limits=limits, part_size=8, unknowns=unknowns) as ecr:
        yield ecr


def test_resumes_after_stored_fragment(tiny_ecr: LocalECR) -> None:
    content = b"this layer is sent in five tiny parts"  # 37 bytes, in parts of up to 8 bytes
    uploader = LayerUploader(tiny_ecr.client(), "team/app", retrying=RETRY_WITHOUT_WAITING)
    tiny_ecr.fail("UploadLayerPart", "stored_in_part", call=4)
    tiny_ecr.fail("CompleteLayerUpload", "answer_lost")
    layer = uploader.upload(content)
    assert tiny_ecr.layer("team/app", layer.digest) == content
