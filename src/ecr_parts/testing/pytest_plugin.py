"""The fixture ``local_ecr``. Enable it in a test module or in ``conftest.py``:

pytest_plugins = ["ecr_parts.testing.pytest_plugin"]
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ecr_parts.testing import LocalECR


@pytest.fixture
def local_ecr() -> Iterator[LocalECR]:
    """A running ``LocalECR`` with the repository ``demo``, new for each test."""
    from ecr_parts.testing import LocalECR  # here, so that only tests that use it pay for it

    with LocalECR() as ecr:
        yield ecr
