"""How failed calls become errors of this library: what they say, and what they must not show."""

from __future__ import annotations

import base64
import html
import json
import logging
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import botocore.session
import pytest
from botocore.config import Config
from botocore.credentials import DeferredRefreshableCredentials
from botocore.exceptions import ClientError, EndpointConnectionError
from helpers import NO_WAIT, SMALL_LIMITS, digest_of, random_bytes
from image_makers import LAYERS, Layout

from ecr_parts import (
    CLIENT_CONFIG,
    DigestMismatchError,
    EcrPartsError,
    LayerUploader,
    ServiceError,
    UnexpectedResponseError,
    default_retrying,
)
from ecr_parts._base.redaction import HIDDEN_URL, show_url
from ecr_parts._wire.answers import last_valid_byte
from ecr_parts._wire.api import METHODS
from ecr_parts._wire.failures import REMEDIES
from ecr_parts.testing import EcrError, LocalECR

BLOB = random_bytes(45)


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
def test_reads_last_valid_byte_from_field_or_message(
    fields: dict[str, Any], last_byte: int
) -> None:
    response = {"Error": {"Message": "no number"}, **fields}
    assert last_valid_byte(response) == last_byte
    response["Error"] = {"Message": "First byte of the layer part is 10485760 instead of 20971520"}
    assert last_valid_byte(response) == (last_byte if last_byte > 0 else 20_971_519)
    response["Error"] = {"Message": "First byte of the layer part is 0 instead of 1"}
    assert last_valid_byte(response) == (last_byte if last_byte > 0 else 0)
    assert last_valid_byte({**fields, "Error": None}) == last_byte


@pytest.mark.parametrize("last_byte", ["7", True, 7.5])
def test_rejects_malformed_last_valid_byte(
    last_byte: object, uploader: LayerUploader, ecr: LocalECR
) -> None:
    error = EcrError("InvalidLayerPartException", "message", lastValidByteReceived=last_byte)
    ecr.respond("UploadLayerPart", error)
    with pytest.raises(UnexpectedResponseError, match="its lastValidByteReceived is"):
        uploader.upload(BLOB)


def test_reports_kms_error_code(uploader: LayerUploader, ecr: LocalECR) -> None:
    error = EcrError("KmsException", "KMS", kmsError="KeyDisabled")
    ecr.respond("InitiateLayerUpload", error)
    with pytest.raises(ServiceError, match=r"kmsError: KeyDisabled.*KMS key") as raised:
        uploader.upload(BLOB)
    assert len(ecr.calls) == 2
    assert raised.value.code == "KmsException"


def test_replaces_control_characters(uploader: LayerUploader, ecr: LocalECR) -> None:
    error = EcrError("KmsException", "a\x1b[31m\nb", kmsError="c\u202ed")
    ecr.respond("InitiateLayerUpload", error)
    with pytest.raises(ServiceError, match=r"KmsException: a \[31m b \(kmsError: c d\)\. "):
        uploader.upload(BLOB)


def test_points_out_endpoint_that_is_not_ecr(uploader: LayerUploader, ecr: LocalECR) -> None:
    page = b"<html>\n<h1>Not Found</h1>\n</html>"
    ecr.respond("InitiateLayerUpload", page, status=404)
    with pytest.raises(ServiceError, match=r"failed: 404: Not Found\. Check .* endpoint is"):
        uploader.upload(BLOB)


def test_points_out_unreachable_endpoint(uploader: LayerUploader, ecr: LocalECR) -> None:
    ecr.stop()
    with pytest.raises(ServiceError, match="network, the region and the endpoint") as raised:
        uploader.upload(BLOB)
    assert raised.value.code == "EndpointConnectionError"
    assert raised.value.attempts == 10


def test_does_not_retry_exception_of_the_client_itself(mocker: Any) -> None:
    client = mocker.Mock()
    client.initiate_layer_upload.side_effect = RuntimeError("refreshed, but still expired")
    with pytest.raises(
        ServiceError, match=r"still expired\. This is an error of the client, not of ECR: check"
    ) as raised:
        LayerUploader(client, "demo").upload(BLOB, check_existing=False)
    assert raised.value.code == "RuntimeError"
    assert isinstance(raised.value.__cause__, RuntimeError)
    assert client.initiate_layer_upload.call_count == 1


