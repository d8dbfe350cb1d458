"""LayerUploader: sends a layer's parts, and goes by what ECR answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import tenacity

from ecr_parts.chunker import Chunker, Part
from ecr_parts.errors import (
    EcrPartsError,
    LayerTooLargeError,
    UploadLostError,
)
from ecr_parts.limits import ECR_LIMITS, ECR_PUBLIC_LIMITS, Limits
from ecr_parts.service import (
    EcrClient,
    Service,
    default_retrying,
    require_ecr_client,
    service_name,
)
from ecr_parts.session import UploadSession
from ecr_parts.source import Blob, LayerSource, RunningDigest, Source, open_source
from ecr_parts.steps import Steps, check_digest

_log = logging.getLogger("ecr_parts")
_MOST_RESTARTS = 3
_MOST_DIGESTS = 100  # in one call, as the API has it
_HASHED_AT_ONCE = 1024 * 1024  # bytes


@dataclass(frozen=True)
class SentPart:
    """A part that ECR confirmed, and what it took."""

    part: Part
    seconds: float
    attempts: int


@dataclass(frozen=True)
class UploadedLayer:
    """A layer that is at ECR, whole: ECR has checked its digest."""

    digest: str
    """``"sha256:…"``."""
    size: int
    """Bytes."""
    existed: bool
    """Whether ECR had it already, so that nothing (more) had to be sent."""
    parts: tuple[SentPart, ...] = field(default=(), repr=False, compare=False)
    """The parts sent by this call."""

    def descriptor(self, media_type: str) -> dict[str, str | int]:
        """The layer as an OCI content descriptor, for a manifest; ready for JSON."""
        return {"mediaType": media_type, "digest": self.digest, "size": self.size}


class LayerUploader:
    """Uploads layers to one repository of Amazon ECR or ECR Public. Safe to share by threads.

    ``client`` is a botocore or boto3 client for ``ecr`` or ``ecr-public``, at best made with
    ``CLIENT_CONFIG``. ``registry_id`` is the AWS account ID, where it is not the client's own.
    ``part_size`` (bytes) is what ECR answers unless given; ``limits`` are the service's own.
    Of ``retrying``, a ``tenacity`` policy, the stop, wait and sleep count; what is retried is
    decided here. Nothing is sent before the first call of a method.
    """

    def __init__(
        self,
        client: EcrClient,
        repository_name: str,
        *,
        registry_id: str | None = None,
        part_size: int | None = None,
        limits: Limits | None = None,
        retrying: tenacity.Retrying | None = None,
    ) -> None:
        require_ecr_client(client)
        if not isinstance(repository_name, str):
            raise TypeError(f"repository_name is {repository_name!r}, and must be a str")
        if not repository_name:
            raise ValueError("repository_name is empty")
        if registry_id is not None and not isinstance(registry_id, str):
            raise TypeError(f"registry_id is {registry_id!r}, and must be a str")
        if retrying is not None and not isinstance(retrying, tenacity.Retrying):
            raise TypeError(f"retrying is {retrying!r}, and must be a tenacity.Retrying")
        if limits is None:
            limits = ECR_PUBLIC_LIMITS if service_name(client) == "ecr-public" else ECR_LIMITS
        if part_size is not None:
            limits.check_part_size(part_size)
        service = Service(client, repository_name, registry_id, retrying or default_retrying())
        self._steps = Steps(service, limits, part_size)

    def upload(
        self,
        source: LayerSource,
        *,
        digest: str | None = None,
        size: int | None = None,
        check_existing: bool = True,
        progress: Callable[[int], object] | None = None,
    ) -> UploadedLayer:
        """Upload a layer: it is at ECR, whole, when this returns.

        ``source`` is a path, bytes, a binary file object (read from where it stands) or an
        iterable of bytes. ``digest`` (``"sha256:…"``), if known, is proven by ECR and not
        computed here. ``size`` (bytes) helps with a stream: the right part size from the
        beginning, and an error if it ends early. ``check_existing`` asks ECR first and sends
        nothing that it has; a file without a ``digest`` is read once more for that.

        ``progress(n)`` hears of ``n`` bytes newly confirmed by ECR, on this thread: negative
        when an upload had to start over, 0 as a sign of life before each attempt and wait. Their
        sum is the layer's size in the end. What it raises ends the upload.

        Raises ``EcrPartsError``; ``TypeError`` and ``ValueError`` for bad arguments; and
        whatever ``source`` and ``progress`` raise.
        """
        if digest is not None:
            check_digest(digest)
        with open_source(source, size) as opened:
            run = _Run(self._steps, opened, digest, progress)
            try:
                return run.upload(check_existing)
            except EcrPartsError as error:
                error.session = run.session
                error.parts = tuple(run.parts)
                raise

    def initiate(
        self, *, layer_size: int | None = None, layer_digest: str | None = None
    ) -> UploadSession:
        """Begin an upload to drive by ``upload_part`` and ``complete``.

        ``layer_size`` in bytes; where it is known, ``part_size`` of the session suits it.
        """
        if layer_size is not None:
            self._steps.limits.check_layer(layer_size, self._steps.part_size)
        if layer_digest is not None:
            check_digest(layer_digest)
        return self._steps.begin(layer_size, layer_digest)

    def upload_part(self, session: UploadSession, blob: Blob) -> None:
        """Send ``blob``, the layer's bytes from ``session.next_byte`` on.

        Afterwards ``session.next_byte`` is where ECR stands: behind the blob, or inside it, or
        further back or on. Read on from there; one loop covers every case.

        Raises ``ValueError`` for an empty or too large blob, for one behind the layer's end, and
        for one that follows a part under ECR's minimum; ``UploadLostError`` where this upload
        cannot be completed any more: begin a new one.
        """
        self._own(session)
        part = self._part_of(session, blob)
        try:
            self._steps.send(session, part, blob, replayable=True)
        except EcrPartsError as error:
            error.session = session
            raise

    def complete(self, session: UploadSession, digest: str) -> UploadedLayer:
        """Complete an upload: ECR checks that it received what ``digest`` says.

        Raises ``DigestMismatchError`` where it did not, ``ValueError`` where parts are missing.
        """
        self._own(session)
        check_digest(digest)
        if session.layer_digest not in (None, digest):
            raise ValueError(f"digest is {digest}, and the session's is {session.layer_digest}")
        size = session.next_byte
        if session.layer_size not in (None, size):
            raise ValueError(f"ECR has {size:,} of the layer's {session.layer_size:,} bytes")
        self._steps.limits.check_layer(size)
        try:
            existed = self._steps.complete(session, digest, size)
        except EcrPartsError as error:
            error.session = session
            raise
        return UploadedLayer(digest, size, existed)

    def missing(self, digests: Iterable[str]) -> set[str]:
        """Those of ``digests`` that the repository does not have, archived ones among them."""
        wanted = list(dict.fromkeys(map(check_digest, digests)))
        missing = set(wanted)
        for i in range(0, len(wanted), _MOST_DIGESTS):
            answer = self._steps.service.available(wanted[i : i + _MOST_DIGESTS])
            missing -= {digest for digest, found in answer.items() if found.status == "AVAILABLE"}
        return missing

    def _own(self, session: UploadSession) -> None:
        here = (self._steps.service.repository_name, self._steps.service.registry_id)
        if (session.repository_name, session.registry_id) != here:
            raise ValueError(
                f"the session is of repository {session.repository_name!r} in registry "
                f"{session.registry_id!r}, and this uploader of {here[0]!r} in {here[1]!r}"
            )

    def _part_of(self, session: UploadSession, blob: Blob) -> Part:
        if not isinstance(blob, bytes | bytearray | memoryview):
            raise TypeError(f"a part is bytes, not {type(blob).__name__}")
        size, limits = memoryview(blob).nbytes, self._steps.limits
        if not 1 <= size <= limits.max_part:
            raise ValueError(f"a part has 1 to {limits.max_part:,} bytes, not {size:,}")
        part = Part(session.next_byte, session.next_byte + size - 1)
        if session.layer_size is not None and part.last_byte >= session.layer_size:
            raise ValueError(f"{part} ends behind the layer's {session.layer_size:,} bytes")
        if session.ended(limits.min_part):
            raise ValueError(
                f"the part before byte {part.first_byte} is under the minimum of "
                f"{limits.min_part:,} bytes, and only the layer's last part may be: send "
                f"parts of session.part_size, {session.part_size:,} bytes"
            )
        return part


class _Run:
    """One upload of one source, from the first question to the last."""

    def __init__(
        self,
        steps: Steps,
        source: Source,
        digest: str | None,
        progress: Callable[[int], object] | None,
    ) -> None:
        self._progress = progress or (lambda _n: None)
        self._steps = steps.with_heartbeat(lambda: self._progress(0))
        self._limits = steps.limits
        self._source = source
        self._digest = digest
        self._running_digest = RunningDigest()
        self._reported = 0
        self._restarts = 0
        self.parts: list[SentPart] = []
        self.session: UploadSession | None = None

    def upload(self, check_existing: bool) -> UploadedLayer:
        if self._source.size is not None:
            self._limits.check_layer(self._source.size, self._steps.part_size)
        if not self._source.read(0, 1):
            self._limits.check_layer(0)
        if check_existing and self._digest is None and self._source.replayable:
            self._digest = self._hash_source()
        if check_existing and self._digest is not None:
            size = self._steps.size_there(self._digest, self._source.size)
            if size is not None:
                return self._there(self._digest, size, existed=True)
        session = self._begin()
        while True:
            try:
                self._send_parts(session)
                return self._finish(session)
            except UploadLostError as lost:
                there = self._settle(lost)
                if there is not None:
                    return there
                if not self._source.holds(0) or self._restarts >= _MOST_RESTARTS:
                    raise
                self._restarts += 1
                _log.info("starting over, for the %d. time: %s", self._restarts, lost)
                session = self._begin()

    def _hash_source(self) -> str:
        running, first_byte = RunningDigest(), 0
        while blob := self._source.read(first_byte, _HASHED_AT_ONCE):
            self._progress(0)
            running.feed(first_byte, blob)
            first_byte += len(blob)
        return running.digest()

    def _begin(self) -> UploadSession:
        begun = self._steps.begin(self._source.size, self._digest)
        if self.session is None:
            self.session = begun
        else:
            self.session.begin(begun.upload_id, begun.part_size)
        self.parts.clear()
        self._report(0)
        return self.session

    def _send_parts(self, session: UploadSession) -> None:
        plan = self._plan(session)
        while (planned := next(plan, None)) is not None:
            blob = self._source.read(planned.first_byte, planned.size)
            if not blob:
                break
            part = Part(planned.first_byte, planned.first_byte + len(blob) - 1)
            session.layer_size = self._source.size
            if self._digest is None:
                self._running_digest.feed(part.first_byte, blob)
            self._send_part(session, part, blob)
            if session.next_byte != planned.last_byte + 1:
                plan = self._plan(session)

    def _plan(self, session: UploadSession) -> Iterator[Part]:
        """The parts from where ECR stands; those of a stream of unknown size have no end."""
        if self._source.size is None:
            return self._plan_stream(session.part_size, session.next_byte, len(self.parts))
        if session.next_byte == self._source.size:
            return iter(())
        part_size = self._next_part_size(session.part_size, session.next_byte, len(self.parts))
        return Chunker(self._source.size, part_size=part_size).after(session.last_byte_received)

    def _plan_stream(self, part_size: int, first_byte: int, parts_sent: int) -> Iterator[Part]:
        while True:
            size = self._next_part_size(part_size, first_byte, parts_sent)
            yield Part(first_byte, first_byte + size - 1)
            first_byte += size
            parts_sent += 1

    def _next_part_size(self, part_size: int, next_byte: int, parts_sent: int) -> int:
        return self._limits.next_part_size(
            part_size, parts_sent=parts_sent, next_byte=next_byte, layer_size=self._source.size
        )

    def _send_part(self, session: UploadSession, part: Part, blob: bytes) -> None:
        if len(self.parts) >= self._limits.max_parts or part.last_byte >= self._limits.max_layer:
            raise LayerTooLargeError(
                f"the layer goes on behind byte {part.first_byte}, and ECR takes at most "
                f"{self._limits.max_parts:,} parts and {self._limits.max_layer:,} bytes: say the "
                "stream's size beforehand, or split it into several layers"
            )
        begun = time.monotonic()
        attempts = self._steps.send(session, part, blob, replayable=self._source.holds(0))
        stored = min(session.last_byte_received, part.last_byte)
        while self.parts and self.parts[-1].part.last_byte > session.last_byte_received:
            self.parts.pop()
        if stored >= part.first_byte:
            seconds = time.monotonic() - begun
            self.parts.append(SentPart(Part(part.first_byte, stored), seconds, attempts))
        self._source.release(session.next_byte)
        self._report(session.next_byte)

    def _finish(self, session: UploadSession) -> UploadedLayer:
        self._source.check()
        size = session.next_byte
        digest = self._digest or self._running_digest.digest()
        existed = self._steps.complete(session, digest, size)
        return self._there(digest, size, existed)

    def _settle(self, lost: UploadLostError) -> UploadedLayer | None:
        """Before starting over: the layer itself, if it is there (somebody else may send it)."""
        if self._digest is None or lost.operation == "CompleteLayerUpload":  # that has asked
            return None
        size = self._steps.size_settled(self._digest, self._source.size)
        return None if size is None else self._there(self._digest, size, existed=True)

    def _there(self, digest: str, size: int, existed: bool) -> UploadedLayer:
        self._report(size)
        return UploadedLayer(digest, size, existed, tuple(self.parts))

    def _report(self, confirmed: int) -> None:
        newly, self._reported = confirmed - self._reported, confirmed
        if newly:
            self._progress(newly)
