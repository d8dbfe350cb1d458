"""What goes over the wire is what botocore would have sent, and is signed as the service checks."""

from __future__ import annotations

import base64
import copy
import gc
import hashlib
import hmac
import json
import subprocess
import sys
import types
from typing import Any
from urllib.parse import urlsplit

import botocore
import botocore.session
import pytest
from botocore.config import Config
from botocore.stub import Stubber
from helpers import PATIENT, SMALL, bytes_of, digest_of

import ecr_parts._request
from ecr_parts import CLIENT_CONFIG, LayerUploader
from ecr_parts._request import EncodedBlob, accept_encoded_blobs, encode_blob
from ecr_parts.testing import Fault, LocalECR

BLOB = bytes_of(45)
DIGEST = digest_of(BLOB)
SECRET = "local"


def requests_of(client: Any) -> list[Any]:
    """The requests that ``client`` sends from now on, as they are sent."""
    sent: list[Any] = []
    # Copies, as a request of the library's has a body that is empty once it was sent.
    client.meta.events.register(
        "before-send.*.*", lambda request, **_: sent.append(copy.copy(request))
    )
    return sent


def text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def signature_holds(request: Any, secret: str) -> bool:
    """Check a request as AWS documents it (Signature Version 4), from what arrives alone."""
    headers = {name.lower(): text(value) for name, value in request.headers.items()}
    headers["host"] = urlsplit(request.url).netloc
    fields = dict(
        field.strip().split("=", 1)
        for field in headers["authorization"].removeprefix("AWS4-HMAC-SHA256 ").split(",")
    )
    _, date, region, service, _ = fields["Credential"].split("/")
    payload = hashlib.sha256(request.body).hexdigest()
    if headers.get("x-amz-content-sha256", payload) != payload:
        return False
    names = fields["SignedHeaders"].split(";")
    canonical = "\n".join(
        [
            "POST",
            "/",
            "",
            *(f"{name}:{headers[name]}" for name in names),
            "",
            ";".join(names),
            payload,
        ]
    )
    scope = f"{date}/{region}/{service}/aws4_request"
    to_sign = "\n".join(
        [
            "AWS4-HMAC-SHA256",
            headers["x-amz-date"],
            scope,
            hashlib.sha256(canonical.encode()).hexdigest(),
        ]
    )
    key = f"AWS4{secret}".encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
    return signature == fields["Signature"]


@pytest.mark.parametrize("service", ["ecr", "ecr-public"])
@pytest.mark.parametrize("registry_id", [None, "012345678910"])
@pytest.mark.parametrize("token", [None, "session-token"])
def test_the_body_is_botocores_and_the_signature_holds(
    service: str, registry_id: str | None, token: str | None, ecr: LocalECR
) -> None:
    client: Any = ecr.client(service, aws_session_token=token)
    plain: Any = ecr.client(service, aws_session_token=token)
    sent, expected = requests_of(client), requests_of(plain)

    uploader = LayerUploader(client, "demo", limits=SMALL, registry_id=registry_id)
    uploader.upload(BLOB)

    assert ecr.layer("demo", DIGEST) == BLOB
    targets = [text(request.headers["X-Amz-Target"]).partition(".")[2] for request in sent]
    assert targets.count("UploadLayerPart") == 6
    for request, target in zip(sent, targets, strict=True):
        assert signature_holds(request, SECRET)
        assert (token is None) == ("X-Amz-Security-Token" not in request.headers)
        if target != "UploadLayerPart":
            assert "X-Amz-Content-SHA256" not in request.headers
            continue
        parameters = json.loads(request.body)
        first, last = parameters["partFirstByte"], parameters["partLastByte"]
        names = {"repositoryName": "demo"}
        if registry_id is not None:
            names["registryId"] = registry_id
        with pytest.raises(plain.exceptions.UploadNotFoundException):
            plain.upload_layer_part(
                **names,
                uploadId=parameters["uploadId"],
                partFirstByte=first,
                partLastByte=last,
                layerPartBlob=BLOB[first : last + 1],
            )
        assert request.body == expected[-1].body
        ours, theirs = dict(request.headers), dict(expected[-1].headers)
        sha256 = ours.pop("X-Amz-Content-SHA256")
        assert text(sha256) == hashlib.sha256(request.body).hexdigest()
        changing = {"X-Amz-Date", "Authorization", "amz-sdk-invocation-id"}
        assert {k: v for k, v in ours.items() if k not in changing} == {
            k: v for k, v in theirs.items() if k not in changing
        }


