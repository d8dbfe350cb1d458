"""What ECR and ECR Public allow. No limit stands anywhere else."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ecr_parts._validation import whole_number
from ecr_parts.errors import EmptyLayerError, LayerTooLargeError

_MIB = 1024 * 1024


@dataclass(frozen=True)
class Limits:
    """What the service allows of a layer and its parts.

    ``LayerUploader(limits=…)`` takes one for a service with other quotas than AWS's.
    """

    min_part: int
    """Bytes. Every part but the layer's last has at least as many."""
    max_part: int
    """Bytes. No part has more."""
    max_parts: int
    """How many parts a layer may have."""
    max_layer: int
    """Bytes. No layer has more."""

    def __post_init__(self) -> None:
        for field in fields(self):
            whole_number(field.name, getattr(self, field.name))
        if self.min_part > self.max_part:
            raise ValueError(f"min_part ({self.min_part}) is above max_part ({self.max_part})")

    def check_layer(self, layer_size: int, part_size: int | None = None) -> None:
        """Refuse a layer that cannot fit, and a ``part_size`` too small for it (bytes).

        Raises ``EmptyLayerError`` or ``LayerTooLargeError``, which are also ``ValueError``.
        """
        if layer_size < 1:
            raise EmptyLayerError(
                "the layer is empty, and ECR takes no layer of 0 bytes: leave it out"
            )
        largest = min(self.max_layer, self.max_part * self.max_parts)
        if layer_size > largest:
            raise LayerTooLargeError(
                f"the layer has {layer_size:,} bytes, and at most {largest:,} are allowed: "
                "split it into several layers"
            )
        needed = -(-layer_size // self.max_parts)
        if part_size is not None and part_size < needed:
            raise LayerTooLargeError(
                f"the layer's {layer_size:,} bytes do not fit in {self.max_parts:,} parts of "
                f"part_size={part_size:,}: it takes part_size={needed} at least"
            )

    def check_part_size(self, part_size: int) -> None:
        """Refuse a size that no part but the last may have (bytes)."""
        whole_number("part_size", part_size)
        if not self.min_part <= part_size <= self.max_part:
            raise ValueError(
                f"part_size is {part_size:,} bytes, and must be between "
                f"{self.min_part:,} and {self.max_part:,}"
            )

    def part_size(self, answered: int, layer_size: int | None) -> int:
        """The size of a layer's parts (bytes), where the service answered ``answered``.

        What the service answers, unless that is too large for a part, or so small that the
        layer would not fit: then just large enough, with 5 % of the parts to spare (a part of
        which only a fragment was stored costs one more).
        """
        size = min(answered, self.max_part)
        if layer_size is None:
            return size
        planned_parts = max(1, self.max_parts * 95 // 100)
        return max(size, min(self.max_part, -(-layer_size // planned_parts)))

    def next_part_size(
        self, part_size: int, *, parts_sent: int, next_byte: int, layer_size: int | None
    ) -> int:
        """The size of the next part (bytes), so that what may still come fits.

        That is ``part_size``, and more only where the parts left would not suffice otherwise.
        A stream of unknown size may be as large as any layer, so its parts grow once 10/21 of
        the parts are used (2,000 of ECR's 4,200): to 3/4 of the maximum, because 15 MiB raw
        are 20 MiB in base64, a size safe whichever of the two ECR's maximum counts.
        """
        part_size = min(part_size, self.max_part)
        left = max(1, self.max_parts - parts_sent)
        needed = -(-((layer_size or self.max_layer) - next_byte) // left)
        if layer_size is None:
            if parts_sent < self.max_parts * 10 // 21:
                return part_size
            needed = max(needed, self.max_part * 3 // 4)
        return max(part_size, min(self.max_part, needed))


ECR_LIMITS = Limits(min_part=5 * _MIB, max_part=20 * _MIB, max_parts=4_200, max_layer=52_000 * _MIB)
"""Amazon ECR. Minimum, parts and layer: "Amazon ECR service quotas" in its user guide. Maximum
part: the UploadLayerPart API page (20,971,520 bytes); the quotas page says 10 MiB, but then a
layer of 52,000 MiB could not fit in 4,200 parts. By default parts have what ECR answers, 10 MiB."""

ECR_PUBLIC_LIMITS = Limits(
    min_part=5 * _MIB, max_part=20 * _MIB, max_parts=1_000, max_layer=10_000 * _MIB
)
"""Amazon ECR Public. Source: "Amazon ECR Public service quotas" in its user guide, and the
UploadLayerPart API page."""
