"""Interrupt the caller's thread from a signal handler, as Ctrl-C and job queues do.

Imported by programs in other processes, too: it must not import pytest.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

_TICK = 0.01  # seconds


class DeadlineError(Exception):
    """What a signal handler raises when the time is up."""


@contextlib.contextmanager
def interrupt_when(condition: Callable[[], bool], error: BaseException) -> Iterator[None]:
    """Raise ``error`` from a signal handler in the main thread, soon after ``condition()`` holds.

    The condition is checked by a signal handler at each tick of a timer. The error is raised at the
    third tick at which it holds: the main thread has gone on to wait by then.
    """
    ticks = 0

    def handle(*_signal: object) -> None:
        nonlocal ticks
        ticks += condition()
        if ticks == 3:
            raise error

    handler_before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, _TICK, _TICK)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler_before)


@contextlib.contextmanager
def joining_new_threads(seconds: float = 10) -> Iterator[None]:
    """Wait at the end until the library's threads that were started in the block have ended.

    Threads of earlier single calls, which end after 5 seconds without a task, are not waited for.
    """
    threads_before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - threads_before:
        if thread.name.startswith("ecr_parts "):
            while thread.ident is None:  # it is just being started
                os.sched_yield()
            thread.join(seconds)
            assert not thread.is_alive(), thread
