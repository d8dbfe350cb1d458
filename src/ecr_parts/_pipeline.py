"""Reads, hashes and encodes the next part while the part before it is being sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from typing_extensions import Self

from ecr_parts._chunker import Part
from ecr_parts._client import PreparedPart, RepositoryClient
from ecr_parts._digest import RunningDigest
from ecr_parts._models import Blob
from ecr_parts._sources import Source
from ecr_parts._threads import Task, Waiter
from ecr_parts.errors import SourceChangedError

_CLOSE_TIMEOUT = 0.5  # seconds

_Preparing: TypeAlias = Task[PreparedPart | SourceChangedError | None]


class Pipeline:
    """Prepares the parts of a plan, one ahead of the part that is being sent.

    Paths and buffers are read, hashed and encoded in threads of this library. The caller's files
    and iterators are read in the caller's thread, before the part that is ready is sent; they are
    hashed and encoded in the background.
    """

    def __init__(
        self,
        source: Source,
        client: RepositoryClient,
        *,
        with_digest: bool,
    ) -> None:
        self._source = source
        self._client = client
        self._waiter = client.waiter
        self._with_digest = with_digest
        self._digest = RunningDigest()
        self._plan: Iterator[Part] = iter(())
        self._upload_id = ""
        self._hashing: Task[None] | None = None
        self._preparing: _Preparing | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._abandon(self._preparing)
        self._abandon(self._hashing)  # which the preparing task may have started
        self._preparing = self._hashing = None  # the frames of their errors refer to this object

    def _abandon(self, task: Task[Any] | None) -> None:
        """Abandon a task, and wait briefly for it to end, because the source is closed next."""
        if task is not None and task.running:
            task.abandoned = True
            Waiter().wait(task, _CLOSE_TIMEOUT)

    def start(self, plan: Iterator[Part], upload_id: str) -> None:
        """Start to prepare the parts of ``plan``, instead of those of an earlier plan."""
        if self._preparing is not None:
            self._result_of(self._preparing)  # raises if this failed; the part is not needed
        self._plan = plan
        self._upload_id = upload_id
        self._prepare_next()

    def next_part(self) -> PreparedPart | SourceChangedError | None:
        """The next part of the plan; ``None`` at the end, or the error if the source ended early.

        Starts to prepare the part after it. A stream's last part may be shorter than planned.
        """
        if self._preparing is None:
            return None
        outcome = self._result_of(self._preparing)
        self._preparing = None
        if isinstance(outcome, PreparedPart):
            self._prepare_next()
        return outcome

    def digest(self) -> str:
        """The digest of all parts that were prepared. Requires ``with_digest``."""
        self._finish_hashing(self._waiter)
        return self._digest.digest()

    def _prepare_next(self) -> None:
        planned = next(self._plan, None)
        if planned is None:
            self._preparing = None
        elif self._source.background_readable:
            self._preparing = self._waiter.start("prepare", lambda: self._read_and_prepare(planned))
        else:
            blob = self._source.read(planned.first_byte, planned.size)
            self._preparing = self._waiter.start("prepare", lambda: self._prepare(planned, blob))

    def _result_of(self, task: _Preparing) -> PreparedPart | SourceChangedError | None:
        self._waiter.wait(task)
        return task.result()

    def _read_and_prepare(self, planned: Part) -> PreparedPart | SourceChangedError | None:
        # A waiter of its own, because the heartbeat belongs to the caller's thread.
        self._finish_hashing(Waiter())  # before ``read`` overwrites the bytes of the previous part
        return self._prepare(planned, self._source.read(planned.first_byte, planned.size))

    def _prepare(self, planned: Part, blob: Blob) -> PreparedPart | SourceChangedError | None:
        if len(blob) < planned.size:
            error = self._source.error_at_end(planned.first_byte + len(blob))
            if error is not None or not blob:
                return error
        part = Part(planned.first_byte, planned.first_byte + len(blob) - 1)
        if self._with_digest:
            self._finish_hashing(Waiter())
            self._hashing = self._waiter.start(
                "hash", lambda: self._digest.feed(part.first_byte, blob)
            )
        return self._client.prepare_part(self._upload_id, part, blob)

    def _finish_hashing(self, waiter: Waiter) -> None:
        if self._hashing is not None:
            waiter.wait(self._hashing)
            self._hashing.result()
