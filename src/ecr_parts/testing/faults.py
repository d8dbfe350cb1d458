"""What goes wrong between a client and ECR, and when. Pure: no I/O, no clock."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from ecr_parts.testing.model import OPERATIONS, EcrError, Registry

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
"""What can happen to a call:

``request_lost``, ``reset``: the connection breaks before ECR has the request, or in the middle
of its body. ``answer_lost``, ``answer_cut``, ``answer_garbled``, ``answer_drips``, ``slow``: ECR
does what it is asked, and its answer is lost, ends early, is no text, comes byte by byte without an
end, or comes late. ``throttled``,
``server_error``, ``html_503``, ``access_denied``, ``expired_token``: ECR, or what stands before
it, refuses. ``stored_in_part``: a part is stored up to its middle, and the connection breaks.
``upload_forgotten``: ECR no longer has the upload.
"""

Delivery: TypeAlias = Literal[
    "whole", "request_lost", "reset", "lost", "cut", "garbled", "drips", "slow"
]
"""What the client gets of an answer."""

_REFUSALS = {
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
}
_HTML = b"<html><body><h1>503 Service Temporarily Unavailable</h1></body></html>"


@dataclass(frozen=True)
class Reply:
    """ECR's answer, and how much of it arrives."""

    status: int
    body: bytes
    outcome: str
    """``"ok"``, or the fault, or the code of ECR's error."""
    delivery: Delivery = "whole"


@dataclass(frozen=True)
class _Planned:
    fault: Fault
    first_call: int
    last_call: int


class Faults:
    """Which call of which operation is hit by which fault."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()
        self._planned: dict[str, list[_Planned]] = {}

    def fail(self, operation: str, fault: Fault, *, call: int = 1, times: int = 1) -> None:
        """Let ``fault`` hit ``times`` calls of ``operation``, from the ``call``-th from now on."""
        if fault not in get_args(Fault):
            raise ValueError(f"fault is {fault!r}, and must be one of {get_args(Fault)}")
        if operation not in OPERATIONS:
            raise ValueError(f"there is no operation {operation!r}: {', '.join(OPERATIONS)}")
        if fault == "stored_in_part" and operation != "UploadLayerPart":
            raise ValueError("only UploadLayerPart can be stored in part")
        if call < 1 or times < 1:
            raise ValueError("call and times are counted from 1")
        first = self._calls[operation] + call
        planned = _Planned(fault, first, first + times - 1)
        self._planned.setdefault(operation, []).append(planned)

    def next(self, operation: str) -> Fault | None:
        """Count a call: the fault that hits it."""
        self._calls[operation] += 1
        call = self._calls[operation]
        for planned in self._planned.get(operation, ()):
            if planned.first_call <= call <= planned.last_call:
                return planned.fault
        return None


def answer(
    registry: Registry,
    operation: str,
    parameters: Mapping[str, object],
    fault: Fault | None = None,
    *,
    public: bool = False,
    error_namespace: str = "",
) -> Reply:
    """What comes of a call that ``fault`` hits: to the registry, and as a reply."""
    if fault in ("request_lost", "reset"):
        return Reply(0, b"", fault, fault)
    if fault == "html_503":
        return Reply(503, _HTML, fault)
    try:
        if fault in _REFUSALS:
            raise _REFUSALS[fault]
        if fault == "upload_forgotten":
            registry.forget_upload(
                str(parameters.get("repositoryName")), str(parameters.get("uploadId"))
            )
        if fault == "stored_in_part":
            registry.call(operation, _first_half(parameters), public=public)
            return Reply(0, b"", fault, "lost")
        body = registry.call(operation, parameters, public=public)
    except EcrError as error:
        code = f"{error_namespace}#{error.code}" if error_namespace else error.code
        status, outcome, body = error.status, error.code, {"__type": code, **error.body}
    else:
        status, outcome = 200, "ok"
    return Reply(
        status, json.dumps(body).encode(), fault or outcome, _DELIVERIES.get(fault or "", "whole")
    )


def _first_half(parameters: Mapping[str, object]) -> dict[str, object]:
    blob, first = parameters.get("layerPartBlob"), parameters.get("partFirstByte")
    if not isinstance(blob, bytes) or not isinstance(first, int):
        return dict(parameters)  # the registry refuses it
    half = blob[: max(1, len(blob) // 2)]
    return {**parameters, "layerPartBlob": half, "partLastByte": first + len(half) - 1}
