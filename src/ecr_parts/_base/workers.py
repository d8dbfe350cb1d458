"""Workers: threads that make the calls of a queue while the caller's thread waits."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count

from ecr_parts._base.frames import ClearOwnFrames
from ecr_parts._base.threads import Abandoned, Task, Waiter

_STOP_TIMEOUT = 1.5  # seconds: workers wake once a second
_POLL_INTERVAL = 1.0  # seconds between checks for workers without a thread


class Stop:
    """Whether all workers should stop. A task that outlives them keeps only this in memory."""

    requested = False

    def is_requested(self) -> bool:
        return self.requested

    def check(self) -> None:
        """Raise ``Abandoned`` once a stop is requested."""
        if self.requested:
            raise Abandoned


class Workers:
    """At most ``max_workers`` calls at a time. Calls report their errors themselves."""

    # Each operation on the deque, the sets and the dict is atomic.

    def __init__(self, max_workers: int, waiter: Waiter, stop: Stop) -> None:
        self._waiter = waiter
        self._stop = stop
        self._slots = max_workers
        """The number of workers that may run: one less while the caller's thread makes a call."""
        self._queue: deque[Callable[[], object]] = deque()
        self._working: set[int] = set()
        """The numbers of the workers that run."""
        self._starting: set[int] = set()
        """Those of ``_working`` that have not taken anything from the queue yet."""
        self._tasks: dict[int, Task[None]] = {}
        """By number: the task of the latest worker with that number."""
        self._errors: list[BaseException] = []
        """What ended workers. Those that calls raised are reported already."""
        self._changed = threading.Lock()
        """Released when a worker takes something from the queue, or ends."""
        self._changed.acquire()

    def submit(self, call: Callable[[], object], *, max_waiting: int) -> None:
        """Queue ``call``, and wait until at most ``max_waiting`` calls are queued."""
        self._queue.append(call)
        self._wait_until(lambda: len(self._queue) <= max_waiting)

    def call_here(self, call: Callable[[], object]) -> None:
        """Make ``call`` in this thread, in the place of a worker."""
        self._slots -= 1
        self._wait_until(lambda: len(self._working) <= self._slots)
        call()
        self._slots += 1

    def finish(self) -> None:
        """Wait until all calls that were queued have been made."""
        self._wait_until(lambda: not self._queue and not self._working)

    def stop(self) -> None:
        """Request a stop, and wait for the workers. One that does not end is abandoned."""
        self._stop.requested = True
        waiter = Waiter()
        end = time.monotonic() + _STOP_TIMEOUT
        for worker in self._tasks.values():
            if worker.running:
                waiter.wait(worker, max(0.0, end - time.monotonic()))
            worker.error = None  # it was reported, and its frames refer to the caller's objects
        self._tasks = {}
        self._errors = []

    def _check(self) -> None:
        """Raise ``Abandoned`` once a stop is requested, or what else a worker has died of.

        For example, memory was short when it had taken a call from the queue, or even before.
        """
        errors = self._errors + [task.error for task in self._tasks.values() if task.error]
        self._stop.check()  # afterwards, because a call that fails requests it first
        if errors:
            raise errors[0]

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        while True:
            self._check()
            self._start_workers()
            if condition():
                self._check()  # again: the last call may have failed meanwhile
                return
            self._waiter.acquire(self._changed, _POLL_INTERVAL)

    def _start_workers(self) -> None:
        while len(self._queue) > len(self._starting) and len(self._working) < self._slots:
            number = next(n for n in count() if n not in self._working)
            self._working.add(number)
            self._starting.add(number)
            self._tasks[number] = self._waiter.start(f"layer {number}", partial(self._work, number))
        for task in list(self._tasks.values()):
            if task.must_run_here:
                self._waiter.wait(task)  # runs it in this thread

    def _work(self, number: int) -> None:
        """Make calls of the queue, until it is empty or there are too many workers."""
        try:
            while len(self._working) <= self._slots and not self._stop.requested:
                try:
                    call = self._queue.popleft()
                except IndexError:
                    return
                self._starting.discard(number)
                self._signal_change()
                with ClearOwnFrames():
                    call()
        except BaseException as error:
            self._errors.append(error)
            raise
        finally:
            self._starting.discard(number)
            self._working.discard(number)
            self._signal_change()

    def _signal_change(self) -> None:
        with suppress(RuntimeError):  # it is released already
            self._changed.release()
