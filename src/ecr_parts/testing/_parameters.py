"""The parameters of a request to the registry, and the errors that it answers."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar, cast

from ecr_parts._model.limits import MAX_RESULTS, Limits

REGISTRY_ID = "012345678910"
"""The account that owns the registry, as in the examples of the AWS documentation."""

REPOSITORY_NAME = re.compile(
    r"(?=.{2,256}$)[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*"
)
DIGEST = re.compile(r"[a-zA-Z0-9-_+.]+:[a-fA-F0-9]+")  # as in ECR's own message
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
    """The parameters of a request, checked when they are read."""

    def __init__(
        self,
        parameters: Mapping[str, object],
        limits: Limits,
        *,
        public: bool,
        endpoint_url: str,
    ) -> None:
        self._parameters = parameters
        self.limits = limits
        self.public = public
        """Whether it is a request to ECR Public."""
        self.endpoint_url = endpoint_url
        """Where the URLs in the answer lead to."""
        self.registry_id = self.text("registryId", REGISTRY_ID)

    @property
    def repository_name(self) -> str:
        return check_repository_name("repositoryName", self.text("repositoryName"))

    def text(self, name: str, default: str | None = None) -> str:
        text = self._get(name, str, default)
        if not _is_unicode(text):
            raise invalid(name, "must be valid Unicode")
        return text

    def choice(self, name: str, default: str, *others: str) -> str:
        choice = self.text(name, default)
        if choice not in (default, *others):
            raise invalid(name, f"must be one of {', '.join((default, *others))}")
        return choice

    def number(self, name: str, default: int | None = None) -> int:
        return self._get(name, int, default)

    def flag(self, name: str) -> bool:
        flag = self._parameters.get(name)
        if flag is not None and not isinstance(flag, bool):
            raise invalid(name, "has the wrong type")
        return bool(flag)

    def blob(self, name: str) -> bytes:
        return self._get(name, bytes, None)

    def items(self, name: str, kind: type[_T], *, optional: bool = False) -> list[_T]:
        if optional and self._parameters.get(name) is None:
            return []
        items: list[_T] = self._get(name, list, None)
        if not 1 <= len(items) <= 100:
            raise invalid(name, f"must have 1 to 100 members, not {len(items)}")
        if not all(isinstance(item, kind) for item in items):
            raise invalid(name, "has a member of the wrong type")
        return items

    def nested(self, name: str) -> Request:
        """The parameters inside the parameter ``name``, which is optional."""
        nested: dict[str, object] = self._get(name, dict, {})
        return Request(nested, self.limits, public=self.public, endpoint_url=self.endpoint_url)

    def page(self, items: Mapping[str, _T]) -> tuple[list[_T], dict[str, object]]:
        """The page of ``items`` to answer, in the order of their keys, and ``nextToken``."""
        size = self.number("maxResults", 100)
        if not 1 <= size <= MAX_RESULTS:
            raise invalid("maxResults", f"must be 1 to {MAX_RESULTS}, not {size}")
        last_key = self._last_key()
        keys = sorted(key for key in items if key > last_key)
        page = [items[key] for key in keys[:size]]
        if len(keys) <= size:
            return page, {}
        return page, {"nextToken": base64.urlsafe_b64encode(keys[size - 1].encode()).decode()}

    def _last_key(self) -> str:
        """The key of the last item of the page before this one."""
        token = self.text("nextToken", "")
        try:
            return base64.b64decode(token, altchars=b"-_", validate=True).decode()
        except ValueError as error:
            raise invalid("nextToken", "is not a token of this operation") from error

    def refuse_paging(self, name: str) -> None:
        """Raise ``EcrError`` if a request that has the parameter ``name`` asks for a page."""
        if any(self._parameters.get(one) is not None for one in ("maxResults", "nextToken")):
            raise invalid(name, "cannot be used together with maxResults and nextToken")

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


def parse_body(body: bytes) -> dict[str, Any]:
    """The parameters in the body of a request. Raises ``ValueError`` and ``RecursionError``."""
    parameters: Any = json.loads(body)
    if not isinstance(parameters, dict):
        raise ValueError("a request must be a JSON object")  # noqa: TRY004  (it is malformed)
    blob = parameters.get("layerPartBlob")
    if isinstance(blob, str):
        parameters["layerPartBlob"] = base64.b64decode(blob, validate=True)
    return parameters


def parse_fragment(body: bytes) -> dict[str, Any]:
    """The parameters of a request of which only the start arrived; empty if it has no blob."""
    base64_text = body.rpartition(b'"')[2]
    try:
        fragment = parse_body(body[: len(body) - len(base64_text) % 4] + b'"}')
        size = len(fragment["layerPartBlob"])
        fragment["partLastByte"] = fragment["partFirstByte"] + size - 1
    except (KeyError, RecursionError, TypeError, ValueError):
        return {}
    return fragment


def check_repository_name(parameter: str, name: str) -> str:
    """Raise ``EcrError`` for the name of a repository that is not valid."""
    if not REPOSITORY_NAME.fullmatch(name):
        raise invalid(parameter, f"must satisfy regular expression '{REPOSITORY_NAME.pattern}'")
    return name


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
