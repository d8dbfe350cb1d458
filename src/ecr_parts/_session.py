"""The state of an upload, and what to do next: a state machine without I/O."""

# How an upload follows ECR
#
# ECR has no call that returns the state of an upload, and it refuses a part that is sent twice. But
# its answer to each part contains the last byte that it has: ``lastByteReceived`` if it accepts the
# part, ``lastValidByteReceived`` if it refuses it. So an upload is a loop:
#
#     call ECR -> classify the answer as an event -> look up the next action -> do it
#
# This module classifies the answers to parts and holds the table, ``TRANSITIONS``; ``_calls``
# classifies failed calls. The code that acts uses the name of the action and never derives it again
# from byte counts.
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
# Two events choose the column differently; see ``_counts_as_resumed``.
#
# An upload that can no longer be completed is *lost*. Before a lost upload is started over, ECR is
# asked whether the layer exists (``CHECK_LOST``): someone else may have uploaded it, or the answer
# to an earlier CompleteLayerUpload may have been lost. ECR is also asked if the outcome of a
# CompleteLayerUpload is unknown (``CHECK_COMPLETED``). Such an upload is not started over.
#
# Every loop is bounded: consecutive answers without progress (``_MAX_STALLS``) and rewinds of one
# upload (``_MAX_REWINDS``), past which the event is ``NO_PROGRESS``, and the number of times that
# ``_layer_upload`` starts over.

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from typing_extensions import Self

from ecr_parts._chunker import Part
from ecr_parts._notebook import parts_bar
from ecr_parts._validation import check_digest, check_int, check_name, short_repr

_JSON_VERSION = 1
_MAX_STALLS = 5  # consecutive answers without progress
_MAX_REWINDS = 5  # of one upload, with or without progress in between


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


_JSON_NAMES = {
    "repositoryName": "repository_name",
    "registryId": "registry_id",
    "uploadId": "upload_id",
    "partSize": "part_size",
    "lastByteReceived": "last_byte_received",
    "layerDigest": "layer_digest",
    "layerSize": "layer_size",
}


