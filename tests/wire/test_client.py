"""Any answer of ECR or of a client, valid or not, leads to an upload, a retry or a typed error."""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError, ConnectionClosedError
from helpers import NO_WAIT, OPERATIONS, SMALL_LIMITS, digest_of, operations, random_bytes
from urllib3 import HTTPResponse

from ecr_parts import (
    DigestMismatchError,
    EcrPartsError,
    LayerUploader,
    ServiceError,
    UnexpectedResponseError,
    UploadedLayer,
    UploadSession,
)
from ecr_parts.testing import Fault, LocalECR, Registry, Unknowns
from ecr_parts.testing._faults import Faults, Response, answer

BLOB = random_bytes(45)
DIGEST = digest_of(BLOB)
TWO_PARTS = BLOB[:16]
ALWAYS = sys.maxsize
"""For ``times=``: every call from now on."""


class InProcessECR:
    """A registry that answers a real botocore client without a network.

    It handles the client's ``before-send`` event: botocore builds and signs the requests and
    parses the answers as usual, but opens no connection.
    """

    def __init__(self) -> None:
        self.registry = Registry(["demo"], limits=SMALL_LIMITS, part_size=8)
        self.faults = Faults()
        self.calls = 0
        self.headers: Any = {"Content-Type": "application/x-amz-json-1.1", "x-amzn-RequestId": "1"}
        self.client: Any = LocalECR().client(endpoint_url="http://ecr.invalid")
        self.client.meta.events.register("before-send.ecr", self._answer)
        self.uploader = LayerUploader(self.client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)

    def respond(self, operation: str, body: bytes, status: int, times: int) -> None:
        self.faults.plan(operation, Response(status, body), times=times)

    def layer(self, digest: str) -> bytes:
        return b"".join(self.registry.repositories["demo"].layers[digest].blobs)

    def _answer(self, request: Any, event_name: str, **_event: object) -> Any:
        self.calls += 1
        operation = event_name.rpartition(".")[2]
        parameters = json.loads(request.body)
        if "layerPartBlob" in parameters:
            parameters["layerPartBlob"] = base64.b64decode(parameters["layerPartBlob"])
        reply = answer(self.registry, operation, parameters, self.faults.next(operation))
        raw = HTTPResponse(io.BytesIO(reply.body), preload_content=False)
        return AWSResponse(request.url, reply.status, self.headers, raw)


def client_error(code: str, **fields: Any) -> ClientError:
    response: Any = {
        "Error": {"Code": code, "Message": "message"},
        "ResponseMetadata": {"HTTPStatusCode": 400},
        **fields,
    }
    return ClientError(response, "UploadLayerPart")


# Malformed and implausible answers of the service

MALFORMED_BODIES = [
    b"", b"{", b"[]", b"null", b'"text"', b"7", b"\xff\xfe", b"<html></html>", b"{}",
    b"[" * 100_000, b'{"__type": 5}', b'{"lastByteReceived": null}',
]  # fmt: skip
each_malformed_answer = pytest.mark.parametrize(
    ("operation", "status", "body"),
    list(itertools.product(OPERATIONS, [200, 400, 500], MALFORMED_BODIES)),
    ids=lambda value: repr(value[:20]) if isinstance(value, bytes) else str(value),
)


@each_malformed_answer
def test_recovers_from_two_malformed_answers(operation: str, status: int, body: bytes) -> None:
    ecr = InProcessECR()
    ecr.respond(operation, body, status, times=2)
    layer = ecr.uploader.upload(TWO_PARTS)
    assert ecr.layer(layer.digest) == TWO_PARTS


@each_malformed_answer
def test_raises_typed_error_if_every_answer_is_malformed(
    operation: str, status: int, body: bytes
) -> None:
    ecr = InProcessECR()
    ecr.respond(operation, body, status, times=ALWAYS)
    if operation == "CompleteLayerUpload":  # the layer is found afterwards
        layer = ecr.uploader.upload(TWO_PARTS)
        assert layer == UploadedLayer(digest_of(TWO_PARTS), 16, existed=False)
    else:
        with pytest.raises(EcrPartsError, match=operation):
            ecr.uploader.upload(TWO_PARTS)
    assert ecr.calls < 60


