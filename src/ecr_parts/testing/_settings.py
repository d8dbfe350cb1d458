"""ECR's rules for the settings of a repository: mutability, scanning, policies, catalog and tags.

Policies are kept and returned as they were given, and not evaluated. Nothing is scanned.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ecr_parts.testing._body import parse_json
from ecr_parts.testing._content import Content, Repository
from ecr_parts.testing._parameters import EcrError, Request, invalid

_ARN = re.compile(
    r"arn:[a-z-]+:(?P<service>[a-z-]+):[a-z0-9-]*:(?P<account>[0-9]{12}):(?P<rest>.+)"
)
_MAX_TAGS = 50
_MAX_TAG_KEY = 128  # characters
_MAX_TAG_VALUE = 256  # characters
_MAX_WILDCARDS = 2  # in one filter, as the user guide says


def set_up(repository: Repository, request: Request) -> None:
    """Keep the settings that CreateRepository gives a new repository."""
    _set_mutability(repository, request)
    _set_tags(repository, request.get("tags", ()))
    scanning = request.get("imageScanningConfiguration", {})
    repository.scan_on_push = scanning.get("scanOnPush", False)
    repository.encryption = request.get("encryptionConfiguration", repository.encryption)
    if "catalogData" in request:
        repository.catalog_data = _catalog_data(request)


def describe_settings(repository: Repository) -> dict[str, object]:
    """The settings in a description of the repository. ECR Public has none."""
    return {
        **_mutability(repository),
        "imageScanningConfiguration": {"scanOnPush": repository.scan_on_push},
        "encryptionConfiguration": repository.encryption,
    }


# Mutability of tags, and scanning


def put_tag_mutability(content: Content, request: Request) -> dict[str, object]:
    """PutImageTagMutability."""
    repository = content.repository(request)
    _set_mutability(repository, request)
    return request.echo(**_mutability(repository))


def put_scanning_configuration(content: Content, request: Request) -> dict[str, object]:
    """PutImageScanningConfiguration."""
    repository = content.repository(request)
    scanning = request.get("imageScanningConfiguration")
    repository.scan_on_push = scanning.get("scanOnPush", False)
    return request.echo(imageScanningConfiguration={"scanOnPush": repository.scan_on_push})


def _set_mutability(repository: Repository, request: Request) -> None:
    mutability = request.get("imageTagMutability", "MUTABLE")
    kind, _, exclusion = mutability.partition("_WITH_")
    filters = [item["filter"] for item in request.get("imageTagMutabilityExclusionFilters", ())]
    if bool(filters) != bool(exclusion):
        needed = "is required with" if exclusion else "must not be used with"
        raise invalid("imageTagMutabilityExclusionFilters", f"{needed} {mutability}")
    if any(text.count("*") > _MAX_WILDCARDS for text in filters):
        raise invalid(
            "imageTagMutabilityExclusionFilters",
            f"a filter must have {_MAX_WILDCARDS} wildcards (*) at most",
        )
    repository.immutable_tags = kind == "IMMUTABLE"
    repository.mutability_exceptions = filters


def _mutability(repository: Repository) -> dict[str, object]:
    mutability = "IMMUTABLE" if repository.immutable_tags else "MUTABLE"
    if not repository.mutability_exceptions:
        return {"imageTagMutability": mutability}
    return {
        "imageTagMutability": f"{mutability}_WITH_EXCLUSION",
        "imageTagMutabilityExclusionFilters": [
            {"filterType": "WILDCARD", "filter": text} for text in repository.mutability_exceptions
        ],
    }


# Policies


@dataclass(frozen=True)
class Policy:
    """A kind of policy, and the calls for it."""

    member: str
    """Its text in requests and answers."""
    name: str
    """As in ECR's messages."""
    not_found: str
    """The code of the error if the repository has none."""

    def put(self, content: Content, request: Request) -> dict[str, object]:
        """SetRepositoryPolicy or PutLifecyclePolicy."""
        repository, text = content.repository(request), request.get(self.member)
        if not _is_json_object(text):
            name = f"{self.member[0].upper()}{self.member[1:]}"
            raise invalid(name, f"Invalid {self.name.lower()} provided")
        repository.policies[self.member] = text
        return request.echo(**{self.member: text})

    def get(self, content: Content, request: Request) -> dict[str, object]:
        """GetRepositoryPolicy or GetLifecyclePolicy."""
        policies = content.repository(request).policies
        if self.member not in policies:
            raise _not_found(self.not_found, self.name, request)
        return request.echo(**{self.member: policies[self.member]})

    def delete(self, content: Content, request: Request) -> dict[str, object]:
        """DeleteRepositoryPolicy or DeleteLifecyclePolicy."""
        answer = self.get(content, request)
        del content.repository(request).policies[self.member]
        return answer


