"""The state of one upload, without I/O."""

# ``_transitions`` has the theory: how an upload follows ECR.

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields

from typing_extensions import Self

from ecr_parts._chunker import Part
from ecr_parts._notebook import parts_bar
from ecr_parts._transitions import (
    DETOURS,
    MAX_REWINDS,
    MAX_STALLS,
    MOVES,
    TRANSITIONS,
    Event,
    NextAction,
    Position,
    position,
)
from ecr_parts._validation import check_digest, check_int, check_name, short_repr

_JSON_VERSION = 1

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

    def _start(
        self,
        upload_id: str,
        part_size: int,
        *,
        layer_digest: str | None,
        layer_size: int | None,
    ) -> None:
        """Switch to a new upload, to which nothing has been sent."""
        new = type(self)(
            repository_name=self.repository_name,
            registry_id=self.registry_id,
            upload_id=upload_id,
            part_size=part_size,
            layer_digest=layer_digest,
            layer_size=layer_size,
        )
        new._exclusive = new._content_verified = True
        # In one step, so that a signal handler sees the old upload or the new one.
        vars(self).update({field.name: getattr(new, field.name) for field in fields(new)})

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
        if self._stalls > MAX_STALLS or self._rewinds > MAX_REWINDS:
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
