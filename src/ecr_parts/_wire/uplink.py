"""Slow uplinks: fewer parts at a time, and smaller ones, so that no signature expires on the way.

AWS refuses a request that arrives more than five minutes after it was signed. On a slow uplink,
several large parts that share it all take longer than that, however often they are sent. So:

1. All parts are sent at once, until one would take too long at the rate of its last ``_WINDOW``
   seconds, and gives up; or until one is refused because its signature has expired.
2. Then the uplink is *slow*: one part is sent at a time, first come, first served. Its turn lasts
   from before it is signed until it is answered, because some MiB of it may still be in the kernel
   when its last byte has been sent. Parts have the smallest size that their layer allows; those
   that were cut larger are cut again. A part of that size never gives up while it is the only one.
3. A part that is stored quickly doubles the number of parts at a time. Once none waits for its
   turn, the uplink is no longer slow.

``tests/uplink_simulation.py`` simulates this for many links. Simpler rules fail there: with smaller
parts alone, or fewer parts alone, some uploads never end, and one part at a time takes only a small
share of a link whose connections are limited one by one.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable

PIECE_SIZE = 256 * 1024  # bytes of a body that are sent at once
_log = logging.getLogger("ecr_parts")
# Seconds. Reference: "Signature expired: … is now earlier than … (… - 5 min.)", in public reports:
# https://github.com/docker/for-win/issues/203
_MAX_AGE = 300.0
_TOO_LONG = 0.8  # of the maximum age
_QUICK = 0.1  # likewise
_BUFFERED = 10.0  # seconds at the start of a body, whose first MiB the kernel takes at once
_WINDOW = 30.0  # seconds
_SIGNIFICANT = 1024 * 1024  # bytes; how long a smaller part takes says little about the uplink
_MAX_REFUSALS = 3  # in succession, of the smallest parts, sent alone


class TooSlow(BaseException):  # no Exception, which botocore would catch
    """Raised in the thread of an attempt: the part must be sent later, or cut into smaller ones."""


class Turn:
    """A part's turn to be sent."""

    def __init__(self, uplink: Uplink, size: int, *, smallest: bool) -> None:
        self.size = size
        """The bytes of the part."""
        self.smallest = smallest
        """Whether the part cannot be cut into smaller ones."""
        self.alone = False
        """Whether no other part could be sent at the same time."""
        self.generation = 0
        """``Uplink.generation`` when the turn began."""
        self.began_at = 0.0
        self._uplink = uplink
        self._has_left = False
        self._process, self._thread = os.getpid(), threading.get_ident()
        self._waiting = threading.Lock()
        """Held until the turn begins."""
        self._waiting.acquire()
        self._sent = self._total = 0
        """Bytes of the body."""
        self._first_at = self._last_at = 0.0
        self._window: tuple[float, int, int] | None = None
        """When the window began, and the bytes of this body and of all that were sent by then."""
        self._sent_before = 0
        """The bytes of all bodies that were sent before the turn."""

    def begin(self, generation: int, now: float, *, alone: bool) -> None:
        """Called by the uplink when the turn begins."""
        self.generation, self.began_at, self.alone = generation, now, alone
        self._sent_before = self._uplink.sent
        self._waiting.release()

    def wait(self, seconds: float) -> bool:
        """Wait up to ``seconds`` for the turn. Returns whether it has begun."""
        if not self._waiting.acquire(timeout=seconds):
            self._uplink.begin_turns()  # another turn may have ended in the caller's thread
            return False
        self._waiting.release()  # for the next call
        return True

    def leave(self) -> None:
        """End the turn, or stop waiting for it. May be called more than once, in any thread.

        In the caller's thread, where a signal handler may raise, this is one assignment and
        acquires no lock: those that wait find out within half a second.
        """
        self._has_left = True
        if threading.get_ident() == self._thread:
            self._uplink.begin_turns()

    @property
    def is_over(self) -> bool:
        """Whether it was left, or is that of the process from which this one was forked."""
        return self._has_left or self._process != os.getpid()

    def sending(self, sent: int, total: int, *, measured: bool) -> None:
        """To be called before each piece of the body, and after the last one.

        ``sent`` of ``total`` bytes have been sent.

        Raises ``TooSlow`` if the body takes too long. It is not ``measured`` while the request
        before may share the link.
        """
        uplink, now = self._uplink, self._uplink.now()
        uplink.sent += max(0, sent - self._sent)  # approximate: other threads may add, too
        self._sent, self._total, self._last_at = sent, total, now
        if sent == 0:  # again, if botocore repeats the request
            self._first_at, self._window = now, None
        if not measured or now - self._first_at < _BUFFERED:
            return
        if self._window is None:
            self._window = (now, sent, uplink.sent)
        since, before, all_before = self._window
        seconds = now - since
        if seconds >= _WINDOW:
            self._window = (now, sent, uplink.sent)
            of_all = (uplink.sent - all_before) / seconds
            if uplink.is_too_slow(self, (sent - before) / seconds, total, of_all):
                raise TooSlow

    def failed(self) -> bool:
        """To be called when the connection has failed. Returns whether it was too slow.

        The client may have given up because it could not send the next piece for a long time.
        """
        seconds = self._uplink.now() - self._last_at
        if self._sent == self._total or seconds < _WINDOW:
            return False
        rate = PIECE_SIZE / seconds  # at most
        return self._uplink.is_too_slow(self, rate, self._total, rate)

    def stored(self) -> None:
        """To be called when ECR has stored the part."""
        self._uplink.stored(self)

    def expired(self, age: float) -> str | None:
        """To be called when ECR refused the part ``age`` seconds after it was signed.

        Returns why it must not be sent again, if that is so.
        """
        return self._uplink.expired(self, age, (self._uplink.sent - self._sent_before) / age)


