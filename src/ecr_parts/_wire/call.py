"""One call of ECR's API, repeated until it is answered or has failed for good."""

from __future__ import annotations

import copy
import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Generic, TypeVar, cast

import tenacity
from botocore.exceptions import ClientError

from ecr_parts._base.frames import clear_client_frames
from ecr_parts._base.threads import Abandoned, Task, Waiter, current_task
from ecr_parts._model.limits import ECR_LIMITS
from ecr_parts._model.parts import Part
from ecr_parts._model.session import UploadSession
from ecr_parts._wire.answers import Answer, PartAnswer, check_answer, parse_error
from ecr_parts._wire.api import METHODS, EcrClient, endpoint_url, loaded_secrets, service_name
from ecr_parts._wire.bandwidth import Bandwidth
from ecr_parts._wire.failures import CallFailed
from ecr_parts._wire.gate import Gate, Overlap
from ecr_parts._wire.request import Attempt, EncodedBlob
from ecr_parts._wire.retry import Backoff
from ecr_parts._wire.signature import MIN_AGE, clock_remedy, has_expired
from ecr_parts._wire.uplink import TooSlow, Turn, Uplink

_log = logging.getLogger("ecr_parts")
_T = TypeVar("_T")
_TOO_SLOW = "The uplink is too slow: use a faster one, or nothing else on it"
_MAX_HANGING = 3  # attempts whose threads may still be running


@dataclass(frozen=True)
class Target:
    """The repository that calls are for."""

    client: EcrClient
    repository_name: str
    registry_id: str | None = None

    @cached_property
    def location(self) -> dict[str, object]:
        """The parameters of each call that name the repository."""
        registry = {} if self.registry_id is None else {"registryId": self.registry_id}
        return {"repositoryName": self.repository_name, **registry}

    def __str__(self) -> str:
        registry = f"registry {self.registry_id!r}" if self.registry_id else "the default registry"
        return f"repository {self.repository_name!r} in {registry}"

    @property
    def identity(self) -> str:
        """Where the repository is: the endpoint, the registry and the name. In names of files."""
        return f"{endpoint_url(self.client)} {self.registry_id} {self.repository_name}"

    def has(self, session: UploadSession) -> bool:
        """Whether the session's upload is in this repository and registry."""
        location = (session.repository_name, session.registry_id)
        return location == (self.repository_name, self.registry_id)


@dataclass(frozen=True)
class CallOptions:
    """How calls are made, for all layers of an uploader together."""

    retrying: tenacity.BaseRetrying
    attempt_timeout: float = 900
    """The maximum duration of one attempt, in seconds."""
    encodes: bool = False
    """Whether the client sends ``EncodedBlob``; otherwise it gets raw bytes."""
    overlap: Overlap = field(default_factory=lambda: Overlap(enabled=False))
    bandwidth: Bandwidth | None = None
    uplink: Uplink = field(default_factory=lambda: Uplink(ECR_LIMITS.min_part))
    hanging: set[Task[Any]] = field(default_factory=set, repr=False, compare=False)
    """Attempts that exceeded ``attempt_timeout``, and whose threads may still be running."""


def outcome_of(function: Callable[[], _T]) -> _T | CallFailed:
    """What ``function`` returns, or why the call that it made has failed.

    The only place that catches ``CallFailed``. Nothing is called while it is handled: an exception
    that is raised meanwhile would get it as its context.
    """
    try:
        return function()
    except CallFailed as caught:
        failed = caught
    return failed.with_traceback(None)  # its frames refer to the part


def answer_of(function: Callable[[], _T]) -> _T:
    """What ``function`` returns. If the call that it made has failed, raises its public error."""
    outcome = outcome_of(function)
    if isinstance(outcome, CallFailed):
        raise outcome.error
    return outcome


