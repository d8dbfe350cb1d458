"""Which parts a layer is sent in, within the limits of the service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ecr_parts._base.validation import check_int, short_repr
from ecr_parts._model.layers import Blob
from ecr_parts._model.limits import Limits
from ecr_parts._model.machine import Machine
from ecr_parts._model.parts import Chunker, Part
from ecr_parts._model.session import UploadSession
from ecr_parts.errors import EmptyLayerError, LayerTooLargeError


class PlannedPart(NamedTuple):
    """A part of a plan."""

    part: Part
    smallest: bool
    """Whether it is as small as the layer allows, because the uplink is slow."""


@dataclass(frozen=True)
class Planner:
    """Plans the parts of layers. All sizes are in bytes."""

    limits: Limits
    part_size: int | None = None
    """The part size that the user asked for; ``None`` for what ECR suggests."""

    def check_part_size(self) -> None:
        """Raise ``TypeError`` or ``ValueError`` unless a part may have ``part_size``."""
        if self.part_size is None:
            return
        check_int("part_size", self.part_size)
        limits = self.limits
        if not limits.min_part <= self.part_size <= limits.max_part:
            raise ValueError(
                f"part_size must be between {limits.min_part:,} and {limits.max_part:,} bytes, not "
                f"{self.part_size:,}"
            )

    def check_layer(self, layer_size: int | None) -> None:
        """Raise ``EmptyLayerError`` or ``LayerTooLargeError`` if the layer cannot be uploaded.

        ``layer_size`` is ``None`` if it is not known yet.
        """
        if layer_size is None:
            return
        if layer_size < 1:
            raise EmptyLayerError("the layer is empty, and ECR rejects empty layers: leave it out")
        limits = self.limits
        largest = min(limits.max_layer, limits.max_part * limits.max_parts)
        if layer_size > largest:
            raise LayerTooLargeError(
                f"the layer has {layer_size:,} bytes, but at most {largest:,} are allowed: "
                "split it into several layers"
            )
        needed = -(-layer_size // limits.max_parts)
        if self.part_size is not None and self.part_size < needed:
            raise LayerTooLargeError(
                f"the layer's {layer_size:,} bytes do not fit in {limits.max_parts:,} parts of "
                f"{self.part_size:,} bytes: use parts of {needed:,} bytes or more"
            )

    def check_part(self, session: UploadSession, blob: Blob) -> Part:
        """The part that ``blob`` is. Raises ``TypeError`` and ``ValueError`` if it is not one."""
        if not isinstance(blob, bytes | bytearray | memoryview):
            raise TypeError(f"blob must be bytes, bytearray or memoryview, not {short_repr(blob)}")
        size, limits = memoryview(blob).nbytes, self.limits
        if not 1 <= size <= limits.max_part:
            raise ValueError(f"blob must be 1 to {limits.max_part:,} bytes long, not {size:,}")
        part = Part(session.next_byte, session.next_byte + size - 1)
        if session.layer_size is not None and part.last_byte >= session.layer_size:
            raise ValueError(
                f"{part} ends past the layer's {session.layer_size:,} bytes: pass fewer bytes"
            )
        machine = Machine(session, limits.min_part)
        if machine.ends_with_small_part:
            raise ValueError(
                f"the part before byte {part.first_byte} is below the minimum of "
                f"{machine.min_part:,} bytes, so it must be the last: start "
                f"a new upload, and send parts of session.part_size, {session.part_size:,} bytes"
            )
        return part

    def choose_part_size(self, suggested_size: int, layer_size: int | None) -> int:
        """The size of a layer's parts, given the size that InitiateLayerUpload suggests.

        Unless the user asked for another, this is the suggested size, or the maximum if that is
        smaller. It is larger if the layer would otherwise need more than 95 % of the parts that are
        allowed. The rest is reserved: each part of which ECR stores only a fragment needs one more.
        """
        if self.part_size is not None:
            return self.part_size
        size = min(suggested_size, self.limits.max_part)
        if layer_size is None:
            return size
        return max(size, min(self.limits.max_part, -(-layer_size // self._planned_parts)))

    @property
    def _planned_parts(self) -> int:
        return max(1, self.limits.max_parts * 95 // 100)

    def next_part_size(
        self, part_size: int, *, parts_sent: int, next_byte: int, layer_size: int | None
    ) -> int:
        """The size of the next part: more than ``part_size`` if the rest would not fit otherwise.

        A stream of unknown size may be as large as a layer can be. So its parts grow once 10/21
        of ``max_parts`` are used: at ECR, 2,000 parts of 10 MiB and 2,200 of 15 MiB just exceed the
        maximum layer. 15 MiB is 3/4 of the maximum part and has 20 MiB in base64, so it is allowed
        whether ECR counts raw or encoded bytes.
        """
        limits = self.limits
        part_size = min(part_size, limits.max_part)
        parts_left = max(1, limits.max_parts - parts_sent)
        bytes_left = (limits.max_layer if layer_size is None else layer_size) - next_byte
        needed = -(-bytes_left // parts_left)
        if layer_size is None:
            if parts_sent < limits.max_parts * 10 // 21:
                return part_size
            needed = max(needed, limits.max_part * 3 // 4)
        return max(part_size, min(limits.max_part, needed))

    def fits(self, *, parts_sent: int, next_byte: int, layer_size: int) -> bool:
        """Whether the rest of a layer fits in the parts that are left."""
        parts_left = self.limits.max_parts - parts_sent
        return parts_left * self.limits.max_part >= layer_size - next_byte

    def parts(
        self,
        part_size: int,
        *,
        parts_sent: int,
        next_byte: int,
        layer_size: int | None,
        is_slow: Callable[[], bool] = lambda: False,
    ) -> Iterator[PlannedPart]:
        """The parts from ``next_byte`` on, at most as many as ECR accepts.

        For a stream of unknown size, as many as that. Parts that are planned while the uplink
        ``is_slow`` are as small as possible.
        """
        limits = self.limits
        end = limits.max_layer if layer_size is None else layer_size
        size = self.next_part_size(  # once, because the number of parts that are left varies
            part_size, parts_sent=parts_sent, next_byte=next_byte, layer_size=layer_size
        )
        while next_byte < end and parts_sent < limits.max_parts:
            if layer_size is None:
                size = self.next_part_size(
                    part_size, parts_sent=parts_sent, next_byte=next_byte, layer_size=None
                )
            smallest = is_slow()
            least = self._least_part_size(parts_sent, next_byte, layer_size) if smallest else size
            part = next(Chunker(end, part_size=min(size, least)).after(next_byte - 1))
            yield PlannedPart(part, smallest)
            next_byte = part.last_byte + 1
            parts_sent += 1

    def _least_part_size(self, parts_sent: int, next_byte: int, layer_size: int | None) -> int:
        """The size with which the rest of the layer fits, with the reserve for fragments."""
        least = self.limits.min_part
        if layer_size is None:
            return self.next_part_size(
                least, parts_sent=parts_sent, next_byte=next_byte, layer_size=None
            )
        return max(least, -(-(layer_size - next_byte) // max(1, self._planned_parts - parts_sent)))
