"""The upload of one layer: check, start or resume, send the parts, complete."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn, TypeVar, cast

from ecr_parts._base.threads import Waiter
from ecr_parts._model.layers import Layer, SentPart, UploadedLayer, is_path
from ecr_parts._model.machine import MOVES, PLANS_ANEW, Machine, NextAction
from ecr_parts._model.parts import Part
from ecr_parts._model.session import UploadSession
from ecr_parts._sources.base import Source
from ecr_parts._sources.digest import hash_source
from ecr_parts._sources.kinds import open_source
from ecr_parts._upload.checkpoint import Checkpoint
from ecr_parts._upload.pipeline import Pipeline
from ecr_parts._upload.plan import Planner
from ecr_parts._upload.steps import Steps, raise_error, start_upload
from ecr_parts._wire.call import PartCall, outcome_of
from ecr_parts._wire.failures import CallFailed
from ecr_parts._wire.repository import Repository
from ecr_parts.errors import DigestMismatchError, EcrPartsError, LayerTooLargeError

_log = logging.getLogger("ecr_parts")
_T = TypeVar("_T")
_MAX_RESTARTS = 3  # of one call of ``upload``
NOT_RESUMABLE = (
    "checkpoint and session require a source that can be read again: pass the path of a regular "
    "file, bytes or a seekable file"
)


@dataclass(frozen=True)
class UploadOptions:
    """How one layer is uploaded, besides what ``Layer`` says."""

    check_existing: bool = True
    session: UploadSession | None = None
    cancelled: Callable[[], bool] = lambda: False
    """Once it returns ``True``, nothing more is sent."""
    must_be_regular: bool = False
    """Whether a path must be that of a regular file, because this is not the caller's thread."""


def upload_layer(
    repository: Repository, planner: Planner, layer: Layer, options: UploadOptions
) -> UploadedLayer:
    """Upload one layer.

    Errors of this library carry the session, if there is one, and the parts.
    """
    checkpoint = None if layer.checkpoint is None else Checkpoint(layer.checkpoint)
    path = layer.source if is_path(layer.source) else None
    heartbeat = (lambda: None) if layer.progress is None else partial(layer.progress, 0)
    with (
        Waiter(heartbeat, options.cancelled) as waiter,
        open_source(
            layer.source,
            layer.size,
            between_reads=waiter.heartbeat,
            must_be_regular=options.must_be_regular and path is not None,
        ) as source,
    ):
        if (
            checkpoint is not None
            and path is not None
            and waiter.run("disk", partial(checkpoint.is_at, path))
        ):
            raise ValueError(
                f"the checkpoint must not be the layer's own file, {os.fspath(path)!r}"
            )
        upload = _LayerUpload(repository.with_waiter(waiter), planner, source, layer, checkpoint)
        return upload.run(options)


