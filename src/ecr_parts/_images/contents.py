"""What an image file has: descriptors with names, manifests, and where the blobs are.

References: https://github.com/opencontainers/image-spec/blob/v1.1.1/descriptor.md, and beside it
``manifest.md`` and ``image-index.md``.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ecr_parts._base.validation import is_digest, short_repr
from ecr_parts._images.documents import ErrorOf, member, parse_json
from ecr_parts._images.files import image_error, read_file
from ecr_parts._model.layers import FileRegion
from ecr_parts._model.limits import MAX_MANIFEST
from ecr_parts._model.manifests import INDEX_TYPES, MANIFEST_TYPES
from ecr_parts.errors import InvalidImageError

_OLD_TYPE = "application/vnd.docker.distribution.manifest.v1+"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
REF_NAME = "org.opencontainers.image.ref.name"
_CONTAINERD_NAME = "io.containerd.image.name"
_ATTESTED = "vnd.docker.reference.digest"
"""buildkit's annotation of an attestation in an index: the digest of what it describes."""
_COSIGN_KIND = "kind"
"""The annotation that "cosign save" writes: what its signatures and others are."""
# What an image file can take of memory is bounded, whatever it says.
_MAX_DEPTH = 5
_MAX_TOTAL = 48 * 1024 * 1024  # bytes of all manifests
_OVERHEAD = 1024  # bytes that each of them takes besides, about


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What refers to a blob or a manifest."""

    media_type: str
    digest: str
    size: int
    platform: str = ""
    """Such as ``linux/arm64/v8``; empty if there is none."""
    names: tuple[str, ...] = ()
    """Names and tags that the file gives it, the full name first."""
    has_urls: bool = False
    """Whether the blob is to be downloaded from somewhere else, not from ECR."""
    attested: str = ""
    """Of an attestation in an index: the digest of the image that it describes."""
    kind: str = ""
    """What "cosign save" says that this is."""
    data: str = ""
    """The content, in base64, if it is in the descriptor."""


@dataclass(frozen=True)
class Manifest:
    """A manifest or an index, byte for byte."""

    digest: str
    media_type: str
    content: bytes = field(repr=False)
    children: tuple[Descriptor, ...] = ()
    """Of an index: its manifests."""
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] = ()
    subject: str = ""
    """The digest of the manifest that this one refers to."""
    is_made: bool = False
    """Whether it was made here, because a docker archive has none."""

    @property
    def is_index(self) -> bool:
        return self.media_type in INDEX_TYPES

    @property
    def is_image(self) -> bool:
        """Whether it is an image's, with layers that are compressed if they are plain."""
        return self.config is not None and self.config.media_type in (OCI_CONFIG, DOCKER_CONFIG)

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """The config and the layers."""
        return (*([] if self.config is None else [self.config]), *self.layers)


@dataclass(frozen=True)
class Contents:
    """What an image file has."""

    path: str
    """For messages."""
    listed: tuple[Descriptor, ...]
    """What the file lists as its images, and what refers to them."""
    manifests: Mapping[str, Manifest]
    """By digest: those that the file has."""
    problems: Mapping[str, InvalidImageError]
    """By digest: why a manifest that the file has cannot be pushed."""
    find: Callable[[str], FileRegion | None]
    """Where the blob with a digest is; ``None`` if the file lacks it."""
    index: Manifest | None = None
    """The file's ``index.json``, if an image may be that itself."""
    notice: str = ""
    """What is not pushed, whatever is chosen."""

    def error(self, problem: str) -> InvalidImageError:
        """The error that there is a ``problem`` with this image."""
        return image_error(self.path, problem)

    def manifest(self, digest: str) -> Manifest:
        """The manifest with ``digest``. Raises ``InvalidImageError`` if it cannot be pushed."""
        if digest in self.problems:
            raise self.problems[digest]
        if digest not in self.manifests:
            raise self.error(f"it has no blob {digest}. Save the image again, whole")
        return self.manifests[digest]

    def tree(self, root: str, left_out: Collection[str] = ()) -> Iterator[Manifest]:
        """The manifest ``root`` and all below it that the file has, children before their index."""
        seen = set(left_out)

        def visit(digest: str) -> Iterator[Manifest]:
            if digest in seen or (digest not in self.manifests and digest not in self.problems):
                return
            seen.add(digest)
            manifest = self.manifest(digest)
            for child in manifest.children:
                yield from visit(child.digest)
            yield manifest

        return visit(root)


