"""What is logged, for those who look into an upload that will not go: and what never is."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from botocore.config import Config
from helpers import OPERATIONS, PATIENT, SMALL

from ecr_parts import CLIENT_CONFIG, EcrPartsError, LayerUploader
from ecr_parts.testing import Fault, LocalECR

SECRETS = {
    "aws_access_key_id": "AKIASECRETKEYID",
    "aws_secret_access_key": "the-secret-access-key",
    "aws_session_token": "the-session-token",
}
PART = b"payload!"  # of eight bytes, as large as a part


@pytest.fixture
def ecr() -> Iterator[LocalECR]:
    with LocalECR(limits=SMALL, part_size=8, slow=0.5) as ecr:
        yield ecr


def uploader_of(ecr: LocalECR, **settings: Any) -> LayerUploader:
    impatient = CLIENT_CONFIG.merge(Config(read_timeout=0.1, proxies={}))
    client = ecr.client(config=impatient, **SECRETS)
    return LayerUploader(client, "demo", limits=SMALL, retrying=PATIENT, **settings)


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "ecr_parts" and record.levelno == level
    ]


def test_one_line_a_part_at_debug(ecr: LocalECR, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "ecr_parts")
    uploader_of(ecr).upload(PART * 3)
    assert lines(caplog, logging.DEBUG) == [
        f"UploadLayerPart in repository 'demo', bytes {first}-{last}, attempt 1: "
        f"ECR accepted the part and has the layer up to byte {last}: the whole part "
        "is stored; continuing after the part"
        for first, last in ((0, 7), (8, 15), (16, 23))
    ]
    assert lines(caplog, logging.INFO) == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            "answer_lost",
            [
                "attempt 1: ConnectionClosedError: Connection was closed before ",
                "attempt 2: ECR refused the part and has the layer up to byte 15: the whole ",
            ],
        ),
        (
            "throttled",
            [
                "attempt 1: ThrottlingException: Rate exceeded; trying again in ",
                "attempt 2: ECR accepted the part and has the layer up to byte 15: the whole",
            ],
        ),
        (
            "stored_in_part",
            [
                "attempt 1: ConnectionClosedError: ",
                "attempt 2: ECR refused the part and has the layer up to byte 11: a fragment",
            ],
        ),
    ],
)
def test_retries_and_reconciliations_at_info(
    fault: Fault, said: list[str], ecr: LocalECR, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ecr_parts")
    ecr.fail("UploadLayerPart", fault, call=2)
    uploader_of(ecr).upload(PART * 3)
    logged = lines(caplog, logging.INFO)
    assert len(logged) == len(said)
    for line, beginning in zip(logged, said, strict=True):
        place = "UploadLayerPart in repository 'demo', bytes 8-15, "
        assert line.startswith(place + beginning)


def test_a_start_over_and_a_resumption_at_info(
    ecr: LocalECR, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO, "ecr_parts")
    checkpoint = tmp_path / "checkpoint"
    ecr.fail("UploadLayerPart", "access_denied", call=3)
    ecr.fail("UploadLayerPart", "upload_forgotten", call=4)
    with pytest.raises(EcrPartsError):
        uploader_of(ecr).upload(PART * 3, checkpoint=checkpoint)
    assert lines(caplog, logging.INFO) == []
    uploader_of(ecr).upload(PART * 3, checkpoint=checkpoint)
    resumed, started_over = lines(caplog, logging.INFO)
    assert resumed.startswith("resuming upload ")
    assert resumed.endswith(" at byte 16")
    assert started_over.startswith("starting over (restart 1 of 3): UploadLayerPart in repository")
    assert "bytes 16-23 failed: UploadNotFoundException" in started_over


@pytest.mark.parametrize("fault", get_args(Fault))
def test_no_payload_no_credential_and_one_line_each(
    fault: Fault, ecr: LocalECR, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "ecr_parts")
    for operation in OPERATIONS:
        if operation == "UploadLayerPart" or fault != "stored_in_part":
            ecr.fail(operation, fault)
    for _ in range(5):  # some faults end an upload
        try:
            uploader_of(ecr, attempt_timeout=0.2).upload(PART * 3)
        except EcrPartsError:
            continue
        break

    hidden = [*SECRETS.values(), PART.decode(), base64.b64encode(PART).decode()[:8]]
    records = [record for record in caplog.records if record.name.startswith("ecr_parts")]
    assert records
    for record in records:
        text = logging.Formatter().format(record)  # with a traceback, if there were one
        assert "\n" not in text
        assert not [secret for secret in hidden if secret in text]
