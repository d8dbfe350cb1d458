"""What a call failed with: an error of this library that says what to do, or where ECR stands."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType

from botocore.exceptions import BotoCoreError, ClientError
from typing_extensions import Self

from ecr_parts._validation import shown
from ecr_parts.errors import (
    DigestMismatchError,
    ServiceError,
    UnexpectedResponseError,
    UploadLostError,
)
from ecr_parts.retry import (
    BadAnswerError,
    error_code,
    holds_secret,
    is_transient,
    message,
    reason,
)


class OtherDigestError(Exception):
    """A Complete after which ECR has, or wants, another digest."""


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed: examined where it failed, in a thread of this library."""

    error: Exception
    code: str
    """ECR's error code, or the name of the client's exception."""
    reason: str
    """In one line."""
    transient: bool
    """Whether the same call may succeed later."""
    refused: bool
    """Whether ECR answered, and did not do what it was asked."""
    request_id: str | None
    secret: bool
    """Whether the text of ``error`` may hold a password or a credential."""

    @classmethod
    def of(cls, error: Exception) -> Self:
        """Examine what a client raised."""
        code, request_id = type(error).__name__, None
        if isinstance(error, ClientError):
            code = error_code(error)
            metadata = error.response.get("ResponseMetadata")
            request_id = metadata.get("RequestId") if isinstance(metadata, Mapping) else None
        return cls(
            error=error,
            code=code,
            reason=reason(error),
            transient=is_transient(error),
            refused=isinstance(error, ClientError | OtherDigestError),
            request_id=request_id,
            secret=holds_secret(error),
        )

    def to_error(
        self,
        *,
        operation: str,
        service_name: str | None,
        repository_name: str,
        subject: str,
        attempts: int,
    ) -> ServiceError | UnexpectedResponseError | DigestMismatchError:
        """The error to raise, caused by ``error``. ``subject`` says what failed."""
        times = f" after {attempts} attempts" if attempts > 1 else ""
        error: ServiceError | UnexpectedResponseError | DigestMismatchError
        if isinstance(self.error, OtherDigestError):
            error = DigestMismatchError(
                f"{subject}: the bytes that ECR received do not match {self.error}. Check the "
                "digest, and that nothing writes to the source while it is uploaded"
            )
        elif isinstance(self.error, BadAnswerError):
            error = UnexpectedResponseError(
                f"{subject}: ECR's answer makes no sense{times}: {self.error}. {_NOT_ECR}"
            )
        else:
            lost = self.code == "UploadNotFoundException"
            error = (UploadLostError if lost else ServiceError)(
                f"{subject} failed{times}: {self.reason}. {self._remedy(operation, service_name)}",
                operation=operation,
                repository_name=repository_name,
                code=self.code,
                request_id=self.request_id,
                attempts=attempts,
            )
        if not self.secret:  # a traceback would show it
            error.__cause__ = self.error
        return error

    def _remedy(self, operation: str, service_name: str | None) -> str:
        if self.code in _ACCESS_DENIED:
            prefix = "ecr-public" if service_name == "ecr-public" else "ecr"
            return f"Allow {prefix}:{operation} on this repository in the caller's IAM policy"
        if self.code in _REMEDIES:
            return _REMEDIES[self.code]
        if not isinstance(self.error, (ClientError, BotoCoreError)) and not self.transient:
            return f"The client itself failed. {_CREDENTIALS}"
        if self.code == "SSLError" and not self.transient:
            return "Check the client's endpoint, and the certificates of verify or AWS_CA_BUNDLE"
        if self.code == "HTTPClientError":
            return "Check the client's endpoint and proxy, and its credentials for a line break"
        if self.code.isdigit() and not self.transient:
            return _NOT_ECR
        if isinstance(self.error, BotoCoreError) and self.transient:
            return "Check the network, and the client's region and endpoint; then upload again"
        return "Uploading again may help once the cause is gone"


