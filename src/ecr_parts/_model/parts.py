"""Where the parts of a layer start and end: pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload

from ecr_parts._base.notebook import parts_bar
from ecr_parts._base.validation import check_int


@dataclass(frozen=True, order=True)
class Part:
    """Bytes ``first_byte`` to ``last_byte`` of a layer: from 0, both inclusive, as in the API.

    Raises ``TypeError`` and ``ValueError`` for bytes that cannot be a part.
    """

    __module__ = "ecr_parts"

    first_byte: int
    last_byte: int

    def __post_init__(self) -> None:
        check_int("first_byte", self.first_byte, minimum=0)
        check_int("last_byte", self.last_byte, minimum=0)
        if self.last_byte < self.first_byte:
            raise ValueError(
                f"last_byte must be at least first_byte ({self.first_byte}), not {self.last_byte}"
            )

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self.last_byte - self.first_byte + 1


@dataclass(frozen=True)
class Chunker(Sequence[Part]):
    """The parts of a layer: ``part_size`` bytes each, except that the last may be smaller.

    An immutable sequence whose items are computed on access, so it is cheap for large layers too.

    >>> Chunker(25, part_size=10)[2]
    Part(first_byte=20, last_byte=24)

    Raises ``TypeError`` for sizes that are not ``int`` and ``ValueError`` for sizes below 1. A
    ``Chunker`` is never empty, because ECR rejects empty layers.
    """

    __module__ = "ecr_parts"

    layer_size: int
    """The size of the layer, in bytes."""
    part_size: int = field(kw_only=True)
    """The size of all parts but the last, in bytes."""

    def __post_init__(self) -> None:
        check_int("layer_size", self.layer_size)
        check_int("part_size", self.part_size)

    def __len__(self) -> int:
        return len(self._first_bytes)

    @overload
    def __getitem__(self, index: int) -> Part: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Part, ...]: ...
    def __getitem__(self, index: int | slice) -> Part | tuple[Part, ...]:
        if isinstance(index, slice):
            return tuple(map(self._part_at, self._first_bytes[index]))
        return self._part_at(self._first_bytes[index])

    def __iter__(self) -> Iterator[Part]:
        return map(self._part_at, self._first_bytes)

    def __contains__(self, part: object) -> bool:
        return (
            isinstance(part, Part)
            and part.first_byte in self._first_bytes
            and part == self._part_at(part.first_byte)
        )

    def index(self, part: Part, start: int = 0, stop: int | None = None) -> int:
        """The index of ``part``, computed without a search; ``ValueError`` if there is none."""
        if part in self:
            index = self._first_bytes.index(part.first_byte)
            if index in range(len(self))[start:stop]:
                return index
        raise ValueError(f"{part!r} is not in {self!r}")

    def after(self, last_byte_received: int) -> Iterator[Part]:
        """The parts to send once ECR has every byte up to ``last_byte_received`` (-1: none).

        After that byte, the layer is divided into parts of ``part_size`` bytes. If the byte is
        in the middle of a part of this sequence, the rest of that part is not sent by itself,
        because it could be smaller than ECR's minimum. No part follows the layer's last byte.
        Raises ``ValueError`` for a byte outside the layer.
        """
        last_byte = self.layer_size - 1
        check_int("last_byte_received", last_byte_received, minimum=-1, maximum=last_byte)
        first_bytes = range(last_byte_received + 1, self.layer_size, self.part_size)
        return map(self._part_at, first_bytes)

    def _repr_html_(self) -> str:
        """HTML for notebooks: a bar of parts."""
        if len(self) == 1:
            caption = f"{self.layer_size:,} bytes in 1 part"
        else:
            caption = (
                f"{self.layer_size:,} bytes in {len(self):,} parts of {self.part_size:,} bytes, "
                f"the last of {self[-1].size:,}"
            )
        return parts_bar(caption, 0, self.layer_size, self.part_size)

    @property
    def _first_bytes(self) -> range:
        return range(0, self.layer_size, self.part_size)

    def _part_at(self, first_byte: int) -> Part:
        return Part(first_byte, min(first_byte + self.part_size, self.layer_size) - 1)
