"""Random uploads through random faults, by deterministic simulation.

A failing seed is named in the failure; ``pytest tests/test_simulation.py --seed N`` replays it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.config import Config
from helpers import REPLAYABLE, SMALL
from simulation import HttpClient, Outcome, simulate

from ecr_parts import CLIENT_CONFIG, ServiceError
from ecr_parts.testing import LocalECR


def check(outcome: Outcome) -> None:
    """An upload may fail only for its bad luck, and then as an error of the service's."""
    if outcome.error is not None:
        assert isinstance(outcome.error, ServiceError), f"{outcome.story}: {outcome.error!r}"
        # Three lost uploads or nine failed attempts never defeat what can be read again.
        enough = 1 if outcome.kind not in REPLAYABLE else 4
        assert outcome.struck >= enough, f"{outcome.story}: {outcome.error!r}"


def test_every_layer_arrives_whole_or_one_error_says_why(tmp_path: Path, seeds: range) -> None:
    for seed in seeds:
        check(simulate(seed, tmp_path))


@pytest.fixture
def http() -> Iterator[HttpClient]:
    with LocalECR(limits=SMALL, part_size=8, slow=60) as ecr:
        config = CLIENT_CONFIG.merge(Config(proxies={}, read_timeout=0.1))
        real = ecr.client(config=config)
        yield HttpClient(ecr.registry, ecr=ecr, real=real)


def test_and_over_http(tmp_path: Path, http: HttpClient) -> None:
    for seed in range(40):
        check(simulate(seed, tmp_path, http))


@pytest.mark.soak
def test_two_thousand_over_http(tmp_path: Path, http: HttpClient) -> None:
    for seed in range(2_000):
        check(simulate(seed, tmp_path, http))


@pytest.mark.soak
def test_a_hundred_thousand(tmp_path: Path) -> None:
    for seed in range(1_000, 101_000):
        check(simulate(seed, tmp_path))
