"""The four ECR calls that are used: a narrow client, retried, with errors of this library."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import botocore.client
import tenacity
from botocore.exceptions import BotoCoreError, ClientError

from ecr_parts import wire
from ecr_parts.chunker import Part
from ecr_parts.errors import (
    DigestMismatchError,
    EcrPartsError,
    ServiceError,
    UnexpectedResponseError,
    UploadLostError,
)
from ecr_parts.retry import BadAnswerError, error_code, is_transient, let_go, message, reason
from ecr_parts.source import Blob

_log = logging.getLogger("ecr_parts")
_T = TypeVar("_T")

Answer: TypeAlias = Mapping[str, object]


class EcrApi(Protocol):
    """The calls of a client for ``ecr`` or ``ecr-public`` that are used."""

    def batch_check_layer_availability(
        self, *, repositoryName: str, layerDigests: Sequence[str], registryId: str = ...
    ) -> Answer: ...

    def initiate_layer_upload(self, *, repositoryName: str, registryId: str = ...) -> Answer: ...

    def upload_layer_part(
        self,
        *,
        repositoryName: str,
        uploadId: str,
        partFirstByte: int,
        partLastByte: int,
        layerPartBlob: bytes,
        registryId: str = ...,
    ) -> Answer: ...

    def complete_layer_upload(
        self,
        *,
        repositoryName: str,
        uploadId: str,
        layerDigests: Sequence[str],
        registryId: str = ...,
    ) -> Answer: ...


EcrClient: TypeAlias = EcrApi | botocore.client.BaseClient
"""A botocore or boto3 client for ``ecr`` or ``ecr-public``, or anything with its four calls."""


class Availability(NamedTuple):
    """What ECR says of a layer."""

    status: str
    """``AVAILABLE``, ``UNAVAILABLE`` or ``ARCHIVED``."""
    size: int | None
    """Bytes."""


class Received(NamedTuple):
    """Where ECR stands after a part was sent."""

    last_byte: int
    """The last byte of the layer that it has, -1 for none."""
    refused: bool
    """Whether it refused the part, for beginning elsewhere."""


@dataclass(frozen=True)
class Service:
    """ECR's upload calls for one repository: with retries, and with errors of this library."""

    client: EcrClient
    repository_name: str
    registry_id: str | None
    retrying: tenacity.BaseRetrying
    fast: bool = False
    """Whether the client sends what ``wire.encode`` makes."""
    heartbeat: Callable[[], object] = lambda: None
    """Called before each attempt and before each wait; what it raises ends the call."""

    def available(self, digests: Sequence[str]) -> dict[str, Availability]:
        """What ECR says of up to 100 layers; those it does not know may be left out."""

        def once() -> dict[str, Availability]:
            answer = self._send("batch_check_layer_availability", layerDigests=list(digests))
            return {
                _field(layer, "layerDigest", str): Availability(
                    _field(layer, "layerAvailability", str),
                    None if layer.get("layerSize") is None else _size(layer),
                )
                for layer in _field(_with_layers(answer), "layers", list)
            }

        return self._retry("BatchCheckLayerAvailability", once).answer

    def initiate(self) -> tuple[str, int]:
        """Begin an upload: its ID, and the part size (bytes) that ECR answers."""

        def once() -> tuple[str, int]:
            answer = self._send("initiate_layer_upload")
            upload_id, part_size = _field(answer, "uploadId", str), _field(answer, "partSize", int)
            if not upload_id or part_size < 1:
                raise BadAnswerError(
                    f"it says uploadId {upload_id!r} and partSize {part_size}", transient=False
                )
            return upload_id, part_size

        return self._retry("InitiateLayerUpload", once).answer

    def encode(self, upload_id: str, part: Part, blob: Blob) -> Blob:
        """The blob as ``upload_part`` sends it; the work of it can be done beforehand."""
        if self.fast:
            return wire.encode(self._names | _place(upload_id, part), blob)
        return bytes(blob)

    def upload_part(self, upload_id: str, part: Part, blob: Blob) -> Retried[Received]:
        """Send a part: where ECR then stands. A refusal for the part's place tells it, too.

        ``blob`` comes from ``encode``.
        """

        def once() -> Received:
            try:
                answer = self._send(
                    "upload_layer_part", **_place(upload_id, part), layerPartBlob=blob
                )
            except ClientError as error:
                if error_code(error) == "InvalidLayerPartException":
                    return Received(last_valid_byte(error.response), refused=True)
                raise
            return Received(_field(answer, "lastByteReceived", int), refused=False)

        return self._retry("UploadLayerPart", once, f"bytes {part.first_byte}-{part.last_byte}")

    def complete(self, upload_id: str, digest: str) -> None:
        """Complete an upload. ``DigestMismatchError`` where ECR received other bytes."""

        def once() -> None:
            try:
                answer = self._send(
                    "complete_layer_upload", uploadId=upload_id, layerDigests=[digest]
                )
            except ClientError as error:
                if error_code(error) == "InvalidLayerException":
                    raise self._mismatch(digest, reason(error)) from error
                raise
            answered = _field(answer, "layerDigest", str)
            if answered != digest:
                raise self._mismatch(digest, f"ECR says {answered}")

        self._retry("CompleteLayerUpload", once, f"upload {upload_id}")

    @property
    def _names(self) -> dict[str, object]:
        registry = {} if self.registry_id is None else {"registryId": self.registry_id}
        return {"repositoryName": self.repository_name, **registry}

    def _send(self, method: str, **parameters: object) -> Answer:
        call: Callable[..., Answer] = getattr(self.client, method)
        return call(**self._names, **parameters)

    def _retry(self, operation: str, once: Callable[[], _T], where: str = "") -> Retried[_T]:
        attempts = 0
        failure: Exception | None = None
        callers = sys.exc_info()[1]
        subject = f"{operation} in repository {self.repository_name!r}" + (where and f", {where}")

        def attempt() -> _T:
            nonlocal attempts, failure
            attempts += 1
            try:
                return once()
            except Exception as error:
                failure = error
                raise

        def before(_state: tenacity.RetryCallState) -> None:
            self.heartbeat()

        def before_sleep(state: tenacity.RetryCallState) -> None:
            nonlocal failure
            wait = state.next_action.sleep if state.next_action else 0
            _log.info(
                "%s, attempt %d: %s; the next attempt follows in %.1f s",
                subject, attempts, reason(failure), wait,
            )  # fmt: skip
            let_go(failure, callers)
            failure = None
            self.heartbeat()

        policy = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_transient),
            stop=self.retrying.stop,
            wait=self.retrying.wait,
            sleep=self.retrying.sleep,
            before=before,
            before_sleep=before_sleep,
            reraise=True,
        )
        try:
            return Retried(policy(attempt), attempts)
        except Exception as error:
            # What is not the client's comes from the heartbeat, the policy, or this library.
            if error is not failure or isinstance(error, EcrPartsError):
                raise
            raise self._error(operation, subject, attempts, error) from error
        finally:
            failure = None

    def _error(
        self, operation: str, subject: str, attempts: int, error: Exception
    ) -> ServiceError | UnexpectedResponseError:
        times = f" after {attempts} attempts" if attempts > 1 else ""
        if isinstance(error, BadAnswerError):
            return UnexpectedResponseError(
                f"{subject}: ECR's answer makes no sense{times}: {error}. {_NOT_ECR}"
            )
        code, request_id = type(error).__name__, None
        if isinstance(error, ClientError):
            code = error_code(error)
            request_id = error.response.get("ResponseMetadata", {}).get("RequestId")
        lost = code == "UploadNotFoundException"
        return (UploadLostError if lost else ServiceError)(
            f"{subject} failed{times}: {reason(error)}. {self._remedy(operation, code, error)}",
            operation=operation,
            repository_name=self.repository_name,
            code=code,
            request_id=request_id,
            attempts=attempts,
        )

    def _remedy(self, operation: str, code: str, error: Exception) -> str:
        if code in _ACCESS_DENIED:
            prefix = "ecr-public" if service_name(self.client) == "ecr-public" else "ecr"
            return f"Allow {prefix}:{operation} on this repository in the caller's IAM policy"
        if not isinstance(error, (ClientError, BotoCoreError)) and not is_transient(error):
            return f"The client itself failed. {_CREDENTIALS}"
        if code == "HTTPClientError":
            return "Check the client's endpoint and proxy, and its credentials for a line break"
        if code.isdigit() and not is_transient(error):
            return _NOT_ECR
        if isinstance(error, BotoCoreError) and is_transient(error):
            return "Check the network, and the client's region and endpoint; then upload again"
        return _REMEDIES.get(code, "Uploading again may help once the cause is gone")

    def _mismatch(self, digest: str, reason: str) -> DigestMismatchError:
        return DigestMismatchError(
            f"CompleteLayerUpload in repository {self.repository_name!r}: what ECR received is "
            f"not {digest}: {reason}. Check the digest, and that nothing writes to the source "
            "while it is uploaded"
        )


