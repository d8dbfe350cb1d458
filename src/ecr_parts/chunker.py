"""Where the parts of a layer begin and end: arithmetic, nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload

from ecr_parts._validation import whole_number
from ecr_parts.notebook import bar


@dataclass(frozen=True, order=True)
class Part:
    """Bytes ``first_byte`` to ``last_byte`` of a layer, both inclusive, as ECR counts them."""

    first_byte: int
    last_byte: int

    def __post_init__(self) -> None:
        whole_number("first_byte", self.first_byte, at_least=0)
        whole_number("last_byte", self.last_byte, at_least=0)
        if self.last_byte < self.first_byte:
            raise ValueError(
                f"a part from byte {self.first_byte} to byte {self.last_byte} has no bytes"
            )

    @property
    def size(self) -> int:
        """Bytes."""
        return self.last_byte - self.first_byte + 1


@dataclass(frozen=True)
class Chunker(Sequence[Part]):
    """The parts of a layer of ``layer_size`` bytes: ``part_size`` bytes each, the last the rest.

    An immutable sequence that computes its items, so a layer of any size costs nothing.

    >>> Chunker(25, part_size=10)[2]
    Part(first_byte=20, last_byte=24)

    Raises ``TypeError`` for what is no ``int`` and ``ValueError`` for what is no size. There is
    no empty ``Chunker``, because ECR takes no empty layer.
    """

    layer_size: int
    """Bytes."""
    part_size: int = field(kw_only=True)
    """Bytes."""

    def __post_init__(self) -> None:
        whole_number("layer_size", self.layer_size)
        whole_number("part_size", self.part_size)

    def __len__(self) -> int:
        return len(self._first_bytes)

    @overload
    def __getitem__(self, index: int) -> Part: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Part, ...]: ...
    def __getitem__(self, index: int | slice) -> Part | tuple[Part, ...]:
        if isinstance(index, slice):
            return tuple(map(self._part_from, self._first_bytes[index]))
        return self._part_from(self._first_bytes[index])

    def __iter__(self) -> Iterator[Part]:
        return self.after(-1)

    def __contains__(self, part: object) -> bool:
        return (
            isinstance(part, Part)
            and part.first_byte in self._first_bytes
            and part == self._part_from(part.first_byte)
        )

    def index(self, part: Part, start: int = 0, stop: int | None = None) -> int:
        """The place of ``part``, or ``ValueError``; computed, not searched for."""
        if part in self:
            place = self._first_bytes.index(part.first_byte)
            if place in range(len(self))[start:stop]:
                return place
        raise ValueError(f"{part!r} is not in {self!r}")

    def after(self, last_byte_received: int) -> Iterator[Part]:
        """The parts that are left once ECR has everything up to ``last_byte_received``.

        Whole parts from where ECR stands (-1: nothing yet), not from a grid: what is left of a
        part cut on a grid could be smaller than ECR's minimum. Nothing is left after the
        layer's last byte; ``ValueError`` for a byte outside the layer.
        """
        whole_number("last_byte_received", last_byte_received, at_least=-1)
        if last_byte_received >= self.layer_size:
            raise ValueError(
                f"last_byte_received is {last_byte_received}, behind the layer's last byte, "
                f"{self.layer_size - 1}"
            )
        first_bytes = range(last_byte_received + 1, self.layer_size, self.part_size)
        return map(self._part_from, first_bytes)

    def _repr_html_(self) -> str:
        """In a notebook: a bar of parts."""
        caption = f"{self.layer_size:,} bytes in 1 part"
        if len(self) > 1:
            caption = (
                f"{self.layer_size:,} bytes in {len(self):,} parts of {self.part_size:,} bytes, "
                f"the last of {self[-1].size:,}"
            )
        return bar(caption, range(0), self._first_bytes)

    @property
    def _first_bytes(self) -> range:
        return range(0, self.layer_size, self.part_size)

    def _part_from(self, first_byte: int) -> Part:
        return Part(first_byte, min(first_byte + self.part_size, self.layer_size) - 1)
