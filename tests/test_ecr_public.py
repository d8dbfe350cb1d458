"""ECR Public: the same calls at another service, with limits and errors of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import PATIENT, SMALL, bytes_of, digest_of, path_to

from ecr_parts import LayerTooLargeError, LayerUploader, ServiceError, UploadedLayer
from ecr_parts.testing import LocalECR

MIB = 1024 * 1024
BLOB = bytes_of(45)
DIGEST = digest_of(BLOB)


@pytest.fixture
def ecr() -> Iterator[LocalECR]:
    with LocalECR() as ecr:
        yield ecr


def sparse(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_its_limits_are_chosen_by_the_clients_service(ecr: LocalECR, tmp_path: Path) -> None:
    path = sparse(tmp_path / "layer", 10_001 * MIB)
    public = LayerUploader(ecr.client("ecr-public"), "demo", retrying=PATIENT)
    with pytest.raises(LayerTooLargeError, match=f"at most {10_000 * MIB:,} are allowed"):
        public.upload(path)
    assert ecr.calls == []
    assert public.initiate(layer_size=10_000 * MIB).part_size > 10 * MIB  # of 1,000 parts
    assert LayerUploader(ecr.client(), "demo").initiate(layer_size=10_000 * MIB).part_size == (
        10 * MIB
    )


@pytest.mark.parametrize(
    "fault", ["answer_lost", "reset", "stored_in_part", "upload_forgotten", "throttled"]
)
def test_faults_checkpoints_and_streams(fault: Any, tmp_path: Path) -> None:
    with LocalECR(limits=SMALL, part_size=8) as ecr:
        client = ecr.client("ecr-public")
        uploader = LayerUploader(client, "demo", limits=SMALL, retrying=PATIENT)
        ecr.fail("UploadLayerPart", fault, call=2)
        ecr.fail("CompleteLayerUpload", "answer_lost")
        heard: list[int] = []

        layer = uploader.upload(
            path_to(BLOB, tmp_path), checkpoint=tmp_path / "checkpoint", progress=heard.append
        )

        assert layer == UploadedLayer(DIGEST, 45, existed=False)
        assert ecr.layer("demo", DIGEST) == BLOB
        assert sum(heard) == 45
        assert uploader.upload(iter([BLOB])).existed
        assert uploader.missing([DIGEST]) == set()


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("RegistryNotFoundException", "the registry exists"),
        ("UnsupportedCommandException", "does not accept such uploads"),
        ("RepositoryNotFoundException", "Create the repository"),
    ],
)
def test_its_errors_are_typed_and_not_retried(code: str, remedy: str, ecr: LocalECR) -> None:
    from ecr_parts.testing._registry import EcrError

    def refuse(*_arguments: object, **_more: object) -> dict[str, object]:
        raise EcrError(code, "as told")

    ecr.registry.call = refuse  # type: ignore[method-assign]  # for every call
    uploader = LayerUploader(ecr.client("ecr-public"), "demo", retrying=PATIENT)
    with pytest.raises(ServiceError, match=remedy) as raised:
        uploader.upload(BLOB)
    assert raised.value.code == code
    assert len(ecr.calls) == 1