class Uplink:
    """Whose turn it is to send a part, for all layers of an uploader together.

    ``smallest_part`` (bytes) is for messages; ``now`` returns seconds. Nothing here blocks.
    """

    def __init__(self, smallest_part: int, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self._smallest_part = smallest_part
        self.sent = 0
        """The bytes of all bodies that were sent so far."""
        self._max_age = _MAX_AGE
        """Seconds; less once a younger request was refused."""
        self._at_a_time = float("inf")
        self._generation = 0
        """How many times ``_at_a_time`` has changed."""
        self._refusals = 0
        self._sending: set[Turn] = set()
        self._waiting: deque[Turn] = deque()
        self._locks: dict[int, threading.Lock] = {}

    @property
    def _lock(self) -> threading.Lock:
        """That of this process: another thread may have held its parent's during the fork."""
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def is_slow(self) -> bool:
        """Whether parts must be as small as possible."""
        return self._at_a_time != float("inf")

    def ask(self, size: int, *, smallest: bool) -> Turn:
        """Ask for the turn to send a part of ``size`` bytes.

        Raises ``TooSlow`` if it must be cut into smaller ones first.
        """
        turn = Turn(self, size, smallest=smallest)
        with self._lock:
            if self.is_slow() and not smallest:
                raise TooSlow
            self._waiting.append(turn)
        self.begin_turns()
        return turn

    def begin_turns(self) -> None:
        """Let those send whose turn it is."""
        with self._lock:
            self._begin_turns()

    def _begin_turns(self) -> None:
        self._forget_those_that_left()
        while self._waiting and len(self._sending) < self._at_a_time:
            turn = self._waiting.popleft()
            self._sending.add(turn)
            turn.begin(self._generation, self.now(), alone=self._at_a_time == 1)

    def _forget_those_that_left(self) -> None:
        self._sending = {turn for turn in self._sending if not turn.is_over}
        self._waiting = deque(turn for turn in self._waiting if not turn.is_over)

    def is_too_slow(self, turn: Turn, rate: float, total: int, of_all: float) -> bool:
        """Whether ``total`` bytes take too long at ``rate`` bytes per second.

        ``of_all`` is the rate of all bodies together, for messages.
        """
        with self._lock:
            self._forget_those_that_left()
            in_time = total <= rate * _TOO_LONG * self._max_age
            if in_time or (turn.smallest and len(self._sending) == 1):
                return False
            news = self._slow_down(of_all)
        if news:
            _log.info(news)
        return True

    def expired(self, turn: Turn, age: float, of_all: float) -> str | None:
        """Note a refusal; see ``Turn.expired``. ``of_all`` is that of ``is_too_slow``."""
        with self._lock:
            self._max_age = min(self._max_age, age)
            news = self._slow_down(of_all)
            self._refusals += turn.smallest and turn.alone
            refusals = self._refusals
        if news:
            _log.info(news)
        if refusals < _MAX_REFUSALS:
            return None
        return (
            f"{refusals} parts in succession took too long, although each was sent alone; the last "
            f"one {age:.0f} s at {_in_bits(of_all)}"
        )

    def stored(self, turn: Turn) -> None:
        """Note that a part was stored."""
        news = ""
        with self._lock:
            seconds = self.now() - turn.began_at
            self._refusals = 0
            self._sending.discard(turn)
            quick = turn.size >= _SIGNIFICANT and seconds < _QUICK * self._max_age
            if self.is_slow() and quick and turn.generation == self._generation:
                self._change(self._at_a_time * 2)
                self._begin_turns()
                rate = _in_bits(turn.size * 4 / 3 / max(seconds, 0.001))
                news = (
                    f"the uplink is faster ({rate} a part): {self._at_a_time:.0f} parts at a time"
                )
                if not self._waiting:
                    self._change(float("inf"))
                    news = f"the uplink is not slow any more ({rate} a part)"
            self._begin_turns()
        if news:
            _log.info(news)

    def _slow_down(self, rate: float) -> str:
        """Let one part be sent at a time. Returns what to log."""
        if self._at_a_time == 1:
            return ""
        self._change(1)
        size = f"{self._smallest_part / 1024**2:g} MiB"
        return f"the uplink is slow ({_in_bits(rate)}): one part of {size} at a time"

    def _change(self, at_a_time: float) -> None:
        self._at_a_time = at_a_time
        self._generation += 1


def _in_bits(rate: float) -> str:
    return f"{rate * 8 / 1e6:.1f} Mbit/s"
