"""Where an upload stands, and what to do next: a state machine without I/O."""

# Theory
#
# ECR has no call to ask where an upload stands, and it refuses a part that is sent twice. But the
# answer to each part says, by a ``lastByteReceived`` or by a refusal's ``lastValidByteReceived``,
# what ECR has. That answer is the only truth there is. So an upload is a loop:
#
#     call ECR -> name what the answer means (an event) -> look up the next action -> do it
#
# Naming and looking up is this module's part; the table is TRANSITIONS. Code that acts takes the
# action by its name, and never concludes it again from byte counts.
#
# The events are
#
# - a ``Position``: where ECR stands after a part was sent, seen from that part;
# - what else a part can come to (``UPLOAD_NOT_FOUND``, ``CALL_FAILED``);
# - what CompleteLayerUpload comes to (``COMPLETED`` to ``CONTENT_DIFFERS``);
# - what the question whether the layer is there comes to (``LAYER_AVAILABLE`` and so on).
#
# What follows from an event depends on the kind of upload, one column of the table each:
#
# - *replayable*: begun here, and the source can be read again from its first byte. Its parts are
#   known, and anything can be sent again.
# - *stream*: begun here, and bytes that ECR has confirmed are gone, so a rewind is impossible.
#   Unconfirmed bytes are held, so continuing is always possible.
# - *resumed*: from JSON, from a checkpoint, or shared by one. ECR may stand further on than the
#   session knows, and its parts may be others than those sent here. Always replayable.
#
# An upload that cannot be completed any more is *lost*. Before a lost upload is started over,
# ECR is asked whether the layer is there (``CHECK_LOST``): somebody else may have sent it, or the
# answer to an earlier Complete may have been lost. The same question, with another consequence,
# settles a Complete in doubt (``CHECK_COMPLETED``).
#
# Every loop is bounded. Answers that bring nothing new are counted in a row (``_MOST_STALLS``),
# rewinds an upload (``_MOST_REWINDS``) and start-overs a call (``MOST_RESTARTS``). Past a bound
# the event is ``NO_PROGRESS``, or the action ``FAIL``.

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from typing_extensions import Self

from ecr_parts._validation import name_or_id, shown, whole_number
from ecr_parts.chunker import Part
from ecr_parts.notebook import bar

_VERSION = 1
_MOST_STALLS = 5  # answers in a row that bring nothing
_MOST_REWINDS = 5  # of one upload, whatever is confirmed in between
MOST_RESTARTS = 3  # of one call


class Position(Enum):
    """Where ECR stands after a part was sent, seen from that part."""

    AT_LAST_BYTE = "all of the part is stored"
    INSIDE = "a fragment of the part is stored, large enough for a part"
    INSIDE_TOO_SMALL = "a fragment smaller than a part may be is stored"
    BEFORE = "nothing of the part is stored"
    FURTHER_BACK = "bytes that ECR had confirmed are gone"
    PAST_LAST_BYTE = "ECR has more than was sent"
    OUTSIDE = "no upload of this layer can stand there"


class Event(Enum):
    """What else a call can come to."""

    UPLOAD_NOT_FOUND = "ECR does not have the upload"
    CALL_FAILED = "the call failed"
    NO_PROGRESS = "ECR keeps answering without progress"
    COMPLETED = "ECR has completed the layer"
    COMPLETE_IN_DOUBT = "ECR may have completed the layer"
    PART_TOO_SMALL = "a part is missing, or too small"
    CONTENT_DIFFERS = "the bytes that ECR received do not match the digest"
    LAYER_AVAILABLE = "the layer is there"
    LAYER_MISSING = "the layer is not there, and its upload is lost"
    NOT_COMPLETED = "the layer is not there after a Complete in doubt"


class NextAction(Enum):
    """What to do next."""

    CONTINUE = "continuing after the part"
    CONTINUE_INSIDE = "continuing after the fragment"
    SEND_AGAIN = "sending the part again"
    REWIND = "going back to where ECR stands"
    SKIP_FORWARD = "skipping to where ECR stands; the digest proves those bytes at completion"
    CHECK_COMPLETED = "asking whether the layer was completed"
    CHECK_LOST = "this upload cannot be completed"
    START_OVER = "starting over with a new upload"
    FINISH = "done"
    FAIL = "giving up"


class _Row(NamedTuple):
    replayable: NextAction
    stream: NextAction
    resumed: NextAction


