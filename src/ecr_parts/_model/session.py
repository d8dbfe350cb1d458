"""The state of one upload, without I/O."""

# ``machine.py`` has the theory: how an upload follows ECR.

# No ``from __future__ import annotations`` here; ``_model/layers.py`` has the reason.

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from typing_extensions import Self

from ecr_parts._base.notebook import parts_bar
from ecr_parts._base.validation import check_digest, check_int, check_name, short_repr

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


class NotASessionError(ValueError):
    """The text has nothing to do with a session."""


@dataclass
class Received:
    """What is known about the parts that ECR received, besides the public fields of the session.

    Only ``Machine`` changes it, once the session is created or loaded.
    """

    parts: int | None = None
    """The number of parts ECR has; ``None`` if unknown."""
    last_part_size: int | None = None
    """Bytes; ``None`` if unknown."""
    furthest_byte: int = -1
    """The highest byte that ECR has had in this upload. Only a higher one is progress."""
    sent_up_to: int = -1
    """The highest byte that ECR may have stored without having confirmed it: of a request that was
    sent ahead and withdrawn, or of a part that was cut again."""
    exclusive: bool = False
    """Whether it is certain that all parts of the upload were sent with this session."""
    content_verified: bool = False
    """Whether it is certain that all bytes of the upload came from the source being uploaded."""
    stalls: int = 0
    """The number of consecutive answers without progress."""
    rewinds: int = 0
    """The number of times that the upload went back."""


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

    _received: Received = field(default_factory=Received, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_session(self)
        self._received.furthest_byte = self.last_byte_received
        if self.last_byte_received < 0:
            self._received.parts = 0

    @property
    def next_byte(self) -> int:
        """The first byte that ECR does not have. The next part starts there."""
        return self.last_byte_received + 1

    def to_json(self) -> str:
        """The session as one line of JSON, for ``from_json``."""
        fields = {key: getattr(self, name) for key, name in _JSON_NAMES.items()}
        fields |= {
            "partsReceived": self._received.parts,
            "lastPartSize": self._received.last_part_size,
        }
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
            raise NotASessionError("this is not the JSON of an upload session") from error
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
            self._received.parts = parts_received
        if last_part_size is not None:
            check_int("lastPartSize", last_part_size, maximum=self.next_byte)
            self._received.last_part_size = last_part_size

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


def check_session(session: UploadSession) -> None:
    """Raise ``TypeError`` or ``ValueError`` for invalid values of the public fields."""
    check_name("repository_name", session.repository_name)
    check_name("upload_id", session.upload_id)
    if session.registry_id is not None:
        check_name("registry_id", session.registry_id)
    if session.layer_digest is not None:
        check_digest("layer_digest", session.layer_digest)
    check_int("part_size", session.part_size)
    check_int("last_byte_received", session.last_byte_received, minimum=-1)
    if session.layer_size is not None:
        check_int("layer_size", session.layer_size)
        if session.last_byte_received >= session.layer_size:
            raise ValueError(
                f"last_byte_received must be less than layer_size ({session.layer_size:,}), not "
                f"{session.last_byte_received:,}"
            )
