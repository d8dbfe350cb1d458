"""The digest of a layer, computed while it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from ecr_parts._model.layers import Blob
from ecr_parts._sources.base import Source

CHUNK_SIZE = 1024 * 1024  # bytes that are hashed at a time


class RunningDigest:
    """The digest of a layer whose parts arrive in order, possibly repeated."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._next_byte = 0

    def feed(self, first_byte: int, blob: Blob) -> None:
        """Add the layer's bytes from ``first_byte`` on, except those that were added before."""
        already_added = self._next_byte - first_byte
        if already_added < len(blob):
            self._hash.update(memoryview(blob)[already_added:])
            self._next_byte = first_byte + len(blob)

    def digest(self) -> str:
        """``"sha256:…"`` of all bytes added so far."""
        return f"sha256:{self._hash.hexdigest()}"


def hash_source(source: Source, heartbeat: Callable[[], object]) -> tuple[str, int]:
    """Read a source that can be read again: its digest, and its size in bytes."""
    running, first_byte = RunningDigest(), 0
    while blob := source.read(first_byte, CHUNK_SIZE):
        heartbeat()
        running.feed(first_byte, blob)
        first_byte += len(blob)
    return running.digest(), first_byte
