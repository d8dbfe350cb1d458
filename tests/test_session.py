from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecr_parts import Part, UploadSession
from ecr_parts._session import TRANSITIONS, Event, NextAction, Position, position

PART = Part(100, 199)
LAYER_SIZE = 1_000
MIN_PART = 40


def receive(
    session: UploadSession, part: Part, last_byte: int, *, min_part: int, replayable: bool
) -> NextAction | Event:
    """The action that the table names; the event where ECR makes no progress."""
    event, action = session._receive(part, last_byte, min_part=min_part, replayable=replayable)
    if event is Event.NO_PROGRESS:
        assert action is NextAction.FAIL
        return event
    return action


def a_session(*, begun_here: bool = True, **fields: Any) -> UploadSession:
    known: dict[str, Any] = {
        "repository_name": "team/app",
        "upload_id": "u-1",
        "part_size": 100,
        "layer_size": LAYER_SIZE,
    }
    session = UploadSession(**known | fields)
    if begun_here:
        session._start(session.upload_id, session.part_size)
        while session.last_byte_received < 99:
            receive(
                session,
                Part(session.next_byte, session.next_byte + 99),
                session.next_byte + 99,
                min_part=MIN_PART,
                replayable=True,
            )
    else:
        session.last_byte_received = 99
    return session


# The table of the design, row by row: where ECR says it stands, while 100..199 is sent, and what
# that means for a replayable source, for a stream, and for a resumed session.
TABLE = [
    (199, NextAction.CONTINUE, NextAction.CONTINUE, NextAction.CONTINUE),
    (139, NextAction.CONTINUE_INSIDE, NextAction.CONTINUE_INSIDE, NextAction.CONTINUE_INSIDE),
    (198, NextAction.CONTINUE_INSIDE, NextAction.CONTINUE_INSIDE, NextAction.CONTINUE_INSIDE),
    (138, NextAction.CHECK_LOST, NextAction.CONTINUE_INSIDE, NextAction.CHECK_LOST),
    (100, NextAction.CHECK_LOST, NextAction.CONTINUE_INSIDE, NextAction.CHECK_LOST),
    (99, NextAction.SEND_AGAIN, NextAction.SEND_AGAIN, NextAction.SEND_AGAIN),
    (98, NextAction.REWIND, NextAction.CHECK_LOST, NextAction.REWIND),
    (0, NextAction.REWIND, NextAction.CHECK_LOST, NextAction.REWIND),
    (-1, NextAction.REWIND, NextAction.CHECK_LOST, NextAction.REWIND),
    (200, NextAction.FAIL, NextAction.FAIL, NextAction.SKIP_FORWARD),
    (999, NextAction.FAIL, NextAction.FAIL, NextAction.SKIP_FORWARD),
    (1_000, NextAction.FAIL, NextAction.FAIL, NextAction.FAIL),
    (-2, NextAction.FAIL, NextAction.FAIL, NextAction.FAIL),
]
MOVING = {
    NextAction.CONTINUE,
    NextAction.CONTINUE_INSIDE,
    NextAction.REWIND,
    NextAction.SKIP_FORWARD,
}


@pytest.mark.parametrize(("last_byte", "replayable", "stream", "resumed"), TABLE)
def test_the_table(
    last_byte: int, replayable: NextAction, stream: NextAction, resumed: NextAction
) -> None:
    for session, is_replayable, expected in (
        (a_session(), True, replayable),
        (a_session(), False, stream),
        (a_session(begun_here=False), True, resumed),
    ):
        move = receive(session, PART, last_byte, min_part=MIN_PART, replayable=is_replayable)

        assert move is expected
        assert session.last_byte_received == (last_byte if move in MOVING else 99)


def test_the_table_is_complete() -> None:
    assert set(TRANSITIONS) == {*Position, *Event}


def test_a_service_that_answers_small_parts_has_a_small_minimum() -> None:
    session = a_session(part_size=10)

    assert (
        receive(session, PART, 109, min_part=MIN_PART, replayable=True)
        is NextAction.CONTINUE_INSIDE
    )


def test_of_a_stream_of_unknown_size_nothing_is_behind_the_layer() -> None:
    assert position(PART, 10**15, layer_size=None, min_part=1) is Position.PAST_LAST_BYTE


@given(st.lists(st.tuples(st.integers(-3, 130), st.booleans()), max_size=60))
def test_no_answers_make_it_move_for_ever_or_stand_outside(
    answers: list[tuple[int, bool]],
) -> None:
    """Only confirmed bytes and a fifth stall in a row end a loop of answers."""
    session = UploadSession(repository_name="r", upload_id="u", part_size=10, layer_size=100)
    furthest, stalls, rewinds = -1, 0, 0
    for answer, resumed in answers:
        if resumed:
            session._share()
        if session.next_byte == 100:
            return
        part = Part(session.next_byte, min(session.next_byte + 9, 99))
        before = session.last_byte_received
        move = receive(session, part, answer, min_part=4, replayable=True)
        assert -1 <= session.last_byte_received < 100
        if session.last_byte_received > furthest:
            furthest, stalls = session.last_byte_received, 0
        elif move is not NextAction.CONTINUE:
            stalls += 1
        rewinds += -1 <= answer < before
        assert (move is Event.NO_PROGRESS) == (stalls > 5 or rewinds > 5)
        if move is Event.NO_PROGRESS:
            assert session.last_byte_received == before