class _LayerUpload:
    # There is no ``except`` in this class, which might catch an exception of the source, of
    # ``progress``, of the retry policy or of a signal handler.

    def __init__(
        self,
        repository: Repository,
        planner: Planner,
        source: Source,
        layer: Layer,
        checkpoint: Checkpoint | None,
    ) -> None:
        self._repository = repository
        self._planner = planner
        self._waiter = repository.waiter
        self._source = source
        self._digest = layer.digest
        self._progress = layer.progress
        self._session: UploadSession | None = None
        self._checkpoint = checkpoint
        self._reported = 0
        """The sum of what ``progress`` was called with."""
        self._parts: list[SentPart] = []
        self._restarts = 0

    def run(self, options: UploadOptions) -> UploadedLayer:
        """Run the upload to its end."""
        self._session = options.session
        resumable = self._session is not None or self._checkpoint is not None
        if resumable and not self._source.replayable:
            raise ValueError(NOT_RESUMABLE)
        self._check_not_empty()
        stored = self._session
        if self._checkpoint is not None:
            stored = self._run_in_thread(self._checkpoint.load)
        if (
            self._digest is None
            and self._source.replayable
            and (options.check_existing or resumable)
        ):
            self._hash_source()
        if stored is not None and not self._can_resume(stored):
            _log.info(
                "not resuming: the session is for another layer or repository, or no part can "
                "follow its last one"
            )
            stored = None
        existing = self._existing_layer() if options.check_existing else None
        if existing is not None:
            if stored is not None:
                self._delete_checkpoint()
            self._save_and_report(existing.size)
            return existing
        return self._send_and_complete(self._start() if stored is None else self._resume(stored))

    def _send_and_complete(self, session: UploadSession) -> UploadedLayer:
        machine = self._machine(session)
        steps = Steps(self._repository, machine, self._source.can_reread)
        action = NextAction.SEND
        try:
            with Pipeline(
                self._source, self._repository, with_digest=self._digest is None
            ) as pipeline:
                while action is not NextAction.FINISH:
                    action = steps.take(partial(self._act, action, session, steps, pipeline))
        finally:
            if action is not NextAction.FINISH:
                machine.mark_shared()  # ECR may have parts whose answers are not known yet
        size = session.next_byte if steps.existing_size is None else steps.existing_size
        self._delete_checkpoint()
        self._save_and_report(size)
        return UploadedLayer(self._digest or "", size, steps.existed, tuple(self._parts))

    def _act(
        self, action: NextAction, session: UploadSession, steps: Steps, pipeline: Pipeline
    ) -> NextAction:
        """Do what ``action`` says; the next action."""
        if isinstance(steps.error, DigestMismatchError):  # of CompleteLayerUpload, just now
            self._delete_checkpoint()  # resuming would fail again
        if action is NextAction.COMPLETE:
            return self._complete(steps, pipeline)
        if action in (NextAction.CHECK_LOST, NextAction.CHECK_COMPLETED):
            return steps.check_availability(action, self._digest, self._source.size)
        if action is NextAction.START_OVER and self._restarts < _MAX_RESTARTS:
            return self._start_over(steps)
        if action in PLANS_ANEW:
            return self._send_parts(session, steps, pipeline)
        # FAIL, or START_OVER too often
        return self._raise(cast("EcrPartsError", steps.error))

    # Before the first part

    def _check_not_empty(self) -> None:
        self._planner.check_layer(self._source.size)
        if not self._source.read(0, 1):
            self._raise_if(self._source.error_at_end(0))
            self._planner.check_layer(0)

    def _hash_source(self) -> None:
        self._digest, size = hash_source(self._source, self._waiter.heartbeat)
        self._raise_if(self._source.error_at_end(size))

    def _can_resume(self, stored: UploadSession) -> bool:
        machine, size = self._machine(stored), self._source.size or 0
        parts_sent = machine.count_parts(self._usual_part_size(stored))
        return (
            self._repository.target.has(stored)
            and stored.layer_digest in (None, self._digest)
            and stored.layer_size in (None, size)
            and stored.next_byte <= size
            and (stored.next_byte == size or not machine.ends_with_small_part)
            and self._planner.fits(
                parts_sent=parts_sent, next_byte=stored.next_byte, layer_size=size
            )
        )

    def _usual_part_size(self, stored: UploadSession) -> int:
        return self._planner.next_part_size(
            stored.part_size, parts_sent=0, next_byte=0, layer_size=self._source.size
        )

    def _existing_layer(self) -> UploadedLayer | None:
        if self._digest is None:
            return None
        wanted = {self._digest: self._source.size}
        size = self._answer(partial(self._repository.existing_sizes, wanted)).get(self._digest)
        return None if size is None else UploadedLayer(self._digest, size, existed=True)

    def _start(self) -> UploadSession:
        """Start an upload. A session that the caller passed is updated in place."""
        start = partial(start_upload, self._repository, self._planner)
        new = self._answer(partial(start, self._source.size, self._digest))
        self._session = self._session or new
        machine = self._machine(self._session)
        machine.start(new)
        if self._checkpoint is not None:
            machine.mark_shared()  # another process may resume from the same checkpoint
        self._parts.clear()
        self._save_and_report(self._session.next_byte, self._session)
        return self._session

    def _resume(self, stored: UploadSession) -> UploadSession:
        self._session = stored
        stored.layer_digest = self._digest
        stored.layer_size = self._source.size
        self._machine(stored).resume(self._usual_part_size(stored))
        stored.part_size = self._planner.part_size or stored.part_size  # only offsets are fixed
        _log.info("resuming upload %s at byte %d", stored.upload_id, stored.next_byte)
        self._save_and_report(stored.next_byte)
        return stored

    def _machine(self, session: UploadSession) -> Machine:
        return Machine(session, self._planner.limits.min_part)

    # Sending the parts

    def _send_parts(self, session: UploadSession, steps: Steps, pipeline: Pipeline) -> NextAction:
        """Send parts, until their plan ends or an answer is not simply to continue; the next
        action.
        """
        parts = self._planner.parts(
            session.part_size,
            parts_sent=steps.machine.count_parts(session.part_size),
            next_byte=session.next_byte,
            layer_size=self._source.size,
            is_slow=self._repository.options.uplink.is_slow,
        )
        pipeline.start(parts, session.upload_id, session.next_byte)
        answered = time.monotonic()
        while (call := pipeline.next_part()) is not None:
            call.begin()  # unless it was begun ahead
            pipeline.prepare_after(call)
            # Known once a stream has been read to its end. The last part may be small.
            session.layer_size = self._source.size
            action = steps.settle(call)
            started = max(answered, call.begun_at)
            answered = time.monotonic()
            if action in MOVES:
                self._record(call, session, action, answered - started)
            if action is not NextAction.CONTINUE:
                return action
        self._check_end(pipeline)
        session.layer_size = self._source.size
        return NextAction.COMPLETE

    def _check_end(self, pipeline: Pipeline) -> None:
        """Raise an error if the source has not ended with the plan."""
        limits, end = self._planner.limits, pipeline.read_up_to
        plan_ended = not pipeline.source_ended and self._source.size != end
        if plan_ended and self._source.read(end, 1):
            self._raise(
                LayerTooLargeError(
                    f"the layer continues past byte {end - 1}, and ECR accepts at most "
                    f"{limits.max_parts:,} parts and {limits.max_layer:,} bytes: pass the size of "
                    "a stream, or split the layer into several"
                )
            )
        self._raise_if(self._source.error_at_end(end))

    def _record(
        self, call: PartCall, session: UploadSession, action: NextAction, seconds: float
    ) -> None:
        """Record the answer to a part, which has moved the session."""
        part, last_byte = call.part, session.last_byte_received
        if action is NextAction.REWIND:
            self._discard_parts_after(last_byte)
        else:
            stored = Part(part.first_byte, min(part.last_byte, last_byte))
            self._parts.append(SentPart(stored, seconds, call.attempts))
        self._source.release(session.next_byte)
        self._save_and_report(session.next_byte, session)

    def _discard_parts_after(self, last_byte: int) -> None:
        while self._parts and self._parts[-1].part.first_byte > last_byte:
            self._parts.pop()
        if self._parts and self._parts[-1].part.last_byte > last_byte:
            cut = self._parts.pop()
            self._parts.append(replace(cut, part=Part(cut.part.first_byte, last_byte)))

    # Completing the upload, and recovering from a lost one

    def _complete(self, steps: Steps, pipeline: Pipeline) -> NextAction:
        if self._source.background_readable:
            self._raise_if(self._run_in_thread(self._source.error_if_changed))
        else:
            self._raise_if(self._source.error_if_changed())
        self._digest = self._digest or pipeline.digest()
        return steps.complete(self._digest)

    def _start_over(self, steps: Steps) -> NextAction:
        self._restarts += 1
        _log.info(
            "starting over (restart %d of %d): %s", self._restarts, _MAX_RESTARTS, steps.error
        )
        self._start()
        steps.existed, steps.error = True, None
        return NextAction.SEND

    # The checkpoint, progress and errors

    def _save_and_report(self, confirmed: int, session: UploadSession | None = None) -> None:
        """Report that ECR has ``confirmed`` bytes, once the checkpoint has the ``session``."""
        if session is not None and self._checkpoint is not None:
            self._run_in_thread(partial(self._checkpoint.save, session))
        newly_confirmed, self._reported = confirmed - self._reported, confirmed
        if newly_confirmed and self._progress is not None:
            self._progress(newly_confirmed)

    def _delete_checkpoint(self) -> None:
        if self._checkpoint is not None:
            self._run_in_thread(self._checkpoint.delete)

    def _run_in_thread(self, function: Callable[[], _T]) -> _T:
        """Run ``function``, which accesses the disk, while this thread wakes for the heartbeat."""
        task = self._waiter.run_to_its_end("disk", function)
        if isinstance(task.error, EcrPartsError):
            self._raise(task.error)
        return task.result()

    def _answer(self, call: Callable[[], _T]) -> _T:
        outcome = outcome_of(call)
        if isinstance(outcome, CallFailed):
            self._raise(outcome.error)
        return outcome

    def _raise_if(self, error: EcrPartsError | None) -> None:
        if error is not None:
            self._raise(error)

    def _raise(self, error: EcrPartsError) -> NoReturn:
        raise_error(error, self._session, self._parts)
