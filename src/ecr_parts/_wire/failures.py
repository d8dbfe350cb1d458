"""How a failure of the client is understood, and which error of this library it becomes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from botocore.exceptions import BotoCoreError, ClientError
from typing_extensions import Self

from ecr_parts._base.frames import Carrier
from ecr_parts._base.redaction import repeats
from ecr_parts._wire.retry import (
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

    def __init__(self, digest: str, answer: str) -> None:
        super().__init__(f"{digest}: {answer}")
        self.digest = digest


class UplinkSlowError(Exception):
    """A part was not sent, because it would have taken too long. The retry policy is not asked."""


class CallFailed(Carrier):
    """Why an attempt of a call failed, and in the end the call itself.

    Private: an attempt returns it, the call raises it in the caller's thread once it has failed for
    good (``give_up``), and only ``outcome_of`` catches it. No retry policy sees it: that gets
    ``cause``. If a signal handler raises while it is handled, ``ClearOwnFrames`` removes it.
    """

    operation = ""
    in_doubt = True
    """Whether ECR may have carried out the call, in the last or an earlier attempt."""
    too_slow = False
    """Whether the uplink is too slow for the part, so that it must be sent later, or cut again."""
    remedy: str | None = None
    """What to do, if the error's code does not say it."""
    error: ServiceError | UnexpectedResponseError | DigestMismatchError
    """The error to raise, once the call has failed for good."""

    def __init__(
        self,
        cause: Exception,
        code: str,
        description: str,
        *,
        transient: bool,
        refused: bool = False,
        request_id: str | None = None,
        may_contain_secret: bool = False,
    ) -> None:
        super().__init__(description)
        self.cause = cause
        self.code = code
        """ECR's error code, or the name of the client's exception."""
        self.description = description
        """The name and the message of ``cause``, in one line."""
        self.transient = transient
        """Whether the same call may succeed later."""
        self.refused = refused
        """Whether ECR answered with an error."""
        self.request_id = request_id
        self.may_contain_secret = may_contain_secret
        """Whether the text of ``cause`` may contain a password or a credential."""

    @classmethod
    def timed_out(cls, message: str, *, transient: bool) -> Self:
        """An attempt that took too long. To be called in the caller's thread."""
        name = AttemptTimeoutError.__name__
        cause = AttemptTimeoutError(message, transient=transient)
        return cls(cause, name, f"{name}: {message}", transient=transient)

    @classmethod
    def uplink_too_slow(cls) -> Self:
        """A part that must be sent later, or cut again."""
        message = "the uplink is too slow for this part"
        failed = cls(UplinkSlowError(message), UplinkSlowError.__name__, message, transient=True)
        failed.too_slow = True
        return failed

    @classmethod
    def of(cls, cause: Exception, secrets: Collection[str] = ()) -> Self:
        """Classify an exception that a client raised. To be called in the attempt's thread.

        ``secrets`` are the credentials of the call: nothing that repeats them is shown.
        """
        code, request_id = type(cause).__name__, None
        if isinstance(cause, ClientError):
            code = error_code(cause)
            metadata = cause.response.get("ResponseMetadata")
            request_id = metadata.get("RequestId") if isinstance(metadata, Mapping) else None
        if repeats(code, secrets):
            code = type(cause).__name__
        description, hides = describe_error(cause), may_contain_secret(cause, secrets)
        if repeats(description, secrets):
            description = f"{code}: {_NOT_SHOWN}"
            if isinstance(cause, BadAnswerError):
                cause = BadAnswerError(_NOT_SHOWN, transient=cause.transient)
            elif isinstance(cause, WrongDigestError):
                cause = WrongDigestError(cause.digest, _NOT_SHOWN)
        return cls(
            cause,
            code,
            description,
            transient=is_transient(cause),
            refused=isinstance(cause, ClientError | WrongDigestError),
            request_id=request_id,
            may_contain_secret=hides,
        )

    @property
    def connection_lost(self) -> bool:
        """Whether there was no connection, it broke, or the server stopped waiting (408)."""
        return self.transient and (
            isinstance(self.cause, BotoCoreError) or self.code in _REQUEST_TIMEOUTS
        )

    def give_up(
        self,
        *,
        operation: str,
        service_name: str | None,
        repository_name: str,
        call: str,
        attempts: int,
    ) -> Self:
        """Say that the call has failed for good. ``call`` is the call, for messages."""
        self.operation = operation
        self.in_doubt = attempts > 1 or self.transient or not self.refused
        times = f" after {attempts} attempts" if attempts > 1 else ""
        if isinstance(self.cause, WrongDigestError):
            self.error = DigestMismatchError(
                f"{call}: the bytes that ECR received do not match {self.cause}. Check the "
                "digest, and that the source is complete and nothing writes to it during the upload"
            )
        elif isinstance(self.cause, BadAnswerError):
            self.error = UnexpectedResponseError(
                f"{call}: ECR's answer is malformed{times}: {self.cause}. {_NOT_ECR}"
            )
        else:
            lost = self.code == "UploadNotFoundException"
            remedy = self.remedy or self._remedy(operation, service_name)
            self.error = (UploadLostError if lost else ServiceError)(
                f"{call} failed{times}: {self.description}. {remedy}",
                operation=operation,
                repository_name=repository_name,
                code=self.code,
                request_id=self.request_id,
                attempts=attempts,
            )
        if not self.may_contain_secret:  # a traceback would show the text
            self.error.__cause__ = self.cause
        return self

    def _remedy(self, operation: str, service_name: str | None) -> str:
        if self.code in ACCESS_DENIED:
            prefix = "ecr-public" if service_name == "ecr-public" else "ecr"
            return f"Allow {prefix}:{operation} on this repository in the caller's IAM policy"
        if isinstance(self.cause, MemoryError):
            return "There is not enough memory: upload fewer layers at a time, in smaller parts"
        remedy = REMEDIES.get((operation, self.code)) or REMEDIES.get(self.code)
        if remedy is not None:
            return remedy
        if not isinstance(self.cause, (ClientError, BotoCoreError)) and not self.transient:
            return "This is an error of the client, not of ECR: check its credentials and handlers"
        if self.code == "SSLError" and not self.transient:
            return "Check the endpoint, and the CA certificates, for example in AWS_CA_BUNDLE"
        if self.code == "HTTPClientError":
            return "Check the endpoint and the proxy, and the credentials for a line break"
        if not self.code or (self.code.isdigit() and not self.transient):
            return _NOT_ECR
        if not isinstance(self.cause, (ClientError, BotoCoreError)):
            return _NOT_ECR  # its answer cannot be read
        if isinstance(self.cause, BotoCoreError) and self.transient:
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
_NOT_SHOWN = "its message is not shown, because it repeats a credential"
_NOT_ECR = "Check that the endpoint is ECR and that no proxy answers in its place"
_NAME_RULES = "lower case, without a registry prefix or a tag"
REMEDIES: dict[str | tuple[str, str], str] = {
    **dict.fromkeys(CREDENTIAL_ERRORS, "Check the credentials, and this machine's clock"),
    **dict.fromkeys(
        ("ExpiredToken", "ExpiredTokenException"),
        "Log in again, or get new credentials",
    ),
    "ImageTagAlreadyExistsException": (
        "The tag is immutable: push with another tag, or delete the image that has it"
    ),
    "EmptyUploadException": "ECR has no part of this upload: send the layer's bytes first",
    "ImageDigestDoesNotMatchException": (
        "The manifest was changed on its way: check the handlers of the client, and proxies"
    ),
    "InvalidLayerPartException": (
        "ECR has other bytes of this layer than were expected: upload it again from the beginning"
    ),
    ("PutImage", "InvalidParameterException"): (
        "ECR does not accept this manifest, and will not later: check its media types and fields, "
        "and that it has a config and layers"
    ),
    "InvalidParameterException": (
        f"Check the parameter that ECR names; a repository's name is {_NAME_RULES}"
    ),
    "KmsException": "Check the repository's KMS key, and the permission to use it",
    "LayerAlreadyExistsException": (
        "ECR has a layer with this content, but not as an available one. If it is archived, "
        "restore its image with UpdateImageStorageClass; else check the digest, or upload again "
        "later"
    ),
    "LayerPartTooSmallException": (
        "ECR has only a fragment of a part, left by a broken connection: upload the layer again "
        "from the beginning"
    ),
    "LayersNotFoundException": (
        "Push the image again: what is missing will be uploaded; before put_manifest, upload the "
        "config and the layers; if a layer is archived, restore its image with "
        "UpdateImageStorageClass"
    ),
    "ReferencedImagesNotFoundException": (
        "Push the images of this index first; if they were pushed just now, push it again; if one "
        "is archived, restore it with UpdateImageStorageClass"
    ),
    ("PutImage", "LimitExceededException"): (
        "The repository has as many images as its quota allows: delete some, or request more"
    ),
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
    "ServerException": "This is an error inside ECR: upload again later",
    "UnsupportedCommandException": (
        "This registry does not support layer uploads: check the registry ID and the endpoint"
    ),
    "UploadNotFoundException": "This upload cannot be continued: start a new one",
}  # fmt: skip
"""What to do, by error code, or by operation and error code, which goes first."""
