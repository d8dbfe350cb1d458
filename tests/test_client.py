"""Every answer ECR may give, sensible or not, as one of the library's errors or as a retry."""

from __future__ import annotations

import contextlib
import json
import logging
import traceback
from pathlib import Path
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
from helpers import OPERATIONS, PATIENT, SMALL, bytes_of, digest_of

from ecr_parts import (
    DigestMismatchError,
    EcrPartsError,
    LayerUploader,
    ServiceError,
    UnexpectedResponseError,
    UploadedLayer,
    UploadSession,
    default_retrying,
)
from ecr_parts._failures import last_valid_byte
from ecr_parts._retry import is_transient
from ecr_parts.testing import LocalECR, Unknowns

BLOB = bytes_of(45)
DIGEST = digest_of(BLOB)


def client_error(code: str, status: int = 400, **fields: Any) -> ClientError:
    response: Any = {
        "Error": {"Code": code, "Message": "message"},
        "ResponseMetadata": {"HTTPStatusCode": status},
        **fields,
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
FINAL: list[Exception] = [
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
    RuntimeError("nobody's"),
    TypeError("a bug of the caller's"),
    ValueError("likewise"),
]  # fmt: skip


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
def test_what_may_pass_is_retried(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize("error", FINAL, ids=repr)
def test_what_will_not_pass_is_not(error: Exception) -> None:
    assert not is_transient(error)


@pytest.mark.parametrize(
    ("fields", "last_byte"),
    [
        ({"lastValidByteReceived": 99}, 99),
        ({"lastValidByteReceived": -1}, -1),
        ({"lastValidByteReceived": 0}, -1),
        ({}, -1),
        ({"lastValidByteReceived": None}, -1),
        ({"lastValidByteReceived": -7}, -1),
    ],
)
def test_where_ecr_stands_after_a_refusal(fields: dict[str, Any], last_byte: int) -> None:
    response = {"Error": {"Message": "no number"}, **fields}
    assert last_valid_byte(response) == last_byte
    response["Error"] = {"Message": "First byte of the layer part is 10485760 instead of 20971520"}
    assert last_valid_byte(response) == (last_byte if last_byte > 0 else 20_971_519)
    response["Error"] = {"Message": "First byte of the layer part is 0 instead of 1"}
    assert last_valid_byte(response) == (last_byte if last_byte > 0 else 0)
    assert last_valid_byte({**fields, "Error": None}) == last_byte


def answering(operation: str, body: bytes, status: int = 200, *, times: int = 10**6) -> Any:
    """A client for a LocalECR whose answers to ``operation`` are ``body``, from now on."""
    from ecr_parts.testing._faults import Reply

    class Lying(LocalECR):
        lies = 0

        def _answer(self, called: str, *args: Any) -> Reply:
            reply = super()._answer(called, *args)
            if called == operation and self.lies < times:
                self.lies += 1
                return Reply(status, body, "a lie")
            return reply

    return Lying(limits=SMALL, part_size=8)


GARBAGE = [
    b"", b"{", b"[]", b"null", b'"text"', b"7", b"\xff\xfe", b"<html></html>", b"{}",
    b"[" * 100_000, b'{"__type": 5}', b'{"lastByteReceived": null}',
]  # fmt: skip


@pytest.mark.parametrize("body", GARBAGE, ids=lambda body: repr(body[:20]))
@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_garbage_is_got_over_or_a_typed_error(operation: str, status: int, body: bytes) -> None:
    with answering(operation, body, status, times=2) as ecr:
        layer = LayerUploader(ecr.client(), "demo", limits=SMALL, retrying=PATIENT).upload(BLOB)
        assert ecr.layer("demo", layer.digest) == BLOB
    with answering(operation, body, status) as ecr:
        uploader = LayerUploader(ecr.client(), "demo", limits=SMALL, retrying=PATIENT)
        try:
            uploader.upload(BLOB)
        except EcrPartsError as error:
            assert operation in str(error)  # noqa: PT017  (not every garbage is an error)
        else:
            assert operation == "CompleteLayerUpload"  # which is settled by asking
        assert len(ecr.calls) < 60


@pytest.mark.parametrize(
    ("operation", "body", "error"),
    [
        ("InitiateLayerUpload", b'{"uploadId": "", "partSize": 8}', UnexpectedResponseError),
        ("InitiateLayerUpload", b'{"uploadId": 5, "partSize": 8}', UnexpectedResponseError),
        ("InitiateLayerUpload", b'{"partSize": 8}', UnexpectedResponseError),
        ("InitiateLayerUpload", b'{"uploadId": "u"}', UnexpectedResponseError),
        ("InitiateLayerUpload", b'{"uploadId": "u", "partSize": 0}', UnexpectedResponseError),
        ("InitiateLayerUpload", b'{"uploadId": "u", "partSize": -8}', UnexpectedResponseError),
        ("InitiateLayerUpload", b'{"uploadId": "u", "partSize": "8"}', UnexpectedResponseError),
        ("InitiateLayerUpload", b'{"uploadId": "u", "partSize": true}', UnexpectedResponseError),
        ("UploadLayerPart", b'{"lastByteReceived": "7"}', UnexpectedResponseError),
        ("UploadLayerPart", b'{"lastByteReceived": true}', UnexpectedResponseError),
        ("UploadLayerPart", b'{"lastByteReceived": 7.5}', UnexpectedResponseError),
        ("UploadLayerPart", b'{"lastByteReceived": -2}', UnexpectedResponseError),
        ("UploadLayerPart", b'{"lastByteReceived": -1}', UnexpectedResponseError),
        ("UploadLayerPart", b'{"lastByteReceived": 8}', UnexpectedResponseError),
        ("UploadLayerPart", b'{"lastByteReceived": 44}', UnexpectedResponseError),
        ("UploadLayerPart", b'{"lastByteReceived": 10000000000000}', UnexpectedResponseError),
        ("UploadLayerPart", b'{"lastByteReceived": 7}', UnexpectedResponseError),
        ("UploadLayerPart", b'{"lastByteReceived": 0}', ServiceError),
        ("UploadLayerPart", b'{"lastByteReceived": 5}', UnexpectedResponseError),
        (
            "CompleteLayerUpload",
            b'{"layerDigest": "sha256:' + b"0" * 64 + b'"}',
            DigestMismatchError,
        ),
        ("CompleteLayerUpload", b'{"layerDigest": 5}', None),
        ("BatchCheckLayerAvailability", b'{"layers": [5]}', EcrPartsError),
        (
            "BatchCheckLayerAvailability",
            b'{"layers": [{"layerDigest": "x", "layerAvailability": "A", "layerSize": -5}]}',
            UnexpectedResponseError,
        ),
        ("BatchCheckLayerAvailability", b'{"layers": {}}', None),  # botocore reads none
        (
            "BatchCheckLayerAvailability",
            b'{"layers": [{"layerDigest": "x", "layerAvailability": "A", "layerSize": "1"}]}',
            UnexpectedResponseError,
        ),
    ],
    ids=str,
)
def test_a_service_that_lies_is_found_out(
    operation: str, body: bytes, error: type[EcrPartsError] | None
) -> None:
    with answering(operation, body) as ecr:
        uploader = LayerUploader(ecr.client(), "demo", limits=SMALL, retrying=PATIENT)
        if error is None:
            uploader.upload(BLOB)
        else:
            with pytest.raises(error, match=operation):
                uploader.upload(BLOB)
        assert len(ecr.calls) < 60


@pytest.mark.parametrize("byte", ['"7"', "true", "7.5"])
def test_a_refusal_that_names_no_byte(byte: str) -> None:
    body = b'{"__type": "InvalidLayerPartException", "lastValidByteReceived": %s}' % byte.encode()
    with answering("UploadLayerPart", body, 400) as ecr:
        uploader = LayerUploader(ecr.client(), "demo", limits=SMALL, retrying=PATIENT)
        with pytest.raises(UnexpectedResponseError, match="not a byte of a layer"):
            uploader.upload(BLOB)


def test_a_part_size_of_10_to_the_13_is_the_maximum() -> None:
    body = b'{"uploadId": "00000000-0000-0000-0000-000000000001", "partSize": 10000000000000}'
    with answering("InitiateLayerUpload", body) as ecr:
        uploader = LayerUploader(ecr.client(), "demo", limits=SMALL, retrying=PATIENT)
        assert {part.part.size for part in uploader.upload(BLOB).parts[:-1]} == {16}


def test_kms_says_its_own_error() -> None:
    body = b'{"__type": "KmsException", "message": "KMS", "kmsError": "KeyDisabled"}'
    with answering("InitiateLayerUpload", body, 400) as ecr:
        with pytest.raises(ServiceError, match=r"kmsError: KeyDisabled.*KMS key") as raised:
            LayerUploader(ecr.client(), "demo", limits=SMALL, retrying=PATIENT).upload(BLOB)
        assert len(ecr.calls) == 2
        assert raised.value.code == "KmsException"


def test_ctrl_c_while_an_answer_is_parsed_is_no_bad_answer(mocker: Any, ecr: LocalECR) -> None:
    mocker.patch("botocore.parsers.JSONParser._parse_body_as_json", side_effect=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        LayerUploader(ecr.client(), "demo", retrying=PATIENT).upload(BLOB)
    assert len(ecr.calls) == 1


@pytest.mark.parametrize("name", ["aws_session_token", "aws_access_key_id"])
def test_a_credential_with_a_line_break_is_said_and_not_shown(
    name: str, ecr: LocalECR, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "ecr_parts")
    uploader = LayerUploader(ecr.client(**{name: "SECRET\n"}), "demo", retrying=PATIENT)
    with pytest.raises(ServiceError, match="its credentials for line breaks") as raised:
        uploader.upload(BLOB)
    assert raised.value.attempts == 1
    assert "SECRET" not in str(raised.value)
    assert "SECRET" not in "".join(x.getMessage() for x in caplog.records if x.name == "ecr_parts")


def test_what_cannot_be_printed_is_left_out() -> None:
    body = json.dumps({"__type": "KmsException", "message": "a\x1b[31m\nb", "kmsError": "c\u202ed"})
    with answering("InitiateLayerUpload", body.encode(), 400) as ecr:
        uploader = LayerUploader(ecr.client(), "demo", limits=SMALL, retrying=PATIENT)
        with pytest.raises(ServiceError, match=r"KmsException: a \[31m b \(kmsError: c d\)\. "):
            uploader.upload(BLOB)


def test_a_web_server_that_is_not_ecr_is_named_as_such() -> None:
    page = b"<html>\n<h1>Not Found</h1>\n</html>"
    with answering("InitiateLayerUpload", page, 404) as ecr:
        uploader = LayerUploader(ecr.client(), "demo", limits=SMALL, retrying=PATIENT)
        with pytest.raises(ServiceError, match=r"failed: 404: Not Found\. Check .* endpoint is"):
            uploader.upload(BLOB)


def test_an_endpoint_where_nobody_listens_is_named_as_such(ecr: LocalECR) -> None:
    client = ecr.client()
    ecr.stop()
    with pytest.raises(ServiceError, match="Check the network, and the client's region") as raised:
        LayerUploader(client, "demo", retrying=PATIENT).upload(BLOB)
    assert raised.value.code == "EndpointConnectionError"
    assert raised.value.attempts == 10


def test_an_error_type_may_have_a_namespace() -> None:
    unknowns = Unknowns(error_namespace="com.amazonaws.ecr")
    with LocalECR(limits=SMALL, part_size=8, unknowns=unknowns) as ecr:
        ecr.fail("UploadLayerPart", "answer_lost", call=3)
        LayerUploader(ecr.client(), "demo", limits=SMALL, retrying=PATIENT).upload(BLOB)
        assert ecr.layer("demo", DIGEST) == BLOB


def test_the_default_policy_is_finite_and_serves_other_calls(
    caplog: pytest.LogCaptureFixture,
) -> None:
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

    def throttled() -> None:
        raise client_error("ThrottlingException")

    with pytest.raises(ClientError, match="ThrottlingException"):
        policy(throttled)
    assert len(waits) == 2 + 9
    assert all(0 <= wait <= 30 for wait in waits)

    def refused() -> None:
        raise client_error("ImageTagAlreadyExistsException")

    with pytest.raises(ClientError, match="ImageTagAlreadyExists"):
        policy(refused)

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        policy(interrupted)
    assert len(waits) == 2 + 9


def test_a_clients_own_exception_is_typed_and_not_retried(mocker: Any) -> None:
    client = mocker.Mock()
    client.initiate_layer_upload.side_effect = RuntimeError("refreshed, but still expired")
    with pytest.raises(
        ServiceError, match=r"still expired\. The client itself failed\. Check"
    ) as raised:
        LayerUploader(client, "demo").upload(BLOB, check_existing=False)
    assert raised.value.code == "RuntimeError"
    assert isinstance(raised.value.__cause__, RuntimeError)
    assert client.initiate_layer_upload.call_count == 1


def test_credentials_that_cannot_be_had_are_no_missing_source(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The file that is missing here is the client's token, not the layer."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::012345678910:role/pusher")
    with LocalECR() as ecr:
        client = ecr.client(aws_access_key_id=None, aws_secret_access_key=None)
        with pytest.raises(ServiceError, match=r"token.*credentials") as raised:
            LayerUploader(client, "demo").upload(BLOB)
    assert raised.value.code == "FileNotFoundError"


# A Complete whose outcome the last attempt does not tell


@pytest.mark.parametrize("last", ["access_denied", "expired_token"])
def test_a_complete_that_worked_before_it_was_refused_is_found_out(
    last: Any, ecr: LocalECR
) -> None:
    ecr.fail("CompleteLayerUpload", "answer_lost")
    ecr.fail("CompleteLayerUpload", last, call=2)
    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL, retrying=PATIENT)
    assert uploader.upload(iter([BLOB])) == UploadedLayer(DIGEST, 45, existed=False)


@pytest.mark.parametrize("code", ["LayerPartTooSmallException", "InvalidLayerException"])
def test_a_complete_that_worked_before_its_upload_looked_wrong_is_found_out(
    code: str, ecr: LocalECR
) -> None:
    real: Any = ecr.client()
    outcomes = iter([ConnectionClosedError(endpoint_url="u"), client_error(code)])

    class Client:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def complete_layer_upload(self, **parameters: Any) -> Any:
            with contextlib.suppress(ClientError):  # the second finds no upload
                real.complete_layer_upload(**parameters)
            raise next(outcomes)

    uploader = LayerUploader(Client(), "demo", limits=SMALL, retrying=PATIENT)
    assert uploader.upload(iter([BLOB])) == UploadedLayer(DIGEST, 45, existed=False)


@pytest.mark.parametrize("odd", [None, [], ValueError("odd"), TimeoutError(), {"layerDigest": 5}])
def test_a_complete_that_an_odd_client_does_not_tell_of_is_found_out(
    odd: Any, ecr: LocalECR
) -> None:
    real: Any = ecr.client()

    class Odd:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def complete_layer_upload(self, **parameters: Any) -> Any:
            real.complete_layer_upload(**parameters)
            if isinstance(odd, Exception):
                raise odd
            return odd

    uploader = LayerUploader(Odd(), "demo", limits=SMALL, retrying=PATIENT)
    assert uploader.upload(iter([BLOB])) == UploadedLayer(DIGEST, 45, existed=False)


def test_an_archived_layer_is_not_there_for_a_complete_that_was_surely_refused(
    ecr: LocalECR,
) -> None:
    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL, retrying=PATIENT)
    uploader.upload(BLOB)
    ecr.registry.repositories["demo"].layers[DIGEST].status = "ARCHIVED"
    session = uploader.initiate(layer_size=45)
    uploader.upload_part(session, BLOB[:3])  # a fragment of another process
    document = json.loads(session.to_json())
    del document["lastPartSize"]
    ecr.calls.clear()
    layer = uploader.upload(BLOB, session=UploadSession.from_json(json.dumps(document)))
    assert layer.existed  # as a second Complete says
    assert [call.operation for call in ecr.calls].count("CompleteLayerUpload") == 2


def test_before_starting_over_with_other_content_ecr_is_asked(ecr: LocalECR) -> None:
    """Somebody else may have sent the right one meanwhile."""
    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL, retrying=PATIENT)
    session = uploader.initiate(layer_size=45)
    uploader.upload_part(session, bytes_of(8, seed=9))

    def progress(newly: int) -> None:
        if newly == 5 and not ecr.registry.repositories["demo"].layers:  # the last part
            LayerUploader(ecr.client(), "demo", limits=SMALL).upload(BLOB)
            ecr.calls.clear()

    layer = uploader.upload(
        BLOB, digest=DIGEST, check_existing=False, session=session, progress=progress
    )
    assert layer == UploadedLayer(DIGEST, 45, existed=True)
    assert [call.operation for call in ecr.calls] == [
        "CompleteLayerUpload", "BatchCheckLayerAvailability",
    ]  # fmt: skip


def test_bytes_that_were_skipped_are_not_known_to_be_the_sources(
    ecr: LocalECR, tmp_path: Path
) -> None:
    """Another process had an older content: the upload starts over, its source is not blamed."""
    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL, retrying=PATIENT)
    checkpoint = tmp_path / "checkpoint"
    sent = False

    def progress(newly: int) -> None:
        nonlocal sent
        if newly == 8 and not sent:
            sent = True
            other = UploadSession.from_json(checkpoint.read_text())
            uploader.upload_part(other, bytes_of(16, seed=9))
            assert other.next_byte == 24

    layer = uploader.upload(BLOB, digest=DIGEST, checkpoint=checkpoint, progress=progress)
    assert sent
    assert ecr.layer("demo", layer.digest) == BLOB


