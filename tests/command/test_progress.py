"""What progress says: bytes, rate and time left."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecr_parts._command.progress import Progress, amount

MIB = 1024 * 1024


def progress_of(size: int | None, started: float, *parts: tuple[float, int]) -> Progress:
    """The progress of an upload whose first part is begun at ``started``."""
    progress = Progress(0)
    progress.size = size
    progress.begin_part("request", started)
    for now, part_size in parts:
        send_part(progress, part_size, now)
    return progress


def send_part(progress: Progress, size: int, now: float) -> None:
    progress.begin_part("request", now)
    progress.send("request", size, now)
    progress.end_part("request")
    progress.add(size)


def test_shows_elapsed_time_until_a_rate_is_known() -> None:
    progress = progress_of(100 * MIB, 3)
    assert progress.texts(4.4) == ["0.0 of 100.0 MiB", "4 s elapsed"]
    assert Progress(0).texts(2) == ["0.0 MiB", "2 s elapsed"]


def test_shows_rate_and_time_left() -> None:
    progress = progress_of(100 * MIB, 1, (3, 10 * MIB), (5, 10 * MIB))
    assert progress.texts(5) == ["20.0 of 100.0 MiB", "5.0 MiB/s", "16 s left"]
    assert progress_of(None, 3, (5, MIB)).texts(5) == ["1.0 MiB", "512 KiB/s"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (59, "59 s"),
        (60, "1 min"),
        (3600, "60 min"),
        (7100, "118 min"),
        (7200, "2 h"),
        (90000, "25 h"),
    ],
)
def test_time_left_has_a_readable_unit(seconds: int, text: str) -> None:
    progress = progress_of((seconds + 1) * MIB, 0, (1, MIB))
    assert progress.texts(1)[-1] == f"{text} left"


def test_shows_elapsed_time_at_the_end() -> None:
    progress = progress_of(20 * MIB, 1, (3, 10 * MIB), (5, 10 * MIB))
    assert progress.texts(6) == ["20.0 of 20.0 MiB", "6 s elapsed"]


def test_shows_activity_before_bytes_are_sent() -> None:
    progress = progress_of(20 * MIB, 0)
    progress.begin("asking")
    assert progress.texts(6) == ["asking", "6 s elapsed"]
    progress.begin("hashing", 20 * MIB)
    progress.advance(5 * MIB)
    assert progress.texts(6) == ["hashing", "5.0 of 20.0 MiB", "6 s elapsed"]
    progress.advance(16 * MIB)  # the last block is not full
    assert progress.texts(6) == ["hashing", "20.0 of 20.0 MiB", "6 s elapsed"]
    progress.begin("reading", 0)
    progress.reach(30 * MIB)
    assert progress.texts(6) == ["reading", "30.0 MiB", "6 s elapsed"]


def test_bytes_that_ecr_had_before_are_confirmed_but_not_sent() -> None:
    progress = progress_of(100 * MIB, 0, (2, 10 * MIB))
    progress.add(50 * MIB)
    assert progress.texts(2) == ["60.0 of 100.0 MiB", "5.0 MiB/s", "8 s left"]
    progress.add(-60 * MIB)
    assert progress.texts(2) == ["0.0 of 100.0 MiB", "5.0 MiB/s", "20 s left"]


def test_rate_falls_while_nothing_is_sent() -> None:
    progress = progress_of(None, 0, (2, 2 * MIB), (4, 2 * MIB))
    assert progress.rate(4) == MIB
    assert progress.rate(8) == MIB / 2
    assert progress.rate(100) is None


def test_no_rate_is_guessed_from_less_than_a_second() -> None:
    assert progress_of(None, 0, (0.1, MIB)).rate(0.1) is None


def test_rate_is_that_of_the_last_20_seconds() -> None:
    fast = [(float(second), 10 * MIB) for second in range(1, 100)]
    progress = progress_of(None, 0, *fast)
    assert progress.rate(99) == 10 * MIB
    for second in range(1, 10):
        send_part(progress, 4 * MIB, 100.0 + 4 * second)
    assert progress.rate(136) == MIB


def test_what_leaves_within_a_moment_is_one_sample() -> None:
    progress = progress_of(None, 0)
    for i in range(100):
        progress.send("request", MIB, 1 + i / 1000)
    assert progress.rate(2) == 50 * MIB


@given(st.lists(st.tuples(st.floats(0, 60), st.integers(0, 2**40))), st.floats(0, 60))
def test_rate_is_positive_or_unknown(parts: list[tuple[float, int]], later: float) -> None:
    progress, now = progress_of(2**40, 0), 0.0
    for seconds, size in parts:
        now += seconds
        send_part(progress, size, now)
        rate = progress.rate(now + later)
        assert rate is None or rate > 0
        assert 2 <= len(progress.texts(now + later)) <= 3


# Bytes in flight


def test_bytes_in_flight_are_shown() -> None:
    progress = progress_of(100 * MIB, 0)
    progress.send("request", 4 * MIB, 2)
    assert (progress.confirmed, progress.done) == (0, 0.04)
    assert progress.texts(2) == ["4.0 of 100.0 MiB", "2.0 MiB/s", "48 s left"]
    progress.send("request", 6 * MIB, 4)
    progress.begin_part("another request", 4)
    progress.send("another request", 5 * MIB, 4)
    assert progress.texts(4)[0] == "15.0 of 100.0 MiB"


def test_nothing_jumps_back_when_a_request_fails() -> None:
    progress = progress_of(100 * MIB, 0)
    progress.send("request", 10 * MIB, 2)
    assert progress.shown == 10 * MIB
    progress.end_part("request")
    progress.begin_part("request", 3)
    assert (progress.shown, progress.done) == (10 * MIB, 0.1)
    progress.send("request", 12 * MIB, 4)
    assert progress.shown == 12 * MIB


def test_amount_falls_if_ecr_has_lost_bytes_but_the_bar_does_not() -> None:
    progress = progress_of(100 * MIB, 0, (2, 50 * MIB))
    assert progress.done == 0.5
    progress.add(-50 * MIB)
    assert (progress.texts(2)[0], progress.done) == ("0.0 of 100.0 MiB", 0.5)


def test_bar_is_not_full_before_all_is_confirmed() -> None:
    progress = progress_of(10 * MIB, 0)
    progress.send("request", 11 * MIB, 2)  # base64 is counted roughly
    assert (progress.shown, progress.done) == (10 * MIB, 0.99)
    progress.add(10 * MIB)
    assert (progress.shown, progress.done) == (10 * MIB, 1)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["begin", "send", "end"]), st.integers(0, 9))
    )
)
def test_bar_never_jumps_back_whatever_becomes_of_requests(
    events: list[tuple[int, str, int]],
) -> None:
    progress, last = progress_of(40, 0), 0.0
    for request, event, size in events:
        if event == "begin":
            progress.begin_part(request, 1)
        elif event == "send":
            progress.send(request, size, 1)
        else:
            progress.end_part(request)
            progress.add(size - 4)
        assert progress.done is not None
        assert last <= progress.done <= 1
        last = progress.done


def test_to_compress_a_byte_and_to_send_it_count_alike() -> None:
    progress = Progress(0)
    progress.plan(100 * MIB, 80 * MIB)  # 80 of the 100 are compressed before
    assert (progress.done, progress.texts(2)) == (
        0,
        ["0.0 MiB sent", "compressing 0.0 of 80.0 MiB", "2 s elapsed"],
    )
    progress.read(45 * MIB)
    assert progress.done == 0.25
    progress.begin("reading the image")
    assert progress.done is None
    progress.begin("")
    progress.read(35 * MIB)
    progress.plan(-60 * MIB, 0)  # they have become smaller
    progress.add(20 * MIB)
    assert progress.texts(3) == ["20.0 of 40.0 MiB", "3 s elapsed"]
    assert progress.done == 100 / 120
    progress.add(20 * MIB)
    progress.read(80 * MIB)  # again, because ECR has lost some
    assert progress.done == 1


@given(sizes=st.lists(st.tuples(st.integers(1, 99), st.integers(1, 200)), min_size=1))
def test_bar_never_jumps_back(sizes: list[tuple[int, int]]) -> None:
    """Whatever becomes of each layer when it is compressed."""
    progress, last = Progress(0), 0.0
    progress.plan(sum(size for size, _ in sizes), sum(size for size, _ in sizes))
    for size, ratio in sizes:
        compressed = min(size, ratio)
        for read, planned, sent in ((size, 0, 0), (0, compressed - size, 0), (0, 0, compressed)):
            progress.read(read)
            progress.plan(planned, 0)
            progress.add(sent)
            assert progress.done is not None
            assert last <= progress.done <= 1
            last = progress.done
    assert last == 1


# Words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.9, "9.9 s"), (10, "10 s"), (95, "1 min 35 s"), (7_500, "2 h 5 min")],
)
def test_says_how_long_it_took(seconds: float, text: str) -> None:
    assert Progress(1).took(1 + seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (1, "1 byte"),
        (1023, "1,023 bytes"),
        (1024, "1.0 KiB"),
        (12 * MIB, "12.0 MiB"),
        (445 * MIB, "445 MiB"),
        (1024 * MIB, "1.0 GiB"),
        (52_000 * MIB, "50.8 GiB"),
        (10**15, "931,323 GiB"),
    ],
)
def test_amount_has_a_readable_unit(size: int, text: str) -> None:
    assert amount(size) == text
