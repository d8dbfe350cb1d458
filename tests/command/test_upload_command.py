"""``ecr-parts upload`` of several layers, its options and what its errors advise."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
from pathlib import Path

import botocore.session
import pytest
from command_line import BLOB, MIB, RunInProcess, command, run, start, state_files
from helpers import digest_of
from pytest_mock import MockerFixture

import ecr_parts._command.upload
from ecr_parts import LayerUploader
from ecr_parts._wire.bandwidth import Bandwidth
from ecr_parts._wire.failures import REMEDIES
from ecr_parts.testing import EcrError, Fault, LocalECR

BLOBS = [BLOB[: 6 * MIB], BLOB[-5 * MIB :], BLOB[:MIB]]
DIGESTS = [digest_of(blob) for blob in BLOBS]


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.tar.gz" for i in range(len(BLOBS))]
    for path, blob in zip(paths, BLOBS, strict=True):
        path.write_bytes(blob)
    return paths


# Several layers


def test_uploads_several_layers(
    ecr: LocalECR, paths: list[Path], run_in_process: RunInProcess
) -> None:
    status, stdout, stderr = run_in_process(ecr, *paths, "demo", "--progress", "bar")
    assert (status, stdout.splitlines()) == (0, DIGESTS)
    assert [ecr.layer("demo", digest) for digest in DIGESTS] == BLOBS
    assert "] 100%  12.0 of 12.0 MiB" in stderr
    assert "uploaded 3 of 3 layers to demo in " in stderr.splitlines()[-1]
    assert "demo has all 3 layers already: " in run_in_process(ecr, *paths, "demo")[2]


def test_equal_layers_are_sent_once(
    ecr: LocalECR, paths: list[Path], run_in_process: RunInProcess
) -> None:
    paths[2].write_bytes(BLOBS[0])
    status, stdout, _ = run_in_process(ecr, *paths, "demo", "--json")
    layers = [json.loads(line) for line in stdout.splitlines()]
    assert [layer["digest"] for layer in layers] == [DIGESTS[0], DIGESTS[1], DIGESTS[0]]
    assert [layer["existed"] for layer in layers] == [False, False, True]
    assert (status, len(ecr.calls_of("InitiateLayerUpload"))) == (0, 2)


def test_resumes_several_layers(
    ecr: LocalECR, paths: list[Path], run_in_process: RunInProcess
) -> None:
    ecr.fail("CompleteLayerUpload", "access_denied", call=2)
    arguments = (*paths, "demo", "--max-workers", "1")
    status, stdout, stderr = run_in_process(ecr, *arguments)
    assert (status, stdout) == (1, "")
    assert f"\nerror: {paths[1]}: CompleteLayerUpload in repository 'demo'" in stderr
    assert stderr.endswith("Run the same command again to resume\n")
    assert len(state_files()) == 1
    ecr.calls.clear()
    assert run_in_process(ecr, *arguments)[:2] == (0, "".join(f"{digest}\n" for digest in DIGESTS))
    assert len(ecr.calls_of("UploadLayerPart")) == 1  # of the third
    assert state_files() == []


def test_advice_if_the_layer_that_failed_has_no_checkpoint_yet(
    ecr: LocalECR, paths: list[Path], run_in_process: RunInProcess
) -> None:
    ecr.fail("InitiateLayerUpload", "access_denied", call=2)
    arguments = (*paths, "demo", "--max-workers", "1")
    assert run_in_process(ecr, *arguments)[2].endswith("Run the same command again to resume\n")
    assert state_files() == []


def test_file_among_several_is_named_in_its_error(
    ecr: LocalECR, paths: list[Path], run_in_process: RunInProcess
) -> None:
    paths[1].write_bytes(b"")
    status, _, stderr = run_in_process(ecr, *paths, "demo")
    assert (status, ecr.calls) == (1, [])
    assert stderr.startswith(f"error: {paths[1]}: the layer is empty, and ECR rejects empty layers")
    status, _, stderr = run_in_process(ecr, paths[0], "missing", "demo")
    assert (status, stderr) == (1, "error: missing: No such file or directory\n")


def test_uploads_several_layers_although_progress_cannot_be_saved(
    ecr: LocalECR, paths: list[Path], run_in_process: RunInProcess, mocker: MockerFixture
) -> None:
    mocker.patch("os.fsync", side_effect=OSError(28, "No space left on device"))
    status, _, stderr = run_in_process(ecr, *paths, "demo")
    assert (status, stderr.count("warning: progress is not saved")) == (0, 1)
    assert [ecr.layer("demo", digest) for digest in DIGESTS] == BLOBS


def test_stream_among_several_files(
    ecr: LocalECR, paths: list[Path], run_in_process: RunInProcess
) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"a layer")
    os.close(writer)
    status, stdout, stderr = run_in_process(ecr, paths[0], f"/dev/fd/{reader}", "demo")
    os.close(reader)
    assert (status, stdout.splitlines()) == (0, [DIGESTS[0], digest_of(b"a layer")])
    assert stderr.startswith("warning: a stream: if its producer fails")


# Options


@pytest.mark.parametrize("name", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_region_of_the_environment(
    name: str,
    ecr: LocalECR,
    paths: list[Path],
    run_in_process: RunInProcess,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environ = {name: value for name, value in ecr.environ().items() if "REGION" not in name}
    monkeypatch.setattr(ecr, "environ", lambda: {**environ, name: "eu-west-1"})
    assert run_in_process(ecr, paths[2], "demo")[0] == 0


@pytest.mark.parametrize(("retry_for", "attempts"), [("0", 1), ("1h", 12)])
def test_retries_for_as_long_as_asked(
    retry_for: str, attempts: int, ecr: LocalECR, paths: list[Path], run_in_process: RunInProcess,
    mocker: MockerFixture,
) -> None:  # fmt: skip
    mocker.patch("ecr_parts._base.threads.Waiter.sleep")
    ecr.fail("UploadLayerPart", "throttled", times=11)
    status, _, _ = run_in_process(ecr, paths[2], "demo", "--retry-for", retry_for)
    assert (status == 0) == (attempts == 12)
    assert len(ecr.calls_of("UploadLayerPart")) == attempts


def test_options_of_repository_uri_are_used(
    paths: list[Path], run_in_process: RunInProcess, mocker: MockerFixture
) -> None:
    create_client = mocker.spy(botocore.session.Session, "create_client")
    with LocalECR(["team/app"]) as ecr:
        status, _, stderr = run_in_process(
            ecr, paths[2], "999999999999.dkr.ecr.eu-west-1.amazonaws.com/team/app"
        )
    assert status == 1
    assert "'team/app' does not exist in the registry with id '999999999999'" in stderr
    assert create_client.call_args.kwargs["region_name"] == "eu-west-1"


def test_limit_rate_of_one_file_is_for_one_worker(
    ecr: LocalECR, paths: list[Path], run_in_process: RunInProcess, mocker: MockerFixture
) -> None:
    reserved = mocker.spy(Bandwidth, "reserve")
    paths[2].write_bytes(b"a layer")
    assert run_in_process(ecr, paths[2], "demo", "--limit-rate", "100kB")[0] == 0
    assert reserved.call_count > 0


def test_size_of_a_stream_is_the_total_of_its_bar(ecr: LocalECR) -> None:
    options = ("--size", len(BLOBS[0]), "--progress", "bar")
    _, _, stderr = run(ecr, "-", "demo", *options, stdin=BLOBS[0])
    assert "] 100%  6.0 of 6.0 MiB" in stderr


def test_ecr_public_needs_no_region(
    ecr: LocalECR, paths: list[Path], run_in_process: RunInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {name: value for name, value in ecr.environ().items() if "REGION" not in name}
    monkeypatch.setattr(ecr, "environ", lambda: environ)
    assert run_in_process(ecr, paths[2], "demo", "--public")[0] == 0


# Pipes


@pytest.mark.parametrize("size", [5 * MIB, 6 * MIB - 1])
@pytest.mark.parametrize("kind", ["stdin", "path"])
def test_pipe_with_more_than_its_size_is_not_completed(size: int, kind: str, ecr: LocalECR) -> None:
    file = "-" if kind == "stdin" else "/dev/stdin"
    status, stdout, stderr = run(ecr, file, "demo", "--size", size, stdin=BLOBS[0])
    assert (status, stdout) == (1, "")
    assert stderr.endswith(f"error: the pipe has more than the {size:,} bytes of --size\n")
    assert ecr.registry.repositories["demo"].layers == {}


def test_producer_does_not_fail_if_the_layer_exists(ecr: LocalECR, paths: list[Path]) -> None:
    """Its output is read, although it is not needed, for the sake of ``set -o pipefail``."""
    script = 'set -o pipefail; file=$0; cat "$file" | "$@"'
    for _ in range(2):
        completed = subprocess.run(
            ["bash", "-c", script, paths[0], *command("-", "demo", "--digest", DIGESTS[0])],
            env={**os.environ, **ecr.environ()},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert (completed.returncode, completed.stdout) == (0, f"{DIGESTS[0]}\n")
    assert len(ecr.calls_of("InitiateLayerUpload")) == 1


def test_stream_that_exists_is_reported_without_advice(ecr: LocalECR) -> None:
    """Its digest is not known beforehand."""
    for _ in range(2):
        status, _, stderr = run(ecr, "-", "demo", stdin=BLOBS[2])
        assert status == 0
    _warning, _first, line, _summary = stderr.splitlines()
    assert line == "the layer: ECR has all of it"


def test_directory_is_not_taken_for_a_stream(
    ecr: LocalECR, tmp_path: Path, run_in_process: RunInProcess
) -> None:
    status, _, stderr = run_in_process(ecr, tmp_path, "demo")
    assert (status, ecr.calls) == (1, [])
    assert stderr.startswith(f"error: {tmp_path} is a directory, and a layer is a file: ")


def test_device_without_an_end_is_not_read_to_its_end(ecr: LocalECR) -> None:
    LayerUploader(ecr.client(), "demo").upload(b"a layer")
    command = ("/dev/zero", "demo", "--digest", digest_of(b"a layer"))
    assert run(ecr, *command)[:2] == (0, f"{digest_of(b'a layer')}\n")


# Messages


def test_missing_region(
    ecr: LocalECR, paths: list[Path], run_in_process: RunInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {name: value for name, value in ecr.environ().items() if "REGION" not in name}
    monkeypatch.setattr(ecr, "environ", lambda: environ)
    status, _, stderr = run_in_process(ecr, paths[0], "demo")
    assert (status, ecr.calls) == (1, [])
    assert stderr == "error: there is no AWS region: set --region or AWS_REGION\n"


def test_region_of_the_environment_that_is_not_valid(
    ecr: LocalECR, paths: list[Path], run_in_process: RunInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {**ecr.environ(), "AWS_REGION": "a b"}
    monkeypatch.setattr(ecr, "environ", lambda: environ)
    status, _, stderr = run_in_process(ecr, paths[0], "demo")
    assert (status, ecr.calls) == (1, [])
    assert "supported format. Check the AWS configuration" in stderr


@pytest.mark.parametrize(
    ("code", "options"),
    [
        ("ExpiredTokenException", "--profile, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("RepositoryNotFoundException", "--region, --registry-id, --public"),
        ("RegistryNotFoundException", "--registry-id"),
        ("UnsupportedCommandException", "--registry-id, --endpoint-url"),
    ],
)
def test_errors_of_ecr_name_the_options_to_check(
    code: str, options: str, ecr: LocalECR, paths: list[Path], run_in_process: RunInProcess
) -> None:
    ecr.respond("BatchCheckLayerAvailability", EcrError(code, "no"))
    assert f" ({options})\n" in run_in_process(ecr, paths[0], "demo")[2]


@pytest.mark.parametrize("fault", ["answer_garbled", "html_503"])
def test_unreadable_answer_names_the_endpoint(
    fault: Fault, ecr: LocalECR, paths: list[Path], run_in_process: RunInProcess
) -> None:
    ecr.fail("BatchCheckLayerAvailability", fault, times=99)
    _, _, stderr = run_in_process(ecr, paths[0], "demo", "--retry-for", "0")
    assert "endpoint" in stderr
    if fault == "answer_garbled":
        assert "Check that the endpoint is ECR and that no proxy answers in its place" in stderr


def test_malformed_answer_names_the_endpoint_option(
    ecr: LocalECR, paths: list[Path], run_in_process: RunInProcess
) -> None:
    ecr.respond("InitiateLayerUpload", {"uploadId": 1})
    _, _, stderr = run_in_process(ecr, paths[0], "demo")
    assert stderr.endswith("no proxy answers in its place (--endpoint-url)\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            (),
            "{huge}: the layer has 64,424,509,440 bytes, but at most 54,525,952,000 are allowed: ",
        ),
        (("--size", "1GiB"), "{huge} has 64,424,509,440 bytes, but --size is 1,073,741,824: omit "),
    ],
)
@pytest.mark.parametrize("stdin", [False, True])
def test_size_of_a_file_is_checked_before_anything_is_read(
    stdin: bool, options: tuple[str, ...], message: str, ecr: LocalECR, tmp_path: Path
) -> None:
    huge = tmp_path / "huge"
    huge.touch()
    os.truncate(huge, 60 * 1024 * MIB)
    with huge.open("rb") as file:
        arguments = ("-" if stdin else huge, "demo", *options)
        with start(ecr, *arguments, stdin=file) as process:
            try:
                _, stderr = process.communicate(timeout=60)  # reading it takes longer
            finally:
                process.kill()
    assert (process.returncode, ecr.calls) == (1, [])
    if stdin:
        message = message.replace("{huge}: ", "").replace("{huge}", "standard input")
    assert stderr.decode().startswith(f"error: {message.format(huge=huge)}")
    assert "--part-size" not in stderr.decode()


def test_sizes_of_all_files_are_checked_before_one_is_hashed(
    ecr: LocalECR, paths: list[Path], run_in_process: RunInProcess, mocker: MockerFixture
) -> None:
    hash_source = mocker.spy(ecr_parts._command.upload, "hash_source")
    paths[1].write_bytes(b"")
    status, _, stderr = run_in_process(ecr, *paths, "demo")
    assert (status, hash_source.call_count) == (1, 0)
    assert stderr.startswith(f"error: {paths[1]}: the layer is empty")


def test_layer_that_needs_larger_parts_names_the_part_size_option(
    ecr: LocalECR, tmp_path: Path, run_in_process: RunInProcess
) -> None:
    huge = tmp_path / "huge"
    huge.touch()
    os.truncate(huge, 30_000 * MIB)
    status, _, stderr = run_in_process(ecr, huge, "demo", "--part-size", "5MiB")
    assert (status, ecr.calls) == (1, [])
    assert stderr.endswith("use parts of 7,489,829 bytes or more (--part-size)\n")


def test_messages_name_no_python_argument() -> None:
    """What the library advises is also read by those who use the command."""
    functions = (LayerUploader.__init__, LayerUploader.upload, LayerUploader.push_image)
    names = {name for function in functions for name in inspect.signature(function).parameters}
    python_only = {name for name in names if "_" in name} | {"client's", "verify"}
    advice = " ".join(REMEDIES.values())
    assert not {word for word in re.findall(r"[\w']+", advice) if word in python_only}


def test_truncated_download_is_not_completed(ecr: LocalECR, paths: list[Path]) -> None:
    status, stdout, stderr = run(
        ecr, "-", "demo", "--digest", DIGESTS[0], stdin=BLOBS[0][: 5 * MIB + 1]
    )
    assert (status, stdout) == (1, "")
    assert "do not match" in stderr
    assert ecr.registry.repositories["demo"].layers == {}