# Policies


def test_a_policy_that_looks_at_the_exception(ecr: LocalECR) -> None:
    """Of a settled Complete, too, where no call has failed: the layer is not listed yet."""
    seen: list[tuple[str, str]] = []

    def wait(state: tenacity.RetryCallState) -> float:
        assert state.outcome is not None
        assert state.fn is not None
        seen.append((state.fn.__name__, type(state.outcome.exception()).__name__))
        return 0

    unknowns = Unknowns(availability_lag=2)
    with LocalECR(limits=SMALL, part_size=8, unknowns=unknowns) as lagging:
        lagging.fail("CompleteLayerUpload", "answer_lost")
        retrying = PATIENT.copy(wait=wait)
        LayerUploader(lagging.client(), "demo", limits=SMALL, retrying=retrying).upload(BLOB)
    assert seen == [
        ("complete_layer_upload", "ConnectionClosedError"),
        ("existing_sizes", "NotListedError"),
        ("existing_sizes", "NotListedError"),
    ]
    ecr.fail("InitiateLayerUpload", "access_denied")
    with pytest.raises(ServiceError, match="AccessDenied"):
        LayerUploader(ecr.client(), "demo", retrying=retrying).initiate()
    assert len(seen) == 3  # a failure that is not retried has no wait


# What a service or a client may say besides


