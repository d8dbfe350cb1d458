"""Tasks that run in threads of this library while the caller's thread waits.

The thread that calls ``upload`` belongs to the caller. A signal handler may raise an exception
there, in the middle of any call: Ctrl-C does, and so do the time limits of RQ and Celery. Inside
botocore, such an exception would be wrapped, mistaken for a network failure, and retried. So there
are two rules:

1. The calls to ECR run as a ``Task`` in another thread, and so does access to the disk, except for
   opening and hashing a file, checking whether it is empty or has ended, and reading the caller's
   files, pipes and iterators. A task stores what its function returns or raises, so the caller's
   thread needs no ``except``, which might catch an exception of a signal handler.
2. The caller's thread waits only in ``Lock.acquire(timeout=…)``. An exception raised inside an
   ``Event``, ``Condition``, ``Future`` or ``Queue`` can leave its inner lock acquired, or turn
   into ``RuntimeError: release unlocked lock``. ``Thread.start`` waits for an ``Event``, so each
   thread is started from a bare thread (``_thread.start_new_thread``).

A process that is forked meanwhile, by a callback of the caller, has none of these threads. So the
caller's thread checks in which process it is, after each callback and before each wait.

A task that nobody waits for any more is *abandoned*. A thread cannot be stopped from outside. So
before it sends anything, it calls ``Task.check``, which raises ``Abandoned`` for such a task. The
threads are daemons if the interpreter allows it, so they do not keep the process alive.
"""

from __future__ import annotations

import _thread
import contextvars
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar, cast

from typing_extensions import Self

_T = TypeVar("_T")
_WAKE_INTERVAL = 1.0  # seconds
_IDLE_TIMEOUT = 5.0  # seconds after which a thread without a task ends
_START_TIMEOUT = 5.0  # seconds after which a thread that has not begun its task counts as dead
_running = threading.local()


class Abandoned(BaseException):
    """Raised in the thread of a task that was abandoned or cancelled."""


class Task(Generic[_T]):
    """A function to be run in another thread, in a copy of the current context variables."""

    def __init__(self, function: Callable[[], _T], cancelled: Callable[[], bool]) -> None:
        self.error: BaseException | None = None
        """What the function raised."""
        self.abandoned = False
        """Whether nobody waits for the task any more: it has ended, or must send nothing more."""
        self.timed_out = False
        """Whether it was abandoned because it took too long, so that its result is ignored."""
        self.without_thread = False
        """Whether no thread could be started, so that the waiting thread must run the task."""
        self.ended = threading.Lock()
        """Held until the function has ended, or must be run by the waiting thread."""
        self.ended.acquire()
        self.unclaimed = threading.Lock()
        """Acquired by the thread that runs the function."""
        self.overdue_at = time.monotonic() + _START_TIMEOUT
        """When the waiting thread runs the function, unless another one has begun to."""
        self._cancelled = cancelled
        self._process = os.getpid()
        self._context = contextvars.copy_context()
        self._function = function
        self._result: _T | None = None
        self._releases: list[Callable[[], object]] = []

    @property
    def must_run_here(self) -> bool:
        """Whether the waiting thread must run the task, because no other one does."""
        overdue = not self.unclaimed.locked() and time.monotonic() >= self.overdue_at
        return self.without_thread or overdue

    def run(self) -> None:
        """Run the function in this thread, and store what it returns or raises."""
        previous = current_task()
        _running.task = self
        try:
            self.check()
            self._result = self._context.run(self._function)
        except BaseException as error:  # noqa: BLE001  (raised again by ``result``)
            self.error = _without_first_frame(error)
        finally:
            _running.task = previous
            del self._function
            self.release()
            # Frames in the error's traceback refer to this frame. If it referred to the task, the
            # cycle would keep a part in memory until the garbage collector runs.
            del self

    def result(self) -> _T:
        """Return what the function returned, or raise what it raised, and drop it."""
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None  # its traceback has this frame, which refers to the task: a cycle
        result, self._result = self._result, None
        return cast("_T", result)

    @property
    def running(self) -> bool:
        """Whether a thread runs the function, or will; ``False`` in a forked child."""
        return self.ended.locked() and self._process == os.getpid()

    def check(self) -> None:
        """Raise ``Abandoned`` if the task must send nothing more."""
        if self.abandoned or self._cancelled():
            raise Abandoned

    def more_time(self) -> float:
        """Called when the time to wait for the task is over. Returns more seconds; 0 to give up."""
        return 0.0

    def when_over(self, release: Callable[[], object]) -> None:
        """Call ``release`` when the task has ended or was abandoned, to free what it holds."""
        self._releases.append(release)

    def release(self) -> None:
        """Free what the task holds. If a signal handler interrupts this, its end frees the rest."""
        for release in tuple(self._releases):
            release()
            with suppress(ValueError):  # the task's thread may be doing the same
                self._releases.remove(release)


