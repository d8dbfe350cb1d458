"""Simulation, in virtual time, of workers that share an uplink by the rules of ``_wire/uplink.py``.

Bytes flow through the link as a fluid: all connections that have bytes in the kernel get the same
rate, at most ``cap`` each. A request is signed when its turn begins, and refused if it arrives
``max_age`` seconds later or more. The next part of a layer is sent ahead, as the gate allows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from ecr_parts._wire.uplink import PIECE_SIZE, TooSlow, Turn, Uplink

MIB = 1024 * 1024
_HELD_BACK = 64 * 1024  # bytes
_MAX_HOLD = 4.0  # seconds
_MAX_LOSSES = 2  # then nothing is sent ahead any more


@dataclass(frozen=True)
class Link:
    """An uplink. Sizes are in bytes, rates in bytes per second."""

    rate: Callable[[float], float]
    """By the time in seconds."""
    cap: float = inf
    """The rate of one connection."""
    buffer: int = PIECE_SIZE
    """What the kernel takes of each connection at once."""
    processing: float = 0.2
    """Seconds from a request's arrival to its answer."""
    max_age: float = 300.0


class PushFailedError(Exception):
    """The push has ended with an error."""


@dataclass(eq=False)
class Request:
    """A request for one part, as far as it has been sent."""

    part_size: int
    smallest: bool
    previous: Request | None = None
    """The part before, while it is not confirmed."""
    turn: Turn | None = None
    signed_at: float | None = None
    written: float = 0.0
    """Bytes that the kernel has taken."""
    arrived: float = 0.0
    """Bytes that have left the machine."""
    held_since: float = inf
    answered_at: float = inf
    too_slow: bool = False
    refused: bool = False
    withdrawn: bool = False
    body: float = field(init=False)

    def __post_init__(self) -> None:
        self.body = self.part_size * 4 / 3

    @property
    def has_left(self) -> bool:
        return self.written >= self.body

    @property
    def over(self) -> bool:
        return self.too_slow or self.refused or self.withdrawn

    def leave(self) -> None:
        if self.turn is not None:
            self.turn.end()


@dataclass(eq=False)
class Worker:
    """Sends one layer after another."""

    left: int = 0
    """The bytes of its layer that are not confirmed."""
    current: Request | None = None
    ahead: Request | None = None


class Simulation:
    """A push of ``layers`` (bytes). ``run`` returns its seconds, or raises ``PushFailedError``."""

    def __init__(
        self,
        link: Link,
        layers: list[int],
        workers: int,
        *,
        usual: int = 10 * MIB,
        smallest: int = 5 * MIB,
        limit: float = 1e6,
    ) -> None:
        self.time = 0.0
        self.sent = 0.0
        """Bytes that have left the machine, those of requests that were given up too."""
        self.refusals = 0
        self._link, self._layers, self._limit = link, list(layers), limit
        self._usual, self._smallest = usual, smallest
        self._losses = 0
        """How many requests were sent ahead and then withdrawn."""
        self._uplink = Uplink(smallest, now=lambda: self.time)
        self._workers = [Worker() for _ in range(workers)]
        self._connections: list[Request] = []
        """Those with bytes in the kernel, also of requests that were given up."""

    def run(self) -> float:
        while True:
            while sum(self._step(worker) for worker in self._workers):
                pass
            if not self._layers and not any(worker.left for worker in self._workers):
                return self.time
            self._pass_time()
            if self.time > self._limit:
                raise AssertionError(f"no end after {self.time:.0f} s")

    def _plan(self, left: int) -> Request:
        slow = self._uplink.is_slow()
        return Request(min(left, self._smallest if slow else self._usual), slow)

    def _step(self, worker: Worker) -> bool:
        """Do what takes no time. Returns whether anything was done."""
        if not worker.left:
            if not self._layers:
                return False
            worker.left = self._layers.pop(0)
        if worker.current is None:
            worker.current = self._plan(worker.left)
            self._plan_ahead(worker)
        if self._settle(worker, worker.current):
            return True
        requests = (worker.current, worker.ahead)
        return sum(self._advance(request) for request in requests if request) > 0

    def _plan_ahead(self, worker: Worker) -> None:
        assert worker.current
        left = worker.left - worker.current.part_size
        worker.ahead = self._plan(left) if left > 0 and self._losses < _MAX_LOSSES else None
        if worker.ahead:
            worker.ahead.previous = worker.current

    def _settle(self, worker: Worker, request: Request) -> bool:
        if request.over:
            request.leave()
            if worker.ahead:
                worker.ahead.withdrawn = True
                worker.ahead.leave()
            again = Request(request.part_size, smallest=True) if request.smallest else None
            worker.current = again or self._plan(worker.left)
            self._plan_ahead(worker)
            return True
        if request.answered_at > self.time:
            return False
        assert request.turn
        assert request.signed_at is not None
        age = request.answered_at - self._link.processing - request.signed_at
        if age >= self._link.max_age:
            self.refusals += 1
            if reason := request.turn.expired(age):
                raise PushFailedError(f"{self.time:.0f} s: {reason}")
            request.refused = True
            return True
        request.turn.stored()
        request.leave()
        worker.left -= request.part_size
        ahead, worker.current, worker.ahead = worker.ahead, None, None
        if ahead and not ahead.over:
            ahead.previous = None
            worker.current = ahead
            self._plan_ahead(worker)
        return True

    def _advance(self, request: Request) -> bool:
        """Ask for the turn, and give the kernel what it takes."""
        if request.over or request.has_left:
            return False
        if request.previous and not request.previous.has_left:
            return False
        try:
            if request.turn is None:
                request.turn = Turn(self._uplink, request.part_size, smallest=request.smallest)
            if request.signed_at is None:
                if not request.turn.begins():
                    return False
                request.signed_at = self.time
                self._connections.append(request)
            return self._write(request, request.turn)
        except TooSlow:
            request.too_slow = True
            request.leave()
            return True

    def _write(self, request: Request, turn: Turn) -> bool:
        stop = request.body
        if request.previous and request.written >= stop - _HELD_BACK:
            request.held_since = min(request.held_since, self.time)
            request.withdrawn = self.time - request.held_since >= _MAX_HOLD
            if request.withdrawn:
                self._losses += 1
                request.leave()
            return request.withdrawn
        if request.previous:
            stop -= _HELD_BACK
        piece = min(PIECE_SIZE, stop - request.written)
        if request.written + piece - request.arrived > max(self._link.buffer, piece):
            return False
        turn.sending(int(request.written), int(request.body), measured=request.previous is None)
        request.written += piece
        return True

    def _pass_time(self) -> None:
        busy = [request for request in self._connections if request.arrived < request.written]
        rate = min(self._link.cap, self._link.rate(self.time) / max(1, len(busy)))
        seconds = 1.0
        for request in busy:
            until = min(request.written - request.arrived, PIECE_SIZE)
            seconds = min(seconds, max(until / rate, 1e-3))
        for worker in self._workers:
            for waiting in (worker.current, worker.ahead):
                if waiting and self.time < waiting.answered_at < inf:
                    seconds = min(seconds, waiting.answered_at - self.time)
        self.time += seconds
        for request in busy:
            before = request.arrived
            request.arrived = min(request.written, before + rate * seconds)
            self.sent += request.arrived - before
            if request.arrived >= request.body:
                request.answered_at = self.time + self._link.processing
        self._connections = [
            request
            for request in self._connections
            if request.arrived < (request.written if request.over else request.body)
        ]
