"""``max_bandwidth`` limits what all layers of an uploader send together."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import NO_WAIT, SMALL_LIMITS, StopUploadError, digest_of, random_bytes
from pytest_mock import MockerFixture

from ecr_parts import LayerUploader, Limits
from ecr_parts._wire.bandwidth import SHARE_SIZE, Bandwidth
from ecr_parts.testing import LocalECR

BLOB = random_bytes(45)
LIMITS = Limits(min_part=1_000, max_part=100_000, max_parts=60, max_layer=10**6)


def test_pieces_are_sent_one_after_another(mocker: MockerFixture) -> None:
    clock = mocker.patch("ecr_parts._wire.bandwidth.time")
    clock.monotonic.return_value = 100.0
    bandwidth = Bandwidth(SHARE_SIZE)
    assert [bandwidth.reserve(SHARE_SIZE) for _ in range(3)] == [0.0, 1.0, 2.0]
    clock.monotonic.return_value = 102.5
    assert bandwidth.reserve(SHARE_SIZE // 2) == 0.5


def test_link_that_was_not_used_gives_no_credit(mocker: MockerFixture) -> None:
    clock = mocker.patch("ecr_parts._wire.bandwidth.time")
    clock.monotonic.side_effect = [0.0, 1_000.0, 1_000.0]
    bandwidth = Bandwidth(SHARE_SIZE)
    assert [bandwidth.reserve(SHARE_SIZE) for _ in range(3)] == [0.0, 0.0, 1.0]


@pytest.fixture
def pauses(mocker: MockerFixture) -> list[float]:
    """The pauses of all requests, which take no time."""
    seconds: list[float] = []
    mocker.patch("ecr_parts._wire.request.time").sleep.side_effect = seconds.append
    return seconds


def test_requests_pause(pauses: list[float]) -> None:
    with LocalECR(limits=LIMITS, part_size=90_000) as ecr:
        uploader = LayerUploader(ecr.client(), "demo", limits=LIMITS, max_bandwidth=100_000)
        blob = random_bytes(200_000)
        layer = uploader.upload(blob)
        assert ecr.layer("demo", layer.digest) == blob
    assert pauses
    assert max(pauses) <= 0.5  # so that a request that was abandoned ends soon


def test_requests_do_not_pause_without_limit(pauses: list[float], uploader: LayerUploader) -> None:
    uploader.upload(BLOB)
    assert pauses == []


def test_pauses_do_not_count_as_time_for_an_attempt() -> None:
    with LocalECR(limits=LIMITS, part_size=24_000) as ecr:
        uploader = LayerUploader(
            ecr.client(),
            "demo",
            limits=LIMITS,
            retrying=NO_WAIT,
            max_bandwidth=SHARE_SIZE,
            attempt_timeout=0.3,
        )
        layer = uploader.upload(random_bytes(60_000))  # a part takes half a second
        assert [sent.attempts for sent in layer.parts] == [1, 1, 1]


def test_upload_can_be_stopped_while_it_pauses() -> None:
    def stop(_newly_confirmed: int) -> None:
        if ecr.calls_of("UploadLayerPart"):
            raise StopUploadError

    with LocalECR(limits=LIMITS, part_size=90_000) as ecr:
        uploader = LayerUploader(ecr.client(), "demo", limits=LIMITS, max_bandwidth=SHARE_SIZE)
        with pytest.raises(StopUploadError):
            uploader.upload(random_bytes(900_000), progress=stop)
    assert len(ecr.calls_of("UploadLayerPart")) <= 2


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "max_bandwidth must be a positive number of bytes per second"),
        (float("nan"), ValueError, "max_bandwidth must be a positive number"),
        ("1M", TypeError, "max_bandwidth must be a number of bytes per second"),
        (65_535, ValueError, "max_bandwidth must be at least 65,536 bytes per second for 1"),
    ],
)
def test_rejects_bad_max_bandwidth(
    value: Any, error: type[Exception], message: str, ecr: LocalECR
) -> None:
    with pytest.raises(error, match=message):
        LayerUploader(ecr.client(), "demo", max_bandwidth=value)


def test_rejects_more_workers_than_max_bandwidth_serves(ecr: LocalECR) -> None:
    uploader = LayerUploader(
        ecr.client(), "demo", limits=SMALL_LIMITS, max_bandwidth=4 * SHARE_SIZE
    )
    with pytest.raises(ValueError, match="327,680 bytes per second for 5 workers"):
        uploader.upload_many([BLOB], max_workers=5)
    assert ecr.calls == []
    assert uploader.upload_many([BLOB], max_workers=4)[0].digest == digest_of(BLOB)


def test_rejects_max_bandwidth_for_clients_other_than_botocores(mocker: MockerFixture) -> None:
    with pytest.raises(TypeError, match="max_bandwidth requires a botocore client"):
        LayerUploader(mocker.Mock(), "demo", max_bandwidth=10**6)


def test_rejects_overlap_that_is_no_bool(ecr: LocalECR) -> None:
    with pytest.raises(TypeError, match="overlap must be True or False, not 2"):
        LayerUploader(ecr.client(), "demo", overlap=2)  # type: ignore[arg-type]  # the point
