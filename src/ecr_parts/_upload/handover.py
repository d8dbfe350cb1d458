"""A layer that is written, on its way from the thread that writes to the one that uploads it.

The thread that uploads pulls: it runs ``upload_layer`` as for any other source, and waits for the
next piece when that reads its source. So what the caller's code raises never passes through an
upload.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

from ecr_parts._base.threads import Abandoned, Waiter
from ecr_parts._base.validation import check_digest, check_int, short_repr
from ecr_parts._model.layers import Blob, Layer, LayerSource, UploadedLayer
from ecr_parts._sources.compression import (
    CORES,
    MAGIC_SIZE,
    PIECE_SIZE,
    REGISTRY_COMPRESSIONS,
    compression_of,
    gzip_in_threads,
)
from ecr_parts._upload.layer import UploadOptions, upload_layer
from ecr_parts._upload.plan import Planner
from ecr_parts._wire.repository import Repository
from ecr_parts.errors import DigestMismatchError

_THREADS = min(CORES, 4)  # that compress; each holds a piece and its result
Written: TypeAlias = tuple[UploadedLayer, str | None]
"""A layer that is complete, and the digest of what was written, if that was not compressed."""


class Handover:
    """Passes pieces to the thread that uploads them, one at a time, and its progress back.

    There is one slot, and a lock for each direction, which the receiver of a message acquires and
    its sender releases. The thread that uploads ends once the layer has been abandoned, or once
    ``writer``, the object through which it is written, is gone.
    """

    def __init__(self, writer: object) -> None:
        self.confirmed: deque[int] = deque()
        """Numbers of bytes that ECR has confirmed, and that were not reported yet."""
        self.abandoned: bool = False
        """Whether the layer is never completed, and nothing more is sent."""
        self.ended: bool = False
        """Whether the upload has ended, so that nobody takes the next piece."""
        self._writer = weakref.ref(writer)
        self._piece: Blob = b""
        self._is_last = False
        self._free = threading.Lock()
        """Released when the slot is free, and when the upload ends."""
        self._filled = threading.Lock()
        """Released when the slot has a piece."""
        self._filled.acquire()

    # For the thread that writes. If a signal handler raises an exception here, the layer is
    # abandoned.

    def put(
        self, piece: Blob, acquire: Callable[[threading.Lock], object], *, is_last: bool
    ) -> None:
        """Wait until the slot is free, and put ``piece`` there, unless the upload has ended.

        ``acquire`` acquires a lock, as ``Waiter.acquire`` does.
        """
        acquire(self._free)
        if not self.ended:
            self._piece, self._is_last = piece, is_last
            self._filled.release()

    def abandon(self) -> None:
        """End the upload, without a piece. May be called in any thread, and more than once."""
        self.abandoned = True
        if self._free.acquire(blocking=False) and not self.ended:
            self._filled.release()  # no other thread fills the slot now

    # For the thread that uploads

    def is_over(self) -> bool:
        """Whether nothing may be sent any more."""
        return self.abandoned or self._writer() is None

    def check(self) -> None:
        """Raise ``Abandoned`` if nothing may be sent any more."""
        if self.is_over():
            raise Abandoned

    def confirm(self, newly_confirmed: int) -> None:
        """Keep a number to be reported to the caller. This is the ``progress`` of the upload."""
        self.check()
        if newly_confirmed:
            self.confirmed.append(newly_confirmed)

    def pieces(self) -> Iterator[Blob]:
        """Yield the pieces."""
        waiter, is_last = Waiter(self.check), False
        while not is_last:
            waiter.acquire(self._filled)
            self.check()
            piece, is_last, self._piece = self._piece, self._is_last, b""
            self._free.release()
            if len(piece):
                yield piece

    def end(self) -> None:
        """Note that the upload has ended, and wake the thread that writes."""
        self.ended = True
        if self._free.locked():
            self._free.release()


@dataclass(frozen=True)
class WrittenLayer:
    """What is known of a layer before it is written, and its upload."""

    repository: Repository
    planner: Planner
    compress: bool
    digest: str | None
    size: int | None
    """Bytes."""

    def __post_init__(self) -> None:
        if not isinstance(self.compress, bool):
            raise TypeError(f"compress must be True or False, not {short_repr(self.compress)}")
        if self.digest is not None:
            check_digest("digest", self.digest)
        if self.size is not None:
            check_int("size", self.size, minimum=0)
        if self.compress and not (self.digest is None and self.size is None):
            raise ValueError(
                "compress cannot be combined with digest or size, which are those of the layer as "
                "it is sent: omit them, or omit compress and write compressed data"
            )
        self.planner.check_layer(self.size)

    @property
    def part_size(self) -> int:
        """How much is held back, in case the layer is not larger: by default half of the largest
        part, which is what ECR suggests."""
        return self.planner.part_size or self.planner.limits.max_part // 2

    @property
    def piece_size(self) -> int:
        """The size of each piece but the last, in bytes."""
        return PIECE_SIZE if self.compress else min(PIECE_SIZE, max(self.part_size, MAGIC_SIZE))

    def upload(self, handover: Handover) -> Written:
        """Upload the layer. Runs in a thread of this library."""
        content = _Content(hashed=self.compress or self.digest is not None)
        pieces = content.passed_on(handover.pieces())
        if self.compress:
            pieces = _compressed(pieces)
        try:
            layer = self._upload(pieces, content, handover)
        finally:
            pieces.close()
            handover.end()
        if compression_of(content.start) in REGISTRY_COMPRESSIONS:
            return layer, None
        return layer, content.digest() if self.compress else layer.digest

    def _upload(
        self, pieces: Iterator[Blob], content: _Content, handover: Handover
    ) -> UploadedLayer:
        options = UploadOptions(cancelled=handover.is_over)

        def upload(source: LayerSource, digest: str | None) -> UploadedLayer:
            layer = Layer(source, digest=digest, size=self.size, progress=handover.confirm)
            return upload_layer(self.repository, self.planner, layer, options)

        first_part, size = deque[Blob](), 0
        while size <= self.part_size:
            if not (piece := next(pieces, b"")):
                blob = b"".join(first_part)
                first_part.clear()
                digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
                self._check_digest(digest)
                return upload(blob, digest)
            first_part.append(piece)
            size += len(piece)
        stream = chain(_popped(first_part), pieces)
        layer = upload(stream, self.digest)
        for _ in stream:
            pass  # ECR has the layer already
        if self.digest is not None:
            self._check_digest(content.digest())
        return layer

    def _check_digest(self, digest: str) -> None:
        if self.digest not in (None, digest):
            raise DigestMismatchError(
                f"what was written has the digest {digest}, not {self.digest}, which was passed: "
                "pass the right digest, or none"
            )


class _Content:
    """What is known of what was written."""

    def __init__(self, *, hashed: bool) -> None:
        self.start = b""
        """The first bytes, which tell whether it is compressed."""
        self._hashed = hashed
        self._hash = hashlib.sha256()

    def passed_on(self, pieces: Iterable[Blob]) -> Generator[Blob]:
        """Yield ``pieces``, and note their content."""
        for piece in pieces:
            self.start = self.start or bytes(piece[:MAGIC_SIZE])
            if self._hashed:
                self._hash.update(piece)
            yield piece

    def digest(self) -> str:
        """The digest of all pieces so far, if it was ``hashed``."""
        return f"sha256:{self._hash.hexdigest()}"


def _compressed(pieces: Iterable[Blob]) -> Generator[Blob]:
    with Waiter() as waiter:
        yield from gzip_in_threads(pieces, waiter, _THREADS, portable=True)


def _popped(held: deque[Blob]) -> Iterator[Blob]:
    """Yield what is ``held``, which drops it."""
    while held:
        yield held.popleft()
