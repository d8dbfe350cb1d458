"""Sources that can be read only once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from typing_extensions import override

from ecr_parts._model.layers import Blob
from ecr_parts._sources.base import Source
from ecr_parts._sources.chunks import read_all
from ecr_parts.errors import SourceChangedError


class Stream(Source):
    """A source that can be read only once. Keeps the bytes it has read until ECR has them."""

    replayable = False
    background_readable = False

    def __init__(
        self,
        pull: Callable[[int], Blob],
        size: int | None,
        count_missing: Callable[[], int] = lambda: 0,
    ) -> None:
        self.size = size
        self._pull = pull
        self._count_missing = count_missing
        self._expected_size = size
        """The size that the caller passed."""
        self._pieces: deque[bytes | bytearray] = deque()
        """The bytes from ``_first_held`` up to ``_end``, in the pieces they were read in."""
        self._first_held = 0
        self._end = 0
        self._surplus = memoryview(b"")
        """The rest of a chunk that was larger than needed: a view, because there may not be
        enough memory for a copy."""
        self._ended = False
        self._missing = 0
        """The number of bytes that were missing at the end."""

    @override
    def read(self, first_byte: int, size: int) -> Blob:
        if self._expected_size is not None:
            size = min(size, self._expected_size - first_byte)
        if first_byte + size > self._end:
            self._read_more(first_byte + size - self._end)
        wanted, offset = [], self._first_held
        for piece in self._pieces:
            start, stop = max(first_byte - offset, 0), first_byte + size - offset
            if start < len(piece) and stop > 0:
                whole = start == 0 and stop >= len(piece)
                wanted.append(piece if whole else piece[start:stop])
            offset += len(piece)
        return wanted[0] if len(wanted) == 1 else b"".join(wanted)

    def _read_more(self, size: int) -> None:
        piece = read_all(self._next_chunk, size)
        if piece:
            self._pieces.append(piece)
            self._end += len(piece)
        if len(piece) < size:
            self._ended = True
            self._missing = self._count_missing()
            if self._expected_size is None:
                self.size = self._end

    def _next_chunk(self, max_size: int) -> Blob:
        if not self._surplus.nbytes:
            chunk = b"" if self._ended else self._pull(max_size)
            if len(chunk) <= max_size:
                return chunk.tobytes() if isinstance(chunk, memoryview) else chunk
            self._surplus = memoryview(chunk)
        taken = self._surplus[:max_size].tobytes()
        self._surplus = self._surplus[max_size:]
        if not self._surplus.nbytes:
            self._surplus = memoryview(b"")  # even an empty view locks a bytearray of the caller
        return taken

    @override
    def error_at_end(self, end: int) -> SourceChangedError | None:
        if self._expected_size is None and self._missing:
            return SourceChangedError(
                f"the source ended after {end:,} bytes: its connection broke {self._missing:,} "
                "bytes before the end. Request it again, and upload it again"
            )
        return super().error_at_end(end)

    @override
    def can_reread(self) -> bool:
        return self._first_held == 0

    @override
    def release(self, next_byte: int) -> None:
        while self._pieces and self._first_held < next_byte:
            piece = self._pieces.popleft()
            rest = piece[next_byte - self._first_held :]
            self._first_held += len(piece) - len(rest)
            if rest:
                self._pieces.appendleft(rest)

    @override
    def error_if_changed(self) -> SourceChangedError | None:
        # Only bytes that were read already count. Another read could block, or take bytes that are
        # meant for someone else.
        if self._expected_size is None or not self._surplus.nbytes:
            return None
        return SourceChangedError(
            f"the source has more than {self._expected_size:,} bytes, the size that was passed: "
            "pass the right size, or none"
        )

    @override
    def close(self) -> None:
        self._surplus = memoryview(b"")
        self._pieces.clear()
        super().close()