def test_the_same_answer_for_ever_is_stuck_at_the_sixth() -> None:
    session = a_session()
    moves = [receive(session, PART, 99, min_part=1, replayable=True) for _ in range(6)]

    assert moves == [NextAction.SEND_AGAIN] * 5 + [Event.NO_PROGRESS]


def test_a_new_upload_counts_anew() -> None:
    session = a_session()
    for _ in range(6):
        receive(session, PART, 99, min_part=1, replayable=True)
    session._start("u-2", 100)
    moves = [receive(session, Part(0, 99), -1, min_part=1, replayable=True) for _ in range(5)]
    assert moves == [NextAction.SEND_AGAIN] * 5
    receive(session, Part(0, 0), 0, min_part=1, replayable=True)
    moves = [receive(session, Part(1, 99), 0, min_part=1, replayable=True) for _ in range(6)]
    assert moves == [NextAction.SEND_AGAIN] * 5 + [Event.NO_PROGRESS]
    session._start("u-3", 100)
    moves = [receive(session, Part(0, 99), -1, min_part=1, replayable=True) for _ in range(6)]
    assert moves == [NextAction.SEND_AGAIN] * 5 + [Event.NO_PROGRESS]


def test_a_session_may_be_resumed_where_it_was_begun() -> None:
    session = a_session()
    assert session._started_here
    session._resume(100)
    assert not session._started_here
    assert receive(session, PART, 300, min_part=1, replayable=True) is NextAction.SKIP_FORWARD


def test_parts_confirmed_again_after_a_rewind_are_no_stall() -> None:
    session = UploadSession(repository_name="r", upload_id="u", part_size=1, layer_size=100)
    for byte in range(50):
        receive(session, Part(byte, byte), byte, min_part=1, replayable=True)
    receive(session, Part(50, 50), -1, min_part=1, replayable=True)
    for byte in range(100):
        assert (
            receive(session, Part(byte, byte), byte, min_part=1, replayable=True)
            is NextAction.CONTINUE
        )


def test_an_upload_is_rewound_five_times_in_all() -> None:
    """However much is confirmed in between: or a service could have it sent again for ever."""
    session = UploadSession(repository_name="r", upload_id="u", part_size=1, layer_size=100)
    for rewinds in range(6):
        for byte in range(rewinds + 1):
            receive(session, Part(byte, byte), byte, min_part=1, replayable=True)
        last = Part(rewinds + 1, rewinds + 1)
        move = receive(session, last, -1, min_part=1, replayable=True)
        assert move is (NextAction.REWIND if rewinds < 5 else Event.NO_PROGRESS)
        assert session._after(Event.PART_TOO_SMALL, replayable=True) is NextAction.CHECK_LOST
    assert session.next_byte == 6


def test_what_was_confirmed_before_is_no_progress() -> None:
    """After a rewind, the stall counts on until ECR stands further than it ever did."""
    session = a_session()
    assert session._after(Event.PART_TOO_SMALL, replayable=True) is NextAction.FAIL
    assert receive(session, PART, -1, min_part=1, replayable=True) is NextAction.REWIND
    assert receive(session, Part(0, 99), 99, min_part=1, replayable=True) is NextAction.CONTINUE
    moves = [receive(session, PART, 99, min_part=1, replayable=True) for _ in range(5)]
    assert moves == [NextAction.SEND_AGAIN] * 4 + [Event.NO_PROGRESS]
    session._start("u-2", 100)
    assert session._after(Event.PART_TOO_SMALL, replayable=True) is NextAction.FAIL


def test_an_impossible_move_is_refused_and_changes_nothing() -> None:
    session = a_session()
    before = session.to_json()
    for part in (Part(0, 99), Part(101, 200), Part(100, 1_000)):
        with pytest.raises(ValueError, match="Part"):
            receive(session, part, 150, min_part=1, replayable=True)
    for upload_id, part_size in (("", 1), ("u", 0)):
        with pytest.raises(ValueError, match=r"upload_id|part_size"):
            session._start(upload_id, part_size)
    assert session.to_json() == before


def test_after_a_part_under_the_minimum_none_can_follow() -> None:
    session = a_session()
    assert not session._is_closed(MIN_PART)
    receive(session, Part(100, 138), 138, min_part=MIN_PART, replayable=True)
    assert session._is_closed(MIN_PART)
    assert not session._is_closed(39)
    receive(session, Part(139, 200), 99, min_part=MIN_PART, replayable=True)
    assert not session._is_closed(MIN_PART)
    receive(session, Part(100, 199), 110, min_part=MIN_PART, replayable=False)
    assert session._is_closed(MIN_PART)
    session._start("u-2", 100)
    assert not session._is_closed(MIN_PART)
    receive(session, Part(0, 99), 0, min_part=MIN_PART, replayable=False)
    assert session._is_closed(2)
    assert not session._is_closed(1)


