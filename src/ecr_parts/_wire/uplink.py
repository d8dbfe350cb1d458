"""Slow uplinks: fewer parts at a time, and smaller ones, so that no signature expires on the way.

AWS refuses a request that arrives more than five minutes after it was signed. On a slow uplink,
several large parts that share it all take longer than that, however often they are sent. So:

1. Each layer sends its parts without waiting for other layers, until a part would take too long at
   the rate of its last ``_WINDOW`` seconds, and gives up; or until one is refused because its
   signature has expired.
2. Then the uplink is *slow*: one part is sent at a time, first come, first served. Its turn lasts
   from before it is signed until it is answered, because some MiB of it may still be in the kernel
   when its last byte has been sent. Parts have the smallest size that their layer allows; those
   that were cut larger are cut again. A part of that size never gives up while it is the only one.
3. A part that is stored quickly doubles the number of parts at a time. Once none waits for its
   turn, the uplink is no longer slow.
4. The upload fails after three refusals in succession of the smallest parts, each sent alone.

``tests/uplink_simulation.py`` simulates this for many links. Simpler rules fail there: with smaller
parts alone, or fewer parts alone, some uploads never end, and one part at a time takes only a small
share of a link whose connections are limited one by one.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

PIECE_SIZE = 256 * 1024  # bytes of a body that are sent at once
_log = logging.getLogger("ecr_parts")
# Seconds. Reference: "Signature expired: … is now earlier than … (… - 5 min.)", in public reports:
# https://github.com/docker/for-win/issues/203
_MAX_AGE = 300.0
_TOO_LONG = 0.8  # of the maximum age
_QUICK = 0.1  # likewise
_NOT_MEASURED = 10.0  # seconds at the start of a body, whose first MiB the kernel takes at once
_WINDOW = 30.0  # seconds
_SIGNIFICANT = 1024 * 1024  # bytes; how long a smaller part takes says little about the uplink
_MAX_REFUSALS = 3  # in succession, of the smallest parts, sent alone


class TooSlow(BaseException):  # no Exception, which botocore would catch
    """Raised in the thread of an attempt: the part must be sent later, or cut into smaller ones."""


class Turn:
    """A part's turn to be sent. All but ``end`` is called in the thread of its attempt."""

    def __init__(self, uplink: Uplink, size: int, *, smallest: bool) -> None:
        self.size = size
        """The bytes of the part."""
        self.smallest = smallest
        """Whether the part cannot be cut into smaller ones."""
        self.has_begun = False
        self.alone = False
        """Whether no other part could be sent at the same time."""
        self.generation = 0
        """``Uplink.generation`` when the turn began."""
        self.waits_for = 0
        """How many other turns had to end first, when it was last asked for."""
        self.began_at = 0.0
        self._uplink = uplink
        self._has_ended = False
        self._process = os.getpid()
        self._sent = self._total = 0
        """Bytes of the body."""
        self._first_at = self._last_at = 0.0
        self._window: tuple[float, int, int] | None = None
        """When the window began, and the bytes of this body and of all that were sent by then."""
        self._sent_before = 0
        """The bytes of all bodies that were sent before the turn."""

    def begins(self) -> bool:
        """Ask for the turn, again and again until it begins. Returns whether it begins now.

        Raises ``TooSlow`` if the part must be cut into smaller ones first.
        """
        uplink = self._uplink
        uplink.turns.setdefault(self)
        if self._has_ended:  # perhaps before it was asked for
            self.end()
        generation, at_a_time = uplink.generation, uplink.at_a_time
        if at_a_time is not None:
            if not self.smallest:
                raise TooSlow
            self.waits_for = uplink.place_of(self) + 1 - at_a_time
            if self.waits_for > 0:
                return False
        self.has_begun, self.began_at = True, uplink.now()
        self.alone, self.generation = at_a_time == 1, generation
        self._sent_before = uplink.sent
        return True

    def end(self) -> None:
        """End the turn, or stop asking for it. May be called more than once, in any thread.

        In the caller's thread, a signal handler may raise at any point, so no lock is acquired.
        """
        self._has_ended = True
        self._uplink.turns.pop(self, None)

    @property
    def is_over(self) -> bool:
        """Whether it has ended, or is that of the process from which this one was forked."""
        return self._has_ended or self._process != os.getpid()

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
        if not measured or now - self._first_at < _NOT_MEASURED:
            return
        if self._window is None:
            self._window = (now, sent, uplink.sent)
        since, before, all_before = self._window
        seconds = now - since
        if seconds >= _WINDOW:
            self._window = (now, sent, uplink.sent)
            of_all = (uplink.sent - all_before) / seconds
            if uplink.gives_up(self, (sent - before) / seconds, total, of_all):
                raise TooSlow

    def failed(self) -> bool:
        """To be called when the connection has failed. Returns whether it was too slow.

        The client may have given up because it could not send the next piece for a long time.
        """
        seconds = self._uplink.now() - self._last_at
        if self._sent == self._total or seconds < _WINDOW:
            return False
        rate = PIECE_SIZE / seconds  # at most
        return self._uplink.gives_up(self, rate, self._total, rate)

    def stored(self) -> None:
        """To be called when ECR has stored the part."""
        self._uplink.refusals = 0
        if self._uplink.is_slow() and self.size >= _SIGNIFICANT:
            self._uplink.speed_up(self)

    def expired(self, age: float) -> str | None:
        """To be called when ECR refused the part ``age`` seconds after it was signed.

        Returns ``None`` if it is to be sent again, or else why not.
        """
        return self._uplink.expired(self, age, (self._uplink.sent - self._sent_before) / age)


