"""LocalECR applies ECR's rules, as seen by a plain botocore client."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import pickle
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError
from ecr_calls import Caller
from helpers import digest_of, operations, random_bytes

from ecr_parts import LayerUploader, Limits, ServiceError
from ecr_parts.testing import Call, EcrError, Fault, LocalECR, Unknowns
from ecr_parts.testing._http import Server

ServerStarter: TypeAlias = Callable[..., tuple[subprocess.Popen[str], str]]

BLOB = random_bytes(20)
DIGEST = digest_of(BLOB)
ECR_API = "AmazonEC2ContainerRegistry_V20150921"
INITIATE = f"{ECR_API}.InitiateLayerUpload"
DEMO = b'{"repositoryName": "demo"}'


# Uploads


def test_stores_layer_in_parts(call: Caller, ecr: LocalECR) -> None:
    answer = call("initiate_layer_upload")
    upload_id = answer.pop("uploadId")
    assert answer == {"partSize": 8}
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", upload_id)

    expected = {
        "registryId": "012345678910",
        "repositoryName": "demo",
        "uploadId": upload_id,
    }
    assert call.part(upload_id, 0, BLOB[:16]) == {**expected, "lastByteReceived": 15}
    assert call.part(upload_id, 16, BLOB[16:]) == {**expected, "lastByteReceived": 19}
    assert call.complete(upload_id, DIGEST) == {**expected, "layerDigest": DIGEST}

    assert ecr.layer("demo", DIGEST) == BLOB
    assert call("batch_check_layer_availability", layerDigests=[DIGEST]) == {
        "layers": [
            {
                "layerDigest": DIGEST,
                "layerAvailability": "AVAILABLE",
                "layerSize": 20,
                "mediaType": "application/vnd.docker.image.rootfs.diff.tar",
            }
        ],
        "failures": [],
    }


@pytest.mark.parametrize("first", [0, 7, 9, 16])
def test_rejects_part_at_wrong_offset(first: int, call: Caller) -> None:
    upload_id = call.initiate()
    call.part(upload_id, 0, BLOB[:8])

    assert call.part(upload_id, first, BLOB[:8]) == {
        "code": "InvalidLayerPartException",
        "message": f"First byte of the layer part is {first} instead of 8",
        "registryId": "012345678910",
        "repositoryName": "demo",
        "uploadId": upload_id,
        "lastValidByteReceived": 7,
    }


@pytest.mark.parametrize("last_valid_byte", [-1, 0, "absent"])
def test_reports_last_valid_byte_of_empty_upload(last_valid_byte: Any) -> None:
    with LocalECR(unknowns=Unknowns(nothing_stored=last_valid_byte)) as ecr:
        call = Caller(ecr.client())
        error = call.part(call.initiate(), 8, BLOB)
        assert error["message"] == "First byte of the layer part is 8 instead of 0"
        assert error.get("lastValidByteReceived", "absent") == last_valid_byte


def test_reports_last_byte_received_in_part() -> None:
    with LocalECR(unknowns=Unknowns(last_byte_received="in the part")) as ecr:
        call = Caller(ecr.client())
        upload_id = call.initiate()
        assert call.part(upload_id, 0, BLOB[:8])["lastByteReceived"] == 7
        assert call.part(upload_id, 8, BLOB[8:])["lastByteReceived"] == 11


def test_limits_part_to_largest_part() -> None:
    with LocalECR(unknowns=Unknowns(largest_part=8)) as ecr:
        call = Caller(ecr.client())
        upload_id = call.initiate()
        assert call.part(upload_id, 0, BLOB[:9])["code"] == "InvalidParameterException"
        assert call.part(upload_id, 0, BLOB[:8])["lastByteReceived"] == 7


def test_checks_part_sizes(call: Caller) -> None:
    upload_id = call.initiate()
    for blob, last in ((b"", 0), (bytes(17), None), (BLOB[:8], 8), (BLOB[:8], 6)):
        assert call.part(upload_id, 0, blob, last)["code"] == "InvalidParameterException"
    assert call.part(upload_id, 0, BLOB[:1])["lastByteReceived"] == 0
    assert call.part(upload_id, 1, BLOB[1:])["code"] == "InvalidParameterException"
    call.part(upload_id, 1, BLOB[1:17])
    assert call.complete(upload_id, digest_of(BLOB[:17])) == {
        "code": "LayerPartTooSmallException",
        "message": "All layer parts except the last part should be at least 5MB",
    }


def test_limits_number_of_parts_and_layer_size(call: Caller) -> None:
    many = call.initiate()
    for i in range(60):
        call.part(many, i, b"x")
    assert call.part(many, 60, b"x")["code"] == "LimitExceededException"
    large = call.initiate()
    for i in range(31):
        call.part(large, i * 16, bytes(16))
    assert call.part(large, 496, bytes(5))["code"] == "LimitExceededException"
    assert call.part(large, 496, bytes(4))["lastByteReceived"] == 499


def test_rejects_complete_of_empty_upload(call: Caller) -> None:
    upload_id = call.initiate()
    error = call.complete(upload_id, DIGEST)
    assert error["code"] == "EmptyUploadException"
    assert "cannot be completed because it does not have any parts" in error["message"]


def test_rejects_complete_with_other_digest(call: Caller) -> None:
    upload_id = call.initiate()
    call.part(upload_id, 0, BLOB[:16])
    assert call.complete(upload_id, DIGEST) == {
        "code": "InvalidLayerException",
        "message": "None of the provided layer digests match the calculated layer digest",
    }
    answer = call.complete(upload_id, DIGEST, digest_of(BLOB[:16]))
    assert answer["layerDigest"] == digest_of(BLOB[:16])


@pytest.mark.parametrize("code", ["UploadNotFoundException", "LayerAlreadyExistsException"])
def test_rejects_complete_of_existing_layer_and_of_completed_upload(code: Any) -> None:
    with LocalECR(unknowns=Unknowns(completed_again=code)) as ecr:
        call = Caller(ecr.client())
        first, second = call.initiate(), call.initiate()
        for upload_id in (first, second):
            call.part(upload_id, 0, BLOB)
        assert call.complete(first, DIGEST)["layerDigest"] == DIGEST
        assert call.complete(second, DIGEST)["code"] == "LayerAlreadyExistsException"
        assert call.complete(first, DIGEST)["code"] == code


def test_rejects_unknown_upload_and_repository(call: Caller) -> None:
    unknown = "00000000-0000-0000-0000-000000000009"
    assert call.part(unknown, 0, BLOB)["code"] == "UploadNotFoundException"
    assert call.complete(unknown, DIGEST)["code"] == "UploadNotFoundException"
    upload_id = call.initiate()
    for method, parameters in (
        ("initiate_layer_upload", {}),
        ("batch_check_layer_availability", {"layerDigests": [DIGEST]}),
        ("complete_layer_upload", {"uploadId": upload_id, "layerDigests": [DIGEST]}),
    ):
        error = call(method, repositoryName="none", **parameters)
        assert error["code"] == "RepositoryNotFoundException"
        assert "'none' does not exist in the registry with id '012345678910'" in error["message"]


def test_rejects_unknown_registry(call: Caller, service: str) -> None:
    error = call("initiate_layer_upload", registryId="210987654321")
    expected = "Registry" if service == "ecr-public" else "Repository"
    assert error["code"] == f"{expected}NotFoundException"
    assert "210987654321" in error["message"]


@pytest.mark.parametrize("missing_layers", ["failures", "layers", "failures alone"])
def test_reports_availability_of_layers(missing_layers: Any) -> None:
    missing = digest_of(b"missing")
    unknowns = Unknowns(missing_layers=missing_layers, availability_lag=2)
    with LocalECR(unknowns=unknowns) as ecr:
        call = Caller(ecr.client())
        LayerUploader(ecr.client(), "demo").upload(BLOB, check_existing=False)

        def check(*digests: str) -> Any:
            return call("batch_check_layer_availability", layerDigests=digests)

        for _ in range(2):
            layers = check(DIGEST).get("layers", [])
            assert [layer["layerAvailability"] for layer in layers] != ["AVAILABLE"]
        assert check(DIGEST)["layers"][0]["layerAvailability"] == "AVAILABLE"
        answer = check(missing)
        assert ("layers" in answer) == (missing_layers != "failures alone")
        if missing_layers == "layers":
            assert answer["layers"] == [
                {"layerDigest": missing, "layerAvailability": "UNAVAILABLE"}
            ]
        else:
            assert answer["failures"][0]["failureCode"] == "MissingLayerDigest"
        assert check("sha256:00")["failures"][0]["failureCode"] == "InvalidLayerDigest"
        assert check(*[DIGEST] * 101)["code"] == "InvalidParameterException"


def test_creates_repositories(call: Caller, service: str) -> None:
    created = call("create_repository", repositoryName="team/new")["repository"]
    assert created["repositoryName"] == "team/new"
    assert call("initiate_layer_upload", repositoryName="team/new")["uploadId"]
    again = call("create_repository", repositoryName="team/new")
    assert again["code"] == "RepositoryAlreadyExistsException"
    assert call("create_repository", repositoryName="No")["code"] == "InvalidParameterException"


# Requests that no SDK sends


def test_rejects_operation_that_it_does_not_offer(ecr: LocalECR) -> None:
    with pytest.raises(ClientError, match="LocalECR does not offer DescribeRegistry") as raised:
        ecr.client().describe_registry()
    assert raised.value.response["Error"]["Code"] == "UnknownOperationException"
    assert raised.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    assert ecr.calls[-1].outcome == "UnknownOperationException"


@pytest.mark.parametrize(
    "target", ["AmazonEC2ContainerRegistry_V20150921", "SpencerFrontendService"]
)
def test_rejects_unknown_operation(target: str, ecr: LocalECR) -> None:
    status, error = send_rejected(ecr, f"{target}.NoOperation", b"{}")
    assert (status, error["__type"]) == (400, "UnknownOperationException")
    assert "has no operation NoOperation" in str(error["message"])


def send(ecr: LocalECR, target: str, body: bytes) -> http.client.HTTPResponse:
    """Send any request, also one that no SDK sends."""
    request = urllib.request.Request(ecr.endpoint_url, body, {"X-Amz-Target": target})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    response: http.client.HTTPResponse = opener.open(request)
    return response


def send_rejected(ecr: LocalECR, target: str, body: bytes) -> tuple[int, dict[str, object]]:
    """The status and the body of the error that is answered."""
    with pytest.raises(urllib.request.HTTPError) as raised:
        send(ecr, target, body)
    with raised.value as response:
        document: dict[str, object] = json.loads(response.read())
    return raised.value.code, document


def with_manifest(manifest: str) -> bytes:
    return json.dumps({"repositoryName": "demo", "imageManifest": manifest}).encode()


INDEX = '{"mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [{}]}'


@pytest.mark.parametrize(
    ("operation", "body"),
    [
        ("UploadLayerPart", b"no json"),
        ("UploadLayerPart", b"[]"),
        ("InitiateLayerUpload", b'{"repositoryName": "demo", "other": NaN}'),
        ("InitiateLayerUpload", b'{"repositoryName": "demo", "other": -Infinity}'),
        ("UploadLayerPart", b'{"layerPartBlob": "%%%%"}'),
        ("InitiateLayerUpload", b'{"repositoryName": 5}'),
        ("InitiateLayerUpload", b'{"a": ' + b"[" * 100_000),
        ("InitiateLayerUpload", b'{"repositoryName": "\\ud800"}'),
        ("BatchCheckLayerAvailability", b'{"repositoryName": "demo", "layerDigests": [["a"]]}'),
        ("BatchGetImage", b'{"repositoryName": "demo", "imageIds": ["a"]}'),
        ("BatchGetImage", b'{"repositoryName": "demo", "imageIds": [{"imageTag": ["a"]}]}'),
        ("PutImage", with_manifest("[" * 100_000)),
        ("PutImage", with_manifest("\ud800")),
        ("PutImage", with_manifest('{"config": 5}')),
        ("PutImage", with_manifest('{"layers": {}}')),
        ("PutImage", with_manifest('{"layers": [7]}')),
        ("PutImage", with_manifest('{"layers": [{"digest": []}]}')),
        ("PutImage", with_manifest(INDEX)),
        ("PutImage", b'{"repositoryName": "Demo"}'),
    ],
    ids=lambda value: value[-40:].decode() if isinstance(value, bytes) else value,
)
def test_rejects_malformed_request(operation: str, body: bytes, ecr: LocalECR) -> None:
    status, document = send_rejected(ecr, f"{ECR_API}.{operation}", body)
    assert status == 400
    assert "__type" in document


@pytest.mark.parametrize(("target", "body"), [("Other.UploadLayerPart", b"{}"), ("", b"")])
def test_rejects_unknown_target(target: str, body: bytes, ecr: LocalECR) -> None:
    status, document = send_rejected(ecr, target, body)
    assert status == 400
    assert "__type" in document


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Content-Length: many", 400),
        ("Content-Length: -1", 400),
        ("Content-Length: 99999999999999999", 400),
        ("Content-Length: 9999999999", 400),
        ("Content-Length: 2\r\nContent-Length: 3", 400),
        ("Content-Length: 2, 2", 400),
        ("Content-Length: 2\r\nTransfer-Encoding: chunked", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 2", 400),
        ("Content-Length: 2\r\nno header\r\nTransfer-Encoding: chunked", 400),
        ("Content-Length: 2\r\nTransfer-Encoding : chunked", 400),
        ("Transfer-Encoding: chunked", 411),
        ("X-None: 1", 411),
        ("Content-Length: 2\r\nHost: registry.example", 400),
        ("Content-Length: 2\r\nHost: 127.0.0.1.example", 400),
        ("Content-Length: 2\r\nHost: localhost\r\nHost: registry.example", 400),
    ],
)
def test_rejects_request_with_bad_header(header: str, status: int, ecr: LocalECR) -> None:
    port = int(ecr.endpoint_url.rpartition(":")[2])
    host = "" if "Host" in header else "Host: localhost\r\n"
    request = f"POST / HTTP/1.1\r\n{host}{header}\r\n\r\n{{}}"
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(request.encode())
        with connection.makefile("rb") as response:
            head, _, body = response.read().partition(b"\r\n\r\n")
    assert head.split()[1] == b"%d" % status
    assert json.loads(body)["__type"] == "InvalidParameterException"
    assert ecr.calls == []


# Names of repositories


def test_rejects_invalid_repository_name() -> None:
    with pytest.raises(ValueError, match="'Demo' is not a valid repository name"):
        LocalECR(["Demo"])


@pytest.mark.parametrize("name", ["Demo", "012345678910.dkr.ecr.us-east-1.amazonaws.com/x:v1"])
def test_rejects_calls_for_invalid_repository_name(name: str, service: str, ecr: LocalECR) -> None:
    client: Any = ecr.client(service)
    with pytest.raises(ClientError, match="InvalidParameterException"):
        client.initiate_layer_upload(repositoryName=name)
    with pytest.raises(ServiceError, match="without a registry prefix or a tag"):
        LayerUploader(ecr.client(service), "none").initiate()


# Calls, faults and replaced answers


def test_records_calls(ecr: LocalECR) -> None:
    ecr.fail("UploadLayerPart", "throttled", call=2)
    call = Caller(ecr.client())
    upload_id = call.initiate()
    for _ in range(2):
        call.part(upload_id, 0, BLOB[:8])
    assert ecr.calls == [
        Call("InitiateLayerUpload", None, None, "ok"),
        Call("UploadLayerPart", 0, 7, "ok"),
        Call("UploadLayerPart", 0, 7, "throttled"),
    ]


def test_calls_of_returns_calls_of_one_operation_in_order(ecr: LocalECR) -> None:
    assert ecr.calls_of("UploadLayerPart") == []
    call = Caller(ecr.client())
    upload_id = call.initiate()
    call.part(upload_id, 0, BLOB[:8])
    call.complete(upload_id, digest_of(BLOB[:8]))
    call.part(upload_id, 8, BLOB[8:])
    assert ecr.calls_of("UploadLayerPart") == [
        Call("UploadLayerPart", 0, 7, "ok"),
        Call("UploadLayerPart", 8, 19, "UploadNotFoundException"),
    ]
    assert [call.operation for call in ecr.calls_of("InitiateLayerUpload")] == [
        "InitiateLayerUpload"
    ]
    assert ecr.calls_of("PutImage") == []


@pytest.mark.parametrize(
    ("fault", "code", "status"),
    [
        ("throttled", "ThrottlingException", 400),
        ("server_error", "ServerException", 500),
        ("access_denied", "AccessDeniedException", 400),
        ("expired_token", "ExpiredTokenException", 400),
        ("html_503", "503", 503),
    ],
)
def test_fault_answers_with_error(fault: Fault, code: str, status: int, ecr: LocalECR) -> None:
    client: Any = ecr.client()
    ecr.fail("InitiateLayerUpload", fault)
    with pytest.raises(ClientError) as raised:
        client.initiate_layer_upload(repositoryName="demo")
    assert raised.value.response["Error"]["Code"] == code
    assert raised.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert [call.outcome for call in ecr.calls] == [fault]
    assert not ecr.registry.repositories["demo"].uploads


@pytest.mark.parametrize(
    ("fault", "error", "uploads"),
    [
        ("request_lost", ConnectionClosedError, 0),
        ("reset", ConnectionClosedError, 0),
        ("answer_lost", ConnectionClosedError, 1),
        ("answer_garbled", UnicodeDecodeError, 1),
        ("slow", ReadTimeoutError, 1),
    ],
)
def test_fault_loses_or_delays_answer(fault: Fault, error: type[Exception], uploads: int) -> None:
    with LocalECR(slow=60) as ecr:
        read_timeout = 0.1 if fault == "slow" else 60
        config = Config(read_timeout=read_timeout, retries={"total_max_attempts": 1}, proxies={})
        client: Any = ecr.client(config=config)
        ecr.fail("InitiateLayerUpload", fault)
        with pytest.raises(error):
            client.initiate_layer_upload(repositoryName="demo")
        assert [call.outcome for call in ecr.calls] == [fault]
        assert len(ecr.registry.repositories["demo"].uploads) == uploads


def test_fault_cuts_answer(ecr: LocalECR) -> None:
    ecr.fail("InitiateLayerUpload", "answer_cut")
    with send(ecr, INITIATE, DEMO) as response, pytest.raises(http.client.IncompleteRead) as raised:
        response.read()
    assert raised.value.partial.startswith(b'{"uploadId": ')


def test_fault_sends_endless_answer(ecr: LocalECR) -> None:
    ecr.fail("InitiateLayerUpload", "answer_drips")
    with send(ecr, INITIATE, DEMO) as response:
        assert response.read(3) == b"   "


def test_fault_stores_first_half_of_part(ecr: LocalECR) -> None:
    call = Caller(ecr.client())
    upload_id = call.initiate()
    ecr.fail("UploadLayerPart", "stored_in_part")
    with pytest.raises(ConnectionClosedError):
        call.part(upload_id, 0, BLOB[:8])
    assert call.part(upload_id, 0, BLOB[:8])["lastValidByteReceived"] == 3


def test_stored_in_part_accepts_request_without_part(ecr: LocalECR) -> None:
    call = Caller(ecr.client())
    upload_id = call.initiate()
    ecr.fail("UploadLayerPart", "stored_in_part")
    body = json.dumps({"repositoryName": "demo", "uploadId": upload_id}).encode()
    with pytest.raises(http.client.RemoteDisconnected):
        send(ecr, f"{ECR_API}.UploadLayerPart", body)
    assert call.part(upload_id, 0, BLOB[:8])["lastByteReceived"] == 7


def test_fault_forgets_upload(ecr: LocalECR) -> None:
    call = Caller(ecr.client())
    upload_id = call.initiate()
    ecr.fail("UploadLayerPart", "upload_forgotten")
    assert call.part(upload_id, 0, BLOB[:8])["code"] == "UploadNotFoundException"


def test_upload_forgotten_accepts_unknown_repository(ecr: LocalECR) -> None:
    ecr.fail("InitiateLayerUpload", "upload_forgotten")
    error = Caller(ecr.client())("initiate_layer_upload", repositoryName="none")
    assert error["code"] == "RepositoryNotFoundException"


def test_stores_fragment_of_part_whose_connection_breaks() -> None:
    blob = random_bytes(1_000)
    limits = Limits(min_part=1, max_part=1_000, max_parts=2, max_layer=1_000)
    unknowns = Unknowns(broken_part="fragment")
    with LocalECR(limits=limits, unknowns=unknowns) as ecr:
        call = Caller(ecr.client())
        upload_id = call.initiate()
        ecr.fail("UploadLayerPart", "reset")
        with pytest.raises(ConnectionClosedError):
            call.part(upload_id, 0, blob)
        size = call.part(upload_id, 0, blob)["lastValidByteReceived"] + 1
        assert 0 < size < 1_000
        call.part(upload_id, size, blob[size:])
        assert call.complete(upload_id, digest_of(blob))["layerDigest"] == digest_of(blob)


def test_stores_no_fragment_of_other_calls() -> None:
    with LocalECR(unknowns=Unknowns(broken_part="fragment")) as ecr:
        ecr.fail("InitiateLayerUpload", "reset")
        with pytest.raises(ConnectionClosedError):
            Caller(ecr.client()).initiate()
        assert not ecr.registry.repositories["demo"].uploads


def test_fail_counts_calls_from_the_next_one(ecr: LocalECR) -> None:
    call = Caller(ecr.client())
    call.initiate()
    ecr.fail("InitiateLayerUpload", "throttled", call=2, times=2)
    codes = [call("initiate_layer_upload").get("code") for _ in range(4)]
    assert codes == [None, "ThrottlingException", "ThrottlingException", None]


def test_rejects_invalid_fault(ecr: LocalECR) -> None:
    for arguments, message in (
        (("UploadLayerPart", "tired"), "must be one of"),
        (("InitiateLayerUpload", "stored_in_part"), "of UploadLayerPart only"),
        (("Upload", "throttled"), "operation must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            ecr.fail(*arguments)  # type: ignore[arg-type]  # invalid on purpose


def test_responds_with_json_object(call: Caller, ecr: LocalECR) -> None:
    ecr.respond("InitiateLayerUpload", {"uploadId": "u-1", "partSize": 5})
    assert call("initiate_layer_upload") == {"uploadId": "u-1", "partSize": 5}
    assert ecr.calls == [Call("InitiateLayerUpload", None, None, "replaced")]
    assert call.initiate() != "u-1"


def test_responds_with_bytes_and_status(ecr: LocalECR) -> None:
    body = b"\x00 not JSON \xff"
    ecr.respond("InitiateLayerUpload", body, status=202)
    with send(ecr, INITIATE, DEMO) as response:
        assert (response.status, response.read()) == (202, body)
    client: Any = ecr.client()
    ecr.respond("InitiateLayerUpload", b"<html>Bad Gateway</html>", status=502)
    with pytest.raises(ClientError) as raised:
        client.initiate_layer_upload(repositoryName="demo")
    metadata = raised.value.response["ResponseMetadata"]
    assert metadata["HTTPStatusCode"] == 502
    assert metadata["HTTPHeaders"]["content-type"] == "text/html"


def test_respond_carries_out_call_before_it_is_answered(ecr: LocalECR) -> None:
    call = Caller(ecr.client())
    upload_id = call.initiate()
    ecr.respond("UploadLayerPart", {"lastByteReceived": 3}, status=200)
    assert call.part(upload_id, 0, BLOB[:8]) == {"lastByteReceived": 3}
    assert call.part(upload_id, 0, BLOB[:8])["lastValidByteReceived"] == 7
    assert [call.outcome for call in ecr.calls_of("UploadLayerPart")] == [
        "replaced", "InvalidLayerPartException",
    ]  # fmt: skip


def test_respond_replaces_error(call: Caller, ecr: LocalECR) -> None:
    ecr.respond("InitiateLayerUpload", {"uploadId": "u-1"})
    assert call("initiate_layer_upload", repositoryName="none") == {"uploadId": "u-1"}


@pytest.mark.parametrize("namespace", ["", "com.amazonaws.ecr"])
def test_responds_with_ecr_error_instead_of_carrying_out_call(namespace: str) -> None:
    error = EcrError("KmsException", "message", kmsError="KeyDisabled")
    with LocalECR(unknowns=Unknowns(error_namespace=namespace)) as ecr:
        ecr.respond("InitiateLayerUpload", error)
        assert Caller(ecr.client())("initiate_layer_upload") == {
            "code": "KmsException",
            "message": "message",
            "kmsError": "KeyDisabled",
        }
        assert [call.outcome for call in ecr.calls] == ["KmsException"]
        assert not ecr.registry.repositories["demo"].uploads


def test_ecr_error_has_its_own_status(ecr: LocalECR) -> None:
    for code, expected in (("ServerException", 500), ("AnyException", 400)):
        ecr.respond("InitiateLayerUpload", EcrError(code, "message"), status=200)
        status, document = send_rejected(ecr, INITIATE, DEMO)
        assert status == expected
        assert document == {"__type": code, "message": "message"}


def test_respond_counts_calls_from_the_next_one(ecr: LocalECR) -> None:
    call = Caller(ecr.client())
    call.initiate()
    ecr.respond("InitiateLayerUpload", {"uploadId": "u-1"}, call=2, times=2)
    call("batch_check_layer_availability", layerDigests=[DIGEST])
    replaced = [call.initiate() == "u-1" for _ in range(4)]
    assert replaced == [False, True, True, False]
    assert operations(ecr)[1] == "BatchCheckLayerAvailability"
    assert ecr.calls[1].outcome == "ok"


def test_rejects_invalid_arguments_of_respond(ecr: LocalECR) -> None:
    with pytest.raises(ValueError, match=r"operation must be one of .*, not 'Upload'"):
        ecr.respond("Upload", {})
    with pytest.raises(TypeError, match="must be a mapping, bytes or an EcrError, not 'text'"):
        ecr.respond("UploadLayerPart", "text")  # type: ignore[arg-type]  # the point of the test


def test_prints_traceback_of_error_in_the_server(
    ecr: LocalECR, capfd: pytest.CaptureFixture[str]
) -> None:
    ecr.respond("InitiateLayerUpload", EcrError("Code", "message", not_json=object()))
    client: Any = ecr.client(config=Config(retries={"total_max_attempts": 1}))
    with pytest.raises(ConnectionClosedError):
        client.initiate_layer_upload(repositoryName="demo")
    ecr.stop()
    assert "not JSON serializable" in capfd.readouterr().err


def test_ignores_client_that_closes_its_connection(capfd: pytest.CaptureFixture[str]) -> None:
    with LocalECR(slow=0.1) as ecr:
        ecr.fail("InitiateLayerUpload", "slow")
        host, _, port = ecr.endpoint_url.removeprefix("http://").partition(":")
        request = f"POST / HTTP/1.1\r\nHost: {host}\r\nX-Amz-Target: {INITIATE}\r\n"
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"{request}Content-Length: {len(DEMO)}\r\n\r\n".encode() + DEMO)
            while not ecr.calls:
                pass
            # Closing with this option resets the connection.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert capfd.readouterr().err == ""


# Starting and stopping


def test_repr_shows_endpoint_and_repositories() -> None:
    ecr = LocalECR(["demo", "team/app"])
    assert repr(ecr) == "<LocalECR not running, repositories: demo, team/app>"
    with ecr:
        assert repr(ecr) == f"<LocalECR at {ecr.endpoint_url}, repositories: demo, team/app>"
    assert repr(ecr) == "<LocalECR not running, repositories: demo, team/app>"


def test_starts_again_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    ecr = LocalECR()
    for use in (lambda: ecr.endpoint_url, ecr.client):
        with pytest.raises(RuntimeError, match="not running"):
            use()
    ecr.stop()
    ecr.start()
    with pytest.raises(RuntimeError, match="already running"):
        ecr.start()
    assert ecr.endpoint_url.startswith("http://127.0.0.1:")
    layer = LayerUploader(ecr.client(), "demo").upload(BLOB)
    ecr.stop()
    started = set(threading.enumerate()) - before
    assert not [thread for thread in started if not thread.name.startswith("ecr_parts ")]
    assert ecr.layer("demo", layer.digest) == BLOB
    with ecr:
        assert LayerUploader(ecr.client(), "demo").upload(BLOB).existed
    with pytest.raises(KeyError):
        ecr.layer("demo", digest_of(b"missing"))


FORK = """
import http.client, os, sys
from ecr_parts.testing import LocalECR

