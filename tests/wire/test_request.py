"""The requests that are sent equal botocore's own, and their signatures are valid."""

from __future__ import annotations

import base64
import copy
import functools
import gc
import hashlib
import hmac
import json
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import botocore
import botocore.session
import pytest
from botocore.config import Config
from botocore.stub import Stubber
from helpers import NO_WAIT, SMALL_LIMITS, digest_of, random_bytes, wait_until

from ecr_parts import CLIENT_CONFIG, LayerUploader
from ecr_parts._base import fast_base64
from ecr_parts._wire.request import EncodedBlob, accept_encoded_blobs, encode_blob
from ecr_parts.testing import Fault, LocalECR

BLOB = random_bytes(45)
DIGEST = digest_of(BLOB)
SECRET = "local"
"""The secret access key of ``LocalECR.client``."""


def record_requests(client: Any) -> list[Any]:
    """A list to which each request is added that ``client`` sends from now on."""
    sent: list[Any] = []
    # Copies, because the library empties a request's body once it was sent.
    client.meta.events.register(
        "before-send.*.*", lambda request, **_: sent.append(copy.copy(request))
    )
    return sent


def to_str(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def is_signature_valid(request: Any, secret: str) -> bool:
    """Verify a request's signature as AWS documents it (Signature Version 4)."""
    headers = {name.lower(): to_str(value) for name, value in request.headers.items()}
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
def test_body_equals_botocores_and_signature_is_valid(
    service: str, registry_id: str | None, token: str | None, ecr: LocalECR
) -> None:
    client: Any = ecr.client(service, aws_session_token=token)
    plain: Any = ecr.client(service, aws_session_token=token)
    sent, expected = record_requests(client), record_requests(plain)

    uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS, registry_id=registry_id)
    uploader.upload(BLOB)

    assert ecr.layer("demo", DIGEST) == BLOB
    targets = [to_str(request.headers["X-Amz-Target"]).partition(".")[2] for request in sent]
    assert targets.count("UploadLayerPart") == 6
    for request, target in zip(sent, targets, strict=True):
        assert is_signature_valid(request, SECRET)
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
        headers, expected_headers = dict(request.headers), dict(expected[-1].headers)
        sha256 = headers.pop("X-Amz-Content-SHA256")
        assert to_str(sha256) == hashlib.sha256(request.body).hexdigest()
        for name in ("X-Amz-Date", "Authorization", "amz-sdk-invocation-id"):  # differ per request
            headers.pop(name, None)
            expected_headers.pop(name, None)
        assert headers == expected_headers


def test_signature_check_detects_changes(ecr: LocalECR) -> None:
    client = ecr.client()
    sent = record_requests(client)
    LayerUploader(client, "demo", limits=SMALL_LIMITS).upload(BLOB)
    request = next(part for part in sent if "X-Amz-Content-SHA256" in part.headers)

    assert is_signature_valid(request, SECRET)
    assert not is_signature_valid(request, "another secret")
    body = request.body
    request.body = body.replace(b'"demo"', b'"demi"')
    assert not is_signature_valid(request, SECRET)
    request.body = body
    request.headers["X-Amz-Content-SHA256"] = hashlib.sha256(b"other").hexdigest()
    assert not is_signature_valid(request, SECRET)


def test_signs_each_of_botocores_own_attempts(ecr: LocalECR, mocker: Any) -> None:
    mocker.patch("time.sleep")  # botocore's own waits
    retries: Any = {"mode": "standard", "total_max_attempts": 3}
    client = ecr.client(config=Config(proxies={}, retries=retries))
    sent = record_requests(client)
    ecr.fail("UploadLayerPart", "server_error", call=2, times=2)

    layer = LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT).upload(BLOB)

    parts = [request for request in sent if "X-Amz-Content-SHA256" in request.headers]
    assert len(parts) == 6 + 2
    assert all(is_signature_valid(request, SECRET) for request in parts)
    assert {part.attempts for part in layer.parts} == {1}


