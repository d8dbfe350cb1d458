"""``Chunker`` and ``Part``: where the parts of a layer start and end."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecr_parts import Chunker, Part, UploadSession

SIZES = st.integers(1, 300)
MAX_LAYER_MIB = 52_000


def bytes_in(parts: list[Part]) -> list[int]:
    """The offsets of all bytes of ``parts``."""
    return [byte for part in parts for byte in range(part.first_byte, part.last_byte + 1)]


@given(layer_size=SIZES, part_size=SIZES)
def test_parts_cover_layer_in_order_and_only_last_is_smaller(
    layer_size: int, part_size: int
) -> None:
    parts = list(Chunker(layer_size, part_size=part_size))

    assert bytes_in(parts) == list(range(layer_size))
    assert {part.size for part in parts[:-1]} <= {part_size}
    assert 1 <= parts[-1].size <= part_size


@given(layer_size=SIZES, part_size=SIZES, data=st.data())
def test_chunker_behaves_like_list_of_its_parts(
    layer_size: int, part_size: int, data: st.DataObject
) -> None:
    chunker = Chunker(layer_size, part_size=part_size)
    parts = [
        Part(first, min(first + part_size, layer_size) - 1)
        for first in range(0, layer_size, part_size)
    ]

    assert len(chunker) == len(parts)
    assert list(reversed(chunker)) == parts[::-1]
    indexes = data.draw(st.slices(len(parts)))
    assert chunker[indexes] == tuple(parts[indexes])
    i = data.draw(st.integers(-len(parts), len(parts) - 1))
    assert chunker[i] == parts[i]
    assert chunker.index(parts[i]) == parts.index(parts[i])
    part = data.draw(st.builds(lambda first, more: Part(first, first + more), SIZES, SIZES))
    assert (part in chunker) == (part in parts)


@given(layer_size=SIZES, part_size=SIZES, data=st.data())
def test_after_covers_rest_of_layer_in_whole_parts(
    layer_size: int, part_size: int, data: st.DataObject
) -> None:
    last_byte = data.draw(st.integers(-1, layer_size - 1))

    parts = list(Chunker(layer_size, part_size=part_size).after(last_byte))

    assert bytes_in(parts) == list(range(last_byte + 1, layer_size))
    assert {part.size for part in parts[:-1]} <= {part_size}


@pytest.mark.parametrize("last_byte", [-2, 10])
def test_after_rejects_byte_outside_layer(last_byte: int) -> None:
    with pytest.raises(ValueError, match="last_byte_received"):
        Chunker(10, part_size=10).after(last_byte)


def test_parts_of_huge_layer_are_computed_on_access() -> None:
    size = MAX_LAYER_MIB * 1024**2
    chunker = Chunker(size, part_size=1)

    assert len(chunker) == size
    assert chunker[-1] == Part(size - 1, size - 1)
    assert Part(12_345, 12_345) in chunker
    assert chunker.index(Part(12_345, 12_345)) == 12_345
    assert next(chunker.after(40_000 * 1024**2)).first_byte == 40_000 * 1024**2 + 1


def test_index_respects_bounds_and_rejects_other_parts() -> None:
    chunker = Chunker(25, part_size=10)

    assert chunker.index(Part(10, 19), 1) == 1
    assert chunker.index(Part(10, 19), -2, 2) == 1
    for start, stop in ((2, None), (0, 1), (-1, None)):
        with pytest.raises(ValueError, match=r"Part\(first_byte=10, last_byte=19\) is not in"):
            chunker.index(Part(10, 19), start, stop)
    with pytest.raises(ValueError, match="is not in"):
        chunker.index(Part(10, 18))


def test_item_past_the_end_is_an_index_error() -> None:
    with pytest.raises(IndexError):
        Chunker(25, part_size=10)[3]


def test_does_not_contain_other_types() -> None:
    not_a_part: object = (10, 19)
    assert not_a_part not in Chunker(25, part_size=10)


@pytest.mark.parametrize("size", [0, -1])
def test_rejects_size_below_one(size: int) -> None:
    with pytest.raises(ValueError, match="layer_size"):
        Chunker(size, part_size=10)
    with pytest.raises(ValueError, match="part_size"):
        Chunker(10, part_size=size)


@pytest.mark.parametrize("size", [1.0, "1", None, True])
def test_rejects_size_that_is_not_an_int(size: Any) -> None:
    with pytest.raises(TypeError, match="layer_size"):
        Chunker(size, part_size=10)
    with pytest.raises(TypeError, match="part_size"):
        Chunker(10, part_size=size)


def test_accepts_any_layer_size_of_63_bits() -> None:
    largest = 2**63 - 1
    chunker = Chunker(largest, part_size=1)
    assert len(chunker) == largest
    assert "in 9,223,372,036,854,775,807 parts" in chunker._repr_html_()
    session = UploadSession(
        repository_name="r", upload_id="u", part_size=1, layer_size=largest,
        last_byte_received=2**62,
    )  # fmt: skip
    assert "bytes" in session._repr_html_()
    for size in (2**63, 10**30):
        with pytest.raises(ValueError, match="layer_size must be at most 9,223"):
            Chunker(size, part_size=1)


def test_part_is_inclusive_and_ordered() -> None:
    assert Part(5, 5).size == 1
    assert sorted([Part(5, 6), Part(0, 4)]) == [Part(0, 4), Part(5, 6)]


def test_part_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Part(0, 1).first_byte = 1  # type: ignore[misc]  # checks that it fails at run time, too


def test_part_rejects_invalid_bytes() -> None:
    for first, last in ((-1, 0), (3, 2), (0, -1)):
        with pytest.raises(ValueError, match="byte"):
            Part(first, last)
    with pytest.raises(TypeError):
        Part(0, 1.5)  # type: ignore[arg-type]  # checks the error for wrong types


@pytest.mark.parametrize("value", [Part(1, 2), Chunker(25, part_size=10)])
def test_pickles_to_equal_value(value: object) -> None:
    unpickled = pickle.loads(pickle.dumps(value))
    assert unpickled == value
    assert hash(unpickled) == hash(value)


def test_chunkers_with_different_part_sizes_are_not_equal() -> None:
    assert Chunker(25, part_size=10) != Chunker(25, part_size=11)
