from __future__ import annotations

import threading

import pytest

from ecr_parts._threads import Abandoned, Waiter, current_task


def test_a_task_that_took_too_long_is_overdue_whatever_it_comes_to() -> None:
    """It may notice at once that it was abandoned, and end before anybody looks."""

    def notice() -> None:
        task = current_task()
        assert task is not None
        while True:
            task.check()

    with Waiter() as waiter:
        task = waiter.wait_for("notices", notice, 0.05)
        Waiter().acquire(task.ended)  # it has ended by now
        assert task.overdue
        assert isinstance(task.error, Abandoned)


def test_what_a_task_raises_is_kept_until_it_is_asked_for() -> None:
    with Waiter() as waiter:
        task = waiter.wait_for("divides", lambda: 1 / 0)
        assert not task.overdue
        with pytest.raises(ZeroDivisionError):
            task.result()


def test_a_thread_runs_one_task_after_another() -> None:
    with Waiter() as waiter:
        threads = {waiter.run("named", threading.get_ident) for _ in range(20)}
        assert len(threads) <= 2  # the second where the first had not become idle yet
        assert threading.get_ident() not in threads