def test_missing_token_file_is_not_reported_as_missing_source(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ecr: LocalECR
) -> None:
    """The missing file is the client's web identity token, not the layer."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::012345678910:role/pusher")
    client = ecr.client(aws_access_key_id=None, aws_secret_access_key=None)
    with pytest.raises(ServiceError, match=r"token.*credentials") as raised:
        LayerUploader(client, "demo").upload(BLOB)
    assert raised.value.code == "FileNotFoundError"


@pytest.mark.parametrize("bundle_kind", ["missing", "not a certificate", "directory"])
def test_does_not_retry_with_unusable_certificate_bundle(
    bundle_kind: str, ecr: LocalECR, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle.pem"
    if bundle_kind == "not a certificate":
        bundle.write_text("junk")
    if bundle_kind == "directory":
        bundle.mkdir()
    url = ecr.endpoint_url.replace("http:", "https:")
    uploader = LayerUploader(ecr.client(endpoint_url=url, verify=str(bundle)), "demo")
    with pytest.raises(ServiceError, match="in AWS_CA_BUNDLE") as raised:
        uploader.initiate()
    assert raised.value.attempts == 1


@pytest.mark.parametrize("name", ["aws_session_token", "aws_access_key_id"])
def test_points_out_line_break_in_credential_without_showing_it(
    name: str, ecr: LocalECR, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "ecr_parts")
    uploader = LayerUploader(ecr.client(**{name: "SECRET\n"}), "demo", retrying=NO_WAIT)
    with pytest.raises(ServiceError, match="the credentials for a line break") as raised:
        uploader.upload(BLOB)
    assert raised.value.attempts == 1
    assert "SECRET" not in str(raised.value)
    # Only this library's records: caplog also has those of other libraries.
    assert "SECRET" not in "".join(
        record.getMessage() for record in caplog.records if record.name == "ecr_parts"
    )


PASSWORDS = [
    "secret",
    "sec ret",
    "sec/ret",
    "sec#ret",
    "sec?ret",
    "sec\tret",
    "12/secret",
    "s:@ecret",
]


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("place", ["endpoint", "proxy"])
def test_shows_no_part_of_a_password_in_a_url(
    place: str, password: str, ecr: LocalECR, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "ecr_parts")
    url = f"http://user:{password}@127.0.0.1:9"
    config = CLIENT_CONFIG
    if place == "proxy":
        config = config.merge(Config(proxies={"http": url}))
    endpoint = {"endpoint_url": url} if place == "endpoint" else {}
    if place == "endpoint" and "\t" in password:
        pytest.skip("botocore refuses it")
    client = ecr.client(config=config, **endpoint)

    def initiate() -> None:
        uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
        assert "sec" not in repr(uploader)
        uploader.initiate()

    with pytest.raises((ServiceError, ValueError)) as raised:
        initiate()
    shown = [str(error) for error in (raised.value, raised.value.__cause__) if error is not None]
    shown += [record.getMessage() for record in caplog.records if record.name == "ecr_parts"]
    assert not [text for text in shown if "sec" in text or "ret" in text.split()]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://api.ecr.us-east-1.amazonaws.com", "https://api.ecr.us-east-1.amazonaws.com"),
        ("http://127.0.0.1:4566/", "http://127.0.0.1:4566"),
        ("http://[::1]:4566/path", "http://[::1]:4566"),
        ("http://user:password@proxy:3128/", "http://proxy:3128"),
        ("http://user:1/2@proxy:3128/", HIDDEN_URL),
        ("http://user:12/3@proxy", HIDDEN_URL),
        ("http://user:pa#ss@proxy:3128/", HIDDEN_URL),
        ("http://user:pa?ss@proxy:3128/", HIDDEN_URL),
        ("http://host:notaport", HIDDEN_URL),
        ("user:password@proxy", HIDDEN_URL),
        ("", HIDDEN_URL),
        ("http://[", HIDDEN_URL),
        ("http://ho st/", HIDDEN_URL),
    ],
)
def test_shows_scheme_host_and_port_of_a_url_or_nothing(url: str, shown: str) -> None:
    assert show_url(url) == shown


@pytest.mark.parametrize("rest", ["?token=SECRET", "SECRET/", "#SECRET"])
def test_error_with_more_of_a_url_is_not_chained(rest: str, ecr: LocalECR) -> None:
    """A traceback would show it."""
    client = ecr.client(endpoint_url=f"http://127.0.0.1:9/{rest}")
    with pytest.raises(ServiceError) as raised:
        LayerUploader(client, "demo", retrying=NO_WAIT).initiate()
    assert "SECRET" not in "".join(traceback.format_exception(raised.value))


CANONICAL_REQUEST = (
    "The request signature we calculated does not match the signature you provided. Check your AWS "
    "Secret Access Key and signing method.\n\nThe Canonical String for this request should have "
    "been\n'POST\n/\n\nhost:api.ecr\nx-amz-security-token:SECRETTOKEN\n'"
)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("SignatureDoesNotMatch", CANONICAL_REQUEST),
        ("InvalidSignatureException", CANONICAL_REQUEST),
        ("InvalidSignatureException", CANONICAL_REQUEST.replace("\n", " ")),
        ("IncompleteSignatureException", "Authorization=AWS4-HMAC-SHA256 Credential=SECRETTOKEN/2"),
        ("AccessDeniedException", "denied for X-Amz-Security-Token: SECRETTOKEN"),
    ],
)
def test_passes_on_no_part_of_the_request_that_ecr_repeats(
    code: str,
    message: str,
    uploader: LayerUploader,
    ecr: LocalECR,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "ecr_parts")
    ecr.respond("InitiateLayerUpload", EcrError(code, message))
    with pytest.raises(ServiceError, match=code) as raised:
        uploader.upload(BLOB)
    shown = "".join(traceback.format_exception(raised.value))
    shown += "".join(record.getMessage() for record in caplog.records if record.name == "ecr_parts")
    for secret in ("SECRETTOKEN", "Canonical", "x-amz-security-token"):
        assert secret not in shown


@pytest.mark.parametrize("code", [["a"], {"a": 1}])
def test_retries_after_an_error_whose_code_is_no_string(
    code: object, uploader: LayerUploader, ecr: LocalECR
) -> None:
    answer = json.dumps({"__type": code}).encode()
    ecr.respond("InitiateLayerUpload", answer, status=500)
    uploader.upload(BLOB)
    ecr.respond("InitiateLayerUpload", answer, status=400, times=10)
    with pytest.raises(ServiceError, match="Check that the endpoint is ECR"):
        uploader.upload(BLOB[:40])


def test_says_that_an_error_has_no_code(uploader: LayerUploader, ecr: LocalECR) -> None:
    ecr.respond("InitiateLayerUpload", b'{"__type": null}', status=403)
    with pytest.raises(
        ServiceError, match=r"failed: an error without a code\. Check that the endpoint"
    ):
        uploader.upload(BLOB)


SECRET_KEY = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYzzzzzzzzzz"
TOKEN = "IQoJb3JpZ2luX2VjE" + "P/zzzz//aTk+vGx3" * 60
CREDENTIALS = {
    "aws_access_key_id": "AKIDEXAMPLE",
    "aws_secret_access_key": SECRET_KEY,
    "aws_session_token": TOKEN,
}


def assert_shows_no_credential(
    uploader: LayerUploader, caplog: pytest.LogCaptureFixture, secrets: Sequence[str]
) -> EcrPartsError:
    """An upload fails, and neither its error nor a log repeats any 12 characters of ``secrets``."""
    caplog.set_level(logging.DEBUG, "ecr_parts")
    with pytest.raises(EcrPartsError) as raised:
        uploader.upload(BLOB)
    shown = "".join(traceback.format_exception(raised.value))
    shown += "".join(record.getMessage() for record in caplog.records if record.name == "ecr_parts")
    for secret in secrets:
        assert not [i for i in range(len(secret) - 11) if secret[i : i + 12] in shown]
    return raised.value


@pytest.mark.parametrize("secret", [SECRET_KEY, TOKEN], ids=["secret key", "token"])
@pytest.mark.parametrize(
    "answer",
    [
        lambda secret: EcrError("AccessDeniedException", f"the key {secret} is not allowed"),
        lambda secret: EcrError("ServerException", f"try again with {secret}"),
        lambda secret: EcrError(secret, "unknown"),
        lambda secret: EcrError("KmsException", "no key", kmsError=secret),
        lambda secret: EcrError("AccessDeniedException", f"denied: {quote(secret, safe='')}"),
        lambda secret: EcrError("AccessDeniedException", "\n".join(textwrap.wrap(secret, 30))),
        lambda secret: EcrError("AccessDeniedException", "." * 1_980 + secret),
        lambda secret: {"uploadId": "id", "partSize": secret},
        lambda secret: f"<html>Blocked: {html.escape(secret)}</html>".encode(),
    ],
    ids=[
        "message", "transient", "code", "kmsError", "quoted", "wrapped", "cut", "answer", "page",
    ],
)  # fmt: skip
def test_shows_no_credential_of_the_client_that_the_service_repeats(
    answer: Callable[[str], Any], secret: str, ecr: LocalECR, caplog: pytest.LogCaptureFixture
) -> None:
    uploader = LayerUploader(
        ecr.client(**CREDENTIALS), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT
    )
    status = 403 if isinstance(answer(secret), bytes) else 200
    ecr.respond("InitiateLayerUpload", answer(secret), status=status, times=10)
    assert_shows_no_credential(uploader, caplog, [secret])


@pytest.mark.parametrize("kind", ["refusal", "answer"])
def test_shows_no_credential_that_the_answer_to_the_completion_repeats(
    kind: str, ecr: LocalECR, caplog: pytest.LogCaptureFixture
) -> None:
    client = ecr.client(**CREDENTIALS)
    uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
    refusal = EcrError("InvalidLayerException", f"wrong, {TOKEN}")
    ecr.respond("CompleteLayerUpload", refusal if kind == "refusal" else {"layerDigest": TOKEN})
    error = assert_shows_no_credential(uploader, caplog, [TOKEN])
    assert isinstance(error, DigestMismatchError)
    assert digest_of(BLOB) in str(error)


def test_completion_refused_with_a_canonical_request_does_not_show_it(
    uploader: LayerUploader, ecr: LocalECR, caplog: pytest.LogCaptureFixture
) -> None:
    """The refusal is the cause of the cause."""
    ecr.respond("CompleteLayerUpload", EcrError("InvalidLayerException", CANONICAL_REQUEST))
    assert_shows_no_credential(uploader, caplog, ["x-amz-security-token:SECRETTOKEN"])


def test_shows_no_signature_that_the_service_repeats(
    ecr: LocalECR, caplog: pytest.LogCaptureFixture
) -> None:
    client = ecr.client(**CREDENTIALS)
    signatures: list[str] = []

    def repeat(request: Any, **_event: object) -> None:
        signatures.append(request.headers["Authorization"].decode().rpartition("=")[2])
        ecr.respond("InitiateLayerUpload", EcrError("AccessDenied", f"bad hash {signatures[-1]}"))

    client.meta.events.register("before-send.ecr.InitiateLayerUpload", repeat)
    uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
    assert "AccessDenied: " in str(assert_shows_no_credential(uploader, caplog, signatures))
    assert signatures


@pytest.mark.parametrize("password", ["hunter2secret", "hunter2%2F", "p%40ssw%3Ard"])
@pytest.mark.parametrize("shown", ["header", "password"])
def test_shows_no_password_that_the_proxy_repeats(
    shown: str, password: str, ecr: LocalECR, caplog: pytest.LogCaptureFixture
) -> None:
    """LocalECR is the proxy."""
    config = CLIENT_CONFIG.merge(
        Config(proxies={"http": ecr.endpoint_url.replace("//", f"//user:{password}@")})
    )
    client = ecr.client(endpoint_url="http://localhost:9", config=config)
    uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
    header = base64.b64encode(b"user:" + unquote(password).encode()).decode()
    repeated = header if shown == "header" else unquote(password)
    ecr.respond("BatchCheckLayerAvailability", EcrError("Forbidden", f"no access for {repeated}"))
    error = assert_shows_no_credential(uploader, caplog, [header, unquote(password)])
    assert "Forbidden" in str(error)
    assert repeated not in str(error)


def test_does_not_refresh_credentials_to_compare_with_them(
    ecr: LocalECR, caplog: pytest.LogCaptureFixture
) -> None:
    """Those that expire are compared as they were when they were loaded last."""
    refreshed: list[dict[str, str]] = []

    def refresh() -> dict[str, str]:
        refreshed.append({"access_key": "AKIDEXAMPLE", "secret_key": SECRET_KEY, "token": TOKEN})
        return {**refreshed[-1], "expiry_time": "2970-01-01T00:00:00Z"}

    client: Any = ecr.client()
    client._request_signer._credentials = DeferredRefreshableCredentials(refresh, "test")
    uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
    ecr.respond("InitiateLayerUpload", EcrError("AccessDenied", f"{SECRET_KEY} {TOKEN}"))
    assert_shows_no_credential(uploader, caplog, [SECRET_KEY, TOKEN])
    assert len(refreshed) == 1


def test_does_not_load_credentials_to_compare_with_them(
    ecr: LocalECR, caplog: pytest.LogCaptureFixture
) -> None:
    loaded: list[str] = []

    def refresh() -> dict[str, str]:
        loaded.append("again" if loaded else "first")
        raise RuntimeError("cannot be loaded")

    client: Any = ecr.client()
    client._request_signer._credentials = DeferredRefreshableCredentials(refresh, "test")
    with pytest.raises(ServiceError, match="cannot be loaded"):
        LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT).initiate()
    assert loaded == ["first"]


def test_retry_policy_that_is_used_for_other_calls_logs_no_password(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "ecr_parts")
    errors = iter([EndpointConnectionError(endpoint_url="http://user:secret@host/")])

    def call() -> str:
        for error in errors:
            raise error
        return "done"

    assert default_retrying().copy(sleep=lambda _seconds: None)(call) == "done"
    assert 'Could not connect to the endpoint URL: "http://host"; trying again' in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("response", [None, []])
def test_reports_client_error_of_another_client_without_a_response(
    response: Any, mocker: Any
) -> None:
    error = ClientError({}, "InitiateLayerUpload")
    error.response = response
    client = mocker.Mock()
    client.initiate_layer_upload.side_effect = error
    with pytest.raises(UnexpectedResponseError, match="its error has no response"):
        LayerUploader(client, "demo").initiate()


def test_says_that_memory_is_short(mocker: Any) -> None:
    client = mocker.Mock()
    client.initiate_layer_upload.side_effect = MemoryError
    with pytest.raises(ServiceError, match=r"MemoryError\. There is not enough memory"):
        LayerUploader(client, "demo").initiate()


def test_keeps_kms_error_after_long_message(uploader: LayerUploader, ecr: LocalECR) -> None:
    error = EcrError("KmsException", "K" * 5_000, kmsError="KeyDisabled")
    ecr.respond("InitiateLayerUpload", error)
    with pytest.raises(ServiceError, match="kmsError: KeyDisabled"):
        uploader.upload(b"layer")


NO_FAILURES = {
    "ImageAlreadyExistsException", "RepositoryAlreadyExistsException",  # success
    "ImageNotFoundException", "InvalidLayerException", "UnableToGetUpstreamImageException",
    "InvalidTagParameterException", "TooManyTagsException",  # no tags are passed
}  # fmt: skip
"""Codes that never end a push: they are success, or an answer to a question."""


@pytest.mark.parametrize("service", ["ecr", "ecr-public"])
@pytest.mark.parametrize("operation", METHODS)
def test_every_error_of_the_service_model_has_a_remedy(operation: str, service: str) -> None:
    model = botocore.session.Session().get_service_model(service)
    if operation not in model.operation_names:
        pytest.skip("ECR Public does not have it")
    codes = {shape.name for shape in model.operation_model(operation).error_shapes} - NO_FAILURES
    assert {code for code in codes if code not in REMEDIES} == set()


def test_remedy_for_a_refused_manifest_is_about_the_manifest(ecr: LocalECR, tmp_path: Path) -> None:
    """By the code alone, it would be about the name of the repository."""
    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS)
    ecr.respond("PutImage", EcrError("InvalidParameterException", "Invalid JSON syntax"), times=9)
    layout = Layout(tmp_path / "layout")
    layout.finish(layout.add_image("amd64", LAYERS[:1]))
    with pytest.raises(ServiceError, match="does not accept this manifest") as raised:
        uploader.push_image(layout.path)
    assert "repository's name" not in str(raised.value)
