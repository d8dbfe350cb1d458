"""What happens ahead of the part whose answer is due: the next part is prepared, and sent.

While ECR processes a part, the next one is read, hashed and encoded. Once the request of the first
has left, that of the second is sent up to its last bytes (see ``_gate``).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import cycle
from typing import Any, TypeAlias

from typing_extensions import Self

from ecr_parts._chunker import Part
from ecr_parts._chunks import SLICE_SIZE, slices
from ecr_parts._client import PreparedPart, RepositoryClient
from ecr_parts._digest import RunningDigest
from ecr_parts._models import Blob
from ecr_parts._request import open_body
from ecr_parts._source import Source
from ecr_parts._threads import Task, Waiter
from ecr_parts.errors import SourceChangedError

_CLOSE_TIMEOUT = 0.5  # seconds

_Preparing: TypeAlias = Task[PreparedPart | SourceChangedError | None]


class Pipeline:
    """Begins to send the parts of a plan, and prepares the part after it.

    Paths and buffers are read, hashed and encoded in threads of this library. The caller's files
    and iterators are read in the caller's thread, once the part before is being sent; they are
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
        self._closed = False
        self._sending: PreparedPart | None = None
        """The part whose answer is due."""
        self._ahead: PreparedPart | None = None
        """The part after it, if it is being sent already."""
        self._files = cycle((open_body(), open_body()))
        self._threads = cycle(("call", "next call"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._closed = True
        self._abandon(self._preparing)
        self._abandon(self._hashing)  # which the preparing task may have started
        self._abandon_attempts()  # likewise
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
        self._abandon_attempts()
        self._plan = plan
        self._upload_id = upload_id
        self._prepare_next()

    def next_part(self) -> PreparedPart | SourceChangedError | None:
        """The next part of the plan, which is now being sent; ``None`` at the end.

        Starts to prepare the part after it, in the memory of the part before, which must have been
        answered. Returns the error if the source ended early. A stream's last part may be shorter
        than planned.
        """
        if self._preparing is None:
            return None
        if self._sending is not None:
            self._sending.blob = b""
        outcome = self._result_of(self._preparing)
        self._preparing = None
        if isinstance(outcome, PreparedPart):
            self._sending, self._ahead = outcome, None
            self._begin(outcome)
            self._prepare_next(outcome)
        return outcome

    def digest(self) -> str:
        """The digest of all parts that were prepared. Requires ``with_digest``."""
        self._finish_hashing(self._waiter)
        return self._digest.digest()

    def _prepare_next(self, previous: PreparedPart | None = None) -> None:
        planned, file = next(self._plan, None), next(self._files)
        if planned is None:
            self._preparing = None
        elif self._source.background_readable:
            self._preparing = self._waiter.start(
                "prepare", lambda: self._read_and_prepare(planned, file, previous)
            )
        else:
            blob = self._source.read(planned.first_byte, planned.size)
            self._preparing = self._waiter.start(
                "prepare", lambda: self._prepare(planned, blob, file, previous)
            )

    def _result_of(self, task: _Preparing) -> PreparedPart | SourceChangedError | None:
        self._waiter.wait(task)
        return task.result()

    def _read_and_prepare(
        self, planned: Part, file: io.BytesIO, previous: PreparedPart | None
    ) -> PreparedPart | SourceChangedError | None:
        end = planned.first_byte

        def read_slices() -> Iterator[Blob]:
            nonlocal end
            while end <= planned.last_byte:
                blob = self._source.read(end, min(SLICE_SIZE, planned.last_byte + 1 - end))
                if not blob:
                    return
                yield blob
                end += len(blob)

        prepared = self._encode(planned, read_slices(), file)
        if end <= planned.last_byte:
            return self._source.error_at_end(end)
        self._send_ahead(prepared, previous)
        return prepared

    def _prepare(
        self, planned: Part, blob: Blob, file: io.BytesIO, previous: PreparedPart | None
    ) -> PreparedPart | SourceChangedError | None:
        if len(blob) < planned.size:
            error = self._source.error_at_end(planned.first_byte + len(blob))
            if error is not None or not blob:
                return error
        part = Part(planned.first_byte, planned.first_byte + len(blob) - 1)
        prepared = self._encode(part, slices(blob), file)
        self._send_ahead(prepared, previous)
        return prepared

    def _encode(self, part: Part, blobs: Iterable[Blob], file: io.BytesIO) -> PreparedPart:
        if self._with_digest:
            blobs = self._hash(part.first_byte, blobs)
        return self._client.prepare_part(self._upload_id, part, blobs, file)

    def _hash(self, first_byte: int, blobs: Iterable[Blob]) -> Iterator[Blob]:
        """Yield ``blobs``, and add each to the digest, in another thread, before the next but one.

        The source's bytes are valid so long.
        """
        for blob in blobs:
            self._finish_hashing(Waiter())  # without the heartbeat: it belongs to the caller's
            self._hashing = self._waiter.start("hash", partial(self._digest.feed, first_byte, blob))
            yield blob
            first_byte += len(blob)

    def _finish_hashing(self, waiter: Waiter) -> None:
        if self._hashing is not None:
            waiter.wait(self._hashing)
            self._hashing.result()

    # Sending

    def _send_ahead(self, prepared: PreparedPart, previous: PreparedPart | None) -> None:
        """Begin to send a part while ``previous`` is being sent or processed."""
        attempt = None if previous is None else previous.attempt
        if attempt is None or not self._client.overlap.enabled or self._closed:
            return
        self._ahead = prepared
        self._client.begin_part(prepared, attempt.next_gate, next(self._threads))
        if self._closed:  # pragma: no cover  (closed between two lines: a race)
            self._abandon_attempts()

    def _begin(self, prepared: PreparedPart) -> None:
        """Begin to send the part whose turn it is, unless that has been done."""
        gate = None if prepared.attempt is None else prepared.attempt.gate
        if gate is not None and not gate.is_closed:
            return
        if gate is not None and gate.held_too_long:
            self._client.overlap.count_loss("the part before took too long to be confirmed")
        self._client.begin_part(prepared, None, next(self._threads))

    def _abandon_attempts(self) -> None:
        for prepared in (self._sending, self._ahead):
            if prepared is not None and prepared.attempt is not None:
                prepared.attempt.abandoned = True
                prepared.attempt.release()
        self._sending = self._ahead = None