REPOSITORY_POLICY = Policy("policyText", "Repository policy", "RepositoryPolicyNotFoundException")
LIFECYCLE_POLICY = Policy(
    "lifecyclePolicyText", "Lifecycle policy", "LifecyclePolicyNotFoundException"
)


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(parse_json(text), dict)
    except (RecursionError, ValueError):
        return False


def _not_found(code: str, name: str, request: Request) -> EcrError:
    return EcrError(
        code,
        f"{name} does not exist for the repository with name '{request.repository_name}' in the "
        f"registry with id '{request.registry_id}'",
    )


# The catalog of ECR Public


def put_catalog_data(content: Content, request: Request) -> dict[str, object]:
    """PutRepositoryCatalogData."""
    repository = content.repository(request)
    repository.catalog_data = _catalog_data(request)
    return {"catalogData": repository.catalog_data}


def get_catalog_data(content: Content, request: Request) -> dict[str, object]:
    """GetRepositoryCatalogData."""
    data = content.repository(request).catalog_data
    if data is None:
        code = "RepositoryCatalogDataNotFoundException"
        raise _not_found(code, "Repository catalog data", request)
    return {"catalogData": data}


def _catalog_data(request: Request) -> dict[str, object]:
    """The catalog data of a request. Its logo is not kept: LocalECR has no URL for it."""
    given = request.get("catalogData")
    return {name: value for name, value in given.items() if name != "logoImageBlob"}


# Tags of repositories


def tag_resource(content: Content, request: Request) -> dict[str, object]:
    """TagResource."""
    _set_tags(_tagged_repository(content, request), request.get("tags"))
    return {}


def untag_resource(content: Content, request: Request) -> dict[str, object]:
    """UntagResource."""
    tags = _tagged_repository(content, request).resource_tags
    for key in request.get("tagKeys"):
        tags.pop(key, None)
    return {}


def list_tags(content: Content, request: Request) -> dict[str, object]:
    """ListTagsForResource."""
    tags = _tagged_repository(content, request).resource_tags
    return {"tags": [{"Key": key, "Value": value} for key, value in tags.items()]}


def _tagged_repository(content: Content, request: Request) -> Repository:
    """The repository whose ARN a request has, in any region."""
    arn = _ARN.fullmatch(request.get("resourceArn"))
    service = "ecr-public" if request.public else "ecr"
    if arn is None or arn["service"] != service or not arn["rest"].startswith("repository/"):
        raise invalid("resourceArn", "Invalid ARN")
    return content.find_repository(arn["account"], arn["rest"].partition("/")[2])


def _set_tags(repository: Repository, tags: Iterable[Mapping[str, Any]]) -> None:
    new = {tag.get("Key", ""): tag.get("Value", "") for tag in tags}
    for key, value in new.items():
        if not 1 <= len(key) <= _MAX_TAG_KEY or len(value) > _MAX_TAG_VALUE:
            raise EcrError(
                "InvalidTagParameterException",
                f"The key of a tag must have 1 to {_MAX_TAG_KEY} characters, and its value up to "
                f"{_MAX_TAG_VALUE}",
            )
        if key.lower().startswith("aws:"):
            raise EcrError(
                "InvalidTagParameterException", "The prefix 'aws:' of a tag's key is reserved"
            )
    if len(repository.resource_tags.keys() | new) > _MAX_TAGS:
        raise EcrError("TooManyTagsException", f"A repository must have {_MAX_TAGS} tags at most")
    repository.resource_tags.update(new)
