"""Turns the exceptions of a client into errors of this library, with a remedy."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType, TracebackType

from botocore.exceptions import BotoCoreError, ClientError
from typing_extensions import Self

from ecr_parts._retry import (
    AttemptTimeoutError,
    BadAnswerError,
    describe_error,
    error_code,
    is_transient,
    may_contain_secret,
)
from ecr_parts.errors import (
    DigestMismatchError,
    ServiceError,
    UnexpectedResponseError,
    UploadLostError,
)


class WrongDigestError(Exception):
    """The bytes that ECR received do not have the digest of the layer."""


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed."""

    error: Exception
    code: str
    """ECR's error code, or the name of the client's exception."""
    description: str
    """The name and the message of the error, in one line."""
    transient: bool
    """Whether the same call may succeed later."""
    refused: bool
    """Whether ECR answered with an error."""
    request_id: str | None
    may_contain_secret: bool
    """Whether the text of ``error`` may contain a password or a credential."""

    @property
    def connection_lost(self) -> bool:
        """Whether the connection broke or was closed, or the server stopped waiting (408)."""
        return self.transient and (
            isinstance(self.error, BotoCoreError) or self.code in _REQUEST_TIMEOUTS
        )

    @classmethod
    def timed_out(cls, message: str, *, transient: bool) -> Self:
        """An attempt that took too long. To be called in the caller's thread."""
        return cls(
            error=AttemptTimeoutError(message, transient=transient),
            code=AttemptTimeoutError.__name__,
            description=f"{AttemptTimeoutError.__name__}: {message}",
            transient=transient,
            refused=False,
            request_id=None,
            may_contain_secret=False,
        )

    @classmethod
    def of(cls, error: Exception) -> Self:
        """Classify an exception that a client raised. To be called in the attempt's thread."""
        code, request_id = type(error).__name__, None
        if isinstance(error, ClientError):
            code = error_code(error)
            metadata = error.response.get("ResponseMetadata")
            request_id = metadata.get("RequestId") if isinstance(metadata, Mapping) else None
        return cls(
            error=error,
            code=code,
            description=describe_error(error),
            transient=is_transient(error),
            refused=isinstance(error, ClientError | WrongDigestError),
            request_id=request_id,
            may_contain_secret=may_contain_secret(error),
        )

    def to_error(
        self,
        *,
        operation: str,
        service_name: str | None,
        repository_name: str,
        call: str,
        attempts: int,
    ) -> ServiceError | UnexpectedResponseError | DigestMismatchError:
        """The error to raise, with ``error`` as its cause. ``call`` is the call, for messages."""
        times = f" after {attempts} attempts" if attempts > 1 else ""
        error: ServiceError | UnexpectedResponseError | DigestMismatchError
        if isinstance(self.error, WrongDigestError):
            error = DigestMismatchError(
                f"{call}: the bytes that ECR received do not match {self.error}. Check the "
                "digest, and that the source is complete and nothing writes to it during the upload"
            )
        elif isinstance(self.error, BadAnswerError):
            error = UnexpectedResponseError(
                f"{call}: ECR's answer is malformed{times}: {self.error}. {_NOT_ECR}"
            )
        else:
            lost = self.code == "UploadNotFoundException"
            remedy = self._remedy(operation, service_name)
            error = (UploadLostError if lost else ServiceError)(
                f"{call} failed{times}: {self.description}. {remedy}",
                operation=operation,
                repository_name=repository_name,
                code=self.code,
                request_id=self.request_id,
                attempts=attempts,
            )
        if not self.may_contain_secret:  # a traceback would show the text
            error.__cause__ = self.error
        return error

    def _remedy(self, operation: str, service_name: str | None) -> str:
        if self.code in ACCESS_DENIED:
            prefix = "ecr-public" if service_name == "ecr-public" else "ecr"
            return f"Allow {prefix}:{operation} on this repository in the caller's IAM policy"
        if self.code in _REMEDIES:
            return _REMEDIES[self.code]
        if not isinstance(self.error, (ClientError, BotoCoreError)) and not self.transient:
            return "This is an error of the client, not of ECR: check its credentials and handlers"
        if self.code == "SSLError" and not self.transient:
            return "Check the endpoint, and the CA certificates, for example in AWS_CA_BUNDLE"
        if self.code == "HTTPClientError":
            return "Check the endpoint and the proxy, and the credentials for a line break"
        if self.code.isdigit() and not self.transient:
            return _NOT_ECR
        if not isinstance(self.error, (ClientError, BotoCoreError)):
            return _NOT_ECR  # its answer cannot be read
        if isinstance(self.error, BotoCoreError) and self.transient:
            return "Check the network, the region and the endpoint; then upload again"
        return "Upload again once the cause is resolved"


