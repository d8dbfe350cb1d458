"""Uploads of parts that are refused because their signatures have expired."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator
from itertools import count, cycle
from pathlib import Path

import pytest
from botocore.config import Config
from helpers import (
    NO_WAIT,
    SMALL_LIMITS,
    SOURCES,
    StopUploadError,
    digest_of,
    random_bytes,
    stop_after,
)
from hypothesis import example, given
from hypothesis import strategies as st
from pytest_mock import MockerFixture
from typing_extensions import override

from ecr_parts import CLIENT_CONFIG, ECR_LIMITS, LayerUploader, Limits, ServiceError
from ecr_parts._base.threads import Abandoned
from ecr_parts._upload.plan import Planner
from ecr_parts._wire.gate import Gate
from ecr_parts._wire.request import Attempt
from ecr_parts._wire.uplink import Turn, Uplink
from ecr_parts.testing import EcrError, LocalECR, Unknowns

MIB = 1024 * 1024
BLOB = random_bytes(45)  # six parts of 8 bytes, or twelve of 4
EXPIRED = EcrError("InvalidSignatureException", "Signature expired")


@pytest.fixture
def age(mocker: MockerFixture) -> Callable[[float], None]:
    """Sets the age, in seconds, that each request has when it is refused."""

    def set_age(seconds: float) -> None:
        mocker.patch("ecr_parts._wire.signature.SigningTime.age", seconds)

    set_age(400)
    return set_age


def part_sizes(ecr: LocalECR) -> list[int]:
    """The sizes of the parts that ECR has stored, in order."""
    return [
        call.last_byte + 1 - (call.first_byte or 0)
        for call in ecr.calls_of("UploadLayerPart")
        if call.outcome == "ok" and call.last_byte is not None
    ]


@pytest.mark.usefixtures("age")
@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("refused", [1, 2, 6])
def test_refused_part_is_cut_again(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path, kind: str, refused: int
) -> None:
    ecr.respond("UploadLayerPart", EXPIRED, call=refused)
    layer = uploader.upload(SOURCES[kind](BLOB, tmp_path, random.Random(0)))
    assert ecr.layer("demo", layer.digest) == BLOB
    assert layer.digest == digest_of(BLOB)
    sizes = part_sizes(ecr)
    assert sizes[: refused - 1] == [8] * (refused - 1)
    assert set(sizes[refused - 1 : -1]) <= {4}


@pytest.mark.usefixtures("age")
def test_refusals_do_not_count_as_attempts_of_the_policy(ecr: LocalECR) -> None:
    once = NO_WAIT.copy(stop=lambda state: state.attempt_number >= 1)
    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS, retrying=once)
    for call in (1, 2, 5, 6):
        ecr.respond("UploadLayerPart", EXPIRED, call=call)
    layer = uploader.upload(BLOB)
    assert ecr.layer("demo", layer.digest) == BLOB


@pytest.mark.usefixtures("age")
def test_third_refusal_of_smallest_part_is_an_error(
    ecr: LocalECR, uploader: LayerUploader, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ecr.respond("UploadLayerPart", EXPIRED, times=99)
    with pytest.raises(ServiceError) as caught:
        uploader.upload(BLOB)
    assert str(caught.value) == (
        "UploadLayerPart in repository 'demo', bytes 0-3 failed after 3 attempts: "
        "InvalidSignatureException: Signature expired (3 parts in succession took too long, "
        "although each was sent alone; the last one 400 s at 0.0 Mbit/s). The uplink is too slow: "
        "use a faster one, or nothing else on it"
    )
    assert caught.value.code == "InvalidSignatureException"
    (message,) = [message for message in caplog.messages if "uplink" in message]
    assert message.startswith("the uplink is slow (0.0 Mbit/s): one part of ")


def test_refusal_at_once_is_due_to_the_clock(
    ecr: LocalECR, uploader: LayerUploader, age: Callable[[float], None]
) -> None:
    age(1)
    message = "Signature expired: 20260101T000000Z is now earlier than 20260101T001000Z"
    ecr.respond("UploadLayerPart", EcrError("InvalidSignatureException", message))
    with pytest.raises(ServiceError, match=r"clock is 599 s behind: set it, for example by NTP$"):
        uploader.upload(BLOB)
    assert len(ecr.calls_of("UploadLayerPart")) == 1


@pytest.mark.usefixtures("age")
@pytest.mark.parametrize(
    "operation", ["BatchCheckLayerAvailability", "InitiateLayerUpload", "CompleteLayerUpload"]
)
def test_other_calls_are_repeated(ecr: LocalECR, uploader: LayerUploader, operation: str) -> None:
    ecr.respond(operation, EXPIRED)
    layer = uploader.upload(BLOB)
    assert ecr.layer("demo", layer.digest) == BLOB
    assert part_sizes(ecr)[0] == 8  # they say nothing about the size of parts


@pytest.mark.usefixtures("age")
def test_part_of_the_user_is_sent_again_as_it_is(ecr: LocalECR, uploader: LayerUploader) -> None:
    session = uploader.initiate(layer_size=len(BLOB))
    ecr.respond("UploadLayerPart", EXPIRED, times=2)
    uploader.upload_part(session, BLOB[:8])
    assert session.next_byte == 8
    assert part_sizes(ecr) == [8]


@pytest.mark.usefixtures("age")
def test_layers_take_turns(ecr: LocalECR, uploader: LayerUploader) -> None:
    ecr.respond("UploadLayerPart", EXPIRED, call=3)
    blobs = [random_bytes(45, seed) for seed in range(6)]
    layers = uploader.upload_many(blobs, max_workers=4)
    assert [ecr.layer("demo", layer.digest) for layer in layers] == blobs


@pytest.mark.usefixtures("age")
def test_part_sent_ahead_is_cut_again_without_a_loss(
    ecr: LocalECR, uploader: LayerUploader, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for call in (1, 3, 5, 7):
        ecr.respond("UploadLayerPart", EXPIRED, call=call)
    layer = uploader.upload(BLOB)
    assert ecr.layer("demo", layer.digest) == BLOB
    assert not [message for message in caplog.messages if "ahead" in message]


@pytest.fixture
def held_upload(ecr: LocalECR) -> Iterator[tuple[LayerUploader, threading.Event]]:
    """An uploader whose uplink is slow, in use by another thread, which waits for an answer.

    The event lets it have the answer.
    """
    answering, holding, held = threading.Event(), threading.Event(), threading.Event()
    client = ecr.client()

    def hold(**_event: object) -> None:
        if holding.is_set():
            holding.clear()
            held.set()
            answering.wait(10)

    client.meta.events.register("after-call.ecr.UploadLayerPart", hold)
    uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
    ecr.respond("UploadLayerPart", EXPIRED)
    uploader.upload(b"slow")
    holding.set()
    thread = threading.Thread(target=uploader.upload, args=(BLOB,))
    thread.start()
    assert held.wait(10)
    yield uploader, answering
    answering.set()
    thread.join()
    assert ecr.layer("demo", digest_of(BLOB)) == BLOB


@pytest.mark.usefixtures("age")
def test_wait_for_a_turn_can_be_interrupted(
    ecr: LocalECR, held_upload: tuple[LayerUploader, threading.Event]
) -> None:
    uploader, answering = held_upload
    sent = len(ecr.calls_of("UploadLayerPart"))
    beats = count(1)

    def progress(_confirmed: int) -> None:
        if next(beats) > 3:
            raise StopUploadError

    with pytest.raises(StopUploadError):
        uploader.upload(b"another layer", progress=progress)
    assert len(ecr.calls_of("UploadLayerPart")) == sent
    answering.set()
    layer = uploader.upload(b"another layer")  # the one that was interrupted is not waited for
    assert ecr.layer("demo", layer.digest) == b"another layer"


class LateTurn(Turn):
    """A turn that begins when it has been asked for three times."""

    def __init__(self) -> None:
        super().__init__(Uplink(1), 1, smallest=True)
        self.answers = [(True, 0), (False, 1), (False, 99)]

    @override
    def begins(self) -> bool:
        begins, self.waits_for = self.answers.pop()
        return begins


def test_time_of_an_attempt_excludes_the_wait_for_its_turn(mocker: MockerFixture) -> None:
    clock = mocker.patch("ecr_parts._wire.request.time")
    clock.monotonic.return_value = 1_000.0

    def wake_late(seconds: float) -> None:
        clock.monotonic.return_value += seconds + 3

    clock.sleep.side_effect = wake_late
    attempt = Attempt(lambda: None, lambda: False, None, Gate(), turn=LateTurn())
    attempt.wait_for_turn()
    assert attempt.more_time() == pytest.approx(6.51)
    assert attempt.more_time() == 0.0


def test_next_turn_is_asked_for_most_often(mocker: MockerFixture) -> None:
    sleep = mocker.patch("time.sleep")
    attempt = Attempt(lambda: None, lambda: False, None, Gate(), turn=LateTurn())
    attempt.wait_for_turn()
    assert sleep.call_args_list == [mocker.call(0.5), mocker.call(0.01)]


@pytest.mark.parametrize("waits", [0, 1])
def test_attempt_that_was_abandoned_does_not_wait_for_its_turn(waits: int) -> None:
    cancelled = [True] + waits * [False]
    turn = LateTurn()
    attempt = Attempt(lambda: None, cancelled.pop, None, Gate(), turn=turn)
    with pytest.raises(Abandoned):
        attempt.wait_for_turn()
    assert len(turn.answers) == 3 - waits


def test_signature_does_not_age_before_the_turn() -> None:
    attempt = Attempt(lambda: None, lambda: False, None, Gate(), turn=LateTurn())
    before = attempt.signed
    attempt.wait_for_turn()
    assert attempt.signed is not before


def test_connection_that_was_too_slow_does_not_count_as_attempt(
    ecr: LocalECR, mocker: MockerFixture
) -> None:
    mocker.patch.object(Turn, "failed", return_value=True)
    once = NO_WAIT.copy(stop=lambda state: state.attempt_number >= 1)
    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS, retrying=once)
    ecr.fail("UploadLayerPart", "request_lost")
    layer = uploader.upload(BLOB)
    assert ecr.layer("demo", layer.digest) == BLOB


# The sizes of parts


@given(
    layer_size=st.integers(1, 52_000 * MIB),
    slow=st.lists(st.booleans(), min_size=1, max_size=10),
    part_size=st.sampled_from([None, 5 * MIB, 10 * MIB, 20 * MIB]),
)
@example(layer_size=41_990 * MIB, slow=[True], part_size=10 * MIB)  # uses the reserve
def test_any_layer_fits_with_parts_to_spare(
    layer_size: int, slow: list[bool], part_size: int | None
) -> None:
    planner = Planner(ECR_LIMITS, part_size)
    usual = planner.choose_part_size(10 * MIB, layer_size)
    if usual * ECR_LIMITS.max_parts < layer_size:
        return  # refused by ``check_layer``
    is_slow = cycle(slow)
    parts = list(
        planner.parts(
            usual, parts_sent=0, next_byte=0, layer_size=layer_size, is_slow=lambda: next(is_slow)
        )
    )
    assert [part.first_byte for part, _ in parts[1:]] == [
        part.last_byte + 1 for part, _ in parts[:-1]
    ]
    assert parts[-1].part.last_byte == layer_size - 1
    assert all(5 * MIB <= part.size <= usual for part, _ in parts[:-1])
    assert len(parts) <= max(4_200 * 95 // 100 + 1, -(-layer_size // usual))
    assert [smallest for _, smallest in parts] == [value for value, _ in zip(cycle(slow), parts)]


def test_parts_are_as_small_as_possible_while_the_uplink_is_slow() -> None:
    planner, slow = Planner(ECR_LIMITS), [True, True, False, True]
    parts = planner.parts(
        10 * MIB, parts_sent=0, next_byte=0, layer_size=100 * MIB, is_slow=lambda: slow.pop(0)
    )
    assert [next(parts).part.size // MIB for _ in range(4)] == [5, 5, 10, 5]
    stream = planner.parts(
        10 * MIB, parts_sent=1_999, next_byte=19_990 * MIB, layer_size=None, is_slow=lambda: True
    )
    assert [next(stream).part.size // MIB for _ in range(2)] == [5, 15]


def test_part_size_holds_for_the_rest_of_a_resumed_upload(
    ecr: LocalECR, uploader: LayerUploader, checkpoint: Path
) -> None:
    with pytest.raises(StopUploadError):
        uploader.upload(BLOB, checkpoint=checkpoint, progress=stop_after(16))
    smaller = LayerUploader(
        ecr.client(), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT, part_size=5
    )
    layer = smaller.upload(BLOB, checkpoint=checkpoint)
    assert {sent.part.size for sent in layer.parts[:-1]} == {5}
    assert ecr.layer("demo", digest_of(BLOB)) == BLOB


# A fragment of a part that was cut again


@pytest.mark.usefixtures("age")
@pytest.mark.parametrize("stored", [3, 5, 7])
def test_fragment_of_part_that_was_cut_again(
    ecr: LocalECR, uploader: LayerUploader, stored: int
) -> None:
    """ECR has bytes of the part that are past the end of the smaller part."""
    error = EcrError(
        "InvalidLayerPartException", "First byte of the layer part is 8 instead of 0",
        lastValidByteReceived=7 + stored,
    )  # fmt: skip
    ecr.respond("UploadLayerPart", EXPIRED, call=2)
    ecr.respond("UploadLayerPart", error, call=3)
    layer = uploader.upload(BLOB)
    assert ecr.layer("demo", layer.digest) == BLOB


LARGER = Limits(min_part=300_000, max_part=600_000, max_parts=60, max_layer=10**7)


@pytest.mark.usefixtures("age")
def test_fragment_of_part_that_was_sent_ahead_of_one_that_was_cut_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The first part is stored, but its answer is lost. Then it is refused, and cut again."""
    caplog.set_level(logging.INFO)
    blob = random_bytes(1_800_000)
    fragment = Unknowns(broken_part="fragment")
    with LocalECR(limits=LARGER, part_size=600_000, processing_time=0.1, unknowns=fragment) as ecr:
        uploader = LayerUploader(ecr.client(), "demo", limits=LARGER, retrying=NO_WAIT)
        ecr.fail("UploadLayerPart", "answer_lost")
        ecr.respond("UploadLayerPart", EXPIRED, call=2)
        layer = uploader.upload(blob)
        assert ecr.layer("demo", layer.digest) == blob
    assert [message for message in caplog.messages if "continuing after the fragment" in message]