_ACCESS_DENIED = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedException"})
_NOT_ECR = "Check that the client's endpoint is ECR's, with no proxy that answers for it"
_CREDENTIALS = "Check the client's credentials, and this machine's clock"
_NAME = "lower case, without registry prefix and tag"
_REMEDIES = {
    **dict.fromkeys(
        (
            "CredentialRetrievalError", "ExpiredToken", "ExpiredTokenException",
            "IncompleteSignature", "IncompleteSignatureException", "InvalidClientTokenId",
            "InvalidSignatureException", "MissingAuthenticationToken",
            "MissingAuthenticationTokenException", "NoAuthTokenError", "NoCredentialsError",
            "PartialCredentialsError", "RequestExpired", "RequestTimeTooSkewed",
            "SSOTokenLoadError", "SignatureDoesNotMatch", "TokenRetrievalError",
            "UnauthorizedSSOTokenError", "UnrecognizedClientException",
        ),
        _CREDENTIALS,
    ),
    "InvalidParameterException": (
        f"Check the parameter that ECR names; a repository's name is {_NAME}"
    ),
    "KmsException": "Check the KMS key that encrypts the repository, and the right to use it",
    "LayerAlreadyExistsException": (
        "ECR says that a layer of this content exists, but does not list this digest: check the "
        "digest; or it does not list it yet: upload again"
    ),
    "LayerPartTooSmallException": (
        "A broken connection left a fragment of a part at ECR: upload the layer again from its "
        "beginning"
    ),
    "LimitExceededException": "A quota of the registry is reached: retrying does not help",
    "AttemptTimeoutError": (
        "Check the network, and the client's endpoint and proxy; on a slow uplink, set a longer "
        "attempt_timeout"
    ),
    "SegmentNotFoundException": (
        "AWS X-Ray keeps its segment in a thread, and the calls to ECR run in threads of this "
        "library: set context_missing (AWS_XRAY_CONTEXT_MISSING) to LOG_ERROR or IGNORE_ERROR"
    ),
    "RegistryNotFoundException": "Check the registry ID, and that the registry exists",
    "RepositoryNotFoundException": (
        f"Create the repository, or check its name ({_NAME}), the registry ID and the client's "
        "region"
    ),
    "UnsupportedCommandException": "This registry does not accept such uploads",
    "UploadNotFoundException": "The upload cannot be continued: start a new one",
}  # fmt: skip


def last_valid_byte(response: Mapping[str, object]) -> int:
    """Where ECR stands, as ``InvalidLayerPartException`` tells it; -1 where nothing is stored.

    What ``lastValidByteReceived`` says when nothing is stored is unknown: -1, 0 and its absence
    are taken for that, unless the message names the byte that ECR expects ("First byte of the
    layer part is 10485760 instead of 20971520", as seen in reports of the real service).
    """
    last_byte = response.get("lastValidByteReceived")
    if last_byte is not None and _whole(last_byte) > 0:
        return _whole(last_byte)
    expected = re.search(r"instead of (\d{1,18})", message(response))
    return int(expected[1]) - 1 if expected else -1


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value.bit_length() > 63:
        raise BadAnswerError(f"{shown(value)} is not a byte of a layer", transient=False)
    return value


def clear_frames(error: BaseException, handled: BaseException | None) -> None:
    """Free the variables of the frames that ``error`` came through: a part, several times over.

    urllib3 and botocore keep exceptions in variables of the frames that their tracebacks hold.
    Such cycles live until Python looks for them. 240 MiB file, every part's first answer lost:
    peak 93 MiB with this, 213 without. Frames of other modules are somebody else's, as is
    ``handled``, if there is one: clearing a generator's frame would end it.
    """
    seen = {id(handled)}
    linked = [error]
    while linked:
        link = linked.pop()
        if id(link) not in seen:
            seen.add(id(link))
            for frame, _ in traceback.walk_tb(link.__traceback__):
                _clear_frame(frame)
            linked += [other for other in (link.__cause__, link.__context__) if other is not None]


def _clear_frame(frame: FrameType | None) -> None:
    # The callers' too, as botocore returns exceptions to frames that are in no traceback.
    with suppress(RuntimeError):  # it is still running, and so are its callers
        while frame is not None:
            if str(frame.f_globals.get("__name__")).partition(".")[0] in _CLEARED:
                frame.clear()
            frame = frame.f_back


_CLEARED = frozenset({"botocore", "http", "urllib3"})
