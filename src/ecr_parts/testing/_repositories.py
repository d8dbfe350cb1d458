"""ECR's rules for repositories, and its authorization token."""

from __future__ import annotations

import base64

from ecr_parts.testing._content import Content, Repository
from ecr_parts.testing._parameters import REGISTRY_ID, EcrError, Request
from ecr_parts.testing._settings import describe_settings, set_up

_TOKEN_LIFETIME = 12 * 3600  # seconds, as the AWS documentation says


def create_repository(content: Content, request: Request) -> dict[str, object]:
    """CreateRepository."""
    name = request.repository_name
    if name in content.repositories:
        raise EcrError(
            "RepositoryAlreadyExistsException",
            f"The repository with name '{name}' already exists in the registry with id "
            f"'{request.registry_id}'",
        )
    repository = Repository(name, content.clock())
    set_up(repository, request)
    content.repositories[name] = repository
    answer: dict[str, object] = {"repository": _describe(request, repository)}
    if repository.catalog_data is not None:
        answer["catalogData"] = repository.catalog_data
    return answer


def describe_repositories(content: Content, request: Request) -> dict[str, object]:
    """DescribeRepositories."""
    if names := request.get("repositoryNames"):
        request.refuse_paging("repositoryNames")
        found = [content.find_repository(request.registry_id, name) for name in names]
        return {"repositories": [_describe(request, one) for one in found]}
    mine = content.repositories if request.registry_id == REGISTRY_ID else {}
    page, more = request.page(mine)
    return {"repositories": [_describe(request, one) for one in page], **more}


def delete_repository(content: Content, request: Request) -> dict[str, object]:
    """DeleteRepository."""
    repository, force = content.repository(request), request.get("force")
    if repository.images and not force:
        raise EcrError(
            "RepositoryNotEmptyException",
            f"The repository with name '{repository.name}' in registry with id "
            f"'{request.registry_id}' cannot be deleted because it still contains images",
        )
    del content.repositories[repository.name]
    return {"repository": _describe(request, repository)}


def describe_registries(_content: Content, request: Request) -> dict[str, object]:
    """DescribeRegistries. The registry has no alias, and none is in the URIs of repositories."""
    registry = {
        "registryId": REGISTRY_ID,
        "registryArn": f"arn:aws:ecr-public::{REGISTRY_ID}:registry/{REGISTRY_ID}",
        "registryUri": _host(request),
        "verified": False,
        "aliases": [],
    }
    page, more = request.page({REGISTRY_ID: registry})
    return {"registries": page, **more}


def get_authorization_token(content: Content, request: Request) -> dict[str, object]:
    """GetAuthorizationToken. Pulls need no token, and any is accepted."""
    data: dict[str, object] = {
        "authorizationToken": base64.b64encode(b"AWS:local").decode(),
        "expiresAt": content.clock() + _TOKEN_LIFETIME,
    }
    if request.public:
        return {"authorizationData": data}
    data["proxyEndpoint"] = request.endpoint_url
    registries = request.get("registryIds", [REGISTRY_ID])
    return {"authorizationData": [data for _ in registries]}


def _describe(request: Request, repository: Repository) -> dict[str, object]:
    service = "ecr-public" if request.public else "ecr"
    region = "" if request.public else "us-east-1"
    described: dict[str, object] = {
        "repositoryArn": f"arn:aws:{service}:{region}:{REGISTRY_ID}:repository/{repository.name}",
        "registryId": REGISTRY_ID,
        "repositoryName": repository.name,
        "repositoryUri": f"{_host(request)}/{repository.name}",
        "createdAt": repository.created_at,
    }
    return described if request.public else described | describe_settings(repository)


def _host(request: Request) -> str:
    """The host and port in the URIs of repositories."""
    return request.endpoint_url.partition("://")[2]
