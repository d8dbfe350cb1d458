"""The command ``ecr-parts``: its output, its exit status, its progress bar and Ctrl-C."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import MetadataRetrievalError
from command_line import BLOB, DIGEST, MIB, RunInProcess, command, run, run_in_shell, start
from helpers import digest_of, read_terminal, run_on_terminal
from pytest_mock import MockerFixture

import ecr_parts
import ecr_parts.__main__
from ecr_parts import LayerUploader
from ecr_parts._command.terminal import Terminal
from ecr_parts.testing import LocalECR


def first_bytes_sent(ecr: LocalECR) -> list[int | None]:
    return [call.first_byte for call in ecr.calls_of("UploadLayerPart")]


# Standard streams and exit status


def test_prints_digest_to_stdout_and_messages_to_stderr(ecr: LocalECR, path: Path) -> None:
    ecr.fail("UploadLayerPart", "answer_lost", call=2)
    status, stdout, stderr = run(ecr, path, "demo")
    assert (status, stdout) == (0, f"{DIGEST}\n")
    assert ecr.layer("demo", DIGEST) == BLOB
    assert stderr.startswith("demo: 1 layer, 12.0 MiB, which ECR lacks\n")

    status, stdout, stderr = run(ecr, path, "demo")
    assert (status, stdout) == (0, f"{DIGEST}\n")
    assert stderr.startswith("demo: 1 layer, 12.0 MiB, all of which ECR has already\n")


def test_reads_standard_input(ecr: LocalECR, path: Path) -> None:
    assert run(ecr, "-", "demo", stdin=BLOB)[:2] == (0, f"{DIGEST}\n")
    assert ecr.layer("demo", DIGEST) == BLOB
    ecr.registry.repositories["demo"].layers.clear()
    with path.open("rb") as file, start(ecr, "-", "demo", stdin=file) as process:
        assert process.communicate()[0] == f"{DIGEST}\n".encode()
    assert ecr.layer("demo", DIGEST) == BLOB


def test_reads_standard_input_from_its_current_position(ecr: LocalECR, path: Path) -> None:
    with path.open("rb") as file:
        file.seek(2 * MIB)
        output = run_on_terminal(partial(start, ecr, "-", "demo", stdin=file))
    assert ecr.layer("demo", digest_of(BLOB[2 * MIB :])) == BLOB[2 * MIB :]
    assert "] 100%  10.0 of 10.0 MiB" in output


def test_reports_broken_pipe_of_stdout(ecr: LocalECR, path: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with start(ecr, path, "demo", stdout=write_end) as process:
        os.close(write_end)
        _, stderr = process.communicate()
    assert process.returncode == 1
    assert stderr.decode().splitlines()[2:] == [
        f"error: ECR has {DIGEST}, but printing to standard output failed: Broken pipe"
    ]


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_succeeds_if_stderr_is_closed_or_full(redirection: str, ecr: LocalECR, path: Path) -> None:
    ecr.fail("UploadLayerPart", "throttled", call=2)  # causes a message
    status, stdout, _ = run_in_shell(ecr, redirection, path, "demo")
    assert (status, stdout) == (0, f"{DIGEST}\n")


def test_rejects_closed_stdout_or_stdin(ecr: LocalECR, path: Path) -> None:
    for name, redirection, file in (("output", ">&-", path), ("input", "<&-", "-")):
        status, stdout, stderr = run_in_shell(ecr, redirection, file, "demo")
        assert (status, stdout) == (1, "")
        assert stderr.startswith(f"error: standard {name} is closed: ")
    assert ecr.calls == []


# Errors


def test_invalid_command_line_exits_with_status_2(ecr: LocalECR) -> None:
    status, stdout, stderr = run(ecr)
    assert (status, stdout) == (2, "")
    assert "the following arguments are required: FILE, REPOSITORY" in stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing", "demo"], "error: missing: No such file or directory\n"),
        (
            ["-", "demo"],
            "error: standard input or the pipe is empty: check the program that",
        ),
        (
            ["-", "demo", "--checkpoint", "c"],
            "error: --checkpoint requires a regular file",
        ),
        (["-", "demo", "--profile", "foo"], "could not be found. Check --profile, and "),
        (
            [__file__, "none"],
            "the registry ID and the region (--region, --registry-id, --public)\n",
        ),
        ([__file__, "none", "--checkpoint", "c"], "(--region, --registry-id, --public)\n"),
        (
            [__file__, "demo", "--checkpoint", __file__],
            "checkpoint must not be the layer's own file",
        ),
        (
            [__file__, "demo", "--checkpoint", os.devnull],
            "/dev/null' is not a regular file: pass ",
        ),
    ],
)
def test_prints_error_without_traceback(
    arguments: list[str], message: str, ecr: LocalECR, run_in_process: RunInProcess
) -> None:
    status, stdout, stderr = run_in_process(ecr, *arguments)
    assert (status, stdout) == (1, "")
    assert message in stderr
    assert "Traceback" not in stderr


def test_passes_options_to_uploader_and_client(
    ecr: LocalECR, path: Path, run_in_process: RunInProcess
) -> None:
    url = ecr.endpoint_url
    status, _, stderr = run_in_process(
        None, path, "demo", "--endpoint-url", url, "--region", "eu-west-1"
    )
    assert status == 1
    assert stderr.startswith("error: there are no AWS credentials: set --profile or AWS_PROFILE, ")
    status, _, stderr = run_in_process(ecr, path, "demo", "--digest", digest_of(b"other"))
    assert status == 1
    assert f"error: {path}: CompleteLayerUpload in repository 'demo', upload " in stderr
    assert f": the bytes that ECR received do not match {digest_of(b'other')}: " in stderr
    status, _, stderr = run_in_process(ecr, path, "demo", "--registry-id", "999999999999")
    assert status == 1
    assert "does not exist in the registry with id '999999999999'" in stderr


def test_error_tells_where_checkpoint_resumes(
    ecr: LocalECR, path: Path, tmp_path: Path, run_in_process: RunInProcess
) -> None:
    checkpoint = tmp_path / "checkpoint"
    arguments = (path, "demo", "--checkpoint", checkpoint)
    ecr.fail("UploadLayerPart", "access_denied", call=2)
    status, _, stderr = run_in_process(ecr, *arguments)
    assert status == 1
    assert stderr.endswith(
        "IAM policy (--profile). Run the same command again to resume at byte 5,242,880\n"
    )

    ecr.fail("BatchCheckLayerAvailability", "expired_token")  # fails before anything is resumed
    status, _, stderr = run_in_process(ecr, *arguments)
    assert stderr.endswith("at byte 5,242,880 if the checkpoint belongs to this layer\n")

    checkpoint.write_text("{")
    status, _, stderr = run_in_process(ecr, *arguments)
    assert status == 1
    assert stderr.endswith("Pass the path of a file that does not exist yet\n")
    assert checkpoint.read_text() == "{"


# On a terminal


@pytest.mark.parametrize(("columns", "start_of_bar"), [(20, "12.0 of 12.0 MiB"), (63, "[####")])
def test_bar_is_narrower_than_terminal(
    columns: int, start_of_bar: str, ecr: LocalECR, path: Path
) -> None:
    output = run_on_terminal(partial(start, ecr, path, "demo"), columns)
    lines = [line.partition("\r\n") for line in output.split("\r\x1b[K")[1:]]
    bars = [bar for bar, end, _ in lines if not end]  # the others are messages
    assert any(bar.startswith(start_of_bar) for bar in bars)
    assert max(map(len, bars)) < columns


def test_shows_no_total_for_stream_of_unknown_size(ecr: LocalECR) -> None:
    ecr.fail("UploadLayerPart", "access_denied", call=2)
    terminal, other_end = pty.openpty()
    with start(ecr, "-", "demo", stdin=subprocess.PIPE, stderr=other_end) as process:
        os.close(other_end)
        process.communicate(BLOB)
    output = read_terminal(terminal)
    os.close(terminal)
    assert process.returncode == 1
    assert re.search(r"\r\x1b\[K[0-9.]+ MiB  ", output)
    assert "Traceback" not in output
    assert output.splitlines()[-1].endswith(
        "policy (--profile). Run the command again to start over: standard input cannot be resumed"
    )


# Ctrl-C


def test_resumes_after_ctrl_c(ecr: LocalECR, path: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    arguments = (path, "demo", "--checkpoint", checkpoint)
    ecr.fail("UploadLayerPart", "throttled", call=2, times=1_000)
    terminal, other_end = pty.openpty()
    with start(ecr, *arguments, stderr=other_end) as process:
        os.close(other_end)
        output = read_terminal(terminal, until="trying again in")
        process.send_signal(signal.SIGINT)
        output += read_terminal(terminal)
        stdout, _ = process.communicate()
    os.close(terminal)
    assert (process.returncode, stdout) == (130, b"")
    assert "\r\x1b[K[------------------------------]   0%  0.0 of 12.0 MiB  " in output
    assert f"\r\x1b[Klayer {DIGEST[:19]}…: ECR asks for fewer calls a second; trying" in output
    last_line = output.splitlines()[-1]
    assert last_line.endswith("interrupted. Run the same command again to resume at byte 5,242,880")

    with LocalECR() as without_faults:
        without_faults.registry = ecr.registry
        status, digest, stderr = run(without_faults, *arguments)
    assert (status, digest) == (0, f"{DIGEST}\n")
    assert f"layer {DIGEST[:19]}…: continuing at 5,242,880 of 12,582,912 bytes\n" in stderr
    assert first_bytes_sent(without_faults) == [5 * MIB, 10 * MIB]
    assert not checkpoint.exists()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signal_before_first_part_says_nothing_is_confirmed(
    number: signal.Signals, status: int, ecr: LocalECR, path: Path
) -> None:
    ecr.fail("BatchCheckLayerAvailability", "throttled", times=4)
    with start(ecr, path, "demo") as process:
        assert process.stderr is not None
        assert b"trying again in" in process.stderr.readline()
        process.send_signal(number)
        _, stderr = process.communicate()
    assert process.returncode == status
    last_line = stderr.decode().splitlines()[-1]
    assert last_line == "interrupted. ECR has confirmed nothing yet: run it again"


def test_ctrl_c_remains_ignored_if_it_was_ignored_before(ecr: LocalECR, path: Path) -> None:
    ecr.fail("UploadLayerPart", "throttled", call=2)
    with subprocess.Popen(
        ["bash", "-c", 'trap "" INT; exec "$0" "$@"', *command(path, "demo")],
        env={**os.environ, **ecr.environ()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(b"demo: 1 layer, ")
        assert b"trying again in" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate()
    assert (process.returncode, stdout.decode()) == (0, f"{DIGEST}\n")


def test_further_signals_are_ignored_while_advice_is_printed(
    ecr: LocalECR, path: Path, run_in_process: RunInProcess, mocker: MockerFixture
) -> None:
    mocker.patch("ecr_parts._command.upload.hash_source", side_effect=KeyboardInterrupt)
    assert run_in_process(ecr, path, "demo")[0] == 130
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert handlers == [signal.SIG_IGN] * 3


def test_progress_raises_keyboard_interrupt_that_python_ignored() -> None:
    terminal = Terminal()
    terminal.progress(0)
    with pytest.raises(KeyboardInterrupt):  # ignored by Python while an object is finalized
        terminal.interrupt(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        terminal.progress(0)


def test_prints_version() -> None:
    completed = subprocess.run(
        [sys.executable, "-m", "ecr_parts", "--version"], capture_output=True, text=True, check=True
    )
    assert completed.stdout == f"ecr-parts {ecr_parts.__version__}\n"


def test_ctrl_c_during_import_leaves_no_traceback(mocker: MockerFixture) -> None:
    mocker.patch("ecr_parts._command.cli.main", side_effect=KeyboardInterrupt)
    with pytest.raises(SystemExit) as raised:
        ecr_parts.__main__.main()
    assert raised.value.code == 130


@pytest.mark.parametrize("subcommand", ["upload", "push"])
def test_reports_that_memory_is_not_enough(
    subcommand: str,
    ecr: LocalECR,
    path: Path,
    image: Path,
    run_in_process: RunInProcess,
    mocker: MockerFixture,
) -> None:
    mocker.patch("ecr_parts._upload.pipeline.new_buffer", side_effect=MemoryError)
    source = path if subcommand == "upload" else image
    status, stdout, stderr = run_in_process(ecr, source, "demo", subcommand=subcommand)
    assert (status, stdout) == (1, "")
    _, error = stderr.splitlines()
    assert error.startswith(
        "error: there is not enough memory: pass --part-size 5MiB, or a smaller --max-workers"
    )
    assert "byte 0" not in error


def test_advice_to_resume_if_memory_is_not_enough(
    ecr: LocalECR, path: Path, run_in_process: RunInProcess, mocker: MockerFixture
) -> None:
    ecr.fail("UploadLayerPart", "access_denied", call=2)
    run_in_process(ecr, path, "demo")
    mocker.patch("ecr_parts._upload.pipeline.new_buffer", side_effect=MemoryError)
    _, _, stderr = run_in_process(ecr, path, "demo")
    assert stderr.endswith(
        " --max-workers. Run the same command again to resume at byte 5,242,880\n"
    )


def test_memory_error_outside_an_upload_leaves_no_traceback(
    mocker: MockerFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    mocker.patch("ecr_parts._command.cli.main", side_effect=MemoryError)
    with pytest.raises(SystemExit) as raised:
        ecr_parts.__main__.main()
    assert raised.value.code == 1
    assert capfd.readouterr().err == "error: there is not enough memory\n"


def test_console_script_is_installed() -> None:
    (script,) = entry_points(group="console_scripts", name="ecr-parts")
    assert script.load() is ecr_parts.__main__.main


def test_client_config_names_the_library(ecr: LocalECR) -> None:
    headers: list[Any] = []
    client = ecr.client()
    client.meta.events.register("before-send", lambda request, **_: headers.append(request.headers))
    LayerUploader(client, "demo").missing([DIGEST])
    assert f"ecr-parts/{ecr_parts.__version__}".encode() in headers[0]["User-Agent"]


@pytest.mark.parametrize("name", ["part-size", "limit-rate", "size"])
@pytest.mark.parametrize("value", ["5MiB", "5242880", "5242880B"])
def test_sizes_may_have_units(
    name: str, value: str, ecr: LocalECR, path: Path, run_in_process: RunInProcess
) -> None:
    # Less for the rate, with which the upload takes a quarter of a second.
    path.write_bytes(BLOB[: MIB if name == "limit-rate" else 5 * MIB])
    status, _, stderr = run_in_process(ecr, path, "demo", f"--{name}", value)
    assert (status, stderr.count("warning")) == (0, 0)


@pytest.mark.parametrize("value", ["5 MiB", "5mib", "-5", "", "1e6", "9" * 19])
def test_rejects_other_sizes(value: str, run_in_process: RunInProcess) -> None:
    status, _, stderr = run_in_process(None, "-", "demo", f"--size={value}")
    assert status == 2
    assert "argument --size: must be a whole number of bytes, or a size such as " in stderr


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ([], 0, "warning: a stream without --size or --digest: if its producer fails, a"),
        (["--size", str(len(BLOB))], 0, "demo: 1 layer from a pipe"),
        (["--digest", DIGEST], 0, "demo: 1 layer from a pipe"),
        (
            ["--size", str(len(BLOB) + 1)],
            1,
            "demo: 1 layer from a pipe, 12.0 MiB\nerror: the source ended after",
        ),
    ],
)
def test_warns_of_stream_that_may_be_truncated(
    options: list[str], status: int, message: str, ecr: LocalECR
) -> None:
    result = run(ecr, "-", "demo", *options, stdin=BLOB)
    assert result[0] == status
    assert result[2].startswith(message)
    assert len(ecr.registry.repositories["demo"].layers) == 1 - status


def test_asks_for_credentials_before_the_first_call(
    ecr: LocalECR, path: Path, run_in_process: RunInProcess, mocker: MockerFixture
) -> None:
    """This may print a prompt, and Ctrl-C must end it."""
    threads: list[threading.Thread] = []

    def freeze(_credentials: object) -> None:
        threads.append(threading.current_thread())
        raise MetadataRetrievalError(error_msg="MFA")

    mocker.patch("botocore.credentials.Credentials.get_frozen_credentials", freeze)
    status, _, stderr = run_in_process(ecr, path, "demo")
    assert (status, threads) == (1, [threading.main_thread()])
    assert "MFA. Check --profile, and the credential_process" in stderr
    assert ecr.calls == []


@pytest.mark.parametrize("program", ["false", "echo junk", "/nonexistent"])
def test_reports_credential_process_that_fails(
    program: str, ecr: LocalECR, path: Path, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text(f"[profile a]\ncredential_process = {program}\n")
    environ = {"AWS_CONFIG_FILE": str(tmp_path / "config")}
    with start(ecr, path, "demo", "--profile", "a", environ=environ) as process:
        _, stderr = process.communicate()
    assert process.returncode == 1
    assert stderr.startswith(b"error: cannot get AWS credentials: ")
    assert b"Check --profile, and the credential_process" in stderr
    assert ecr.calls == []


def test_credential_process_cannot_read_what_is_piped_in(
    ecr: LocalECR, path: Path, tmp_path: Path
) -> None:
    keys = '{"Version": 1, "AccessKeyId": "local", "SecretAccessKey": "local"}'
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\nhead -c 1000 > /dev/null\necho '{keys}'\n")
    program.chmod(0o700)
    (tmp_path / "config").write_text(f"[profile a]\ncredential_process = {program}\n")
    environ = {"AWS_CONFIG_FILE": str(tmp_path / "config")}
    command = ("-", "demo", "--profile", "a")
    with start(ecr, *command, environ=environ, stdin=subprocess.PIPE) as process:
        stdout, _ = process.communicate(BLOB)
    assert stdout.decode() == f"{DIGEST}\n"
    with (
        path.open("rb") as file,
        start(ecr, *command, environ=environ, stdin=file) as process,
    ):
        stdout, _ = process.communicate()
    assert stdout.decode() == f"{DIGEST}\n"


# Serving a LocalECR


def test_serves_local_ecr(ecr: LocalECR, path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "ecr_parts", "local", "--repository", "team/app"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "no_proxy": "", "NO_PROXY": "example.com"},
    )
    with process:
        assert process.stdout is not None
        lines = [process.stdout.readline().strip() for _ in range(1 + len(ecr.environ()))]
        client = ecr.client(endpoint_url=lines[0])
        assert LayerUploader(client, "team/app").upload(path).digest == DIGEST
        process.terminate()
        usage = process.stdout.read()
    assert process.returncode == 0
    assert "export no_proxy=example.com,127.0.0.1" in lines
    host = lines[0].removeprefix("http://")
    assert "#   ecr-parts push image.tar team/app:v1\n" in usage
    assert f"#   docker pull {host}/team/app:v1\n" in usage
    assert f" --src-tls-verify=false docker://{host}/team/app:v1 oci:image\n" in usage
    assert all(line.startswith("# ") for line in usage.splitlines())


def test_variables_of_local_ecr_are_quoted_for_the_shell(ecr: LocalECR) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "ecr_parts", "local"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "no_proxy": "", "NO_PROXY": "a, $(b)"},
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().strip() for _ in range(1 + len(ecr.environ()))]
        process.terminate()
    assert "export no_proxy='a, $(b),127.0.0.1'" in lines


def test_reports_port_that_is_used(ecr: LocalECR) -> None:
    port = ecr.endpoint_url.rpartition(":")[2]
    completed = subprocess.run(
        [sys.executable, "-m", "ecr_parts", "local", "--port", port],
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 1
    assert completed.stderr == (
        f"error: cannot listen on port {port}: Address already in use. Pass another --port, or "
        "none\n"
    )


@pytest.mark.parametrize("url", ["user:hunter2@127.0.0.1:1", "http:///hunter2"])
def test_malformed_endpoint_in_the_environment_is_not_shown(
    url: str, path: Path, run_in_process: RunInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("ACCESS_KEY_ID", "a"),
        ("SECRET_ACCESS_KEY", "b"),
        ("REGION", "us-east-1"),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_ECR", url)
    status, _, stderr = run_in_process(None, path, "demo")
    assert status == 1
    assert "hunter2" not in stderr
