"""Which errors are retried, and the default retry policy."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import tenacity
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
)
from botocore.parsers import ResponseParserError
from helpers import NO_WAIT, SMALL_LIMITS, random_bytes

from ecr_parts import LayerUploader, ServiceError, default_retrying
from ecr_parts._wire.retry import is_transient
from ecr_parts.testing import LocalECR, Unknowns

BLOB = random_bytes(45)


def client_error(code: str, status: int = 400) -> ClientError:
    response: Any = {
        "Error": {"Code": code, "Message": "message"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(response, "UploadLayerPart")


TRANSIENT: list[Exception] = [
    *map(
        client_error,
        [
            "PriorRequestNotComplete", "RequestLimitExceeded", "RequestThrottledException",
            "RequestTimeout", "RequestTimeoutException", "ServerException", "SlowDown",
            "ThrottleException", "ThrottledException", "Throttling", "ThrottlingException",
            "TooManyRequestsException", "400",
        ],
    ),
    *(client_error("Any", status) for status in (408, 429, 500, 502, 503, 504)),
    ConnectionClosedError(endpoint_url="u"),
    ConnectTimeoutError(endpoint_url="u"),
    EndpointConnectionError(endpoint_url="u"),
    IncompleteReadError(actual_bytes=1, expected_bytes=2),
    ProxyConnectionError(proxy_url="p"),
    ReadTimeoutError(endpoint_url="u"),
    SSLError(endpoint_url="u", error=OSError("EOF occurred in violation of protocol")),
    ResponseParserError("no XML"),
]  # fmt: skip
PERMANENT: list[Exception] = [
    *map(
        client_error,
        [
            "AccessDeniedException", "ExpiredTokenException", "InvalidParameterException",
            "InvalidSignatureException", "KmsException", "LimitExceededException",
            "RepositoryNotFoundException", "UploadNotFoundException", "",
        ],
    ),
    *(client_error(str(status), status) for status in (301, 403, 404, 413)),
    NoCredentialsError(),
    ParamValidationError(report="r"),
    SSLError(endpoint_url="u", error=OSError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed")),
    RuntimeError("unknown"),
    TypeError("a bug in the client"),
    ValueError("a bug in the client"),
]  # fmt: skip


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
def test_retries_transient_error(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize("error", PERMANENT, ids=repr)
def test_does_not_retry_permanent_error(error: Exception) -> None:
    assert not is_transient(error)


def test_default_policy_retries_other_calls(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ecr_parts")
    waits: list[float] = []
    policy = default_retrying().copy(sleep=waits.append)
    calls = 0

    def put_image(**_image: str) -> str:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise client_error("ThrottlingException")
        return "put"

    assert policy(put_image, imageManifest="{}") == "put"
    assert len(waits) == 2
    assert len(caplog.records) == 2


def test_default_policy_gives_up_after_ten_attempts() -> None:
    waits: list[float] = []
    policy = default_retrying().copy(sleep=waits.append)

    def throttled() -> None:
        raise client_error("ThrottlingException")

    with pytest.raises(ClientError, match="ThrottlingException"):
        policy(throttled)
    assert len(waits) == 9
    assert all(0 <= wait <= 30 for wait in waits)


@pytest.mark.parametrize(
    "error", [client_error("ImageTagAlreadyExistsException"), KeyboardInterrupt()], ids=repr
)
def test_default_policy_does_not_retry_permanent_error(error: BaseException) -> None:
    waits: list[float] = []
    policy = default_retrying().copy(sleep=waits.append)

    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        policy(fail)
    assert raised.value is error
    assert waits == []


def test_custom_policy_sees_function_and_error_of_each_failed_attempt() -> None:
    """This includes polling for a completed layer, where no call fails."""
    seen: list[tuple[str, str]] = []

    def wait(state: tenacity.RetryCallState) -> float:
        assert state.outcome is not None
        assert state.fn is not None
        seen.append((state.fn.__name__, type(state.outcome.exception()).__name__))
        return 0

    unknowns = Unknowns(availability_lag=2)
    with LocalECR(limits=SMALL_LIMITS, part_size=8, unknowns=unknowns) as ecr:
        uploader = LayerUploader(
            ecr.client(), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT.copy(wait=wait)
        )
        ecr.fail("CompleteLayerUpload", "answer_lost")
        uploader.upload(BLOB)
        assert seen == [
            ("complete_layer_upload", "ConnectionClosedError"),
            ("existing_sizes", "NotListedError"),
            ("existing_sizes", "NotListedError"),
        ]
        seen.clear()
        ecr.fail("InitiateLayerUpload", "access_denied")
        with pytest.raises(ServiceError, match="AccessDenied"):
            uploader.initiate()
        assert seen == []  # a permanent error is not passed to the policy


def test_custom_policy_sees_attempts_and_the_sum_of_the_waits(ecr: LocalECR) -> None:
    seen: list[tuple[int, float]] = []

    def wait(state: tenacity.RetryCallState) -> float:
        seen.append((state.attempt_number, state.idle_for))
        return 2.5

    ecr.fail("InitiateLayerUpload", "throttled", times=3)
    LayerUploader(ecr.client(), "demo", retrying=NO_WAIT.copy(wait=wait)).initiate()
    assert seen == [(1, 0), (2, 2.5), (3, 5)]


def test_does_not_retry_exceptions_of_event_handlers_and_of_the_endpoint(ecr: LocalECR) -> None:
    client: Any = ecr.client()
    uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
    events = client.meta.events
    for event, answer in (("before-send.ecr", object()), ("needs-retry.ecr", "later")):

        def handle(answer: object = answer, **_event: object) -> object:
            return answer

        events.register_first(event, handle, unique_id="test")
        with pytest.raises(ServiceError) as raised:
            uploader.initiate()
        assert raised.value.attempts == 1
        events.unregister(event, unique_id="test")
