"""``--debug``: which calls are made, and tracebacks, without secrets."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import botocore.auth
import pytest
from command_line import RunInProcess
from pytest_mock import MockerFixture

from ecr_parts._base.redaction import repeats
from ecr_parts._command.debug import Redactor, debug_text
from ecr_parts.testing import EcrError, LocalECR

SECRET_KEY = "wJalrXUtnFEMIK7MDENGbPxRfiCYplantedKey01"
TOKEN = "IQoJb3JpZ2luX2VjEPplantedSessionToken//////////wEaCXVzLWVhc3QtMSJHMEUCIQ"
PROXY_PASSWORD = "planted-proxy-password"
ENDPOINT_PASSWORD = "planted-endpoint-password"


@pytest.fixture
def environ(
    ecr: LocalECR, monkeypatch: pytest.MonkeyPatch, run_in_process: RunInProcess
) -> dict[str, str]:
    """Variables with secrets; an endpoint with a user and a password."""
    host = ecr.endpoint_url.partition("://")[2]
    environ = {
        **ecr.environ(),
        "AWS_ENDPOINT_URL_ECR": f"http://user:{ENDPOINT_PASSWORD}@{host}",
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_SESSION_TOKEN": TOKEN,
        "HTTPS_PROXY": f"http://user:{PROXY_PASSWORD}@127.0.0.1:9",
    }
    monkeypatch.setattr(ecr, "environ", lambda: environ)
    return environ


def test_shows_calls(ecr: LocalECR, image: Path, run_in_process: RunInProcess) -> None:
    status, _, stderr = run_in_process(ecr, image, "demo", "--debug", subcommand="push")
    assert status == 0
    assert "botocore.credentials: Found credentials in environment variables." in stderr
    assert "botocore.endpoint: calling PutImage\n" in stderr
    assert f"botocore.endpoint: sending POST to {ecr.endpoint_url}\n" in stderr
    assert "ecr_parts: " in stderr
    assert "botocore.hooks" not in stderr
    assert max(map(len, stderr.splitlines())) <= 2_000


@pytest.mark.parametrize("code", ["", "InvalidSignatureException", "AccessDeniedException"])
@pytest.mark.parametrize("subcommand", ["push", "upload"])
def test_no_secret_is_printed(
    subcommand: str,
    code: str,
    ecr: LocalECR,
    environ: dict[str, str],
    image: Path,
    path: Path,
    run_in_process: RunInProcess,
    mocker: MockerFixture,
) -> None:
    signatures: list[str] = []
    sign = botocore.auth.SigV4Auth.signature

    def record_signature(*arguments: Any) -> str:
        signatures.append(sign(*arguments))
        return signatures[-1]

    mocker.patch("botocore.auth.SigV4Auth.signature", record_signature)
    if code:
        repeated = f"The canonical request is\nx-amz-security-token:{TOKEN}\n\nsecret {SECRET_KEY}"
        ecr.respond("InitiateLayerUpload", EcrError(code, repeated), times=9)
        ecr.respond("UploadLayerPart", EcrError(code, f"signed with {TOKEN[:30]}"), times=9)
    ecr.fail("CompleteLayerUpload", "answer_lost")
    source = image if subcommand == "push" else path
    status, stdout, stderr = run_in_process(ecr, source, "demo", "--debug", subcommand=subcommand)
    assert status == (1 if code else 0), stderr
    assert signatures
    assert ("Traceback (most recent call last)" in stderr) == bool(code)
    planted = [SECRET_KEY, TOKEN, PROXY_PASSWORD, ENDPOINT_PASSWORD, *signatures]
    for line in (stdout + stderr).splitlines():
        assert not repeats(line, planted), line
    assert not re.search("signature=|canonicalrequest|authorization", stderr.lower())


def test_error_has_a_traceback_only_if_it_is_asked_for(
    ecr: LocalECR, path: Path, run_in_process: RunInProcess
) -> None:
    _, _, with_it = run_in_process(ecr, path, "none", "--debug")
    _, _, without = run_in_process(ecr, path, "none")
    assert "Traceback (most recent call last)" in with_it
    assert "ServiceError: " in with_it
    assert with_it.splitlines()[-1] == without.splitlines()[-1]
    assert len(without.splitlines()) == 1


def record(name: str, message: object, *arguments: object, **options: Any) -> logging.LogRecord:
    return logging.LogRecord(name, logging.DEBUG, "", 0, message, arguments, None, **options)


@pytest.mark.parametrize(
    "name",
    ["botocore.auth", "botocore.hooks", "botocore.parsers", "botocore.utils", "botocore", "boto"],
)
def test_logger_that_may_log_a_secret_is_not_shown(name: str) -> None:
    assert debug_text(record(name, "text"), Redactor()) is None


@pytest.mark.parametrize(
    "text",
    [
        "http://user:short@example.com",
        "{'Authorization': b'AWS4-HMAC-SHA256 Credential=AKIA/…, Signature=0123'}",
        "X-Amz-Security-Token: short",
        f"a {SECRET_KEY[:20]} b",
    ],
)
def test_line_with_a_secret_is_not_shown(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    shown = debug_text(record("botocore.retries.standard", "first\n%s\nlast", text), Redactor())
    assert shown is not None
    first, hidden, last = shown.splitlines()
    assert (first, last) == ("botocore.retries.standard: first", "last")
    assert hidden == "(not shown: this may contain a credential)"


def test_exception_that_is_logged_has_its_traceback() -> None:
    with pytest.raises(ValueError, match="planted") as raised:
        int("x-amz-security-token: planted")
    logged = record("botocore.httpsession", "failed")
    logged.exc_info = (ValueError, raised.value, raised.value.__traceback__)
    shown = debug_text(logged, Redactor())
    assert shown is not None
    assert shown.splitlines()[:2] == [
        "botocore.httpsession: failed",
        "Traceback (most recent call last):",
    ]
    assert "planted" not in shown.splitlines()[-1]
