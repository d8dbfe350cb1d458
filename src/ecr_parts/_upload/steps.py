"""The steps of an upload: make a call, move the session by its answer, find the next action.

``Steps.take`` runs a step. If a call fails for good in it, ``CallFailed`` leaves the step, and
``take`` returns the action that follows from that. What the caller's code raises passes through.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import NoReturn, cast

from ecr_parts._model.layers import SentPart
from ecr_parts._model.machine import MOVES, Event, Machine, NextAction
from ecr_parts._model.session import UploadSession
from ecr_parts._upload.plan import Planner
from ecr_parts._wire.call import PartCall, outcome_of
from ecr_parts._wire.failures import CallFailed
from ecr_parts._wire.repository import Repository
from ecr_parts.errors import (
    DigestMismatchError,
    EcrPartsError,
    ServiceError,
    UnexpectedResponseError,
    UploadLostError,
)

_log = logging.getLogger("ecr_parts")


def start_upload(
    repository: Repository, planner: Planner, layer_size: int | None, layer_digest: str | None
) -> UploadSession:
    """Start an upload. Returns its session, for ``Machine.start``."""
    upload_id, suggested_part_size = repository.initiate()
    return UploadSession(
        repository_name=repository.target.repository_name,
        registry_id=repository.target.registry_id,
        upload_id=upload_id,
        part_size=planner.choose_part_size(suggested_part_size, layer_size),
        layer_digest=layer_digest,
        layer_size=layer_size,
    )


class Steps:
    """The steps of one upload. ``machine`` moves its session.

    ``replayable`` tells whether the source can be read again from its first byte: a stream can,
    until bytes of it are released.
    """

    def __init__(
        self,
        repository: Repository,
        machine: Machine,
        replayable: Callable[[], bool] = lambda: True,
    ) -> None:
        self.machine = machine
        self.error: EcrPartsError | None = None
        """The error to raise if the latest action ends the upload."""
        self.in_doubt = False
        """Whether ECR may have carried out the call that failed."""
        self.existed = True
        """If the layer exists: whether it was certainly another upload that completed it."""
        self.existing_size: int | None = None
        """If it was asked whether the layer exists, and it does: its size in bytes."""
        self._call: PartCall | None = None
        """The call that sends a part, until it is settled or has failed."""
        self._repository = repository
        self._replayable = replayable

    def take(self, step: Callable[[], NextAction]) -> NextAction:
        """Take a step: the action that it returns, or the one that follows from its failed call."""
        outcome = outcome_of(step)
        call, self._call = self._call, None
        if not isinstance(outcome, CallFailed):
            return outcome
        self.error, self.in_doubt = outcome.error, outcome.in_doubt
        event = _event_of(outcome)
        action = self._after(event)
        if action is NextAction.CUT_AGAIN:
            self.machine.note_sent(cast("PartCall", call).sent_up_to)
            _log.debug("%s; %s", outcome.description, action.value)
        if outcome.operation == "CompleteLayerUpload":
            if action is NextAction.FAIL and outcome.in_doubt:
                # This attempt, or an earlier one, may have completed the layer.
                event = Event.COMPLETE_IN_DOUBT
                action = self._after(event)
            # If the upload is gone, botocore may have repeated a call that had succeeded.
            self.existed = event is not Event.UPLOAD_NOT_FOUND and not outcome.in_doubt
        return action

    def settle(self, call: PartCall) -> NextAction:
        """Wait for ECR's answer to a part, and move the session to the last byte that ECR has."""
        self._call = call
        answer = call.settle()
        event, action = self.machine.receive(
            call.part,
            answer.last_byte,
            # ECR may have bytes of the next part if that was sent ahead and withdrawn: that is, if
            # this part was refused.
            sent_up_to=call.sent_up_to if answer.refused else -1,
            replayable=self._replayable(),
        )
        repeated = f", attempt {call.attempts}" if call.attempts > 1 else ""
        message = f"{call}{repeated}: {event.value}"
        if event is not Event.AT_LAST_BYTE:
            has = f"the layer up to byte {answer.last_byte}" if answer.last_byte >= 0 else "nothing"
            message += f" (ECR has {has})"
        elif answer.refused:
            message = f"{call}{repeated}: ECR already has this part"
        if action is NextAction.CHECK_LOST:
            self.error = UploadLostError(
                f"{message}; {action.value}. Upload the layer again from the beginning",
                operation=call.operation,
                repository_name=call.target.repository_name,
                attempts=call.attempts,
            )
        elif action is NextAction.FAIL:
            self.error = UnexpectedResponseError(
                f"{message}. Check that the endpoint is ECR and that no other process uses this "
                "upload's session, and upload again"
            )
        else:
            usual = event is Event.AT_LAST_BYTE and call.attempts == 1 and not answer.refused
            at = f" at byte {self.machine.session.next_byte}" if action in MOVES else ""
            level = logging.DEBUG if usual else logging.INFO
            _log.log(level, "%s; %s%s", message, action.value, at)
        return action

    def complete(self, digest: str) -> NextAction:
        """Complete the upload.

        Some failures leave open whether the layer is complete: an earlier attempt may have
        succeeded, or someone else's upload. ``check_availability`` resolves them.
        """
        self._repository.complete(self.machine.session.upload_id, digest)
        self.existed = False
        return self._after(Event.COMPLETED)

    def check_availability(
        self, action: NextAction, digest: str | None, size: int | None
    ) -> NextAction:
        """Ask whether the layer exists: it may have been completed by us or by someone else.

        ``action`` is the one that asks for this: ``CHECK_LOST`` or ``CHECK_COMPLETED``.
        """
        found = None if digest is None else self._repository.poll_existing_size(digest, size)
        if found is not None and found >= self.machine.session.next_byte:  # or it is another layer
            refusal = self.error.code if isinstance(self.error, ServiceError) else self.error
            _log.info("%s is complete at ECR, despite %s", digest, refusal)
            self.existing_size = found
            return self._after(Event.LAYER_AVAILABLE)
        lost = action is NextAction.CHECK_LOST
        return self._after(Event.LAYER_MISSING if lost else Event.NOT_COMPLETED)

    def _after(self, event: Event) -> NextAction:
        return self.machine.after(event, replayable=self._replayable())


def raise_error(
    error: EcrPartsError, session: UploadSession | None, parts: Iterable[SentPart] = ()
) -> NoReturn:
    """Raise an error of this library, with the session and the parts that ECR confirmed."""
    error.session = session
    error.parts = tuple(parts)
    raise error


def _event_of(failed: CallFailed) -> Event:
    if failed.too_slow:
        return Event.TOO_SLOW
    # ECR refuses an upload ID that cannot be its own, such as that of a damaged checkpoint.
    malformed_id = failed.code == "InvalidParameterException" and "uploadId" in failed.description
    if failed.code == "UploadNotFoundException" or malformed_id:
        return Event.UPLOAD_NOT_FOUND
    if failed.operation != "CompleteLayerUpload":
        return Event.CALL_FAILED
    if failed.code in ("EmptyUploadException", "LayerPartTooSmallException"):
        return Event.PARTS_REJECTED
    if isinstance(failed.error, DigestMismatchError):
        return Event.CONTENT_DIFFERS
    exists = failed.code == "LayerAlreadyExistsException"
    return Event.COMPLETE_IN_DOUBT if exists else Event.CALL_FAILED
