"""``Limits``, and the part sizes that follow from them."""

from __future__ import annotations

from typing import Any

import pytest

from ecr_parts import (
    ECR_LIMITS,
    ECR_PUBLIC_LIMITS,
    Limits,
)

MIB = 1024 * 1024
BOTH_SERVICES = pytest.mark.parametrize(
    "limits", [ECR_LIMITS, ECR_PUBLIC_LIMITS], ids=["ecr", "ecr-public"]
)


def test_limits_match_documented_quotas() -> None:
    assert Limits(5 * MIB, 20 * MIB, 4_200, 52_000 * MIB) == ECR_LIMITS
    assert Limits(5 * MIB, 20 * MIB, 1_000, 10_000 * MIB) == ECR_PUBLIC_LIMITS


@pytest.mark.parametrize("field", ["min_part", "max_part", "max_parts", "max_layer"])
def test_fields_must_be_positive_ints(field: str) -> None:
    valid: dict[str, Any] = {"min_part": 5, "max_part": 20, "max_parts": 4, "max_layer": 52}
    with pytest.raises(ValueError, match=field):
        Limits(**valid | {field: 0})
    with pytest.raises(TypeError, match=field):
        Limits(**valid | {field: 1.5})


def test_min_part_must_not_exceed_max_part() -> None:
    with pytest.raises(ValueError, match="at most max_part"):
        Limits(min_part=21, max_part=20, max_parts=4, max_layer=52)
