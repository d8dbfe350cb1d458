"""``UploadSession``: its decisions after each answer of ECR, and its JSON."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecr_parts import Part, UploadSession
from ecr_parts._model.machine import TRANSITIONS, Event, Machine, NextAction, position

PART = Part(100, 199)
LAYER_SIZE = 1_000
MIN_PART = 40


def receive(
    session: UploadSession,
    part: Part,
    last_byte: int,
    *,
    min_part: int = 1,
    replayable: bool = True,
) -> NextAction | Event:
    """Process an answer: the next action, or ``Event.NO_PROGRESS`` if the session gives up."""
    machine = Machine(session, min_part)
    event, action = machine.receive(part, last_byte, replayable=replayable)
    if event is Event.NO_PROGRESS:
        assert action is NextAction.FAIL
        return event
    return action


def start(session: UploadSession, upload_id: str, part_size: int = 100) -> None:
    """Switch to a new upload of the same layer."""
    new = UploadSession(
        repository_name=session.repository_name,
        registry_id=session.registry_id,
        upload_id=upload_id,
        part_size=part_size,
        layer_digest=session.layer_digest,
        layer_size=session.layer_size,
    )
    Machine(session, MIN_PART).start(new)


def after(session: UploadSession, event: Event) -> NextAction:
    """The next action of a replayable upload."""
    return Machine(session, MIN_PART).after(event, replayable=True)


def count_parts(session: UploadSession, assumed_part_size: int = 1) -> int:
    return Machine(session, MIN_PART).count_parts(assumed_part_size)


def ends_with_small_part(session: UploadSession, min_part: int = MIN_PART) -> bool:
    return Machine(session, min_part).ends_with_small_part


def make_session(*, started_here: bool = True, **fields: Any) -> UploadSession:
    """A session of which ECR has bytes 0 to 99, started by this call or resumed."""
    defaults: dict[str, Any] = {
        "repository_name": "team/app",
        "upload_id": "u-1",
        "part_size": 100,
        "layer_size": LAYER_SIZE,
    }
    session = UploadSession(**defaults | fields)
    if not started_here:
        session.last_byte_received = 99
        return session
    start(session, session.upload_id, session.part_size)
    receive(session, Part(0, 99), 99, min_part=MIN_PART)
    return session


def make_session_of_bytes(layer_size: int) -> UploadSession:
    """A session in parts of one byte, of which nothing was sent."""
    return UploadSession(repository_name="r", upload_id="u", part_size=1, layer_size=layer_size)


# Positions and actions

# The last byte that ECR reports after bytes 100 to 199 were sent, and the action that follows for
# a replayable source, for a stream and for a resumed session.
ACTIONS = [
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
    (1_000, NextAction.FAIL, NextAction.FAIL, NextAction.CHECK_LOST),
    (-2, NextAction.FAIL, NextAction.FAIL, NextAction.CHECK_LOST),
]
MOVES = {
    NextAction.CONTINUE,
    NextAction.CONTINUE_INSIDE,
    NextAction.REWIND,
    NextAction.SKIP_FORWARD,
}


@pytest.mark.parametrize(("last_byte", "replayable", "stream", "resumed"), ACTIONS)
def test_action_depends_on_last_byte_and_kind_of_upload(
    last_byte: int, replayable: NextAction, stream: NextAction, resumed: NextAction
) -> None:
    for session, is_replayable, expected in (
        (make_session(), True, replayable),
        (make_session(), False, stream),
        (make_session(started_here=False), True, resumed),
    ):
        action = receive(session, PART, last_byte, min_part=MIN_PART, replayable=is_replayable)

        assert action is expected
        assert session.last_byte_received == (last_byte if action in MOVES else 99)


def test_every_event_has_transitions() -> None:
    assert set(TRANSITIONS) == set(Event)


def test_part_size_below_minimum_lowers_minimum() -> None:
    """Test servers may answer a part size below ECR's minimum."""
    session = make_session(part_size=10)

    assert receive(session, PART, 109, min_part=MIN_PART) is NextAction.CONTINUE_INSIDE


def test_no_byte_is_outside_layer_of_unknown_size() -> None:
    assert (
        position(PART, 10**15, sent_up_to=-1, layer_size=None, min_part=1) is Event.PAST_LAST_BYTE
    )


def test_resuming_own_session_allows_skipping_forward() -> None:
    session = make_session()
    assert receive(session, PART, 300) is NextAction.FAIL
    Machine(session, MIN_PART).resume(100)
    assert receive(session, PART, 300) is NextAction.SKIP_FORWARD