@pytest.mark.parametrize(
    ("operation", "body", "error"),
    [
        ("InitiateLayerUpload", {"uploadId": "", "partSize": 8}, UnexpectedResponseError),
        ("InitiateLayerUpload", {"uploadId": 5, "partSize": 8}, UnexpectedResponseError),
        ("InitiateLayerUpload", {"partSize": 8}, UnexpectedResponseError),
        ("InitiateLayerUpload", {"uploadId": "u"}, UnexpectedResponseError),
        ("InitiateLayerUpload", {"uploadId": "u", "partSize": 0}, UnexpectedResponseError),
        ("InitiateLayerUpload", {"uploadId": "u", "partSize": -8}, UnexpectedResponseError),
        ("InitiateLayerUpload", {"uploadId": "u", "partSize": "8"}, UnexpectedResponseError),
        ("InitiateLayerUpload", {"uploadId": "u", "partSize": True}, UnexpectedResponseError),
        ("UploadLayerPart", {"lastByteReceived": "7"}, UnexpectedResponseError),
        ("UploadLayerPart", {"lastByteReceived": True}, UnexpectedResponseError),
        ("UploadLayerPart", {"lastByteReceived": 7.5}, UnexpectedResponseError),
        ("UploadLayerPart", {"lastByteReceived": -2}, UnexpectedResponseError),
        ("UploadLayerPart", {"lastByteReceived": -1}, UnexpectedResponseError),
        ("UploadLayerPart", {"lastByteReceived": 8}, UnexpectedResponseError),
        ("UploadLayerPart", {"lastByteReceived": 44}, UnexpectedResponseError),
        ("UploadLayerPart", {"lastByteReceived": 10**13}, UnexpectedResponseError),
        ("UploadLayerPart", {"lastByteReceived": 7}, UnexpectedResponseError),
        ("UploadLayerPart", {"lastByteReceived": 0}, ServiceError),
        ("UploadLayerPart", {"lastByteReceived": 5}, UnexpectedResponseError),
        ("CompleteLayerUpload", {"layerDigest": f"sha256:{'0' * 64}"}, DigestMismatchError),
        ("BatchCheckLayerAvailability", {"layers": [5]}, EcrPartsError),
        (
            "BatchCheckLayerAvailability",
            {"layers": [{"layerDigest": "x", "layerAvailability": "A", "layerSize": -5}]},
            UnexpectedResponseError,
        ),
        (
            "BatchCheckLayerAvailability",
            {"layers": [{"layerDigest": "x", "layerAvailability": "A", "layerSize": "1"}]},
            UnexpectedResponseError,
        ),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value),
)
def test_rejects_implausible_answer(
    operation: str,
    body: dict[str, object],
    error: type[EcrPartsError],
    uploader: LayerUploader,
    ecr: LocalECR,
) -> None:
    ecr.respond(operation, body, times=ALWAYS)
    with pytest.raises(error, match=operation):
        uploader.upload(BLOB)
    assert len(ecr.calls) < 60


@pytest.mark.parametrize(
    ("operation", "body"),
    [
        ("CompleteLayerUpload", {"layerDigest": 5}),  # the layer is found afterwards
        ("BatchCheckLayerAvailability", {"layers": {}}),  # botocore parses it as an empty list
    ],
    ids=str,
)
def test_uploads_despite_implausible_answer(
    operation: str, body: dict[str, object], uploader: LayerUploader, ecr: LocalECR
) -> None:
    ecr.respond(operation, body, times=ALWAYS)
    uploader.upload(BLOB)
    assert ecr.layer("demo", DIGEST) == BLOB
    assert len(ecr.calls) < 60


def test_reduces_suggested_part_size_to_maximum() -> None:
    with LocalECR(limits=SMALL_LIMITS, part_size=10**13) as ecr:
        uploader = LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
        assert {sent.part.size for sent in uploader.upload(BLOB).parts[:-1]} == {16}


