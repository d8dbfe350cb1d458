"""What is known of a client: its methods, service, endpoint and secrets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import botocore.client

from ecr_parts._base.redaction import HIDDEN_URL, secrets_of, show_url
from ecr_parts._base.validation import short_repr
from ecr_parts._wire.answers import Answer

METHODS = {
    "BatchCheckLayerAvailability": "batch_check_layer_availability",
    "InitiateLayerUpload": "initiate_layer_upload",
    "UploadLayerPart": "upload_layer_part",
    "CompleteLayerUpload": "complete_layer_upload",
    "PutImage": "put_image",
    "DescribeImages": "describe_images",
    "BatchGetImage": "batch_get_image",
    "DescribeRepositories": "describe_repositories",
    "CreateRepository": "create_repository",
}
_FOR_LAYERS = (
    "BatchCheckLayerAvailability",
    "InitiateLayerUpload",
    "UploadLayerPart",
    "CompleteLayerUpload",
)


class EcrApi(Protocol):
    """The methods of an ``ecr`` or ``ecr-public`` client that are called."""

    def batch_check_layer_availability(
        self, *, repositoryName: str, layerDigests: Sequence[str], registryId: str = ...
    ) -> Answer: ...

    def initiate_layer_upload(self, *, repositoryName: str, registryId: str = ...) -> Answer: ...

    def upload_layer_part(
        self,
        *,
        repositoryName: str,
        uploadId: str,
        partFirstByte: int,
        partLastByte: int,
        layerPartBlob: bytes,
        registryId: str = ...,
    ) -> Answer: ...

    def complete_layer_upload(
        self,
        *,
        repositoryName: str,
        uploadId: str,
        layerDigests: Sequence[str],
        registryId: str = ...,
    ) -> Answer: ...


EcrClient: TypeAlias = EcrApi | botocore.client.BaseClient
"""A botocore or boto3 client for ``ecr`` or ``ecr-public``, or any object with the methods
``batch_check_layer_availability``, ``initiate_layer_upload``, ``upload_layer_part`` and
``complete_layer_upload``."""


class ImageApi(EcrApi, Protocol):
    """The methods of an ``ecr`` or ``ecr-public`` client that pushing an image calls."""

    def put_image(
        self,
        *,
        repositoryName: str,
        imageManifest: str,
        imageManifestMediaType: str = ...,
        imageTag: str = ...,
        imageDigest: str = ...,
        registryId: str = ...,
    ) -> Answer: ...


ImageClient: TypeAlias = ImageApi | botocore.client.BaseClient
"""An ``EcrClient`` that also has the method ``put_image``."""


def check_client(client: EcrClient) -> None:
    """Raise ``TypeError`` if a method that uploads layers is missing."""
    for operation in _FOR_LAYERS:
        _check_method(client, operation)


def check_image_client(client: EcrClient, *, creates_repository: bool) -> None:
    """Raise ``TypeError`` if a method that puts images, or creates repositories, is missing."""
    _check_method(client, "PutImage")
    if creates_repository:
        _check_method(client, "CreateRepository")


def offers(client: EcrClient, operation: str) -> bool:
    """Whether the client has the method for an operation that is optional."""
    return callable(getattr(client, METHODS[operation], None))


def _check_method(client: EcrClient, operation: str) -> None:
    method = METHODS[operation]
    if not callable(getattr(client, method, None)):
        raise TypeError(
            "client must be a botocore or boto3 client for 'ecr' or 'ecr-public', not "
            f"{short_repr(client)}, which has no {method}"
        )


def service_name(client: EcrClient) -> str | None:
    """``"ecr"`` or ``"ecr-public"``; ``None`` for a client that is not botocore's."""
    meta = getattr(client, "meta", None)
    name = getattr(getattr(meta, "service_model", None), "service_name", None)
    return name if isinstance(name, str) else None


def endpoint_url(client: EcrClient) -> str:
    """The URL that a botocore client calls; empty for other clients."""
    url = getattr(getattr(client, "meta", None), "endpoint_url", None)
    return url if isinstance(url, str) else ""


def loaded_secrets(client: EcrClient) -> list[str]:
    """The secret key, the session token and the proxies' passwords that a botocore client has.

    Only attributes are looked at: the properties of credentials that expire would refresh them. No
    public attribute has the credentials, or proxies from environment variables.
    """
    if not isinstance(client, botocore.client.BaseClient):
        return []
    values = getattr(_member(client, "_request_signer", "_credentials"), "__dict__", {})
    secrets = [values.get(name) for name in ("secret_key", "_secret_key", "token", "_token")]
    proxies = _member(client, "_endpoint", "http_session", "_proxy_config", "_proxies")
    for url in proxies.values() if isinstance(proxies, dict) else ():
        secrets += secrets_of(str(url))
    return [secret for secret in secrets if isinstance(secret, str)]


def _member(value: object, *names: str) -> object:
    for name in names:
        value = getattr(value, name, None)
    return value


def check_endpoint(client: EcrClient) -> None:
    """Raise ``ValueError`` for a URL whose errors could show a part of a password."""
    url = endpoint_url(client)
    if url and show_url(url) == HIDDEN_URL:
        raise ValueError(
            "the client's endpoint URL is malformed; it is not shown, because it may contain a "
            "password: percent-encode special characters of its user name and password"
        )
