"""What a registry stores."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ecr_parts.testing._body import Blob
from ecr_parts.testing._parameters import REGISTRY_ID, EcrError, Request
from ecr_parts.testing._unknowns import Unknowns


@dataclass
class Layer:
    """A completed layer."""

    blobs: list[Blob]
    size: int
    lag: int = 0
    """How many times BatchCheckLayerAvailability still reports it as missing."""
    image_lag: int = 0
    """How many times PutImage still reports it as missing."""
    status: Literal["AVAILABLE", "ARCHIVED"] = "AVAILABLE"


@dataclass
class Upload:
    """An upload that has not been completed."""

    blobs: list[Blob] = field(default_factory=list)
    size: int = 0
    hash: hashlib._Hash = field(default_factory=hashlib.sha256)

    def store(self, blob: Blob) -> None:
        """Append a part."""
        self.blobs.append(blob)
        self.size += len(blob)
        self.hash.update(blob)


@dataclass(frozen=True)
class Image:
    """An image, or an index of images."""

    manifest: str
    media_type: str
    artifact_type: str | None
    images: frozenset[str]
    """The digests of the images in an index."""
    layers: frozenset[str]
    """The digests of the config and the layers."""
    size: int
    """Bytes of the config and the layers; for an index, of its largest image."""
    subject: str | None
    """The digest of the image that it is about."""
    pushed_at: float
    """Seconds since 1970."""


@dataclass
class Repository:
    """The content of a repository."""

    name: str
    created_at: float
    """Seconds since 1970."""
    immutable_tags: bool = False
    """Whether tags cannot be overwritten, except ``mutability_exceptions``."""
    mutability_exceptions: list[str] = field(default_factory=list)
    """Filters for tags, with ``*`` as a wildcard, to which the opposite applies."""
    scan_on_push: bool = False
    encryption: Mapping[str, object] = field(default_factory=lambda: {"encryptionType": "AES256"})
    policies: dict[str, str] = field(default_factory=dict)
    """Their texts, by their names in requests."""
    catalog_data: dict[str, object] | None = None
    resource_tags: dict[str, str] = field(default_factory=dict)
    """The tags of the repository itself."""
    uploads: dict[str, Upload] = field(default_factory=dict)
    completed: set[str] = field(default_factory=set)
    """The IDs of the completed uploads."""
    layers: dict[str, Layer] = field(default_factory=dict)
    images: dict[str, Image] = field(default_factory=dict)
    """By digest."""
    tags: dict[str, str] = field(default_factory=dict)
    """By tag: the digest of the image."""
    archived: set[str] = field(default_factory=set)
    """The digests of the archived images."""

    def is_immutable(self, tag: str) -> bool:
        """Whether ``tag`` cannot be overwritten."""
        patterns = (re.escape(text).replace(r"\*", ".*") for text in self.mutability_exceptions)
        return self.immutable_tags != any(re.fullmatch(pattern, tag) for pattern in patterns)

    def tags_by_digest(self) -> dict[str, list[str]]:
        """The tags of each image that has any, in the order in which they were added."""
        tags: dict[str, list[str]] = {}
        for tag, digest in self.tags.items():
            tags.setdefault(digest, []).append(tag)
        return tags

    def indexes_of(self, digest: str) -> list[str]:
        """The digests of the indexes that an image is in."""
        return [index for index, image in self.images.items() if digest in image.images]


@dataclass
class Content:
    """The content of a registry, and what its answers depend on."""

    unknowns: Unknowns
    part_size: int
    """What InitiateLayerUpload answers, in bytes."""
    clock: Callable[[], float]
    """The time in seconds since 1970."""
    repositories: dict[str, Repository] = field(default_factory=dict)
    random_upload_ids: bool = False
    uploads_started: int = 0

    def create(self, name: str) -> Repository:
        """Add an empty repository."""
        repository = self.repositories[name] = Repository(name, self.clock())
        return repository

    def repository(self, request: Request) -> Repository:
        """The repository that ``request`` names."""
        return self.find_repository(request.registry_id, request.repository_name)

    def find_repository(self, registry_id: str, name: str) -> Repository:
        """The repository called ``name`` in a registry."""
        repository = self.repositories.get(name)
        if repository is None or registry_id != REGISTRY_ID:
            raise EcrError(
                "RepositoryNotFoundException",
                f"The repository with name '{name}' does not exist in the registry with id "
                f"'{registry_id}'",
            )
        return repository