@pytest.mark.parametrize(
    "config",
    [
        CLIENT_CONFIG,
        Config(retries={"mode": "legacy"}),
        Config(retries={"mode": "standard"}),
        Config(retries={"mode": "adaptive"}),
    ],
    ids=["CLIENT_CONFIG", "legacy", "standard", "adaptive"],
)
def test_sends_large_body_in_pieces_and_resends_it_whole(
    config: Config, local_ecr: LocalECR, mocker: Any
) -> None:
    mocker.patch("time.sleep")  # botocore's own waits
    client: Any = local_ecr.client(config=config.merge(Config(proxies={})))
    sent: list[Any] = []
    uploader = LayerUploader(client, "demo", retrying=NO_WAIT)
    client.meta.events.register_last("before-send", lambda request, **_: sent.append(request))
    faults: list[Fault] = ["reset", "answer_lost", "server_error", "html_503"]
    for call, fault in enumerate(faults, start=1):
        local_ecr.fail("UploadLayerPart", fault, call=call)
    blob = random_bytes(11 * 1024**2)

    layer = uploader.upload(blob)

    assert local_ecr.layer("demo", layer.digest) == blob
    parts = [request for request in sent if "X-Amz-Content-SHA256" in request.headers]
    assert len(parts) >= 6
    assert not any(isinstance(request.body, bytes) for request in parts)


def test_leaves_unsigned_requests_unsigned(ecr: LocalECR) -> None:
    client = ecr.client(config=Config(proxies={}, signature_version=botocore.UNSIGNED))
    sent = record_requests(client)
    LayerUploader(client, "demo", limits=SMALL_LIMITS).upload(BLOB)
    assert ecr.layer("demo", DIGEST) == BLOB
    for request in sent:
        assert "Authorization" not in request.headers
        assert "X-Amz-Content-SHA256" not in request.headers


def test_does_not_change_other_calls_of_the_client(ecr: LocalECR) -> None:
    client: Any = ecr.client()
    LayerUploader(client, "demo", limits=SMALL_LIMITS).upload(BLOB)
    sent = record_requests(client)
    upload_id = client.initiate_layer_upload(repositoryName="demo")["uploadId"]
    client.upload_layer_part(
        repositoryName="demo", uploadId=upload_id, partFirstByte=0, partLastByte=7,
        layerPartBlob=BLOB[:8],
    )  # fmt: skip
    for request in sent:
        assert "X-Amz-Content-SHA256" not in request.headers
        assert is_signature_valid(request, SECRET)
    assert json.loads(sent[1].body)["partLastByte"] == 7


def test_several_uploaders_register_handlers_once(ecr: LocalECR) -> None:
    client: Any = ecr.client()
    signed: list[object] = []
    for _ in range(3):
        LayerUploader(client, "demo", limits=SMALL_LIMITS)
    client.meta.events.register("before-sign.ecr.UploadLayerPart", lambda **_: signed.append(1))
    LayerUploader(client, "demo", limits=SMALL_LIMITS).upload(BLOB)
    assert len(signed) == 6
    assert ecr.layer("demo", DIGEST) == BLOB


def test_sends_parameters_that_another_handler_added(ecr: LocalECR) -> None:
    client: Any = ecr.client()
    uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS)

    def add_registry_id(params: Any, **_event: object) -> None:
        params["registryId"] = "012345678910"

    client.meta.events.register("before-parameter-build.ecr.UploadLayerPart", add_registry_id)
    sent = record_requests(client)
    uploader.upload(BLOB)
    assert ecr.layer("demo", DIGEST) == BLOB
    parts = [request for request in sent if b"layerPartBlob" in request.body]
    assert len(parts) == 6
    assert all(json.loads(part.body)["registryId"] == "012345678910" for part in parts)
    assert all(is_signature_valid(request, SECRET) for request in sent)


def counting_bytes(seen: list[object], params: Any, **_event: object) -> None:
    """As a handler does that meters what is uploaded."""
    blob = params["layerPartBlob"]
    seen.append((len(blob), bytes(blob)))


def copying_blob(_seen: list[object], params: Any, **_event: object) -> None:
    params["layerPartBlob"] = bytes(params["layerPartBlob"])


def replacing_blob_by_array(_seen: list[object], params: Any, **_event: object) -> None:
    params["layerPartBlob"] = bytearray(params["layerPartBlob"])


