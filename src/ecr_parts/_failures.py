"""What a call failed with: an error of this library that says what to do, or where ECR stands."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType

from botocore.exceptions import BotoCoreError, ClientError

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


def code_of(failure: Exception) -> str:
    """ECR's error code, or the name of the client's exception."""
    return error_code(failure) if isinstance(failure, ClientError) else type(failure).__name__


def as_error(
    failure: Exception,
    *,
    operation: str,
    service_name: str | None,
    repository_name: str,
    subject: str,
    attempts: int,
) -> ServiceError | UnexpectedResponseError | DigestMismatchError:
    """The error to raise for ``failure``, which is its cause. ``subject`` says what failed."""
    error = _error(failure, operation, service_name, repository_name, subject, attempts)
    if not holds_secret(failure):  # a traceback would show it
        error.__cause__ = failure
    return error


def _error(
    failure: Exception,
    operation: str,
    service_name: str | None,
    repository_name: str,
    subject: str,
    attempts: int,
) -> ServiceError | UnexpectedResponseError | DigestMismatchError:
    times = f" after {attempts} attempts" if attempts > 1 else ""
    if isinstance(failure, OtherDigestError):
        return DigestMismatchError(
            f"{subject}: the bytes that ECR received do not match {failure}. Check the digest, "
            "and that nothing writes to the source while it is uploaded"
        )
    if isinstance(failure, BadAnswerError):
        return UnexpectedResponseError(
            f"{subject}: ECR's answer makes no sense{times}: {failure}. {_NOT_ECR}"
        )
    code, request_id = code_of(failure), None
    if isinstance(failure, ClientError):
        request_id = failure.response.get("ResponseMetadata", {}).get("RequestId")
    lost = code == "UploadNotFoundException"
    return (UploadLostError if lost else ServiceError)(
        f"{subject} failed{times}: {reason(failure)}. {_remedy(failure, operation, service_name)}",
        operation=operation,
        repository_name=repository_name,
        code=code,
        request_id=request_id,
        attempts=attempts,
    )


def _remedy(failure: Exception, operation: str, service_name: str | None) -> str:
    code = code_of(failure)
    if code in _ACCESS_DENIED:
        prefix = "ecr-public" if service_name == "ecr-public" else "ecr"
        return f"Allow {prefix}:{operation} on this repository in the caller's IAM policy"
    if code in _REMEDIES:
        return _REMEDIES[code]
    transient = is_transient(failure)
    if not isinstance(failure, (ClientError, BotoCoreError)) and not transient:
        return f"The client itself failed. {_CREDENTIALS}"
    if code == "HTTPClientError":
        return "Check the client's endpoint and proxy, and its credentials for a line break"
    if code.isdigit() and not transient:
        return _NOT_ECR
    if isinstance(failure, BotoCoreError) and transient:
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
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadAnswerError(f"{value!r} is no byte of a layer", transient=False)
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