@dataclass(kw_only=True)
class UploadSession:
    """The state of one upload, above all its upload ID and the last byte ECR has received.

    ``LayerUploader.initiate`` creates it, and the uploader updates it in place. A session does no
    I/O: store it anywhere with ``to_json`` and load it with ``from_json``. Raises ``TypeError``
    and ``ValueError`` for invalid values.
    """

    __module__ = "ecr_parts"

    repository_name: str
    registry_id: str | None = None
    """The AWS account ID of the registry; ``None`` for the default registry of the client."""
    upload_id: str
    part_size: int
    """The planned size of the parts, in bytes."""
    last_byte_received: int = -1
    """The last byte of the layer that ECR has, inclusive; -1 if it has none."""
    layer_digest: str | None = None
    """``"sha256:…"``; ``None`` if unknown."""
    layer_size: int | None = None
    """Bytes; ``None`` if unknown."""

    _exclusive: bool = field(default=False, init=False, repr=False, compare=False)
    """Whether it is certain that all parts of the upload were sent with this session."""
    _content_verified: bool = field(default=False, init=False, repr=False, compare=False)
    """Whether it is certain that all bytes of the upload came from the source being uploaded."""
    _parts_received: int | None = field(default=None, init=False, repr=False, compare=False)
    """The number of parts ECR has; ``None`` if unknown."""
    _last_part_size: int | None = field(default=None, init=False, repr=False, compare=False)
    """Bytes; ``None`` if unknown."""
    _furthest_byte: int = field(default=-1, init=False, repr=False, compare=False)
    """The highest byte that ECR has had in this upload. Only a higher one is progress."""
    _sent_up_to: int = field(default=-1, init=False, repr=False, compare=False)
    """The highest byte in any request of this upload, also in requests that were withdrawn."""
    _stalls: int = field(default=0, init=False, repr=False, compare=False)
    _rewinds: int = field(default=0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._validate()
        self._furthest_byte = self.last_byte_received
        if self.last_byte_received < 0:
            self._parts_received = 0

    def _validate(self) -> None:
        """Raise ``TypeError`` or ``ValueError`` for invalid values."""
        check_name("repository_name", self.repository_name)
        check_name("upload_id", self.upload_id)
        if self.registry_id is not None:
            check_name("registry_id", self.registry_id)
        if self.layer_digest is not None:
            check_digest("layer_digest", self.layer_digest)
        check_int("part_size", self.part_size)
        check_int("last_byte_received", self.last_byte_received, minimum=-1)
        if self.layer_size is not None:
            check_int("layer_size", self.layer_size)
            if self.last_byte_received >= self.layer_size:
                raise ValueError(
                    f"last_byte_received must be less than layer_size ({self.layer_size:,}), not "
                    f"{self.last_byte_received:,}"
                )

    @property
    def next_byte(self) -> int:
        """The first byte that ECR does not have. The next part starts there."""
        return self.last_byte_received + 1

    def _start(self, upload_id: str, part_size: int) -> None:
        """Switch to a new upload, to which nothing has been sent."""
        check_name("upload_id", upload_id)
        check_int("part_size", part_size)
        self.upload_id = upload_id
        self.part_size = part_size
        self.last_byte_received = -1
        self._parts_received = 0
        self._last_part_size = None
        self._furthest_byte = -1
        self._sent_up_to = -1
        self._stalls = 0
        self._rewinds = 0
        self._exclusive = True
        self._content_verified = True

    def _share(self) -> None:
        """From now on, ECR may have parts that this session does not know."""
        self._exclusive = False

    def _resume(self, assumed_part_size: int) -> None:
        """Continue the upload in a new call. An unknown number of parts is estimated."""
        self._count_parts(assumed_part_size)
        self._exclusive = False
        self._content_verified = False  # the caller may have passed another content's digest
        self._stalls = 0
        self._rewinds = 0

    def _receive(
        self,
        part: Part,
        last_byte: int,
        *,
        min_part: int,
        replayable: bool,
        sent_up_to: int = -1,
    ) -> tuple[Position | Event, NextAction]:
        """Process ECR's answer to ``part``: it has the layer up to ``last_byte``.

        Moves there if the upload continues from there. ``sent_up_to`` is the last byte of the next
        part if a request with it was begun. ``min_part`` is ECR's minimum in bytes. If
        the session's parts are smaller, as with a test server, their size is the minimum. Raises
        ``ValueError`` for a part that does not start at ``next_byte`` or that ends past the layer.
        """
        if part.first_byte != self.next_byte:
            raise ValueError(
                f"{part} does not start at next_byte ({self.next_byte}), because another call "
                "used the session at the same time. Give each call its own copy: "
                "UploadSession.from_json(session.to_json())"
            )
        if self.layer_size is not None and part.last_byte >= self.layer_size:
            raise ValueError(
                f"{part} ends past the layer's {self.layer_size:,} bytes: pass fewer bytes"
            )
        self._sent_up_to = max(self._sent_up_to, sent_up_to)
        where = position(
            part,
            last_byte,
            sent_up_to=self._sent_up_to,
            layer_size=self.layer_size,
            min_part=min(min_part, self.part_size),
        )
        action = self._after(where, replayable=replayable)
        if action in MOVES and last_byte > self._furthest_byte:
            self._furthest_byte = last_byte
            self._stalls = 0
        elif action in DETOURS:
            self._stalls += 1
        if action is NextAction.REWIND:
            self._rewinds += 1
        if self._stalls > _MAX_STALLS or self._rewinds > _MAX_REWINDS:
            return Event.NO_PROGRESS, self._after(Event.NO_PROGRESS, replayable=replayable)
        if action in MOVES:
            self._move(part, last_byte)
        return where, action

    def _move(self, part: Part, last_byte: int) -> None:
        """Move to ``last_byte``, and update what is known about the parts that ECR has."""
        parts = self._count_parts(self.part_size)
        if last_byte < part.first_byte:
            # An estimate: parts of which only a fragment was stored are smaller.
            self._parts_received = min(parts, -(-(last_byte + 1) // self.part_size))
            self._last_part_size = None
        elif last_byte <= part.last_byte:
            self._parts_received = parts + 1
            self._last_part_size = last_byte - part.first_byte + 1
        elif last_byte <= self._sent_up_to:
            self._parts_received = parts + 1 - (-(last_byte - part.last_byte) // self.part_size)
            self._last_part_size = last_byte - part.last_byte
        else:  # another process sent the bytes past the part; assume parts of the same size
            self._content_verified = False
            self._parts_received = parts + 1 - (-(last_byte - part.last_byte) // part.size)
            self._last_part_size = None
        self.last_byte_received = last_byte

    def _count_parts(self, part_size: int) -> int:
        """The number of parts ECR has. If it is unknown, estimate it from a part size in bytes."""
        if self._parts_received is None:
            self._parts_received = -(-self.next_byte // part_size)
        return self._parts_received

    def _after(self, event: Position | Event, *, replayable: bool) -> NextAction:
        """Look up the next action after ``event``."""
        row = TRANSITIONS[event]
        if self._counts_as_resumed(event):
            return row.resumed
        return row.replayable if replayable else row.stream

    def _counts_as_resumed(self, event: Position | Event) -> bool:
        """Whether the next action is that of a resumed upload."""
        if event is Event.CONTENT_DIFFERS:
            return not self._content_verified
        if event is Event.PARTS_REJECTED and self._rewinds:
            return True  # ECR may have other parts than those sent last
        return not self._exclusive

    def _ends_with_small_part(self, min_part: int) -> bool:
        """Whether the last part is below ECR's minimum in bytes, so that no part can follow.

        ECR rejects such a layer at completion: "All layer parts except the last part should be at
        least 5MB".
        """
        return self._last_part_size is not None and self._last_part_size < min(
            min_part, self.part_size
        )

    def to_json(self) -> str:
        """The session as one line of JSON, for ``from_json``."""
        fields = {key: getattr(self, name) for key, name in _JSON_NAMES.items()}
        fields |= {"partsReceived": self._parts_received, "lastPartSize": self._last_part_size}
        return json.dumps({"version": _JSON_VERSION, **fields})

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Load a session from the output of ``to_json``.

        Raises ``ValueError`` if the text is not a session or is from a later version.
        """
        try:
            document = json.loads(text)
            version = document["version"]
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            raise ValueError("this is not the JSON of an upload session") from error
        if version != _JSON_VERSION or not isinstance(version, int) or isinstance(version, bool):
            raise ValueError(
                f"this upload session has version {short_repr(version)}, but this release of "
                f"ecr-parts reads version {_JSON_VERSION}"
            )
        try:
            session = cls(**{name: document[key] for key, name in _JSON_NAMES.items()})
            session._load_parts(document.get("partsReceived"), document.get("lastPartSize"))
        except KeyError as error:
            raise ValueError(f"this upload session has no {error}") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"this upload session is damaged: {error}") from error
        return session

    def _load_parts(self, parts_received: int | None, last_part_size: int | None) -> None:
        """Load what the JSON contains about the parts; ``None`` means unknown."""
        if parts_received is not None:
            least = 1 if self.next_byte else 0
            check_int("partsReceived", parts_received, minimum=least, maximum=self.next_byte)
            self._parts_received = parts_received
        if last_part_size is not None:
            self._last_part_size = check_int("lastPartSize", last_part_size, maximum=self.next_byte)

    def _repr_html_(self) -> str:
        """HTML for notebooks: a bar of the parts that ECR has, and of those to be sent."""
        end = self.layer_size or self.next_byte + self.part_size
        total = f"{self.layer_size:,}" if self.layer_size else "an unknown number of"
        caption = (
            f"{self.repository_name}, upload {self.upload_id}: "
            f"ECR has {self.next_byte:,} of {total} bytes"
        )
        return parts_bar(caption, self.next_byte, end, self.part_size)

    def __reduce__(self) -> tuple[Callable[[str], Self], tuple[str]]:
        # A copy counts as resumed, because the original may continue the upload.
        return type(self).from_json, (self.to_json(),)