@pytest.mark.parametrize("handle", [counting_bytes, copying_blob, replacing_blob_by_array])
@pytest.mark.parametrize("register", ["register_first", "register", "register_last"])
@pytest.mark.parametrize("before", [False, True], ids=["after the uploader", "before it"])
def test_other_handlers_see_raw_bytes_and_may_copy_them(
    handle: Any, register: str, before: bool, ecr: LocalECR
) -> None:
    client: Any = ecr.client()
    sent, seen = record_requests(client), list[object]()
    uploader = None if before else LayerUploader(client, "demo", limits=SMALL_LIMITS)
    getattr(client.meta.events, register)(
        "before-parameter-build.ecr.UploadLayerPart", functools.partial(handle, seen)
    )
    uploader = uploader or LayerUploader(client, "demo", limits=SMALL_LIMITS)
    uploader.upload(BLOB)
    assert ecr.layer("demo", DIGEST) == BLOB
    assert all(is_signature_valid(request, SECRET) for request in sent)
    if handle is counting_bytes:
        assert seen == [(len(BLOB[i : i + 8]), BLOB[i : i + 8]) for i in range(0, 45, 8)]


def test_sends_what_another_handler_puts_in_the_place_of_the_blob(ecr: LocalECR) -> None:
    client: Any = ecr.client()
    uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS)

    def replace(params: Any, **_event: object) -> None:
        params["layerPartBlob"] = bytes(8)

    client.meta.events.register("before-parameter-build.ecr.UploadLayerPart", replace)
    session = uploader.initiate()
    uploader.upload_part(session, BLOB[:8])
    assert uploader.complete(session, digest_of(bytes(8))).size == 8


@pytest.mark.parametrize("register", ["register_first", "register", "register_last"])
def test_signs_body_that_another_handler_changed(register: str, ecr: LocalECR) -> None:
    client: Any = ecr.client()
    uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS)
    sent = record_requests(client)

    def add_space(request: Any, **_event: object) -> None:
        request.data += b" "

    getattr(client.meta.events, register)("before-sign.ecr.UploadLayerPart", add_space)
    uploader.upload(BLOB)
    assert ecr.layer("demo", DIGEST) == BLOB
    parts = [request for request in sent if request.body.endswith(b"} ")]
    assert len(parts) == 6
    assert all(is_signature_valid(request, SECRET) for request in parts)


def test_stubber_compares_raw_bytes() -> None:
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
        blob = encode_blob(parameters, [BLOB])
        client.upload_layer_part(**parameters, layerPartBlob=blob)
        with pytest.raises(AssertionError, match="layerPartBlob"):
            client.upload_layer_part(**parameters, layerPartBlob=blob)


def test_sends_encoded_blob_outside_library_threads(ecr: LocalECR) -> None:
    client: Any = ecr.client()
    assert accept_encoded_blobs(client)
    upload_id = client.initiate_layer_upload(repositoryName="demo")["uploadId"]
    names = {"repositoryName": "demo", "uploadId": upload_id}
    parameters: Any = {**names, "partFirstByte": 0, "partLastByte": 7}
    client.upload_layer_part(**parameters, layerPartBlob=encode_blob(parameters, [BLOB[:8]]))
    client.complete_layer_upload(**names, layerDigests=[digest_of(BLOB[:8])])
    assert ecr.layer("demo", digest_of(BLOB[:8])) == BLOB[:8]


def test_encoded_blob_looks_like_raw_bytes() -> None:
    blob = encode_blob({"repositoryName": "demo"}, [memoryview(BLOB)])
    assert blob == BLOB
    assert blob != BLOB[:-1]
    assert bytes(blob) == BLOB
    assert list(blob) == list(BLOB)
    assert (len(blob), bool(blob), blob[0], blob[-5:]) == (45, True, BLOB[0], BLOB[-5:])
    assert len(encode_blob({}, [b"1234"])) == 4
    assert not encode_blob({}, [])
    assert repr(blob) == "<45 bytes, encoded>"
    assert blob.__buffer__(0) == BLOB  # which only Python 3.12 and later call themselves
    with pytest.raises(TypeError):
        hash(blob)


def test_encoded_blob_is_no_empty_buffer() -> None:
    blob: Any = encode_blob({"repositoryName": "demo"}, [BLOB])
    if sys.version_info >= (3, 12):
        assert hashlib.sha256(blob).hexdigest() == hashlib.sha256(BLOB).hexdigest()
    else:
        with pytest.raises(TypeError, match="buffer"):
            hashlib.sha256(blob)


@pytest.mark.parametrize("name", ["ünï/code", 'quo"ted', "plain"])
def test_encoded_body_is_valid_json_for_any_name(name: str) -> None:
    blob = encode_blob({"repositoryName": name, "partFirstByte": 0}, [BLOB])
    document = json.loads(blob.body)
    assert document["repositoryName"] == name
    assert blob.sha256 == hashlib.sha256(blob.body).hexdigest()