def _without_first_frame(error: BaseException) -> BaseException:
    """``error`` without the frame of ``Task.run``, and ``Abandoned`` without any frame."""
    trace = None if isinstance(error, Abandoned) else error.__traceback__
    return error.with_traceback(trace and trace.tb_next)


def current_task() -> Task[Any] | None:
    """The task that the current thread is running."""
    return getattr(_running, "task", None)


def check_current_task() -> None:
    """Raise ``Abandoned`` in a task for which nobody waits any more."""
    if (task := current_task()) is not None:  # pragma: no branch  (it always runs in a task)
        task.check()


class _Thread:
    """A thread that runs one task after another, and ends after some seconds without one.

    It is reused because ``malloc`` gives each new thread memory of its own: an upload of 512 MiB
    over loopback peaks at 84 MiB with this, and at 116 with one thread per task.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._process = os.getpid()
        self._task: Task[Any] | None = None
        self._closing = False
        self._busy = threading.Lock()
        """Held while the thread runs a task, and after the thread itself has ended."""
        self._given = threading.Lock()
        """Released when the thread is given a task."""
        self._busy.acquire()
        self._given.acquire()

    def start(self, task: Task[Any]) -> None:
        """Start the thread with ``task``, without waiting for either."""
        self._task = task
        try:
            _thread.start_new_thread(self._start, (task,))
        except RuntimeError as error:
            # "can't start new thread" is raised by C code, so its traceback ends in this frame.
            # If there is another frame, a signal handler raised the exception.
            if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                raise
            _leave_to_waiter(task)

    def give(self, task: Task[Any] | None) -> bool:
        """Give the thread a task, or ``None`` to end it; ``False`` if it is busy or has ended."""
        if self._process != os.getpid() or not self._busy.acquire(blocking=False):
            return False  # after a fork, the child has none of the threads
        self._task = task
        self._given.release()
        return True

    def close(self) -> None:
        """Have the thread end as soon as it is idle."""
        self._closing = True
        self.give(None)

    def _start(self, task: Task[Any]) -> None:  # pragma: no cover  (bare threads are not traced)
        try:
            try:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            except RuntimeError:  # some subinterpreters refuse daemon threads
                thread = threading.Thread(target=self._run, name=self._name, daemon=False)
            thread.start()
        except BaseException as error:
            _leave_to_waiter(task)
            if not isinstance(error, RuntimeError | MemoryError):
                raise

    def _run(self) -> None:
        while (task := self._task) is not None:
            self._task = None
            if not task.unclaimed.acquire(blocking=False):  # pragma: no cover  (a race)
                return  # this thread was so late that the waiting one runs the task
            try:
                task.run()
            except BaseException as error:  # noqa: BLE001  # pragma: no cover  (traced by its test)
                # Memory was short even for storing what the function raised.
                task.error = error
            if self._process != os.getpid():  # pragma: no cover  (a forked child)
                _end_forked_child(task.error)
            ended, abandoned = task.ended, task.abandoned
            del task  # and everything it holds
            if not abandoned:
                self._busy.release()
            ended.release()
            # If ``_busy`` cannot be acquired, the thread was given another task in the meantime.
            if abandoned or (self._closing and self._busy.acquire(blocking=False)):
                return
            while not self._given.acquire(timeout=_IDLE_TIMEOUT):
                # If ``_busy`` cannot be acquired, the thread is being given a task right now, or a
                # signal handler interrupted that. Then it ends once it is closed.
                if self._busy.acquire(blocking=False) or self._closing:  # pragma: no branch  (race)
                    return


def _leave_to_waiter(task: Task[Any]) -> None:
    """Have the waiting thread run the task, unless it has begun to, because this one was late."""
    if not task.unclaimed.locked():  # pragma: no branch  (a race)
        task.without_thread = True
        task.ended.release()


def _end_forked_child(error: BaseException | None) -> None:  # pragma: no cover  (runs in the child)
    """End a process that was forked by a thread of this library, and has no other thread."""
    if error is not None:
        traceback.print_exception(error)
    os._exit(1)


class Waiter:
    """Runs tasks in threads and waits for them. While it waits, it calls ``heartbeat``.

    ``heartbeat`` is called about once a second, and its exceptions end the wait. Once ``cancelled``
    returns ``True``, the tasks of this waiter send nothing any more. No thread is started before
    the first task. If none can be started, tasks run in the waiting thread. Once it is entered, it
    can be used in this process only.
    """

    def __init__(
        self,
        heartbeat: Callable[[], object] = lambda: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self.cancelled = cancelled
        self._heartbeat = heartbeat
        self._process: int | None = None
        self._threads: dict[str, _Thread] = {}

    def __enter__(self) -> Self:
        self._process = os.getpid()
        return self

    def __exit__(self, *_error: object) -> None:
        for thread in list(self._threads.values()):  # an abandoned task may be starting another
            thread.close()

    def heartbeat(self) -> None:
        """Call the heartbeat, which is the caller's code."""
        self._heartbeat()
        self.check_process()

    def check_process(self) -> None:
        """Raise ``RuntimeError`` in a process that was forked since this was entered."""
        if self._process not in (None, os.getpid()):  # pragma: no cover  (a forked child)
            raise RuntimeError(
                "this process was forked during an upload, by progress or another callback: the "
                "upload goes on in its parent only. End this process in the callback, or fork "
                "before the upload"
            )

    def start(self, name: str, function: Callable[[], _T]) -> Task[_T]:
        """Start ``function`` in the thread called ``name``."""
        task = Task(function, self.cancelled)
        self.give(name, task)
        return task

    def give(self, name: str, task: Task[Any]) -> None:
        """Give ``task`` to the thread called ``name``, or to a new one if that is busy."""
        self.check_process()
        if sys.is_finalizing():  # pragma: no cover  (coverage has ended by then)
            _leave_to_waiter(task)  # a new thread would block for ever
            return
        thread = self._threads.get(name)
        if thread is not None:
            if thread.give(task):
                return
            thread.close()
        self._threads[name] = thread = _Thread(f"ecr_parts {name}")
        thread.start(task)

    def run(self, name: str, function: Callable[[], _T]) -> _T:
        """Run ``function`` in another thread; return or raise what it returns or raises."""
        return self.run_to_its_end(name, function).result()

    def run_to_its_end(self, name: str, function: Callable[[], _T]) -> Task[_T]:
        """Run ``function`` in another thread.

        If that is interrupted, waits up to a second for it to end, so that it touches no file
        afterwards.
        """
        task = Task(function, self.cancelled)
        try:
            self.give_and_wait(name, task)
        finally:
            if task.running:
                task.abandoned = True  # perhaps no thread was given it
                Waiter().wait(task, _WAKE_INTERVAL)
        return task

    def give_and_wait(self, name: str, task: Task[Any], seconds: float = float("inf")) -> None:
        """Give ``task`` to a thread, and wait up to ``seconds`` for it to end.

        Afterwards the task is abandoned, even if an exception interrupts this at any point.
        """
        try:
            self.give(name, task)
            self.wait(task, seconds)
        finally:
            task.abandoned = True

    def wait(self, task: Task[Any], seconds: float = float("inf")) -> None:
        """Wait up to ``seconds`` until ``task`` has ended, and set ``timed_out`` if it has not.

        Afterwards the task is abandoned: it has ended, or nobody waits for it.
        """
        ended = False
        try:
            start = min(seconds, max(0.0, task.overdue_at - time.monotonic()))
            ended = self.acquire(task.ended, start)
            if not (ended or task.abandoned or task.unclaimed.locked()):
                ended = self._run_if_overdue(task)
            if not ended:
                ended = self.acquire(task.ended, seconds - start)
            while not ended and (seconds := task.more_time()):
                ended = self.acquire(task.ended, seconds)
            task.timed_out = not ended
            if task.without_thread:
                task.without_thread = False
                task.unclaimed.acquire(blocking=False)
                ended = False  # a signal handler may interrupt ``run``, even while it frees things
                task.run()
                ended = True
            if ended:
                task.ended.release()  # so that it can be waited for again
        finally:
            # An assignment, not a call, before which a signal handler could run.
            task.abandoned = True
            if not ended:
                task.release()

    def _run_if_overdue(self, task: Task[Any]) -> bool:
        """Run ``task`` here if its thread has died before it began it; whether it has ended."""
        if self.acquire(task.ended, max(0.0, task.overdue_at - time.monotonic())):
            return True
        if not task.unclaimed.acquire(blocking=False):
            return False
        task.run()
        return True

    def result(self, task: Task[_T]) -> _T:
        """Wait until ``task`` has ended; return or raise what it returned or raised."""
        self.wait(task)
        return task.result()

    def sleep(self, seconds: float) -> None:
        """Wait for ``seconds``."""
        never_released = threading.Lock()
        never_released.acquire()
        self.acquire(never_released, seconds)

    def acquire(self, lock: threading.Lock, seconds: float = float("inf")) -> bool:
        """Acquire ``lock``, with the heartbeat; ``False`` if it takes longer than ``seconds``."""
        self.check_process()
        end = time.monotonic() + seconds
        while not lock.acquire(timeout=min(_WAKE_INTERVAL, max(0.0, end - time.monotonic()))):
            # ``not``, so that a NaN from a retry policy ends the wait.
            if not time.monotonic() < end:
                return False
            self.heartbeat()
        return True