_A = NextAction
TRANSITIONS: dict[Position | Event, _Row] = {
    #                           replayable           stream               resumed
    # where ECR stands after a part
    Position.AT_LAST_BYTE: _Row(_A.CONTINUE, _A.CONTINUE, _A.CONTINUE),
    Position.INSIDE: _Row(_A.CONTINUE_INSIDE, _A.CONTINUE_INSIDE, _A.CONTINUE_INSIDE),
    Position.INSIDE_TOO_SMALL: _Row(_A.CHECK_LOST, _A.CONTINUE_INSIDE, _A.CHECK_LOST),
    Position.BEFORE: _Row(_A.SEND_AGAIN, _A.SEND_AGAIN, _A.SEND_AGAIN),
    Position.FURTHER_BACK: _Row(_A.REWIND, _A.CHECK_LOST, _A.REWIND),
    Position.PAST_LAST_BYTE: _Row(_A.FAIL, _A.FAIL, _A.SKIP_FORWARD),
    Position.OUTSIDE: _Row(_A.FAIL, _A.FAIL, _A.FAIL),
    # what else comes of a part, or of any call
    Event.UPLOAD_NOT_FOUND: _Row(_A.CHECK_LOST, _A.CHECK_LOST, _A.CHECK_LOST),
    Event.CALL_FAILED: _Row(_A.FAIL, _A.FAIL, _A.FAIL),
    Event.NO_PROGRESS: _Row(_A.FAIL, _A.FAIL, _A.FAIL),
    # what comes of a Complete
    Event.COMPLETED: _Row(_A.FINISH, _A.FINISH, _A.FINISH),
    Event.COMPLETE_IN_DOUBT: _Row(_A.CHECK_COMPLETED, _A.CHECK_COMPLETED, _A.CHECK_COMPLETED),
    Event.PART_TOO_SMALL: _Row(_A.FAIL, _A.FAIL, _A.CHECK_LOST),
    Event.CONTENT_DIFFERS: _Row(_A.FAIL, _A.FAIL, _A.CHECK_LOST),
    # what comes of the question whether the layer is there
    Event.LAYER_AVAILABLE: _Row(_A.FINISH, _A.FINISH, _A.FINISH),
    Event.LAYER_MISSING: _Row(_A.START_OVER, _A.FAIL, _A.START_OVER),
    Event.NOT_COMPLETED: _Row(_A.FAIL, _A.FAIL, _A.FAIL),
}  # fmt: skip
MOVES = frozenset({_A.CONTINUE, _A.CONTINUE_INSIDE, _A.REWIND, _A.SKIP_FORWARD})
"""The actions after which the session stands where ECR said that it stands."""


def position(part: Part, last_byte: int, *, layer_size: int | None, min_part: int) -> Position:
    """Where ECR stands if it has the layer up to ``last_byte`` after ``part`` was sent.

    ``last_byte`` is inclusive, -1 for nothing; ``min_part`` is in bytes.
    """
    if last_byte < -1 or (layer_size is not None and last_byte >= layer_size):
        return Position.OUTSIDE
    if last_byte > part.last_byte:
        return Position.PAST_LAST_BYTE
    if last_byte == part.last_byte:
        return Position.AT_LAST_BYTE
    if last_byte == part.first_byte - 1:
        return Position.BEFORE
    if last_byte < part.first_byte:
        return Position.FURTHER_BACK
    fragment = Part(part.first_byte, last_byte)
    return Position.INSIDE if fragment.size >= min_part else Position.INSIDE_TOO_SMALL