def test_passes_raw_bytes_to_clients_other_than_botocores(mocker: Any) -> None:
    client = mocker.Mock()
    client.initiate_layer_upload.return_value = {"uploadId": "u-1", "partSize": 10 * 1024**2}
    client.upload_layer_part.return_value = {"lastByteReceived": 44}
    client.complete_layer_upload.return_value = {"layerDigest": DIGEST}

    LayerUploader(client, "demo").upload(BLOB, check_existing=False)

    blob = client.upload_layer_part.call_args.kwargs["layerPartBlob"]
    assert type(blob) is bytes
    assert blob == BLOB


def test_does_not_encode_for_protocols_other_than_json(ecr: LocalECR) -> None:
    client: Any = ecr.client()
    vars(client.meta.service_model)["resolved_protocol"] = "smithy-rpc-v2-cbor"
    assert not accept_encoded_blobs(client)


def test_uses_pybase64_if_installed(ecr: LocalECR, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded_sizes: list[int] = []

    def b64encode(blob: Any) -> bytes:
        encoded_sizes.append(len(blob))
        return base64.b64encode(blob)

    fake_pybase64: Any = types.ModuleType("pybase64")
    fake_pybase64.b64encode, fake_pybase64.b64decode = b64encode, base64.b64decode
    monkeypatch.setitem(sys.modules, "pybase64", fake_pybase64)
    monkeypatch.setattr(fast_base64, "encode", fast_base64.fastest()[0])
    LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS).upload(BLOB)
    assert encoded_sizes == [8, 8, 8, 8, 8, 5]


def test_works_without_pybase64(ecr: LocalECR, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pybase64", None)
    encode, decode = fast_base64.fastest()
    assert (encode, decode(encode(b"text"))) == (base64.b64encode, b"text")
    monkeypatch.setattr(fast_base64, "encode", encode)
    LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS).upload(BLOB)
    assert ecr.layer("demo", DIGEST) == BLOB


def modules_imported_by(statement: str, *, after: str = "pass") -> set[str]:
    """The modules that ``statement`` imports in a new interpreter, after ``after`` was run."""
    program = (
        f"import sys; {after}; before = set(sys.modules); {statement}; "
        "print(*set(sys.modules) - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_uploader_imports_little_besides_botocore() -> None:
    imported = modules_imported_by(
        "from ecr_parts import LayerUploader", after="import botocore.session"
    )
    assert "ecr_parts" in imported
    assert not imported & {"boto3", "http.server", "pytest"}
    assert not {name for name in imported if "testing" in name}


def test_importing_package_imports_no_dependency() -> None:
    imported = modules_imported_by("import ecr_parts")
    assert "ecr_parts" in imported
    unwanted = ("botocore", "tenacity", "ecr_parts.")
    found = {name for name in imported if name.startswith(unwanted)}
    assert found <= {"ecr_parts._version"}


def test_importing_pytest_plugin_imports_no_dependency() -> None:
    imported = modules_imported_by("import ecr_parts.testing.pytest_plugin", after="import pytest")
    assert "ecr_parts" in imported
    assert not {name for name in imported if name.startswith(("botocore", "tenacity"))}


def test_uploads_from_several_threads_with_one_client(ecr: LocalECR) -> None:
    client = ecr.client()
    blobs = [random_bytes(100, seed) for seed in range(16)]

    def upload(blob: bytes) -> str:
        return (
            LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT).upload(blob).digest
        )

    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(upload, blobs))
    assert digests == [digest_of(blob) for blob in blobs]
    assert all(ecr.layer("demo", digest_of(blob)) == blob for blob in blobs)


@pytest.mark.parametrize("fault", ["answer_lost", "reset", "throttled", "html_503", "slow"])
def test_failed_attempts_release_their_parts(fault: Fault) -> None:
    """Parts in reference cycles of exceptions would live until Python's collector runs."""
    with LocalECR(limits=SMALL_LIMITS, part_size=8, slow=60) as ecr:
        client = ecr.client(config=CLIENT_CONFIG.merge(Config(proxies={}, read_timeout=0.1)))
        uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
        uploader.upload(b"first")
        gc.collect()
        gc.disable()
        try:
            ecr.fail("UploadLayerPart", fault, times=2)
            uploader.upload(BLOB)
            wait_until(lambda: EncodedBlob not in map(type, gc.get_objects()))
        finally:
            gc.enable()
