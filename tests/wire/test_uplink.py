"""Whose turn it is to send a part, as long as the uplink is slow. Time is virtual."""

from __future__ import annotations

import logging
import math
import os
import random
import threading
from collections.abc import Callable, Iterator

import pytest
from pytest_mock import MockerFixture
from uplink_simulation import MIB, Link, PushFailedError, Simulation

from ecr_parts._wire.uplink import TooSlow, Turn, Uplink

BODY = 14 * MIB


class Clock:
    def __init__(self) -> None:
        self.time = 1_000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def uplink(clock: Clock) -> Uplink:
    return Uplink(5 * MIB, clock)


def ask(uplink: Uplink, size: int, *, smallest: bool) -> Turn:
    turn = Turn(uplink, size, smallest=smallest)
    turn.begins()
    return turn


def is_sending(turn: Turn) -> bool:
    return turn.has_begun or turn.begins()


def make_slow(uplink: Uplink) -> None:
    turn = ask(uplink, 10 * MIB, smallest=False)
    assert turn.expired(400) is None
    turn.end()


def send(turn: Turn, clock: Clock, rate: float, total: int = BODY) -> None:
    """Send pieces of a body until it has left or gives up."""
    sent, piece = 0, 256 * 1024
    while sent < total:
        turn.sending(sent, total, measured=True)
        sent += piece
        clock.time += piece / rate
    turn.sending(total, total, measured=True)


# The rules


def test_all_are_sent_at_once(uplink: Uplink) -> None:
    turns = [ask(uplink, 10 * MIB, smallest=False) for _ in range(20)]
    assert all(map(is_sending, turns))
    assert not uplink.is_slow()


@pytest.mark.parametrize(("seconds", "gives_up"), [(236, False), (244, True)])
def test_body_gives_up_if_it_takes_too_long(
    uplink: Uplink, clock: Clock, *, seconds: int, gives_up: bool
) -> None:
    turn = ask(uplink, 10 * MIB, smallest=False)
    if gives_up:
        with pytest.raises(TooSlow):
            send(turn, clock, BODY / seconds)
        assert clock.time < 1_000 + 10 + 30 + 8  # after one window, at the end of a piece
    else:
        send(turn, clock, BODY / seconds)
    assert uplink.is_slow() is gives_up


def test_first_seconds_and_predecessors_are_not_measured(uplink: Uplink, clock: Clock) -> None:
    turn = ask(uplink, 10 * MIB, smallest=False)
    for seconds in (0, 9, 100, 200):  # ECR has not confirmed the part before
        clock.time = 1_000 + seconds
        turn.sending(seconds, BODY, measured=False)
    turn.sending(201, BODY, measured=True)
    clock.time += 29
    turn.sending(202, BODY, measured=True)
    clock.time += 1
    with pytest.raises(TooSlow):
        turn.sending(203, BODY, measured=True)


def test_measurement_begins_after_ten_seconds(uplink: Uplink, clock: Clock) -> None:
    turn = ask(uplink, 10 * MIB, smallest=False)
    for seconds in (0, 10):
        clock.time = 1_000 + seconds
        turn.sending(seconds, BODY, measured=True)
    clock.time = 1_040
    with pytest.raises(TooSlow):
        turn.sending(11, BODY, measured=True)


