"""Fixtures for the tests of images: a LocalECR with parts of a size that a config has few of."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers import SMALL_LIMITS

from ecr_parts.testing import LocalECR


@pytest.fixture
def ecr() -> Iterator[LocalECR]:
    with LocalECR(limits=SMALL_LIMITS, part_size=16) as ecr:
        yield ecr