# Parts that give up


@pytest.fixture
def impatient(mocker: MockerFixture) -> None:
    """Every part would take too long, as soon as its second piece is to be sent."""
    for name, value in {"_NOT_MEASURED": 0, "_WINDOW": 1e-9, "_TOO_LONG": 0}.items():
        mocker.patch(f"ecr_parts._wire.uplink.{name}", value)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("config", [CLIENT_CONFIG, Config()], ids=["recommended", "default"])
def test_part_that_gives_up_is_cut_again(config: Config) -> None:
    with LocalECR(limits=LARGER, part_size=600_000) as ecr:
        client = ecr.client(config=config)
        uploader = LayerUploader(client, "demo", limits=LARGER, retrying=NO_WAIT)
        blobs = [random_bytes(1_200_000, seed) for seed in range(5)]
        layers = uploader.upload_many(blobs)
        assert [ecr.layer("demo", layer.digest) for layer in layers] == blobs
        assert set(part_sizes(ecr)) == {300_000}
        assert {call.outcome for call in ecr.calls} == {"ok"}  # what gave up has never arrived


def test_part_that_is_sent_ahead_is_measured_in_its_turn(mocker: MockerFixture) -> None:
    sending = mocker.spy(Turn, "sending")
    with LocalECR(limits=LARGER, part_size=600_000, processing_time=0.1) as ecr:
        uploader = LayerUploader(ecr.client(), "demo", limits=LARGER, retrying=NO_WAIT)
        uploader.upload(random_bytes(1_800_000))
    calls = [
        (sent, total, call[1]["measured"])
        for call in sending.call_args_list
        for _turn, sent, total in [call[0]]
    ]
    assert (0, calls[0][1], True) in calls
    assert [call for call in calls if call[0] < call[1] and not call[2]]
    assert sum(sent == total for sent, total, _ in calls) == 3  # also after the last piece


@pytest.mark.usefixtures("impatient")
def test_part_whose_connection_was_blocked_is_cut_again() -> None:
    """The client's time-out ends it, before the next piece can be sent."""
    with LocalECR(limits=LARGER, part_size=300_000) as ecr:
        uploader = LayerUploader(ecr.client(), "demo", limits=LARGER, retrying=NO_WAIT)
        ecr.fail("UploadLayerPart", "reset")
        layer = uploader.upload(random_bytes(250_000))
        assert ecr.layer("demo", layer.digest) == random_bytes(250_000)
