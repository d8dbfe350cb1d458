"""A registry in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from ecr_parts._base.validation import check_int, short_repr
from ecr_parts._model.limits import ECR_LIMITS, ECR_PUBLIC_LIMITS, Limits
from ecr_parts.testing._archive import update_storage_class
from ecr_parts.testing._content import Content, Repository
from ecr_parts.testing._images import (
    delete_images,
    describe_image_tags,
    describe_images,
    get_images,
    list_images,
    list_referrers,
    put_image,
)
from ecr_parts.testing._parameters import REGISTRY_ID, REPOSITORY_NAME, EcrError, Request
from ecr_parts.testing._repositories import (
    create_repository,
    delete_repository,
    describe_registries,
    describe_repositories,
    get_authorization_token,
)
from ecr_parts.testing._service_model import check_parameters, has_operation
from ecr_parts.testing._settings import (
    LIFECYCLE_POLICY,
    REPOSITORY_POLICY,
    get_catalog_data,
    list_tags,
    put_catalog_data,
    put_scanning_configuration,
    put_tag_mutability,
    tag_resource,
    untag_resource,
)
from ecr_parts.testing._unknowns import Unknowns
from ecr_parts.testing._uploads import (
    check_availability,
    complete_upload,
    get_download_url,
    initiate_upload,
    upload_part,
)

_PART_SIZE = 10_485_760  # bytes, as in the examples of the AWS documentation

OPERATIONS: dict[str, Callable[[Content, Request], dict[str, object]]] = {
    "BatchCheckLayerAvailability": check_availability,
    "BatchDeleteImage": delete_images,
    "BatchGetImage": get_images,
    "CompleteLayerUpload": complete_upload,
    "CreateRepository": create_repository,
    "DeleteLifecyclePolicy": LIFECYCLE_POLICY.delete,
    "DeleteRepository": delete_repository,
    "DeleteRepositoryPolicy": REPOSITORY_POLICY.delete,
    "DescribeImageTags": describe_image_tags,
    "DescribeImages": describe_images,
    "DescribeRegistries": describe_registries,
    "DescribeRepositories": describe_repositories,
    "GetAuthorizationToken": get_authorization_token,
    "GetDownloadUrlForLayer": get_download_url,
    "GetLifecyclePolicy": LIFECYCLE_POLICY.get,
    "GetRepositoryCatalogData": get_catalog_data,
    "GetRepositoryPolicy": REPOSITORY_POLICY.get,
    "InitiateLayerUpload": initiate_upload,
    "ListImageReferrers": list_referrers,
    "ListImages": list_images,
    "ListTagsForResource": list_tags,
    "PutImage": put_image,
    "PutImageScanningConfiguration": put_scanning_configuration,
    "PutImageTagMutability": put_tag_mutability,
    "PutLifecyclePolicy": LIFECYCLE_POLICY.put,
    "PutRepositoryCatalogData": put_catalog_data,
    "SetRepositoryPolicy": REPOSITORY_POLICY.put,
    "TagResource": tag_resource,
    "UntagResource": untag_resource,
    "UpdateImageStorageClass": update_storage_class,
    "UploadLayerPart": upload_part,
}
"""The operations that LocalECR offers, as far as the service and botocore's model have them."""
_UPLOADS = (
    "BatchCheckLayerAvailability",
    "CompleteLayerUpload",
    "InitiateLayerUpload",
    "PutImage",
    "UploadLayerPart",
)


class Registry:
    """A registry in memory, without I/O. ``call`` is its API.

    ``limits`` defaults to those of ECR or ECR Public. ``part_size`` (bytes) is what
    InitiateLayerUpload answers, by default 10 MiB or the maximum of ``limits``. ``clock`` returns
    the time in seconds since 1970. Upload IDs are the same in each run, unless
    ``random_upload_ids`` is true.
    """

    __module__ = "ecr_parts.testing"

    def __init__(
        self,
        repositories: Iterable[str] = (),
        *,
        limits: Limits | None = None,
        part_size: int | None = None,
        unknowns: Unknowns | None = None,
        clock: Callable[[], float] = time.time,
        random_upload_ids: bool = False,
    ) -> None:
        if isinstance(repositories, str | bytes) or not isinstance(repositories, Iterable):
            shown = short_repr(repositories)
            raise TypeError(f"repositories must be an iterable of names, not {shown}")
        if limits is not None and not isinstance(limits, Limits):
            raise TypeError(f"limits must be a Limits or None, not {short_repr(limits)}")
        if unknowns is not None and not isinstance(unknowns, Unknowns):
            raise TypeError(f"unknowns must be an Unknowns or None, not {short_repr(unknowns)}")
        if part_size is None:
            part_size = min(_PART_SIZE, (limits or ECR_LIMITS).max_part)
        self._limits = limits
        self._content = Content(
            unknowns or Unknowns(),
            check_int("part_size", part_size),
            clock,
            random_upload_ids=random_upload_ids,
        )
        for name in repositories:
            if not isinstance(name, str):
                raise TypeError(f"repositories must be names, not {short_repr(name)}")
            if not REPOSITORY_NAME.fullmatch(name):
                raise ValueError(f"repositories: {short_repr(name)} is not a valid repository name")
            self._content.create(name)

    @property
    def repositories(self) -> dict[str, Repository]:
        """The repositories by name."""
        return self._content.repositories

    def call(
        self,
        operation: str,
        parameters: Mapping[str, object],
        *,
        public: bool = False,
        endpoint_url: str = "http://127.0.0.1",
    ) -> dict[str, object]:
        """Carry out a call to ECR or ECR Public, and return its answer. Raises ``EcrError``.

        ``endpoint_url`` is where the URLs in answers lead to.
        """
        service = "ECR Public" if public else "ECR"
        if not has_operation(operation, public=public):
            message = f"{service} has no operation {operation}, as far as botocore knows"
            raise EcrError("UnknownOperationException", message)
        if operation not in OPERATIONS:
            message = (
                f"LocalECR does not offer {operation} of {service}: help(LocalECR) lists what it "
                "offers"
            )
            raise EcrError("UnknownOperationException", message)
        limits = self._limits or (ECR_PUBLIC_LIMITS if public else ECR_LIMITS)
        checked = check_parameters(operation, parameters, public=public)
        request = Request(checked, limits, public=public, endpoint_url=endpoint_url)
        if public and operation in _UPLOADS and request.registry_id != REGISTRY_ID:
            raise EcrError(
                "RegistryNotFoundException",
                f"The registry with id '{request.registry_id}' does not exist",
            )
        return OPERATIONS[operation](self._content, request)

    def forget_upload(self, repository_name: str, upload_id: str) -> None:
        """Lose an upload, as ECR does after some time (how long is not documented)."""
        repository = self.repositories.get(repository_name)
        if repository is not None:
            repository.uploads.pop(upload_id, None)