class Uplink:
    """Whose turn it is to send a part, for all layers of an uploader together.

    ``smallest_part`` (bytes) is for messages; ``now`` returns seconds. Nothing here waits.
    """

    def __init__(self, smallest_part: int, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self._smallest_part = smallest_part
        self.sent = 0
        """The bytes of all bodies that were sent so far."""
        self.at_a_time: int | None = None
        """How many parts may be sent at a time; ``None`` while the uplink is not slow."""
        self.generation = 0
        """How many times ``at_a_time`` has changed."""
        self.refusals = 0
        """How many of the smallest parts were refused in succession, each sent alone."""
        self.turns: dict[Turn, None] = {}
        """Those that were asked for and not ended, in order."""
        self._max_age = _MAX_AGE
        """Seconds; less once a younger request was refused."""
        self._locks: dict[int, threading.Lock] = {}

    @property
    def _lock(self) -> threading.Lock:
        """That of this process: another thread may have held its parent's during the fork."""
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def is_slow(self) -> bool:
        """Whether parts must be as small as possible."""
        return self.at_a_time is not None

    def live_turns(self) -> list[Turn]:
        """The turns that are not over, in the order in which they were asked for."""
        turns = list(self.turns)
        return [turn for turn in turns if not turn.is_over]

    def place_of(self, turn: Turn) -> int:
        """How many turns come before ``turn``: all that were asked for before it, and of those that
        were asked for later, the ones that have begun: while more parts were sent at a time.
        """
        place, earlier = 0, True
        for other in self.live_turns():
            earlier = earlier and other is not turn
            place += earlier or other.has_begun
        return place

    def gives_up(self, turn: Turn, rate: float, total: int, of_all: float) -> bool:
        """Whether the part of ``turn`` gives up, because ``total`` bytes take too long at ``rate``.

        Then the uplink is slow. Rates are in bytes per second; ``of_all`` is that of all bodies
        together, for messages.
        """
        with self._lock:
            in_time = total <= rate * _TOO_LONG * self._max_age
            others = any(other.has_begun for other in self.live_turns() if other is not turn)
            if in_time or (turn.smallest and not others):
                return False
            news = self._slow_down(of_all)
        if news:
            _log.info(news)
        return True

    def expired(self, turn: Turn, age: float, of_all: float) -> str | None:
        """See ``Turn.expired``. ``of_all`` is the rate of all bodies together, for messages."""
        with self._lock:
            self._max_age = min(self._max_age, age)
            news = self._slow_down(of_all)
            self.refusals += turn.smallest and turn.alone
            refusals = self.refusals
        if news:
            _log.info(news)
        if refusals < _MAX_REFUSALS:
            return None
        return (
            f"{refusals} parts in succession took too long, although each was sent alone; the last "
            f"one {age:.0f} s at {_in_bits(of_all)}"
        )

    def speed_up(self, turn: Turn) -> None:
        """Let more parts be sent at a time if the one of ``turn``, which is stored, was quick."""
        with self._lock:
            seconds = self.now() - turn.began_at
            quick = seconds < _QUICK * self._max_age
            if not quick or self.at_a_time is None or turn.generation != self.generation:
                return
            others = sum(other is not turn for other in self.live_turns())
            at_a_time = self.at_a_time * 2
            self._change(at_a_time if others > at_a_time else None)
        rate = _in_bits(turn.size * 4 / 3 / max(seconds, 0.001))
        if others > at_a_time:
            _log.info("the uplink is faster (%s a part): %d parts at a time", rate, at_a_time)
        else:
            _log.info("the uplink is not slow any more (%s a part)", rate)

    def _slow_down(self, rate: float) -> str:
        """Let one part be sent at a time. Returns what to log."""
        if self.at_a_time == 1:
            return ""
        self._change(1)
        size = f"{self._smallest_part / 1024**2:g} MiB"
        return f"the uplink is slow ({_in_bits(rate)}): one part of {size} at a time"

    def _change(self, at_a_time: int | None) -> None:
        self.at_a_time = at_a_time
        self.generation += 1  # last, so that a turn that begins meanwhile counts as begun before


def _in_bits(rate: float) -> str:
    return f"{rate * 8 / 1e6:.1f} Mbit/s"