def test_the_check_itself_refuses(ecr: LocalECR) -> None:
    client = ecr.client()
    sent = requests_of(client)
    LayerUploader(client, "demo", limits=SMALL).upload(BLOB)
    request = next(r for r in sent if "X-Amz-Content-SHA256" in r.headers)

    assert signature_holds(request, SECRET)
    assert not signature_holds(request, "another secret")
    body = request.body
    request.body = body.replace(b'"demo"', b'"demi"')
    assert not signature_holds(request, SECRET)
    request.body = body
    request.headers["X-Amz-Content-SHA256"] = hashlib.sha256(b"other").hexdigest()
    assert not signature_holds(request, SECRET)


def test_each_of_botocores_own_attempts_is_signed(ecr: LocalECR, mocker: Any) -> None:
    mocker.patch("time.sleep")
    retries: Any = {"mode": "standard", "total_max_attempts": 3}
    client = ecr.client(config=Config(proxies={}, retries=retries))
    sent = requests_of(client)
    ecr.fail("UploadLayerPart", "server_error", call=2, times=2)

    layer = LayerUploader(client, "demo", limits=SMALL, retrying=PATIENT).upload(BLOB)

    parts = [request for request in sent if "X-Amz-Content-SHA256" in request.headers]
    assert len(parts) == 6 + 2
    assert all(signature_holds(request, SECRET) for request in parts)
    assert {part.attempts for part in layer.parts} == {1}


@pytest.mark.parametrize("mode", ["ours", "legacy", "standard", "adaptive"])
def test_a_large_body_leaves_in_pieces_and_is_sent_again_whole(
    mode: Any, local_ecr: LocalECR, mocker: Any
) -> None:
    mocker.patch("time.sleep")  # botocore's own waits
    config = CLIENT_CONFIG if mode == "ours" else Config(retries={"mode": mode})
    client: Any = local_ecr.client(config=config.merge(Config(proxies={})))
    sent: list[Any] = []
    uploader = LayerUploader(client, "demo", retrying=PATIENT)
    client.meta.events.register_last("before-send", lambda request, **_: sent.append(request))
    faults: list[Fault] = ["reset", "answer_lost", "server_error", "html_503"]
    for call, fault in enumerate(faults, start=1):
        local_ecr.fail("UploadLayerPart", fault, call=call)
    blob = bytes_of(11 * 1024**2)

    layer = uploader.upload(blob)

    assert local_ecr.layer("demo", layer.digest) == blob
    parts = [request for request in sent if "X-Amz-Content-SHA256" in request.headers]
    assert len(parts) >= 6
    assert not any(isinstance(request.body, bytes) for request in parts)


def test_unsigned_requests_are_left_unsigned(ecr: LocalECR) -> None:
    client = ecr.client(config=Config(proxies={}, signature_version=botocore.UNSIGNED))
    sent = requests_of(client)
    LayerUploader(client, "demo", limits=SMALL).upload(BLOB)
    assert ecr.layer("demo", DIGEST) == BLOB
    for request in sent:
        assert "Authorization" not in request.headers
        assert "X-Amz-Content-SHA256" not in request.headers


def test_other_calls_of_the_same_client_are_not_changed(ecr: LocalECR) -> None:
    client: Any = ecr.client()
    LayerUploader(client, "demo", limits=SMALL).upload(BLOB)
    sent = requests_of(client)
    upload_id = client.initiate_layer_upload(repositoryName="demo")["uploadId"]
    client.upload_layer_part(
        repositoryName="demo", uploadId=upload_id, partFirstByte=0, partLastByte=7,
        layerPartBlob=BLOB[:8],
    )  # fmt: skip
    for request in sent:
        assert "X-Amz-Content-SHA256" not in request.headers
        assert signature_holds(request, SECRET)
    assert json.loads(sent[1].body)["partLastByte"] == 7


