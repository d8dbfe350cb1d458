"""The four ECR calls that are used: retried, their answers checked, their failures as values."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import botocore.client
import tenacity
from botocore.exceptions import ClientError

from ecr_parts import _request
from ecr_parts._failures import Failure, OtherDigestError, clear_frames, last_valid_byte
from ecr_parts._threads import Task, Waiter
from ecr_parts._validation import is_name_or_id, shown
from ecr_parts.chunker import Part
from ecr_parts.errors import DigestMismatchError, ServiceError, UnexpectedResponseError
from ecr_parts.retry import AttemptTimeoutError, BadAnswerError, error_code, reason
from ecr_parts.source import Blob

_log = logging.getLogger("ecr_parts")
_T = TypeVar("_T")

Answer: TypeAlias = Mapping[str, object]


class EcrApi(Protocol):
    """The calls of a client for ``ecr`` or ``ecr-public`` that are used."""

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
"""A botocore or boto3 client for ``ecr`` or ``ecr-public``, or anything with its four calls."""


class Availability(NamedTuple):
    """What ECR says of a layer."""

    status: str
    """``AVAILABLE``, ``UNAVAILABLE`` or ``ARCHIVED``."""
    size: int | None
    """Bytes."""


class Received(NamedTuple):
    """Where ECR stands after a part was sent."""

    last_byte: int
    """The last byte of the layer that it has, -1 for none."""
    refused: bool
    """Whether it refused the part because of where it starts."""


@dataclass(frozen=True)
class Answered(Generic[_T]):
    """What a call was answered in the end."""

    answer: _T
    attempts: int


@dataclass(frozen=True)
class Failed:
    """Why a call was given up."""

    error: ServiceError | UnexpectedResponseError | DigestMismatchError
    code: str
    """ECR's error code, or the name of the client's exception."""
    attempts: int
    in_doubt: bool
    """Whether the call may have had its effect: an attempt of it was not answered."""


@dataclass(frozen=True)
class RepositoryClient:
    """ECR's upload calls for one repository, retried, their answers checked.

    The one place from which ECR is called. Each attempt runs in a thread of its own while the
    caller's thread waits. A call that fails is a value, ``Failed``: what is raised here was
    raised by somebody else's code: a signal handler, the heartbeat or the retry policy.
    """

    client: EcrClient
    repository_name: str
    registry_id: str | None
    retrying: tenacity.BaseRetrying
    attempt_timeout: float
    """Seconds for one attempt in all."""
    sends_prepared: bool = False
    """Whether the client sends what ``_request.prepare`` makes."""
    waiter: Waiter = field(default_factory=Waiter)
    """Its heartbeat is called before each attempt and each wait, and once a second in both."""
    _stranded: list[Task[Any]] = field(default_factory=list, repr=False, compare=False)
    """Attempts that took longer than ``attempt_timeout``, and may still be running."""

    def batch_check_layer_availability(
        self, digests: Sequence[str]
    ) -> Answered[dict[str, Availability]] | Failed:
        """What ECR says of up to 100 layers; those it does not know may be left out."""

        def read(answer: Answer) -> dict[str, Availability]:
            return {
                _field(layer, "layerDigest", str): Availability(
                    _field(layer, "layerAvailability", str), _size(layer)
                )
                for layer in _field(_with_layers(answer), "layers", list)
            }

        return self._call("BatchCheckLayerAvailability", read, {"layerDigests": list(digests)})

    def initiate_layer_upload(self) -> Answered[tuple[str, int]] | Failed:
        """Start an upload: its ID, and the part size (bytes) that ECR answers."""

        def read(answer: Answer) -> tuple[str, int]:
            upload_id, part_size = _field(answer, "uploadId", str), _field(answer, "partSize", int)
            if not is_name_or_id(upload_id) or part_size < 1:
                raise BadAnswerError(
                    f"it says uploadId {shown(upload_id)} and partSize {part_size}", transient=False
                )
            return upload_id, part_size

        return self._call("InitiateLayerUpload", read, {})

    def prepare_part(self, upload_id: str, part: Part, blob: Blob) -> bytes:
        """``blob`` in the form ``upload_layer_part`` sends. May be called ahead of time."""
        if self.sends_prepared:
            return _request.prepare(self._names | _place(upload_id, part), blob)
        return bytes(blob)

    def upload_layer_part(
        self, upload_id: str, part: Part, prepared: bytes
    ) -> Answered[Received] | Failed:
        """Send a part: where ECR then stands. A refusal for a wrong offset reports it too.

        ``prepared`` comes from ``prepare_part``.
        """

        def read(answer: Answer) -> Received:
            last_byte = _field(answer, "lastByteReceived", int)
            # AWS's reference says "the last byte received in the request", and examples do not
            # settle whether it counts in the layer or in the part. What makes sense in the part
            # only is taken so; if that is wrong, the next answer says where ECR stands.
            if last_byte == part.size - 1 < part.first_byte - 1:
                last_byte = part.last_byte
            return Received(last_byte, refused=False)

        def refused(error: ClientError) -> Received | None:
            if error_code(error) != "InvalidLayerPartException":
                return None
            return Received(last_valid_byte(error.response), refused=True)

        return self._call(
            "UploadLayerPart",
            read,
            {**_place(upload_id, part), "layerPartBlob": prepared},
            refused=refused,
            where=f"bytes {part.first_byte}-{part.last_byte}",
        )

    def complete_layer_upload(self, upload_id: str, digest: str) -> Answered[None] | Failed:
        """Complete an upload. ``DigestMismatchError`` where ECR received other bytes."""

        def read(answer: Answer) -> None:
            answered = _field(answer, "layerDigest", str)
            if answered != digest:
                raise OtherDigestError(f"{digest}: ECR says {shown(answered)}")

        def refused(error: ClientError) -> None:
            if error_code(error) == "InvalidLayerException":
                raise OtherDigestError(f"{digest}: {reason(error)}") from error

        return self._call(
            "CompleteLayerUpload",
            read,
            {"uploadId": upload_id, "layerDigests": [digest]},
            refused=refused,
            where=f"upload {upload_id}",
        )

    @property
    def _names(self) -> dict[str, object]:
        registry = {} if self.registry_id is None else {"registryId": self.registry_id}
        return {"repositoryName": self.repository_name, **registry}

    def _call(
        self,
        operation: str,
        read: Callable[[Answer], _T],
        parameters: dict[str, object],
        *,
        refused: Callable[[ClientError], _T | None] = lambda _error: None,
        where: str = "",
    ) -> Answered[_T] | Failed:
        """Call ECR until it answers or the policy gives up.

        ``read`` makes an answer of botocore's, or raises what is wrong with it; ``refused`` makes
        one of a refusal, or ``None``. Both run in the attempt's thread.
        """
        subject = f"{operation} in repository {self.repository_name!r}" + (where and f", {where}")
        method: Callable[..., Answer] = getattr(self.client, _METHODS[operation])
        state = self.new_state(method)
        while True:
            self.waiter.heartbeat()
            outcome = self._attempt(method, read, parameters, refused)
            if not isinstance(outcome, Failure):
                return Answered(outcome[0], state.attempt_number)
            failed = partial(self._failed, operation, subject, state.attempt_number, outcome)
            if not outcome.transient:
                return failed()
            self.plan_wait(state, outcome.error)
            if self.retrying.stop(state):
                state.outcome = None
                return failed()
            _log.info(
                "%s, attempt %d: %s; the next attempt follows in %.1f s",
                subject, state.attempt_number, outcome.reason, state.upcoming_sleep,
            )  # fmt: skip
            del outcome, failed  # they may hold the request
            self.wait_as_planned(state)

    # Only the policy's stop, wait and sleep are used, and not its ``__call__``. That would catch
    # what the caller's code raises: it takes a ``TryAgain`` for its own, and keeps the others in
    # cycles, with every part in the frames that they came through.

    def new_state(self, function: Callable[..., object]) -> tenacity.RetryCallState:
        """What the policy is told before the first attempt to call ``function``."""
        return tenacity.RetryCallState(self.retrying, function, (), {})

    def plan_wait(self, state: tenacity.RetryCallState, error: Exception) -> None:
        """Ask the policy how long to wait after an attempt that failed with ``error``."""
        state.set_exception((type(error), error, error.__traceback__))
        state.upcoming_sleep = self.retrying.wait(state)

    def wait_as_planned(self, state: tenacity.RetryCallState) -> None:
        """Wait until the next attempt."""
        seconds = state.upcoming_sleep
        state.next_action = tenacity.RetryAction(seconds)
        state.idle_for += seconds
        self.waiter.heartbeat()
        state.prepare_for_next_attempt()
        given = self.retrying.sleep
        # tenacity's own sleep would not wake for the heartbeat.
        (self.waiter.sleep if given is tenacity.nap.sleep else given)(seconds)

    def _attempt(
        self,
        method: Callable[..., Answer],
        read: Callable[[Answer], _T],
        parameters: dict[str, object],
        refused: Callable[[ClientError], _T | None],
    ) -> tuple[_T] | Failure:
        """One attempt, in another thread: what it was answered, or why it failed."""
        self._stranded[:] = [task for task in self._stranded if task.running]
        if len(self._stranded) >= _MOST_STRANDED:
            return Failure.of(
                AttemptTimeoutError(
                    f"{len(self._stranded)} earlier attempts are still without an answer",
                    transient=False,
                )
            )
        own = self._names | parameters
        blob = own.get("layerPartBlob")
        if isinstance(blob, _request.PreparedBlob):
            own["layerPartBlob"] = blob.for_one_attempt()

        def run() -> _T | Failure:
            handled = sys.exc_info()[1]
            try:
                answer = method(**own)
                if not isinstance(answer, Mapping):
                    # Examined below, like what ``read`` raises.
                    raise BadAnswerError(f"it is {shown(answer)}", transient=False)  # noqa: TRY301
                return read(answer)
            except ClientError as error:
                clear_frames(error, handled)
                try:
                    known = refused(error)
                except (BadAnswerError, OtherDigestError) as worse:
                    return Failure.of(worse)
                return Failure.of(error) if known is None else known
            except Exception as error:  # noqa: BLE001  (of any kind: a value from here on)
                clear_frames(error, handled)
                return Failure.of(error)

        task = self.waiter.wait_for("call", run, self.attempt_timeout)
        if task.overdue:
            self._stranded.append(task)
            return Failure.of(
                AttemptTimeoutError(
                    f"no answer within attempt_timeout={self.attempt_timeout:g} seconds",
                    transient=len(self._stranded) < _MOST_STRANDED,
                )
            )
        outcome = task.result()
        return outcome if isinstance(outcome, Failure) else (outcome,)

    def _failed(self, operation: str, subject: str, attempts: int, failure: Failure) -> Failed:
        error = failure.to_error(
            operation=operation,
            service_name=service_name(self.client),
            repository_name=self.repository_name,
            subject=subject,
            attempts=attempts,
        )
        in_doubt = attempts > 1 or failure.transient or not failure.refused
        return Failed(error, failure.code, attempts, in_doubt)


_MOST_STRANDED = 3  # attempts without an answer that may go on in their threads
_METHODS = {
    "BatchCheckLayerAvailability": "batch_check_layer_availability",
    "InitiateLayerUpload": "initiate_layer_upload",
    "UploadLayerPart": "upload_layer_part",
    "CompleteLayerUpload": "complete_layer_upload",
}


def require_ecr_client(client: EcrClient) -> None:
    """``TypeError`` for what lacks one of the four calls."""
    for call in _METHODS.values():
        if not callable(getattr(client, call, None)):
            raise TypeError(
                "client must be a botocore or boto3 client for 'ecr' or 'ecr-public', not "
                f"{shown(client)}, which has no {call}"
            )


def service_name(client: EcrClient) -> str | None:
    """``"ecr"`` or ``"ecr-public"``; ``None`` for a client that is none of botocore's."""
    meta = getattr(client, "meta", None)
    name = getattr(getattr(meta, "service_model", None), "service_name", None)
    return name if isinstance(name, str) else None


def _place(upload_id: str, part: Part) -> dict[str, object]:
    return {
        "uploadId": upload_id,
        "partFirstByte": part.first_byte,
        "partLastByte": part.last_byte,
    }


def _size(layer: Answer) -> int | None:
    if layer.get("layerSize") is None or layer["layerAvailability"] == "UNAVAILABLE":
        return None
    size = _field(layer, "layerSize", int)
    if size < 1:
        raise BadAnswerError(f"its layerSize is {size}", transient=False)
    return size


def _with_layers(answer: Answer) -> Answer:
    """Of an availability answer: whether a list that is empty is left out is unknown."""
    return {"layers": [], **answer} if "failures" in answer else answer


def _field(answer: object, name: str, kind: type[_T]) -> _T:
    value = answer.get(name) if isinstance(answer, Mapping) else None
    if value is None:
        raise BadAnswerError(f"it has no {name}", transient=True)
    too_large = isinstance(value, int) and value.bit_length() > 63
    if not isinstance(value, kind) or isinstance(value, bool) or too_large:
        raise BadAnswerError(f"its {name} is {shown(value)}", transient=False)
    return value
