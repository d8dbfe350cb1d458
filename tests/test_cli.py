"""``python -m ecr_parts upload``, as it is run: a process, its two outputs, its exit status."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers import bytes_of, digest_of, shown_by, shown_on_a_terminal

from ecr_parts._cli import _Terminal
from ecr_parts.testing import LocalECR

MIB = 1024 * 1024
BLOB = bytes_of(12 * MIB)  # of three parts of 5 MiB
DIGEST = digest_of(BLOB)


@pytest.fixture
def ecr() -> Iterator[LocalECR]:
    with LocalECR(part_size=5 * MIB) as ecr:
        yield ecr


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "layer.tar.gz"
    path.write_bytes(BLOB)
    return path


def start(ecr: LocalECR | None, *arguments: object, **more: Any) -> subprocess.Popen[bytes]:
    environ = {"AWS_EC2_METADATA_DISABLED": "true", "PATH": os.environ["PATH"]}
    kept = {name: os.environ[name] for name in os.environ if name.startswith("COVERAGE")}
    return subprocess.Popen(
        [sys.executable, "-m", "ecr_parts", "upload", *map(str, arguments)],
        env={**environ, **kept, **(ecr.environ() if ecr else {})},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more},
    )


def run(ecr: LocalECR | None, *arguments: object, blob: bytes = b"") -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    with start(ecr, *arguments, stdin=subprocess.PIPE) as process:
        out, err = process.communicate(blob)
    return process.returncode, out.decode(), err.decode()


def sent(ecr: LocalECR) -> list[int]:
    """The first bytes of the parts that reached it."""
    return [call.first_byte for call in ecr.calls if call.first_byte is not None]


def test_the_digest_on_standard_output_and_the_rest_on_standard_error(
    ecr: LocalECR, path: Path
) -> None:
    ecr.fail("UploadLayerPart", "answer_lost", call=2)
    status, out, err = run(ecr, path, "demo")
    assert (status, out) == (0, f"{DIGEST}\n")
    assert ecr.layer("demo", DIGEST) == BLOB
    lost, had, there = err.splitlines()
    assert "bytes 5242880-10485759, attempt 1: ConnectionClosedError" in lost
    assert "attempt 2: ECR refused the part and has the layer up to byte 10485759" in had
    assert there == "layer uploaded to demo: 12,582,912 bytes, 3 parts sent"

    status, out, err = run(ecr, path, "demo")
    assert (status, out) == (0, f"{DIGEST}\n")
    assert err == "layer already exists in demo: 12,582,912 bytes, 0 parts sent\n"


def test_standard_input(ecr: LocalECR, path: Path) -> None:
    assert run(ecr, "-", "demo", blob=BLOB)[:2] == (0, f"{DIGEST}\n")
    assert ecr.layer("demo", DIGEST) == BLOB
    ecr.registry.repositories["demo"].layers.clear()
    with path.open("rb") as file, start(ecr, "-", "demo", stdin=file) as process:
        assert process.communicate()[0] == f"{DIGEST}\n".encode()
    assert ecr.layer("demo", DIGEST) == BLOB


def test_what_is_said_of_the_layer_and_of_ecr_reaches_them(ecr: LocalECR, path: Path) -> None:
    status, _, err = run(ecr, path, "demo", "--digest", digest_of(b"other"))
    assert status == 1
    assert err.startswith("error: CompleteLayerUpload in repository 'demo', upload ")
    assert f": the bytes that ECR received do not match {digest_of(b'other')}: " in err
    status, _, err = run(ecr, path, "demo", "--registry-id", "999999999999")
    assert status == 1
    assert "does not exist in the registry with id '999999999999'" in err
    url = ecr.endpoint_url
    status, _, err = run(None, path, "demo", "--endpoint-url", url, "--region", "eu-west-1")
    assert status == 1
    assert "NoCredentialsError" in err


def test_a_bar_on_a_terminal_and_ctrl_c(ecr: LocalECR, path: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    command = (path, "demo", "--checkpoint", checkpoint)
    ecr.fail("UploadLayerPart", "throttled", call=2, times=4)
    terminal, its_end = pty.openpty()
    with start(ecr, *command, stderr=its_end) as process:
        os.close(its_end)
        shown = shown_by(terminal, "trying again in")
        process.send_signal(signal.SIGINT)
        shown += shown_by(terminal)
        out, _ = process.communicate()
    os.close(terminal)
    assert (process.returncode, out) == (130, b"")
    assert "\r\x1b[K[------------------------------]   0%  0.0 of 12.0 MiB  " in shown
    assert "\r\x1b[K[############------------------]  42%  5.0 of 12.0 MiB  " in shown
    assert "\r\x1b[KUploadLayerPart in repository 'demo', bytes 5242880-10485759, attempt" in shown
    last = shown.splitlines()[-1]
    assert last == "interrupted. Run the same command again to resume at byte 5,242,880"

    ecr.calls.clear()
    status, out_again, err = run(ecr, *command)
    assert (status, out_again) == (0, f"{DIGEST}\n")
    assert err.splitlines()[0].endswith(" at byte 5242880")
    assert min(sent(ecr)) == 5 * MIB
    assert not checkpoint.exists()


def test_a_stream_of_unknown_size_on_a_terminal(ecr: LocalECR) -> None:
    ecr.fail("UploadLayerPart", "access_denied", call=2)
    terminal, its_end = pty.openpty()
    with start(ecr, "-", "demo", stdin=subprocess.PIPE, stderr=its_end) as process:
        os.close(its_end)
        process.communicate(BLOB)
    shown = shown_by(terminal)
    os.close(terminal)
    assert process.returncode == 1
    assert "\r\x1b[K5.0 MiB  " in shown
    assert "Traceback" not in shown
    assert shown.splitlines()[-1].endswith(
        "policy. Run the command again to start over; with --checkpoint it would resume"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing", "demo"], "error: [Errno 2] No such file or directory: 'missing'\n"),
        (["-", "demo"], "error: the layer is empty, and ECR rejects empty layers: leave it"),
        (["-", "demo", "--digest", "sha256:1"], "error: digest must be 'sha256:' and 64 "),
        (
            ["-", "demo", "--checkpoint", "c"],
            "error: session and checkpoint require ",
        ),
        (["-", ""], "error: repository_name must not be empty\n"),
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
            "checkpoint must be another file",
        ),
        (
            [__file__, "demo", "--checkpoint", os.devnull],
            "/dev/null' is not a regular file: use another",
        ),
    ],
)
def test_errors_without_a_traceback(arguments: list[str], said: str, ecr: LocalECR) -> None:
    status, out, err = run(ecr, *arguments)
    assert (status, out) == (1, "")
    assert said in err
    assert "Traceback" not in err


def test_an_error_says_where_the_checkpoint_goes_on(
    ecr: LocalECR, path: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    command = (path, "demo", "--checkpoint", checkpoint)
    ecr.fail("UploadLayerPart", "access_denied", call=2)
    status, _, err = run(ecr, *command)
    assert status == 1
    assert err.endswith("IAM policy. Run the same command again to resume at byte 5,242,880\n")

    ecr.fail("BatchCheckLayerAvailability", "expired_token")  # before anything is resumed
    status, _, err = run(ecr, *command)
    assert err.endswith("at byte 5,242,880 if the checkpoint is of this layer\n")

    checkpoint.write_text("{")
    status, _, err = run(ecr, *command)
    assert status == 1
    assert err.endswith("Use another file, or delete this one to start over\n")
    assert checkpoint.read_text() == "{"


def test_a_standard_output_that_is_closed_is_an_error(ecr: LocalECR, path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with start(ecr, path, "demo", stdout=writing) as process:
        os.close(writing)
        _, err = process.communicate()
    assert process.returncode == 1
    assert err.decode().splitlines() == [
        "layer uploaded to demo: 12,582,912 bytes, 3 parts sent",
        "error: [Errno 32] Broken pipe",
    ]


def test_a_standard_error_that_is_closed_or_full_changes_nothing(ecr: LocalECR, path: Path) -> None:
    for redirection in ("2>&-", "2>/dev/full"):
        ecr.registry.repositories["demo"].layers.clear()
        ecr.fail("UploadLayerPart", "throttled", call=2)  # something to say
        status, out, _ = run_redirected(ecr, redirection, path, "demo")
        assert (status, out) == (0, f"{DIGEST}\n")


def test_other_standard_streams_that_are_closed_are_errors(ecr: LocalECR, path: Path) -> None:
    for redirection, file in ((">&-", path), ("<&-", "-")):
        status, out, err = run_redirected(ecr, redirection, file, "demo")
        assert (status, out) == (1, "")
        assert err == "error: standard output or standard input is closed: leave it open\n"
    assert ecr.calls == []


def test_ctrl_c_that_python_dropped_is_heard_of_at_the_next_sign_of_life() -> None:
    terminal = _Terminal()
    terminal.progress(0)
    with pytest.raises(KeyboardInterrupt):  # while an object is finalized, nobody hears of it
        terminal.interrupt()
    with pytest.raises(KeyboardInterrupt):
        terminal.progress(0)


def test_ctrl_c_that_is_ignored_stays_ignored(ecr: LocalECR, path: Path) -> None:
    command = [sys.executable, "-m", "ecr_parts", "upload", str(path), "demo"]
    ecr.fail("UploadLayerPart", "throttled", call=2)
    with subprocess.Popen(
        ["bash", "-c", 'trap "" INT; exec "$0" "$@"', *command],
        env={**os.environ, **ecr.environ()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        assert b"trying again in" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate()
    assert (process.returncode, out.decode()) == (0, f"{DIGEST}\n")


def run_redirected(ecr: LocalECR, redirection: str, *arguments: object) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "ecr_parts", "upload", *map(str, arguments)]
    done = subprocess.run(
        ["bash", "-c", f'exec "$0" "$@" {redirection}', *command],
        env={**os.environ, **ecr.environ()},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(("columns", "drawn"), [(20, "5.0 of 12.0 MiB  "), (63, "[####")])
def test_a_bar_is_no_wider_than_the_terminal(
    columns: int, drawn: str, ecr: LocalECR, path: Path
) -> None:
    shown = shown_on_a_terminal(partial(start, ecr, path, "demo"), columns)
    bars = [line.partition("\r\n")[0] for line in shown.split("\r\x1b[K")[1:]]
    assert any(bar.startswith(drawn) for bar in bars)
    assert max(map(len, bars)) < columns


def test_standard_input_is_read_from_where_it_stands(ecr: LocalECR, path: Path) -> None:
    with path.open("rb") as file:
        file.seek(2 * MIB)
        shown = shown_on_a_terminal(partial(start, ecr, "-", "demo", stdin=file))
    assert ecr.layer("demo", digest_of(BLOB[2 * MIB :])) == BLOB[2 * MIB :]
    assert "] 100%  10.0 of 10.0 MiB" in shown


def test_ctrl_c_before_anything_is_confirmed(ecr: LocalECR, path: Path) -> None:
    ecr.fail("BatchCheckLayerAvailability", "throttled", times=4)
    with start(ecr, path, "demo") as process:
        assert process.stderr is not None
        assert b"trying again in" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    last = err.decode().splitlines()[-1]
    assert last == "interrupted. Nothing was sent yet: run the command again"


def test_a_wrong_command_line(ecr: LocalECR) -> None:
    status, out, err = run(ecr)
    assert (status, out) == (2, "")
    assert "the following arguments are required: FILE, REPOSITORY" in err
