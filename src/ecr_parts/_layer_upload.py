"""One upload of one source, from the first question to the last."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NoReturn, TypeVar

from ecr_parts._calls import Step, UploadCalls
from ecr_parts._client import Failed, RepositoryClient
from ecr_parts._pipeline import Pipeline, Prepared, Preparing
from ecr_parts._session import MOST_RESTARTS, MOVES, Event, NextAction, UploadSession
from ecr_parts._threads import Waiter
from ecr_parts._validation import shown
from ecr_parts.checkpoint import Checkpoint
from ecr_parts.chunker import Chunker, Part
from ecr_parts.errors import (
    DigestMismatchError,
    EcrPartsError,
    LayerTooLargeError,
    SourceChangedError,
)
from ecr_parts.source import Blob, LayerSource, RunningDigest, Source, open_source

_log = logging.getLogger("ecr_parts")
_T = TypeVar("_T")
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

    All as in ``LayerUploader.upload``; ``progress`` is this layer's own. A pickled layer, as in a
    pickled error, keeps what identifies it (a path, the digest, the size, the checkpoint), and
    neither ``progress`` nor the content of a buffer or a stream.
    """

    source: LayerSource
    digest: str | None = field(default=None, kw_only=True)
    size: int | None = field(default=None, kw_only=True)
    checkpoint: str | os.PathLike[str] | None = field(default=None, kw_only=True)
    progress: Callable[[int], object] | None = field(default=None, kw_only=True)

    def __reduce__(self) -> tuple[Callable[..., Layer], tuple[object, ...]]:
        source: object = self.source
        if isinstance(source, os.PathLike) and not hasattr(source, "read"):
            source = os.fspath(source)
        if not isinstance(source, str):
            source = _NotPickled(shown(source))
        checkpoint = None if self.checkpoint is None else os.fspath(self.checkpoint)
        return _unpickled_layer, (source, self.digest, self.size, checkpoint)

    def __copy__(self) -> Layer:
        return self

    def __deepcopy__(self, _memo: object) -> Layer:
        return self


@dataclass(frozen=True, repr=False)
class _NotPickled:
    """In the place of a source that is not pickled. It cannot be uploaded."""

    description: str

    def __repr__(self) -> str:
        return f"<a source that was not pickled: {self.description}>"


def _unpickled_layer(
    source: LayerSource, digest: str | None, size: int | None, checkpoint: str | None
) -> Layer:
    return Layer(source, digest=digest, size=size, checkpoint=checkpoint)


