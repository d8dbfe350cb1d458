"""The parameters of a request to the registry, and the errors that it answers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar, cast

from ecr_parts._limits import Limits

REGISTRY_ID = "012345678910"
"""The account that owns the registry, as in the examples of the AWS documentation."""

REPOSITORY_NAME = re.compile(
    r"(?=.{2,256}$)[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*"
)
_T = TypeVar("_T")


class EcrError(Exception):
    """An error of ECR: its code, its message and further fields of the answer."""

    __module__ = "ecr_parts.testing"

    def __init__(self, code: str, message: str, **fields: object) -> None:
        super().__init__(message)
        self.code = code
        self.status = 500 if code == "ServerException" else 400
        self.body: dict[str, object] = {"message": message, **fields}

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), self.code, **cast("dict[str, Any]", self.body)), ()


class Request:
    """The parameters of a request, checked for their types."""

    def __init__(self, parameters: Mapping[str, object], limits: Limits) -> None:
        self._parameters = parameters
        self.limits = limits
        self.registry_id = self.text("registryId", REGISTRY_ID)
        self.repository_name = self.text("repositoryName")
        if not REPOSITORY_NAME.fullmatch(self.repository_name):
            raise invalid(
                "repositoryName", f"must satisfy regular expression '{REPOSITORY_NAME.pattern}'"
            )

    def text(self, name: str, default: str | None = None) -> str:
        text = self._get(name, str, default)
        if not _is_unicode(text):
            raise invalid(name, "must be valid Unicode")
        return text

    def number(self, name: str) -> int:
        return self._get(name, int, None)

    def blob(self, name: str) -> bytes:
        return self._get(name, bytes, None)

    def items(self, name: str, kind: type[_T]) -> list[_T]:
        items: list[_T] = self._get(name, list, None)
        if not 1 <= len(items) <= 100:
            raise invalid(name, f"must have 1 to 100 members, not {len(items)}")
        if not all(isinstance(item, kind) for item in items):
            raise invalid(name, "has a member of the wrong type")
        return items

    def _get(self, name: str, kind: type[_T], default: _T | None) -> _T:
        value = self._parameters.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, kind) or isinstance(value, bool):
            raise invalid(name, "is missing" if value is None else "has the wrong type")
        return value

    def echo(self, **fields: object) -> dict[str, object]:
        """An answer that repeats the registry ID and the repository name."""
        return {
            "registryId": self.registry_id,
            "repositoryName": self.repository_name,
            **fields,
        }


def _is_unicode(text: str) -> bool:
    """Whether ``text`` can be encoded: JSON may hold half of a surrogate pair."""
    return text.encode(errors="replace").decode() == text


def invalid(name: str, reason: str) -> EcrError:
    return EcrError("InvalidParameterException", f"Invalid parameter at '{name}': {reason}")


def parse_manifest(text: str) -> dict[str, Any]:
    """The JSON object of a manifest."""
    try:
        manifest = json.loads(text)
    except (RecursionError, ValueError) as error:
        raise invalid("imageManifest", "must be JSON") from error
    if not isinstance(manifest, dict):
        raise invalid("imageManifest", "must be a JSON object")
    return manifest


def descriptor_digests(manifest: Mapping[str, Any], member: str) -> list[str]:
    """The digests of the descriptors in a list of a manifest."""
    descriptors = manifest.get(member, [])
    if not isinstance(descriptors, list):
        raise invalid("imageManifest", f"its {member} must be a list of descriptors")
    digests = [item.get("digest") if isinstance(item, dict) else None for item in descriptors]
    if not all(isinstance(digest, str) for digest in digests):
        raise invalid("imageManifest", f"its {member} must be descriptors with digests")
    return cast("list[str]", digests)
