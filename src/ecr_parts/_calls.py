"""The calls of an upload: each one's answer taken into the session, and the next action named."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from typing_extensions import Self

from ecr_parts._client import Answered, Availability, Failed, Received, RepositoryClient
from ecr_parts._session import Event, NextAction, Position, UploadSession
from ecr_parts._threads import Waiter
from ecr_parts._validation import shown
from ecr_parts.chunker import Part
from ecr_parts.errors import EcrPartsError, UnexpectedResponseError, UploadLostError
from ecr_parts.limits import Limits

_log = logging.getLogger("ecr_parts")
AVAILABLE = frozenset({"AVAILABLE"})
# An archived layer has been completed: it settles a Complete, and is missing otherwise.
COMPLETED = frozenset({"AVAILABLE", "ARCHIVED"})
MOST_DIGESTS = 100  # in one call, as the API has it
_TIMES_ASKED = 4  # whether a layer is there that should be: the answer may lag


def check_digest(digest: str) -> str:
    """``digest`` itself, if it is one that ECR can prove: ``sha256:`` and 64 hex digits."""
    if not isinstance(digest, str):
        raise TypeError(f"digest must be a str, not {shown(digest)}")
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise ValueError(
            f"digest must be 'sha256:' and 64 lower-case hex digits, not {shown(digest)}: ECR "
            "checks no other kind"
        )
    return digest


class NotListedError(Exception):
    """What the retry policy sees of a layer that ECR does not list yet."""


@dataclass(frozen=True)
class Step:
    """What a call came to."""

    action: NextAction
    error: EcrPartsError | None = None
    """What to raise where the action ends the upload."""
    attempts: int = 1
    settled_by: frozenset[str] = AVAILABLE
    """The availability of a layer that counts as there, if ECR is to be asked."""
    existed: bool = True
    """If the layer turns out to be there: whether another upload brought it."""
    size: int | None = None
    """Bytes of a layer that turned out to be there."""


@dataclass(frozen=True)
class UploadCalls:
    """Start an upload, send a part, complete it, ask for layers: one call to ECR each.

    Failures are values: of what is raised here, nothing was raised by this library.
    """

    client: RepositoryClient
    limits: Limits
    part_size: int | None
    """Bytes; ``None`` for what ECR answers."""

    def with_waiter(self, waiter: Waiter) -> Self:
        """The same calls, waited for by ``waiter``."""
        return replace(self, client=replace(self.client, waiter=waiter))

    def check_size(self, layer_size: int | None) -> None:
        """Refuse a layer that cannot fit, as far as its size is known."""
        if layer_size is not None:
            self.limits.check_layer(layer_size, self.part_size)

    def new_session(
        self, layer_size: int | None, layer_digest: str | None
    ) -> UploadSession | Failed:
        """Start an upload."""
        outcome = self.client.initiate_layer_upload()
        if isinstance(outcome, Failed):
            return outcome
        upload_id, answered = outcome.answer
        session = UploadSession(
            repository_name=self.client.repository_name,
            registry_id=self.client.registry_id,
            upload_id=upload_id,
            part_size=self.part_size or self.limits.part_size(answered, layer_size),
            layer_digest=layer_digest,
            layer_size=layer_size,
        )
        session._begin(session.upload_id, session.part_size)
        return session

    def send_part(
        self, session: UploadSession, part: Part, prepared: bytes, *, replayable: bool
    ) -> Step:
        """Send a part, and move the session to where ECR then stands.

        ``prepared`` comes from ``RepositoryClient.prepare_part``.
        """
        outcome = self.client.upload_layer_part(session.upload_id, part, prepared)
        if isinstance(outcome, Failed):
            lost = outcome.code == "UploadNotFoundException"
            action = session._after(
                Event.UPLOAD_NOT_FOUND if lost else Event.CALL_FAILED, replayable=replayable
            )
            return Step(action, outcome.error, outcome.attempts)
        event, action = session._receive(
            part,
            outcome.answer.last_byte,
            min_part=self.limits.min_part,
            replayable=replayable,
        )
        message = self._told(part, outcome, event)
        if action is NextAction.CHECK_LOST:
            lost_error = UploadLostError(
                f"{message}; {action.value}. Upload the layer again from its beginning",
                operation="UploadLayerPart",
                repository_name=self.client.repository_name,
            )
            return Step(action, lost_error, outcome.attempts)
        if action is NextAction.FAIL:
            error = UnexpectedResponseError(
                f"{message}. Check that the client's endpoint is ECR's, and upload again"
            )
            return Step(action, error, outcome.attempts)
        as_sent = event is Position.AT_LAST_BYTE and outcome.attempts == 1
        level = logging.DEBUG if as_sent and not outcome.answer.refused else logging.INFO
        _log.log(level, "%s; %s", message, action.value)
        return Step(action, attempts=outcome.attempts)

    def _told(self, part: Part, outcome: Answered[Received], event: Position | Event) -> str:
        last_byte, refused = outcome.answer
        return (
            f"UploadLayerPart in repository {self.client.repository_name!r}, bytes "
            f"{part.first_byte}-{part.last_byte}, attempt {outcome.attempts}: ECR "
            f"{'refused the part, as it' if refused else 'took the part, and'} has the layer up "
            f"to byte {last_byte}: {event.value}"
        )

    def complete(self, session: UploadSession, digest: str, *, replayable: bool) -> Step:
        """Complete the upload.

        Some failures say little about the layer: the answer may be to a second attempt, or
        somebody else's upload was first. They are settled by ``settled_size``.
        """
        outcome = self.client.complete_layer_upload(session.upload_id, digest)
        if isinstance(outcome, Answered):
            return Step(session._after(Event.COMPLETED, replayable=replayable), existed=False)
        event = _event_of(outcome)
        action = session._after(event, replayable=replayable)
        if action is NextAction.FAIL and outcome.in_doubt:
            # The last attempt was refused; an attempt before it may have completed the layer.
            event = Event.COMPLETE_IN_DOUBT
            action = session._after(event, replayable=replayable)
        surely_refused = event in (Event.PART_TOO_SMALL, Event.CONTENT_DIFFERS)
        return Step(
            action,
            outcome.error,
            outcome.attempts,
            AVAILABLE if surely_refused and not outcome.in_doubt else COMPLETED,
            existed=event is not Event.UPLOAD_NOT_FOUND and not outcome.in_doubt,
        )

    def size_there(self, digest: str, size: int | None) -> int | Failed | None:
        """The layer's size (bytes) at ECR; ``None`` if it is not there, or of another size."""
        sizes = self.sizes_there({digest: size})
        return sizes if isinstance(sizes, Failed) else sizes.get(digest)

    def sizes_there(
        self, wanted: Mapping[str, int | None], statuses: frozenset[str] = AVAILABLE
    ) -> dict[str, int] | Failed:
        """The sizes (bytes) of those layers of ``wanted`` that are there, and of its size."""
        found = self.availability_of(wanted)
        if isinstance(found, Failed):
            return found
        there = {}
        for digest, layer in found.items():
            size = wanted.get(digest) or layer.size
            if layer.status in statuses and size and layer.size in (None, size):
                there[digest] = size
        return there

    def availability_of(self, digests: Iterable[str]) -> dict[str, Availability] | Failed:
        """What ECR says of any number of layers."""
        wanted = list(digests)
        found: dict[str, Availability] = {}
        for i in range(0, len(wanted), MOST_DIGESTS):
            outcome = self.client.batch_check_layer_availability(wanted[i : i + MOST_DIGESTS])
            if isinstance(outcome, Failed):
                return outcome
            found |= outcome.answer
        return found

    def settled_size(
        self, digest: str, size: int | None, statuses: frozenset[str] = AVAILABLE
    ) -> int | None:
        """Like ``size_there``, for a layer that may just have been completed: asked repeatedly."""
        state = self.client.new_state(self.sizes_there)
        while True:
            found = self.sizes_there({digest: size}, statuses)
            if isinstance(found, Failed):
                _log.info("whether %s is there could not be found out: %s", digest, found.error)
                return None
            if found or state.attempt_number == _TIMES_ASKED:
                return found.get(digest)
            self.client.plan_wait(state, NotListedError(digest))
            self.client.wait_as_planned(state)


def _event_of(outcome: Failed) -> Event:
    """What a Complete that failed means for the upload."""
    if outcome.code == "UploadNotFoundException":
        return Event.UPLOAD_NOT_FOUND
    if outcome.code in ("EmptyUploadException", "LayerPartTooSmallException"):
        return Event.PART_TOO_SMALL
    if outcome.code == "OtherDigestError":
        return Event.CONTENT_DIFFERS
    in_doubt = outcome.in_doubt or outcome.code == "LayerAlreadyExistsException"
    return Event.COMPLETE_IN_DOUBT if in_doubt else Event.CALL_FAILED
