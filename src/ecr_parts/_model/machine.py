"""The state machine of an upload: what it does next after each answer of ECR, without I/O."""

# How an upload follows ECR
#
# ECR has no call that returns the state of an upload, and it refuses a part that is sent twice. But
# its answer to each part contains the last byte that it has: ``lastByteReceived`` if it accepts the
# part, ``lastValidByteReceived`` if it refuses it. So an upload is a loop:
#
#     call ECR -> classify the answer as an event -> look up the next action -> do it
#
# ``position`` classifies the answers to parts, ``_upload/steps.py`` the failed calls, and
# ``TRANSITIONS`` is the table. ``Machine`` looks up the action, and is the only code that moves a
# session: that sets its last byte received. The code that acts uses the name of the action and
# never derives it again from byte counts.
#
# An event is one of
#
# - the last byte that ECR has after a part was sent, relative to that part (``AT_LAST_BYTE`` to
#   ``OUTSIDE``);
# - another outcome of a call (``UPLOAD_NOT_FOUND`` to ``NO_PROGRESS``);
# - an outcome of CompleteLayerUpload (``COMPLETED`` to ``CONTENT_DIFFERS``);
# - an outcome of asking whether the layer exists (``LAYER_AVAILABLE`` to ``NOT_COMPLETED``).
#
# The action also depends on the kind of upload, one column of the table each:
#
# - *replayable*: all parts were sent with this session, from a source that can be read again from
#   its first byte. The parts that ECR has are known, and every byte can be sent again.
# - *stream*: all parts were sent with this session, from a source whose first bytes can no longer
#   be read. It cannot rewind. Bytes that ECR has not confirmed are held, so it can always continue.
# - *resumed*: any other session. It was loaded from JSON, kept in a checkpoint, passed to
#   ``upload``, or interrupted. ECR may have more bytes than the session says. Always replayable.
#
# Two events choose the column differently; see ``Machine.after``.
#
# An upload that can no longer be completed is *lost*. Before a lost upload is started over, ECR is
# asked whether the layer exists (``CHECK_LOST``): someone else may have uploaded it, or the answer
# to an earlier CompleteLayerUpload may have been lost. ECR is also asked if the outcome of a
# CompleteLayerUpload is unknown (``CHECK_COMPLETED``). Such an upload is not started over.
#
# Every loop is bounded: consecutive answers without progress (``MAX_STALLS``) and rewinds of one
# upload (``MAX_REWINDS``), past which the event is ``NO_PROGRESS``; the number of times that
# ``_upload/layer.py`` starts over; and refusals on a slow uplink (``_wire/uplink.py``).

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from ecr_parts._model.parts import Part
from ecr_parts._model.session import Received, UploadSession

MAX_STALLS = 5  # consecutive answers without progress
MAX_REWINDS = 5  # of one upload, with or without progress in between


class Event(Enum):
    """What happened, as far as the next action depends on it. The values appear in messages."""

    # the last byte that ECR has after a part was sent
    AT_LAST_BYTE = "the whole part is stored"
    INSIDE = "a fragment of a part is stored, and it is large enough to be a part"
    INSIDE_TOO_SMALL = "a fragment of a part is stored, and it is too small to be a part"
    BEFORE = "no byte of the part is stored"
    FURTHER_BACK = "ECR no longer has bytes that it had confirmed"
    PAST_LAST_BYTE = "ECR has more bytes than were sent"
    OUTSIDE = "ECR reports a byte outside the layer"
    # other outcomes of a call
    UPLOAD_NOT_FOUND = "ECR does not have the upload"
    CALL_FAILED = "the call failed"
    TOO_SLOW = "the uplink is too slow for a part of this size"
    NO_PROGRESS = "ECR keeps answering without progress"
    # outcomes of CompleteLayerUpload
    COMPLETED = "ECR completed the layer"
    COMPLETE_IN_DOUBT = "ECR may have completed the layer"
    PARTS_REJECTED = "a part is missing or too small"
    CONTENT_DIFFERS = "the bytes ECR received do not match the digest"
    # whether the layer exists
    LAYER_AVAILABLE = "the layer exists"
    LAYER_MISSING = "the layer does not exist, and its upload is lost"
    NOT_COMPLETED = "the layer does not exist, so it was not completed"


class NextAction(Enum):
    """What the upload does next. The values appear in messages.

    For the actions that move the session, the byte is appended: "continuing at byte 8". ``SEND``
    and ``COMPLETE`` follow no event: the code that acts goes from one to the other.
    """

    SEND = "sending the parts that ECR does not have"
    CONTINUE = "continuing"
    CONTINUE_INSIDE = "continuing after the fragment"
    SEND_AGAIN = "sending the part again"
    REWIND = "going back: continuing"
    CUT_AGAIN = "cutting smaller parts"
    SKIP_FORWARD = "skipping the bytes that ECR has, which the digest will verify: continuing"
    COMPLETE = "completing the layer"
    CHECK_COMPLETED = "checking whether the layer was completed"
    CHECK_LOST = "this upload can no longer be completed"
    START_OVER = "starting over with a new upload"
    FINISH = "finishing the upload"
    FAIL = "giving up"