@dataclass(eq=False, kw_only=True)
class Call(Generic[_T]):
    """A call, and how its answer is parsed: in the thread of an attempt."""

    target: Target
    options: CallOptions
    waiter: Waiter
    """Its heartbeat is called before each attempt and each wait, and once a second during them."""
    operation: str
    parameters: Mapping[str, object]
    """All of them, those that name the repository too."""
    parse: Callable[[Answer], _T]
    """Returns what ECR answered, or raises what is wrong with it."""
    parse_refusal: Callable[[ClientError], _T | None] = lambda _error: None
    """The same for an error; ``None`` for an error that is not an answer."""
    subject: str = ""
    """What the call is about, for messages."""
    confirmation: object = field(default_factory=object)
    """The answer that confirms a part, so that the call for the next one may be completed. No other
    call has one: its default equals nothing."""
    thread: str = "call"
    """The name of the thread in which attempts are made."""
    new_turn: Callable[[], Turn | None] = lambda: None
    """Returns the turn of an attempt that sends a part."""
    smallest: bool = True
    """Whether what is sent cannot be cut into smaller parts."""
    attempts: int = field(default=0, init=False)
    """How many times the call was made."""
    _begun_attempt: Attempt[_T | CallFailed] | None = field(default=None, init=False)
    """The attempt that was begun before ``settle``, if any."""

    def __str__(self) -> str:
        subject = f", {self.subject}" if self.subject else ""
        return f"{self.operation} in repository {self.target.repository_name!r}{subject}"

    def settle(self) -> _T:
        """Call ECR until it answers. Raises ``CallFailed`` once the call has failed for good.

        Each attempt runs in another thread while this one waits. Any other exception reports an
        invalid argument, or was raised by someone else's code: a signal handler, the heartbeat or
        the retry policy.
        """
        method = getattr(self.target.client, METHODS[self.operation])
        backoff = Backoff(self.options.retrying, self.waiter, method)
        begun = self._begun_attempt
        while True:
            self.waiter.heartbeat()
            outcome = self._attempt(begun)
            self.attempts += 1
            if not isinstance(outcome, CallFailed):
                self.parameters = {}  # a part is not needed any more
                return outcome
            lost = begun is not None and begun.held_back and outcome.connection_lost
            begun = None
            if outcome.too_slow and not self.smallest:
                raise self._give_up(outcome)
            if outcome.too_slow:
                _log.debug("%s: %s; waiting for its turn", self, outcome.description)
                continue
            if lost:  # perhaps because it was held back, so the policy is not asked
                self.options.overlap.count_loss(outcome.description)
            elif not outcome.transient:
                raise self._give_up(outcome)
            else:
                backoff.plan(outcome.cause)
                if backoff.gives_up():
                    raise self._give_up(outcome)
            _log.info(
                "%s, attempt %d: %s; trying again in %.1f s",
                self, self.attempts, outcome.description, backoff.seconds,
            )  # fmt: skip
            del outcome  # it may hold the request
            if not lost:
                backoff.wait()

    def _give_up(self, failed: CallFailed) -> CallFailed:
        return failed.give_up(
            operation=self.operation,
            service_name=service_name(self.target.client),
            repository_name=self.target.repository_name,
            call=str(self),
            attempts=self.attempts,
        )

    def _attempt(self, begun: Attempt[_T | CallFailed] | None) -> _T | CallFailed:
        """Make one attempt, or wait for that which was begun."""
        attempt, hanging, seconds = begun, self.options.hanging, self.options.attempt_timeout
        if attempt is not None:
            self.waiter.wait(attempt, seconds)
        else:
            for task in tuple(hanging):
                if not task.running:
                    hanging.discard(task)
            if len(hanging) >= _MAX_HANGING:
                message = f"{len(hanging)} earlier attempts are still waiting for an answer"
                return CallFailed.timed_out(message, transient=False)
            attempt = self._new_attempt(None)
            self.waiter.give_and_wait(self.thread, attempt, seconds)
        if attempt.timed_out:
            hanging.add(attempt)
            message = f"no answer within {seconds:g} seconds"
            return CallFailed.timed_out(message, transient=len(hanging) < _MAX_HANGING)
        return attempt.result()

    def _new_attempt(self, gate: Gate | None) -> Attempt[_T | CallFailed]:
        """A task that makes the call: ahead, if there is a ``gate``."""
        # Looked up for each attempt, because a client may switch to another one in between.
        method = getattr(self.target.client, METHODS[self.operation])
        # An abandoned attempt may live on. So the task must not refer to ``self``, which refers to
        # the part and to the caller's objects.
        client, confirmation, next_gate = self.target.client, self.confirmation, Gate()
        turn = self.new_turn()
        parse, parse_refusal = self.parse, self.parse_refusal
        check = partial(_note_sent_ahead, gate, self.options.overlap, str(self))
        parameters = dict(self.parameters)
        blob = parameters.get("layerPartBlob")

        def run() -> _T | CallFailed:
            handled = sys.exc_info()[1]  # the caller's, if this is the caller's thread
            # No local variable of this frame may refer to the failure, or to the attempt that gets
            # it: the failure's traceback refers to the frame. So this finds the attempt by its
            # thread.
            try:
                cast("Attempt[Any]", current_task()).wait_for_turn()
                answer = parse(check_answer(method(**parameters)))
            except TooSlow as too_slow:
                clear_client_frames(too_slow, handled)
                return check(CallFailed.uplink_too_slow())
            except Abandoned as abandoned:
                clear_client_frames(abandoned, handled)
                raise
            except Exception as error:  # noqa: BLE001  (a client may raise anything)
                clear_client_frames(error, handled)
                return check(_find_cause(turn, parse_error(error, parse_refusal, _secrets(client))))
            if answer == confirmation:
                next_gate.open()
                if turn is not None:  # pragma: no branch  (only parts are confirmed)
                    turn.stored()
            return check(answer)

        attempt = Attempt(run, self.waiter.cancelled, gate, next_gate, self.options.bandwidth, turn)
        if isinstance(blob, EncodedBlob):
            parameters["layerPartBlob"] = own = copy.copy(blob)
            attempt.when_over(partial(setattr, own, "body", b""))
        return attempt