def test_interrupt_in_parser_is_not_a_malformed_answer(
    mocker: Any, uploader: LayerUploader, ecr: LocalECR
) -> None:
    mocker.patch("botocore.parsers.JSONParser._parse_body_as_json", side_effect=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        uploader.upload(BLOB)
    assert len(ecr.calls) == 1


def test_accepts_error_type_with_namespace() -> None:
    unknowns = Unknowns(error_namespace="com.amazonaws.ecr")
    with LocalECR(limits=SMALL_LIMITS, part_size=8, unknowns=unknowns) as ecr:
        ecr.fail("UploadLayerPart", "answer_lost", call=3)
        LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT).upload(BLOB)
        assert ecr.layer("demo", DIGEST) == BLOB


# CompleteLayerUpload: an error of the last attempt does not tell whether an earlier one succeeded.


@pytest.mark.parametrize("second_fault", ["access_denied", "expired_token"])
def test_finds_layer_completed_by_attempt_before_refused_one(
    second_fault: Fault, uploader: LayerUploader, ecr: LocalECR
) -> None:
    ecr.fail("CompleteLayerUpload", "answer_lost")
    ecr.fail("CompleteLayerUpload", second_fault, call=2)
    assert uploader.upload(iter([BLOB])) == UploadedLayer(DIGEST, 45, existed=False)


