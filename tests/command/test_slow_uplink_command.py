"""What the command says about slow uplinks and wrong clocks."""

from __future__ import annotations

from pathlib import Path

from command_line import RunInProcess
from pytest_mock import MockerFixture

from ecr_parts.testing import EcrError, LocalECR

EXPIRED = EcrError("InvalidSignatureException", "Signature expired")


def test_slow_uplink_is_a_calm_line(
    run_in_process: RunInProcess, ecr: LocalECR, path: Path, mocker: MockerFixture
) -> None:
    mocker.patch("ecr_parts._wire.signature.SigningTime.age", 400)
    ecr.respond("UploadLayerPart", EXPIRED)
    status, _, messages = run_in_process(ecr, path, "demo", "--progress=plain")
    assert status == 0
    (line,) = [line for line in messages.splitlines() if line.startswith("the uplink is slow")]
    assert line.endswith(" Mbit/s): one part of 5 MiB at a time")
    assert "expired" not in messages


def test_uplink_that_is_too_slow(
    run_in_process: RunInProcess, ecr: LocalECR, path: Path, mocker: MockerFixture
) -> None:
    mocker.patch("ecr_parts._wire.signature.SigningTime.age", 400)
    ecr.respond("UploadLayerPart", EXPIRED, times=9)
    status, _, messages = run_in_process(ecr, path, "demo")
    assert status == 1
    assert "or nothing else on it. Run the same command again\n" in messages


def test_wrong_clock(run_in_process: RunInProcess, ecr: LocalECR, path: Path) -> None:
    message = "Signature expired: 20260101T000000Z is now earlier than 20260101T010000Z"
    ecr.respond("UploadLayerPart", EcrError("InvalidSignatureException", message))
    status, _, messages = run_in_process(ecr, path, "demo")
    assert status == 1
    assert " s behind: set it, for example by NTP. Run the same command again" in messages
