"""Work in threads of this library, for a caller's thread that only waits.

The thread that calls ``upload`` belongs to the caller. A signal handler may raise there, in the
middle of any call: Ctrl-C does, and so do the time limits of RQ and Celery. Inside botocore such
an exception is wrapped, taken for a failure of the network, and retried. So two rules hold:

1. Whatever may block or fail runs as a ``Task``, in another thread. What it returns or
   raises is kept there as a value, so the caller's thread needs no ``except`` that might catch
   somebody else's exception.
2. The caller's thread waits in ``Lock.acquire(timeout=…)`` and in nothing else. An exception
   raised inside an ``Event``, ``Condition``, ``Future`` or ``Queue`` can leave its inner lock
   taken, or come out as ``RuntimeError: release unlocked lock``. ``Thread.start`` waits for an
   ``Event``, which is why a bare thread starts each thread here.

A task that nobody waits for any more is *abandoned*. A thread cannot be stopped from outside, but
it asks ``Task.check`` before it begins anything, and that raises ``Abandoned``. Abandoned threads
are daemons, so they do not keep the process from ending.
"""

from __future__ import annotations

import _thread
import contextvars
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

from typing_extensions import Self

_T = TypeVar("_T")
_WAKES_EVERY = 1.0  # seconds
_ENDS_AFTER = 5.0  # seconds without a task
_running = threading.local()


class Abandoned(BaseException):
    """Raised in a task's own thread: nobody waits for its result any more."""


class Task(Generic[_T]):
    """A function that runs in another thread, in a copy of the starter's context."""

    def __init__(self, function: Callable[[], _T], cancelled: Callable[[], bool]) -> None:
        self.error: BaseException | None = None
        """What the function raised."""
        self.abandoned = False
        self.overdue = False
        """Whether it was abandoned because it took too long: then what it comes to is ignored."""
        self.without_thread = False
        """Whether no thread could be started: then the thread that waits for the task runs it."""
        self.ended = threading.Lock()
        """Taken until the function has ended."""
        self.ended.acquire()
        self._cancelled = cancelled
        self._process = os.getpid()
        self._context = contextvars.copy_context()
        self._function = function
        self._result: _T | None = None
        self._releases: list[Callable[[], object]] = []

    def run(self) -> None:
        """Run the function in this thread, and keep what it returns or raises."""
        before = current_task()
        _running.task = self
        try:
            self.check()
            self._result = self._context.run(self._function)
        except BaseException as error:  # noqa: BLE001  (raised again by ``result``)
            # Without this frame, whose variables lead back here: a cycle lives until Python
            # looks for cycles, and this one would hold the part that was sent.
            self.error = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
        finally:
            _running.task = before
            del self._function
            self.release()

    def result(self) -> _T:
        """What the function returned, once: it is not kept. Raises what it raised."""
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None  # or it would lead back to itself, through this frame
        result, self._result = self._result, None
        return cast("_T", result)

    @property
    def running(self) -> bool:
        """Whether the function has not ended yet."""
        return self.ended.locked() and self._process == os.getpid()

    @property
    def stopped(self) -> bool:
        """Whether nobody waits for the result any more."""
        return self.abandoned or self._cancelled()

    def check(self) -> None:
        """Raise ``Abandoned`` if nobody waits any more: called before anything is begun."""
        if self.stopped:
            raise Abandoned

    def when_over(self, release: Callable[[], object]) -> None:
        """Call ``release`` once the task has ended or was abandoned, to free what it holds."""
        self._releases.append(release)

    def release(self) -> None:
        """Free what the task holds."""
        releases, self._releases = self._releases, []
        for release in releases:
            release()


def current_task() -> Task[Any] | None:
    """The task that this thread runs."""
    return getattr(_running, "task", None)