def test_rejects_impossible_part_and_changes_nothing() -> None:
    session = make_session()
    before = session.to_json()
    for part in (Part(0, 99), Part(101, 200)):
        with pytest.raises(ValueError, match="Part"):
            receive(session, part, 150)
    for upload_id, part_size in (("", 1), ("u", 0)):
        with pytest.raises(ValueError, match=r"upload_id|part_size"):
            start(session, upload_id, part_size)
    assert session.to_json() == before


def test_knows_whether_last_part_is_below_minimum() -> None:
    session = make_session()
    assert not ends_with_small_part(session)

    receive(session, Part(100, 138), 138, min_part=MIN_PART)
    assert ends_with_small_part(session)
    assert not ends_with_small_part(session, 39)

    receive(session, Part(139, 200), 99, min_part=MIN_PART)
    assert not ends_with_small_part(session)

    receive(session, Part(100, 199), 110, min_part=MIN_PART, replayable=False)
    assert ends_with_small_part(session)

    start(session, "u-2", 100)
    assert not ends_with_small_part(session)

    receive(session, Part(0, 99), 0, min_part=MIN_PART, replayable=False)
    assert ends_with_small_part(session, 2)
    assert not ends_with_small_part(session, 1)


# Bounds


@given(st.lists(st.tuples(st.integers(-3, 130), st.booleans()), max_size=60))
def test_any_answers_are_bounded_and_stay_inside_layer(answers: list[tuple[int, bool]]) -> None:
    """After 5 answers in a row without progress, or 5 rewinds, the session gives up."""
    session = UploadSession(repository_name="r", upload_id="u", part_size=10, layer_size=100)
    furthest_byte, stalls, rewinds = -1, 0, 0
    for last_byte, shared in answers:
        if shared:
            Machine(session, 4).mark_shared()
        if session.next_byte == 100:
            return
        part = Part(session.next_byte, min(session.next_byte + 9, 99))
        before = session.last_byte_received
        action = receive(session, part, last_byte, min_part=4)
        assert -1 <= session.last_byte_received < 100
        if action in (NextAction.CHECK_LOST, NextAction.FAIL):
            return  # the upload ends
        if session.last_byte_received > furthest_byte:
            furthest_byte, stalls = session.last_byte_received, 0
        elif action is not NextAction.CONTINUE:
            stalls += 1
        rewinds += -1 <= last_byte < before
        assert (action is Event.NO_PROGRESS) == (stalls > 5 or rewinds > 5)
        if action is Event.NO_PROGRESS:
            assert session.last_byte_received == before


def test_gives_up_at_sixth_answer_without_progress() -> None:
    session = make_session()
    actions = [receive(session, PART, 99) for _ in range(6)]

    assert actions == [NextAction.SEND_AGAIN] * 5 + [Event.NO_PROGRESS]


def test_new_upload_resets_bounds() -> None:
    session = make_session()
    for _ in range(6):
        receive(session, PART, 99)

    start(session, "u-2", 100)
    actions = [receive(session, Part(0, 99), -1) for _ in range(5)]
    assert actions == [NextAction.SEND_AGAIN] * 5
    receive(session, Part(0, 0), 0)
    actions = [receive(session, Part(1, 99), 0) for _ in range(6)]
    assert actions == [NextAction.SEND_AGAIN] * 5 + [Event.NO_PROGRESS]

    start(session, "u-3", 100)
    actions = [receive(session, Part(0, 99), -1) for _ in range(6)]
    assert actions == [NextAction.SEND_AGAIN] * 5 + [Event.NO_PROGRESS]


def test_accepted_parts_after_rewind_are_not_stalls() -> None:
    session = make_session_of_bytes(100)
    for byte in range(50):
        receive(session, Part(byte, byte), byte)
    receive(session, Part(50, 50), -1)
    for byte in range(100):
        assert receive(session, Part(byte, byte), byte) is NextAction.CONTINUE


def test_gives_up_at_sixth_rewind_despite_progress() -> None:
    """Otherwise a service could have the upload sent again and again."""
    session = make_session_of_bytes(100)
    for rewinds in range(6):
        for byte in range(rewinds + 1):
            receive(session, Part(byte, byte), byte)
        action = receive(session, Part(rewinds + 1, rewinds + 1), -1)
        assert action is (NextAction.REWIND if rewinds < 5 else Event.NO_PROGRESS)
        assert after(session, Event.PARTS_REJECTED) is NextAction.CHECK_LOST
    assert session.next_byte == 6


