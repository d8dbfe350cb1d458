"""The gate between the requests of two consecutive parts.

While ECR processes a part, the connection is idle. So the request of the next part is sent
meanwhile, on a second connection, all but its last bytes. ECR cannot process a request that is not
complete, so it still gets the parts strictly in order. Between the first attempts of two
consecutive parts there is a gate, created with the first of them:

1. The second attempt waits until the first request has left, so that they do not share the uplink.
2. It sends its own request up to the last bytes, and waits until the gate is decided.
3. The gate is opened once ECR has confirmed the first part, and the last bytes are sent. Or it is
   closed, and the request is withdrawn: its connection is closed without the last bytes. Then the
   part is sent again, after the first one.

Several threads may decide: that of the first attempt, which knows ECR's answer; that of the second,
which does not wait for long; and the caller's, which may abandon either. The first one decides for
all. An attempt that ends closes the gate after it, if it was not opened.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress

_log = logging.getLogger("ecr_parts")
# Seconds for which a request is held back. A server may close a connection that is silent: S3 does
# so after 6 to 20 seconds, by public reports; for ECR, it is unknown.
_MAX_HOLD = 4.0
_MAX_LOSSES = 2


class Gate:
    """Holds back the end of one request until the part before it is confirmed."""

    def __init__(self) -> None:
        self.last_byte = -1
        """The last byte of the part whose request has this gate; -1 if none was begun."""
        self.was_asked = False
        """Whether ``wait`` was called."""
        self.held_back = False
        """Whether the request had to pause at the gate."""
        self.held_too_long = False
        """Whether the gate was closed because the request had waited for too long."""
        self._decision: dict[str, bool] = {}
        """Empty until the gate is opened or closed. ``setdefault`` is a compare-and-set."""
        self._undecided = threading.Lock()
        """Held until the gate is opened or closed."""
        self._link_busy = threading.Lock()
        """Held until the request before has left."""
        self._undecided.acquire()
        self._link_busy.acquire()

    @property
    def is_decided(self) -> bool:
        """Whether the gate was opened or closed."""
        return bool(self._decision)

    @property
    def is_closed(self) -> bool:
        """Whether the request was withdrawn, or will be."""
        return not self._decision.get("is_open", True)

    def previous_has_left(self) -> None:
        """To be called when the request before has left."""
        _release(self._link_busy)

    def open(self) -> None:
        """Let the request be completed, unless the gate was closed before."""
        self._decision.setdefault("is_open", True)
        _release(self._link_busy, self._undecided)

    def close(self) -> bool:
        """Withdraw the request, unless the gate was opened before: then return ``False``."""
        is_open = self._decision.setdefault("is_open", False)
        _release(self._link_busy, self._undecided)
        return not is_open

    def wait_for_link(self) -> None:
        """Wait until the request before has left, or the gate is closed."""
        self._link_busy.acquire()
        _release(self._link_busy)

    def wait(self) -> None:
        """Wait until the gate is opened or closed. It is closed if that takes too long."""
        self.was_asked = True
        if not self._decision:
            self.held_back = True
            if self._undecided.acquire(timeout=_MAX_HOLD):
                _release(self._undecided)
            else:
                self.held_too_long = self.close()


def _release(*locks: threading.Lock) -> None:
    for lock in locks:
        with suppress(RuntimeError):  # it was released before
            lock.release()


class Overlap:
    """Whether requests are sent ahead: until two of them had to be sent again.

    That is so if one fails before its turn, is held back for too long, or is held back when its
    connection breaks.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self._losses: list[str] = []

    def count_loss(self, reason: str) -> None:
        """Count a request that was sent ahead and must be sent again."""
        self._losses.append(reason)
        if len(self._losses) >= _MAX_LOSSES:
            self.end("; ".join(dict.fromkeys(self._losses)))

    def end(self, reason: str) -> None:
        """Send no more requests ahead."""
        if self.enabled:
            self.enabled = False
            _log.info("sending no more parts ahead: %s", reason)