class ManifestReader:
    """Reads the manifests of an image file, each of them once."""

    def __init__(self, path: str, find: Callable[[str], FileRegion | None]) -> None:
        self._find = find
        self._total = 0
        """Bytes of all manifests."""
        self.error_of: ErrorOf = partial(image_error, path)
        self.manifests: dict[str, Manifest] = {}
        self.problems: dict[str, InvalidImageError] = {}

    def read_all(self, referring: Iterable[Descriptor], depth: int = 0) -> None:
        """Read the manifests that ``referring`` refers to, and those below them."""
        for descriptor in referring:
            digest = descriptor.digest
            if digest in self.manifests or digest in self.problems:
                continue
            try:
                manifest = self._read(descriptor)
            except InvalidImageError as error:
                self.problems[digest] = error  # matters only if this manifest is pushed
                continue
            if manifest is None:
                continue
            self.manifests[digest] = manifest
            self._total += len(manifest.content) + _OVERHEAD
            if self._total > _MAX_TOTAL:
                raise self.error_of(f"its manifests take more than {_MAX_TOTAL:,} bytes")
            if depth > _MAX_DEPTH:
                raise self.error_of(f"it has indexes in indexes, more than {_MAX_DEPTH} deep")
            self.read_all(manifest.children, depth + 1)

    def _read(self, descriptor: Descriptor) -> Manifest | None:
        digest, media_type = descriptor.digest, descriptor.media_type
        where = f"manifest {digest}"
        if media_type.startswith(_OLD_TYPE):
            raise self.error_of(f"{where} {OLD_SCHEMA}")
        if media_type not in MANIFEST_TYPES:
            raise self.error_of(
                f"{where} has the media type {short_repr(media_type)}, which is not one of an "
                "image. Save the image again in the format of OCI"
            )
        region = self._find(digest)
        if region is None:
            return None
        if region.size > MAX_MANIFEST:
            raise self.error_of(f"{where} has {region.size:,} bytes, more than {MAX_MANIFEST:,}")
        content = verified(read_file(region), digest, self.error_of)
        return parse_manifest(content, digest, media_type, self.error_of)


OLD_SCHEMA = (
    "has the schema version 1, which ECR does not accept: convert it, for example with skopeo copy "
    "--format oci, or docker pull and docker save"
)


def verified(content: bytes, digest: str, error_of: ErrorOf) -> bytes:
    """Return ``content``. Raise ``InvalidImageError`` unless it has the digest."""
    if digest_of(content) != digest:
        raise error_of(f"blob {digest} has other content. Save the image again")
    return content


def digest_of(content: bytes) -> str:
    """The digest of a manifest or a config."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def parse_manifest(
    content: bytes, digest: str, media_type: str, error_of: ErrorOf, *, is_made: bool = False
) -> Manifest:
    """A manifest or an index, its descriptors checked."""
    where = f"manifest {digest}"
    document = parse_json(content, error_of, where)
    if not isinstance(document, dict):
        raise error_of(f"{where} is not a JSON object. Save the image again")
    if document.get("schemaVersion") == 1:
        raise error_of(f"{where} {OLD_SCHEMA}")
    subject = document.get("subject")
    subject = subject.get("digest") if isinstance(subject, dict) else None
    subject = subject if isinstance(subject, str) else ""
    if media_type in INDEX_TYPES:
        if "manifests" not in document:
            raise error_of(f"{where} is no index, as its media type says. Save the image again")
        children = descriptors(document, "manifests", error_of, where)
        return Manifest(digest, media_type, content, children, subject=subject)
    config = descriptor_of(member(document, "config", dict, error_of, where), error_of, where)
    config = replace(config, has_urls=False)  # only layers may be somewhere else
    layers = descriptors(document, "layers", error_of, where)
    return Manifest(digest, media_type, content, (), config, layers, subject, is_made)


def descriptors(
    document: Mapping[str, Any], name: str, error_of: ErrorOf, where: str
) -> tuple[Descriptor, ...]:
    """The descriptors in the list ``name`` of ``document``."""
    items = document.get(name)
    if items is None:  # the JSON of an empty list, as Go writes it
        items = []
    if not isinstance(items, list):
        raise error_of(f"{where}: {name} is {short_repr(items)}. Save the image again")
    return tuple(descriptor_of(item, error_of, where) for item in items)


def descriptor_of(item: object, error_of: ErrorOf, where: str) -> Descriptor:
    """A descriptor, checked."""
    document = item if isinstance(item, dict) else {}
    media_type = member(document, "mediaType", str, error_of, where)
    digest = member(document, "digest", str, error_of, where)
    size = member(document, "size", int, error_of, where)
    if not is_digest(digest) or size < 0:
        raise error_of(f"{where} refers to {short_repr(digest)} with {size:,} bytes")
    annotations = document.get("annotations")
    annotations = annotations if isinstance(annotations, dict) else {}
    found = [annotations.get(name) for name in (_CONTAINERD_NAME, REF_NAME)]
    data = document.get("data")
    attested, kind = annotations.get(_ATTESTED), annotations.get(_COSIGN_KIND)
    return Descriptor(
        sys.intern(media_type),
        digest,
        size,
        platform_name(document.get("platform")),
        tuple(name for name in found if isinstance(name, str) and name),
        bool(document.get("urls")),
        attested if isinstance(attested, str) else "",
        kind if isinstance(kind, str) else "",
        data if isinstance(data, str) else "",
    )


def platform_name(platform: object) -> str:
    """The platform in a descriptor or a config, such as ``linux/arm64/v8``; empty if none."""
    if not isinstance(platform, dict):
        return ""
    names = [platform.get(name) for name in ("os", "architecture", "variant")]
    return sys.intern("/".join(name for name in names if isinstance(name, str) and name))