_REQUEST_TIMEOUTS = frozenset({"408", "RequestTimeout", "RequestTimeoutException"})
ACCESS_DENIED = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedException"})
CREDENTIAL_ERRORS = frozenset(
    {
        "CredentialRetrievalError", "ExpiredToken", "ExpiredTokenException", "IncompleteSignature",
        "IncompleteSignatureException", "InvalidClientTokenId", "InvalidSignatureException",
        "MissingAuthenticationToken", "MissingAuthenticationTokenException", "NoAuthTokenError",
        "NoCredentialsError", "PartialCredentialsError", "RequestExpired", "RequestTimeTooSkewed",
        "SSOTokenLoadError", "SignatureDoesNotMatch", "TokenRetrievalError",
        "UnauthorizedSSOTokenError", "UnrecognizedClientException",
    }
)  # fmt: skip
"""Codes of errors that are due to the credentials."""
_NOT_ECR = "Check that the endpoint is ECR and that no proxy answers in its place"
_NAME_RULES = "lower case, without a registry prefix or a tag"
_REMEDIES = {
    **dict.fromkeys(CREDENTIAL_ERRORS, "Check the credentials, and this machine's clock"),
    "ImageTagAlreadyExistsException": (
        "The tag is immutable and names another image: push with another tag, or delete that image"
    ),
    "InvalidParameterException": (
        f"Check the parameter that ECR names; a repository's name is {_NAME_RULES}"
    ),
    "KmsException": "Check the repository's KMS key, and the permission to use it",
    "LayerAlreadyExistsException": (
        "ECR has a layer with this content, but does not list this digest. Check the digest; if it "
        "is right, upload again later"
    ),
    "LayerPartTooSmallException": (
        "ECR has only a fragment of a part, left by a broken connection: upload the layer again "
        "from the beginning"
    ),
    "LayersNotFoundException": "Push the image again: what is missing will be uploaded",
    "LimitExceededException": (
        "A quota of the registry is reached: request a higher one, or delete what is not needed"
    ),
    "AttemptTimeoutError": (
        "Check the network, the endpoint and the proxy; on a slow uplink, use smaller parts, or "
        "allow more time for each attempt"
    ),
    "SegmentNotFoundException": (
        "AWS X-Ray keeps its segment in a thread-local variable, but ECR is called from threads "
        "of this library: set context_missing (AWS_XRAY_CONTEXT_MISSING) to LOG_ERROR or "
        "IGNORE_ERROR"
    ),
    "RegistryNotFoundException": "Check the registry ID, and that the registry exists",
    "RepositoryNotFoundException": (
        f"Create the repository, or check its name ({_NAME_RULES}), the registry ID and the "
        "region"
    ),
    "UnsupportedCommandException": (
        "This registry does not support layer uploads: check the registry ID and the endpoint"
    ),
    "UploadNotFoundException": "This upload cannot be continued: start a new one",
}  # fmt: skip


def clear_client_frames(error: BaseException, handled: BaseException | None) -> None:
    """Clear the local variables of the frames in the traceback of ``error``.

    They hold several copies of the part. urllib3 and botocore store exceptions in local variables
    of the frames that the exceptions' tracebacks refer to, and such cycles live until Python's
    garbage collector runs. 240 MiB file, every part's first answer lost: peak 84 MiB with this,
    176 without. Frames of other modules are left alone (clearing a generator's frame would end
    it), and so is ``handled``, the exception that was being handled before, if any.
    """
    seen = {id(handled)}
    linked = [error]
    while linked:
        link = linked.pop()
        if id(link) not in seen:
            seen.add(id(link))
            for frame, _ in traceback.walk_tb(link.__traceback__):
                _clear_with_callers(frame)
            linked += [other for other in (link.__cause__, link.__context__) if other is not None]


def _clear_with_callers(frame: FrameType | None) -> None:
    # The callers' frames too: botocore passes exceptions to frames that are in no traceback.
    with suppress(RuntimeError):  # the frame is still running, and so are its callers
        while frame is not None:
            if _package_of(frame) in _CLIENT_PACKAGES:
                frame.clear()
            frame = frame.f_back


def _package_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]


_CLIENT_PACKAGES = frozenset({"botocore", "http", "urllib3"})


class ClearOwnFrames:
    """A context manager that clears the frames of this library in an exception's traceback.

    Their local variables refer to the caller's source and to parts, and some to the exception
    itself. Such cycles live until Python's garbage collector runs.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, _error: object, tb: TracebackType | None) -> None:
        for frame, _ in traceback.walk_tb(tb):
            if _package_of(frame) == "ecr_parts":
                try:
                    frame.clear()
                except RuntimeError as error:
                    # The frame is still running. If the traceback has a further frame, a signal
                    # handler raised the exception.
                    further = error.__traceback__ and error.__traceback__.tb_next
                    if further:  # pragma: no cover  (no test can interrupt ``clear``)
                        raise