def _secrets(client: EcrClient) -> list[str]:
    """What must not be shown of the attempt of this thread."""
    return cast("Attempt[Any]", current_task()).sent_secrets + loaded_secrets(client)


def _find_cause(turn: Turn | None, outcome: _T | CallFailed) -> _T | CallFailed:
    """Find out whether the attempt of this thread has failed because of the uplink or the clock."""
    if not isinstance(outcome, CallFailed):
        return outcome
    age = cast("Attempt[Any]", current_task()).signed.age
    expired = has_expired(outcome.cause) and age >= MIN_AGE
    outcome.remedy = clock_remedy(outcome.cause, age)
    if expired and turn is None:
        outcome.transient = True  # this call is small, but others may have filled the uplink
    elif expired and turn is not None:
        reason = turn.expired(age)
        outcome.too_slow = reason is None
        if reason is not None:
            outcome.description += f" ({reason})"
            outcome.remedy = outcome.remedy or _TOO_SLOW
    elif turn is not None and outcome.connection_lost:
        outcome.too_slow = turn.failed()
    return outcome


def _note_sent_ahead(
    gate: Gate | None, overlap: Overlap, call: str, outcome: _T | CallFailed
) -> _T | CallFailed:
    """If the request was sent ahead, note whether it had to be. Returns its ``outcome``.

    If it failed, its gate is closed next, as that of each attempt that ends.
    """
    if gate is None or (isinstance(outcome, CallFailed) and outcome.too_slow):
        return outcome
    if isinstance(outcome, CallFailed) and not gate.is_decided:
        _log.info("%s, sent ahead: %s; trying again in its turn", call, outcome.description)
        overlap.count_loss(outcome.description)
    elif not isinstance(outcome, CallFailed) and not gate.was_asked:
        overlap.end("another handler of the client answers parts by itself")
    return outcome


@dataclass(eq=False, kw_only=True)
class PartCall(Call[PartAnswer]):
    """The call that sends a part, from its encoding to its confirmation.

    The call for the next part may be begun ahead: while this one is being sent or processed.
    """

    part: Part
    begun_at: float = field(default=0.0, init=False)
    """When the first attempt was begun, by ``time.monotonic``."""
    next_gate: Gate = field(default_factory=Gate, init=False)
    """The gate of the next part's request. Only the first attempt of this call opens it."""

    def begin(self, previous: PartCall | None = None) -> None:
        """Begin to send the part: ahead, while ``previous`` is being sent or processed.

        Without ``previous``, the part before is confirmed. Then this does nothing if the part was
        begun ahead and its request was not withdrawn. ``settle`` waits for the outcome, or begins
        what was not begun here. May be called in any thread.
        """
        gate = None
        if previous is not None:
            if previous._begun_attempt is None:
                return  # nothing would open the gate
            gate = previous.next_gate
            gate.last_byte = self.part.last_byte
        elif self._begun_attempt is not None:
            passed = self._begun_attempt.gate
            if passed is None or not passed.is_closed:
                return
            if passed.held_too_long:
                reason = "the part before took too long to be confirmed"
                self.options.overlap.count_loss(reason)
            self._begun_attempt = None
        if len(self.options.hanging) >= _MAX_HANGING:
            return  # ``settle`` finds out whether they still hang
        self.begun_at = time.monotonic()
        self._begun_attempt = self._new_attempt(gate)
        self.next_gate = self._begun_attempt.next_gate
        self.waiter.give(self.thread, self._begun_attempt)

    def withdraw(self) -> None:
        """Send nothing more of the part. Its answer is not needed."""
        if self._begun_attempt is not None:
            self._begun_attempt.abandoned = True
            self._begun_attempt.release()

    @property
    def sent_up_to(self) -> int:
        """The last byte that was sent: of this part, or of the next one, which was begun ahead."""
        return max(self.part.last_byte, self.next_gate.last_byte)
