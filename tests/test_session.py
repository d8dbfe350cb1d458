from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecr_parts import Part, UploadSession
from ecr_parts.session import MOVES, Move, Stand, stand

PART = Part(100, 199)
LAYER_SIZE = 1_000
MIN_PART = 40


def a_session(*, begun_here: bool = True, **fields: Any) -> UploadSession:
    known: dict[str, Any] = {
        "repository_name": "team/app",
        "upload_id": "u-1",
        "part_size": 100,
        "layer_size": LAYER_SIZE,
    }
    session = UploadSession(**known | fields)
    if begun_here:
        session.begin(session.upload_id, session.part_size)
        while session.last_byte_received < 99:
            session.receive(
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
    (199, Move.CONFIRMED, Move.CONFIRMED, Move.CONFIRMED),
    (139, Move.GO_ON, Move.GO_ON, Move.GO_ON),
    (198, Move.GO_ON, Move.GO_ON, Move.GO_ON),
    (138, Move.START_OVER, Move.GO_ON, Move.START_OVER),
    (100, Move.START_OVER, Move.GO_ON, Move.START_OVER),
    (99, Move.SEND_AGAIN, Move.SEND_AGAIN, Move.SEND_AGAIN),
    (98, Move.REWIND, Move.LOST, Move.REWIND),
    (0, Move.REWIND, Move.LOST, Move.REWIND),
    (-1, Move.REWIND, Move.LOST, Move.REWIND),
    (200, Move.NONSENSE, Move.NONSENSE, Move.SKIP),
    (999, Move.NONSENSE, Move.NONSENSE, Move.SKIP),
    (1_000, Move.NONSENSE, Move.NONSENSE, Move.NONSENSE),
    (-2, Move.NONSENSE, Move.NONSENSE, Move.NONSENSE),
]
MOVING = {Move.CONFIRMED, Move.GO_ON, Move.REWIND, Move.SKIP}


@pytest.mark.parametrize(("last_byte", "replayable", "stream", "resumed"), TABLE)
def test_the_table(last_byte: int, replayable: Move, stream: Move, resumed: Move) -> None:
    for session, is_replayable, expected in (
        (a_session(), True, replayable),
        (a_session(), False, stream),
        (a_session(begun_here=False), True, resumed),
    ):
        move = session.receive(PART, last_byte, min_part=MIN_PART, replayable=is_replayable)

        assert move is expected
        assert session.last_byte_received == (last_byte if move in MOVING else 99)


def test_the_table_is_complete() -> None:
    assert set(MOVES) == set(Stand)


def test_a_service_that_answers_small_parts_has_a_small_minimum() -> None:
    session = a_session(part_size=10)

    assert session.receive(PART, 109, min_part=MIN_PART, replayable=True) is Move.GO_ON


def test_of_a_stream_of_unknown_size_nothing_is_behind_the_layer() -> None:
    assert stand(PART, 10**15, layer_size=None, min_part=1) is Stand.BEYOND_IT


@given(st.lists(st.tuples(st.integers(-3, 130), st.booleans()), max_size=60))
def test_no_answers_make_it_move_for_ever_or_stand_outside(
    answers: list[tuple[int, bool]],
) -> None:
    """Only confirmed bytes and a fifth stall in a row end a loop of answers."""
    session = UploadSession(repository_name="r", upload_id="u", part_size=10, layer_size=100)
    furthest, stalls, rewinds = -1, 0, 0
    for answer, resumed in answers:
        if resumed:
            session.resume()
        if session.next_byte == 100:
            return
        part = Part(session.next_byte, min(session.next_byte + 9, 99))
        before = session.last_byte_received
        move = session.receive(part, answer, min_part=4, replayable=True)
        assert -1 <= session.last_byte_received < 100
        if session.last_byte_received > furthest:
            furthest, stalls = session.last_byte_received, 0
        elif move is not Move.CONFIRMED:
            stalls += 1
        rewinds += -1 <= answer < before
        assert (move is Move.STUCK) == (stalls > 5 or rewinds > 5)
        if move is Move.STUCK:
            assert session.last_byte_received == before


def test_the_same_answer_for_ever_is_stuck_at_the_sixth() -> None:
    session = a_session()
    moves = [session.receive(PART, 99, min_part=1, replayable=True) for _ in range(6)]

    assert moves == [Move.SEND_AGAIN] * 5 + [Move.STUCK]


