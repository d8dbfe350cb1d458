"""The parameters of a request to the registry, and the errors that it answers."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar, cast

from ecr_parts._model.limits import REPOSITORY_NAME as NAME_PATTERN
from ecr_parts._model.limits import Limits
from ecr_parts.testing._body import parse_json

REGISTRY_ID = "012345678910"
"""The account that owns the registry, as in the examples of the AWS documentation."""

REPOSITORY_NAME = re.compile(rf"(?=.{{2,256}}$){NAME_PATTERN.pattern}")
"""The names of repositories, with their length."""
DIGEST = re.compile(r"[a-zA-Z0-9-_+.]+:[a-fA-F0-9]+")  # as in ECR's own message
RESTORE_IMAGE = "restore it with UpdateImageStorageClass"
"""What to do about an image that is archived."""
RESTORE_LAYER = "restore its image with UpdateImageStorageClass"
"""What to do about a layer that is archived."""
_T = TypeVar("_T")


_STATUS = {"ServerException": 500, "InvalidSignatureException": 403}
"""Of errors whose HTTP status is not 400."""


class EcrError(Exception):
    """An error of ECR: its code, its message and further fields of the answer."""

    __module__ = "ecr_parts.testing"

    def __init__(self, code: str, message: str, **fields: object) -> None:
        super().__init__(message)
        self.code = code
        self.status: int = _STATUS.get(code, 400)
        self.body: dict[str, object] = {"message": message, **fields}

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), self.code, **cast("dict[str, Any]", self.body)), ()


class Request:
    """The parameters of a request, checked against the service's model."""

    def __init__(
        self, parameters: Mapping[str, Any], limits: Limits, *, public: bool, endpoint_url: str
    ) -> None:
        self._parameters = parameters
        self.limits = limits
        self.public = public
        """Whether it is a request to ECR Public."""
        self.endpoint_url = endpoint_url
        """Where the URLs in the answer lead to."""
        self.registry_id: str = self.get("registryId", REGISTRY_ID)

    @property
    def repository_name(self) -> str:
        return str(self.get("repositoryName"))

    def get(self, name: str, default: Any = None) -> Any:
        """The parameter ``name``. ``default`` is for one that the request does not have."""
        return self._parameters.get(name, default)

    def __contains__(self, name: str) -> bool:
        return name in self._parameters

    def page(
        self, items: Mapping[str, _T], default_size: int = 100
    ) -> tuple[list[_T], dict[str, object]]:
        """The page of ``items`` to answer, in the order of their keys, and ``nextToken``."""
        size: int = self.get("maxResults", default_size)
        last_key = self._last_key()
        keys = sorted(key for key in items if key > last_key)
        page = [items[key] for key in keys[:size]]
        if len(keys) <= size:
            return page, {}
        return page, {"nextToken": base64.urlsafe_b64encode(keys[size - 1].encode()).decode()}

    def _last_key(self) -> str:
        """The key of the last item of the page before this one."""
        token = self.get("nextToken", "")
        try:
            return base64.b64decode(token, altchars=b"-_", validate=True).decode()
        except ValueError as error:
            raise invalid("nextToken", "must be a token that this operation returned") from error

    def refuse_paging(self, name: str) -> None:
        """Raise ``EcrError`` if a request that has the parameter ``name`` asks for a page."""
        if "maxResults" in self._parameters or "nextToken" in self._parameters:
            raise invalid(name, "must not be used together with maxResults and nextToken")

    def echo(self, **fields: object) -> dict[str, object]:
        """An answer that repeats the registry ID and the repository name."""
        return {
            "registryId": self.registry_id,
            "repositoryName": self.repository_name,
            **fields,
        }


def invalid(name: str, constraint: str) -> EcrError:
    """The error for a parameter that violates ``constraint``."""
    return EcrError(
        "InvalidParameterException",
        f"Invalid parameter at '{name}' failed to satisfy constraint: '{constraint}'",
    )


def parse_manifest(text: str) -> dict[str, Any]:
    """The JSON object of a manifest."""
    try:
        manifest = parse_json(text)
    except (RecursionError, ValueError) as error:
        raise invalid("ImageManifest", "Invalid JSON syntax") from error
    if not isinstance(manifest, dict):
        raise invalid("imageManifest", "must be a JSON object")
    return manifest


def descriptor(manifest: Mapping[str, Any], member: str) -> dict[str, Any]:
    """The descriptor in a manifest's ``config`` or ``subject``; empty if there is none."""
    found = manifest.get(member)
    if found is None:
        return {}
    if not isinstance(found, dict) or not isinstance(found.get("digest"), str):
        raise invalid("imageManifest", f"its {member} must be a descriptor with a digest")
    return found


def descriptor_digests(manifest: Mapping[str, Any], member: str) -> list[str]:
    """The digests of the descriptors in a manifest's ``layers`` or ``manifests``."""
    descriptors = manifest.get(member) or []
    if not isinstance(descriptors, list):
        raise invalid("imageManifest", f"its {member} must be descriptors")
    digests = [item.get("digest") if isinstance(item, dict) else None for item in descriptors]
    if not all(isinstance(digest, str) for digest in digests):
        raise invalid("imageManifest", f"its {member} must be descriptors with digests")
    return cast("list[str]", digests)
