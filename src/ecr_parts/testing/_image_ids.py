"""The images that a request names, by digest or tag."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ecr_parts.testing._content import Repository
from ecr_parts.testing._parameters import DIGEST, EcrError, Request

_T = TypeVar("_T")


class ImageFailureError(Exception):
    """Why a request cannot be carried out for one image: the code and the reason, as ECR says."""


def for_each_image(
    request: Request, act: Callable[[Mapping[str, Any]], list[_T]]
) -> tuple[list[_T], list[dict[str, object]]]:
    """What ``act`` returns for the images that ``request`` names, and the failures."""
    done: list[_T] = []
    failures: list[dict[str, object]] = []
    for image_id in request.get("imageIds"):
        try:
            done += act(image_id)
        except ImageFailureError as error:
            code, reason = error.args
            failures.append({"imageId": image_id, "failureCode": code, "failureReason": reason})
    return done, failures


def resolve_image(repository: Repository, image_id: Mapping[str, Any]) -> tuple[str, str]:
    """The digest of the image that ``image_id`` names, and the tag in ``image_id``.

    Raises ``ImageFailureError``.
    """
    tag, digest = image_id.get("imageTag", ""), image_id.get("imageDigest", "")
    if not tag and not digest:
        raise ImageFailureError(
            "MissingDigestAndTag",
            "Invalid request parameters: both tag and digest cannot be null",
        )
    if digest and not DIGEST.fullmatch(digest):
        raise ImageFailureError(
            "InvalidImageDigest",
            f"Invalid request parameters: image digest should satisfy the regex '{DIGEST.pattern}'",
        )
    tagged = repository.tags.get(tag, "")
    if (digest or tagged) not in repository.images or (tag and not tagged):
        raise ImageFailureError("ImageNotFound", "Requested image not found")
    if digest and tag and tagged != digest:
        raise ImageFailureError(
            "ImageTagDoesNotMatchDigest", f"The tag '{tag}' is not a tag of the image '{digest}'"
        )
    return digest or tagged, tag


def find_image(request: Request, repository: Repository, image_id: Mapping[str, Any]) -> str:
    """The digest of the image that ``image_id`` names. Raises ``EcrError``."""
    try:
        return resolve_image(repository, image_id)[0]
    except ImageFailureError as error:
        digest, tag = image_id.get("imageDigest", "null"), image_id.get("imageTag", "null")
        raise EcrError(
            "ImageNotFoundException",
            f"The image with imageId {{imageDigest:'{digest}', imageTag:'{tag}'}} does not exist "
            f"within the repository with name '{repository.name}' in the registry with id "
            f"'{request.registry_id}'",
        ) from error
