"""The calls of an upload. ECR's answers are applied to the session and give the next action."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NoReturn

from typing_extensions import Self

from ecr_parts._answers import Availability, PartAnswer
from ecr_parts._chunker import Part
from ecr_parts._client import Answered, Failed, PreparedPart, RepositoryClient
from ecr_parts._machine import Event, Machine, NextAction
from ecr_parts._models import SentPart
from ecr_parts._plan import Planner
from ecr_parts._retry import Backoff
from ecr_parts._session import UploadSession
from ecr_parts._threads import Waiter
from ecr_parts.errors import (
    DigestMismatchError,
    EcrPartsError,
    UnexpectedResponseError,
    UploadLostError,
)

_log = logging.getLogger("ecr_parts")
AVAILABLE = frozenset({"AVAILABLE"})
# An archived layer must be uploaded again, but it proves that a CompleteLayerUpload succeeded.
COMPLETED = frozenset({"AVAILABLE", "ARCHIVED"})
MAX_DIGESTS = 100  # in one call of BatchCheckLayerAvailability (API reference)
_MAX_POLLS = 4  # availability checks after a completion, because ECR may lag
_MAX_PUTS = 5  # of one manifest that refers to something that ECR does not find
_NOT_FOUND = frozenset({"LayersNotFoundException", "ReferencedImagesNotFoundException"})


class NotListedError(Exception):
    """Given to the retry policy while ECR does not list a layer yet. It is never raised."""


@dataclass(frozen=True)
class Step:
    """The outcome of sending a part or completing the upload."""

    action: NextAction
    error: EcrPartsError | None = None
    """The error to raise if the action ends the upload."""
    attempts: int = 1
    accepted_statuses: frozenset[str] = AVAILABLE
    """For ``CHECK_…`` actions: the availability that means that the layer exists."""
    existed: bool = True
    """If the layer exists: whether another upload completed it."""
    size: int | None = None
    """If the layer exists: its size in bytes."""


@dataclass(frozen=True)
class UploadCalls:
    """Starts uploads, sends parts, completes uploads, and asks which layers exist.

    Failed calls are returned, not raised. An exception that leaves these methods reports an invalid
    argument, or was raised by someone else's code.
    """

    client: RepositoryClient
    planner: Planner

    def with_waiter(self, waiter: Waiter) -> Self:
        """A copy whose calls wait with ``waiter``."""
        return replace(self, client=replace(self.client, waiter=waiter))

    def is_in_repository(self, session: UploadSession) -> bool:
        """Whether the session's upload is in this repository and registry."""
        location = (session.repository_name, session.registry_id)
        return location == (self.client.repository_name, self.client.registry_id)

    def machine(self, session: UploadSession) -> Machine:
        """What moves ``session``."""
        return Machine(session, self.planner.limits.min_part)

    def start_upload(
        self, layer_size: int | None, layer_digest: str | None
    ) -> UploadSession | Failed:
        """Start an upload, and return its session."""
        outcome = self.client.initiate_layer_upload()
        if isinstance(outcome, Failed):
            return outcome
        upload_id, suggested_part_size = outcome.answer
        session = UploadSession(
            repository_name=self.client.repository_name,
            registry_id=self.client.registry_id,
            upload_id=upload_id,
            part_size=self.planner.choose_part_size(suggested_part_size, layer_size),
            layer_digest=layer_digest,
            layer_size=layer_size,
        )
        self.machine(session).start(session)  # or it would count as resumed
        return session

    def send_part(
        self, session: UploadSession, prepared: PreparedPart, *, replayable: bool
    ) -> Step:
        """Send a part, and move the session to the last byte that ECR has afterwards."""
        part, machine = prepared.part, self.machine(session)
        outcome = self.client.upload_layer_part(prepared)
        if isinstance(outcome, Failed):
            lost = outcome.code == "UploadNotFoundException"
            action = machine.after(
                Event.UPLOAD_NOT_FOUND if lost else Event.CALL_FAILED, replayable=replayable
            )
            return Step(action, outcome.error, outcome.attempts)
        event, action = machine.receive(
            part,
            outcome.answer.last_byte,
            sent_up_to=prepared.sent_up_to if outcome.answer.refused else -1,
            replayable=replayable,
        )
        message = self._describe_answer(part, outcome, event)
        if action is NextAction.CHECK_LOST:
            lost_error = UploadLostError(
                f"{message}; {action.value}. Upload the layer again from the beginning",
                operation="UploadLayerPart",
                repository_name=self.client.repository_name,
                attempts=outcome.attempts,
            )
            return Step(action, lost_error, outcome.attempts)
        if action is NextAction.FAIL:
            error = UnexpectedResponseError(
                f"{message}. Check that the endpoint is ECR and that no other process uses this "
                "upload's session, and upload again"
            )
            return Step(action, error, outcome.attempts)
        as_expected = event is Event.AT_LAST_BYTE and outcome.attempts == 1
        level = logging.DEBUG if as_expected and not outcome.answer.refused else logging.INFO
        _log.log(level, "%s; %s", message, action.value)
        return Step(action, attempts=outcome.attempts)

    def _describe_answer(self, part: Part, outcome: Answered[PartAnswer], event: Event) -> str:
        last_byte, refused = outcome.answer
        has = "has none of the layer" if last_byte < 0 else f"has the layer up to byte {last_byte}"
        return (
            f"UploadLayerPart in repository {self.client.repository_name!r}, bytes "
            f"{part.first_byte}-{part.last_byte}, attempt {outcome.attempts}: ECR "
            f"{'refused' if refused else 'accepted'} the part and {has}: {event.value}"
        )

    def complete_upload(self, session: UploadSession, digest: str, *, replayable: bool) -> Step:
        """Complete the upload.

        Some failures leave open whether the layer is complete: an earlier attempt may have
        succeeded, or someone else's upload. ``poll_existing_size`` resolves them.
        """
        machine = self.machine(session)
        outcome = self.client.complete_layer_upload(session.upload_id, digest)
        if isinstance(outcome, Answered):
            return Step(machine.after(Event.COMPLETED, replayable=replayable), existed=False)
        event = _event_of_failed_complete(outcome)
        action = machine.after(event, replayable=replayable)
        if action is NextAction.FAIL and outcome.in_doubt:
            # The last attempt was refused, but an earlier one may have completed the layer.
            event = Event.COMPLETE_IN_DOUBT
            action = machine.after(event, replayable=replayable)
        rejected = event in (Event.PARTS_REJECTED, Event.CONTENT_DIFFERS) and not outcome.in_doubt
        return Step(
            action,
            outcome.error,
            outcome.attempts,
            AVAILABLE if rejected else COMPLETED,
            # The upload may be gone because this call succeeded before botocore's own retry.
            existed=event is not Event.UPLOAD_NOT_FOUND and not outcome.in_doubt,
        )

    def existing_sizes(
        self, wanted: Mapping[str, int | None], statuses: frozenset[str] = AVAILABLE
    ) -> dict[str, int] | Failed:
        """The sizes, in bytes, of those layers of ``wanted`` that exist with the wanted size."""
        found = self.availability(wanted)
        if isinstance(found, Failed):
            return found
        sizes = {}
        for digest, layer in found.items():
            size = wanted.get(digest) or layer.size
            if layer.status in statuses and size and layer.size in (None, size):
                sizes[digest] = size
        return sizes

    def availability(self, digests: Iterable[str]) -> dict[str, Availability] | Failed:
        """What ECR answers about any number of layers."""
        wanted = list(digests)
        found: dict[str, Availability] = {}
        for i in range(0, len(wanted), MAX_DIGESTS):
            outcome = self.client.batch_check_layer_availability(wanted[i : i + MAX_DIGESTS])
            if isinstance(outcome, Failed):
                return outcome
            found |= outcome.answer
        return found

    def poll_existing_size(
        self, digest: str, size: int | None, statuses: frozenset[str] = AVAILABLE
    ) -> int | None:
        """The size, in bytes, of a layer that may have just been completed.

        ``None`` if ECR does not list it, or cannot be asked. Asks up to four times, because ECR may
        lag. Of the retry policy, only the waits are used.
        """
        backoff = Backoff(self.client.retrying, self.client.waiter, self.existing_sizes)
        while True:
            found = self.existing_sizes({digest: size}, statuses)
            if isinstance(found, Failed):
                _log.info("cannot check whether %s exists: %s", digest, found.error)
                return None
            if found or backoff.attempt == _MAX_POLLS:
                return found.get(digest)
            backoff.plan(NotListedError(digest))
            backoff.wait()

    def put_image(
        self, digest: str, media_type: str, manifest: str, tag: str | None
    ) -> Failed | None:
        """Put a manifest; ``None`` if ECR has it.

        If ECR does not find what the manifest refers to, tries up to five times: PutImage may lag
        behind completed layers, by public reports. Of the retry policy, only the waits are used.
        """
        backoff = Backoff(self.client.retrying, self.client.waiter, self.put_image)
        while True:
            outcome = self.client.put_image(digest, media_type, manifest, tag)
            if isinstance(outcome, Answered):
                return None
            if outcome.code not in _NOT_FOUND or backoff.attempt == _MAX_PUTS:
                return outcome
            backoff.plan(NotListedError(digest))
            backoff.wait()


def _event_of_failed_complete(outcome: Failed) -> Event:
    if outcome.code == "UploadNotFoundException":
        return Event.UPLOAD_NOT_FOUND
    if outcome.code in ("EmptyUploadException", "LayerPartTooSmallException"):
        return Event.PARTS_REJECTED
    if isinstance(outcome.error, DigestMismatchError):
        return Event.CONTENT_DIFFERS
    in_doubt = outcome.in_doubt or outcome.code == "LayerAlreadyExistsException"
    return Event.COMPLETE_IN_DOUBT if in_doubt else Event.CALL_FAILED


def raise_error(
    error: EcrPartsError, session: UploadSession | None, parts: Iterable[SentPart] = ()
) -> NoReturn:
    """Raise an error of this library, with the session and the parts that ECR confirmed."""
    error.session = session
    error.parts = tuple(parts)
    raise error
