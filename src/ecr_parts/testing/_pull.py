"""Pulling images by the registry's API, as docker, skopeo and crane do. No I/O.

The OCI distribution specification, "Pull" and "Content Discovery":
https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import parse_qs, quote, unquote

from ecr_parts._base.validation import is_digest
from ecr_parts.testing._body import Blob
from ecr_parts.testing._content import Repository
from ecr_parts.testing._parameters import REGISTRY_ID, REPOSITORY_NAME, RESTORE_IMAGE, RESTORE_LAYER

_ORIGIN = re.compile(r"https?://[^/]*", re.IGNORECASE)
_PATH = re.compile(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs|tags)/(?P<reference>[^/]+)")
_REFUSED = re.compile(r"\bq=0(\.0*)?\s*(;|$)")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)
_NO_HEADERS: Mapping[str, str] = {}


class PullRequest(NamedTuple):
    """A GET or HEAD request."""

    url: str
    """The path and the query."""
    accept: str = ""
    """The header ``Accept``; empty if there is none."""
    byte_range: str = ""
    """The header ``Range``; empty if there is none."""


@dataclass(frozen=True)
class PullAnswer:
    """An answer: a status, headers, and a body in pieces."""

    status: int
    headers: dict[str, str]
    body: Iterable[bytes | memoryview] = field(default=(), repr=False)


class _RefusedError(Exception):
    """The status, the code and the message of an error in the format of OCI."""


def pull(repositories: Mapping[str, Repository], request: PullRequest) -> PullAnswer:
    """Answer a request to the registry's API."""
    try:
        return _pull(repositories, request)
    except _RefusedError as error:
        return refuse(*error.args)


def refuse(
    status: int, code: str, message: str, headers: Mapping[str, str] = _NO_HEADERS
) -> PullAnswer:
    """An error in the format of OCI."""
    errors = {"errors": [{"code": code, "message": message}]}
    return _json(errors, headers, status=status)


def _pull(repositories: Mapping[str, Repository], request: PullRequest) -> PullAnswer:
    path, _, query = _ORIGIN.sub("", request.url, count=1).partition("?")
    path = unquote(path)
    if path in ("/v2/", "/v2"):
        return _json({})
    match = _PATH.fullmatch(path)
    if match is None:
        raise _RefusedError(404, "UNSUPPORTED", f"There is nothing at {request.url}")
    name, kind, reference = match.group("name", "kind", "reference")
    if not REPOSITORY_NAME.fullmatch(name):
        raise _RefusedError(400, "NAME_INVALID", f"'{name}' is not the name of a repository")
    if name not in repositories:
        raise _RefusedError(
            404,
            "NAME_UNKNOWN",
            f"The repository with name '{name}' does not exist in the registry with id "
            f"'{REGISTRY_ID}'",
        )
    if kind == "manifests":
        return _manifest(repositories[name], reference, request.accept)
    if kind == "blobs":
        return _blob(repositories[name], reference, request.byte_range)
    if reference == "list":
        return _tags(repositories[name], parse_qs(query, keep_blank_values=True))
    raise _RefusedError(404, "UNSUPPORTED", f"There is nothing at {request.url}")


def _manifest(repository: Repository, reference: str, accept: str) -> PullAnswer:
    digest = repository.tags.get(reference, reference)
    image = repository.images.get(digest)
    if image is None:
        raise _RefusedError(404, "MANIFEST_UNKNOWN", f"Requested image not found: {reference}")
    if digest in repository.archived:
        message = f"The image {reference} is archived: {RESTORE_IMAGE}"
        raise _RefusedError(404, "MANIFEST_UNKNOWN", message)
    ranges = (media_range.lower().partition(";") for media_range in accept.split(","))
    accepted = {name.strip() for name, _, rest in ranges if not _REFUSED.search(rest)}
    if accept and not accepted & {image.media_type.lower(), "*/*", "application/*"}:
        message = f"The image is {image.media_type}, which Accept does not allow"
        raise _RefusedError(404, "MANIFEST_UNKNOWN", message)
    return _content([image.manifest.encode()], image.media_type, digest)


def _blob(repository: Repository, digest: str, byte_range: str) -> PullAnswer:
    if not is_digest(digest):
        raise _RefusedError(400, "DIGEST_INVALID", f"'{digest}' is not a sha256 digest")
    layer = repository.layers.get(digest)
    if layer is None:
        raise _RefusedError(404, "BLOB_UNKNOWN", f"Requested layer not found: {digest}")
    if layer.status == "ARCHIVED":
        raise _RefusedError(404, "BLOB_UNKNOWN", f"The layer {digest} is archived: {RESTORE_LAYER}")
    whole = _content(layer.blobs, "application/octet-stream", digest)
    whole.headers["Accept-Ranges"] = "bytes"
    wanted = _RANGE.fullmatch(byte_range)
    if wanted is None or wanted.group(0) == "bytes=-":
        return whole  # RFC 9110 allows to ignore Range, and requires it for malformed ones
    first, last = _resolve_range(*wanted.groups(), size=layer.size)
    if first > last:
        content_range = {"Content-Range": f"bytes */{layer.size}"}
        message = f"The layer has {layer.size} bytes, not {byte_range}"
        return refuse(416, "RANGE_INVALID", message, content_range)
    headers = {
        **whole.headers,
        "Content-Range": f"bytes {first}-{last}/{layer.size}",
        "Content-Length": str(last - first + 1),
    }
    return PullAnswer(206, headers, _cut(layer.blobs, first, last))


def _resolve_range(first: str, last: str, *, size: int) -> tuple[int, int]:
    """The first and the last byte that a range selects, inclusive; none if the first is larger."""
    if not first:
        return max(0, size - _number(last)), size - 1
    end = min(_number(last), size - 1) if last else size - 1
    return _number(first), end


def _number(digits: str) -> int:
    """``digits`` as a number. Python refuses to parse thousands of digits."""
    digits = digits.lstrip("0") or "0"
    return int(digits) if len(digits) < 19 else sys.maxsize


def _cut(blobs: Iterable[Blob], first: int, last: int) -> Iterator[memoryview]:
    """The bytes from ``first`` to ``last``, inclusive, of ``blobs`` joined."""
    start = 0
    for blob in blobs:
        yield memoryview(blob)[max(0, first - start) : max(0, last + 1 - start)]
        start += len(blob)


def _tags(repository: Repository, query: Mapping[str, list[str]]) -> PullAnswer:
    number, last = query.get("n", [str(len(repository.tags))])[0], query.get("last", [""])[0]
    if not re.fullmatch(r"\d+", number, re.ASCII):
        message = f"n must be a number, not '{number}'"
        raise _RefusedError(400, "PAGINATION_NUMBER_INVALID", message)
    tags = sorted(tag for tag in repository.tags if tag > last)
    page = tags[: _number(number)]
    headers = {}
    if page and len(page) < len(tags):
        url = f"/v2/{repository.name}/tags/list?n={number}&last={quote(page[-1])}"
        headers["Link"] = f'<{url}>; rel="next"'
    return _json({"name": repository.name, "tags": page}, headers)


def _content(blobs: Sequence[Blob], media_type: str, digest: str) -> PullAnswer:
    headers = {
        "Content-Type": media_type,
        "Content-Length": str(sum(map(len, blobs))),
        "Docker-Content-Digest": digest,
    }
    return PullAnswer(200, headers, blobs)


def _json(
    document: object, headers: Mapping[str, str] = _NO_HEADERS, *, status: int = 200
) -> PullAnswer:
    body = json.dumps(document).encode()
    kind = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    return PullAnswer(status, {**kind, **headers}, [body])
