"""OCI image layouts: their manifests and blobs, checked.

The OCI image specification: https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from ecr_parts._base.validation import is_digest, short_repr
from ecr_parts._images.files import ImageFiles, image_error, read_file
from ecr_parts._model.layers import FileRegion, Layer
from ecr_parts._model.limits import MAX_IMAGE_LAYERS, MAX_MANIFEST
from ecr_parts.errors import InvalidImageError

_T = TypeVar("_T")
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
_INDEX_TYPES = (OCI_INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_MANIFEST_TYPES = ("application/vnd.oci.image.manifest.v1+json", DOCKER_MANIFEST)
_REF_NAME = "org.opencontainers.image.ref.name"
_ATTESTED = "vnd.docker.reference.digest"
"""The annotation of an attestation in an index: the digest of the image that it describes."""
# What an image can take of memory is bounded, whatever its indexes say.
_MAX_MANIFESTS = 2_000
_MAX_DEPTH = 5
_MAX_TOTAL = 64 * 1024 * 1024  # bytes of all manifests
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,299}")  # 300 characters (API reference)


@dataclass(frozen=True)
class Manifest:
    """A manifest or an index, byte for byte."""

    digest: str
    media_type: str
    content: bytes = field(repr=False)
    blobs: tuple[Layer, ...]
    """The config and the layers; those of an index belong to its manifests."""


@dataclass(frozen=True)
class Image:
    """An image whose files are all there."""

    manifests: tuple[Manifest, ...]
    """In the order in which to put them: the last one is that of the image itself."""
    tags: tuple[str, ...]
    """The tags that it has where it was read."""

    @property
    def blobs(self) -> list[Layer]:
        """The configs and the layers, each of them once."""
        blobs = (blob for manifest in self.manifests for blob in manifest.blobs)
        return list({blob.digest: blob for blob in blobs}.values())


def read_layout(files: ImageFiles, platforms: Sequence[str] | None) -> Image:
    """The image of an OCI image layout. Raises ``InvalidImageError``."""
    reader = _LayoutReader(files)
    index = read_json(files, "index.json", reader.error)
    descriptors = reader.items(index, "manifests", "index.json")
    by_digest = {descriptor.digest: descriptor for descriptor in descriptors}
    if len(by_digest) != 1:
        raise InvalidImageError(
            f"{files.path!r} has {len(by_digest)} images: pass a layout with one. They are "
            f"{', '.join(map(_describe, descriptors)) or 'none'}"
        )
    (root,) = by_digest.values()
    names = [descriptor.annotations.get(_REF_NAME) for descriptor in descriptors]
    if platforms is None:
        reader.read_manifest(root, depth=0)
    else:
        reader.read_platforms(root, platforms)
    tags = tuple(dict.fromkeys(tag for name in names if (tag := tag_of(name))))
    return Image(tuple(reader.manifests.values()), tags)


def tag_of(reference: object) -> str | None:
    """The tag in the name of an image, such as ``registry:5000/app:v1`` or ``v1``."""
    if not isinstance(reference, str) or "@" in reference:
        return None
    name = reference.rpartition("/")[2]
    tag = name.rpartition(":")[2]
    if "/" in reference and ":" not in name:
        return None
    return tag if TAG.fullmatch(tag) else None


@dataclass(frozen=True)
class _Descriptor:
    media_type: str
    digest: str
    size: int
    platform: str
    """Such as ``linux/arm64/v8``; empty if there is none."""
    annotations: Mapping[str, Any]
    has_urls: bool
    """Whether the blob is to be downloaded from somewhere else, not from ECR."""
    attested: str | None
    """For an attestation: the digest of the image that it describes."""
    document: Mapping[str, Any]


def _describe(descriptor: _Descriptor) -> str:
    name = descriptor.annotations.get(_REF_NAME) or descriptor.platform
    return f"{descriptor.digest} ({name})" if isinstance(name, str) and name else descriptor.digest


class _LayoutReader:
    def __init__(self, files: ImageFiles) -> None:
        self._files = files
        self._total = 0
        """Bytes of all manifests."""
        self._sizes: dict[str, int] = {}
        """By digest, what descriptors say."""
        self.manifests: dict[str, Manifest] = {}
        """By digest, in the order in which to put them."""

    def read_manifest(self, descriptor: _Descriptor, depth: int) -> None:
        """Read the manifest that ``descriptor`` refers to, after those that it refers to."""
        if descriptor.digest in self.manifests:
            return
        where = f"manifest {descriptor.digest}"
        if descriptor.media_type not in _INDEX_TYPES + _MANIFEST_TYPES:
            raise self.error(
                f"{where} has the media type {short_repr(descriptor.media_type)}, which is not one "
                "of an image. Save the image again in the format of OCI"
            )
        if depth > _MAX_DEPTH or len(self.manifests) >= _MAX_MANIFESTS:
            raise self.error(f"it has more than {_MAX_MANIFESTS:,} manifests, or too deep a tree")
        content, document = self._read_verified(descriptor, where)
        self._total += len(content)
        if self._total > _MAX_TOTAL:
            raise self.error(f"it has manifests of more than {_MAX_TOTAL:,} bytes")
        blobs: tuple[Layer, ...] = ()
        if descriptor.media_type in _INDEX_TYPES:
            for child in self.items(document, "manifests", where):
                self.read_manifest(child, depth + 1)
        else:
            blobs = tuple(self._blobs(document, where))
        manifest = Manifest(descriptor.digest, descriptor.media_type, content, blobs)
        self.manifests[descriptor.digest] = manifest

    def read_platforms(self, root: _Descriptor, platforms: Sequence[str]) -> None:
        """Read only the images for ``platforms``."""
        where = f"manifest {root.digest}"
        if root.media_type not in _INDEX_TYPES:
            found = [self._with_platform(root)]
        else:
            _, index = self._read_verified(root, where)
            found = self.items(index, "manifests", where)
        chosen = [
            descriptor
            for descriptor in found
            if any(_fits(descriptor.platform, platform) for platform in platforms)
        ]
        for platform in platforms:
            if not any(_fits(descriptor.platform, platform) for descriptor in chosen):
                there = sorted({descriptor.platform or "none" for descriptor in found})
                raise self.error(
                    f"it has no image for the platform {short_repr(platform)}. Available: "
                    f"{', '.join(there)}"
                )
        if len(chosen) > 1:
            digests = {descriptor.digest for descriptor in chosen}
            chosen += [one for one in found if one.attested in digests]
        for descriptor in chosen:
            self.read_manifest(descriptor, depth=1)
        if len(chosen) == len(found) > 1:
            self.read_manifest(root, depth=0)
        elif len(chosen) > 1:
            kept = [descriptor.document for descriptor in chosen]
            manifest = create_manifest({**index, "manifests": kept}, root.media_type, ())
            self.manifests[manifest.digest] = manifest

    def _with_platform(self, descriptor: _Descriptor) -> _Descriptor:
        """A descriptor with the platform that the image's config tells."""
        where = f"manifest {descriptor.digest}"
        _, manifest = self._read_verified(descriptor, where)
        config = self.descriptor(member(manifest, "config", dict, self.error, where), where)
        _, document = self._read_verified(config, f"config {config.digest}")
        return self.descriptor({**descriptor.document, "platform": document}, where)

    def _blobs(self, document: Mapping[str, Any], where: str) -> Iterator[Layer]:
        config = self.descriptor(member(document, "config", dict, self.error, where), where)
        layers = self.items(document, "layers", where)
        check_layer_count(len(layers), self.error, where)
        self._check_digest(config)
        for descriptor in (config, *layers):
            # A layer may be downloaded from its URLs instead of ECR.
            if descriptor is config or not descriptor.has_urls or self._has_blob(descriptor):
                region = self._find_blob(descriptor)
                yield Layer(region, digest=descriptor.digest, size=descriptor.size)

    def _has_blob(self, descriptor: _Descriptor) -> bool:
        return self._files.find(_blob_name(descriptor)) is not None

    def _find_blob(self, descriptor: _Descriptor) -> FileRegion:
        region = self._files.find(_blob_name(descriptor))
        if region is None:
            raise self.error(f"it has no blob {descriptor.digest}. Save the image again, whole")
        if not region.size:
            raise self.error(f"blob {descriptor.digest} is empty, and ECR rejects empty layers")
        if region.size != descriptor.size:
            raise self.error(
                f"blob {descriptor.digest} has {region.size:,} bytes instead of "
                f"{descriptor.size:,}. Save the image again"
            )
        return region

    def _check_digest(self, descriptor: _Descriptor) -> None:
        """Verify the digest of a config, if it is small enough to be read at once."""
        region = self._find_blob(descriptor)
        if region.size <= MAX_MANIFEST:
            self._verified(descriptor.digest, read_file(region))

    def _read_verified(self, descriptor: _Descriptor, where: str) -> tuple[bytes, dict[str, Any]]:
        """The content and the JSON object of a manifest or a config."""
        if descriptor.size > MAX_MANIFEST:
            raise self.error(f"{where} has {descriptor.size:,} bytes, more than {MAX_MANIFEST:,}")
        content = self._verified(descriptor.digest, read_file(self._find_blob(descriptor)))
        return content, parse_json(content, self.error, where)

    def _verified(self, digest: str, content: bytes) -> bytes:
        if f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
            raise self.error(f"blob {digest} has other content. Save the image again")
        return content

    def items(self, document: Mapping[str, Any], name: str, where: str) -> list[_Descriptor]:
        """The descriptors in the list ``name`` of ``document``."""
        items = member(document, name, list, self.error, where)
        return [self.descriptor(item, where) for item in items]

    def descriptor(self, item: object, where: str) -> _Descriptor:
        """A descriptor, checked."""
        media_type = member(item, "mediaType", str, self.error, where)
        digest = member(item, "digest", str, self.error, where)
        size = member(item, "size", int, self.error, where)
        document = item if isinstance(item, dict) else {}
        if not is_digest(digest) or size < 0:
            raise self.error(f"{where} refers to {short_repr(digest)} with {size:,} bytes")
        if self._sizes.setdefault(digest, size) != size:
            raise self.error(
                f"{where} says that {digest} has {size:,} bytes, and another descriptor that it "
                f"has {self._sizes[digest]:,}. Save the image again"
            )
        annotations = document.get("annotations")
        annotations = annotations if isinstance(annotations, dict) else {}
        attested = annotations.get(_ATTESTED)
        return _Descriptor(
            media_type,
            digest,
            size,
            _platform_name(document.get("platform")),
            annotations,
            bool(document.get("urls")),
            attested if isinstance(attested, str) else None,
            document,
        )

    def error(self, message: str) -> InvalidImageError:
        """An error that names the layout."""
        return image_error(self._files.path, message)


