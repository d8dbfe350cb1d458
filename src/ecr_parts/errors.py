"""The errors of ecr-parts: one tree, and every error says what to do next.

Bad arguments are plain ``TypeError`` and ``ValueError``. What a source or a
``progress`` callback raises (``FileNotFoundError`` for one) stays what it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ecr_parts._validation import printable

if TYPE_CHECKING:  # annotations only: at run time this room imports nothing of ours
    from ecr_parts._layer_upload import Layer, SentPart
    from ecr_parts._session import UploadSession


_MOST_LETTERS = 4_000  # of a message


class EcrPartsError(Exception):
    """The base of every error of this library. All of them can be pickled.

    The message is one line without control characters, whatever ECR or a file name says.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message, _MOST_LETTERS))

    session: UploadSession | None = None
    """Where the upload stood, if one had begun: ``upload(session=…)`` goes on from it."""

    layer: Layer | None = None
    """Of ``upload_many``: the layer it was."""

    parts: tuple[SentPart, ...] = ()
    """The parts that ECR confirmed before the error."""


class EmptyLayerError(EcrPartsError, ValueError):
    """The layer has no bytes, and ECR takes none such.

    Source: ``EmptyUploadException`` of CompleteLayerUpload. OCI's empty
    descriptor is no way around it here: its content is the 2 bytes ``{}``.
    """


class LayerTooLargeError(EcrPartsError, ValueError):
    """The layer exceeds what ECR allows, or does not fit in parts of the size asked for."""


class DigestMismatchError(EcrPartsError):
    """ECR received other bytes than those the digest was made of."""


class SourceChangedError(EcrPartsError):
    """The source is not what it was, or what it was said to be: it shrank, grew or ended early."""


class CheckpointError(EcrPartsError):
    """A checkpoint file cannot be read or written. The file is left as it was."""


class UnexpectedResponseError(EcrPartsError):
    """ECR's answer makes no sense, so nothing can be concluded from it."""


class ServiceError(EcrPartsError):
    """ECR refused a call, or could not be reached within the retries."""

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
        client's exception where no answer came, e.g. ``"ReadTimeoutError"``."""
        self.request_id = request_id
        """AWS's ID of the refused request, to quote to AWS support."""
        self.attempts = attempts
        """How often the call was made."""


class UploadLostError(ServiceError):
    """ECR no longer has the upload, or not as it was, and this call could not start it over.

    Either the source cannot be replayed, or the upload was lost too often.
    """
