"""The log messages of an upload, and what must never be logged."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from botocore.config import Config
from helpers import NO_WAIT, OPERATIONS, SMALL_LIMITS

from ecr_parts import CLIENT_CONFIG, EcrPartsError, LayerUploader
from ecr_parts.testing import Fault, LocalECR

SECRETS = {
    "aws_access_key_id": "AKIASECRETKEYID",
    "aws_secret_access_key": "the-secret-access-key",
    "aws_session_token": "the-session-token",
}
PART = b"payload!"  # 8 bytes, the part size


@pytest.fixture
def ecr() -> Iterator[LocalECR]:
    with LocalECR(limits=SMALL_LIMITS, part_size=8, slow=0.5) as ecr:
        yield ecr


def new_uploader(ecr: LocalECR, read_timeout: float = 60, **settings: Any) -> LayerUploader:
    config = CLIENT_CONFIG.merge(Config(read_timeout=read_timeout, proxies={}))
    client = ecr.client(config=config, **SECRETS)
    return LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT, **settings)


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "ecr_parts" and record.levelno == level
    ]


def test_logs_each_part_at_debug_level(ecr: LocalECR, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "ecr_parts")
    new_uploader(ecr).upload(PART * 3)
    assert messages(caplog, logging.DEBUG) == [
        f"UploadLayerPart in repository 'demo', bytes {first}-{last}: "
        f"the whole part is stored; continuing at byte {last + 1}"
        for first, last in ((0, 7), (8, 15), (16, 23))
    ]
    assert messages(caplog, logging.INFO) == []


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (
            "answer_lost",
            [
                "attempt 1: ConnectionClosedError: Connection was closed before ",
                "attempt 2: ECR already has this part; continuing at byte 16",
            ],
        ),
        (
            "throttled",
            [
                "attempt 1: ThrottlingException: Rate exceeded; trying again in ",
                "attempt 2: the whole part is stored; continuing at byte 16",
            ],
        ),
        (
            "stored_in_part",
            [
                "attempt 1: ConnectionClosedError: ",
                "attempt 2: a fragment of a part is stored, and it is large enough ",
            ],
        ),
    ],
)
def test_logs_retries_and_refused_parts_at_info_level(
    fault: Fault, expected: list[str], ecr: LocalECR, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ecr_parts")
    ecr.fail("UploadLayerPart", fault, call=2)
    new_uploader(ecr).upload(PART * 3)
    for message, start in zip(messages(caplog, logging.INFO), expected, strict=True):
        assert message.startswith(f"UploadLayerPart in repository 'demo', bytes 8-15, {start}")


def test_logs_resuming_and_starting_over_at_info_level(
    ecr: LocalECR, caplog: pytest.LogCaptureFixture, checkpoint: Path
) -> None:
    caplog.set_level(logging.INFO, "ecr_parts")
    ecr.fail("UploadLayerPart", "access_denied", call=3)
    ecr.fail("UploadLayerPart", "upload_forgotten", call=4)
    with pytest.raises(EcrPartsError):
        new_uploader(ecr).upload(PART * 3, checkpoint=checkpoint)
    assert messages(caplog, logging.INFO) == []
    new_uploader(ecr).upload(PART * 3, checkpoint=checkpoint)
    resumed, started_over = messages(caplog, logging.INFO)
    assert resumed.startswith("resuming upload ")
    assert resumed.endswith(" at byte 16")
    assert started_over.startswith("starting over (restart 1 of 3): UploadLayerPart in repository")
    assert "bytes 16-23 failed: UploadNotFoundException" in started_over


@pytest.mark.parametrize("fault", get_args(Fault))
def test_logs_single_lines_without_payload_and_credentials(
    fault: Fault, ecr: LocalECR, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "ecr_parts")
    for operation in OPERATIONS:
        if operation == "UploadLayerPart" or fault != "stored_in_part":
            ecr.fail(operation, fault)
    # Only faults without an end need short timeouts, which a busy machine exceeds by itself.
    endless = fault in ("slow", "answer_drips")
    timeouts: dict[str, float] = {"read_timeout": 0.1, "attempt_timeout": 0.1} if endless else {}
    for _ in range(5):  # because some faults make an upload fail
        try:
            new_uploader(ecr, **timeouts).upload(PART * 3)
        except EcrPartsError:
            continue
        break

    hidden = [*SECRETS.values(), PART.decode(), base64.b64encode(PART).decode()[:8]]
    records = [record for record in caplog.records if record.name.startswith("ecr_parts")]
    assert records
    for record in records:
        text = logging.Formatter().format(record)  # with the traceback, if any
        assert "\n" not in text
        assert not [secret for secret in hidden if secret in text]
