"""The errors of ecr-parts. Every message says what happened, where, and what to do.

Bad arguments raise plain ``TypeError`` and ``ValueError``. Exceptions raised by a source or by
``progress``, for example ``FileNotFoundError``, are passed on unchanged.
"""

# No ``from __future__ import annotations`` here; ``_model/layers.py`` has the reason.

from ecr_parts._base.validation import to_printable
from ecr_parts._model.layers import Layer, SentPart
from ecr_parts._model.session import UploadSession

_MAX_MESSAGE_LENGTH = 4_000  # characters


class EcrPartsError(Exception):
    """The base class of all errors of this library. All of them can be pickled.

    The message is one printable line of at most 4,000 characters, whatever ECR or a file name
    contains.
    """

    __module__ = "ecr_parts"

    def __init__(self, message: str = "") -> None:
        super().__init__(to_printable(message, _MAX_MESSAGE_LENGTH))

    session: UploadSession | None = None
    """The state of the upload; ``None`` before it was started. If the source can be read again,
    ``upload(session=…)`` resumes it."""

    layer: Layer | None = None
    """From ``upload_many``: the layer that failed; ``None`` if the call was for several layers."""

    parts: tuple[SentPart, ...] = ()
    """The parts that ECR confirmed before the error."""

    manifests: tuple[str, ...] = ()
    """From ``push_image``: the digests of the manifests that were put before the error."""


class EmptyLayerError(EcrPartsError, ValueError):
    """The layer has no bytes. ECR rejects empty layers.

    Reference: ``EmptyUploadException`` of CompleteLayerUpload in the API reference. OCI's "empty
    descriptor" is not affected: its content is the 2 bytes ``{}``.
    """

    __module__ = "ecr_parts"


class LayerTooLargeError(EcrPartsError, ValueError):
    """The layer is larger than the limits allow, or needs too many parts of ``part_size``."""

    __module__ = "ecr_parts"


class DigestMismatchError(EcrPartsError):
    """The bytes ECR received do not match the digest."""

    __module__ = "ecr_parts"


class SourceChangedError(EcrPartsError):
    """The source was modified or replaced during the upload, or does not have the expected size."""

    __module__ = "ecr_parts"


class CheckpointError(EcrPartsError):
    """A checkpoint cannot be read, written or deleted, or is not valid. It is left unchanged."""

    __module__ = "ecr_parts"


class UnexpectedResponseError(EcrPartsError):
    """ECR's answer is malformed or contradicts its earlier answers."""

    __module__ = "ecr_parts"


class InvalidImageError(EcrPartsError, ValueError):
    """The image cannot be pushed: it is incomplete, damaged, or of an unknown format."""

    __module__ = "ecr_parts"


class ServiceError(EcrPartsError):
    """ECR refused a call, or the client could not make it within the retries."""

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
        """ECR's error code, e.g. ``"RepositoryNotFoundException"``, or else the name of the
        client's exception, e.g. ``"ReadTimeoutError"``."""
        self.request_id = request_id
        """AWS's ID of the refused request, for AWS support; ``None`` without an answer."""
        self.attempts = attempts
        """How many times the call was made."""


class UploadLostError(ServiceError):
    """ECR no longer has the upload, or has lost bytes of it.

    ``upload`` starts over in that case. It raises this error if it cannot, because the source
    cannot be read again, or if the upload was lost too many times.
    """

    __module__ = "ecr_parts"
