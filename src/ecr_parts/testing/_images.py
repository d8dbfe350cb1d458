"""ECR's rules for images, as far as they are known."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ecr_parts.testing._content import Content, Image, Repository
from ecr_parts.testing._parameters import (
    EcrError,
    Request,
    descriptor_digests,
    invalid,
    parse_manifest,
)

_INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_DIGEST = re.compile(r"[a-zA-Z0-9-_+.]+:[a-fA-F0-9]+")  # as in ECR's own message
_T = TypeVar("_T")


class _NotFoundError(Exception):
    """An image that a request names does not exist: the code and the reason, as ECR says them."""


def put_image(content: Content, request: Request) -> dict[str, object]:
    """PutImage."""
    repository = content.repository(request)
    text, tag = request.text("imageManifest"), request.text("imageTag", "")
    digest = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    if request.text("imageDigest", digest) != digest:
        raise EcrError(
            "ImageDigestDoesNotMatchException",
            f"The digest of the manifest is {digest}, not that of the request",
        )
    image = _parse_image(content, request, text)
    _check_references(repository, image)
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
    image_ids = {
        f"{digest} {image_id.get('imageTag', '')}": image_id
        for digest in _filtered(repository, request)
        for image_id in _image_ids(repository, digest)
    }
    page, more = request.page(image_ids)
    return {"imageIds": page, **more}


def describe_images(content: Content, request: Request) -> dict[str, object]:
    """DescribeImages."""
    repository = content.repository(request)
    image_ids = request.items("imageIds", dict, optional=True)
    more: dict[str, object] = {}
    if image_ids:
        request.refuse_paging("imageIds")
        digests = [_find(request, repository, image_id) for image_id in image_ids]
    else:
        digests, more = request.page({digest: digest for digest in _filtered(repository, request)})
    return {"imageDetails": [_details(request, repository, one) for one in digests], **more}


def delete_images(content: Content, request: Request) -> dict[str, object]:
    """BatchDeleteImage."""
    repository = content.repository(request)

    def delete_one(image_id: Mapping[str, Any]) -> list[dict[str, str]]:
        digest, tag = _resolve(repository, image_id)
        deleted = _image_ids(repository, digest)
        if "imageDigest" not in image_id and len(deleted) > 1:
            del repository.tags[tag]
            return [{"imageDigest": digest, "imageTag": tag}]
        if indexes := repository.indexes_of(digest):
            raise _NotFoundError(
                "ImageReferencedByManifestList",
                f"Requested image referenced by manifest list: [{', '.join(indexes)}]",
            )
        for one_tag in repository.tags_of(digest):
            del repository.tags[one_tag]
        del repository.images[digest]
        return deleted

    image_ids, failures = _for_each(request, delete_one)
    return {"imageIds": image_ids, "failures": failures}


def _parse_image(content: Content, request: Request, text: str) -> Image:
    manifest = parse_manifest(text)
    media_type = request.text("imageManifestMediaType", "") or manifest.get("mediaType")
    if not media_type or not isinstance(media_type, str):
        raise EcrError(
            "InvalidParameterException",
            "image manifest mediatype not provided in manifest or parameter",
        )
    config = descriptor_digests(manifest, "config")
    layers = config + descriptor_digests(manifest, "layers")
    images = descriptor_digests(manifest, "manifests")
    is_index = media_type in _INDEX_TYPES
    artifact_type = manifest.get("artifactType") or (
        manifest["config"].get("mediaType") if config else None
    )
    return Image(
        manifest=text,
        media_type=media_type,
        artifact_type=artifact_type if isinstance(artifact_type, str) else None,
        images=frozenset(images if is_index else ()),
        layers=frozenset(() if is_index else layers),
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
    for image_id in request.items("imageIds", dict):
        try:
            done += act(image_id)
        except _NotFoundError as error:
            code, reason = error.args
            failures.append({"imageId": image_id, "failureCode": code, "failureReason": reason})
    return done, failures


def _resolve(repository: Repository, image_id: Mapping[str, Any]) -> tuple[str, str]:
    """The digest of the image that ``image_id`` names, and the tag in ``image_id``."""
    tag, digest = image_id.get("imageTag", ""), image_id.get("imageDigest", "")
    if not isinstance(tag, str) or not isinstance(digest, str):
        raise invalid("imageIds", "has a member of the wrong type")
    if not tag and not digest:
        raise _NotFoundError(
            "MissingDigestAndTag",
            "Invalid request parameters: both tag and digest cannot be null",
        )
    if digest and not _DIGEST.fullmatch(digest):
        raise _NotFoundError(
            "InvalidImageDigest",
            "Invalid request parameters: image digest should satisfy the regex "
            f"'{_DIGEST.pattern}'",
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


def _filtered(repository: Repository, request: Request) -> list[str]:
    """The digests of the images that the filter of ``request`` selects."""
    status = request.nested("filter").choice("tagStatus", "ANY", "TAGGED", "UNTAGGED")
    tagged = set(repository.tags.values())
    return [
        digest
        for digest in repository.images
        if status == "ANY" or (status == "TAGGED") == (digest in tagged)
    ]


def _image_ids(repository: Repository, digest: str) -> list[dict[str, str]]:
    """One image ID for each tag of an image, or one without a tag."""
    tagged = [{"imageDigest": digest, "imageTag": tag} for tag in repository.tags_of(digest)]
    return tagged or [{"imageDigest": digest}]


def _image(request: Request, repository: Repository, digest: str, tag: str) -> dict[str, object]:
    image = repository.images[digest]
    return request.echo(
        imageId={"imageDigest": digest} | ({"imageTag": tag} if tag else {}),
        imageManifest=image.manifest,
        imageManifestMediaType=image.media_type,
    )


def _details(request: Request, repository: Repository, digest: str) -> dict[str, object]:
    image, tags = repository.images[digest], repository.tags_of(digest)
    return request.echo(
        imageDigest=digest,
        **({"imageTags": tags} if tags else {}),
        imageSizeInBytes=repository.image_size(digest),
        imagePushedAt=image.pushed_at,
        imageManifestMediaType=image.media_type,
        **({"artifactMediaType": image.artifact_type} if image.artifact_type else {}),
    )