@pytest.mark.parametrize("code", ["LayerPartTooSmallException", "InvalidLayerException"])
def test_finds_layer_completed_by_attempt_before_invalid_one(code: str, ecr: LocalECR) -> None:
    real: Any = ecr.client()
    errors = iter([ConnectionClosedError(endpoint_url="u"), client_error(code)])

    class Client:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def complete_layer_upload(self, **parameters: Any) -> Any:
            with contextlib.suppress(ClientError):  # the second attempt finds no upload
                real.complete_layer_upload(**parameters)
            raise next(errors)

    uploader = LayerUploader(Client(), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
    assert uploader.upload(iter([BLOB])) == UploadedLayer(DIGEST, 45, existed=False)


@pytest.mark.parametrize(
    "outcome", [None, [], ValueError("odd"), TimeoutError(), {"layerDigest": 5}], ids=repr
)
def test_finds_layer_completed_by_call_with_unusable_outcome(outcome: Any, ecr: LocalECR) -> None:
    real: Any = ecr.client()

    class Client:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def complete_layer_upload(self, **parameters: Any) -> Any:
            real.complete_layer_upload(**parameters)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

    uploader = LayerUploader(Client(), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
    assert uploader.upload(iter([BLOB])) == UploadedLayer(DIGEST, 45, existed=False)


def test_starts_over_after_refused_complete_although_archived_layer_exists(
    uploader: LayerUploader, ecr: LocalECR
) -> None:
    uploader.upload(BLOB)
    ecr.registry.repositories["demo"].layers[DIGEST].status = "ARCHIVED"
    session = uploader.initiate(layer_size=45)
    uploader.upload_part(session, BLOB[:3])  # a fragment, as if another process had sent it
    document = json.loads(session.to_json())
    del document["lastPartSize"]
    ecr.calls.clear()
    with pytest.raises(ServiceError, match=r"LayerAlreadyExistsException.* archived"):
        uploader.upload(BLOB, session=UploadSession.from_json(json.dumps(document)))
    assert len(ecr.calls_of("CompleteLayerUpload")) == 2


def test_looks_for_layer_before_starting_over(uploader: LayerUploader, ecr: LocalECR) -> None:
    """Another client may have uploaded the right content meanwhile."""
    session = uploader.initiate()
    uploader.upload_part(session, random_bytes(8, seed=9))

    def progress(confirmed: int) -> None:
        last_part = confirmed == 5
        if last_part and not ecr.registry.repositories["demo"].layers:
            LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS).upload(BLOB)
            ecr.calls.clear()

    layer = uploader.upload(
        BLOB, digest=DIGEST, check_existing=False, session=session, progress=progress
    )
    assert layer == UploadedLayer(DIGEST, 45, existed=True)
    assert operations(ecr) == ["CompleteLayerUpload", "BatchCheckLayerAvailability"]


def test_starts_over_if_skipped_bytes_differ_from_source(
    sequential_uploader: LayerUploader, ecr: LocalECR, tmp_path: Path
) -> None:
    """Another process has sent older content: that is not an error of this source."""
    checkpoint = tmp_path / "checkpoint"
    sent = False

    def progress(confirmed: int) -> None:
        nonlocal sent
        if confirmed == 8 and not sent:
            sent = True
            other = UploadSession.from_json(checkpoint.read_text())
            sequential_uploader.upload_part(other, random_bytes(16, seed=9))
            assert other.next_byte == 24

    layer = sequential_uploader.upload(
        BLOB, digest=DIGEST, checkpoint=checkpoint, progress=progress
    )
    assert sent
    assert ecr.layer("demo", layer.digest) == BLOB


def test_recovers_from_null_answer_without_request_id() -> None:
    ecr = InProcessECR()
    del ecr.headers["x-amzn-RequestId"]
    ecr.respond("InitiateLayerUpload", b"null", 200, times=2)
    assert ecr.uploader.upload(BLOB).digest == DIGEST


# Clients that are not botocore's: their methods may return or raise anything.


class NoTextError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class OneFakeMethod:
    """A client one of whose methods returns or raises ``outcome``."""

    def __init__(self, client: Any, operation: str, outcome: Any) -> None:
        self._client = client
        self._fake_method = OPERATIONS[operation]
        self._outcome = outcome

    def __getattr__(self, name: str) -> Any:
        return self._call_fake if name == self._fake_method else getattr(self._client, name)

    def _call_fake(self, **_parameters: Any) -> Any:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


def client_error_without_fields() -> ClientError:
    error: Any = client_error("Code")
    error.response.update(Error=None, ResponseMetadata=None)
    return error  # type: ignore[no-any-return]  # Any, to set members that are not optional


HUGE = 10**5_000
UNUSABLE_OUTCOMES: list[Any] = [
    NoTextError(),
    client_error_without_fields(),
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


@pytest.mark.parametrize("outcome", UNUSABLE_OUTCOMES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_raises_short_typed_error_for_unusable_outcome(
    operation: str, outcome: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "ecr_parts")
    client = OneFakeMethod(InProcessECR().client, operation, outcome)
    uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
    with pytest.raises(EcrPartsError) as raised:
        uploader.upload(BLOB)
    for text in (str(raised.value), *caplog.messages):
        assert len(text) < 1_500
        assert text.isprintable()


def test_ignores_size_of_unavailable_layer(ecr: LocalECR) -> None:
    layer = {"layerDigest": DIGEST, "layerAvailability": "UNAVAILABLE", "layerSize": 0}
    client = OneFakeMethod(ecr.client(), "BatchCheckLayerAvailability", {"layers": [layer]})
    assert LayerUploader(client, "demo", limits=SMALL_LIMITS).upload(BLOB).digest == DIGEST


# Arguments


@pytest.mark.parametrize(
    ("field", "value"),
    [("part_size", 0), ("part_size", "x"), ("last_byte_received", "x"), ("upload_id", None)],
)
def test_rejects_session_with_invalid_field(
    field: str, value: Any, uploader: LayerUploader, ecr: LocalECR
) -> None:
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
    ids=["empty registry ID", "line break", "control character", "too long", "None"],
)
def test_rejects_invalid_name(arguments: Any, error: type[Exception], ecr: LocalECR) -> None:
    with pytest.raises(error, match=next(iter(arguments))) as raised:
        LayerUploader(ecr.client(), **{"repository_name": "demo"} | arguments)
    assert len(str(raised.value)) < 600
    assert str(raised.value).isprintable()


def test_uploads_non_contiguous_part(uploader: LayerUploader) -> None:
    session = uploader.initiate()
    uploader.upload_part(session, memoryview(BLOB)[::2][:16])
    assert uploader.complete(session, digest_of(BLOB[:32:2])).size == 16
