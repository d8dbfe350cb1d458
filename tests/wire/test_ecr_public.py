"""ECR Public: the same calls, with limits and errors of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import NO_WAIT, SMALL_LIMITS, digest_of, random_bytes, write_layer

from ecr_parts import LayerTooLargeError, LayerUploader, ServiceError, UploadedLayer
from ecr_parts.testing import EcrError, Fault, LocalECR

MIB = 1024 * 1024
BLOB = random_bytes(45)
DIGEST = digest_of(BLOB)


def sparse_file(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_client_determines_limits(local_ecr: LocalECR, tmp_path: Path) -> None:
    path = sparse_file(tmp_path / "layer", 10_001 * MIB)
    public = LayerUploader(local_ecr.client("ecr-public"), "demo", retrying=NO_WAIT)
    private = LayerUploader(local_ecr.client(), "demo")
    with pytest.raises(LayerTooLargeError, match=f"at most {10_000 * MIB:,} are allowed"):
        public.upload(path)
    assert local_ecr.calls == []
    # The 1,000 parts that ECR Public allows must be larger than the 4,200 of ECR.
    assert public.initiate(layer_size=10_000 * MIB).part_size > 10 * MIB
    assert private.initiate(layer_size=10_000 * MIB).part_size == 10 * MIB


@pytest.mark.parametrize(
    "fault", ["answer_lost", "reset", "stored_in_part", "upload_forgotten", "throttled"]
)
def test_recovers_from_faults(fault: Fault, ecr: LocalECR, tmp_path: Path) -> None:
    client = ecr.client("ecr-public")
    uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
    ecr.fail("UploadLayerPart", fault, call=2)
    ecr.fail("CompleteLayerUpload", "answer_lost")
    progress_calls: list[int] = []

    layer = uploader.upload(
        write_layer(BLOB, tmp_path),
        checkpoint=tmp_path / "checkpoint",
        progress=progress_calls.append,
    )

    assert layer == UploadedLayer(DIGEST, 45, existed=False)
    assert ecr.layer("demo", DIGEST) == BLOB
    assert sum(progress_calls) == 45
    assert uploader.upload(iter([BLOB])).existed
    assert uploader.missing([DIGEST]) == set()


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("RegistryNotFoundException", "the registry exists"),
        ("UnsupportedCommandException", "does not support layer uploads"),
        ("RepositoryNotFoundException", "Create the repository"),
    ],
)
def test_does_not_retry_permanent_error(code: str, remedy: str, local_ecr: LocalECR) -> None:
    local_ecr.respond("BatchCheckLayerAvailability", EcrError(code, "message"))
    uploader = LayerUploader(local_ecr.client("ecr-public"), "demo", retrying=NO_WAIT)
    with pytest.raises(ServiceError, match=remedy) as raised:
        uploader.upload(BLOB)
    assert raised.value.code == code
    assert len(local_ecr.calls) == 1
