"""The steps of an upload, and what ECR's answer to each means for it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import tenacity
from typing_extensions import Self

from ecr_parts.chunker import Part
from ecr_parts.errors import ServiceError, UnexpectedResponseError, UploadLostError
from ecr_parts.limits import Limits
from ecr_parts.retry import is_transient, reason
from ecr_parts.service import Availability, Service
from ecr_parts.session import Move, UploadSession
from ecr_parts.source import Blob

_log = logging.getLogger("ecr_parts")
AVAILABLE = frozenset({"AVAILABLE"})
ARCHIVED_TOO = frozenset({"AVAILABLE", "ARCHIVED"})
MOST_DIGESTS = 100  # in one call, as the API has it
_TIMES_ASKED = 4  # whether a layer is there that should be: the answer may lag


def check_digest(digest: str) -> str:
    """``digest`` itself, if it is one that ECR can prove: ``sha256:`` and 64 hex digits."""
    if not isinstance(digest, str):
        raise TypeError(f"digest is {digest!r}, and must be a str")
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise ValueError(
            f"digest is {digest!r}, and must be 'sha256:' and 64 lower-case hex digits: ECR proves "
            "no other kind"
        )
    return digest


@dataclass(frozen=True)
class Steps:
    """Begin, send, complete: each one call to ECR, its answer taken into the session."""

    service: Service
    limits: Limits
    part_size: int | None
    """Bytes; ``None`` for what ECR answers."""

    def with_heartbeat(self, heartbeat: Callable[[], object]) -> Self:
        """The same steps, with ``heartbeat`` called before each attempt and each wait."""
        return replace(self, service=replace(self.service, heartbeat=heartbeat))

    def with_sleep(self, sleep: Callable[[float], object]) -> Self:
        """The same steps, with ``sleep`` for the waits; a sleep of the caller's own stays."""
        retrying = self.service.retrying
        if retrying.sleep is not tenacity.nap.sleep:
            return self
        return replace(self, service=replace(self.service, retrying=retrying.copy(sleep=sleep)))

    def check_size(self, layer_size: int | None) -> None:
        """Refuse a layer that cannot fit, as far as its size is known."""
        if layer_size is not None:
            self.limits.check_layer(layer_size, self.part_size)

    def begin(self, layer_size: int | None, layer_digest: str | None) -> UploadSession:
        """A new upload."""
        upload_id, answered = self.service.initiate()
        session = UploadSession(
            repository_name=self.service.repository_name,
            registry_id=self.service.registry_id,
            upload_id=upload_id,
            part_size=self.part_size or self.limits.part_size(answered, layer_size),
            layer_digest=layer_digest,
            layer_size=layer_size,
        )
        session.begin(session.upload_id, session.part_size)
        return session

    def send(self, session: UploadSession, part: Part, blob: Blob, *, replayable: bool) -> int:
        """Send a part and move the session to where ECR then stands. Returns the attempts.

        ``blob`` comes from ``Service.encode``.
        """
        sent = self.service.upload_part(session.upload_id, part, blob)
        move = session.receive(
            part, sent.answer.last_byte, min_part=self.limits.min_part, replayable=replayable
        )
        message = (
            f"UploadLayerPart in repository {self.service.repository_name!r}, bytes "
            f"{part.first_byte}-{part.last_byte}, attempt {sent.attempts}: ECR "
            f"{'refused the part, as it' if sent.answer.refused else 'took the part, and'} has the "
            f"layer up to byte {sent.answer.last_byte}: {move.value}"
        )
        if move in (Move.START_OVER, Move.LOST):
            raise UploadLostError(
                f"{message}. Upload the layer again from its beginning",
                operation="UploadLayerPart",
                repository_name=self.service.repository_name,
            )
        if move in (Move.STUCK, Move.NONSENSE):
            raise UnexpectedResponseError(
                f"{message}. Check that the client's endpoint is ECR's, and upload again"
            )
        as_sent = move is Move.CONFIRMED and sent.attempts == 1 and not sent.answer.refused
        _log.log(logging.DEBUG if as_sent else logging.INFO, "%s", message)
        return sent.attempts

    def complete(self, session: UploadSession, digest: str, size: int) -> bool:
        """Complete the upload. Returns whether ECR had the layer already.

        Some failures say little about the layer (the answer may be to a second attempt, or
        somebody else's upload was first): they are settled by asking whether the layer is there.
        """
        try:
            self.service.complete(session.upload_id, digest)
        except (ServiceError, UnexpectedResponseError) as error:
            # An archived layer has been completed, and that is the question here.
            if not _in_doubt(error) or not self.size_settled(digest, size, ARCHIVED_TOO):
                raise
            _log.info(
                "CompleteLayerUpload in repository %r failed, and %s is there all the same: %s",
                self.service.repository_name, digest, reason(error.__cause__),
            )  # fmt: skip
            return isinstance(error, ServiceError) and error.attempts == 1 and _exists(error)
        return False

    def size_there(
        self, digest: str, size: int | None, statuses: frozenset[str] = AVAILABLE
    ) -> int | None:
        """The layer's size (bytes) at ECR; ``None`` if it is not there, or of another size."""
        return self.sizes_there({digest: size}, statuses).get(digest)

    def sizes_there(
        self, wanted: Mapping[str, int | None], statuses: frozenset[str] = AVAILABLE
    ) -> dict[str, int]:
        """The sizes (bytes) of those layers of ``wanted`` that are there, and of its size."""
        there = {}
        for digest, found in self.found(wanted).items():
            size = wanted.get(digest) or found.size
            if found.status in statuses and size and found.size in (None, size):
                there[digest] = size
        return there

    def found(self, digests: Iterable[str]) -> dict[str, Availability]:
        """What ECR says of any number of layers."""
        wanted = list(digests)
        found: dict[str, Availability] = {}
        for i in range(0, len(wanted), MOST_DIGESTS):
            found |= self.service.available(wanted[i : i + MOST_DIGESTS])
        return found

    def size_settled(
        self, digest: str, size: int | None, statuses: frozenset[str] = AVAILABLE
    ) -> int | None:
        """Like ``size_there``, for a layer that may just have been completed: asked repeatedly."""

        def before_sleep(_state: tenacity.RetryCallState) -> None:
            self.service.heartbeat()

        ask = tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda found: found is None),
            stop=tenacity.stop_after_attempt(_TIMES_ASKED),
            wait=self.service.retrying.wait,
            sleep=self.service.retrying.sleep,
            before_sleep=before_sleep,
            retry_error_callback=lambda _state: None,
        )
        try:
            return ask(self.size_there, digest, size, statuses)
        except (ServiceError, UnexpectedResponseError) as error:
            _log.info("whether %s is there could not be found out: %s", digest, error)
            return None


def _exists(error: ServiceError) -> bool:
    return error.code == "LayerAlreadyExistsException"


def _in_doubt(error: ServiceError | UnexpectedResponseError) -> bool:
    """Whether a Complete that failed so may have completed the layer."""
    if isinstance(error, ServiceError) and (isinstance(error, UploadLostError) or _exists(error)):
        return True
    return isinstance(error, UnexpectedResponseError) or (
        error.__cause__ is not None and is_transient(error.__cause__)
    )
