from __future__ import annotations

import linecache
import sys
import threading
import time
from types import FrameType
from typing import Any

import pytest
from interrupts import joining_new_threads

from ecr_parts._base import threads
from ecr_parts._base.threads import Abandoned, Task, Waiter, current_task


def test_task_has_timed_out_even_if_it_has_ended_meanwhile() -> None:
    """A task may notice that it was abandoned, and end, before ``timed_out`` is set."""

    def run_until_abandoned() -> None:
        task = current_task()
        assert task is not None
        while True:
            task.check()

    with Waiter() as waiter:
        task = waiter.start("abandoned", run_until_abandoned)
        waiter.wait(task, 0.05)
        Waiter().acquire(task.ended)  # wait until it has ended
        assert task.timed_out
        assert isinstance(task.error, Abandoned)


def test_result_raises_what_the_task_raised() -> None:
    with Waiter() as waiter:
        task = waiter.start("division", lambda: 1 / 0)
        waiter.wait(task)
        assert not task.timed_out
        with pytest.raises(ZeroDivisionError):
            task.result()


def test_thread_runs_one_task_after_another() -> None:
    with Waiter() as waiter:
        threads = {waiter.run("repeated", threading.get_ident) for _ in range(20)}
        assert len(threads) == 1
        assert threading.get_ident() not in threads


class InterruptError(BaseException):
    """Raised between two lines of the library, as by a signal handler."""


def raise_before(line: str) -> Any:
    """A trace function that raises ``InterruptError`` before ``line`` of ``threads`` runs."""

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        path = frame.f_code.co_filename
        if path != threads.__file__:
            return None
        if event == "line" and linecache.getline(path, frame.f_lineno).strip() == line:
            raise InterruptError
        return trace

    return trace


def test_thread_ends_even_if_giving_it_a_task_was_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ecr_parts._base.threads._IDLE_TIMEOUT", 0.05)
    with joining_new_threads():
        trace_before = sys.gettrace()
        with Waiter() as waiter:
            waiter.run("interrupted", lambda: None)
            sys.settrace(raise_before("self._given.release()"))
            try:
                with pytest.raises(InterruptError):
                    waiter.run("interrupted", lambda: None)
            finally:
                sys.settrace(trace_before)


def test_what_an_interruption_leaves_is_freed_when_the_task_ends() -> None:
    freed: list[str] = []
    begun, going_on = threading.Event(), threading.Event()

    def run() -> None:
        begun.set()
        going_on.wait()

    with Waiter() as waiter:
        task = waiter.start("task", run)
        task.when_over(lambda: freed.append("memory"))
        assert begun.wait(10)
        trace_before = sys.gettrace()
        sys.settrace(raise_before("release()"))
        try:
            with pytest.raises(InterruptError):
                waiter.wait(task, 0)
        finally:
            sys.settrace(trace_before)
        assert freed == []
        going_on.set()
        Waiter().acquire(task.ended)  # wait until it has ended
    assert freed == ["memory"]


def test_task_of_the_waiting_thread_is_freed_even_if_that_was_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or else a part that nobody sends would hold up all others on a slow uplink."""
    freed: list[str] = []
    monkeypatch.setattr(threads.Waiter, "give", lambda _self, _name, task: leave_to_waiter(task))
    task = Task(lambda: None, lambda: False)
    task.when_over(lambda: freed.append("turn"))
    trace_before = sys.gettrace()
    sys.settrace(raise_before("del self._function"))
    try:
        with pytest.raises(InterruptError):
            Waiter().give_and_wait("call", task)
    finally:
        sys.settrace(trace_before)
    assert freed == ["turn"]


def leave_to_waiter(task: Task[Any]) -> None:
    """As if no thread could be started."""
    task.without_thread = True
    task.ended.release()


@pytest.mark.parametrize("ends", [True, False])
def test_late_thread_is_waited_for(ends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that begins the task before its time is over runs it, also if it never ends."""
    monkeypatch.setattr("ecr_parts._base.threads._START_TIMEOUT", 5)
    task = Task(threading.get_ident, lambda: False)

    def run_late() -> None:
        task.unclaimed.acquire()
        if ends:
            task.run()
            task.ended.release()

    heartbeats = iter([lambda: None, run_late])
    monkeypatch.setattr("ecr_parts._base.threads._WAKE_INTERVAL", 0.02)
    waiter = Waiter(lambda: next(heartbeats, lambda: None)())
    if not ends:
        monkeypatch.setattr(task, "overdue_at", time.monotonic() + 0.2)
    waiter.wait(task, 0.01)
    assert task.timed_out != ends
    assert task.unclaimed.locked()


@pytest.mark.parametrize("line", ["self.give_and_wait(name, task)", "self.give(name, task)"])
def test_interruption_before_a_thread_has_the_task_is_not_delayed(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for a thread that may still begin the task, and nobody runs it."""
    monkeypatch.setattr("ecr_parts._base.threads._START_TIMEOUT", 10**6)
    monkeypatch.setattr("ecr_parts._base.threads._WAKE_INTERVAL", 0.01)
    outcomes: list[str] = []

    def run_interrupted() -> None:
        sys.settrace(raise_before(line))
        try:
            with Waiter() as waiter:
                waiter.run("disk", lambda: outcomes.append("run"))
        except InterruptError:
            outcomes.append("interrupted")
        finally:
            sys.settrace(None)

    thread = threading.Thread(target=run_interrupted, daemon=True)
    thread.start()
    thread.join(10)
    assert outcomes == ["interrupted"]