class _Row(NamedTuple):
    replayable: NextAction
    stream: NextAction
    resumed: NextAction
    """Unless ``Received.exclusive``."""


_A = NextAction
TRANSITIONS: dict[Event, _Row] = {
    #                           replayable           stream               resumed
    # the last byte that ECR has after a part
    Event.AT_LAST_BYTE: _Row(_A.CONTINUE, _A.CONTINUE, _A.CONTINUE),
    Event.INSIDE: _Row(_A.CONTINUE_INSIDE, _A.CONTINUE_INSIDE, _A.CONTINUE_INSIDE),
    # (a stream cannot start over, so CompleteLayerUpload decides)
    Event.INSIDE_TOO_SMALL: _Row(_A.CHECK_LOST, _A.CONTINUE_INSIDE, _A.CHECK_LOST),
    Event.BEFORE: _Row(_A.SEND_AGAIN, _A.SEND_AGAIN, _A.SEND_AGAIN),
    Event.FURTHER_BACK: _Row(_A.REWIND, _A.CHECK_LOST, _A.REWIND),
    Event.PAST_LAST_BYTE: _Row(_A.FAIL, _A.FAIL, _A.SKIP_FORWARD),
    # (a resumed session may have the ID of an upload of someone else's longer layer)
    Event.OUTSIDE: _Row(_A.FAIL, _A.FAIL, _A.CHECK_LOST),
    # other outcomes of a call
    Event.UPLOAD_NOT_FOUND: _Row(_A.CHECK_LOST, _A.CHECK_LOST, _A.CHECK_LOST),
    Event.CALL_FAILED: _Row(_A.FAIL, _A.FAIL, _A.FAIL),
    Event.TOO_SLOW: _Row(_A.CUT_AGAIN, _A.CUT_AGAIN, _A.CUT_AGAIN),
    Event.NO_PROGRESS: _Row(_A.FAIL, _A.FAIL, _A.FAIL),
    # outcomes of CompleteLayerUpload
    Event.COMPLETED: _Row(_A.FINISH, _A.FINISH, _A.FINISH),
    Event.COMPLETE_IN_DOUBT: _Row(_A.CHECK_COMPLETED, _A.CHECK_COMPLETED, _A.CHECK_COMPLETED),
    Event.PARTS_REJECTED: _Row(_A.FAIL, _A.FAIL, _A.CHECK_LOST),
    Event.CONTENT_DIFFERS: _Row(_A.FAIL, _A.FAIL, _A.CHECK_LOST),
    # whether the layer exists
    Event.LAYER_AVAILABLE: _Row(_A.FINISH, _A.FINISH, _A.FINISH),
    Event.LAYER_MISSING: _Row(_A.START_OVER, _A.FAIL, _A.START_OVER),
    Event.NOT_COMPLETED: _Row(_A.FAIL, _A.FAIL, _A.FAIL),
}  # fmt: skip
MOVES = frozenset({_A.CONTINUE, _A.CONTINUE_INSIDE, _A.REWIND, _A.SKIP_FORWARD})
"""The actions after which the session is at the byte that ECR reported."""
DETOURS = (MOVES - {_A.CONTINUE}) | {_A.SEND_AGAIN}
"""The actions that are stalls if ECR has no new byte."""
PLANS_ANEW = DETOURS | {_A.SEND, _A.CUT_AGAIN}
"""The actions after which the parts are planned anew."""


def position(
    part: Part, last_byte: int, *, sent_up_to: int, layer_size: int | None, min_part: int
) -> Event:
    """Classify ECR's answer to ``part``: it has the layer up to ``last_byte``.

    ``last_byte`` is inclusive, -1 if ECR has nothing. ``sent_up_to`` is ``Received.sent_up_to``.
    ``min_part`` is in bytes.
    """
    if last_byte < -1 or (layer_size is not None and last_byte >= layer_size):
        return Event.OUTSIDE
    if last_byte > max(part.last_byte, sent_up_to):
        return Event.PAST_LAST_BYTE
    if last_byte == part.last_byte:
        return Event.AT_LAST_BYTE
    if last_byte == part.first_byte - 1:
        return Event.BEFORE
    if last_byte < part.first_byte:
        return Event.FURTHER_BACK
    # The fragment is one of this part, or of the next one, which was sent ahead.
    first_byte = part.first_byte if last_byte < part.last_byte else part.last_byte + 1
    large_enough = last_byte - first_byte + 1 >= min_part or last_byte + 1 == layer_size
    return Event.INSIDE if large_enough else Event.INSIDE_TOO_SMALL