class WithoutTextError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def client_that(operation: str, outcome: Any, ecr: LocalECR) -> Any:
    """A client of which one call comes to ``outcome``, raised or answered."""
    real: Any = ecr.client()

    class Client:
        def __getattr__(self, name: str) -> Any:
            if name != OPERATIONS[operation]:
                return getattr(real, name)

            def call(**_parameters: Any) -> Any:
                if isinstance(outcome, Exception):
                    raise outcome
                return outcome

            return call

    return Client()


def without_members() -> ClientError:
    error: Any = client_error("Code")
    error.response.update(Error=None, ResponseMetadata=None)
    return error  # type: ignore[no-any-return]  # made by hand


HUGE = 10**5_000
ODD: list[Any] = [
    WithoutTextError(),
    without_members(),
    ClientError({"Error": {"Code": "c" * 10**6, "Message": "<" * 10**6}}, "X"),
    client_error("KmsException", kmsError="\x1b[2J" * 10**6),
    client_error("InvalidLayerPartException", lastValidByteReceived=HUGE),
    client_error("InvalidLayerPartException", lastValidByteReceived="x" * 10**6),
    None,
    "text",
    {"lastByteReceived": HUGE, "partSize": -HUGE, "uploadId": "u"},
    {"lastByteReceived": "x" * 10**6, "partSize": 8, "uploadId": "u\x1b[2J\r\n"},
    {"lastByteReceived": 7, "partSize": 8, "uploadId": "u" * 10**6},
    {"layers": [5], "layerDigest": "\x1b[2J" * 10**5, "failures": 7},
    {"layers": [{"layerDigest": DIGEST, "layerAvailability": "AVAILABLE", "layerSize": HUGE}]},
]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: type(odd).__name__)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_whatever_a_call_comes_to_is_a_typed_error_of_a_sensible_length(
    operation: str, odd: Any, ecr: LocalECR, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "ecr_parts")
    uploader = LayerUploader(
        client_that(operation, odd, ecr), "demo", limits=SMALL, retrying=PATIENT
    )
    with pytest.raises(EcrPartsError) as raised:
        uploader.upload(BLOB)
    for text in (str(raised.value), *caplog.messages):
        assert len(text) < 1_500
        assert text.isprintable()


