"""The limits of ECR and ECR Public for layers and parts. They are defined only here."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from ecr_parts._base.validation import check_int

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

REPOSITORY_NAME = re.compile(
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
)
"""The names of repositories, of 2 to 256 characters. Reference: ``RepositoryName`` in the API
reference."""