class Machine:
    """Decides what an upload does next, and moves its session. Nothing else moves a session.

    It has no state besides the session, so there may be several for one. ``min_part`` is ECR's
    minimum in bytes. If the session's parts are smaller, as with a test server, their size is the
    minimum.
    """

    def __init__(self, session: UploadSession, min_part: int) -> None:
        self.session = session
        self._min_part = min_part

    @property
    def _received(self) -> Received:
        return self.session._received

    @property
    def min_part(self) -> int:
        """The minimum size of all parts but the last, in bytes."""
        return min(self._min_part, self.session.part_size)

    def start(self, new: UploadSession) -> None:
        """Switch to a new upload, to which nothing has been sent."""
        # In one step, so that a signal handler sees the old upload or the new one.
        vars(self.session).update(vars(new))
        self._received.exclusive = self._received.content_verified = True

    def resume(self, assumed_part_size: int) -> None:
        """Continue the upload in a new call. An unknown number of parts is estimated."""
        self.count_parts(assumed_part_size)
        self.mark_shared()
        received = self._received
        received.content_verified = False  # the caller may have passed another content's digest
        received.stalls = received.rewinds = 0

    def mark_shared(self) -> None:
        """From now on, ECR may have parts that the session does not know."""
        self._received.exclusive = False

    def receive(
        self, part: Part, last_byte: int, *, replayable: bool, sent_up_to: int = -1
    ) -> tuple[Event, NextAction]:
        """Process ECR's answer to ``part``: it has the layer up to ``last_byte``.

        Moves the session there if the upload continues from there. ``sent_up_to`` is the last byte
        that was sent ahead, if ``part`` was refused: ECR may have stored bytes of it. Raises
        ``ValueError`` for a part that does not start at ``next_byte``.
        """
        session, received = self.session, self._received
        if part.first_byte != session.next_byte:
            raise ValueError(
                f"{part} does not start at next_byte ({session.next_byte}), because another call "
                "used the session at the same time. Give each call its own copy: "
                "UploadSession.from_json(session.to_json())"
            )
        received.sent_up_to = max(received.sent_up_to, sent_up_to)
        event = position(
            part,
            last_byte,
            sent_up_to=received.sent_up_to,
            layer_size=session.layer_size,
            min_part=self.min_part,
        )
        action = self.after(event, replayable=replayable)
        if action in MOVES and last_byte > received.furthest_byte:
            received.furthest_byte = last_byte
            received.stalls = 0
        elif action in DETOURS:
            received.stalls += 1
        if action is NextAction.REWIND:
            received.rewinds += 1
        if received.stalls > MAX_STALLS or received.rewinds > MAX_REWINDS:
            return Event.NO_PROGRESS, self.after(Event.NO_PROGRESS, replayable=replayable)
        if action in MOVES:
            self._move(part, last_byte)
        return event, action

    def note_sent(self, last_byte: int) -> None:
        """Note that ECR may have stored the layer up to ``last_byte``, before it was cut again.

        It is harmless if less was sent.
        """
        self._received.sent_up_to = max(self._received.sent_up_to, last_byte)

    def _move(self, part: Part, last_byte: int) -> None:
        """Move to ``last_byte``, and update what is known about the parts that ECR has."""
        session, received = self.session, self._received
        parts = self.count_parts(session.part_size)
        if last_byte < part.first_byte:
            # An estimate: parts of which only a fragment was stored are smaller.
            received.parts = min(parts, -(-(last_byte + 1) // session.part_size))
            received.last_part_size = None
        elif last_byte <= part.last_byte:
            received.parts = parts + 1
            received.last_part_size = last_byte - part.first_byte + 1
        elif last_byte <= received.sent_up_to:
            more = -(-(last_byte - part.last_byte) // session.part_size)
            received.parts = parts + 1 + more
            received.last_part_size = last_byte - part.last_byte
        else:  # another process sent the bytes past the part; assume parts of the same size
            received.content_verified = False
            more = -(-(last_byte - part.last_byte) // part.size)
            received.parts = parts + 1 + more
            received.last_part_size = None
        session.last_byte_received = last_byte

    def after(self, event: Event, *, replayable: bool) -> NextAction:
        """Look up the next action after ``event``."""
        received, row = self._received, TRANSITIONS[event]
        if event is Event.CONTENT_DIFFERS:
            resumed = not received.content_verified
        elif event is Event.PARTS_REJECTED and received.rewinds:
            resumed = True  # ECR may have other parts than those sent last
        else:
            resumed = not received.exclusive
        if resumed:
            return row.resumed
        return row.replayable if replayable else row.stream

    def count_parts(self, assumed_part_size: int) -> int:
        """The number of parts ECR has. If it is unknown, it is estimated from a part size in bytes,
        and known from then on."""
        received = self._received
        if received.parts is None:
            received.parts = -(-self.session.next_byte // assumed_part_size)
        return received.parts

    @property
    def ends_with_small_part(self) -> bool:
        """Whether the last part is below ECR's minimum, so that no part can follow.

        ECR rejects such a layer at completion: "All layer parts except the last part should be at
        least 5MB".
        """
        size = self._received.last_part_size
        return size is not None and size < self.min_part
