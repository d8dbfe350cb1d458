from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecr_parts import Chunker, Part, UploadSession

SIZES = st.integers(1, 300)


@given(layer_size=SIZES, part_size=SIZES)
def test_the_parts_are_the_layer_in_order_and_only_the_last_is_smaller(
    layer_size: int, part_size: int
) -> None:
    parts = list(Chunker(layer_size, part_size=part_size))

    covered = [byte for part in parts for byte in range(part.first_byte, part.last_byte + 1)]
    assert covered == list(range(layer_size))
    assert {part.size for part in parts[:-1]} <= {part_size}
    assert 1 <= parts[-1].size <= part_size


@given(layer_size=SIZES, part_size=SIZES, data=st.data())
def test_it_is_a_sequence_like_the_list_of_its_parts(
    layer_size: int, part_size: int, data: st.DataObject
) -> None:
    chunker = Chunker(layer_size, part_size=part_size)
    parts = [
        Part(first, min(first + part_size, layer_size) - 1)
        for first in range(0, layer_size, part_size)
    ]

    assert len(chunker) == len(parts)
    assert list(reversed(chunker)) == parts[::-1]
    some = data.draw(st.slices(len(parts)))
    assert chunker[some] == tuple(parts[some])
    i = data.draw(st.integers(-len(parts), len(parts) - 1))
    assert chunker[i] == parts[i]
    assert chunker.index(parts[i]) == parts.index(parts[i])
    other = data.draw(st.builds(lambda a, b: Part(a, a + b), SIZES, SIZES))
    assert (other in chunker) == (other in parts)


@given(layer_size=SIZES, part_size=SIZES, data=st.data())
def test_what_is_left_begins_where_ecr_stands_and_has_whole_parts(
    layer_size: int, part_size: int, data: st.DataObject
) -> None:
    last = data.draw(st.integers(-1, layer_size - 1))

    left = list(Chunker(layer_size, part_size=part_size).after(last))

    covered = [byte for part in left for byte in range(part.first_byte, part.last_byte + 1)]
    assert covered == list(range(last + 1, layer_size))
    assert {part.size for part in left[:-1]} <= {part_size}


def test_a_huge_layer_costs_nothing() -> None:
    chunker = Chunker(52_000 * 1024**2, part_size=1)

    assert len(chunker) == 52_000 * 1024**2
    assert chunker[-1] == Part(52_000 * 1024**2 - 1, 52_000 * 1024**2 - 1)
    assert Part(12_345, 12_345) in chunker
    assert chunker.index(Part(12_345, 12_345)) == 12_345
    assert next(chunker.after(40_000 * 1024**2)).first_byte == 40_000 * 1024**2 + 1


def test_the_bounds_of_index_and_of_the_sequence() -> None:
    chunker = Chunker(25, part_size=10)

    assert chunker.index(Part(10, 19), 1) == 1
    assert chunker.index(Part(10, 19), -2, 2) == 1
    for start, stop in ((2, None), (0, 1), (-1, None)):
        with pytest.raises(ValueError, match=r"Part\(first_byte=10, last_byte=19\) is not in"):
            chunker.index(Part(10, 19), start, stop)
    with pytest.raises(ValueError, match="is not in"):
        chunker.index(Part(10, 18))
    with pytest.raises(IndexError):
        chunker[3]
    no_part: object = (10, 19)
    assert no_part not in chunker


@pytest.mark.parametrize("size", [0, -1])
def test_no_size_below_one(size: int) -> None:
    with pytest.raises(ValueError, match="layer_size"):
        Chunker(size, part_size=10)
    with pytest.raises(ValueError, match="part_size"):
        Chunker(10, part_size=size)


@pytest.mark.parametrize("size", [1.0, "1", None, True])
def test_no_size_but_an_int(size: Any) -> None:
    with pytest.raises(TypeError, match="layer_size"):
        Chunker(size, part_size=10)
    with pytest.raises(TypeError, match="part_size"):
        Chunker(10, part_size=size)


@pytest.mark.parametrize("last", [-2, 10])
def test_nothing_is_left_behind_a_byte_outside_the_layer(last: int) -> None:
    with pytest.raises(ValueError, match="last_byte_received"):
        Chunker(10, part_size=10).after(last)


def test_a_part_is_inclusive_ordered_and_frozen() -> None:
    assert Part(5, 5).size == 1
    assert sorted([Part(5, 6), Part(0, 4)]) == [Part(0, 4), Part(5, 6)]
    with pytest.raises(FrozenInstanceError):
        Part(0, 1).first_byte = 1  # type: ignore[misc]  # the point of the test
    for first, last in ((-1, 0), (3, 2), (0, -1)):
        with pytest.raises(ValueError, match="byte"):
            Part(first, last)
    with pytest.raises(TypeError):
        Part(0, 1.5)  # type: ignore[arg-type]  # the point of the test


def test_both_pickle_and_compare() -> None:
    for value in (Part(1, 2), Chunker(25, part_size=10)):
        assert pickle.loads(pickle.dumps(value)) == value
        assert hash(pickle.loads(pickle.dumps(value))) == hash(value)
    assert Chunker(25, part_size=10) != Chunker(25, part_size=11)


def test_a_layer_as_large_as_the_api_can_say_shows_itself() -> None:
    huge = Chunker(2**63 - 1, part_size=1)
    assert len(huge) == 2**63 - 1
    assert "in 9,223,372,036,854,775,807 parts" in huge._repr_html_()
    session = UploadSession(
        repository_name="r", upload_id="u", part_size=1, layer_size=2**63 - 1,
        last_byte_received=2**62,
    )  # fmt: skip
    assert "bytes" in session._repr_html_()
    for size in (2**63, 10**30):
        with pytest.raises(ValueError, match="layer_size must be at most 9,223"):
            Chunker(size, part_size=1)