def test_an_unavailable_layer_has_no_size(ecr: LocalECR) -> None:
    layer = {"layerDigest": DIGEST, "layerAvailability": "UNAVAILABLE", "layerSize": 0}
    client = client_that("BatchCheckLayerAvailability", {"layers": [layer]}, ecr)
    assert LayerUploader(client, "demo", limits=SMALL).upload(BLOB).digest == DIGEST


@pytest.mark.parametrize("found", ["nothing", "junk", "directory"])
def test_certificates_that_cannot_be_used_are_no_matter_of_the_network(
    found: str, ecr: LocalECR, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle.pem"
    if found == "junk":
        bundle.write_text("junk")
    if found == "directory":
        bundle.mkdir()
    url = ecr.endpoint_url.replace("http:", "https:")
    uploader = LayerUploader(ecr.client(endpoint_url=url, verify=str(bundle)), "demo")
    with pytest.raises(ServiceError, match="in verify or AWS_CA_BUNDLE") as raised:
        uploader.initiate()
    assert raised.value.attempts == 1


def test_a_password_in_the_endpoints_url_is_not_shown(
    ecr: LocalECR, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "ecr_parts")
    client = ecr.client(endpoint_url="http://user:secret@127.0.0.1:9")
    with pytest.raises(ServiceError, match=r"http://\*\*\*@127\.0\.0\.1:9") as raised:
        LayerUploader(client, "demo", retrying=PATIENT).initiate()
    shown = "".join(traceback.format_exception(raised.value)) + caplog.text
    assert "secret" not in shown
    assert "***@127.0.0.1" in caplog.text


@pytest.mark.parametrize(
    ("field", "value"),
    [("part_size", 0), ("part_size", "x"), ("last_byte_received", "x"), ("upload_id", None)],
)
def test_a_session_that_was_changed_by_hand_is_checked(
    field: str, value: Any, ecr: LocalECR
) -> None:
    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL)
    session = uploader.initiate(layer_size=45)
    setattr(session, field, value)
    ecr.calls.clear()
    for call in (
        lambda: uploader.upload(BLOB, session=session),
        lambda: uploader.upload_part(session, BLOB[:8]),
        lambda: uploader.complete(session, DIGEST),
    ):
        with pytest.raises((TypeError, ValueError), match=field):
            call()
    assert ecr.calls == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"registry_id": ""}, ValueError),
        ({"registry_id": "0\n"}, ValueError),
        ({"repository_name": "a\x1b[2J"}, ValueError),
        ({"repository_name": "a" * 10**6}, ValueError),
        ({"repository_name": None}, TypeError),
    ],
)
def test_names_that_cannot_be(arguments: Any, error: type[Exception], ecr: LocalECR) -> None:
    with pytest.raises(error, match=next(iter(arguments))) as raised:
        LayerUploader(ecr.client(), **{"repository_name": "demo"} | arguments)
    assert len(str(raised.value)) < 600
    assert str(raised.value).isprintable()


def test_a_part_that_is_not_contiguous(ecr: LocalECR) -> None:
    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL)
    session = uploader.initiate()
    uploader.upload_part(session, memoryview(BLOB)[::2][:16])
    assert uploader.complete(session, digest_of(BLOB[:32:2])).size == 16
