"""What happens ahead of the part whose answer is due: the next one is read, hashed and encoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from typing_extensions import Self

from ecr_parts._threads import Task, Waiter
from ecr_parts.chunker import Part
from ecr_parts.errors import SourceChangedError
from ecr_parts.source import Blob, RunningDigest, Source

_CLOSES_WITHIN = 0.5  # seconds


@dataclass(frozen=True)
class Prepared:
    """A part, ready to be sent."""

    part: Part
    blob: bytes


Preparing: TypeAlias = Task[Prepared | SourceChangedError | None]


class Pipeline:
    """Prepares one part at a time, in the background.

    Of a path or a buffer, everything happens in threads of this library. The caller's files and
    iterators are read in the caller's thread, and only encoded and hashed elsewhere.
    """

    def __init__(
        self,
        source: Source,
        prepare_blob: Callable[[Part, Blob], bytes],
        waiter: Waiter,
        *,
        with_digest: bool,
    ) -> None:
        self._source = source
        self._prepare_blob = prepare_blob
        self._waiter = waiter
        self._digest = RunningDigest() if with_digest else None
        self._hashing: Task[None] | None = None
        self._preparing: Preparing | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        # What runs reads from the source, which is closed next. A disk that hangs is not waited
        # for.
        waiter = Waiter()
        for task in (self._preparing, self._hashing):
            if task is not None and task.running:
                task.abandoned = True
                waiter.wait(task, _CLOSES_WITHIN)

    def prepare(self, planned: Part) -> Preparing:
        """Start to prepare ``planned``: shorter at a stream's end, ``None`` past it."""
        if self._preparing is not None:
            self.result(self._preparing)  # it may be a part that is not needed any more
        if self._source.background_readable:
            self._preparing = self._waiter.start("prepare", lambda: self._read_and_encode(planned))
        else:
            blob = self._source.read(planned.first_byte, planned.size)
            self._preparing = self._waiter.start("prepare", lambda: self._encode(planned, blob))
        return self._preparing

    def result(self, task: Preparing) -> Prepared | SourceChangedError | None:
        """What ``prepare`` came to."""
        self._waiter.wait(task)
        return task.result()

    def digest(self) -> str:
        """The digest of all that was prepared; only ``with_digest``."""
        self._finish_hashing(self._waiter)
        return (self._digest or RunningDigest()).digest()

    def _read_and_encode(self, planned: Part) -> Prepared | SourceChangedError | None:
        self._finish_hashing(Waiter())  # each read invalidates the previous one
        return self._encode(planned, self._source.read(planned.first_byte, planned.size))

    def _encode(self, planned: Part, blob: Blob) -> Prepared | SourceChangedError | None:
        if len(blob) < planned.size:
            changed = self._source.ended_at(planned.first_byte + len(blob))
            if changed is not None or not blob:
                return changed
        part = Part(planned.first_byte, planned.first_byte + len(blob) - 1)
        digest = self._digest
        if digest is not None:
            self._finish_hashing(Waiter())
            self._hashing = self._waiter.start("hash", lambda: digest.feed(part.first_byte, blob))
        return Prepared(part, self._prepare_blob(part, blob))

    def _finish_hashing(self, waiter: Waiter) -> None:
        if self._hashing is not None:
            waiter.wait(self._hashing)
            self._hashing.result()