def test_many_uploaders_attach_to_a_client_once(ecr: LocalECR) -> None:
    client: Any = ecr.client()
    counted: list[object] = []
    for _ in range(3):
        LayerUploader(client, "demo", limits=SMALL)
    client.meta.events.register("before-sign.ecr.UploadLayerPart", lambda **_: counted.append(1))
    LayerUploader(client, "demo", limits=SMALL).upload(BLOB)
    assert len(counted) == 6
    assert ecr.layer("demo", DIGEST) == BLOB


def test_a_handler_that_changes_the_parameters_is_heard(ecr: LocalECR) -> None:
    """Somebody's own event handler names the registry; the blob goes with it all the same."""
    client: Any = ecr.client()
    uploader = LayerUploader(client, "demo", limits=SMALL)

    def name_the_registry(params: Any, **_event: object) -> None:
        params["registryId"] = "012345678910"

    client.meta.events.register("before-parameter-build.ecr.UploadLayerPart", name_the_registry)
    sent = requests_of(client)
    uploader.upload(BLOB)
    assert ecr.layer("demo", DIGEST) == BLOB
    parts = [r for r in sent if b"layerPartBlob" in r.body]
    assert all(json.loads(r.body)["registryId"] == "012345678910" for r in parts)
    assert all(signature_holds(request, SECRET) for request in sent)


def test_a_stubber_sees_the_bytes() -> None:
    client: Any = botocore.session.Session().create_client("ecr", region_name="us-east-1")
    assert accept_encoded_blobs(client)
    parameters: dict[str, Any] = {
        "repositoryName": "demo", "uploadId": "u-1", "partFirstByte": 0, "partLastByte": 44,
    }  # fmt: skip
    with Stubber(client) as stub:
        for expected in (BLOB, BLOB[:-1] + b"!"):
            stub.add_response(
                "upload_layer_part",
                {"lastByteReceived": 44},
                {**parameters, "layerPartBlob": expected},
            )
        blob = encode_blob(parameters, BLOB)
        client.upload_layer_part(**parameters, layerPartBlob=blob)
        with pytest.raises(AssertionError, match="layerPartBlob"):
            client.upload_layer_part(**parameters, layerPartBlob=blob)


def test_a_prepared_blob_is_sent_from_any_thread(ecr: LocalECR) -> None:
    client: Any = ecr.client()
    assert accept_encoded_blobs(client)
    upload_id = client.initiate_layer_upload(repositoryName="demo")["uploadId"]
    names = {"repositoryName": "demo", "uploadId": upload_id}
    parameters: Any = {**names, "partFirstByte": 0, "partLastByte": 7}
    client.upload_layer_part(**parameters, layerPartBlob=encode_blob(parameters, BLOB[:8]))
    client.complete_layer_upload(**names, layerDigests=[digest_of(BLOB[:8])])
    assert ecr.layer("demo", digest_of(BLOB[:8])) == BLOB[:8]


def test_an_encoded_blob_equals_its_bytes() -> None:
    blob = encode_blob({"repositoryName": "demo"}, memoryview(BLOB))
    assert blob == BLOB
    assert blob == BLOB
    assert blob != BLOB[:-1]
    assert repr(blob) == "<60 bytes of base64>"
    assert isinstance(blob, bytes)
    assert len(blob) == 0
    with pytest.raises(TypeError):
        hash(blob)


@pytest.mark.parametrize("name", ["ünï/code", 'quo"ted', "plain"])
def test_the_envelope_is_json_whatever_the_names(name: str) -> None:
    blob = encode_blob({"repositoryName": name, "partFirstByte": 0}, BLOB)
    document = json.loads(blob.body)
    assert document["repositoryName"] == name
    assert blob.sha256 == hashlib.sha256(blob.body).hexdigest()