@dataclass(kw_only=True)
class UploadSession:
    """Where one upload stands: its upload ID and the last byte ECR has received.

    ``LayerUploader.initiate`` makes one and the uploader moves it in place. It does no I/O: keep
    it anywhere with ``to_json`` and bring it back with ``from_json``. The names in JSON are the
    API's own. Raises ``TypeError``/``ValueError`` for what no upload can have.
    """

    repository_name: str
    registry_id: str | None = None
    """The AWS account ID of the registry; ``None`` for the client's own."""
    upload_id: str
    part_size: int
    """The size (bytes) of the parts it is sent in."""
    last_byte_received: int = -1
    """The last byte of the layer that ECR has, inclusive; -1: nothing yet."""
    layer_digest: str | None = None
    layer_size: int | None = None
    """Bytes; ``None`` while unknown."""

    _begun_here: bool = field(default=False, init=False, repr=False, compare=False)
    _content_verified: bool = field(default=False, init=False, repr=False, compare=False)
    """Whether every byte sent in this upload came from the source that is being uploaded."""
    _parts_received: int | None = field(default=None, init=False, repr=False, compare=False)
    """How many parts ECR has; ``None`` in a text of an earlier version, which does not say."""
    _last_part_size: int | None = field(default=None, init=False, repr=False, compare=False)
    """Bytes; ``None`` where the last part is not known."""
    _furthest: int = field(default=-1, init=False, repr=False, compare=False)
    _stalls: int = field(default=0, init=False, repr=False, compare=False)
    _rewinds: int = field(default=0, init=False, repr=False, compare=False)
    _restarts: int = field(default=0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._validate()
        if self.last_byte_received < 0:
            self._parts_received = 0

    def _validate(self) -> None:
        """``TypeError`` and ``ValueError`` for what no upload can have."""
        name_or_id("repository_name", self.repository_name)
        name_or_id("upload_id", self.upload_id)
        for name, value in (("registry_id", self.registry_id), ("layer_digest", self.layer_digest)):
            if value is not None:
                name_or_id(name, value)
        whole_number("part_size", self.part_size)
        whole_number("last_byte_received", self.last_byte_received, at_least=-1)
        if self.layer_size is not None:
            whole_number("layer_size", self.layer_size)
            if self.last_byte_received >= self.layer_size:
                raise ValueError(
                    f"last_byte_received is {self.last_byte_received}, and the layer has only "
                    f"{self.layer_size} bytes"
                )

    @property
    def next_byte(self) -> int:
        """The first byte that ECR does not have: the next part starts there."""
        return self.last_byte_received + 1

    def _begin(self, upload_id: str, part_size: int) -> None:
        """Stand at the beginning of a new upload of the same layer."""
        name_or_id("upload_id", upload_id)
        whole_number("part_size", part_size)
        self.upload_id = upload_id
        self.part_size = part_size
        self.last_byte_received = -1
        self._parts_received = 0
        self._last_part_size = None
        self._furthest = -1
        self._stalls = 0
        self._rewinds = 0
        self._begun_here = True
        self._content_verified = True

    def _share(self) -> None:
        """From here on ECR may stand further on than this session knows."""
        self._begun_here = False

    def _resume(self, part_size: int) -> None:
        """Continue the upload in a new call, whose parts are of ``part_size`` bytes."""
        self._count_parts(part_size)
        self._begun_here = False
        self._content_verified = False  # a digest from the caller may be another content's
        self._stalls = 0
        self._rewinds = 0
        self._restarts = 0

    def _receive(
        self, part: Part, last_byte: int, *, min_part: int, replayable: bool
    ) -> tuple[Position | Event, NextAction]:
        """Take in that ECR has the layer up to ``last_byte`` after ``part`` was sent.

        Moves to ``last_byte`` where the action continues from there, and changes nothing
        otherwise. ``min_part`` is ECR's minimum (bytes); where the service itself answered a
        smaller part size (test servers do), that one counts. ``ValueError`` for a part that does
        not start at ``next_byte`` or ends past the layer.
        """
        if part.first_byte != self.next_byte:
            raise ValueError(
                f"{part} does not start at next_byte, {self.next_byte}: the session was moved by "
                "another call meanwhile. Use a copy of it, from_json(session.to_json()), in each"
            )
        if self.layer_size is not None and part.last_byte >= self.layer_size:
            raise ValueError(f"{part} ends past the layer's {self.layer_size} bytes")
        where = position(
            part, last_byte, layer_size=self.layer_size, min_part=min(min_part, self.part_size)
        )
        action = self._after(where, replayable=replayable)
        if action in MOVES and last_byte > self._furthest:
            self._furthest = last_byte
            self._stalls = 0
        elif action is not NextAction.CONTINUE:
            self._stalls += 1
        self._rewinds += action is NextAction.REWIND
        if self._stalls > _MOST_STALLS or self._rewinds > _MOST_REWINDS:
            return Event.NO_PROGRESS, self._after(Event.NO_PROGRESS, replayable=replayable)
        if action in MOVES:
            self._move(part, last_byte)
        return where, action

    def _move(self, part: Part, last_byte: int) -> None:
        parts = self._count_parts(self.part_size)
        if last_byte < part.first_byte:
            # At most as many as there were, and at most as many as fit before it.
            self._parts_received = min(parts, -(-(last_byte + 1) // self.part_size))
            self._last_part_size = None
        elif last_byte <= part.last_byte:
            self._parts_received = parts + 1
            self._last_part_size = last_byte - part.first_byte + 1
        else:  # somebody else sent what follows, in parts like this one
            self._content_verified = False
            self._parts_received = parts + 1 - (-(last_byte - part.last_byte) // part.size)
            self._last_part_size = None
        self.last_byte_received = last_byte

    def _count_parts(self, part_size: int) -> int:
        """How many parts ECR has: as counted, or as many of ``part_size`` bytes as fit."""
        if self._parts_received is None:
            self._parts_received = -(-self.next_byte // part_size)
        return self._parts_received

    def _after(self, event: Position | Event, *, replayable: bool) -> NextAction:
        """The table's entry for this upload: what to do after ``event``."""
        row = TRANSITIONS[event]
        if self._counts_as_resumed(event):
            action = row.resumed
        else:
            action = row.replayable if replayable else row.stream
        if action is NextAction.START_OVER:
            self._restarts += 1
            if self._restarts > MOST_RESTARTS:
                return NextAction.FAIL
        return action

    def _counts_as_resumed(self, event: Position | Event) -> bool:
        if event is Event.CONTENT_DIFFERS:
            return not self._content_verified
        if event is Event.PART_TOO_SMALL and self._rewinds:
            return True  # the parts that ECR has may be others than those sent last
        return not self._begun_here

    def _ended(self, min_part: int) -> bool:
        """Whether no part can follow: the last one stored is under the minimum (bytes).

        "All layer parts except the last part should be at least 5MB", as ECR says, at completion.
        """
        return self._last_part_size is not None and self._last_part_size < min(
            min_part, self.part_size
        )

    def to_json(self) -> str:
        """The session as one line of JSON, for ``from_json``."""
        names = _JSON_NAMES | _JSON_OF_PARTS
        fields = {key: getattr(self, name) for key, name in names.items()}
        return json.dumps({"version": _VERSION, **fields})

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """A session from ``to_json``'s text, also another process's or an older one.

        Raises ``ValueError`` where the text is no session, or one of a newer version.
        """
        try:
            document = json.loads(text)
        except (RecursionError, TypeError, ValueError) as error:
            raise ValueError("this is not the JSON of an upload session") from error
        if not isinstance(document, dict) or "version" not in document:
            raise ValueError("this is not the JSON of an upload session")
        version = document["version"]
        if version != _VERSION or not isinstance(version, int) or isinstance(version, bool):
            raise ValueError(
                f"this upload session has version {shown(version)}, and this library reads "
                f"version {_VERSION}: use the version of the library that wrote it"
            )
        try:
            session = cls(**{name: document[key] for key, name in _JSON_NAMES.items()})
            session._know_parts(document.get("partsReceived"), document.get("lastPartSize"))
        except KeyError as error:
            raise ValueError(f"this upload session lacks {error}") from error
        except TypeError as error:
            raise ValueError(f"this upload session is damaged: {error}") from error
        return session

    def _know_parts(self, parts_received: int | None, last_part_size: int | None) -> None:
        """Take in what a text says of the parts; texts of earlier versions say nothing."""
        if parts_received is not None:
            whole_number("partsReceived", parts_received, at_least=min(1, self.next_byte))
            if parts_received > self.next_byte:
                raise ValueError(f"{self.next_byte:,} bytes are not {parts_received:,} parts")
            self._parts_received = parts_received
        if last_part_size is not None:
            whole_number("lastPartSize", last_part_size)
            if last_part_size > self.next_byte:
                raise ValueError(f"lastPartSize is above the {self.next_byte:,} bytes received")
            self._last_part_size = last_part_size

    def _repr_html_(self) -> str:
        """In a notebook: a bar of the parts that ECR has, and of those that are left."""
        behind = self.layer_size or self.next_byte + self.part_size
        size = f"{self.layer_size:,}" if self.layer_size else "an unknown number of"
        caption = (
            f"{self.repository_name}, upload {self.upload_id}: "
            f"ECR has {self.next_byte:,} of {size} bytes"
        )
        return bar(
            caption,
            range(0, self.next_byte, self.part_size),
            range(self.next_byte, behind, self.part_size),
        )

    def __reduce__(self) -> tuple[Callable[[str], Self], tuple[str]]:
        # A copy is a session resumed: the original may move on.
        return type(self).from_json, (self.to_json(),)


_JSON_NAMES = {
    "repositoryName": "repository_name",
    "registryId": "registry_id",
    "uploadId": "upload_id",
    "partSize": "part_size",
    "lastByteReceived": "last_byte_received",
    "layerDigest": "layer_digest",
    "layerSize": "layer_size",
}
_JSON_OF_PARTS = {"partsReceived": "_parts_received", "lastPartSize": "_last_part_size"}