class LayerUpload:
    """One upload of one source, from the first question to the last.

    There is no ``except`` here. An exception that passes was raised by ``_fail`` or by a check of
    the arguments; any other is the source's, ``progress``'s, the policy's or a signal handler's.
    """

    def __init__(
        self,
        calls: UploadCalls,
        source: Source,
        layer: Layer,
        session: UploadSession | None,
        checkpoint: Checkpoint | None,
        waiter: Waiter,
    ) -> None:
        self._progress = layer.progress
        self._waiter = waiter
        self._calls = calls.with_waiter(self._waiter)
        self._limits = calls.limits
        self._source = source
        self._digest = layer.digest
        self._checkpoint = checkpoint
        self._reported = 0
        self._parts: list[SentPart] = []
        self._session = session

    def upload(self, check_existing: bool) -> UploadedLayer:
        """Check, initiate or resume, send the parts, complete."""
        resumable = self._session is not None or self._checkpoint is not None
        if resumable and not self._source.replayable:
            raise ValueError("only a source that can be read again can be resumed, no stream")
        self._calls.check_size(self._source.size)
        if not self._source.read(0, 1):
            self._fail_if(self._source.ended_at(0))
            self._limits.check_layer(0)
        stored = self._aside(self._checkpoint.load) if self._checkpoint else self._session
        if self._digest is None and self._source.replayable and (check_existing or resumable):
            self._digest, size = hash_source(self._source, self._waiter.heartbeat)
            self._fail_if(self._source.ended_at(size))
        if stored is not None and not self._is_this_layers(stored):
            _log.info("not resumed: the session is of another layer or repository, or has ended")
            stored = None
        if check_existing and self._digest is not None:
            there = self._answer(self._calls.size_there(self._digest, self._source.size))
            if there is not None:
                if stored is not None:
                    self._forget()
                self._report(there)
                return UploadedLayer(self._digest, there, existed=True)
        session = self._initiate() if stored is None else self._resume(stored)
        prepare_blob = partial(_prepare_blob, self._calls.client, session)
        with Pipeline(
            self._source, prepare_blob, self._waiter, with_digest=self._digest is None
        ) as pipeline:
            return self._send_and_complete(session, pipeline)

    def _send_and_complete(self, session: UploadSession, pipeline: Pipeline) -> UploadedLayer:
        """Send the parts and complete the upload; recover from whatever comes in between."""
        while True:
            step = self._send_parts(session, pipeline) or self._complete(session, pipeline)
            if step.action in (NextAction.CHECK_LOST, NextAction.CHECK_COMPLETED):
                step = self._check_availability(session, step)
            if step.action is NextAction.FINISH:
                return self._finish(step.size or session.next_byte, step.existed)
            if step.action is NextAction.START_OVER:
                _log.info(
                    "starting over (restart %d of %d): %s",
                    session._restarts, MOST_RESTARTS, step.error,
                )  # fmt: skip
                self._initiate()
            else:
                self._fail_if(step.error)

    def _send_parts(self, session: UploadSession, pipeline: Pipeline) -> Step | None:
        """Send what ECR does not have: ``None`` once it has everything."""
        plan = self._plan(session)
        preparing = _prepare_next(plan, pipeline)
        while preparing is not None:
            ready = pipeline.result(preparing)
            if ready is None:
                return None
            if isinstance(ready, SourceChangedError):
                self._fail(ready)
            preparing = _prepare_next(plan, pipeline)
            session.layer_size = self._source.size
            step = self._send_part(session, ready)
            if step.action in _PLANNED_ANEW:
                plan = self._plan(session)
                preparing = _prepare_next(plan, pipeline)
            elif step.action is not NextAction.CONTINUE:
                return step
        return None

    def _send_part(self, session: UploadSession, ready: Prepared) -> Step:
        part = ready.part
        parts = session._count_parts(session.part_size)
        if parts >= self._limits.max_parts or part.last_byte >= self._limits.max_layer:
            self._fail(
                LayerTooLargeError(
                    f"the layer continues past byte {part.first_byte - 1}, and ECR accepts at most "
                    f"{self._limits.max_parts:,} parts and {self._limits.max_layer:,} bytes: pass "
                    "the stream's size, or split it into several layers"
                )
            )
        started = time.monotonic()
        step = self._calls.send_part(
            session, part, ready.blob, replayable=self._source.can_reread_from(0)
        )
        if step.action not in MOVES:
            return step
        last_byte = session.last_byte_received
        if step.action is NextAction.REWIND:
            self._cut_parts(last_byte)
        else:
            stored = Part(part.first_byte, min(part.last_byte, last_byte))
            self._parts.append(SentPart(stored, time.monotonic() - started, step.attempts))
        self._source.release(session.next_byte)
        self._confirm(session)
        return step

    def _complete(self, session: UploadSession, pipeline: Pipeline) -> Step:
        if self._source.background_readable:
            self._fail_if(self._aside(self._source.changed))
        else:
            self._fail_if(self._source.changed())
        self._digest = self._digest or pipeline.digest()
        step = self._calls.complete(
            session, self._digest, replayable=self._source.can_reread_from(0)
        )
        if isinstance(step.error, DigestMismatchError):
            self._forget()  # resuming would fail again
        return step

    def _check_availability(self, session: UploadSession, step: Step) -> Step:
        """Ask whether the layer is there: somebody else may have sent it, or Complete worked."""
        size = None
        if self._digest is not None:
            size = self._calls.settled_size(self._digest, self._source.size, step.settled_by)
        if size is not None and size >= session.next_byte:
            _log.info("%s is there all the same, after: %s", self._digest, step.error)
            event = Event.LAYER_AVAILABLE
        elif step.action is NextAction.CHECK_LOST:
            event = Event.LAYER_MISSING
        else:
            event = Event.NOT_COMPLETED
        action = session._after(event, replayable=self._source.can_reread_from(0))
        return replace(step, action=action, size=size)

    def _finish(self, size: int, existed: bool) -> UploadedLayer:
        self._forget()
        self._report(size)
        return UploadedLayer(self._digest or "", size, existed, tuple(self._parts))

    # What is told to others: the session, the checkpoint, ``progress`` and errors.

    def _is_this_layers(self, stored: UploadSession) -> bool:
        here = (self._calls.client.repository_name, self._calls.client.registry_id)
        return (
            (stored.repository_name, stored.registry_id) == here
            and stored.layer_digest in (None, self._digest)
            and stored.layer_size in (None, self._source.size)
            and stored.next_byte <= (self._source.size or 0)
            and not (stored.next_byte != self._source.size and stored._ended(self._limits.min_part))
        )

    def _resume(self, stored: UploadSession) -> UploadSession:
        self._session = stored
        self._identify(stored)
        stored._resume(self._next_part_size(stored.part_size, 0, 0))
        _log.info("resuming upload %s at byte %d", stored.upload_id, stored.next_byte)
        self._report(stored.next_byte)
        return stored

    def _initiate(self) -> UploadSession:
        """A new upload, in the session there is, if there is one."""
        new = self._answer(self._calls.new_session(self._source.size, self._digest))
        if self._session is None:
            self._session = new
        else:
            self._session._begin(new.upload_id, new.part_size)
            self._identify(self._session)
        if self._checkpoint is not None:
            self._session._share()  # other processes may resume from the same checkpoint
        self._parts.clear()
        self._confirm(self._session)
        return self._session

    def _identify(self, session: UploadSession) -> None:
        session.layer_digest = self._digest
        session.layer_size = self._source.size

    def _plan(self, session: UploadSession) -> Iterator[Part]:
        """The parts from where ECR stands; those of a stream of unknown size have no end."""
        parts = session._count_parts(session.part_size)
        if self._source.size is None:
            return self._plan_stream(session.part_size, session.next_byte, parts)
        if session.next_byte == self._source.size:
            return iter(())
        part_size = self._next_part_size(session.part_size, session.next_byte, parts)
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

    def _cut_parts(self, last_byte: int) -> None:
        """Keep of the sent parts what ECR still has."""
        while self._parts and self._parts[-1].part.first_byte > last_byte:
            self._parts.pop()
        if self._parts and self._parts[-1].part.last_byte > last_byte:
            cut = self._parts.pop()
            self._parts.append(replace(cut, part=Part(cut.part.first_byte, last_byte)))

    def _confirm(self, session: UploadSession) -> None:
        """Save the checkpoint, then report progress."""
        if self._checkpoint is not None:
            self._aside(partial(self._checkpoint.save, session))
        self._report(session.next_byte)

    def _report(self, confirmed: int) -> None:
        newly, self._reported = confirmed - self._reported, confirmed
        if newly and self._progress is not None:
            self._progress(newly)

    def _forget(self) -> None:
        if self._checkpoint is not None:
            self._aside(self._checkpoint.delete)

    def _aside(self, function: Callable[[], _T]) -> _T:
        """Run ``function``, which touches the disk, in a thread: this one must not block."""
        task = self._waiter.start("disk", function)
        self._waiter.wait(task)
        if isinstance(task.error, EcrPartsError):
            self._fail(task.error)
        return task.result()

    def _answer(self, outcome: _T | Failed) -> _T:
        if isinstance(outcome, Failed):
            self._fail(outcome.error)
        return outcome

    def _fail_if(self, error: EcrPartsError | None) -> None:
        if error is not None:
            self._fail(error)

    def _fail(self, error: EcrPartsError) -> NoReturn:
        """Raise an error of this library, with how far the upload came."""
        error.session = self._session
        error.parts = tuple(self._parts)
        raise error