def open_files():
    return len(os.listdir("/dev/fd"))

with LocalECR() as ecr:
    connection = http.client.HTTPConnection(ecr.endpoint_url.removeprefix("http://"))

    def use_connection():
        connection.request("GET", "/v2/")
        assert connection.getresponse().read() == b"{}"

    use_connection()
    before = open_files()
    child = os.fork()
    if child == 0:
        ecr.stop()
        sys.exit(before - open_files())  # leaves the block, which stops again
    status = os.waitpid(child, 0)[1]
    use_connection()
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_stop_in_forked_child_closes_its_sockets_only() -> None:
    command = [sys.executable, "-c", FORK]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            output, _ = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the child, too
            raise
    # The socket that listens, the connection, and the pair that ends the thread.
    assert output.strip() == b"4"


def test_many_connections_can_wait_to_be_accepted() -> None:
    ecr = LocalECR()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(ecr._service, 0))  # it accepts nothing
        for _ in range(100):
            connection = socket.create_connection(("127.0.0.1", server.server_port), timeout=10)
            stack.enter_context(connection)


def test_environ_points_other_clients_at_it(
    local_ecr: LocalECR, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    for name, value in local_ecr.environ().items():
        monkeypatch.setenv(name, value)
    client = boto3.session.Session().client(service)  # type: ignore[call-overload]  # not a literal
    assert LayerUploader(client, "demo").upload(BLOB).digest == DIGEST
    assert local_ecr.layer("demo", DIGEST) == BLOB


def test_upload_ids_are_predictable() -> None:
    for _ in range(2):
        with LocalECR() as ecr:
            call = Caller(ecr.client())
            expected = [f"00000000-0000-0000-0000-00000000000{number}" for number in (1, 2)]
            assert [call.initiate(), call.initiate()] == expected


def test_upload_ids_of_command_are_unique(start_server: ServerStarter) -> None:
    """So that a checkpoint of an earlier server never matches another upload."""
    calls = [Caller(LocalECR().client(endpoint_url=start_server()[1])) for _ in range(2)]
    assert len({call.initiate() for call in calls for _ in range(2)}) == 4


def test_command_serves_until_terminated(start_server: ServerStarter) -> None:
    _, url = start_server("--repository", "layer-test")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
    client = LocalECR().client(endpoint_url=url)
    assert LayerUploader(client, "layer-test").upload(BLOB).digest == DIGEST


SIGNAL_WHILE_CONDITION_IS_LOCKED = """
import signal, sys, threading
from ecr_parts.testing.__main__ import main

wait = threading.Condition.wait

def wait_after_signal(condition, timeout=None):
    in_main_thread = threading.current_thread() is threading.main_thread()
    # Not the event that Thread.start waits for.
    if in_main_thread and sys._getframe(2).f_globals["__name__"] != "threading":
        signal.raise_signal(signal.SIGTERM)
    return wait(condition, timeout)

threading.Condition.wait = wait_after_signal
main()
"""


def test_command_ends_at_whatever_moment_the_signal_arrives() -> None:
    """A handler that sets the event whose lock is held right now would wait for ever."""
    command = [sys.executable, "-c", SIGNAL_WHILE_CONDITION_IS_LOCKED]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        try:
            process.communicate(timeout=10)
        finally:
            process.kill()
    assert process.returncode == 0


@pytest.mark.skipif(not shutil.which("aws"), reason="the AWS CLI is not installed")
def test_answers_aws_cli_as_in_its_manual(start_server: ServerStarter, tmp_path: Path) -> None:
    _, url = start_server("--repository", "layer-test")
    blob = tmp_path / "layer"
    blob.write_bytes(BLOB)
    names = {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }

    def aws(*arguments: str) -> Any:
        command = ["aws", "ecr", *arguments, "--repository-name", "layer-test", "--output", "json"]
        done = subprocess.run(
            [*command, "--endpoint-url", url],
            env={**os.environ, **names},
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)

    version = subprocess.run(["aws", "--version"], capture_output=True, text=True, check=True)
    initiated = aws("initiate-layer-upload")
    upload_id = initiated["uploadId"]
    assert initiated == {"partSize": 10_485_760, "uploadId": upload_id}
    if version.stdout.startswith("aws-cli/1"):
        blob_argument = blob.as_uri().replace("file://", "fileb://")
    else:
        blob_argument = base64.b64encode(BLOB).decode()
    assert aws(
        *("upload-layer-part", "--upload-id", upload_id, "--part-first-byte", "0"),
        *("--part-last-byte", "19", "--layer-part-blob", blob_argument),
    ) == {
        "uploadId": upload_id,
        "registryId": "012345678910",
        "lastByteReceived": 19,
        "repositoryName": "layer-test",
    }
    assert aws("complete-layer-upload", "--upload-id", upload_id, "--layer-digests", DIGEST) == {
        "uploadId": upload_id,
        "layerDigest": DIGEST,
        "repositoryName": "layer-test",
        "registryId": "012345678910",
    }
    available = aws("batch-check-layer-availability", "--layer-digests", DIGEST)
    assert available["failures"] == []
    assert available["layers"][0] == {
        "layerDigest": DIGEST,
        "layerAvailability": "AVAILABLE",
        "layerSize": 20,
        "mediaType": "application/vnd.docker.image.rootfs.diff.tar",
    }


def test_request_for_another_host_does_not_use_up_fault(ecr: LocalECR) -> None:
    ecr.fail("InitiateLayerUpload", "throttled")
    host, _, port = ecr.endpoint_url.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    headers = {"Host": "example.com", "X-Amz-Target": INITIATE}
    connection.request("POST", "/", DEMO, headers)
    assert connection.getresponse().status == 400
    connection.close()
    client: Any = ecr.client()
    with pytest.raises(ClientError, match="Throttling"):
        client.initiate_layer_upload(repositoryName="demo")


def test_ecr_error_can_be_pickled() -> None:
    error = EcrError("KmsException", "message", kmsError="KeyDisabled")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.code, copy.body, str(copy)) == (error.code, error.body, "message")


def test_fail_points_to_respond_for_errors(ecr: LocalECR) -> None:
    with pytest.raises(TypeError, match="respond"):
        ecr.fail("InitiateLayerUpload", EcrError("Code", "message"))  # type: ignore[arg-type]  # wrong on purpose


def test_every_operation_is_documented() -> None:
    with pytest.raises(ValueError, match="one of") as raised:
        LocalECR().fail("NoOperation", "slow")
    operations = re.findall(r"[A-Z][A-Za-z]+", str(raised.value).partition("one of")[2])[:-1]
    documented = (
        str(LocalECR.__doc__).partition("operations of its API are")[2].partition(",\n    for")[0]
    )
    assert re.findall(r"[A-Z][a-z]\w+", documented.partition(", for")[0]) == operations
