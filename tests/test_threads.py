from __future__ import annotations

import threading

import pytest

from ecr_parts._threads import Abandoned, Waiter, current_task


def test_task_has_timed_out_even_if_it_has_ended_meanwhile() -> None:
    """A task may notice that it was abandoned, and end, before ``timed_out`` is set."""

    def run_until_abandoned() -> None:
        task = current_task()
        assert task is not None
        while True:
            task.check()

    with Waiter() as waiter:
        task = waiter.wait_for("abandoned", run_until_abandoned, 0.05)
        Waiter().acquire(task.ended)  # wait until it has ended
        assert task.timed_out
        assert isinstance(task.error, Abandoned)


def test_result_raises_what_the_task_raised() -> None:
    with Waiter() as waiter:
        task = waiter.wait_for("division", lambda: 1 / 0)
        assert not task.timed_out
        with pytest.raises(ZeroDivisionError):
            task.result()


def test_thread_runs_one_task_after_another() -> None:
    with Waiter() as waiter:
        threads = {waiter.run("repeated", threading.get_ident) for _ in range(20)}
        assert len(threads) == 1
        assert threading.get_ident() not in threads
