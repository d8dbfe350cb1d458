"""One upload of one source, from the first question to the last."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial

from ecr_parts.ahead import Ahead, Prepared
from ecr_parts.checkpoint import Checkpoint
from ecr_parts.chunker import Chunker, Part
from ecr_parts.errors import (
    DigestMismatchError,
    EcrPartsError,
    LayerTooLargeError,
    ServiceError,
    UploadLostError,
)
from ecr_parts.service import Service
from ecr_parts.session import UploadSession
from ecr_parts.source import Blob, LayerSource, RunningDigest, Source, open_source
from ecr_parts.steps import Steps

_log = logging.getLogger("ecr_parts")
_MOST_RESTARTS = 3
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


@dataclass(frozen=True)
class Layer:
    """A layer to upload with ``upload_many``, where a bare source says too little.

    All as in ``LayerUploader.upload``; ``progress`` is this layer's own.
    """

    source: LayerSource
    digest: str | None = field(default=None, kw_only=True)
    size: int | None = field(default=None, kw_only=True)
    checkpoint: str | os.PathLike[str] | None = field(default=None, kw_only=True)
    progress: Callable[[int], object] | None = field(default=None, kw_only=True)


class Run:
    """One upload of one source, from the first question to the last."""

    def __init__(
        self,
        steps: Steps,
        source: Source,
        digest: str | None,
        progress: Callable[[int], object] | None,
        session: UploadSession | None,
        checkpoint: Checkpoint | None,
    ) -> None:
        self._progress = _stopping(progress)
        self._steps = steps.with_heartbeat(partial(self._progress, 0))
        self._limits = steps.limits
        self._source = source
        self._digest = digest
        self._checkpoint = checkpoint
        self._reported = 0
        self._restarts = 0
        self._parts_before = 0
        self._proven = True
        self.parts: list[SentPart] = []
        self.session = session

    def upload(self, check_existing: bool) -> UploadedLayer:
        resumable = self.session is not None or self._checkpoint is not None
        if resumable and not self._source.replayable:
            raise ValueError("only a source that can be read again can be resumed, no stream")
        self._steps.check_size(self._source.size)
        if not self._source.read(0, 1):
            self._limits.check_layer(0)
        stored = self._checkpoint.load() if self._checkpoint is not None else self.session
        if self._digest is None and self._source.replayable and (check_existing or resumable):
            self._digest = hash_source(self._source, partial(self._progress, 0))
        if stored is not None and not self._is_this_layers(stored):
            _log.info("not resumed: the session is of another layer or repository")
            stored = None
        if check_existing and self._digest is not None:
            size = self._steps.size_there(self._digest, self._source.size)
            if size is not None:
                if stored is not None:
                    self._forget()
                self._report(size)
                return UploadedLayer(self._digest, size, existed=True)
        session = self._begin() if stored is None else self._resume(stored)
        encode = partial(_encode, self._steps.service, session)
        with Ahead(self._source, encode, with_digest=self._digest is None) as ahead:
            return self._until_there(session, ahead)

    def _until_there(self, session: UploadSession, ahead: Ahead) -> UploadedLayer:
        while True:
            try:
                self._send_parts(session, ahead)
                return self._finish(session, ahead)
            except (ServiceError, DigestMismatchError) as lost:
                if not self._is_lost(lost, session):
                    raise
                there = self._settle(lost, session)
                if there is not None:
                    return there
                if not self._source.holds(0) or self._restarts >= _MOST_RESTARTS:
                    raise
                self._restarts += 1
                _log.info("starting over, for the %d. time: %s", self._restarts, lost)
                self._begin()

    def _is_lost(self, error: EcrPartsError, session: UploadSession) -> bool:
        """Whether this upload cannot be completed, but a new one could."""
        if isinstance(error, DigestMismatchError):
            return not self._proven
        if isinstance(error, UploadLostError):
            return True
        too_small = ("EmptyUploadException", "LayerPartTooSmallException")
        return isinstance(error, ServiceError) and session.patchy and error.code in too_small

    def _is_this_layers(self, stored: UploadSession) -> bool:
        here = (self._steps.service.repository_name, self._steps.service.registry_id)
        return (
            (stored.repository_name, stored.registry_id) == here
            and stored.layer_digest in (None, self._digest)
            and stored.layer_size in (None, self._source.size)
            and stored.next_byte <= (self._source.size or 0)
        )

    def _resume(self, stored: UploadSession) -> UploadSession:
        self._parts_before = -(-stored.next_byte // stored.part_size)
        self._proven = False  # with a digest from the caller, the content may be another by now
        self.session = stored
        self._identify(stored)
        stored.resume()
        _log.info("upload %s goes on at byte %d", stored.upload_id, stored.next_byte)
        self._report(stored.next_byte)
        return stored

    def _identify(self, session: UploadSession) -> None:
        session.layer_digest = self._digest
        session.layer_size = self._source.size

    def _begin(self) -> UploadSession:
        begun = self._steps.begin(self._source.size, self._digest)
        if self.session is None:
            self.session = begun
        else:
            self.session.begin(begun.upload_id, begun.part_size)
            self._identify(self.session)
        if self._checkpoint is not None:
            self.session.resume()  # other processes may go on from the same checkpoint
        self._parts_before = 0
        self._proven = True
        self.parts.clear()
        self._confirm(self.session)
        return self.session

    def _confirm(self, session: UploadSession) -> None:
        """Keep where the upload stands, and then tell of it."""
        if self._checkpoint is not None:
            self._checkpoint.save(session)
        self._report(session.next_byte)

    def _send_parts(self, session: UploadSession, ahead: Ahead) -> None:
        def prepare_next() -> Future[Prepared | None] | None:
            planned = next(plan, None)
            return None if planned is None else ahead.prepare(planned)

        plan = self._plan(session)
        prepared = prepare_next()
        while prepared is not None and (ready := prepared.result()) is not None:
            prepared = prepare_next()
            session.layer_size = self._source.size
            self._send_part(session, ready)
            if session.next_byte != ready.part.last_byte + 1:
                plan = self._plan(session)
                prepared = prepare_next()

    def _plan(self, session: UploadSession) -> Iterator[Part]:
        """The parts from where ECR stands; those of a stream of unknown size have no end."""
        if self._source.size is None:
            return self._plan_stream(session.part_size, session.next_byte, self._parts_stored)
        if session.next_byte == self._source.size:
            return iter(())
        part_size = self._next_part_size(session.part_size, session.next_byte, self._parts_stored)
        return Chunker(self._source.size, part_size=part_size).after(session.last_byte_received)

    @property
    def _parts_stored(self) -> int:
        return self._parts_before + len(self.parts)

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

    def _send_part(self, session: UploadSession, ready: Prepared) -> None:
        part = ready.part
        if self._parts_stored >= self._limits.max_parts or part.last_byte >= self._limits.max_layer:
            raise LayerTooLargeError(
                f"the layer goes on behind byte {part.first_byte}, and ECR takes at most "
                f"{self._limits.max_parts:,} parts and {self._limits.max_layer:,} bytes: say the "
                "stream's size beforehand, or split it into several layers"
            )
        begun = time.monotonic()
        attempts = self._steps.send(session, part, ready.blob, replayable=self._source.holds(0))
        if session.last_byte_received > part.last_byte:  # another process was here before
            skipped = session.last_byte_received - part.last_byte
            self._parts_before += -(-skipped // session.part_size)
        self.parts.append(SentPart(part, time.monotonic() - begun, attempts))
        self._cut_parts(session.last_byte_received)
        self._source.release(session.next_byte)
        self._confirm(session)

    def _cut_parts(self, last_byte: int) -> None:
        """Let ``parts`` end where ECR stands."""
        while self.parts and self.parts[-1].part.first_byte > last_byte:
            self.parts.pop()
        if self.parts and self.parts[-1].part.last_byte > last_byte:
            cut = self.parts.pop()
            self.parts.append(replace(cut, part=Part(cut.part.first_byte, last_byte)))

    def _finish(self, session: UploadSession, ahead: Ahead) -> UploadedLayer:
        self._source.check()
        size = session.next_byte
        digest = self._digest or ahead.digest()
        try:
            existed = self._steps.complete(session, digest, size)
        except DigestMismatchError:
            self._forget()  # it would fail for ever
            raise
        return self._there(digest, size, existed)

    def _settle(self, lost: EcrPartsError, session: UploadSession) -> UploadedLayer | None:
        """Before starting over: the layer itself, if it is there (somebody else may send it)."""
        if self._digest is None or isinstance(lost, DigestMismatchError):
            return None
        size = self._steps.size_settled(self._digest, self._source.size)
        if size is None or size < session.next_byte:
            return None
        return self._there(self._digest, size, existed=True)

    def _there(self, digest: str, size: int, existed: bool) -> UploadedLayer:
        self._forget()
        self._report(size)
        return UploadedLayer(digest, size, existed, tuple(self.parts))

    def _forget(self) -> None:
        if self._checkpoint is not None:
            self._checkpoint.delete()

    def _report(self, confirmed: int) -> None:
        newly, self._reported = confirmed - self._reported, confirmed
        if newly:
            self._progress(newly)


def hash_source(source: Source, heartbeat: Callable[[], object]) -> str:
    """The digest of a source that can be read again."""
    running, first_byte = RunningDigest(), 0
    while blob := source.read(first_byte, _HASHED_AT_ONCE):
        heartbeat()
        running.feed(first_byte, blob)
        first_byte += len(blob)
    return running.digest()


def upload_layer(
    steps: Steps,
    layer: Layer,
    *,
    check_existing: bool,
    session: UploadSession | None = None,
) -> UploadedLayer:
    """Upload one layer; errors carry the session and the parts."""
    kept = None if layer.checkpoint is None else Checkpoint(layer.checkpoint)
    with open_source(layer.source, layer.size) as opened:
        path = layer.source if isinstance(layer.source, str | os.PathLike) else None
        if kept is not None and path is not None and kept.is_at(path):
            raise ValueError(f"the checkpoint is the layer's own file, {os.fspath(path)!r}")
        run = Run(steps, opened, layer.digest, layer.progress, session, kept)
        try:
            return run.upload(check_existing)
        except EcrPartsError as error:
            error.session = run.session
            error.parts = tuple(run.parts)
            raise
        except Stopped as stopped:
            raised_by_progress = stopped.error
    raise raised_by_progress


class Stopped(BaseException):
    """What ``progress`` raised, on its way past every ``except`` to the caller."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _stopping(progress: Callable[[int], object] | None) -> Callable[[int], None]:
    def report(newly: int) -> None:
        if progress is not None:
            try:
                progress(newly)
            except BaseException as error:
                raise Stopped(error) from error

    return report


def _encode(service: Service, session: UploadSession, part: Part, blob: Blob) -> Blob:
    return service.encode(session.upload_id, part, blob)
