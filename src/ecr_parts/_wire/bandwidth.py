"""Limits how fast requests are sent, for all layers of an uploader together."""

from __future__ import annotations

import threading
import time

SHARE_SIZE = 64 * 1024  # bytes that a request sends before another one may


class Bandwidth:
    """A link that is reserved for one piece of a request after another."""

    def __init__(self, bytes_per_second: float) -> None:
        self._bytes_per_second = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = 0.0
        """When all reservations have passed, by ``time.monotonic``."""

    def reserve(self, size: int) -> float:
        """Reserve the link for ``size`` bytes; return the seconds to wait before sending them."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._free_at)
            self._free_at = start + size / self._bytes_per_second
        return start - now

    def check_workers(self, max_workers: int) -> None:
        """Raise ``ValueError`` if a worker would wait too long for its turn."""
        least = min_bandwidth(max_workers)
        if self._bytes_per_second < least:
            raise ValueError(
                f"max_bandwidth must be at least {least:,} bytes per second for {max_workers} "
                f"workers, not {self._bytes_per_second:,}: reduce max_workers"
            )


def min_bandwidth(max_workers: int) -> int:
    """The bytes per second below which a worker would wait too long for its turn."""
    return SHARE_SIZE * max_workers
