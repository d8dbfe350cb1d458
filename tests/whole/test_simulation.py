"""Random uploads through random faults.

The message of a failure names the seed; ``pytest tests/test_simulation.py --seed N`` repeats it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import REPLAYABLE
from pytest_mock import MockerFixture
from simulation import EXPIRED, Outcome, simulate, simulate_over_http

from ecr_parts import ServiceError


@pytest.fixture(autouse=True)
def old_signatures(mocker: MockerFixture) -> None:
    """Refused signatures count as expired on a slow uplink, and not because of the clock."""
    mocker.patch("ecr_parts._wire.signature.SigningTime.age", 400)


def check(outcome: Outcome) -> None:
    """An upload may fail only if enough calls failed, and with ``ServiceError``."""
    if outcome.error is not None:
        assert isinstance(outcome.error, ServiceError), f"{outcome.story}: {outcome.error!r}"
        # With a source that can be read again, an upload survives being lost three times, nine
        # failed attempts of a call, and two refusals of a small part as too old.
        enough = 1 if outcome.source_kind not in REPLAYABLE else 4
        if outcome.error.code == EXPIRED.code:
            enough = min(enough, 3)
        assert outcome.failed_calls >= enough, f"{outcome.story}: {outcome.error!r}"


def test_completes_every_layer_or_raises_service_error(tmp_path: Path, seeds: range) -> None:
    for seed in seeds:
        check(simulate(seed, tmp_path))


def test_completes_every_layer_over_http_or_raises_service_error(tmp_path: Path) -> None:
    for seed in range(40):
        check(simulate_over_http(seed, tmp_path))


@pytest.mark.soak
def test_completes_2_000_uploads_over_http_or_raises_service_error(tmp_path: Path) -> None:
    for seed in range(2_000):
        check(simulate_over_http(seed, tmp_path))


@pytest.mark.soak
def test_completes_100_000_uploads_or_raises_service_error(tmp_path: Path) -> None:
    for seed in range(1_000, 101_000):
        check(simulate(seed, tmp_path))
