from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest
from helpers import PATIENT, SMALL

from ecr_parts import LayerUploader
from ecr_parts.testing import LocalECR

pytest_plugins = ["ecr_parts.testing.pytest_plugin"]

# No test is timed; and CI draws the same examples each time, so that a failure is a change's own.
hypothesis.settings.register_profile("default", deadline=None, derandomize=True)
hypothesis.settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help="simulate this one upload only")
    parser.addoption("--simulations", type=int, default=1_000, help="how many to simulate")


@pytest.fixture(scope="session", autouse=True)
def _options_of_its_own() -> Iterator[None]:
    """A pytest that a test runs takes none of this one's options: coverage of its own, for one."""
    with pytest.MonkeyPatch.context() as environ:
        environ.delenv("PYTEST_ADDOPTS", raising=False)
        yield


@pytest.fixture
def ecr() -> Iterator[LocalECR]:
    """With small limits: six parts of 8 bytes for 45."""
    with LocalECR(limits=SMALL, part_size=8) as ecr:
        yield ecr


@pytest.fixture
def uploader(ecr: LocalECR) -> LayerUploader:
    return LayerUploader(ecr.client(), "demo", limits=SMALL, retrying=PATIENT)


@pytest.fixture
def seeds(request: pytest.FixtureRequest) -> range:
    seed: int | None = request.config.getoption("--seed")
    if seed is not None:
        return range(seed, seed + 1)
    return range(request.config.getoption("--simulations"))