@dataclass(frozen=True)
class Retried(Generic[_T]):
    """What a call answered in the end, and in how many attempts."""

    answer: _T
    attempts: int


_ACCESS_DENIED = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedException"})
_NOT_ECR = "Check that the client's endpoint is ECR's, with no proxy that answers for it"
_CREDENTIALS = "Check the client's credentials, and this machine's clock"
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
    "KmsException": "Check the KMS key that encrypts the repository, and the right to use it",
    "LayerAlreadyExistsException": (
        "ECR says that a layer of this content exists, but does not list this digest: check the "
        "digest; or it does not list it yet: upload again"
    ),
    "LayerPartTooSmallException": (
        "A broken connection left a fragment of a part there: upload the layer again from its "
        "beginning"
    ),
    "LimitExceededException": "A quota of the registry is reached: retrying does not help",
    "RegistryNotFoundException": "Check the registry ID, and that the registry exists",
    "RepositoryNotFoundException": (
        "Create the repository, or check its name (no registry before it, no tag behind it), the "
        "registry ID and the client's region"
    ),
    "UnsupportedCommandException": "This registry does not take such uploads",
    "UploadNotFoundException": "The upload cannot go on: begin a new one",
}  # fmt: skip


def require_ecr_client(client: EcrClient) -> None:
    """``TypeError`` for what lacks one of the four calls."""
    for call in (
        "batch_check_layer_availability",
        "initiate_layer_upload",
        "upload_layer_part",
        "complete_layer_upload",
    ):
        if not callable(getattr(client, call, None)):
            raise TypeError(
                f"client is {client!r}, which has no {call}: it takes a botocore or boto3 client "
                "for 'ecr' or 'ecr-public'"
            )


def service_name(client: EcrClient) -> str | None:
    """``"ecr"`` or ``"ecr-public"``; ``None`` for a client that is none of botocore's."""
    meta = getattr(client, "meta", None)
    name = getattr(getattr(meta, "service_model", None), "service_name", None)
    return name if isinstance(name, str) else None


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


def _place(upload_id: str, part: Part) -> dict[str, object]:
    return {
        "uploadId": upload_id,
        "partFirstByte": part.first_byte,
        "partLastByte": part.last_byte,
    }


def _size(layer: Answer) -> int:
    size = _field(layer, "layerSize", int)
    if size < 1:
        raise BadAnswerError(f"its layerSize is {size}", transient=False)
    return size


def _with_layers(answer: Answer) -> Answer:
    """Of an availability answer: whether a list that is empty is left out is unknown."""
    return {"layers": [], **answer} if "failures" in answer else answer


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadAnswerError(f"{value!r} is no byte of a layer", transient=False)
    return value


def _field(answer: Answer, name: str, kind: type[_T]) -> _T:
    value = answer.get(name)
    if value is None:
        raise BadAnswerError(f"it has no {name}", transient=True)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BadAnswerError(f"its {name} is {value!r}", transient=False)
    return value
