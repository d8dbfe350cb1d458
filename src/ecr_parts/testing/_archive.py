"""ECR's archive, as far as it is known: images that cannot be pulled until they are restored.

https://docs.aws.amazon.com/AmazonECR/latest/userguide/archive_restore_image.html
"""

from __future__ import annotations

from ecr_parts.testing._content import Content, Repository
from ecr_parts.testing._image_ids import find_image
from ecr_parts.testing._parameters import Request


def update_storage_class(content: Content, request: Request) -> dict[str, object]:
    """UpdateImageStorageClass. An image is restored at once, and not within minutes."""
    repository, image_id = content.repository(request), request.get("imageId")
    digest = find_image(request, repository, image_id)
    if request.get("targetStorageClass") == "ARCHIVE":
        repository.archived.add(digest)
        active = set(repository.images) - repository.archived
        shared = {layer for one in active for layer in repository.images[one].layers}
        for layer in repository.images[digest].layers - shared:
            repository.layers[layer].status = "ARCHIVED"
    else:
        restore_image(repository, digest)
    return request.echo(imageId=image_id, imageStatus=image_status(repository, digest))


def restore_image(repository: Repository, digest: str) -> None:
    """Make an image active, and its layers available."""
    repository.archived.discard(digest)
    for layer in repository.images[digest].layers:
        repository.layers[layer].status = "AVAILABLE"


def delete_image(repository: Repository, digest: str) -> None:
    """Delete an image, and its archived layers that no other has: nothing could restore them."""
    image = repository.images.pop(digest)
    repository.archived.discard(digest)
    shared = {layer for other in repository.images.values() for layer in other.layers}
    for layer in image.layers - shared:
        if repository.layers[layer].status == "ARCHIVED":
            del repository.layers[layer]


def image_status(repository: Repository, digest: str) -> str:
    """``"ACTIVE"`` or ``"ARCHIVED"``."""
    return "ARCHIVED" if digest in repository.archived else "ACTIVE"
