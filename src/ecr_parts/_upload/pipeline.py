"""What happens ahead of the part whose answer is due: the next part is prepared, and sent.

While ECR processes a part, the next one is read, hashed and encoded. Once the request of the first
has left, that of the second is sent up to its last bytes (see ``_wire/gate.py``).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import cycle
from typing import Any, cast

from typing_extensions import Self

from ecr_parts._base.threads import Task, Waiter
from ecr_parts._model.layers import Blob
from ecr_parts._model.parts import Part
from ecr_parts._sources.base import Source
from ecr_parts._sources.chunks import SLICE_SIZE, slices
from ecr_parts._sources.digest import RunningDigest
from ecr_parts._upload.plan import PlannedPart
from ecr_parts._wire.call import PartCall
from ecr_parts._wire.repository import Repository
from ecr_parts._wire.request import new_buffer

_CLOSE_TIMEOUT = 0.5  # seconds


class Pipeline:
    """Prepares the parts of a plan, one ahead of the part that is being sent, and begins them.

    Paths and buffers are read, hashed and encoded in threads of this library. The caller's files
    and iterators are read in the caller's thread, once the part before is being sent; they are
    hashed and encoded in the background.
    """

    def __init__(self, source: Source, repository: Repository, *, with_digest: bool) -> None:
        self.read_up_to = 0
        """The end, in bytes, of what was read last."""
        self.source_ended = False
        """Whether that was less than was asked for."""
        self._source = source
        self._repository = repository
        self._waiter = repository.waiter
        self._quiet_waiter = Waiter()
        """Without the heartbeat, which only the caller's thread may call."""
        self._with_digest = with_digest
        self._digest = RunningDigest()
        self._plan: Iterator[PlannedPart] = iter(())
        self._upload_id = ""
        self._hashing: Task[None] | None = None
        self._preparing: Task[PartCall | None] | None = None
        self._closed = False
        self._calls: list[PartCall] = []
        """The part whose answer is due, and the one after it if it is being sent already."""
        self._lanes = cycle(("call 1", "call 2"))
        """The names of the threads that send the parts, alternately."""
        self._buffers: dict[str, io.BytesIO] = {}
        """By lane: the memory for its parts."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._closed = True
        self._abandon(self._preparing)
        self._abandon(self._hashing)  # which the preparing task may have started
        self._withdraw()  # likewise
        self._preparing = self._hashing = None  # the frames of their errors refer to this object

    def _abandon(self, task: Task[Any] | None) -> None:
        """Abandon a task, and wait briefly for it to end, because the source is closed next."""
        if task is not None and task.running:
            task.abandoned = True
            self._quiet_waiter.wait(task, _CLOSE_TIMEOUT)

    def _withdraw(self) -> None:
        for call in self._calls:
            call.withdraw()
        self._calls = []

    def start(self, plan: Iterator[PlannedPart], upload_id: str, next_byte: int) -> None:
        """Start to prepare the parts of ``plan``, instead of those of an earlier plan."""
        if self._preparing is not None:
            self._waiter.result(self._preparing)  # raises if it failed; the part is not needed
            self._preparing = None
        self._withdraw()
        self._plan = plan
        self._upload_id = upload_id
        self.read_up_to, self.source_ended = next_byte, False
        self.prepare_after(None)

    def next_part(self) -> PartCall | None:
        """The next part, which may have been begun ahead; ``None`` if the plan or source ended."""
        if self._preparing is None:
            return None
        call = self._waiter.result(self._preparing)
        self._preparing = None
        if call is not None:
            self._calls = [call]
        return call

    def prepare_after(self, call: PartCall | None) -> None:
        """Start to prepare the part after ``call``, which was begun, and to begin it ahead.

        ``None`` for the first part of the plan. The new part uses the buffer of the part before
        ``call``, which must have been answered.
        """
        planned = next(self._plan, None)
        if planned is None:
            return
        part, smallest = planned
        if self._source.background_readable:
            pieces = self._read_lazily(part)  # in the thread that encodes them
        else:
            blob = self._source.read(part.first_byte, part.size)
            self.read_up_to = part.first_byte + len(blob)
            self.source_ended = len(blob) < part.size
            if not blob or (self.source_ended and self._source.error_at_end(self.read_up_to)):
                return
            part, pieces = Part(part.first_byte, self.read_up_to - 1), slices(blob)
        planned = PlannedPart(part, smallest)
        lane = next(self._lanes)
        if lane not in self._buffers:
            self._buffers[lane] = new_buffer(part.size)
        prepare = partial(self._prepare, planned, pieces, call, lane)
        self._preparing = self._waiter.start("prepare", prepare)

    def digest(self) -> str:
        """The digest of all parts that were prepared. Requires ``with_digest``."""
        self._waiter.result(cast("Task[None]", self._hashing))  # a layer has at least one part
        return self._digest.digest()

    def _read_lazily(self, part: Part) -> Iterator[Blob]:
        """Read a part in slices; fewer bytes only at the source's end."""
        self.read_up_to = part.first_byte
        while self.read_up_to <= part.last_byte:
            size = min(SLICE_SIZE, part.last_byte + 1 - self.read_up_to)
            blob = self._source.read(self.read_up_to, size)
            if not blob:
                return
            yield blob
            self.read_up_to += len(blob)

    def _prepare(
        self,
        planned: PlannedPart,
        pieces: Iterable[Blob],
        previous: PartCall | None,
        lane: str,
    ) -> PartCall | None:
        """Read, hash and encode a part, and begin it ahead; ``None`` if the source ended early."""
        part = planned.part
        if self._with_digest:
            pieces = self._hash(part.first_byte, pieces)
        call = self._repository.prepare_part(
            self._upload_id, part, pieces, self._buffers[lane], lane, smallest=planned.smallest
        )
        if self.read_up_to <= part.last_byte:
            self.source_ended = True
            return None
        if previous is not None and self._repository.options.overlap.enabled and not self._closed:
            self._calls.append(call)
            call.begin(previous)
            if self._closed:  # pragma: no cover  (closed between two lines: a race)
                call.withdraw()
        return call

    def _hash(self, first_byte: int, blobs: Iterable[Blob]) -> Iterator[Blob]:
        """Yield ``blobs``, and add each to the digest in another thread.

        Each is added before the next but one is read, because the source may then use its memory
        again.
        """
        for blob in blobs:
            if self._hashing is not None:
                self._quiet_waiter.result(self._hashing)
            self._hashing = self._waiter.start("hash", partial(self._digest.feed, first_byte, blob))
            yield blob
            first_byte += len(blob)
