"""The error tree of ecr-parts. Every message says what happened, where, and what to do.

Bad arguments raise plain ``TypeError`` and ``ValueError``. What a source or a ``progress``
callback raises (``FileNotFoundError``, for example) is passed on unchanged.
"""

# No ``from __future__ import annotations`` here, as in ``_models``.

from ecr_parts._models import Layer, SentPart
from ecr_parts._session import UploadSession
from ecr_parts._validation import to_printable

_MAX_MESSAGE_LENGTH = 4_000  # characters


class EcrPartsError(Exception):
    """The base class of all errors of this library. All of them can be pickled.

    The message is one line without control characters, whatever ECR or a file name contains.
    """

    __module__ = "ecr_parts"

    def __init__(self, message: str = "") -> None:
        super().__init__(to_printable(message, _MAX_MESSAGE_LENGTH))

    session: UploadSession | None = None
    """The upload's state, if one was started: ``upload(session=…)`` resumes it."""

    layer: Layer | None = None
    """From ``upload_many``: the layer that failed."""

    parts: tuple[SentPart, ...] = ()
    """The parts that ECR confirmed before the error."""


class EmptyLayerError(EcrPartsError, ValueError):
    """The layer has no bytes. ECR rejects empty layers.

    Source: ``EmptyUploadException`` of CompleteLayerUpload. OCI's "empty descriptor" is not
    affected: its content is the 2 bytes ``{}``.
    """

    __module__ = "ecr_parts"


class LayerTooLargeError(EcrPartsError, ValueError):
    """The layer exceeds ECR's limits, or does not fit in parts of the given size."""

    __module__ = "ecr_parts"


class DigestMismatchError(EcrPartsError):
    """The bytes ECR received do not match the digest."""

    __module__ = "ecr_parts"


class SourceChangedError(EcrPartsError):
    """The source shrank, grew, was replaced, or ended early."""

    __module__ = "ecr_parts"


class CheckpointError(EcrPartsError):
    """A checkpoint file cannot be read or written. The file is left unchanged."""

    __module__ = "ecr_parts"


class UnexpectedResponseError(EcrPartsError):
    """ECR's answer is malformed or contradicts its earlier answers."""

    __module__ = "ecr_parts"


class ServiceError(EcrPartsError):
    """ECR refused a call, or could not be reached within the retries."""

    __module__ = "ecr_parts"

    def __init__(
        self,
        message: str,
        *,
        operation: str = "",
        repository_name: str = "",
        code: str = "",
        request_id: str | None = None,
        attempts: int = 1,
    ) -> None:
        super().__init__(message)
        self.operation = operation
        """The API operation, e.g. ``"UploadLayerPart"``."""
        self.repository_name = repository_name
        self.code = code
        """ECR's error code, e.g. ``"RepositoryNotFoundException"``, or the name of the
        client's exception if there was no answer, e.g. ``"ReadTimeoutError"``."""
        self.request_id = request_id
        """AWS's ID of the refused request, for AWS support."""
        self.attempts = attempts
        """How many times the call was made."""


class UploadLostError(ServiceError):
    """ECR no longer has the upload, or lost bytes of it, and it could not be started over.

    Either the source cannot be read again, or the upload was lost too many times.
    """

    __module__ = "ecr_parts"