def _blob_name(descriptor: _Descriptor) -> str:
    return f"blobs/sha256/{descriptor.digest.partition(':')[2]}"


def create_manifest(
    document: Mapping[str, Any], media_type: str, blobs: tuple[Layer, ...]
) -> Manifest:
    """A new manifest. Numbers are written as they were read by ``parse_json``."""
    content = _write_json(document)
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return Manifest(digest, media_type, content, blobs)


ErrorOf = Callable[[str], InvalidImageError]
"""Creates the error for a message about an image."""


def read_json(files: ImageFiles, name: str, error_of: ErrorOf) -> Any:
    """The JSON value in the file called ``name``."""
    return parse_json(read_file(find_json(files, name, error_of)), error_of, name)


def find_json(files: ImageFiles, name: str, error_of: ErrorOf) -> FileRegion:
    """Where the file called ``name`` is, which must be small enough to be read at once."""
    region = files.find(name)
    if region is None:
        raise error_of(f"it has no {name}. Save the image again, whole")
    if region.size > MAX_MANIFEST:
        raise error_of(f"{name} has {region.size:,} bytes, more than {MAX_MANIFEST:,}")
    return region


def parse_json(content: bytes, error_of: ErrorOf, where: str) -> Any:
    """The value of JSON in UTF-8. Numbers with a point or an exponent keep their digits."""
    try:
        return json.loads(content.decode(), parse_float=_Number, parse_constant=_refuse_constant)
    except (RecursionError, ValueError) as error:
        raise error_of(f"{where} is not JSON: {error}. Save the image again") from error


