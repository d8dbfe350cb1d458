"""The ECR calls, with retries and checked answers. Failures are returned, not raised."""

from __future__ import annotations

import io
import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import tenacity
from botocore.exceptions import ClientError

from ecr_parts import _request
from ecr_parts._answers import (
    Answer,
    Availability,
    PartAnswer,
    check_answer,
    check_complete_refusal,
    check_completed,
    check_put_image,
    parse_availability,
    parse_error,
    parse_part_refusal,
    parse_put_image_refusal,
    parse_received,
    parse_upload,
)
from ecr_parts._api import METHODS, EcrClient, service_name
from ecr_parts._bandwidth import Bandwidth
from ecr_parts._chunker import Part
from ecr_parts._failures import Failure, clear_client_frames
from ecr_parts._gate import Gate, Overlap
from ecr_parts._models import Blob
from ecr_parts._retry import Backoff
from ecr_parts._threads import Abandoned, Task, Waiter
from ecr_parts.errors import DigestMismatchError, ServiceError, UnexpectedResponseError

_log = logging.getLogger("ecr_parts")
_T = TypeVar("_T")
_MAX_TIMED_OUT = 3  # attempts whose threads may still be running


@dataclass(eq=False)
class PreparedPart:
    """A part in the form that the client sends."""

    part: Part
    parameters: Mapping[str, object]
    """The parameters of the call, except the blob."""
    blob: _request.EncodedBlob | bytes
    """Raw bytes for a client that encodes them itself."""
    attempt: _request.Attempt[PartAnswer | Failure] | None = None
    """The first attempt of the call, if it was begun."""
    began: float = 0.0
    """When that was, by ``time.monotonic``."""

    @property
    def sent_up_to(self) -> int:
        """The last byte of the layer in any request so far: of this part, or sent ahead."""
        gate = None if self.attempt is None else self.attempt.next_gate
        return self.part.last_byte if gate is None else max(self.part.last_byte, gate.last_byte)


@dataclass(frozen=True)
class Answered(Generic[_T]):
    """The outcome of a call that ECR answered."""

    answer: _T
    attempts: int


@dataclass(frozen=True)
class Failed:
    """The outcome of a call that failed for good."""

    error: ServiceError | UnexpectedResponseError | DigestMismatchError
    code: str
    """ECR's error code, or the name of the client's exception."""
    attempts: int
    in_doubt: bool
    """Whether ECR may have carried out the call, in the last or an earlier attempt."""


@dataclass(frozen=True)
class _Call(Generic[_T]):
    """A call, and how its answer is parsed. ``parse…`` run in the thread of an attempt."""

    operation: str
    parameters: Mapping[str, object]
    parse: Callable[[Answer], _T]
    """Returns what ECR answered, or raises what is wrong with it."""
    parse_refusal: Callable[[ClientError], _T | None] = lambda _error: None
    """The same for an error; ``None`` for an error that is not an answer."""
    confirms: Callable[[_T], bool] = lambda _answer: False
    """Whether an answer lets the call for the next part be completed."""
    subject: str = ""
    """What the call is about, for messages."""


