"""The command line: what is accepted, and what its errors say."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

from ecr_parts._command.options import parse_options

URI = "012345678910.dkr.ecr.eu-west-1.amazonaws.com/team/app"
DIGEST = f"sha256:{'0' * 64}"
UPLOAD = ("upload", "a", "demo")
PUSH = ("push", "a", "demo")


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def parse(*arguments: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["ecr-parts", *arguments])
        return parse_options()

    return parse


@pytest.mark.parametrize(
    "arguments",
    [
        ("a", "b", "c", "demo", "--json"),
        ("a", "b", "--json", "c", "demo"),
        ("a", "--json", "b", "c", "demo"),
        ("--json", "a", "b", "c", "demo"),
        ("a", "--json", "b", "--max-workers", "4", "c", "--quiet", "demo"),
    ],
)
def test_options_may_stand_between_files(
    arguments: tuple[str, ...], parse: Callable[..., Any]
) -> None:
    options = parse("upload", *arguments)
    assert (options.files, options.repository) == (["a", "b", "c"], "demo")
    assert (options.json, options.max_workers) == (True, 4)


@pytest.mark.parametrize(
    ("repository", "name", "tags"),
    [
        ("team/app", "team/app", None),
        ("team/app:v1", "team/app", ["v1"]),
        (URI, "team/app", None),
        (f"{URI}:v1", "team/app", ["v1"]),
        ("ghcr.io/team/app:v1", "ghcr.io/team/app", ["v1"]),  # of a pull through cache
        ("a--b/c__d", "a--b/c__d", None),
    ],
)
def test_repository_may_have_registry_and_tag(
    repository: str, name: str, tags: list[str] | None, parse: Callable[..., Any]
) -> None:
    options = parse("push", "image", repository)
    assert (options.repository, options.tags) == (name, tags)
    found = ("012345678910", "eu-west-1") if repository.startswith(URI) else (None, None)
    assert (options.registry_id, options.region) == found


def test_region_of_china_and_matching_options(parse: Callable[..., Any]) -> None:
    options = parse(
        "upload", "a", "012345678910.dkr.ecr.cn-north-1.amazonaws.com.cn/app",
        "--region", "cn-north-1", "--registry-id", "012345678910",
    )  # fmt: skip
    assert (options.repository, options.region) == ("app", "cn-north-1")


@pytest.mark.parametrize("command", [("push", "image"), ("upload", "a")])
def test_host_of_uri_sets_options(command: tuple[str, str], parse: Callable[..., Any]) -> None:
    public = parse(*command, "public.ecr.aws/alias/team/app")
    assert (public.repository, public.public, public.region) == ("team/app", True, None)
    local = parse(*command, "127.0.0.1:5000/app", "--region", "eu-west-1")
    assert (local.repository, local.endpoint_url) == ("app", "http://127.0.0.1:5000")
    fips = parse(*command, "012345678910.dkr-ecr-fips.us-west-2.on.aws/app")
    assert (fips.repository_uri.is_fips, fips.repository_uri.is_dual_stack) == (True, True)


def test_first_tag_is_that_of_repository(parse: Callable[..., Any]) -> None:
    assert parse(*PUSH[:2], "app:v2", "--tag", "v1").tags == ["v2", "v1"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90", 90), ("90s", 90), ("10m", 600), ("10min", 600), ("2h", 7200)],
)
def test_durations_may_have_units(text: str, seconds: int, parse: Callable[..., Any]) -> None:
    assert parse(*UPLOAD, "--retry-for", text).retry_for == seconds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("upload", "a"), "the following arguments are required: REPOSITORY"),
        (("upload", "a", ""), "REPOSITORY: must have 2 to 256 characters, not 0"),
        (("upload", "a", "b" * 257), "REPOSITORY: must have 2 to 256 characters, not 257"),
        (("upload", "a", "b" * 206, "--public"), "must have 2 to 205 characters, not 206"),
        (("upload", "a", "demo\x1b[2J"), r"must not contain '\x1b', as in 'demo\x1b[2J'"),
        (("upload", "a", "Team/app"), "REPOSITORY: must be lower case, as ECR requires"),
        (("upload", "a", "team//app"), "only between letters or digits, not 'team//app'"),
        (("upload", "a", "app-"), "REPOSITORY: must have '.', '_', '-' and '/' only between "),
        (("push", "a", "10.0.0.1:5000/app"), "must be a repository of ECR, not '10.0.0.1:5000/"),
        (("push", "a", "https://a.b/app"), "must be a repository of ECR, not 'https://a.b/app': "),
        (("push", "a", "docker.io/app"), "docker.io/app': pass NAME, ACCOUNT.dkr.ecr.REGION.amaz"),
        (("push", "a", "app@sha256:0"), "must have sha256: and 64 lower-case hex digits after the"),
        (("push", "a", f"app@{DIGEST}"), "REPOSITORY: must not have a digest, because that follo"),
        (
            ("upload", "a", "demo:v1"),
            "REPOSITORY: a layer has no tag, so the name has no colon; an",
        ),
        (("push", "a", "public.ecr.aws/demo"), "must be like public.ecr.aws/ALIAS/NAME, not "),
        (("upload", "a", f"app@{DIGEST}"), "REPOSITORY: must not have a digest, because that fo"),
        (("push", "a", URI, "--public"), "argument --public: contradicts the repository, 01234"),
        (("push", "a", ":v1"), "REPOSITORY: must have 2 to 256 characters, not 0"),
        (("push", "a", "demo:"), "REPOSITORY[:TAG]: the tag must be 1 to 300 letters, "),
        (("push", "a", "b", "demo"), "unrecognized arguments: demo"),
        ((*UPLOAD, "--foo", "b"), "unrecognized arguments: --foo b"),
        ((*UPLOAD, "--digest", "sha256:1"), "--digest: must be sha256: followed by 64 lower-case"),
        ((*UPLOAD, "--retry-for", "soon"), "--retry-for: must be a whole number of "),
        ((*UPLOAD, "--retry-for", "10M"), "--retry-for: must be a whole number of "),
        ((*UPLOAD, "--max-workers", "0"), "--max-workers: must be a number from 1 to 9999, not "),
        ((*UPLOAD, "--max-workers", "two"), "--max-workers: must be a number from 1 to 9999, not "),
        ((*UPLOAD, "--part-size", "1MiB"), "--part-size: must be between 5,242,880 and 20,971,520"),
        (
            (*UPLOAD, "--limit-rate", "9kB"),
            "--limit-rate: must be at least 65,536 bytes per second",
        ),
        (
            (*PUSH, "--limit-rate", "200kB"),
            "262,144 bytes per second for --max-workers 4, not 200,000",
        ),
        (
            (*UPLOAD, "--registry-id", "1"),
            "--registry-id: must be an AWS account ID, which has 12 ",
        ),
        ((*UPLOAD, "--region", "a b"), "--region: must be like eu-west-1, not 'a b'"),
        (("upload", "", "demo"), "FILE: must be a path, not ''"),
        (("upload", "a", "", "--json", "demo"), "FILE: must be a path, not ''"),
        (("push", "", "demo"), "IMAGE: must be a path, not ''"),
        (
            ("upload", "a", "demo", "--b\x1b[2J"),
            "unrecognized arguments: --b [2J; see ecr-parts up",
        ),
        ((*UPLOAD, "--registry-id", ""), "--registry-id: must be printable characters, not ''"),
        ((*UPLOAD, "--no-checkpoint", "--checkpoint", "c"), "not allowed with --checkpoint"),
        ((*PUSH, "--no-checkpoint", "--checkpoint-dir", "c"), "not allowed with --checkpoint-dir"),
        (
            (*PUSH, "--tag", "a b"),
            "--tag: must be 1 to 300 letters, digits, '.', '_' and '-', and must not start with",
        ),
        ((*PUSH, "--platform", "Linux"), "--platform: must be like linux/arm64, not 'Linux'"),
        ((*UPLOAD, "--endpoint-url", "foo"), "--endpoint-url: must be like https://HOST:PORT, wit"),
        ((*UPLOAD, "--endpoint-url", "http://u:secret@a"), "must be like https://HOST:PORT, with"),
        ((*UPLOAD, "--endpoint-url", "http://u:sec/ret@a"), "must be like https://HOST:PORT, wit"),
        (("local", "--port", "65536"), "--port: must be from 0 to 65535, not '65536'"),
        (
            ("local", "--slow", "-1"),
            "--slow: must be a number of seconds from 0 to 86400, not '-1'",
        ),
        (("local", "--repository", "No"), "--repository: must be 2 to 256 lower-case letters, "),
        ((*PUSH, "--checkpoint", "c"), "unrecognized arguments: --checkpoint c"),
        ((*UPLOAD, "--size", "0"), "--size: the layer is empty, and ECR rejects empty layers"),
        ((*UPLOAD, "--size", "60GiB"), "--size: the layer has 64,424,509,440 bytes, but at most"),
        (
            (*UPLOAD, "--size", "11GB", "--public"),
            "--size: the layer has 11,000,000,000 bytes, but",
        ),
        (
            (*UPLOAD, "--size", "30GB", "--part-size", "5MiB"),
            "--size: the layer's 30,000,000,000 b",
        ),
        (("upload", "a", "-", "demo"), "FILE: - must be the only one"),
        (("upload", "a", *UPLOAD[1:], "--digest", DIGEST), "--digest: not allowed with several"),
        (("upload", "a", *UPLOAD[1:], "--size", "1"), "--size: not allowed with several files"),
        (("upload", "a", *UPLOAD[1:], "--checkpoint", "c"), "--checkpoint: not allowed with sev"),
        (
            (*UPLOAD[:2], URI, "--region", "us-east-1"),
            "--region: must be that of the repository, eu-west-1, or omitted, not us-east-1",
        ),
        (
            ("push", "a", "127.0.0.1:5000/app", "--endpoint-url", "http://127.0.0.1:6000"),
            "--endpoint-url: must be that of the repository, http://127.0.0.1:5000, or omitted",
        ),
        (
            (*UPLOAD[:2], URI, "--registry-id", "1" * 12),
            "--registry-id: must be that of the repository, 012345678910, or omitted, not 111111",
        ),
    ],
)
def test_error_names_the_option_and_exits_with_2(
    arguments: tuple[str, ...],
    message: str,
    parse: Callable[..., Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as raised:
        parse(*arguments)
    assert raised.value.code == 2
    usage, error = capfd.readouterr().err.splitlines()
    assert usage.startswith("usage: ecr-parts ")
    assert message in error
    assert "ret@" not in error


ODD_VALUES = [
    "nan", "inf", "1e400", "-1", "1" * 400, "9" * 5_000, "", " ", "\x1b[2J", "a\nb", "\udcff",
]  # fmt: skip
ACCEPTED = {
    "--checkpoint": set(ODD_VALUES) - {""},
    "--checkpoint-dir": set(ODD_VALUES) - {""},
    "--image": {"nan", "inf", "1e400", "-1", "1" * 400, " "},
    "--profile": {"nan", "inf", "1e400", "-1", "1" * 400, " "},
    "--region": {"nan", "inf", "1e400"},
    "--repository": {"nan", "inf", "1e400"},
    "--tag": {"nan", "inf", "1e400"},
}
"""What may be a path or a name."""


@pytest.mark.parametrize("value", ODD_VALUES, ids=lambda value: ascii(value)[:10])
@pytest.mark.parametrize("command", [UPLOAD, PUSH, ("local",)], ids=lambda command: command[0])
def test_odd_value_of_any_option_is_refused(
    command: tuple[str, ...],
    value: str,
    parse: Callable[..., Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse(command[0], "--help")
    options = re.findall(r"^  (--[a-z-]+) [A-Z{]", capfd.readouterr().out, re.MULTILINE)
    assert len(options) >= 3
    for option in options:
        if value in ACCEPTED.get(option, ()):
            parse(*command, f"{option}={value}")
            continue
        with pytest.raises(SystemExit) as raised:
            parse(*command, f"{option}={value}")
        assert raised.value.code == 2
        error = capfd.readouterr().err.splitlines()[-1]
        assert f"argument {option}: " in error
        assert error.isprintable()


@pytest.mark.parametrize("command", ["push", "upload", "local"])
def test_help_has_examples_and_exit_status(
    command: str, parse: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        parse(command, "--help")
    assert raised.value.code == 0
    text = capfd.readouterr().out
    assert "usage: ecr-parts" in text
    assert re.search(r"\nexamples:\n(  .*ecr-parts .*\n){3}\Z", text)
    if command != "local":
        assert "Exit status: 0 if " in text
    if command == "upload":
        assert "set -o pipefail" in text


@pytest.mark.parametrize("command", [(), ("push",), ("upload",), ("local",)], ids=str)
@pytest.mark.parametrize("columns", [60, 100])
def test_help_is_wrapped_to_the_terminal(
    columns: int,
    command: tuple[str, ...],
    parse: Callable[..., Any],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        parse(*command, "--help")
    text, _, examples = capfd.readouterr().out.partition("\nexamples:\n")
    assert max(len(line) for line in text.splitlines() if "usage: " not in line) < columns
    assert len(examples.splitlines()) == 3