def test_message_has_the_rate_of_all_bodies(
    uplink: Uplink, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    turn, other = (ask(uplink, 10 * MIB, smallest=False) for _ in range(2))
    for sending in (turn, other):
        sending.sending(0, BODY, measured=True)
        sending.sending(2_000_000, BODY, measured=True)  # the kernel takes it at once
    clock.time += 10
    turn.sending(2_000_000, BODY, measured=True)
    clock.time += 30
    other.sending(0, BODY, measured=True)  # botocore repeats the request
    other.sending(2_500_000, BODY, measured=True)
    with pytest.raises(TooSlow):
        turn.sending(3_250_000, BODY, measured=True)
    assert caplog.messages == ["the uplink is slow (1.0 Mbit/s): one part of 5 MiB at a time"]


def test_link_that_recovers_is_measured_in_windows(uplink: Uplink, clock: Clock) -> None:
    turn = ask(uplink, 10 * MIB, smallest=False)
    turn.sending(0, BODY, measured=True)
    for sent in (MIB, 3 * MIB, 5 * MIB, 7 * MIB):  # 2 MiB in 30 s are enough
        clock.time += 30
        turn.sending(sent, BODY, measured=True)
    clock.time += 30
    with pytest.raises(TooSlow):  # although it has sent 8 MiB in 150 s
        turn.sending(8 * MIB, BODY, measured=True)


def test_repeated_request_is_measured_anew(uplink: Uplink, clock: Clock) -> None:
    turn = ask(uplink, 10 * MIB, smallest=False)
    send(turn, clock, BODY / 100)
    send(turn, clock, BODY / 100)
    assert not uplink.is_slow()


def test_smallest_part_that_is_alone_never_gives_up(uplink: Uplink, clock: Clock) -> None:
    make_slow(uplink)
    turn = ask(uplink, 5 * MIB, smallest=True)
    send(turn, clock, BODY / 10_000)


def test_smallest_part_gives_up_beside_others(uplink: Uplink, clock: Clock) -> None:
    turn, _other = ask(uplink, 5 * MIB, smallest=True), ask(uplink, 10 * MIB, smallest=False)
    with pytest.raises(TooSlow):
        send(turn, clock, BODY / 10_000)


def test_one_at_a_time_first_come_first_served(uplink: Uplink) -> None:
    make_slow(uplink)
    first, second, third = (ask(uplink, 5 * MIB, smallest=True) for _ in range(3))
    assert [is_sending(turn) for turn in (first, second, third)] == [True, False, False]
    second.end()  # it waits no longer
    first.end()
    first.end()
    assert is_sending(third)


def test_what_was_cut_larger_must_be_cut_again(uplink: Uplink) -> None:
    make_slow(uplink)
    with pytest.raises(TooSlow):
        ask(uplink, 10 * MIB, smallest=False)


def test_those_that_are_being_sent_keep_their_turns(uplink: Uplink) -> None:
    turns = [ask(uplink, 10 * MIB, smallest=False) for _ in range(3)]
    turns[0].expired(301)
    turns[0].end()
    waiting = ask(uplink, 5 * MIB, smallest=True)
    turns[1].end()
    assert not is_sending(waiting)
    turns[2].end()
    assert is_sending(waiting)


def test_turn_waits_for_one_that_has_begun_before_it(uplink: Uplink, clock: Clock) -> None:
    make_slow(uplink)
    turns = [ask(uplink, 5 * MIB, smallest=True) for _ in range(8)]
    store(turns[0], clock, 29)
    slow, quick, first, second = turns[1:5]
    assert is_sending(slow)
    assert is_sending(quick)
    store(quick, clock, 29)
    assert is_sending(second)  # it happens to ask before the first one
    slow.expired(301)
    slow.end()
    assert not is_sending(first)
    second.end()
    assert is_sending(first)
    assert first.alone


def test_number_of_turns_that_must_end_first(uplink: Uplink, clock: Clock) -> None:
    make_slow(uplink)
    turns = [ask(uplink, 5 * MIB, smallest=True) for _ in range(6)]
    assert [turn.waits_for for turn in turns] == [0, 1, 2, 3, 4, 5]
    store(turns[0], clock, 29)
    assert [is_sending(turn) for turn in turns[1:]] == [True, True, False, False, False]
    assert [turn.waits_for for turn in turns[3:]] == [1, 2, 3]


def test_quick_part_doubles_the_number(
    uplink: Uplink, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    make_slow(uplink)
    turns = [ask(uplink, 5 * MIB, smallest=True) for _ in range(5)]
    store(turns[0], clock, 29)
    assert [is_sending(turn) for turn in turns[1:]] == [True, True, False, False]
    store(turns[1], clock, 29)
    assert all(map(is_sending, turns))
    assert not uplink.is_slow()  # because none waits
    assert is_sending(ask(uplink, 10 * MIB, smallest=False))
    assert caplog.messages == [
        "the uplink is slow (0.0 Mbit/s): one part of 5 MiB at a time",
        "the uplink is faster (1.9 Mbit/s a part): 2 parts at a time",
        "the uplink is not slow any more (1.9 Mbit/s a part)",
    ]


def store(turn: Turn, clock: Clock, seconds: float) -> None:
    assert is_sending(turn)
    clock.time += seconds
    turn.stored()
    turn.end()


def test_uplink_is_no_longer_slow_if_all_that_wait_can_be_sent(
    uplink: Uplink, clock: Clock
) -> None:
    make_slow(uplink)
    turns = [ask(uplink, MIB, smallest=True) for _ in range(3)]
    store(turns[0], clock, 29)
    assert not uplink.is_slow()


def test_quick_part_logs_nothing_while_the_uplink_is_not_slow(
    uplink: Uplink, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store(ask(uplink, 10 * MIB, smallest=False), clock, 1)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("size", "seconds"), [(5 * MIB, 30), (MIB - 1, 1)], ids=["slow", "too small to tell"]
)
def test_other_parts_do_not_double_the_number(
    uplink: Uplink, clock: Clock, size: int, seconds: float
) -> None:
    make_slow(uplink)
    turns = [ask(uplink, size, smallest=True) for _ in range(3)]
    store(turns[0], clock, seconds)
    assert [is_sending(turn) for turn in turns[1:]] == [True, False]


def test_part_that_began_before_a_change_does_not_double_the_number(
    uplink: Uplink, clock: Clock
) -> None:
    before, slow = ask(uplink, 10 * MIB, smallest=False), ask(uplink, 10 * MIB, smallest=False)
    slow.expired(301)
    slow.end()
    waiting = [ask(uplink, 5 * MIB, smallest=True) for _ in range(2)]
    store(before, clock, 1)
    assert list(map(is_sending, waiting)) == [True, False]


def test_refusal_lowers_the_age_that_is_allowed(uplink: Uplink, clock: Clock) -> None:
    turns = [ask(uplink, 10 * MIB, smallest=False) for _ in range(4)]
    turns[0].expired(100)
    turns[1].expired(200)
    send(turns[2], clock, BODY / 75)
    with pytest.raises(TooSlow):
        send(turns[3], clock, BODY / 85)


def test_third_refusal_of_smallest_part_alone_is_the_end(uplink: Uplink, clock: Clock) -> None:
    make_slow(uplink)
    reasons = []
    for stored in (False, False, True, False, False, False):
        turn = ask(uplink, 5 * MIB, smallest=True)
        if stored:
            store(turn, clock, 100)
            continue
        turn.sending(0, 7 * MIB, measured=True)
        clock.time += 350
        turn.sending(7 * MIB, 7 * MIB, measured=False)
        reasons.append(turn.expired(350))
        turn.end()
    assert reasons[:-1] == [None] * 4
    assert reasons[-1] == (
        "3 parts in succession took too long, although each was sent alone; the last one 350 s at "
        "0.2 Mbit/s"
    )


def test_refusals_of_others_are_not_the_end(uplink: Uplink) -> None:
    for _ in range(9):
        turn = Turn(uplink, 10 * MIB, smallest=False)
        assert turn.expired(301) is None


def test_refusals_of_small_parts_beside_others_are_not_the_end(uplink: Uplink) -> None:
    turns = [ask(uplink, 5 * MIB, smallest=True) for _ in range(4)]
    assert [turn.expired(301) for turn in turns] == [None] * 4


def test_connection_that_was_blocked_was_too_slow(uplink: Uplink, clock: Clock) -> None:
    turn = ask(uplink, 10 * MIB, smallest=False)
    turn.sending(MIB, BODY, measured=True)
    clock.time += 29
    assert not turn.failed()
    clock.time += 1
    assert turn.failed()
    assert uplink.is_slow()


def test_connection_that_was_lost_after_the_last_byte_was_not_too_slow(
    uplink: Uplink, clock: Clock
) -> None:
    turn = ask(uplink, 10 * MIB, smallest=False)
    turn.sending(BODY, BODY, measured=False)
    clock.time += 600
    assert not turn.failed()
    short = ask(uplink, 1_000, smallest=False)
    short.sending(0, 1_300, measured=True)
    clock.time += 60
    assert not short.failed()  # its size says nothing
    assert not uplink.is_slow()


def run_in_thread(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    return thread


@pytest.fixture
def locked(clock: Clock, uplink: Uplink) -> Iterator[Turn]:
    """A turn of this thread, while another thread is stopped in the middle of a change."""
    turn = ask(uplink, 5 * MIB, smallest=True)
    quick = ask(uplink, 5 * MIB, smallest=True)
    make_slow(uplink)
    quick.generation = uplink.generation
    stopped, going_on, read_clock = threading.Event(), threading.Event(), uplink.now

    def stop() -> float:
        uplink.now = read_clock
        stopped.set()
        going_on.wait(60)
        return clock()

    uplink.now = stop
    thread = threading.Thread(target=quick.stored)
    thread.start()
    assert stopped.wait(10)
    yield turn
    going_on.set()
    thread.join()


def test_leaving_in_another_thread_waits_for_nothing(locked: Turn) -> None:
    """It is the caller's thread, which a signal handler may interrupt while it holds a lock."""
    run_in_thread(locked.end)


@pytest.mark.usefixtures("locked")
def test_forked_process_does_not_wait_for_its_parent(uplink: Uplink, mocker: MockerFixture) -> None:
    mocker.patch("os.getpid", return_value=os.getpid() + 1)
    turns: list[Turn] = []
    run_in_thread(lambda: turns.append(ask(uplink, 5 * MIB, smallest=True)))
    assert is_sending(turns[0])
    run_in_thread(lambda: turns[0].expired(400))


def test_turn_that_was_left_before_it_was_asked_for_holds_up_nobody(uplink: Uplink) -> None:
    make_slow(uplink)
    left = Turn(uplink, 5 * MIB, smallest=True)
    left.end()
    left.begins()
    assert uplink.turns == {}


def test_part_that_takes_no_time_is_quick(uplink: Uplink, clock: Clock) -> None:
    make_slow(uplink)
    store(ask(uplink, 5 * MIB, smallest=True), clock, 0)  # Windows' clock has steps of 16 ms
    assert not uplink.is_slow()


def test_body_that_is_alone_after_another_was_left_never_gives_up(
    uplink: Uplink, clock: Clock
) -> None:
    turn, other = (ask(uplink, 5 * MIB, smallest=True) for _ in range(2))
    run_in_thread(other.end)
    send(turn, clock, BODY / 10_000)


# Simulated links

SOAK = pytest.mark.soak
WORKERS = pytest.mark.parametrize(
    "workers", [1, pytest.param(2, marks=SOAK), pytest.param(4, marks=SOAK), 8]
)


def megabits(rate: float) -> float:
    """Bytes per second."""
    return rate * 1e6 / 8


def layers_for(rate: float, workers: int, seconds: float, *, mixed: bool) -> list[int]:
    """Layers that take at least ``seconds`` at ``rate`` megabits per second."""
    total = max(30 * MIB * workers, int(megabits(rate) * seconds * 3 / 4))
    if not mixed:
        return [total // (2 * workers)] * (2 * workers)
    rng = random.Random(workers)
    layers = []
    while total > 0:
        layers.append(min(total, int(rng.choice((0.001, 0.01, 0.1, 0.3)) * total) + 1_000))
        total -= layers[-1]
    return layers


@pytest.mark.parametrize("mixed", [False, True], ids=["equal layers", "mixed layers"])
@WORKERS
@pytest.mark.parametrize(
    "rate",
    [0.2, pytest.param(0.4, marks=SOAK), 1, pytest.param(2, marks=SOAK), 5, 100],
)
def test_slow_link_is_used(rate: float, workers: int, *, mixed: bool) -> None:
    seconds = 2_700 if rate < 10 else 200
    layers = layers_for(rate, workers, seconds, mixed=mixed)
    for buffer in (256 * 1024, 4 * MIB):
        link = Link(lambda _time: megabits(rate), buffer=buffer, processing=0.05)
        needed = sum(layers) * 4 / 3 / megabits(rate)
        assert needed / Simulation(link, layers, workers).run() > 0.8


@WORKERS
@pytest.mark.parametrize(("rate", "cap"), [(5, 2), (20, 3), (30, 0.8), (100, 8)])
def test_capped_connections_are_used(rate: float, cap: float, workers: int) -> None:
    layers = layers_for(rate, workers, 300, mixed=False)
    link = Link(lambda _time: megabits(rate), cap=megabits(cap), processing=0.05)
    needed = sum(layers) * 4 / 3 / megabits(min(rate, cap * workers))
    assert needed / Simulation(link, layers, workers).run() > 0.8


def changing_each_minute(rates: list[float]) -> Callable[[float], float]:
    return lambda time: rates[int(time // 60)]


@WORKERS
@pytest.mark.parametrize(("low", "high"), [(0.2, 2), (0.5, 5), (0.3, 30), (1, 100)])
def test_link_that_changes_each_minute_is_used(low: float, high: float, workers: int) -> None:
    for seed in range(3):
        rng = random.Random(seed)
        rates = [megabits(low * (high / low) ** rng.random()) for _ in range(1_000)]
        layers = layers_for(math.sqrt(low * high), workers, 600, mixed=bool(seed % 2))
        link = Link(changing_each_minute(rates), buffer=MIB)
        seconds = Simulation(link, layers, workers).run()
        possible = sum(rates[int(second // 60)] for second in range(int(seconds)))
        assert sum(layers) * 4 / 3 / possible > 0.4


@pytest.mark.parametrize("workers", [1, 4, 8])
@pytest.mark.parametrize("rate", [0.17, 0.18])
def test_link_that_cannot_send_5_mib_in_5_minutes_fails_soon(rate: float, workers: int) -> None:
    link = Link(lambda _time: megabits(rate))
    simulation = Simulation(link, [40 * MIB] * 8, workers)
    with pytest.raises(PushFailedError):
        simulation.run()
    assert simulation.time < 20 * 60


def test_slow_clock_is_compensated_for() -> None:
    link = Link(lambda _time: megabits(2), max_age=60)
    Simulation(link, [40 * MIB] * 8, 8).run()
