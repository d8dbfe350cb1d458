"""ECR's rules for images, as far as they are known."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from ecr_parts._model.manifests import INDEX_TYPES, find_violation
from ecr_parts.testing._content import Content, Image, Repository
from ecr_parts.testing._parameters import (
    DIGEST,
    EcrError,
    Request,
    descriptor,
    descriptor_digests,
    invalid,
    parse_manifest,
)

_MEDIA_TYPE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9!#$&^_.+-]{0,126}/[a-zA-Z0-9!#$&^_.+-]{1,127}")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]*")
_T = TypeVar("_T")


class _NotFoundError(Exception):
    """An image that a request names does not exist: the code and the reason, as ECR says them."""


def put_image(content: Content, request: Request) -> dict[str, object]:
    """PutImage."""
    repository = content.repository(request)
    text, tag = request.get("imageManifest"), request.get("imageTag", "")
    if tag and not _TAG.fullmatch(tag):
        raise invalid("imageTag", f"must satisfy regular expression '{_TAG.pattern}'")
    digest = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    if request.get("imageDigest", digest) != digest:
        raise EcrError(
            "ImageDigestDoesNotMatchException",
            f"The digest of the manifest is {digest}, not that of the request",
        )
    image = _parse_image(content, request, text)
    _check_references(repository, image)
    layers = [repository.layers[layer].size for layer in image.layers]
    images = [repository.images[child].size for child in image.images]
    image = replace(image, size=max([sum(layers), *images]))
    if digest in repository.images and (not tag or repository.tags.get(tag) == digest):
        raise EcrError(
            "ImageAlreadyExistsException",
            f"Image with digest '{digest}' and tag '{tag}' already exists in the repository",
        )
    if repository.immutable_tags and repository.tags.get(tag, digest) != digest:
        raise EcrError(
            "ImageTagAlreadyExistsException",
            f"The image tag '{tag}' already exists in the '{repository.name}' repository and "
            "cannot be overwritten because the repository is immutable.",
        )
    repository.images.setdefault(digest, image)
    if tag:
        repository.tags[tag] = digest
    return {"image": _image(request, repository, digest, tag)}


def get_images(content: Content, request: Request) -> dict[str, object]:
    """BatchGetImage."""
    repository = content.repository(request)

    def get_one(image_id: Mapping[str, Any]) -> list[dict[str, object]]:
        digest, tag = _resolve(repository, image_id)
        return [_image(request, repository, digest, tag)]

    images, failures = _for_each(request, get_one)
    return {"images": images, "failures": failures}


def list_images(content: Content, request: Request) -> dict[str, object]:
    """ListImages."""
    repository = content.repository(request)
    tags = repository.tags_by_digest()
    image_ids = {
        f"{digest} {image_id.get('imageTag', '')}": image_id
        for digest in _filtered(tags, repository, request)
        for image_id in _image_ids(tags, digest)
    }
    page, more = request.page(image_ids)
    return {"imageIds": page, **more}


def describe_images(content: Content, request: Request) -> dict[str, object]:
    """DescribeImages."""
    repository = content.repository(request)
    image_ids = request.get("imageIds")
    tags = repository.tags_by_digest()
    more: dict[str, object] = {}
    if image_ids:
        request.refuse_paging("imageIds")
        digests = [_find(request, repository, image_id) for image_id in image_ids]
    else:
        selected = _filtered(tags, repository, request)
        digests, more = request.page({digest: digest for digest in selected})
    details = [
        _details(request, digest, repository.images[digest], tags.get(digest)) for digest in digests
    ]
    return {"imageDetails": details, **more}


def delete_images(content: Content, request: Request) -> dict[str, object]:
    """BatchDeleteImage."""
    repository = content.repository(request)

    def delete_one(image_id: Mapping[str, Any]) -> list[dict[str, str]]:
        digest, tag = _resolve(repository, image_id)
        tags = repository.tags_by_digest()
        deleted = _image_ids(tags, digest)
        if not image_id.get("imageDigest") and len(deleted) > 1:
            del repository.tags[tag]
            return [{"imageDigest": digest, "imageTag": tag}]
        if indexes := repository.indexes_of(digest):
            raise _NotFoundError(
                "ImageReferencedByManifestList",
                f"Requested image referenced by manifest list: [{', '.join(indexes)}]",
            )
        for one_tag in tags.get(digest, ()):
            del repository.tags[one_tag]
        del repository.images[digest]
        return deleted

    image_ids, failures = _for_each(request, delete_one)
    return {"imageIds": image_ids, "failures": failures}


def _parse_image(content: Content, request: Request, text: str) -> Image:
    manifest = parse_manifest(text)
    media_type = request.get("imageManifestMediaType") or manifest.get("mediaType")
    violation = find_violation(manifest, media_type)
    if violation is not None:
        raise invalid("ImageManifest", violation.constraint)
    if not isinstance(media_type, str) or not _MEDIA_TYPE.fullmatch(media_type):
        raise invalid("imageManifestMediaType", "must be a media type")
    config, subject = descriptor(manifest, "config"), descriptor(manifest, "subject")
    layers = [config["digest"]] if config else []
    layers += descriptor_digests(manifest, "layers")
    images = descriptor_digests(manifest, "manifests")
    is_index = media_type in INDEX_TYPES
    artifact_type = manifest.get("artifactType") or config.get("mediaType")
    return Image(
        manifest=text,
        media_type=media_type,
        artifact_type=artifact_type if isinstance(artifact_type, str) else None,
        images=frozenset(images if is_index else ()),
        layers=frozenset(() if is_index else layers),
        size=0,
        subject=subject.get("digest"),
        pushed_at=content.clock(),
    )


def _check_references(repository: Repository, image: Image) -> None:
    missing = sorted(image.images - set(repository.images))
    if missing:
        raise EcrError(
            "ReferencedImagesNotFoundException",
            f"Not found in the repository: {', '.join(missing)}",
        )
    for digest in sorted(image.layers):
        layer = repository.layers.get(digest)
        if layer is None:
            missing.append(digest)
        elif layer.image_lag:
            layer.image_lag -= 1
            missing.append(digest)
    if missing:
        raise EcrError(
            "LayersNotFoundException", f"Not found in the repository: {', '.join(missing)}"
        )


def _for_each(
    request: Request, act: Callable[[Mapping[str, Any]], list[_T]]
) -> tuple[list[_T], list[dict[str, object]]]:
    """What ``act`` returns for the images that ``request`` names, and the failures."""
    done: list[_T] = []
    failures: list[dict[str, object]] = []
    for image_id in request.get("imageIds"):
        try:
            done += act(image_id)
        except _NotFoundError as error:
            code, reason = error.args
            failures.append({"imageId": image_id, "failureCode": code, "failureReason": reason})
    return done, failures


def _resolve(repository: Repository, image_id: Mapping[str, Any]) -> tuple[str, str]:
    """The digest of the image that ``image_id`` names, and the tag in ``image_id``."""
    tag, digest = image_id.get("imageTag", ""), image_id.get("imageDigest", "")
    if not tag and not digest:
        raise _NotFoundError(
            "MissingDigestAndTag",
            "Invalid request parameters: both tag and digest cannot be null",
        )
    if digest and not DIGEST.fullmatch(digest):
        raise _NotFoundError(
            "InvalidImageDigest",
            f"Invalid request parameters: image digest should satisfy the regex '{DIGEST.pattern}'",
        )
    tagged = repository.tags.get(tag, "")
    if (digest or tagged) not in repository.images or (tag and not tagged):
        raise _NotFoundError("ImageNotFound", "Requested image not found")
    if digest and tag and tagged != digest:
        raise _NotFoundError(
            "ImageTagDoesNotMatchDigest", f"The tag '{tag}' is not a tag of the image '{digest}'"
        )
    return digest or tagged, tag


def _find(request: Request, repository: Repository, image_id: Mapping[str, Any]) -> str:
    try:
        return _resolve(repository, image_id)[0]
    except _NotFoundError as error:
        digest, tag = image_id.get("imageDigest", "null"), image_id.get("imageTag", "null")
        raise EcrError(
            "ImageNotFoundException",
            f"The image with imageId {{imageDigest:'{digest}', imageTag:'{tag}'}} does not exist "
            f"within the repository with name '{repository.name}' in the registry with id "
            f"'{request.registry_id}'",
        ) from error


def _filtered(tags: Mapping[str, list[str]], repository: Repository, request: Request) -> list[str]:
    """The digests of the images that the filter of ``request`` selects."""
    status = request.get("filter", {}).get("tagStatus", "ANY")
    return [
        digest
        for digest in repository.images
        if status == "ANY" or (status == "TAGGED") == (digest in tags)
    ]


def _image_ids(tags: Mapping[str, list[str]], digest: str) -> list[dict[str, str]]:
    """One image ID for each tag of an image, or one without a tag."""
    tagged = [{"imageDigest": digest, "imageTag": tag} for tag in tags.get(digest, ())]
    return tagged or [{"imageDigest": digest}]


def _image(request: Request, repository: Repository, digest: str, tag: str) -> dict[str, object]:
    image = repository.images[digest]
    return request.echo(
        imageId={"imageDigest": digest} | ({"imageTag": tag} if tag else {}),
        imageManifest=image.manifest,
        imageManifestMediaType=image.media_type,
    )


def _details(
    request: Request, digest: str, image: Image, tags: list[str] | None
) -> dict[str, object]:
    optional = {
        "imageTags": tags,
        "artifactMediaType": image.artifact_type,
        "subjectManifestDigest": None if request.public else image.subject,
    }
    return request.echo(
        imageDigest=digest,
        imageSizeInBytes=image.size,
        imagePushedAt=image.pushed_at,
        imageManifestMediaType=image.media_type,
        **{name: value for name, value in optional.items() if value is not None},
    )