def test_only_bytes_past_furthest_one_are_progress() -> None:
    """After a rewind, bytes that were confirmed before do not reset the count of stalls."""
    session = make_session()
    assert after(session, Event.PARTS_REJECTED) is NextAction.FAIL
    assert receive(session, PART, -1) is NextAction.REWIND
    assert receive(session, Part(0, 99), 99) is NextAction.CONTINUE
    actions = [receive(session, PART, 99) for _ in range(5)]
    assert actions == [NextAction.SEND_AGAIN] * 4 + [Event.NO_PROGRESS]
    start(session, "u-2", 100)
    assert after(session, Event.PARTS_REJECTED) is NextAction.FAIL


# JSON and copies


def session_json(*, without: str = "", **members: object) -> str:
    """The JSON of a session, with ``members`` changed and the member ``without`` left out."""
    document = json.loads(make_session().to_json()) | members
    document.pop(without, None)
    return json.dumps(document)


def test_json_uses_names_of_the_api() -> None:
    session = make_session(registry_id="012345678910", layer_digest="sha256:" + 64 * "0")

    document = json.loads(session.to_json())
    assert document == {
        "version": 1,
        "repositoryName": "team/app",
        "registryId": "012345678910",
        "uploadId": "u-1",
        "partSize": 100,
        "lastByteReceived": 99,
        "layerDigest": "sha256:" + 64 * "0",
        "layerSize": 1_000,
        "partsReceived": 1,
        "lastPartSize": 100,
    }
    assert UploadSession.from_json(session.to_json()) == session
    assert UploadSession.from_json(session.to_json().encode()) == session


def test_reads_json_of_earlier_version_without_parts() -> None:
    document = json.loads(make_session().to_json())
    del document["partsReceived"], document["lastPartSize"]

    session = UploadSession.from_json(json.dumps(document))

    assert session == make_session()
    assert not ends_with_small_part(session, 10**6)
    Machine(session, MIN_PART).resume(30)
    assert json.loads(session.to_json())["partsReceived"] == 4


def test_json_keeps_that_last_part_was_below_minimum() -> None:
    session = make_session()
    receive(session, Part(100, 138), 138, min_part=MIN_PART)
    assert ends_with_small_part(UploadSession.from_json(session.to_json()))


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(-1, 130)), max_size=40))
def test_count_of_parts_is_possible_and_survives_json(answers: list[tuple[int, int]]) -> None:
    """Whatever ECR answers, the bytes it has can consist of that many parts."""
    session = UploadSession(repository_name="r", upload_id="u", part_size=10, layer_size=130)
    Machine(session, 4).mark_shared()
    for size, last_byte in answers:
        if session.next_byte == 130:
            break
        part = Part(session.next_byte, min(session.next_byte + size - 1, 129))
        receive(session, part, last_byte)
        loaded = UploadSession.from_json(session.to_json())
        assert count_parts(loaded) == count_parts(session)
        assert min(1, session.next_byte) <= count_parts(session) <= session.next_byte