@dataclass(frozen=True)
class RepositoryClient:
    """ECR's upload calls for one repository, retried, their answers checked.

    All calls to ECR are made here. Each attempt runs in another thread while the caller's thread
    waits. A call that fails returns ``Failed``, so any exception that leaves these methods was
    raised by someone else's code: a signal handler, the heartbeat or the retry policy.
    """

    client: EcrClient
    repository_name: str
    registry_id: str | None
    retrying: tenacity.BaseRetrying
    attempt_timeout: float
    """The maximum duration of one attempt, in seconds."""
    accepts_encoded_blobs: bool = False
    """Whether the client sends ``EncodedBlob``; otherwise it gets raw bytes."""
    overlap: Overlap = field(default_factory=lambda: Overlap(enabled=False))
    bandwidth: Bandwidth | None = None
    waiter: Waiter = field(default_factory=Waiter)
    """Its heartbeat is called before each attempt and each wait, and once a second during them."""
    _timed_out: set[Task[Any]] = field(default_factory=set, repr=False, compare=False)
    """Attempts that exceeded ``attempt_timeout``, and whose threads may still be running."""

    def batch_check_layer_availability(
        self, digests: Sequence[str]
    ) -> Answered[dict[str, Availability]] | Failed:
        """Ask about up to 100 layers. The result may omit those that ECR does not have."""
        parameters = {"layerDigests": list(digests)}
        return self._finish(_Call("BatchCheckLayerAvailability", parameters, parse_availability))

    def initiate_layer_upload(self) -> Answered[tuple[str, int]] | Failed:
        """Start an upload. The answer is its ID, and the part size (bytes) that ECR suggests."""
        return self._finish(_Call("InitiateLayerUpload", {}, parse_upload))

    def prepare_part(
        self, upload_id: str, part: Part, slices: Iterable[Blob], file: io.BytesIO | None = None
    ) -> PreparedPart:
        """Encode a part for ``upload_layer_part``. May be called ahead, in any thread.

        ``slices`` and ``file`` are those of ``encode_blob``.
        """
        parameters: dict[str, object] = {
            "uploadId": upload_id,
            "partFirstByte": part.first_byte,
            "partLastByte": part.last_byte,
        }
        if self.accepts_encoded_blobs:
            encoded = _request.encode_blob(self._repository | parameters, slices, file)
            return PreparedPart(part, parameters, encoded)
        file = io.BytesIO() if file is None else file
        file.seek(0)
        file.writelines(slices)
        file.truncate()
        return PreparedPart(part, parameters, file.getvalue())

    def begin_part(self, prepared: PreparedPart, gate: Gate | None, thread: str) -> None:
        """Begin to send a part, in the thread called ``thread``.

        ``upload_layer_part`` waits for the outcome. With a ``gate``, the request is sent ahead of
        its turn. May be called in any thread.
        """
        prepared.began = time.monotonic()
        if gate is not None:
            gate.last_byte = prepared.part.last_byte
        prepared.attempt = self._new_attempt(self._part_call(prepared), gate)
        self.waiter.give(thread, prepared.attempt)

    def upload_layer_part(self, prepared: PreparedPart) -> Answered[PartAnswer] | Failed:
        """Send a part. A refusal because of its first byte counts as an answer."""
        return self._finish(self._part_call(prepared), prepared.attempt)

    def _part_call(self, prepared: PreparedPart) -> _Call[PartAnswer]:
        part = prepared.part
        return _Call(
            "UploadLayerPart",
            {**prepared.parameters, "layerPartBlob": prepared.blob},
            partial(parse_received, part),
            parse_part_refusal,
            confirms=lambda answer: answer == PartAnswer(part.last_byte, refused=False),
            subject=f"bytes {part.first_byte}-{part.last_byte}",
        )

    def complete_layer_upload(self, upload_id: str, digest: str) -> Answered[None] | Failed:
        """Complete an upload. ``DigestMismatchError`` if the bytes ECR received do not match."""
        call = _Call(
            "CompleteLayerUpload",
            {"uploadId": upload_id, "layerDigests": [digest]},
            partial(check_completed, digest),
            partial(check_complete_refusal, digest),
            subject=f"upload {upload_id}",
        )
        return self._finish(call)

    def put_image(
        self, digest: str, media_type: str, manifest: str, tag: str | None
    ) -> Answered[bool] | Failed:
        """Put a manifest. That ECR has it already counts as an answer."""
        parameters = {
            "imageManifest": manifest,
            "imageManifestMediaType": media_type,
            "imageDigest": digest,
        }
        call = _Call(
            "PutImage",
            parameters if tag is None else {**parameters, "imageTag": tag},
            partial(check_put_image, digest),
            parse_put_image_refusal,
            subject=digest if tag is None else f"{digest} as {tag}",
        )
        return self._finish(call)

    @property
    def _repository(self) -> dict[str, object]:
        registry = {} if self.registry_id is None else {"registryId": self.registry_id}
        return {"repositoryName": self.repository_name, **registry}

    def _finish(
        self, call: _Call[_T], begun: _request.Attempt[_T | Failure] | None = None
    ) -> Answered[_T] | Failed:
        """Call ECR until it answers, the call fails for good, or the policy gives up.

        ``begun`` is the first attempt, if it was begun.
        """
        backoff = Backoff(self.retrying, self.waiter, self._method(call))
        losses = 0
        while True:
            self.waiter.heartbeat()
            outcome = self._attempt(call, begun)
            attempts = backoff.attempt + losses
            if not isinstance(outcome, Failure):
                return Answered(outcome[0], attempts)
            lost = begun is not None and begun.held_back and outcome.connection_lost
            begun = None
            if lost:  # perhaps because it was held back, so the policy must not count it
                self.overlap.count_loss(outcome.description)
                losses = 1
            elif not outcome.transient:
                return self._failed(call, attempts, outcome)
            else:
                backoff.plan(outcome.error)
                if backoff.gives_up():
                    return self._failed(call, attempts, outcome)
            _log.info(
                "%s, attempt %d: %s; trying again in %.1f s",
                self._describe(call), attempts, outcome.description, backoff.seconds,
            )  # fmt: skip
            del outcome  # it may hold the request
            if not lost:
                backoff.wait()

    def _attempt(
        self, call: _Call[_T], begun: _request.Attempt[_T | Failure] | None
    ) -> tuple[_T] | Failure:
        """Make one attempt in another thread; return ``(answer,)``, or why it failed."""
        if begun is not None:
            attempt = begun
            self.waiter.wait(attempt, self.attempt_timeout)
        else:
            for task in tuple(self._timed_out):
                if not task.running:
                    self._timed_out.discard(task)
            if len(self._timed_out) >= _MAX_TIMED_OUT:
                return Failure.timed_out(
                    f"{len(self._timed_out)} earlier attempts are still waiting for an answer",
                    transient=False,
                )
            attempt = self._new_attempt(call)
            self.waiter.give_and_wait("call", attempt, self.attempt_timeout)
        if attempt.timed_out:
            self._timed_out.add(attempt)
            return Failure.timed_out(
                f"no answer within {self.attempt_timeout:g} seconds",
                transient=len(self._timed_out) < _MAX_TIMED_OUT,
            )
        outcome = attempt.result()
        return outcome if isinstance(outcome, Failure) else (outcome,)

    def _new_attempt(
        self, call: _Call[_T], gate: Gate | None = None
    ) -> _request.Attempt[_T | Failure]:
        method, next_gate = self._method(call), Gate()
        parameters = {**self._repository, **call.parameters}
        blob = parameters.get("layerPartBlob")
        if isinstance(blob, _request.EncodedBlob):
            parameters["layerPartBlob"] = blob.copy()

        # An abandoned attempt may live on. So it must not refer to ``self``, which refers to the
        # caller's objects, nor to ``call``, which refers to the part.
        parse, parse_refusal, confirms = call.parse, call.parse_refusal, call.confirms
        check = partial(_check_sent_ahead, gate, self.overlap, self._describe(call))

        def run() -> _T | Failure:
            handled = sys.exc_info()[1]  # the caller's, if this is the caller's thread
            if gate is not None:
                gate.wait_for_link()
            # A failure must not be a local variable of this frame, which its traceback refers to.
            try:
                answer = parse(check_answer(method(**parameters)))
            except Abandoned as abandoned:
                clear_client_frames(abandoned, handled)
                raise
            except Exception as error:  # noqa: BLE001  (a client may raise anything)
                clear_client_frames(error, handled)
                return check(parse_error(error, parse_refusal))
            if confirms(answer):
                next_gate.open()
            return check(answer)

        return _request.Attempt(run, self.waiter.cancelled, gate, next_gate, self.bandwidth)

    def _method(self, call: _Call[Any]) -> Callable[..., Answer]:
        method: Callable[..., Answer] = getattr(self.client, METHODS[call.operation])
        return method

    def _describe(self, call: _Call[Any]) -> str:
        subject = f", {call.subject}" if call.subject else ""
        return f"{call.operation} in repository {self.repository_name!r}{subject}"

    def _failed(self, call: _Call[Any], attempts: int, failure: Failure) -> Failed:
        error = failure.to_error(
            operation=call.operation,
            service_name=service_name(self.client),
            repository_name=self.repository_name,
            call=self._describe(call),
            attempts=attempts,
        )
        in_doubt = attempts > 1 or failure.transient or not failure.refused
        return Failed(error, failure.code, attempts, in_doubt)


def _check_sent_ahead(
    gate: Gate | None, overlap: Overlap, call: str, outcome: _T | Failure
) -> _T | Failure:
    """``outcome`` of an attempt, after a check whether it ended before its turn."""
    if gate is not None and isinstance(outcome, Failure) and not gate.is_decided:
        _log.info("%s, sent ahead: %s; trying again in its turn", call, outcome.description)
        overlap.count_loss(outcome.description)
    elif gate is not None and not isinstance(outcome, Failure) and not gate.was_asked:
        overlap.end("another handler of the client answers parts by itself")
    return outcome
