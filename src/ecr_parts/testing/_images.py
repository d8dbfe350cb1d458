"""ECR's rules for images, as far as they are known."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

from ecr_parts._model.manifests import INDEX_TYPES, find_violation
from ecr_parts.testing._archive import delete_image, image_status, restore_image
from ecr_parts.testing._content import Content, Image, Repository
from ecr_parts.testing._image_ids import (
    ImageFailureError,
    find_image,
    for_each_image,
    resolve_image,
)
from ecr_parts.testing._parameters import (
    RESTORE_IMAGE,
    RESTORE_LAYER,
    EcrError,
    Request,
    descriptor,
    descriptor_digests,
    invalid,
    parse_manifest,
)

_MEDIA_TYPE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9!#$&^_.+-]{0,126}/[a-zA-Z0-9!#$&^_.+-]{1,127}")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]*")


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
    is_archived = digest in repository.archived
    if not is_archived:
        _check_references(repository, image)
    layers = [repository.layers[layer].size for layer in image.layers]
    images = [repository.images[child].size for child in image.images]
    image = replace(image, size=max([sum(layers), *images]))
    is_known = digest in repository.images and (not tag or repository.tags.get(tag) == digest)
    if is_known and not is_archived:
        raise EcrError(
            "ImageAlreadyExistsException",
            f"Image with digest '{digest}' and tag '{tag}' already exists in the repository with "
            f"name '{repository.name}' in registry with id '{request.registry_id}'",
        )
    if repository.is_immutable(tag) and repository.tags.get(tag, digest) != digest:
        raise EcrError(
            "ImageTagAlreadyExistsException",
            f"The image tag '{tag}' already exists in the '{repository.name}' repository and "
            "cannot be overwritten because the tag is immutable.",
        )
    repository.images.setdefault(digest, image)
    if is_archived:
        # "When you push an image that is currently archived, that image will be immediately
        # restored": AWS's user guide, "Restoring an image".
        restore_image(repository, digest)
    if tag:
        repository.tags[tag] = digest
    return {"image": _image(request, repository, digest, tag)}


def get_images(content: Content, request: Request) -> dict[str, object]:
    """BatchGetImage."""
    repository = content.repository(request)

    def get_one(image_id: Mapping[str, Any]) -> list[dict[str, object]]:
        digest, tag = resolve_image(repository, image_id)
        if digest in repository.archived:
            raise ImageFailureError(
                "ImageInaccessible", f"The image '{digest}' is archived: {RESTORE_IMAGE}"
            )
        return [_image(request, repository, digest, tag)]

    images, failures = for_each_image(request, get_one)
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
        digests = [find_image(request, repository, image_id) for image_id in image_ids]
    else:
        selected = _filtered(tags, repository, request)
        digests, more = request.page({digest: digest for digest in selected})
    details = [
        request.echo(**_details(request, repository, digest, tags.get(digest)))
        for digest in digests
    ]
    return {"imageDetails": details, **more}


def describe_image_tags(content: Content, request: Request) -> dict[str, object]:
    """DescribeImageTags. A tag is as old as its image."""
    repository = content.repository(request)
    details = {
        tag: {
            "imageTag": tag,
            "createdAt": repository.images[digest].pushed_at,
            "imageDetail": _details(request, repository, digest),
        }
        for tag, digest in repository.tags.items()
    }
    page, more = request.page(details)
    return {"imageTagDetails": page, **more}


def list_referrers(content: Content, request: Request) -> dict[str, object]:
    """ListImageReferrers."""
    repository, wanted = content.repository(request), request.get("filter", {})
    types, status = wanted.get("artifactTypes"), wanted.get("artifactStatus", "ACTIVE")
    referrers = {
        digest: _referrer(repository, digest)
        for digest, image in repository.images.items()
        if image.subject == request.get("subjectId")["imageDigest"]
        and (not types or image.artifact_type in types)
        and status in ("ANY", image_status(repository, digest))
    }
    page, more = request.page(referrers, default_size=20)
    return {"referrers": page, **more}


def delete_images(content: Content, request: Request) -> dict[str, object]:
    """BatchDeleteImage."""
    repository = content.repository(request)

    def delete_one(image_id: Mapping[str, Any]) -> list[dict[str, str]]:
        digest, tag = resolve_image(repository, image_id)
        tags = repository.tags_by_digest()
        deleted = _image_ids(tags, digest)
        if not image_id.get("imageDigest") and len(deleted) > 1:
            del repository.tags[tag]
            return [{"imageDigest": digest, "imageTag": tag}]
        if indexes := repository.indexes_of(digest):
            raise ImageFailureError(
                "ImageReferencedByManifestList",
                f"Requested image referenced by manifest list: [{', '.join(indexes)}]",
            )
        for one_tag in tags.get(digest, ()):
            del repository.tags[one_tag]
        delete_image(repository, digest)
        return deleted

    image_ids, failures = for_each_image(request, delete_one)
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
    _raise_if_missing(
        "ReferencedImagesNotFoundException",
        image.images - set(repository.images),
        image.images & repository.archived,
        RESTORE_IMAGE,
    )
    missing: set[str] = set()
    archived: set[str] = set()
    for digest in image.layers:
        layer = repository.layers.get(digest)
        if layer is None:
            missing.add(digest)
        elif layer.status == "ARCHIVED":
            archived.add(digest)
        elif layer.image_lag:
            layer.image_lag -= 1
            missing.add(digest)
    _raise_if_missing("LayersNotFoundException", missing, archived, RESTORE_LAYER)


def _raise_if_missing(
    code: str, missing: AbstractSet[str], archived: AbstractSet[str], remedy: str
) -> None:
    if missing:
        raise EcrError(code, f"Not found in the repository: {', '.join(sorted(missing))}")
    if archived:
        raise EcrError(code, f"Archived: {', '.join(sorted(archived))}: {remedy}")


def _filtered(tags: Mapping[str, list[str]], repository: Repository, request: Request) -> list[str]:
    """The digests of the images that the filter of ``request`` selects."""
    wanted = request.get("filter", {})
    tag_status, status = wanted.get("tagStatus", "ANY"), wanted.get("imageStatus", "ACTIVE")
    return [
        digest
        for digest in repository.images
        if (tag_status == "ANY" or (tag_status == "TAGGED") == (digest in tags))
        and status in ("ANY", image_status(repository, digest))
    ]


def _referrer(repository: Repository, digest: str) -> dict[str, object]:
    """A descriptor of an image, as OCI's list of referrers has it."""
    image = repository.images[digest]
    optional = {
        "artifactType": image.artifact_type,
        "annotations": parse_manifest(image.manifest).get("annotations"),
    }
    return {
        "digest": digest,
        "mediaType": image.media_type,
        "size": len(image.manifest.encode()),
        "artifactStatus": image_status(repository, digest),
        **{name: value for name, value in optional.items() if value},
    }


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
    request: Request, repository: Repository, digest: str, tags: list[str] | None = None
) -> dict[str, object]:
    image = repository.images[digest]
    optional = {"imageTags": tags, "artifactMediaType": image.artifact_type}
    if not request.public:
        optional["subjectManifestDigest"] = image.subject
        optional["imageStatus"] = image_status(repository, digest)
    return {
        "imageDigest": digest,
        "imageSizeInBytes": image.size,
        "imagePushedAt": image.pushed_at,
        "imageManifestMediaType": image.media_type,
        **{name: value for name, value in optional.items() if value is not None},
    }