def test_it_goes_through_json_with_the_apis_names() -> None:
    session = a_session(registry_id="012345678910", layer_digest="sha256:00")

    document = json.loads(session.to_json())
    assert document == {
        "version": 1,
        "repositoryName": "team/app",
        "registryId": "012345678910",
        "uploadId": "u-1",
        "partSize": 100,
        "lastByteReceived": 99,
        "layerDigest": "sha256:00",
        "layerSize": 1_000,
        "partsReceived": 1,
        "lastPartSize": 100,
    }
    assert UploadSession.from_json(session.to_json()) == session
    assert UploadSession.from_json(session.to_json().encode()) == session


def test_a_text_of_the_version_before_says_nothing_of_the_parts() -> None:
    document = json.loads(a_session().to_json())
    del document["partsReceived"], document["lastPartSize"]
    session = UploadSession.from_json(json.dumps(document))
    assert session == a_session()
    assert not session._is_closed(10**6)
    session._resume(30)
    assert json.loads(session.to_json())["partsReceived"] == 4


def test_it_remembers_in_json_that_its_last_part_was_too_small() -> None:
    session = a_session()
    receive(session, Part(100, 138), 138, min_part=MIN_PART, replayable=True)
    assert UploadSession.from_json(session.to_json())._is_closed(MIN_PART)


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(-1, 130)), max_size=40))
def test_the_parts_are_counted_and_never_fewer_than_one_each_limit(
    answers: list[tuple[int, int]],
) -> None:
    """Whatever ECR answers, the count stays one that these bytes can have."""
    session = UploadSession(repository_name="r", upload_id="u", part_size=10, layer_size=130)
    session._share()
    for size, answer in answers:
        if session.next_byte == 130:
            break
        part = Part(session.next_byte, min(session.next_byte + size - 1, 129))
        receive(session, part, answer, min_part=1, replayable=True)
        twin = UploadSession.from_json(session.to_json())
        assert twin._count_parts(1) == session._count_parts(1)
        assert min(1, session.next_byte) <= session._count_parts(1) <= session.next_byte


def test_a_copy_is_a_resumed_session() -> None:
    """Whoever holds a copy may find ECR further on: another copy went on with it."""
    session = a_session()
    for twin in (
        pickle.loads(pickle.dumps(session)),
        copy.copy(session),
        UploadSession.from_json(session.to_json()),
    ):
        assert twin == session
        assert receive(twin, PART, 300, min_part=1, replayable=True) is NextAction.SKIP_FORWARD
    assert receive(session, PART, 300, min_part=1, replayable=True) is NextAction.FAIL


def without(key: str) -> dict[str, object]:
    document: dict[str, object] = json.loads(a_session().to_json())
    del document[key]
    return document


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "{}",
        "[" * 100_000,
        b"\xff\xfe",
        json.dumps(without("uploadId")),
        json.dumps(without("version")),
        json.dumps(without("layerSize")),
        a_session().to_json().replace('"version": 1', '"version": 2'),
        a_session().to_json().replace("100", '"100"'),
        a_session().to_json().replace("99", "-2"),
        a_session().to_json().replace("99", "1000"),
        a_session().to_json().replace('"u-1"', '""'),
        a_session().to_json().replace('"u-1"', "null"),
        a_session().to_json().replace('"u-1"', '"u\\u001b[2J"'),
        a_session().to_json().replace('"version": 1', '"version": true'),
        a_session().to_json().replace('"version": 1', '"version": 1.0'),
        a_session().to_json().replace('"partsReceived": 1', '"partsReceived": 0'),
        a_session().to_json().replace('"partsReceived": 1', '"partsReceived": 101'),
        a_session().to_json().replace('"partsReceived": 1', '"partsReceived": true'),
        a_session().to_json().replace('"lastPartSize": 100', '"lastPartSize": 0'),
        a_session().to_json().replace('"lastPartSize": 100', '"lastPartSize": 101'),
        a_session().to_json().replace('"layerSize": 1000', f'"layerSize": {2**63}'),
    ],
)
def test_other_json_is_no_session(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        UploadSession.from_json(text)


def test_a_newer_session_says_so() -> None:
    with pytest.raises(ValueError, match=r"version 2, but .* reads version 1"):
        UploadSession.from_json('{"version": 2}')


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("repository_name", "", ValueError),
        ("repository_name", None, TypeError),
        ("registry_id", 12, TypeError),
        ("layer_digest", b"x", TypeError),
        ("part_size", 0, ValueError),
        ("layer_size", 0, ValueError),
        ("last_byte_received", -2, ValueError),
        ("last_byte_received", LAYER_SIZE, ValueError),
        ("last_byte_received", True, TypeError),
        ("layer_size", 2**63, ValueError),
        pytest.param("layer_size", -(10**5_000), ValueError, id="more digits than Python shows"),
        ("upload_id", "u\r\n", ValueError),
        ("upload_id", "u" * 501, ValueError),
    ],
)
def test_what_no_upload_can_have(field: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=field):
        a_session(begun_here=False, **{field: value})