_PLANNED_ANEW = MOVES - {NextAction.CONTINUE} | {NextAction.SEND_AGAIN}


def hash_source(source: Source, heartbeat: Callable[[], object]) -> tuple[str, int]:
    """The digest and the size (bytes) of a source that can be read again."""
    running, first_byte = RunningDigest(), 0
    while blob := source.read(first_byte, _HASHED_AT_ONCE):
        heartbeat()
        running.feed(first_byte, blob)
        first_byte += len(blob)
    return running.digest(), first_byte


def upload_layer(
    calls: UploadCalls,
    layer: Layer,
    *,
    check_existing: bool,
    session: UploadSession | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> UploadedLayer:
    """Upload one layer; errors of this library carry the session and the parts."""
    checkpoint = None if layer.checkpoint is None else Checkpoint(layer.checkpoint)
    path = layer.source if isinstance(layer.source, str | os.PathLike) else None
    heartbeat = (lambda: None) if layer.progress is None else partial(layer.progress, 0)
    with open_source(layer.source, layer.size) as source, Waiter(heartbeat, cancelled) as waiter:
        if (
            checkpoint is not None
            and path is not None
            and waiter.run("disk", partial(checkpoint.is_at, path))
        ):
            raise ValueError(f"the checkpoint is the layer's own file, {os.fspath(path)!r}")
        upload = LayerUpload(calls, source, layer, session, checkpoint, waiter)
        return upload.upload(check_existing)


def _prepare_next(plan: Iterator[Part], pipeline: Pipeline) -> Preparing | None:
    planned = next(plan, None)
    return None if planned is None else pipeline.prepare(planned)


def _prepare_blob(
    client: RepositoryClient, session: UploadSession, part: Part, blob: Blob
) -> bytes:
    return client.prepare_part(session.upload_id, part, blob)
