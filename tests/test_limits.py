from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecr_parts import (
    ECR_LIMITS,
    ECR_PUBLIC_LIMITS,
    EmptyLayerError,
    LayerTooLargeError,
    Limits,
)

MIB = 1024 * 1024
BOTH = pytest.mark.parametrize("limits", [ECR_LIMITS, ECR_PUBLIC_LIMITS], ids=["ecr", "public"])


def test_the_quotas() -> None:
    assert Limits(5 * MIB, 20 * MIB, 4_200, 52_000 * MIB) == ECR_LIMITS
    assert Limits(5 * MIB, 20 * MIB, 1_000, 10_000 * MIB) == ECR_PUBLIC_LIMITS


@pytest.mark.parametrize("field", ["min_part", "max_part", "max_parts", "max_layer"])
def test_limits_are_whole_numbers(field: str) -> None:
    good: dict[str, Any] = {"min_part": 5, "max_part": 20, "max_parts": 4, "max_layer": 52}
    with pytest.raises(ValueError, match=field):
        Limits(**good | {field: 0})
    with pytest.raises(TypeError, match=field):
        Limits(**good | {field: 1.5})
    with pytest.raises(ValueError, match="at most max_part"):
        Limits(**good | {"min_part": 21})


@BOTH
def test_every_allowed_layer_fits_with_parts_to_spare(limits: Limits) -> None:
    for size in (1, 10 * MIB, 5_000 * MIB, 9_999 * MIB + 1, limits.max_layer):
        limits._check_layer(size)
        part_size = limits._choose_part_size(10 * MIB, size)
        assert -(-size // part_size) <= limits.max_parts * 0.95
        assert part_size <= 15 * MIB  # 20 MiB in base64
    assert limits._choose_part_size(10 * MIB, 100 * MIB) == 10 * MIB
    assert limits._choose_part_size(10 * MIB, None) == 10 * MIB
    assert limits._choose_part_size(10**13, None) == limits.max_part
    assert limits._choose_part_size(1, None) == 1


@BOTH
def test_a_stream_grows_its_parts_so_that_any_layer_fits(limits: Limits) -> None:
    sent, next_byte, sizes = 0, 0, []
    while next_byte < limits.max_layer:
        size = limits._next_part_size(
            10 * MIB, parts_sent=sent, next_byte=next_byte, layer_size=None
        )
        sizes.append(size)
        next_byte += size
        sent += 1
    assert sent <= limits.max_parts
    grown_from = limits.max_parts * 10 // 21
    assert set(sizes[:grown_from]) == {10 * MIB}
    assert set(sizes[grown_from:]) == {15 * MIB}


def test_ecrs_stream_grows_after_2000_parts() -> None:
    for sent, size in ((1_999, 10 * MIB), (2_000, 15 * MIB)):
        assert size == ECR_LIMITS._next_part_size(
            10 * MIB, parts_sent=sent, next_byte=sent * 10 * MIB, layer_size=None
        )


@given(
    limits=st.builds(
        lambda low, more, parts: Limits(low, low + more, parts, (low + more) * parts),
        st.integers(1, 8),
        st.integers(0, 30),
        st.integers(1, 60),
    ),
    data=st.data(),
)
def test_whatever_the_fragments_the_parts_left_suffice_as_long_as_they_can(
    limits: Limits, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, limits.max_layer))
    sent = data.draw(st.integers(0, limits.max_parts - 1))
    next_byte = data.draw(st.integers(0, size - 1))
    base = data.draw(st.integers(limits.min_part, limits.max_part))
    left = limits.max_parts - sent

    for known in (size, None):
        part = limits._next_part_size(base, parts_sent=sent, next_byte=next_byte, layer_size=known)
        assert base <= part <= limits.max_part
    fits = size - next_byte <= left * limits.max_part
    part = limits._next_part_size(base, parts_sent=sent, next_byte=next_byte, layer_size=size)
    assert (part * left >= size - next_byte) == fits


def test_sizes_to_the_byte() -> None:
    limits = Limits(min_part=1, max_part=100, max_parts=100, max_layer=10_000)
    for layer_size, size in ((950, 10), (951, 11), (9_500, 100), (9_501, 100)):
        assert limits._choose_part_size(10, layer_size) == size
        assert isinstance(limits._choose_part_size(10, layer_size), int)
    assert Limits(1, 10, 1, 10)._choose_part_size(5, 10) == 10  # one part, and none to spare
    ends: list[tuple[int | None, int]] = [(20, 10), (21, 11), (None, 100)]
    for end, size in ends:
        last = limits._next_part_size(10, parts_sent=99, next_byte=10, layer_size=end)
        assert last == size
        assert isinstance(last, int)
    odd = Limits(min_part=1, max_part=101, max_parts=21, max_layer=500)
    grown = odd._next_part_size(10, parts_sent=10, next_byte=100, layer_size=None)
    assert repr(grown) == "75"
    assert odd._next_part_size(10, parts_sent=9, next_byte=100, layer_size=None) == 10


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(EmptyLayerError, match="rejects empty layers"):
        ECR_LIMITS._check_layer(0)
    with pytest.raises(LayerTooLargeError, match="54,525,952,000 are allowed"):
        ECR_LIMITS._check_layer(ECR_LIMITS.max_layer + 1)
    with pytest.raises(LayerTooLargeError, match="at most 40 are"):
        Limits(1, 10, 4, 100)._check_layer(41)
    with pytest.raises(LayerTooLargeError, match=r"part_size=6 or more"):
        Limits(5, 10, 4, 100)._check_layer(21, 5)
    Limits(5, 10, 4, 100)._check_layer(20, 5)


@pytest.mark.parametrize("size", [0, 5 * MIB - 1, 20 * MIB + 1])
def test_a_part_size_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="part_size"):
        ECR_LIMITS._check_part_size(size)
    ECR_LIMITS._check_part_size(5 * MIB)
    ECR_LIMITS._check_part_size(20 * MIB)
