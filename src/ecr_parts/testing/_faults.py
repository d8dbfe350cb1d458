"""Faults and other answers, and the calls they affect. No I/O, no clock."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

from ecr_parts._base.validation import check_int, short_repr
from ecr_parts.testing._parameters import EcrError
from ecr_parts.testing._registry import OPERATIONS, Registry

Fault: TypeAlias = Literal[
    "request_lost",
    "answer_lost",
    "reset",
    "throttled",
    "server_error",
    "html_503",
    "answer_cut",
    "answer_garbled",
    "answer_drips",
    "stored_in_part",
    "upload_forgotten",
    "slow",
    "access_denied",
    "expired_token",
]
"""What can happen to a call.

The call is not carried out: with ``request_lost`` the connection closes before ECR has the request,
and with ``reset`` in the middle of its body (``Unknowns.broken_part`` tells what is stored).
``throttled``, ``server_error``, ``access_denied`` and ``expired_token`` are errors of ECR;
``html_503`` is a page of a proxy in front of it.

The call is carried out, but its answer is lost (``answer_lost``), ends early (``answer_cut``), is
not text (``answer_garbled``), comes byte by byte without an end (``answer_drips``) or comes late
(``slow``).

``stored_in_part`` stores the first half of a part and closes the connection. ``upload_forgotten``
deletes the upload, then carries out the call.
"""

Delivery: TypeAlias = Literal[
    "whole", "request_lost", "reset", "lost", "cut", "garbled", "drips", "slow"
]
"""How an answer reaches the client."""

_ERRORS = {
    "throttled": EcrError("ThrottlingException", "Rate exceeded"),
    "server_error": EcrError("ServerException", "Server-side issue, please retry"),
    "access_denied": EcrError(
        "AccessDeniedException",
        "User: arn:aws:iam::012345678910:user/tester is not authorized to perform this action",
    ),
    "expired_token": EcrError(
        "ExpiredTokenException", "The security token included in the request is expired"
    ),
}
_DELIVERIES: dict[str, Delivery] = {
    "answer_lost": "lost",
    "answer_cut": "cut",
    "answer_garbled": "garbled",
    "answer_drips": "drips",
    "slow": "slow",
    "stored_in_part": "lost",
}
_HTML = b"<html><body><h1>503 Service Temporarily Unavailable</h1></body></html>"


@dataclass(frozen=True)
class Reply:
    """ECR's answer, and how it reaches the client."""

    status: int
    body: bytes
    outcome: str
    """For ``Call.outcome``."""
    delivery: Delivery = "whole"


@dataclass(frozen=True)
class Response:
    """An answer that replaces ECR's own."""

    status: int
    body: bytes


Effect: TypeAlias = Fault | EcrError | Response
"""What happens to a call: a fault, or another answer."""


@dataclass(frozen=True)
class _Planned:
    effect: Effect
    first_call: int
    last_call: int


class Faults:
    """The faults and answers that are planned for each operation. The first one planned wins."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()
        self._planned: dict[str, list[_Planned]] = {}

    def plan(self, operation: str, effect: Effect, *, call: int = 1, times: int = 1) -> None:
        """Plan ``effect`` for ``times`` calls of ``operation``; ``call=1`` is the next one."""
        if not isinstance(operation, str):
            raise TypeError(f"operation must be a str, not {short_repr(operation)}")
        if operation not in OPERATIONS:
            operations = ", ".join(OPERATIONS)
            raise ValueError(f"operation must be one of {operations}, not {short_repr(operation)}")
        if not isinstance(effect, EcrError | Response) and effect not in get_args(Fault):
            faults = ", ".join(get_args(Fault))
            raise ValueError(f"fault must be one of {faults}, not {short_repr(effect)}")
        if effect == "stored_in_part" and operation != "UploadLayerPart":
            raise ValueError("stored_in_part is a fault of UploadLayerPart only")
        first = self._calls[operation] + check_int("call", call)
        check_int("times", times)
        planned = _Planned(effect, first, first + times - 1)
        self._planned.setdefault(operation, []).append(planned)

    def next(self, operation: str) -> Effect | None:
        """Count a call of ``operation``, and return what was planned for it."""
        effect = self.peek(operation)
        self._calls[operation] += 1
        return effect

    def peek(self, operation: str) -> Effect | None:
        """What is planned for the next call of ``operation``."""
        call = self._calls[operation] + 1
        for planned in self._planned.get(operation, ()):
            if planned.first_call <= call <= planned.last_call:
                return planned.effect
        return None


def answer(
    registry: Registry,
    operation: str,
    parameters: Mapping[str, object],
    planned: Effect | None = None,
    *,
    public: bool = False,
    endpoint_url: str = "http://127.0.0.1",
    error_namespace: str = "",
) -> Reply:
    """Carry out a call in ``registry``, unless the planned fault prevents it. Return the reply."""
    if planned in ("request_lost", "reset"):
        return Reply(0, b"", planned, planned)
    if planned == "html_503":
        return Reply(503, _HTML, planned)
    if isinstance(planned, EcrError):
        return _error_reply(planned, planned.code, error_namespace)
    if isinstance(planned, str) and planned in _ERRORS:
        return _error_reply(_ERRORS[planned], planned, error_namespace)
    if planned == "upload_forgotten":
        registry.forget_upload(
            str(parameters.get("repositoryName")), str(parameters.get("uploadId"))
        )
    if planned == "stored_in_part":
        parameters = _first_half(parameters)
    try:
        answered = registry.call(operation, parameters, public=public, endpoint_url=endpoint_url)
        reply = Reply(200, json.dumps(answered).encode(), "ok")
    except EcrError as error:
        reply = _error_reply(error, error.code, error_namespace)
    if planned is None:
        return reply
    if isinstance(planned, Response):
        return Reply(planned.status, planned.body, "replaced")
    return replace(reply, outcome=planned, delivery=_DELIVERIES.get(planned, "whole"))


def _error_reply(error: EcrError, outcome: str, namespace: str) -> Reply:
    code = f"{namespace}#{error.code}" if namespace else error.code
    return Reply(error.status, json.dumps({"__type": code, **error.body}).encode(), outcome)


def _first_half(parameters: Mapping[str, object]) -> dict[str, object]:
    blob, first = parameters.get("layerPartBlob"), parameters.get("partFirstByte")
    if not isinstance(blob, bytes | memoryview) or not isinstance(first, int):
        return dict(parameters)  # the registry will refuse it
    half = blob[: max(1, len(blob) // 2)]
    return {**parameters, "layerPartBlob": half, "partLastByte": first + len(half) - 1}
