"""The limits of ECR and ECR Public for layers and parts. They are defined only here."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ecr_parts._validation import check_int
from ecr_parts.errors import EmptyLayerError, LayerTooLargeError

_MIB = 1024 * 1024


@dataclass(frozen=True)
class Limits:
    """A service's limits for layers and their parts.

    Pass an instance as ``LayerUploader(limits=…)`` for a registry whose limits differ from AWS's.
    Raises ``TypeError`` and ``ValueError`` for limits that are not positive ``int``.
    """

    __module__ = "ecr_parts"

    min_part: int
    """The minimum size of every part but the last, in bytes."""
    max_part: int
    """The maximum size of a part, in bytes."""
    max_parts: int
    """The maximum number of parts of a layer."""
    max_layer: int
    """The maximum size of a layer, in bytes."""

    def __post_init__(self) -> None:
        for field in fields(self):
            check_int(field.name, getattr(self, field.name))
        if self.min_part > self.max_part:
            raise ValueError(
                f"min_part must be at most max_part ({self.max_part:,}), not {self.min_part:,}"
            )

    def _check_layer(self, layer_size: int, part_size: int | None = None) -> None:
        """Raise ``EmptyLayerError`` or ``LayerTooLargeError`` if the layer cannot be uploaded.

        Sizes are in bytes; ``part_size`` is the size that the user asked for, if any.
        """
        if layer_size < 1:
            raise EmptyLayerError("the layer is empty, and ECR rejects empty layers: leave it out")
        largest = min(self.max_layer, self.max_part * self.max_parts)
        if layer_size > largest:
            raise LayerTooLargeError(
                f"the layer has {layer_size:,} bytes, but at most {largest:,} are allowed: "
                "split it into several layers"
            )
        needed = -(-layer_size // self.max_parts)
        if part_size is not None and part_size < needed:
            raise LayerTooLargeError(
                f"the layer's {layer_size:,} bytes do not fit in {self.max_parts:,} parts of "
                f"{part_size:,} bytes: use parts of {needed:,} bytes or more"
            )

    def _check_part_size(self, part_size: int) -> None:
        """Raise ``TypeError`` or ``ValueError`` unless a part may have ``part_size`` bytes."""
        check_int("part_size", part_size)
        if not self.min_part <= part_size <= self.max_part:
            raise ValueError(
                f"part_size must be between {self.min_part:,} and {self.max_part:,} bytes, not "
                f"{part_size:,}"
            )

    def _choose_part_size(self, suggested_size: int, layer_size: int | None) -> int:
        """The size of a layer's parts, in bytes, given the size that InitiateLayerUpload suggests.

        This is the suggested size, or the maximum if that is smaller. It is larger if the layer
        would otherwise need more than 95 % of the parts that are allowed. The rest is reserved:
        each part of which ECR stores only a fragment needs one more.
        """
        size = min(suggested_size, self.max_part)
        if layer_size is None:
            return size
        planned_parts = max(1, self.max_parts * 95 // 100)
        return max(size, min(self.max_part, -(-layer_size // planned_parts)))

    def _next_part_size(
        self, part_size: int, *, parts_sent: int, next_byte: int, layer_size: int | None
    ) -> int:
        """The size of the next part, in bytes: more than ``part_size`` if the rest would not fit.

        A stream of unknown size may be as large as a layer can be. So its parts grow once 10/21
        of ``max_parts`` are used: at ECR, 2,000 parts of 10 MiB and 2,200 of 15 MiB just exceed the
        maximum layer. 15 MiB is 3/4 of the maximum part and has 20 MiB in base64, so it is allowed
        whether ECR counts raw or encoded bytes.
        """
        part_size = min(part_size, self.max_part)
        parts_left = max(1, self.max_parts - parts_sent)
        bytes_left = (self.max_layer if layer_size is None else layer_size) - next_byte
        needed = -(-bytes_left // parts_left)
        if layer_size is None:
            if parts_sent < self.max_parts * 10 // 21:
                return part_size
            needed = max(needed, self.max_part * 3 // 4)
        return max(part_size, min(self.max_part, needed))


ECR_LIMITS = Limits(min_part=5 * _MIB, max_part=20 * _MIB, max_parts=4_200, max_layer=52_000 * _MIB)
"""Amazon ECR. Reference: "Amazon ECR service quotas" in the user guide; for ``max_part``, the
UploadLayerPart API page (20,971,520 bytes). The quotas page says 10 MiB, but a layer of 52,000 MiB
would not fit in 4,200 parts of that size. By default, parts have the size that ECR suggests,
10 MiB."""

ECR_PUBLIC_LIMITS = Limits(
    min_part=5 * _MIB, max_part=20 * _MIB, max_parts=1_000, max_layer=10_000 * _MIB
)
"""Amazon ECR Public. Reference: "Amazon ECR Public service quotas" in the user guide; for
``max_part``, its UploadLayerPart API page."""

MAX_IMAGE_LAYERS = 500
"""The maximum number of layers in an image. Not documented, but measured by others:
https://github.com/cirruslabs/tart/issues/890"""

MAX_MANIFEST = 4 * _MIB
"""The maximum size of a manifest, in bytes. Reference: "Pushing Manifests" in the OCI distribution
specification asks registries to accept this size; other registries accept no more."""

MAX_RESULTS = 1_000
"""The largest page of a list that ECR answers. Reference: ``maxResults`` in the API reference."""