class _Thread:
    """A thread that runs one task after another. It ends when it has had none for some seconds.

    Kept from task to task, since each new thread would allocate a part's memory anew: 512 MiB
    over loopback peak at 98 MiB with this, and at 205 with a thread for each task.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._process = os.getpid()
        self._task: Task[Any] | None = None
        self._closing = False
        self._busy = threading.Lock()
        """Taken while it runs a task, and once it has ended."""
        self._given = threading.Lock()
        """Released when a task was given."""
        self._busy.acquire()
        self._given.acquire()

    def start(self, task: Task[Any]) -> None:
        """Start with ``task``. Returns without waiting for either."""
        self._task = task
        try:
            _thread.start_new_thread(self._start, (task,))
        except RuntimeError as error:
            # "can't start new thread" is raised by C code, so its traceback ends here. One that
            # goes on was raised by a signal handler.
            if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                raise
            _refuse(task)

    def give(self, task: Task[Any] | None) -> bool:
        """Have it run ``task`` too, or end: ``False`` if it is busy, or has ended."""
        if self._process != os.getpid() or not self._busy.acquire(blocking=False):
            return False  # a fork has no threads
        self._task = task
        self._given.release()
        return True

    def close(self) -> None:
        """Have it end, once it is not busy."""
        self._closing = True
        self.give(None)

    def _start(self, task: Task[Any]) -> None:  # pragma: no cover  (bare threads are not traced)
        try:
            try:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            except RuntimeError:  # some subinterpreters refuse daemons
                thread = threading.Thread(target=self._run, name=self._name, daemon=False)
            thread.start()
        except BaseException as error:
            _refuse(task)  # whatever it was: somebody waits for the task
            if not isinstance(error, RuntimeError):
                raise

    def _run(self) -> None:
        while (task := self._task) is not None:
            self._task = None
            task.run()
            ended, abandoned = task.ended, task.abandoned
            del task  # with all that it holds
            if not abandoned:
                self._busy.release()
            ended.release()
            # Who takes ``_busy`` decides: a task may have been given since it was released.
            if abandoned or (self._closing and self._busy.acquire(blocking=False)):
                return
            if not self._wait():
                return

    def _wait(self) -> bool:
        """Wait for a task: ``False`` if none was given, and none will be."""
        while not self._given.acquire(timeout=_ENDS_AFTER):
            # Otherwise a task is just being given.
            if self._busy.acquire(blocking=False):  # pragma: no branch  (microseconds)
                return False
        return True


def _refuse(task: Task[Any]) -> None:
    task.without_thread = True
    task.ended.release()


class Waiter:
    """How the thread of one upload waits: it wakes at least once a second for ``heartbeat``.

    What ``heartbeat`` raises ends the wait. Tasks of a waiter whose ``cancelled`` answers ``True``
    begin nothing any more. Nothing is started before the first task.
    """

    def __init__(
        self,
        heartbeat: Callable[[], object] = lambda: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self.heartbeat = heartbeat
        self.cancelled = cancelled
        self._threads: dict[str, _Thread] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for thread in self._threads.values():
            thread.close()

    def start(self, name: str, function: Callable[[], _T]) -> Task[_T]:
        """Run ``function`` in the thread called ``name``, or in a new one if that is busy."""
        task = Task(function, self.cancelled)
        self._give(name, task)
        return task

    def _give(self, name: str, task: Task[Any]) -> None:
        if sys.is_finalizing():  # pragma: no cover  (coverage has ended by then)
            _refuse(task)  # a thread that waits for the interpreter now waits for ever
            return
        thread = self._threads.get(name)
        if thread is not None:
            if thread.give(task):
                return
            thread.close()
        self._threads[name] = thread = _Thread(f"ecr_parts {name}")
        thread.start(task)

    def run(self, name: str, function: Callable[[], _T]) -> _T:
        """Run ``function`` in another thread, and wait for what it returns or raises."""
        return self.wait_for(name, function).result()

    def wait_for(
        self, name: str, function: Callable[[], _T], seconds: float = float("inf")
    ) -> Task[_T]:
        """Run ``function`` in another thread, and wait until it has ended or that took too long.

        The task is abandoned then, as it is when this is interrupted at any point.
        """
        task = Task(function, self.cancelled)
        try:
            self._give(name, task)
            task.overdue = not self.wait(task, seconds)
        finally:
            task.abandoned = True
        return task

    def wait(self, task: Task[Any], seconds: float = float("inf")) -> bool:
        """Wait until ``task`` has ended: ``False`` if it took longer. Abandons it otherwise."""
        ended = False
        try:
            ended = self.acquire(task.ended, seconds)
            if task.without_thread:
                task.without_thread = False
                task.run()
            if ended:
                task.ended.release()  # for the next wait
        finally:
            # An assignment, as no signal handler can run between it and the line above.
            task.abandoned = True
            if not ended:
                task.release()
        return ended

    def sleep(self, seconds: float) -> None:
        """Wait."""
        never = threading.Lock()
        never.acquire()
        self.acquire(never, seconds)

    def acquire(self, lock: threading.Lock, seconds: float = float("inf")) -> bool:
        """Acquire ``lock``: ``False`` if it took longer."""
        end = time.monotonic() + seconds
        while not lock.acquire(timeout=min(_WAKES_EVERY, max(0.0, end - time.monotonic()))):
            if not time.monotonic() < end:  # nor is it before a NaN
                return False
            self.heartbeat()
        return True