def test_copy_counts_as_resumed() -> None:
    """The original may have continued the upload, so ECR may have more than a copy knows."""
    session = make_session()
    for session_copy in (
        pickle.loads(pickle.dumps(session)),
        copy.copy(session),
        UploadSession.from_json(session.to_json()),
    ):
        assert session_copy == session
        assert receive(session_copy, PART, 300) is NextAction.SKIP_FORWARD
    assert receive(session, PART, 300) is NextAction.FAIL


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "not the JSON", id="empty"),
        pytest.param("{", "not the JSON", id="malformed"),
        pytest.param("[]", "not the JSON", id="array"),
        pytest.param("7", "not the JSON", id="number"),
        pytest.param("{}", "not the JSON", id="empty object"),
        pytest.param("[" * 100_000, "not the JSON", id="deeply nested"),
        pytest.param(b"\xff\xfe", "not the JSON", id="not UTF-8"),
        pytest.param(session_json(without="version"), "not the JSON", id="no version"),
        pytest.param(session_json(without="uploadId"), "has no 'uploadId'", id="no uploadId"),
        pytest.param(session_json(without="layerSize"), "has no 'layerSize'", id="no layerSize"),
        pytest.param(session_json(version=2), "has version 2", id="version 2"),
        pytest.param(session_json(version=True), "has version True", id="version true"),
        pytest.param(session_json(version=1.0), r"has version 1\.0", id="version 1.0"),
        pytest.param(session_json(partSize="100"), "damaged: part_size", id="partSize a string"),
        pytest.param(session_json(lastByteReceived=-2), "last_byte_received", id="last byte -2"),
        pytest.param(session_json(lastByteReceived=1000), "last_byte_received", id="past the end"),
        pytest.param(session_json(uploadId=""), "upload_id", id="uploadId empty"),
        pytest.param(session_json(uploadId=None), "damaged: upload_id", id="uploadId null"),
        pytest.param(session_json(uploadId="u\x1b[2J"), "upload_id", id="uploadId with escape"),
        pytest.param(session_json(partsReceived=0), "partsReceived", id="partsReceived 0"),
        pytest.param(session_json(partsReceived=101), "partsReceived", id="partsReceived 101"),
        pytest.param(session_json(partsReceived=True), "partsReceived", id="partsReceived true"),
        pytest.param(session_json(lastPartSize=0), "lastPartSize", id="lastPartSize 0"),
        pytest.param(session_json(lastPartSize=101), "lastPartSize", id="lastPartSize 101"),
        pytest.param(session_json(layerSize=2**63), "layer_size", id="layerSize 2**63"),
    ],
)
def test_from_json_rejects_anything_but_a_session(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UploadSession.from_json(text)


def test_error_for_json_of_later_version_names_both_versions() -> None:
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
def test_rejects_invalid_fields(field: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=field):
        make_session(started_here=False, **{field: value})


def test_part_count_of_hand_made_session_is_estimated() -> None:
    for last_byte_received, count in ((-1, 0), (0, 1), (249, 3)):
        session = UploadSession(
            repository_name="r", upload_id="u", part_size=100, last_byte_received=last_byte_received
        )
        assert count_parts(session, 100) == count


def test_shared_session_may_skip_forward() -> None:
    session = make_session()
    start(session, "u-2", 100)
    Machine(session, 4).mark_shared()
    assert receive(session, Part(0, 99), 199) is NextAction.SKIP_FORWARD
    assert count_parts(session) == 2


def test_skipped_bytes_are_not_known_to_be_of_this_source() -> None:
    session = make_session()
    start(session, "u-2", 100)
    assert after(session, Event.CONTENT_DIFFERS) is NextAction.FAIL
    Machine(session, 4).mark_shared()
    assert after(session, Event.CONTENT_DIFFERS) is NextAction.FAIL
    receive(session, Part(0, 99), 199)
    assert after(session, Event.CONTENT_DIFFERS) is NextAction.CHECK_LOST


def test_resumed_session_has_all_its_stalls_and_rewinds() -> None:
    session = make_session()
    start(session, "u-2", 100)
    for _ in range(5):
        receive(session, Part(0, 99), -1)
    Machine(session, MIN_PART).resume(100)
    for _ in range(5):
        assert receive(session, Part(0, 99), -1) is NextAction.SEND_AGAIN
    assert receive(session, Part(0, 99), -1) is Event.NO_PROGRESS


def test_rewind_reduces_count_of_parts() -> None:
    session = make_session()
    start(session, "u-2", 100)
    for first_byte in (0, 100, 200):
        receive(session, Part(first_byte, first_byte + 99), first_byte + 99)
    receive(session, Part(300, 399), 149)
    assert count_parts(session) == 2


@pytest.mark.parametrize("started_here", [True, False])
@pytest.mark.parametrize("replayable", [True, False])
def test_continues_inside_next_part_that_was_sent_ahead(
    started_here: bool, replayable: bool
) -> None:
    """ECR may have stored what it got of a request that was not completed."""
    session = make_session(started_here=started_here)
    _, action = Machine(session, 20).receive(
        Part(100, 149), 169, replayable=replayable, sent_up_to=199
    )
    assert action is NextAction.CONTINUE_INSIDE
    assert session.next_byte == 170
    assert json.loads(session.to_json())["lastPartSize"] == 20


def test_fragment_of_next_part_may_be_too_small() -> None:
    session = make_session()
    _, action = Machine(session, 20).receive(Part(100, 149), 168, replayable=True, sent_up_to=199)
    assert action is NextAction.CHECK_LOST


def test_rejects_bytes_past_those_that_were_sent_ahead() -> None:
    session = make_session()
    _, action = Machine(session, 20).receive(Part(100, 149), 200, replayable=True, sent_up_to=199)
    assert action is NextAction.FAIL
    assert session.next_byte == 100
