"""Which parts layers are sent in, within the limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecr_parts import ECR_LIMITS, ECR_PUBLIC_LIMITS, EmptyLayerError, LayerTooLargeError, Limits
from ecr_parts._upload.plan import Planner

MIB = 1024 * 1024
BOTH_SERVICES = pytest.mark.parametrize(
    "limits", [ECR_LIMITS, ECR_PUBLIC_LIMITS], ids=["ecr", "ecr-public"]
)


# Part sizes


@BOTH_SERVICES
def test_any_allowed_layer_fits_with_parts_to_spare(limits: Limits) -> None:
    for size in (1, 10 * MIB, 5_000 * MIB, 9_999 * MIB + 1, limits.max_layer):
        Planner(limits).check_layer(size)
        part_size = Planner(limits).choose_part_size(10 * MIB, size)
        assert -(-size // part_size) <= limits.max_parts * 0.95
        assert part_size <= 15 * MIB  # 20 MiB in base64


@BOTH_SERVICES
def test_uses_answered_part_size_unless_it_is_too_large(limits: Limits) -> None:
    assert Planner(limits).choose_part_size(10 * MIB, 100 * MIB) == 10 * MIB
    assert Planner(limits).choose_part_size(10 * MIB, None) == 10 * MIB
    assert Planner(limits).choose_part_size(10**13, None) == limits.max_part
    assert Planner(limits).choose_part_size(1, None) == 1


def test_chooses_smallest_part_size_with_5_percent_of_parts_to_spare() -> None:
    limits = Limits(min_part=1, max_part=100, max_parts=100, max_layer=10_000)
    for layer_size, part_size in ((950, 10), (951, 11), (9_500, 100), (9_501, 100)):
        assert Planner(limits).choose_part_size(10, layer_size) == part_size
        assert isinstance(Planner(limits).choose_part_size(10, layer_size), int)
    assert (
        Planner(Limits(1, 10, 1, 10)).choose_part_size(5, 10) == 10
    )  # one part: none can be spare


@BOTH_SERVICES
def test_parts_of_stream_grow_so_that_any_layer_fits(limits: Limits) -> None:
    parts_sent, next_byte, sizes = 0, 0, []
    while next_byte < limits.max_layer:
        size = Planner(limits).next_part_size(
            10 * MIB, parts_sent=parts_sent, next_byte=next_byte, layer_size=None
        )
        sizes.append(size)
        next_byte += size
        parts_sent += 1
    assert parts_sent <= limits.max_parts
    parts_before_growth = limits.max_parts * 10 // 21
    assert set(sizes[:parts_before_growth]) == {10 * MIB}
    assert set(sizes[parts_before_growth:]) == {15 * MIB}


@pytest.mark.parametrize(("parts_sent", "size"), [(1_999, 10 * MIB), (2_000, 15 * MIB)])
def test_parts_of_stream_grow_after_2000_parts_at_ecr(parts_sent: int, size: int) -> None:
    next_size = Planner(ECR_LIMITS).next_part_size(
        10 * MIB, parts_sent=parts_sent, next_byte=parts_sent * 10 * MIB, layer_size=None
    )
    assert next_size == size


def test_part_of_stream_grows_to_three_quarters_of_maximum() -> None:
    limits = Limits(min_part=1, max_part=101, max_parts=21, max_layer=500)
    assert Planner(limits).next_part_size(10, parts_sent=9, next_byte=100, layer_size=None) == 10
    size = Planner(limits).next_part_size(10, parts_sent=10, next_byte=100, layer_size=None)
    assert repr(size) == "75"  # an int, not 75.75 or 75.0


@pytest.mark.parametrize(("layer_size", "part_size"), [(20, 10), (21, 11), (None, 100)])
def test_last_part_takes_rest_of_layer(layer_size: int | None, part_size: int) -> None:
    limits = Limits(min_part=1, max_part=100, max_parts=100, max_layer=10_000)
    size = Planner(limits).next_part_size(10, parts_sent=99, next_byte=10, layer_size=layer_size)
    assert size == part_size
    assert isinstance(size, int)


@given(
    limits=st.builds(
        lambda low, more, parts: Limits(low, low + more, parts, (low + more) * parts),
        st.integers(1, 8),
        st.integers(0, 30),
        st.integers(1, 60),
    ),
    data=st.data(),
)
def test_next_part_size_suffices_whenever_maximum_parts_would(
    limits: Limits, data: st.DataObject
) -> None:
    """Fragments may have used up any number of parts for any number of bytes."""
    layer_size = data.draw(st.integers(1, limits.max_layer))
    parts_sent = data.draw(st.integers(0, limits.max_parts - 1))
    next_byte = data.draw(st.integers(0, layer_size - 1))
    part_size = data.draw(st.integers(limits.min_part, limits.max_part))
    parts_left, bytes_left = limits.max_parts - parts_sent, layer_size - next_byte

    size_if_unknown, size = (
        Planner(limits).next_part_size(
            part_size, parts_sent=parts_sent, next_byte=next_byte, layer_size=known_size
        )
        for known_size in (None, layer_size)
    )

    assert part_size <= size_if_unknown <= limits.max_part
    assert part_size <= size <= limits.max_part
    assert (size * parts_left >= bytes_left) == (limits.max_part * parts_left >= bytes_left)


# Layers and part sizes outside the limits


def test_rejects_layer_outside_limits() -> None:
    with pytest.raises(EmptyLayerError, match="rejects empty layers"):
        Planner(ECR_LIMITS).check_layer(0)
    with pytest.raises(LayerTooLargeError, match="54,525,952,000 are allowed"):
        Planner(ECR_LIMITS).check_layer(ECR_LIMITS.max_layer + 1)
    with pytest.raises(LayerTooLargeError, match="at most 40 are"):
        Planner(Limits(1, 10, 4, 100)).check_layer(41)


def test_rejects_part_size_that_needs_too_many_parts() -> None:
    limits = Limits(5, 10, 4, 100)
    with pytest.raises(LayerTooLargeError, match="use parts of 6 bytes or more"):
        Planner(limits, 5).check_layer(21)
    Planner(limits, 5).check_layer(20)


@pytest.mark.parametrize("size", [0, 5 * MIB - 1, 20 * MIB + 1])
def test_rejects_part_size_outside_limits(size: int) -> None:
    with pytest.raises(ValueError, match="part_size"):
        Planner(ECR_LIMITS, size).check_part_size()


@pytest.mark.parametrize("size", [5 * MIB, 20 * MIB])
def test_accepts_part_size_at_limits(size: int) -> None:
    Planner(ECR_LIMITS, size).check_part_size()