@dataclass(frozen=True)
class _Number:
    """A number that is written as it was read: a ``float`` would round it, or be infinite."""

    text: str


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _write_json(document: Mapping[str, Any]) -> bytes:
    """JSON whose numbers are those that ``parse_json`` has read."""
    mark = secrets.token_hex(16)  # which nothing in the document can have been made to look like
    text = json.dumps(_with_marks(document, mark))
    return re.sub(f'"{mark}([^"]*)"', r"\1", text).encode()


def _with_marks(value: Any, mark: str) -> Any:
    if isinstance(value, _Number):
        return mark + value.text
    if isinstance(value, dict):
        return {key: _with_marks(item, mark) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_marks(item, mark) for item in value]
    return value


def member(item: object, name: str, kind: type[_T], error_of: ErrorOf, where: str) -> _T:
    """A member of a JSON object."""
    value = item.get(name) if isinstance(item, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise error_of(f"{where}: {name} is {short_repr(value)}. Save the image again")
    return value


def check_layer_count(count: int, error_of: ErrorOf, where: str) -> None:
    """Raise ``InvalidImageError`` for an image with more layers than ECR accepts."""
    if count > MAX_IMAGE_LAYERS:
        raise error_of(
            f"{where} has {count:,} layers, and ECR accepts {MAX_IMAGE_LAYERS}: merge some of them"
        )


def _platform_name(platform: object) -> str:
    if not isinstance(platform, dict):
        return ""
    names = [platform.get(name) for name in ("os", "architecture", "variant")]
    return "/".join(name for name in names if isinstance(name, str) and name)


def check_platform(config: Mapping[str, Any], platforms: Sequence[str], error_of: ErrorOf) -> None:
    """Raise ``InvalidImageError`` unless an image is for one of ``platforms``, and for no other."""
    there = _platform_name(config)
    for platform in platforms:
        if not _fits(there, platform):
            raise error_of(
                f"it has no image for the platform {short_repr(platform)}. Available: "
                f"{there or 'none'}"
            )


def _fits(platform: str, wanted: str) -> bool:
    """Whether ``platform`` is ``wanted``, which may leave the variant out."""
    return platform == wanted or platform.startswith(f"{wanted}/")
