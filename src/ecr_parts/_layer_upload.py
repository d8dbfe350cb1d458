"""The upload of one layer: check, start or resume, send the parts, complete."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NoReturn, TypeVar, cast

from ecr_parts._calls import Step, UploadCalls, raise_error
from ecr_parts._checkpoint import Checkpoint
from ecr_parts._chunker import Part
from ecr_parts._client import Failed
from ecr_parts._digest import hash_source
from ecr_parts._machine import DETOURS, MOVES, Event, Machine, NextAction
from ecr_parts._models import Layer, SentPart, UploadedLayer, is_path
from ecr_parts._pipeline import Pipeline
from ecr_parts._session import UploadSession
from ecr_parts._source import Source
from ecr_parts._sources import open_source
from ecr_parts._threads import Waiter
from ecr_parts.errors import (
    DigestMismatchError,
    EcrPartsError,
    LayerTooLargeError,
    ServiceError,
    SourceChangedError,
)

_log = logging.getLogger("ecr_parts")
_T = TypeVar("_T")
_MAX_RESTARTS = 3  # of one call of ``upload``
NOT_RESUMABLE = (
    "checkpoint and session require a source that can be read again: pass the path of a regular "
    "file, bytes or a seekable file"
)


def upload_layer(
    calls: UploadCalls,
    layer: Layer,
    *,
    check_existing: bool,
    session: UploadSession | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> UploadedLayer:
    """Upload one layer. Once ``cancelled`` returns ``True``, nothing more is sent.

    Errors of this library carry the session, if there is one, and the parts.
    """
    checkpoint = None if layer.checkpoint is None else Checkpoint(layer.checkpoint)
    path = layer.source if is_path(layer.source) else None
    heartbeat = (lambda: None) if layer.progress is None else partial(layer.progress, 0)
    with open_source(layer.source, layer.size) as source, Waiter(heartbeat, cancelled) as waiter:
        if (
            checkpoint is not None
            and path is not None
            and waiter.run("disk", partial(checkpoint.is_at, path))
        ):
            raise ValueError(
                f"the checkpoint must not be the layer's own file, {os.fspath(path)!r}"
            )
        upload = _LayerUpload(calls.with_waiter(waiter), source, layer, session, checkpoint)
        return upload.run(check_existing)


class _LayerUpload:
    # There is no ``except`` in this class, which might catch an exception of the source, of
    # ``progress``, of the retry policy or of a signal handler.

    def __init__(
        self,
        calls: UploadCalls,
        source: Source,
        layer: Layer,
        session: UploadSession | None,
        checkpoint: Checkpoint | None,
    ) -> None:
        self._calls = calls
        self._planner = calls.planner
        self._waiter = calls.client.waiter
        self._source = source
        self._digest = layer.digest
        self._progress = layer.progress
        self._session = session
        self._checkpoint = checkpoint
        self._reported = 0
        """The sum of what ``progress`` was called with."""
        self._parts: list[SentPart] = []
        self._restarts = 0

    def run(self, check_existing: bool) -> UploadedLayer:
        """Run the upload to its end."""
        resumable = self._session is not None or self._checkpoint is not None
        if resumable and not self._source.replayable:
            raise ValueError(NOT_RESUMABLE)
        self._check_not_empty()
        stored = self._load_session()
        if self._digest is None and self._source.replayable and (check_existing or resumable):
            self._hash_source()
        if stored is not None and not self._can_resume(stored):
            _log.info(
                "not resuming: the session is for another layer or repository, or no part can "
                "follow its last one"
            )
            stored = None
        existing = self._existing_layer() if check_existing else None
        if existing is not None:
            if stored is not None:
                self._delete_checkpoint()
            self._report_progress(existing.size)
            return existing
        session = self._start() if stored is None else self._resume(stored)
        layer = None
        try:
            with self._pipeline() as pipeline:
                while layer is None:
                    step = self._send_parts(session, pipeline)
                    if step is None:
                        step = self._complete_layer(session, pipeline)
                    layer = self._finish_or_start_over(session, step)
                return layer
        finally:
            if layer is None:
                # ECR may have parts whose answers are not known yet.
                self._machine(session).mark_shared()

    # Before the first part

    def _check_not_empty(self) -> None:
        self._planner.check_layer(self._source.size)
        if not self._source.read(0, 1):
            self._raise_if(self._source.error_at_end(0))
            self._planner.check_layer(0)

    def _load_session(self) -> UploadSession | None:
        if self._checkpoint is None:
            return self._session
        return self._run_in_thread(self._checkpoint.load)

    def _hash_source(self) -> None:
        self._digest, size = hash_source(self._source, self._waiter.heartbeat)
        self._raise_if(self._source.error_at_end(size))

    def _can_resume(self, stored: UploadSession) -> bool:
        return (
            self._calls.is_in_repository(stored)
            and stored.layer_digest in (None, self._digest)
            and stored.layer_size in (None, self._source.size)
            and stored.next_byte <= (self._source.size or 0)
            and (
                stored.next_byte == self._source.size
                or not self._machine(stored).ends_with_small_part
            )
        )

    def _existing_layer(self) -> UploadedLayer | None:
        if self._digest is None:
            return None
        sizes = self._answer(self._calls.existing_sizes({self._digest: self._source.size}))
        size = sizes.get(self._digest)
        return None if size is None else UploadedLayer(self._digest, size, existed=True)

    def _start(self) -> UploadSession:
        """Start an upload. A session that exists already is updated in place."""
        new = self._answer(self._calls.start_upload(self._source.size, self._digest))
        if self._session is None:
            self._session = new
        else:
            self._machine(self._session).start(new)
        if self._checkpoint is not None:
            # Another process may resume from the same checkpoint.
            self._machine(self._session).mark_shared()
        self._parts.clear()
        self._confirm(self._session)
        return self._session

    def _resume(self, stored: UploadSession) -> UploadSession:
        self._session = stored
        stored.layer_digest = self._digest
        stored.layer_size = self._source.size
        self._machine(stored).resume(
            self._planner.next_part_size(
                stored.part_size, parts_sent=0, next_byte=0, layer_size=self._source.size
            )
        )
        _log.info("resuming upload %s at byte %d", stored.upload_id, stored.next_byte)
        self._report_progress(stored.next_byte)
        return stored

    def _machine(self, session: UploadSession) -> Machine:
        return self._calls.machine(session)

    # Sending the parts

    def _pipeline(self) -> Pipeline:
        return Pipeline(self._source, self._calls.client, with_digest=self._digest is None)

    def _send_parts(self, session: UploadSession, pipeline: Pipeline) -> Step | None:
        """Send what ECR lacks; return the step that ended this, or ``None`` if ECR has all."""
        pipeline.start(self._plan(session), session.upload_id)
        answered = time.monotonic()
        while (prepared := pipeline.next_part()) is not None:
            if isinstance(prepared, SourceChangedError):
                self._raise(prepared)
            session.layer_size = self._source.size  # a stream's is known at its end
            started = max(answered, prepared.began)
            step = self._calls.send_part(
                session, prepared, replayable=self._source.can_reread_from(0)
            )
            answered = time.monotonic()
            if step.action in MOVES:
                self._record(prepared.part, session, step, answered - started)
            if step.action in DETOURS:
                pipeline.start(self._plan(session), session.upload_id)
            elif step.action is not NextAction.CONTINUE:
                return step
        self._check_end(session)
        return None

    def _plan(self, session: UploadSession) -> Iterator[Part]:
        """The parts that ECR does not have."""
        return self._planner.parts(
            session.part_size,
            parts_sent=self._machine(session).count_parts(session.part_size),
            next_byte=session.next_byte,
            layer_size=self._source.size,
        )

    def _check_end(self, session: UploadSession) -> None:
        """Raise an error if the source has not ended with the plan."""
        end, limits = session.next_byte, self._planner.limits
        if self._source.size != end and self._source.read(end, 1):
            self._raise(
                LayerTooLargeError(
                    f"the layer continues past byte {end - 1}, and ECR accepts at most "
                    f"{limits.max_parts:,} parts and {limits.max_layer:,} bytes: pass the size of "
                    "a stream, or split the layer into several"
                )
            )
        self._raise_if(self._source.error_at_end(end))
        session.layer_size = self._source.size

    def _record(self, part: Part, session: UploadSession, step: Step, seconds: float) -> None:
        """Record the answer to ``part``, which has moved the session."""
        last_byte = session.last_byte_received
        if step.action is NextAction.REWIND:
            self._discard_parts_after(last_byte)
        else:
            stored = Part(part.first_byte, min(part.last_byte, last_byte))
            self._parts.append(SentPart(stored, seconds, step.attempts))
        self._source.release(session.next_byte)
        self._confirm(session)

    def _discard_parts_after(self, last_byte: int) -> None:
        while self._parts and self._parts[-1].part.first_byte > last_byte:
            self._parts.pop()
        if self._parts and self._parts[-1].part.last_byte > last_byte:
            cut = self._parts.pop()
            self._parts.append(replace(cut, part=Part(cut.part.first_byte, last_byte)))

    # Completing the upload, and recovering from a lost one

    def _complete_layer(self, session: UploadSession, pipeline: Pipeline) -> Step:
        if self._source.background_readable:
            self._raise_if(self._run_in_thread(self._source.error_if_changed))
        else:
            self._raise_if(self._source.error_if_changed())
        self._digest = self._digest or pipeline.digest()
        step = self._calls.complete_upload(
            session, self._digest, replayable=self._source.can_reread_from(0)
        )
        if isinstance(step.error, DigestMismatchError):
            self._delete_checkpoint()  # resuming would fail again
        return step

    def _finish_or_start_over(self, session: UploadSession, step: Step) -> UploadedLayer | None:
        """The layer if it is complete; ``None`` after starting over. Otherwise raise the error."""
        if step.action in (NextAction.CHECK_LOST, NextAction.CHECK_COMPLETED):
            step = self._check_availability(session, step)
        if step.action is NextAction.FINISH:
            size = step.size or session.next_byte
            self._delete_checkpoint()
            self._report_progress(size)
            return UploadedLayer(self._digest or "", size, step.existed, tuple(self._parts))
        if step.action is not NextAction.START_OVER or self._restarts == _MAX_RESTARTS:
            self._raise(cast("EcrPartsError", step.error))  # every action that fails has one
        self._restarts += 1
        _log.info("starting over (restart %d of %d): %s", self._restarts, _MAX_RESTARTS, step.error)
        self._start()
        return None

    def _check_availability(self, session: UploadSession, step: Step) -> Step:
        """Ask whether the layer exists: it may have been completed by us or by someone else."""
        size = None
        if self._digest is not None:
            size = self._calls.poll_existing_size(
                self._digest, self._source.size, step.accepted_statuses
            )
        if size is not None and size >= session.next_byte:  # or else it is not this layer
            refusal = step.error.code if isinstance(step.error, ServiceError) else step.error
            _log.info("%s is complete at ECR, despite %s", self._digest, refusal)
            event = Event.LAYER_AVAILABLE
        elif step.action is NextAction.CHECK_LOST:
            event = Event.LAYER_MISSING
        else:
            event = Event.NOT_COMPLETED
        action = self._machine(session).after(event, replayable=self._source.can_reread_from(0))
        return replace(step, action=action, size=size)

    # The checkpoint, progress and errors

    def _confirm(self, session: UploadSession) -> None:
        """Save the checkpoint, then report progress."""
        if self._checkpoint is not None:
            self._run_in_thread(partial(self._checkpoint.save, session))
        self._report_progress(session.next_byte)

    def _report_progress(self, confirmed: int) -> None:
        newly_confirmed, self._reported = confirmed - self._reported, confirmed
        if newly_confirmed and self._progress is not None:
            self._progress(newly_confirmed)

    def _delete_checkpoint(self) -> None:
        if self._checkpoint is not None:
            self._run_in_thread(self._checkpoint.delete)

    def _run_in_thread(self, function: Callable[[], _T]) -> _T:
        """Run ``function``, which accesses the disk, while this thread wakes for the heartbeat."""
        task = self._waiter.start("disk", function)
        self._waiter.wait(task)
        if isinstance(task.error, EcrPartsError):
            self._raise(task.error)
        return task.result()

    def _answer(self, outcome: _T | Failed) -> _T:
        if isinstance(outcome, Failed):
            self._raise(outcome.error)
        return outcome

    def _raise_if(self, error: EcrPartsError | None) -> None:
        if error is not None:
            self._raise(error)

    def _raise(self, error: EcrPartsError) -> NoReturn:
        raise_error(error, self._session, self._parts)
