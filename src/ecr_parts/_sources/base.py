"""What every source of a layer can do."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod

from typing_extensions import Self

from ecr_parts._model.layers import Blob
from ecr_parts.errors import SourceChangedError


class Source(ABC):
    """A layer's bytes. Offsets count from the layer's first byte; sizes are in bytes."""

    name = "the source"
    """For error messages."""
    opened_file: io.FileIO | None = None
    """The file that ``open_source`` opened, if any."""
    size: int | None
    """The layer's size; ``None`` for a stream of unknown size until it has ended."""
    replayable: bool
    """Whether the whole layer can be read more than once."""
    background_readable: bool
    """Whether a thread of this library may read it: a buffer, or the path of a regular file."""

    @abstractmethod
    def read(self, first_byte: int, size: int) -> Blob:
        """Return ``size`` bytes from ``first_byte`` on; fewer only at the source's end.

        The bytes are valid until the next call but one. Raises what the source raises, and
        ``TypeError`` if it does not return bytes.
        """

    def error_at_end(self, end: int) -> SourceChangedError | None:
        """The error to raise if the source ended after ``end`` bytes; ``None`` if it may."""
        if self.size is None or end >= self.size:
            return None
        return SourceChangedError(
            f"{self.name} ended after {end:,} of {self.size:,} bytes: upload it again once it is "
            "complete, or pass the right size"
        )

    def can_reread(self) -> bool:
        """Whether the layer can still be read from its first byte."""
        return True

    def release(self, next_byte: int) -> None:  # noqa: B027  (only streams hold bytes)
        """Drop the bytes before ``next_byte``, if they are held."""

    @abstractmethod
    def error_if_changed(self) -> SourceChangedError | None:
        """The error to raise if the source is no longer what was read."""

    def close(self) -> None:
        """Release memory, and close the file if ``open_source`` opened it."""
        if self.opened_file is not None:
            self.opened_file.close()

    # Not a ``contextmanager`` generator, which would turn a StopIteration into a RuntimeError.
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
