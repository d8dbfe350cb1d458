"""What is piped into the command."""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Callable

_BLOCK_SIZE = 1024 * 1024  # bytes
_INTERVAL = 0.5  # seconds in which an interruption is noticed


class Pipe:
    """Standard input, or another file that cannot be read again.

    ``size``: its size in bytes, if known. The library reads no more than that of a stream, but a
    pipe that has more would be a layer that is cut off. ``waiting`` is called twice a second while
    there is nothing to read.
    """

    def __init__(
        self, descriptor: int, size: int | None, waiting: Callable[[], object] = lambda: None
    ) -> None:
        self._descriptor = descriptor
        self._size = size
        self._waiting = waiting
        self._bytes_read = 0

    def read(self, size: int, /) -> bytes:
        """The next bytes. Raises ``ValueError`` if there are none, or too many."""
        block = self._read(size)
        self._bytes_read += len(block)
        if not self._bytes_read:
            raise ValueError(
                "standard input or the pipe is empty: check the program that should write to it"
            )
        if self._bytes_read == self._size and self._read(1):
            raise ValueError(f"the pipe has more than the {self._size:,} bytes of --size")
        return block

    def drain(self, heartbeat: Callable[[], object]) -> None:
        """Read what is left, or else the program that writes it would fail.

        Only if there is such a program: a device may have no end.
        """
        if stat.S_ISFIFO(os.fstat(self._descriptor).st_mode):
            while self._read(_BLOCK_SIZE):
                heartbeat()

    def _read(self, size: int) -> bytes:
        # Not only ``os.read``: a signal just before it would be noticed when it returns.
        while os.name == "posix" and not select.select([self._descriptor], [], [], _INTERVAL)[0]:
            self._waiting()
        return os.read(self._descriptor, size)
