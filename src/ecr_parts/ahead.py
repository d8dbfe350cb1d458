"""One part ahead: read, hashed and encoded while the one before is on the wire."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from typing_extensions import Self

from ecr_parts.chunker import Part
from ecr_parts.source import Blob, RunningDigest, Source


@dataclass(frozen=True)
class Prepared:
    """A part, ready to be sent."""

    part: Part
    blob: Blob


class Ahead:
    """Prepares parts in the background, with two threads that end with it.

    One reads and encodes, one keeps the layer's digest beside it (both hashes are unavoidable, and
    release the GIL). Only what is ours is read in the background; the caller's files and iterators
    are read in the caller's thread.
    """

    def __init__(
        self, source: Source, encode: Callable[[Part, Blob], Blob], *, with_digest: bool
    ) -> None:
        self._source = source
        self._encoded = encode
        self._digest = RunningDigest() if with_digest else None
        self._encoder = ThreadPoolExecutor(1, "ecr_parts.encoder")
        self._hasher = ThreadPoolExecutor(1, "ecr_parts.hasher")
        self._hashed: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._encoder.shutdown(cancel_futures=True)
        self._hasher.shutdown(cancel_futures=True)

    def prepare(self, planned: Part) -> Future[Prepared | None]:
        """Have ``planned`` prepared: a shorter part at a stream's end, ``None`` behind it."""
        if self._source.ours:
            return self._encoder.submit(self._read_and_encode, planned)
        return self._encoder.submit(
            self._encode, planned, self._source.read(planned.first_byte, planned.size)
        )

    def digest(self) -> str:
        """The digest of all that was prepared; only ``with_digest``."""
        digest = self._digest or RunningDigest()
        return self._hasher.submit(digest.digest).result()

    def _read_and_encode(self, planned: Part) -> Prepared | None:
        if self._hashed is not None:
            self._hashed.result()  # what was read is good until the next read
        return self._encode(planned, self._source.read(planned.first_byte, planned.size))

    def _encode(self, planned: Part, blob: Blob) -> Prepared | None:
        if not blob:
            return None
        part = Part(planned.first_byte, planned.first_byte + len(blob) - 1)
        if self._digest is not None:
            self._hashed = self._hasher.submit(self._digest.feed, part.first_byte, blob)
        return Prepared(part, self._encoded(part, blob))
