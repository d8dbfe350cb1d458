from __future__ import annotations

import hypothesis
import pytest

pytest_plugins = ["ecr_parts.testing.pytest_plugin"]

# No test is timed; and CI draws the same examples each time, so that a failure is a change's own.
hypothesis.settings.register_profile("default", deadline=None, derandomize=True)
hypothesis.settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help="simulate this one upload only")
    parser.addoption("--simulations", type=int, default=1_000, help="how many to simulate")


@pytest.fixture
def seeds(request: pytest.FixtureRequest) -> range:
    seed: int | None = request.config.getoption("--seed")
    if seed is not None:
        return range(seed, seed + 1)
    return range(request.config.getoption("--simulations"))
