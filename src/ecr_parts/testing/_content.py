"""What a registry stores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
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
    uploads: dict[str, Upload] = field(default_factory=dict)
    completed: set[str] = field(default_factory=set)
    """The IDs of the completed uploads."""
    layers: dict[str, Layer] = field(default_factory=dict)
    images: dict[str, Image] = field(default_factory=dict)
    """By digest."""
    tags: dict[str, str] = field(default_factory=dict)
    """By tag: the digest of the image."""

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

    def create(self, name: str, *, immutable_tags: bool = False) -> Repository:
        """Add an empty repository."""
        repository = Repository(name, self.clock(), immutable_tags)
        self.repositories[name] = repository
        return repository

    def repository(self, request: Request) -> Repository:
        """The repository that ``request`` names."""
        return self.find_repository(request, request.repository_name)

    def find_repository(self, request: Request, name: str) -> Repository:
        """The repository called ``name`` in the registry that ``request`` names."""
        repository = self.repositories.get(name)
        if repository is None or request.registry_id != REGISTRY_ID:
            raise EcrError(
                "RepositoryNotFoundException",
                f"The repository with name '{name}' does not exist in the registry with id "
                f"'{request.registry_id}'",
            )
        return repository
