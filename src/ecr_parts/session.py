"""Where an upload stands, and what to do when ECR says that it stands elsewhere. No I/O.

ECR has no call to ask where an upload stands, and refuses a part sent twice. But each answer
to a part tells the last byte that ECR has, and that is taken as the truth: ``decide`` is the
one place where such an answer turns into what happens next.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from typing_extensions import Self

from ecr_parts.chunker import Part
from ecr_parts.limits import whole_number
from ecr_parts.notebook import bar

_VERSION = 1
_MOST_STALLS = 5  # answers in a row that bring nothing
_MOST_REWINDS = 5  # of one upload, however much comes in between


class Stand(Enum):
    """Where ECR stands after a part was sent, as seen from that part."""

    AT_ITS_END = "at its last byte"
    INSIDE = "inside, and the fragment stored is large enough for a part"
    INSIDE_TOO_SMALL = "inside, and the fragment stored is smaller than a part may be"
    BEFORE_IT = "right before it: nothing of it is stored"
    FURTHER_BACK = "further back: ECR lost what it had confirmed"
    BEYOND_IT = "beyond it, within the layer"
    NOWHERE = "at no byte of the layer"


class Move(Enum):
    """What to do next."""

    CONFIRMED = "the part is stored"
    GO_ON = "go on behind the fragment that is stored"
    SEND_AGAIN = "send the part again (so many times and no more)"
    REWIND = "go back to where ECR stands"
    SKIP = "go forward to where ECR stands; the digest proves those bytes at completion"
    STUCK = "ECR answers and answers, and does not move"
    START_OVER = "a fragment smaller than a part may be is stored, which cannot be completed"
    LOST = "bytes that it had confirmed are needed again, and they are gone"
    NONSENSE = "no upload can stand there"


class _Moves(NamedTuple):
    replayable: Move
    stream: Move
    resumed: Move  # always replayable; may stand further on than its last checkpoint knew


MOVES: dict[Stand, _Moves] = {
    #                              begun here, replayable; begun here, a stream; resumed
    Stand.AT_ITS_END: _Moves(Move.CONFIRMED, Move.CONFIRMED, Move.CONFIRMED),
    Stand.INSIDE: _Moves(Move.GO_ON, Move.GO_ON, Move.GO_ON),
    Stand.INSIDE_TOO_SMALL: _Moves(Move.START_OVER, Move.GO_ON, Move.START_OVER),
    Stand.BEFORE_IT: _Moves(Move.SEND_AGAIN, Move.SEND_AGAIN, Move.SEND_AGAIN),
    Stand.FURTHER_BACK: _Moves(Move.REWIND, Move.LOST, Move.REWIND),
    Stand.BEYOND_IT: _Moves(Move.NONSENSE, Move.NONSENSE, Move.SKIP),
    Stand.NOWHERE: _Moves(Move.NONSENSE, Move.NONSENSE, Move.NONSENSE),
}


def stand(part: Part, last_byte: int, *, layer_size: int | None, min_part: int) -> Stand:
    """Where ECR stands if it has the layer up to ``last_byte`` after ``part`` was sent.

    ``last_byte`` is inclusive, -1 for nothing; ``min_part`` is in bytes.
    """
    if last_byte < -1 or (layer_size is not None and last_byte >= layer_size):
        return Stand.NOWHERE
    if last_byte > part.last_byte:
        return Stand.BEYOND_IT
    if last_byte == part.last_byte:
        return Stand.AT_ITS_END
    if last_byte == part.first_byte - 1:
        return Stand.BEFORE_IT
    if last_byte < part.first_byte:
        return Stand.FURTHER_BACK
    fragment = Part(part.first_byte, last_byte)
    return Stand.INSIDE if fragment.size >= min_part else Stand.INSIDE_TOO_SMALL


def decide(where: Stand, *, replayable: bool, resumed: bool) -> Move:
    """The table's entry: what to do when ECR stands ``where``."""
    moves = MOVES[where]
    if resumed:
        return moves.resumed
    return moves.replayable if replayable else moves.stream


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
    _last_stored: Part | None = field(default=None, init=False, repr=False, compare=False)
    _furthest: int = field(default=-1, init=False, repr=False, compare=False)
    _stalls: int = field(default=0, init=False, repr=False, compare=False)
    _rewinds: int = field(default=0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _text("repository_name", self.repository_name)
        _text("upload_id", self.upload_id)
        for name, value in (("registry_id", self.registry_id), ("layer_digest", self.layer_digest)):
            if value is not None:
                _text(name, value)
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
        """The first byte that ECR does not have: the next part begins there."""
        return self.last_byte_received + 1

    @property
    def resumed(self) -> bool:
        """Whether ECR may stand further on than this session knows: it was not begun here."""
        return not self._begun_here

    @property
    def patchy(self) -> bool:
        """Whether the parts that ECR has may be others than those sent here, and too small."""
        return self.resumed or self._rewinds > 0

    def begin(self, upload_id: str, part_size: int) -> None:
        """Stand at the beginning of a new upload, of the same layer."""
        _text("upload_id", upload_id)
        whole_number("part_size", part_size)
        self.upload_id = upload_id
        self.part_size = part_size
        self.last_byte_received = -1
        self._last_stored = None
        self._furthest = -1
        self._stalls = 0
        self._rewinds = 0
        self._begun_here = True

    def resume(self) -> None:
        """From here on ECR may stand further on than this session knows."""
        self._begun_here = False

    def receive(self, part: Part, last_byte: int, *, min_part: int, replayable: bool) -> Move:
        """Take in that ECR has the layer up to ``last_byte`` after ``part`` was sent.

        Moves to ``last_byte`` where the table says that the upload goes on from there, and
        changes nothing otherwise. ``min_part`` is ECR's minimum (bytes); where the service
        itself answered a smaller part size (test servers do), that one counts. ``ValueError``
        for a part that does not begin at ``next_byte`` or ends behind the layer.
        """
        if part.first_byte != self.next_byte:
            raise ValueError(f"{part} does not begin at next_byte, {self.next_byte}")
        if self.layer_size is not None and part.last_byte >= self.layer_size:
            raise ValueError(f"{part} ends behind the layer's {self.layer_size} bytes")
        where = stand(
            part, last_byte, layer_size=self.layer_size, min_part=min(min_part, self.part_size)
        )
        move = decide(where, replayable=replayable, resumed=self.resumed)
        moves = move in (Move.CONFIRMED, Move.GO_ON, Move.REWIND, Move.SKIP)
        if moves and last_byte > self._furthest:
            self._furthest = last_byte
            self._stalls = 0
        elif move is not Move.CONFIRMED:
            self._stalls += 1
        self._rewinds += move is Move.REWIND
        if self._stalls > _MOST_STALLS or self._rewinds > _MOST_REWINDS:
            return Move.STUCK
        if moves:
            self.last_byte_received = last_byte
            within = part.first_byte <= last_byte <= part.last_byte
            self._last_stored = Part(part.first_byte, last_byte) if within else None
        return move

    def ended(self, min_part: int) -> bool:
        """Whether no part can follow: the last one stored is under the minimum (bytes).

        "All layer parts except the last part should be at least 5MB", as ECR says, at completion.
        """
        return self._last_stored is not None and self._last_stored.size < min(
            min_part, self.part_size
        )

    def to_json(self) -> str:
        """The session as one line of JSON, for ``from_json``."""
        fields = {key: getattr(self, name) for key, name in _JSON_NAMES.items()}
        return json.dumps({"version": _VERSION, **fields})

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """A session from ``to_json``'s text, also another process's or an older one.

        Raises ``ValueError`` where the text is no session, or one of a newer version.
        """
        try:
            document = json.loads(text)
        except (RecursionError, ValueError) as error:
            raise ValueError("this is no upload session's JSON") from error
        if not isinstance(document, dict) or "version" not in document:
            raise ValueError("this is no upload session's JSON")
        if document["version"] != _VERSION:
            raise ValueError(
                f"this upload session has version {document['version']!r}, and this library "
                f"reads version {_VERSION}: use the one that wrote it"
            )
        try:
            return cls(**{name: document[key] for key, name in _JSON_NAMES.items()})
        except KeyError as error:
            raise ValueError(f"this upload session lacks {error}") from error
        except TypeError as error:
            raise ValueError(f"this upload session is damaged: {error}") from error

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


def _text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}, and must be a str")
    if not value:
        raise ValueError(f"{name} is empty")
