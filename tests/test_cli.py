"""The command ``ecr-parts``: its output, its exit status, its progress bar and Ctrl-C."""

from __future__ import annotations

import json
import logging
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from botocore.exceptions import MetadataRetrievalError
from helpers import digest_of, random_bytes, read_terminal, run_on_terminal
from image_makers import Layout, two_platforms
from pytest_mock import MockerFixture

import ecr_parts
import ecr_parts.__main__
from ecr_parts import LayerUploader
from ecr_parts._cli import main
from ecr_parts._terminal import Terminal
from ecr_parts.testing import LocalECR

MIB = 1024 * 1024
BLOB = random_bytes(12 * MIB)  # three parts of 5 MiB, the last of 2
DIGEST = digest_of(BLOB)

Result: TypeAlias = tuple[int, str, str]
"""Exit status, standard output, standard error."""


@pytest.fixture
def ecr() -> Iterator[LocalECR]:
    with LocalECR(part_size=5 * MIB) as ecr:
        yield ecr


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "layer.tar.gz"
    path.write_bytes(BLOB)
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "ecr_parts", "upload", *map(str, arguments)]


def start(ecr: LocalECR | None, *arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    inherited = {name: os.environ[name] for name in ("PATH", "XDG_STATE_HOME")}
    environ = {"AWS_EC2_METADATA_DISABLED": "true", **inherited}
    coverage = {name: os.environ[name] for name in os.environ if name.startswith("COVERAGE")}
    return subprocess.Popen(
        command(*arguments),
        env={**environ, **coverage, **(ecr.environ() if ecr else {})},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def run(ecr: LocalECR | None, *arguments: object, stdin: bytes = b"") -> Result:
    with start(ecr, *arguments, stdin=subprocess.PIPE) as process:
        stdout, stderr = process.communicate(stdin)
    return process.returncode, stdout.decode(), stderr.decode()


def run_in_shell(ecr: LocalECR, redirection: str, *arguments: object) -> Result:
    """Run the command with a redirection of the shell, such as ``2>&-``, which closes a stream."""
    completed = subprocess.run(
        ["bash", "-c", f'exec "$0" "$@" {redirection}', *command(*arguments)],
        env={**os.environ, **ecr.environ()},
        capture_output=True,
        text=True,
        check=False,
    )
    return completed.returncode, completed.stdout, completed.stderr


@pytest.fixture
def run_in_process(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Result]]:
    """Like ``run`` with an empty standard input, without the time that a new process takes."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    log = logging.getLogger("ecr_parts")
    log_level, log_handlers = log.level, log.handlers.copy()

    def run_main(ecr: LocalECR | None, *arguments: object, subcommand: str = "upload") -> Result:
        for name, value in (ecr.environ() if ecr else {}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["ecr_parts", subcommand, *map(str, arguments)])
        read_end, write_end = os.pipe()
        os.close(write_end)
        with open(read_end) as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            status = main()
        for handler in log.handlers.copy():
            if handler not in log_handlers:
                log.removeHandler(handler)
        return status, *capfd.readouterr()

    yield run_main
    log.setLevel(log_level)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def first_bytes_sent(ecr: LocalECR) -> list[int | None]:
    return [call.first_byte for call in ecr.calls_of("UploadLayerPart")]


# Standard streams and exit status


def test_prints_digest_to_stdout_and_messages_to_stderr(ecr: LocalECR, path: Path) -> None:
    ecr.fail("UploadLayerPart", "answer_lost", call=2)
    status, stdout, stderr = run(ecr, path, "demo")
    assert (status, stdout) == (0, f"{DIGEST}\n")
    assert ecr.layer("demo", DIGEST) == BLOB
    lost, refused, summary = stderr.splitlines()
    assert "bytes 5242880-10485759, attempt 1: ConnectionClosedError" in lost
    assert "attempt 2: ECR refused the part and has the layer up to byte 10485759" in refused
    assert summary == "layer uploaded to demo: 12,582,912 bytes, 3 parts sent"

    status, stdout, stderr = run(ecr, path, "demo")
    assert (status, stdout) == (0, f"{DIGEST}\n")
    assert stderr == "layer already exists in demo: 12,582,912 bytes, 0 parts sent\n"


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
    assert stderr.decode().splitlines() == [
        "layer uploaded to demo: 12,582,912 bytes, 3 parts sent",
        "error: [Errno 32] Broken pipe",
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
        (["missing", "demo"], "error: [Errno 2] No such file or directory: 'missing'\n"),
        (["-", "demo"], "error: the layer is empty, and ECR rejects empty layers: leave it"),
        (["-", "demo", "--digest", "sha256:1"], "error: digest must be 'sha256:' followed by 64 "),
        (
            ["-", "demo", "--checkpoint", "c"],
            "error: --checkpoint requires a regular file",
        ),
        (["-", ""], "error: repository_name must be 1 to 500 printable characters, not ''\n"),
        (
            ["-", "demo", "--endpoint-url", "foo"],
            "error: cannot create a client: ValueError: Invalid",
        ),
        (["-", "demo", "--endpoint-url", "http://user:secret@a b"], "://***@a b"),
        (["-", "demo\x1b[2J"], "printable characters, not 'demo\\x1b[2J'\n"),
        (["-", "demo", "--profile", "foo"], "could not be found. Check the AWS configuration"),
        (["-", "demo", "--region", "a b"], "supported format. Check the AWS configuration"),
        ([__file__, "none"], "the client's region\n"),
        ([__file__, "none", "--checkpoint", "c"], "the client's region\n"),
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
    arguments: list[str], message: str, ecr: LocalECR, run_in_process: Callable[..., Result]
) -> None:
    status, stdout, stderr = run_in_process(ecr, *arguments)
    assert (status, stdout) == (1, "")
    assert message in stderr
    assert "Traceback" not in stderr


def test_passes_options_to_uploader_and_client(
    ecr: LocalECR, path: Path, run_in_process: Callable[..., Result]
) -> None:
    url = ecr.endpoint_url
    status, _, stderr = run_in_process(
        None, path, "demo", "--endpoint-url", url, "--region", "eu-west-1"
    )
    assert status == 1
    assert "NoCredentialsError" in stderr
    status, _, stderr = run_in_process(ecr, path, "demo", "--digest", digest_of(b"other"))
    assert status == 1
    assert stderr.startswith("error: CompleteLayerUpload in repository 'demo', upload ")
    assert f": the bytes that ECR received do not match {digest_of(b'other')}: " in stderr
    status, _, stderr = run_in_process(ecr, path, "demo", "--registry-id", "999999999999")
    assert status == 1
    assert "does not exist in the registry with id '999999999999'" in stderr


def test_error_tells_where_checkpoint_resumes(
    ecr: LocalECR, path: Path, tmp_path: Path, run_in_process: Callable[..., Result]
) -> None:
    checkpoint = tmp_path / "checkpoint"
    arguments = (path, "demo", "--checkpoint", checkpoint)
    ecr.fail("UploadLayerPart", "access_denied", call=2)
    status, _, stderr = run_in_process(ecr, *arguments)
    assert status == 1
    assert stderr.endswith("IAM policy. Run the same command again to resume at byte 5,242,880\n")

    ecr.fail("BatchCheckLayerAvailability", "expired_token")  # fails before anything is resumed
    status, _, stderr = run_in_process(ecr, *arguments)
    assert stderr.endswith("at byte 5,242,880 if the checkpoint belongs to this layer\n")

    checkpoint.write_text("{")
    status, _, stderr = run_in_process(ecr, *arguments)
    assert status == 1
    assert stderr.endswith("Pass another file, or delete this one to start over\n")
    assert checkpoint.read_text() == "{"


# On a terminal


@pytest.mark.parametrize(("columns", "start_of_bar"), [(20, "5.0 of 12.0 MiB  "), (63, "[####")])
def test_bar_is_narrower_than_terminal(
    columns: int, start_of_bar: str, ecr: LocalECR, path: Path
) -> None:
    output = run_on_terminal(partial(start, ecr, path, "demo"), columns)
    bars = [line.partition("\r\n")[0] for line in output.split("\r\x1b[K")[1:]]
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
    assert "\r\x1b[K5.0 MiB  " in output
    assert "Traceback" not in output
    assert output.splitlines()[-1].endswith(
        "policy. Run the command again to start over: standard input cannot be resumed"
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
    assert "\r\x1b[K[############------------------]  42%  5.0 of 12.0 MiB  " in output
    assert "\r\x1b[KUploadLayerPart in repository 'demo', bytes 5242880-10485759, attempt" in output
    last_line = output.splitlines()[-1]
    assert last_line == "interrupted. Run the same command again to resume at byte 5,242,880"

    with LocalECR() as without_faults:
        without_faults.registry = ecr.registry
        status, digest, stderr = run(without_faults, *arguments)
    assert (status, digest) == (0, f"{DIGEST}\n")
    assert stderr.splitlines()[0].endswith(" at byte 5242880")
    assert first_bytes_sent(without_faults) == [5 * MIB, 10 * MIB]
    assert not checkpoint.exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
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
        assert b"trying again in" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate()
    assert (process.returncode, stdout.decode()) == (0, f"{DIGEST}\n")


def test_progress_raises_keyboard_interrupt_that_python_ignored() -> None:
    terminal = Terminal()
    terminal.progress(0)
    with pytest.raises(KeyboardInterrupt):  # ignored by Python while an object is finalized
        terminal.interrupt(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        terminal.progress(0)


# Images


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return two_platforms(tmp_path / "image").path


@pytest.mark.parametrize("public", [True, False])
def test_pushes_image(
    public: bool, image: Path, tmp_path: Path, run_in_process: Callable[..., Result]
) -> None:
    with LocalECR(["team/app"]) as ecr:
        options: tuple[str, ...] = ("--public",) if public else ("--region", "us-east-1")
        options += ("--tag", "latest", "--checkpoint-dir", str(tmp_path / "saved"))
        status, digest, stderr = run_in_process(
            ecr, image, "team/app:v2", *options, subcommand="push"
        )
        repository = ecr.registry.repositories["team/app"]
        assert (status, repository.tags) == (0, dict.fromkeys(("v2", "latest"), digest.strip()))
        last_line = "image pushed to team/app:v2, team/app:latest: 5 of 5 blobs sent, 5"
        assert stderr.splitlines()[-1].startswith(last_line)
        status, digest, stderr = run_in_process(ecr, image, "team/app", subcommand="push")
        assert set(repository.tags) == {"v1", "v2", "latest"}
        assert stderr.endswith("team/app:v1: 0 of 5 blobs sent, 0 bytes\n")


def test_pushes_one_platform_without_tag(
    small_image: Path, run_in_process: Callable[..., Result]
) -> None:
    with LocalECR() as ecr:
        options = ("--platform", "linux/amd64", "--max-workers", "1")
        status, _, stderr = run_in_process(ecr, small_image, "demo", *options, subcommand="push")
        assert status == 0
        assert stderr.startswith("image pushed to demo: 2 of 2 blobs sent")


@pytest.fixture
def small_image(tmp_path: Path) -> Path:
    layout = Layout(tmp_path / "small")
    return layout.finish(layout.add_image("amd64", [b"layer"]))


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (("--no-checkpoint",), "Run the command again to start over: its progress was not saved"),
        ((), "Run the same command again to resume"),
        (("--checkpoint-dir", "saved"), "Run the same command again to resume"),
    ],
)
def test_tells_how_to_resume_push(
    options: tuple[str, ...],
    advice: str,
    image: Path,
    run_in_process: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    with LocalECR() as ecr:
        for operation, calls in (("CompleteLayerUpload", 0), ("PutImage", 3)):
            ecr.fail(operation, "access_denied")
            status, digest, stderr = run_in_process(ecr, image, "demo", *options, subcommand="push")
            assert (status, digest) == (1, "")
            assert stderr.endswith(f"in the caller's IAM policy. {advice}\n")
            assert len(ecr.calls_of("PutImage")) <= calls
        ecr.fail("BatchCheckLayerAvailability", "access_denied")
        _, _, stderr = run_in_process(ecr, image, "demo", *options, subcommand="push")
        assert stderr.endswith("in the caller's IAM policy\n")


def test_reports_invalid_image(run_in_process: Callable[..., Result], tmp_path: Path) -> None:
    with LocalECR() as ecr:
        status, _, stderr = run_in_process(ecr, tmp_path, "demo", subcommand="push")
        assert (status, stderr.startswith("error: ")) == (1, True)
        assert "is not an image" in stderr
        assert ecr.calls == []


def test_prints_version() -> None:
    completed = subprocess.run(
        [sys.executable, "-m", "ecr_parts", "--version"], capture_output=True, text=True, check=True
    )
    assert completed.stdout == f"ecr-parts {ecr_parts.__version__}\n"


def test_ctrl_c_during_import_leaves_no_traceback(mocker: MockerFixture) -> None:
    mocker.patch("ecr_parts._cli.main", side_effect=KeyboardInterrupt)
    with pytest.raises(SystemExit) as raised:
        ecr_parts.__main__.main()
    assert raised.value.code == 130


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
    name: str, value: str, ecr: LocalECR, path: Path, run_in_process: Callable[..., Result]
) -> None:
    path.write_bytes(BLOB[: 5 * MIB])
    status, _, stderr = run_in_process(ecr, path, "demo", f"--{name}", value)
    assert (status, stderr.count("warning")) == (0, 0)


@pytest.mark.parametrize("value", ["5 MiB", "5mib", "-5", "", "1e6", "9" * 19])
def test_rejects_other_sizes(
    value: str, run_in_process: Callable[..., Result], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_in_process(None, "-", "demo", f"--size={value}")
    assert "must be bytes, or a size such as 5MiB" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ([], 0, "warning: a stream without --size or --digest: if its producer fails, a"),
        (["--size", str(len(BLOB))], 0, "layer uploaded"),
        (["--digest", DIGEST], 0, "layer uploaded"),
        (["--size", str(len(BLOB) + 1)], 1, "error: the source ended after"),
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
    ecr: LocalECR, path: Path, run_in_process: Callable[..., Result], mocker: MockerFixture
) -> None:
    """This may print a prompt, and Ctrl-C must end it."""
    threads: list[threading.Thread] = []

    def freeze(_credentials: object) -> None:
        threads.append(threading.current_thread())
        raise MetadataRetrievalError(error_msg="MFA")

    mocker.patch("botocore.credentials.Credentials.get_frozen_credentials", freeze)
    status, _, stderr = run_in_process(ecr, path, "demo")
    assert (status, threads) == (1, [threading.main_thread()])
    assert "MFA. Check the AWS configuration, --profile" in stderr
    assert ecr.calls == []


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
    assert process.returncode == 0
    assert "export no_proxy=example.com,127.0.0.1" in lines


@pytest.mark.parametrize("port", ["used", "-1", "70000"])
def test_reports_port_that_cannot_be_used(port: str, ecr: LocalECR) -> None:
    if port == "used":
        port = ecr.endpoint_url.rpartition(":")[2]
    completed = subprocess.run(
        [sys.executable, "-m", "ecr_parts", "local", "--port", port],
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 1
    assert completed.stderr.startswith(f"cannot listen on port {port}: ")
    assert len(completed.stderr.splitlines()) == 1


# Progress


def test_prints_progress_as_lines(
    ecr: LocalECR, path: Path, run_in_process: Callable[..., Result], mocker: MockerFixture
) -> None:
    mocker.patch("ecr_parts._terminal._LINE_INTERVAL", 0)  # seconds
    _, _, stderr = run_in_process(ecr, path, "demo")
    lines = stderr.splitlines()
    assert len(lines) > 3
    assert any(line.startswith("5.0 of 12.0 MiB  ") for line in lines)
    assert not set("\r\x1b") & set(stderr)

    with LocalECR() as other:
        stream = run(other, "-", "demo", "--progress", "plain", stdin=BLOB)
    assert stream[0] == 0  # the ten seconds have not passed
    assert len(stream[2].splitlines()) == 2


@pytest.mark.parametrize("options", [("--progress", "none"), ("--progress", "plain")])
def test_prints_no_line_before_ten_seconds(
    options: tuple[str, ...], ecr: LocalECR, path: Path, run_in_process: Callable[..., Result]
) -> None:
    _, _, stderr = run_in_process(ecr, path, "demo", *options)
    assert len(stderr.splitlines()) == 1


def test_draws_bar_if_it_is_asked_for(
    ecr: LocalECR, path: Path, run_in_process: Callable[..., Result]
) -> None:
    _, _, stderr = run_in_process(ecr, path, "demo", "--progress", "bar")
    assert "100%  12.0 of 12.0 MiB" in stderr


def test_quiet_prints_errors_only(
    ecr: LocalECR, path: Path, run_in_process: Callable[..., Result]
) -> None:
    ecr.fail("UploadLayerPart", "answer_lost")
    assert run_in_process(ecr, path, "demo", "--quiet") == (0, f"{DIGEST}\n", "")
    status, _, stderr = run_in_process(ecr, path, "none", "--quiet", "--progress", "bar")
    assert (status, stderr.startswith("error: ")) == (1, True)


def test_prints_json(
    ecr: LocalECR, path: Path, image: Path, run_in_process: Callable[..., Result]
) -> None:
    layer = json.loads(run_in_process(ecr, path, "demo", "--json")[1])
    assert layer.pop("seconds") > 0
    assert layer == {"digest": DIGEST, "size": len(BLOB), "existed": False, "parts": 3}
    pushed = json.loads(run_in_process(ecr, image, "demo", "--json", subcommand="push")[1])
    repository = ecr.registry.repositories["demo"]
    assert pushed["digest"] == repository.tags["v1"]
    assert pushed["tags"] == ["v1"]
    assert {layer["digest"] for layer in pushed["layers"]} == set(repository.layers) - {DIGEST}


# Checkpoints in the default directory


def state_files() -> list[Path]:
    return list(Path(os.environ["XDG_STATE_HOME"]).rglob("*.*"))


@pytest.mark.parametrize("digest", [(), ("--digest", DIGEST)])
def test_resumes_without_option(
    digest: tuple[str, ...], ecr: LocalECR, path: Path, run_in_process: Callable[..., Result]
) -> None:
    ecr.fail("UploadLayerPart", "access_denied", call=3)
    _, _, stderr = run_in_process(ecr, path, "demo", *digest)
    assert stderr.endswith("Run the same command again to resume at byte 10,485,760\n")
    (checkpoint,) = state_files()
    assert checkpoint.name == f"{DIGEST[7:]}.checkpoint"
    ecr.calls.clear()
    copy = path.with_name("copy")
    copy.write_bytes(BLOB)
    assert run_in_process(ecr, copy, "demo", *digest)[:2] == (0, f"{DIGEST}\n")
    assert first_bytes_sent(ecr) == [10 * MIB]
    assert state_files() == []


def test_resumes_push_without_option(
    ecr: LocalECR, image: Path, run_in_process: Callable[..., Result]
) -> None:
    ecr.fail("CompleteLayerUpload", "access_denied", call=3)
    _, _, stderr = run_in_process(ecr, image, "demo", subcommand="push")
    assert stderr.endswith("Run the same command again to resume\n")
    assert state_files()
    assert run_in_process(ecr, image, "demo", subcommand="push")[0] == 0
    assert state_files() == []


@pytest.mark.parametrize("subcommand", ["upload", "push"])
def test_no_checkpoint_saves_nothing(
    subcommand: str, ecr: LocalECR, path: Path, image: Path, run_in_process: Callable[..., Result]
) -> None:
    source = path if subcommand == "upload" else image
    ecr.fail("CompleteLayerUpload", "access_denied")
    _, _, stderr = run_in_process(ecr, source, "demo", "--no-checkpoint", subcommand=subcommand)
    assert stderr.endswith("Run the command again to start over: its progress was not saved\n")
    assert state_files() == []


@pytest.mark.parametrize("subcommand", ["upload", "push"])
@pytest.mark.parametrize("problem", ["directory", "disk"])
def test_uploads_although_progress_cannot_be_saved(
    problem: str,
    subcommand: str,
    ecr: LocalECR,
    path: Path,
    image: Path,
    run_in_process: Callable[..., Result],
    mocker: MockerFixture,
) -> None:
    if problem == "directory":
        Path(os.environ["XDG_STATE_HOME"], "ecr-parts").touch()
    else:
        mocker.patch("os.fsync", side_effect=OSError(28, "No space left on device"))
    source = path if subcommand == "upload" else image
    status, _, stderr = run_in_process(ecr, source, "demo", subcommand=subcommand)
    assert status == 0
    assert stderr.startswith("warning: progress is not saved, so the upload cannot be resumed: ")
    assert ecr.registry.repositories["demo"].layers


def test_each_profile_has_its_own_checkpoints(
    ecr: LocalECR,
    path: Path,
    run_in_process: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """They may be of different accounts, whose uploads have nothing in common."""
    credentials = "aws_access_key_id = local\naws_secret_access_key = local\n"
    (tmp_path / "config").write_text(f"[profile a]\n{credentials}[profile b]\n{credentials}")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    ecr.fail("CompleteLayerUpload", "access_denied", times=3)
    for profile in ("a", "b", "a"):
        run_in_process(ecr, path, "demo", "--profile", profile)
    assert len(state_files()) == 2


def test_continues_where_progress_could_last_be_saved(
    ecr: LocalECR, path: Path, run_in_process: Callable[..., Result], mocker: MockerFixture
) -> None:
    fsync, calls = os.fsync, 0

    def fail_once_disk_is_full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 4:  # two for each part
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    mocker.patch("os.fsync", fail_once_disk_is_full)
    status, _, stderr = run_in_process(ecr, path, "demo", "--progress", "bar")
    assert (status, calls) == (0, 5)
    stored = [call.first_byte for call in ecr.calls_of("UploadLayerPart") if call.outcome == "ok"]
    assert stored == [0, 5 * MIB, 10 * MIB]  # no part twice
    assert stderr.count("warning: ") == 1
    assert "100%  12.0 of 12.0 MiB" in stderr


@pytest.mark.parametrize("subcommand", ["upload", "push"])
def test_checkpoint_that_was_asked_for_must_be_saved(
    subcommand: str,
    ecr: LocalECR,
    path: Path,
    image: Path,
    run_in_process: Callable[..., Result],
    mocker: MockerFixture,
    tmp_path: Path,
) -> None:
    mocker.patch("os.fsync", side_effect=OSError(28, "No space left on device"))
    source, option = (
        (path, "--checkpoint") if subcommand == "upload" else (image, "--checkpoint-dir")
    )
    status, _, stderr = run_in_process(
        ecr, source, "demo", option, tmp_path / "c", subcommand=subcommand
    )
    assert status == 1
    assert "No space left on device" in stderr


def test_file_that_shrinks_while_it_is_hashed(
    ecr: LocalECR, path: Path, run_in_process: Callable[..., Result], mocker: MockerFixture
) -> None:
    mocker.patch("ecr_parts._cli.hash_source", return_value=(DIGEST, 5))
    status, _, stderr = run_in_process(ecr, path, "demo")
    assert (status, ecr.calls) == (1, [])
    assert "ended after 5 of" in stderr
