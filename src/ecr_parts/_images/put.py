"""Putting a manifest that the caller wrote, and the checks that ``push_image`` shares with it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from ecr_parts._base.validation import check_name, short_repr
from ecr_parts._images.choice import TAG
from ecr_parts._images.contents import digest_of
from ecr_parts._images.documents import ErrorOf, refuse_constant
from ecr_parts._model.layers import PushedImage
from ecr_parts._model.limits import MAX_MANIFEST
from ecr_parts._model.manifests import MANIFEST_TYPES, find_violation
from ecr_parts._wire.api import check_image_client
from ecr_parts._wire.call import outcome_of
from ecr_parts._wire.repository import Repository
from ecr_parts.errors import InvalidImageError

_MAX_DEPTH = 100  # of lists and mappings in each other; those of manifests are about 5 deep


def put_manifest(
    repository: Repository,
    manifest: Mapping[str, Any] | bytes | str,
    media_type: str | None,
    tags: Iterable[str] | None,
) -> PushedImage:
    """``LayerUploader.put_manifest``."""
    check_image_client(repository.target.client, creates_repository=False)
    names = check_names("tags", tags, TAG) or ()
    if media_type is not None:
        check_name("media_type", media_type)
    content = _encode(manifest)
    media_type = _check(content, media_type)
    digest = digest_of(content)
    check_immutable_tags(repository, digest, names, _cannot_be_put)
    done: list[str] = []
    for tag in names or (None,):
        put = partial(repository.put_image, digest, media_type, content.decode(), tag)
        failed = outcome_of(put)
        if failed is not None:
            if done:
                failed.error.args = (f"{failed.error}. It was put as {', '.join(done)}",)
                failed.error.manifests = (digest,)
            raise failed.error
        done += [] if tag is None else [tag]
    return PushedImage(digest, media_type, names, (), size=len(content))


def check_names(
    name: str, values: Iterable[str] | None, pattern: re.Pattern[str]
) -> tuple[str, ...] | None:
    """Each of ``values`` once. Raise ``TypeError`` or ``ValueError`` unless all match."""
    if values is None:
        return None
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be an iterable of str, not {short_repr(values)}: pass a list")
    checked = dict.fromkeys(_check_one(name, value, pattern) for value in values)
    return tuple(checked)


def _check_one(name: str, value: object, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be an iterable of str, not of {short_repr(value)}")
    if not pattern.fullmatch(value):
        raise ValueError(f"{name}: {short_repr(value)} does not match {pattern.pattern}")
    return value


def check_immutable_tags(
    repository: Repository, digest: str, tags: Iterable[str], error_of: ErrorOf
) -> None:
    """Raise ``InvalidImageError`` if an immutable tag is that of another image than ``digest``."""
    if not tags or repository.has_mutable_tags():
        return
    for tag in tags:
        found = repository.digest_of_tag(tag)
        if found not in (None, digest):
            raise error_of(
                f"the tag {tag} is immutable and that of {found}, and this is {digest}: push with "
                "another tag, or delete that image"
            )


def _encode(manifest: object) -> bytes:
    if isinstance(manifest, bytes):
        return manifest
    if isinstance(manifest, str):
        return _utf8(manifest)
    if not isinstance(manifest, Mapping):
        raise TypeError(f"manifest must be a mapping, bytes or str, not {short_repr(manifest)}")
    plain = _plain(manifest, "manifest")
    try:
        text = json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError as error:  # an int of thousands of digits
        raise ValueError(f"manifest must be JSON: {error}") from error
    return _utf8(text)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ValueError("manifest must be text without lone surrogates") from None


def _plain(value: object, where: str, depth: int = 0) -> object:
    """``value`` with nothing but what JSON has, so that no key and no number changes in silence."""
    if depth > _MAX_DEPTH:
        raise ValueError(
            f"manifest must be at most {_MAX_DEPTH} levels deep: something in it contains itself"
        )
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where} must have keys of type str, not {short_repr(key)}")
        return {
            key: _plain(item, f"{where}[{short_repr(key)}]", depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} must be a number that JSON has, not {value}")
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"{where} must be what JSON has, not {short_repr(value)}")


def _check(content: bytes, media_type: str | None) -> str:
    """The media type of a manifest. Raise ``ValueError`` if ECR, or any client, would refuse it."""
    if len(content) > MAX_MANIFEST:
        raise _invalid(f"has {len(content):,} bytes, more than {MAX_MANIFEST:,}")
    try:
        document = json.loads(content.decode(), parse_constant=refuse_constant)
    except (RecursionError, ValueError) as error:
        raise _invalid(f"is not JSON in UTF-8: {error}") from error
    if not isinstance(document, dict):
        raise _invalid(f"is not a JSON object, but {short_repr(document)}")
    if document.get("schemaVersion") != 2:  # OCI image specification 1.1, manifest and index
        version = short_repr(document.get("schemaVersion"))
        raise _invalid(f"must have the schemaVersion 2, not {version}")
    own_type = document.get("mediaType") or None
    if None not in (media_type, own_type) and media_type != own_type:
        raise ValueError(
            f"media_type must be that of the manifest, {short_repr(own_type)}, or omitted, not "
            f"{short_repr(media_type)}"
        )
    found = media_type or own_type
    if found is None:
        raise ValueError("media_type must be passed, because the manifest has no mediaType")
    if found not in MANIFEST_TYPES:
        raise ValueError(
            f"media_type must be one of {', '.join(MANIFEST_TYPES)}, not {short_repr(found)}"
        )
    violation = find_violation(document, found)
    if violation is not None:
        raise _invalid(violation.problem)
    return str(found)


def _invalid(problem: str) -> InvalidImageError:
    return InvalidImageError(f"the manifest {problem}")


def _cannot_be_put(problem: str) -> InvalidImageError:
    return _invalid(f"cannot be put: {problem}")
