"""Random uploads through random faults, by deterministic simulation.

A failing seed is named in the failure; ``pytest tests/test_simulation.py --seed N`` replays it.
"""

from __future__ import annotations

from pathlib import Path

from helpers import REPLAYABLE
from simulation import simulate

from ecr_parts import ServiceError


def test_every_layer_arrives_whole_or_one_error_says_why(tmp_path: Path, seeds: range) -> None:
    for seed in seeds:
        outcome = simulate(seed, tmp_path)
        if outcome.error is None:
            continue
        # A few faults in a row never defeat what can be read again; a stream may be lost.
        assert outcome.kind not in REPLAYABLE, f"{outcome.story}: {outcome.error!r}"
        assert isinstance(outcome.error, ServiceError), f"{outcome.story}: {outcome.error!r}"
        assert outcome.error.code in ("UploadNotFoundException", "LayerPartTooSmallException", "")
