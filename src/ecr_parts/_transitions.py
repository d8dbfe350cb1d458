"""What an upload does next: the table of its state machine, without I/O."""

# How an upload follows ECR
#
# ECR has no call that returns the state of an upload, and it refuses a part that is sent twice. But
# its answer to each part contains the last byte that it has: ``lastByteReceived`` if it accepts the
# part, ``lastValidByteReceived`` if it refuses it. So an upload is a loop:
#
#     call ECR -> classify the answer as an event -> look up the next action -> do it
#
# This module classifies the answers to parts (``position``) and holds the table, ``TRANSITIONS``;
# ``_calls`` classifies failed calls, and ``_session`` keeps the state. The code that acts uses the
# name of the action and never derives it again from byte counts.
#
# An event is one of
#
# - a ``Position``: the last byte that ECR has after a part was sent, relative to that part;
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
# Two events choose the column differently; see ``UploadSession._counts_as_resumed``.
#
# An upload that can no longer be completed is *lost*. Before a lost upload is started over, ECR is
# asked whether the layer exists (``CHECK_LOST``): someone else may have uploaded it, or the answer
# to an earlier CompleteLayerUpload may have been lost. ECR is also asked if the outcome of a
# CompleteLayerUpload is unknown (``CHECK_COMPLETED``). Such an upload is not started over.
#
# Every loop is bounded: consecutive answers without progress (``MAX_STALLS``) and rewinds of one
# upload (``MAX_REWINDS``), past which the event is ``NO_PROGRESS``, and the number of times that
# ``_layer_upload`` starts over.

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from ecr_parts._chunker import Part

MAX_STALLS = 5  # consecutive answers without progress
MAX_REWINDS = 5  # of one upload, with or without progress in between


class Position(Enum):
    """The last byte that ECR has after a part was sent, relative to that part."""

    AT_LAST_BYTE = "the whole part is stored"
    INSIDE = "a fragment of a part is stored, and it is large enough to be a part"
    INSIDE_TOO_SMALL = "a fragment of a part is stored, and it is too small to be a part"
    BEFORE = "no byte of the part is stored"
    FURTHER_BACK = "ECR no longer has bytes that it had confirmed"
    PAST_LAST_BYTE = "ECR has more bytes than were sent"
    OUTSIDE = "ECR reports a byte outside the layer"


class Event(Enum):
    """The outcomes of calls that are not a ``Position``."""

    UPLOAD_NOT_FOUND = "ECR does not have the upload"
    CALL_FAILED = "the call failed"
    NO_PROGRESS = "ECR keeps answering without progress"
    COMPLETED = "ECR completed the layer"
    COMPLETE_IN_DOUBT = "ECR may have completed the layer"
    PARTS_REJECTED = "a part is missing or too small"
    CONTENT_DIFFERS = "the bytes ECR received do not match the digest"
    LAYER_AVAILABLE = "the layer exists"
    LAYER_MISSING = "the layer does not exist, and its upload is lost"
    NOT_COMPLETED = "the layer does not exist, so it was not completed"


class NextAction(Enum):
    """What the upload does next. The values appear in log messages and errors."""

    CONTINUE = "continuing after the part"
    CONTINUE_INSIDE = "continuing after the fragment"
    SEND_AGAIN = "sending the part again"
    REWIND = "going back to the last byte that ECR has"
    SKIP_FORWARD = "skipping the bytes that ECR has; the digest will verify them"
    CHECK_COMPLETED = "checking whether the layer was completed"
    CHECK_LOST = "this upload can no longer be completed"
    START_OVER = "starting over with a new upload"
    FINISH = "finishing the upload"
    FAIL = "giving up"


class _Row(NamedTuple):
    replayable: NextAction
    stream: NextAction
    resumed: NextAction


_A = NextAction
TRANSITIONS: dict[Position | Event, _Row] = {
    #                           replayable           stream               resumed
    # the last byte that ECR has after a part
    Position.AT_LAST_BYTE: _Row(_A.CONTINUE, _A.CONTINUE, _A.CONTINUE),
    Position.INSIDE: _Row(_A.CONTINUE_INSIDE, _A.CONTINUE_INSIDE, _A.CONTINUE_INSIDE),
    # (a stream cannot start over, so CompleteLayerUpload decides)
    Position.INSIDE_TOO_SMALL: _Row(_A.CHECK_LOST, _A.CONTINUE_INSIDE, _A.CHECK_LOST),
    Position.BEFORE: _Row(_A.SEND_AGAIN, _A.SEND_AGAIN, _A.SEND_AGAIN),
    Position.FURTHER_BACK: _Row(_A.REWIND, _A.CHECK_LOST, _A.REWIND),
    Position.PAST_LAST_BYTE: _Row(_A.FAIL, _A.FAIL, _A.SKIP_FORWARD),
    Position.OUTSIDE: _Row(_A.FAIL, _A.FAIL, _A.FAIL),
    # other outcomes of a call
    Event.UPLOAD_NOT_FOUND: _Row(_A.CHECK_LOST, _A.CHECK_LOST, _A.CHECK_LOST),
    Event.CALL_FAILED: _Row(_A.FAIL, _A.FAIL, _A.FAIL),
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
DETOURS = MOVES - {_A.CONTINUE} | {_A.SEND_AGAIN}
"""The actions after which the parts are planned anew. They are stalls if ECR has no new byte."""


def position(
    part: Part, last_byte: int, *, sent_up_to: int, layer_size: int | None, min_part: int
) -> Position:
    """Classify ECR's answer to ``part``: it has the layer up to ``last_byte``.

    ``last_byte`` is inclusive, -1 if ECR has nothing. ``sent_up_to`` is the last byte of the next
    part if a request with it was begun. ``min_part`` is in bytes.
    """
    if last_byte < -1 or (layer_size is not None and last_byte >= layer_size):
        return Position.OUTSIDE
    if last_byte > max(part.last_byte, sent_up_to):
        return Position.PAST_LAST_BYTE
    if last_byte == part.last_byte:
        return Position.AT_LAST_BYTE
    if last_byte == part.first_byte - 1:
        return Position.BEFORE
    if last_byte < part.first_byte:
        return Position.FURTHER_BACK
    first_byte = part.first_byte if last_byte < part.last_byte else part.last_byte + 1
    large_enough = last_byte - first_byte + 1 >= min_part or last_byte + 1 == layer_size
    return Position.INSIDE if large_enough else Position.INSIDE_TOO_SMALL
