"""The rules for manifests and indexes: what ECR refuses, as far as it is known.

LocalECR and ``push_image`` use the same rules, so that what the one accepts, the other does not
refuse. Public reports of ECR's refusals: https://github.com/werf/werf/issues/2544 (no layers),
https://github.com/cirruslabs/tart/issues/890 (too many), and many of 'Invalid JSON syntax'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ecr_parts._base.validation import is_digest, short_repr
from ecr_parts._model.limits import MAX_IMAGE_LAYERS

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEX_TYPES = (OCI_INDEX, DOCKER_INDEX)
MANIFEST_TYPES = (*INDEX_TYPES, OCI_MANIFEST, DOCKER_MANIFEST)
_SYNTAX = "Invalid JSON syntax"


@dataclass(frozen=True)
class Violation:
    """Why ECR refuses a manifest."""

    constraint: str
    """As ECR says it."""
    problem: str
    """What is wrong, and what to do. It follows the name of the manifest."""


def find_violation(document: Mapping[str, Any], media_type: object) -> Violation | None:
    """The first rule that a manifest violates; ``None`` if it violates none.

    ``media_type`` is what PutImage gets as a parameter, or else what the document has.
    """
    return next(_violations(document, media_type), None)


def _violations(document: Mapping[str, Any], media_type: object) -> Iterator[Violation]:
    own_type = document.get("mediaType")
    if not isinstance(media_type, str) or not media_type:
        yield Violation(_SYNTAX, "has no media type: pass it, or write it into the manifest")
    if own_type not in (None, "", media_type):
        shown = f"{short_repr(own_type)}, and {short_repr(media_type)} where it is referred to"
        yield Violation(_SYNTAX, f"has two media types: {shown}. Save the image again")
    is_index = media_type in INDEX_TYPES
    if is_index:
        yield from _descriptors(document, "manifests")
    elif media_type in MANIFEST_TYPES:
        yield from _descriptor("config", document.get("config"))
        layers = document.get("layers")
        if not layers:
            yield Violation(
                "Image has to have at least 1 layer",
                "has no layers, and ECR accepts no image without a layer: add an empty one",
            )
        if isinstance(layers, list) and len(layers) > MAX_IMAGE_LAYERS:
            yield Violation(
                "Limit on number of layers per image exceeded",
                f"has {len(layers):,} layers, and ECR accepts {MAX_IMAGE_LAYERS}: merge some of "
                "them",
            )
        yield from _descriptors(document, "layers")
    if document.get("subject") is not None:
        yield from _descriptor("subject", document["subject"])


def _descriptors(document: Mapping[str, Any], name: str) -> Iterator[Violation]:
    items = document.get(name)
    if isinstance(items, list):
        for item in items:
            yield from _descriptor(f"one of its {name}", item)
    else:
        yield Violation(_SYNTAX, f"has no list of {name}, but {short_repr(items)}")


def _descriptor(name: str, item: object) -> Iterator[Violation]:
    document = item if isinstance(item, dict) else {}
    media_type, digest, size = (document.get(key) for key in ("mediaType", "digest", "size"))
    if not isinstance(media_type, str) or not media_type:
        yield Violation(_SYNTAX, f"has no descriptor as {name}, but {short_repr(item)}")
    elif ";" in media_type:
        yield Violation(
            _SYNTAX,
            f"has the media type {short_repr(media_type)} for {name}, and ECR accepts none with "
            "parameters (;): write the manifest without them",
        )
    if not isinstance(digest, str) or not is_digest(digest):
        yield Violation(_SYNTAX, f"has the digest {short_repr(digest)} for {name}, not sha256:...")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        yield Violation(_SYNTAX, f"has the size {short_repr(size)} for {name}")