def test_a_new_upload_counts_anew() -> None:
    session = a_session()
    for _ in range(6):
        session.receive(PART, 99, min_part=1, replayable=True)
    session.begin("u-2", 100)
    moves = [session.receive(Part(0, 99), -1, min_part=1, replayable=True) for _ in range(5)]
    assert moves == [Move.SEND_AGAIN] * 5
    session.receive(Part(0, 0), 0, min_part=1, replayable=True)
    moves = [session.receive(Part(1, 99), 0, min_part=1, replayable=True) for _ in range(6)]
    assert moves == [Move.SEND_AGAIN] * 5 + [Move.STUCK]
    session.begin("u-3", 100)
    moves = [session.receive(Part(0, 99), -1, min_part=1, replayable=True) for _ in range(6)]
    assert moves == [Move.SEND_AGAIN] * 5 + [Move.STUCK]


def test_a_session_may_be_resumed_where_it_was_begun() -> None:
    session = a_session()
    assert not session.resumed
    session.resume()
    assert session.resumed
    assert session.receive(PART, 300, min_part=1, replayable=True) is Move.SKIP


def test_parts_confirmed_again_after_a_rewind_are_no_stall() -> None:
    session = UploadSession(repository_name="r", upload_id="u", part_size=1, layer_size=100)
    for byte in range(50):
        session.receive(Part(byte, byte), byte, min_part=1, replayable=True)
    session.receive(Part(50, 50), -1, min_part=1, replayable=True)
    for byte in range(100):
        assert (
            session.receive(Part(byte, byte), byte, min_part=1, replayable=True) is Move.CONFIRMED
        )


def test_an_upload_is_rewound_five_times_in_all() -> None:
    """However much is confirmed in between: or a service could have it sent again for ever."""
    session = UploadSession(repository_name="r", upload_id="u", part_size=1, layer_size=100)
    for rewinds in range(6):
        for byte in range(rewinds + 1):
            session.receive(Part(byte, byte), byte, min_part=1, replayable=True)
        last = Part(rewinds + 1, rewinds + 1)
        move = session.receive(last, -1, min_part=1, replayable=True)
        assert move is (Move.REWIND if rewinds < 5 else Move.STUCK)
        assert session.patchy
    assert session.next_byte == 6


def test_what_was_confirmed_before_is_no_progress() -> None:
    """After a rewind, the stall counts on until ECR stands further than it ever did."""
    session = a_session()
    assert not session.patchy
    assert session.receive(PART, -1, min_part=1, replayable=True) is Move.REWIND
    assert session.receive(Part(0, 99), 99, min_part=1, replayable=True) is Move.CONFIRMED
    moves = [session.receive(PART, 99, min_part=1, replayable=True) for _ in range(5)]
    assert moves == [Move.SEND_AGAIN] * 4 + [Move.STUCK]
    session.begin("u-2", 100)
    assert not session.patchy


def test_an_impossible_move_is_refused_and_changes_nothing() -> None:
    session = a_session()
    before = session.to_json()
    for part in (Part(0, 99), Part(101, 200), Part(100, 1_000)):
        with pytest.raises(ValueError, match="Part"):
            session.receive(part, 150, min_part=1, replayable=True)
    for upload_id, part_size in (("", 1), ("u", 0)):
        with pytest.raises(ValueError, match=r"upload_id|part_size"):
            session.begin(upload_id, part_size)
    assert session.to_json() == before


def test_after_a_part_under_the_minimum_none_can_follow() -> None:
    session = a_session()
    assert not session.ended(MIN_PART)
    session.receive(Part(100, 138), 138, min_part=MIN_PART, replayable=True)
    assert session.ended(MIN_PART)
    assert not session.ended(39)
    session.receive(Part(139, 200), 99, min_part=MIN_PART, replayable=True)
    assert not session.ended(MIN_PART)
    session.receive(Part(100, 199), 110, min_part=MIN_PART, replayable=False)
    assert session.ended(MIN_PART)
    session.begin("u-2", 100)
    assert not session.ended(MIN_PART)
    session.receive(Part(0, 99), 0, min_part=MIN_PART, replayable=False)
    assert session.ended(2)
    assert not session.ended(1)


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
    }
    assert UploadSession.from_json(session.to_json()) == session
    assert UploadSession.from_json(session.to_json().encode()) == session


def test_a_copy_is_a_resumed_session() -> None:
    """Whoever holds a copy may find ECR further on: another copy went on with it."""
    session = a_session()
    for twin in (
        pickle.loads(pickle.dumps(session)),
        copy.copy(session),
        UploadSession.from_json(session.to_json()),
    ):
        assert twin == session
        assert twin.receive(PART, 300, min_part=1, replayable=True) is Move.SKIP
    assert session.receive(PART, 300, min_part=1, replayable=True) is Move.NONSENSE


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
    ],
)
def test_other_json_is_no_session(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        UploadSession.from_json(text)


def test_a_newer_session_says_so() -> None:
    with pytest.raises(ValueError, match="version 2, and this library reads version 1"):
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
    ],
)
def test_what_no_upload_can_have(field: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=field):
        a_session(begun_here=False, **{field: value})