def test_other_clients_get_plain_bytes(mocker: Any) -> None:
    client = mocker.Mock()
    client.initiate_layer_upload.return_value = {"uploadId": "u-1", "partSize": 10 * 1024**2}
    client.upload_layer_part.return_value = {"lastByteReceived": 44}
    client.complete_layer_upload.return_value = {"layerDigest": DIGEST}

    LayerUploader(client, "demo").upload(BLOB, check_existing=False)

    blob = client.upload_layer_part.call_args.kwargs["layerPartBlob"]
    assert type(blob) is bytes
    assert blob == BLOB


def test_a_service_that_speaks_no_json_gets_plain_bytes(ecr: LocalECR) -> None:
    client: Any = ecr.client()
    vars(client.meta.service_model)["resolved_protocol"] = "smithy-rpc-v2-cbor"
    assert not accept_encoded_blobs(client)


def test_pybase64_is_used_where_it_is_installed(
    ecr: LocalECR, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []

    def b64encode(blob: Any) -> bytes:
        used.append(len(blob))
        return base64.b64encode(blob)

    stand_in: Any = types.ModuleType("pybase64")
    stand_in.b64encode = b64encode
    monkeypatch.setitem(sys.modules, "pybase64", stand_in)
    monkeypatch.setattr(ecr_parts._request, "_base64", ecr_parts._request._fastest_base64())
    LayerUploader(ecr.client(), "demo", limits=SMALL).upload(BLOB)
    assert used == [8, 8, 8, 8, 8, 5]


def test_without_pybase64_everything_works(ecr: LocalECR, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pybase64", None)
    monkeypatch.setattr(ecr_parts._request, "_base64", ecr_parts._request._fastest_base64())
    assert ecr_parts._request._base64 is base64.b64encode
    LayerUploader(ecr.client(), "demo", limits=SMALL).upload(BLOB)
    assert ecr.layer("demo", DIGEST) == BLOB


def modules_after(code: str) -> set[str]:
    program = f"import sys; {code}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_it_imports_little_more_than_a_botocore_session() -> None:
    used = "from ecr_parts import LayerUploader"
    added = modules_after(used) - modules_after("import botocore.session")
    assert not added & {"boto3", "http.server", "pytest"}
    assert not {name for name in added if "testing" in name}


def test_importing_the_package_alone_imports_nothing() -> None:
    added = modules_after("import ecr_parts")
    assert not {name for name in added if name.startswith(("botocore", "tenacity", "ecr_parts."))}


def test_importing_the_pytest_plugin_imports_nothing_of_ours() -> None:
    added = modules_after("import ecr_parts.testing.pytest_plugin") - modules_after("import pytest")
    assert not {name for name in added if name.startswith(("botocore", "tenacity"))}


def test_a_part_may_be_sent_from_many_threads_at_once(ecr: LocalECR) -> None:
    from concurrent.futures import ThreadPoolExecutor

    client = ecr.client()
    blobs = [bytes_of(200, seed) for seed in range(16)]

    def upload(blob: bytes) -> str:
        return LayerUploader(client, "demo", limits=SMALL, retrying=PATIENT).upload(blob).digest

    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(upload, blobs))
    assert digests == [digest_of(blob) for blob in blobs]
    assert all(ecr.layer("demo", digest_of(blob)) == blob for blob in blobs)


@pytest.mark.parametrize("fault", ["answer_lost", "reset", "throttled", "html_503", "slow"])
def test_a_failed_attempt_keeps_no_part(fault: Any) -> None:
    """Exceptions go in cycles; what they hold must not wait for Python to look for those."""
    with LocalECR(limits=SMALL, part_size=8, slow=60) as ecr:
        client = ecr.client(config=CLIENT_CONFIG.merge(Config(proxies={}, read_timeout=0.1)))
        uploader = LayerUploader(client, "demo", limits=SMALL, retrying=PATIENT)
        uploader.upload(b"first")
        gc.collect()
        gc.disable()
        try:
            ecr.fail("UploadLayerPart", fault, times=2)
            uploader.upload(BLOB)
            assert [thing for thing in gc.get_objects() if type(thing) is EncodedBlob] == []
        finally:
            gc.enable()
