"""What the command prints: progress as a bar or as lines, and JSON."""

from __future__ import annotations

import json
import logging
import os
import re
from functools import partial
from pathlib import Path

import pytest
from command_line import BLOB, DIGEST, MIB, RunInProcess, run, start
from helpers import run_on_terminal
from pytest_mock import MockerFixture

from ecr_parts._command.progress import Progress
from ecr_parts._command.terminal import Terminal
from ecr_parts.testing import LocalECR


def test_prints_progress_as_lines(
    ecr: LocalECR, path: Path, run_in_process: RunInProcess, mocker: MockerFixture
) -> None:
    mocker.patch("ecr_parts._command.terminal._LINE_INTERVAL", 0)  # seconds
    _, _, stderr = run_in_process(ecr, path, "demo")
    lines = stderr.splitlines()
    assert len(lines) > 3
    assert any(re.match(r"[0-9]+%  [0-9.]+ of 12.0 MiB  ", line) for line in lines)
    assert not set("\r\x1b") & set(stderr)

    with LocalECR() as other:
        stream = run(other, "-", "demo", "--progress", "plain", stdin=BLOB)
    assert stream[0] == 0  # the ten seconds have not passed
    assert len(stream[2].splitlines()) == 3


@pytest.mark.parametrize("options", [("--progress", "none"), ("--progress", "plain")])
def test_prints_no_line_before_ten_seconds(
    options: tuple[str, ...], ecr: LocalECR, path: Path, run_in_process: RunInProcess
) -> None:
    _, _, stderr = run_in_process(ecr, path, "demo", *options)
    assert len(stderr.splitlines()) == 2


def test_draws_bar_if_it_is_asked_for(
    ecr: LocalECR, path: Path, run_in_process: RunInProcess
) -> None:
    _, _, stderr = run_in_process(ecr, path, "demo", "--progress", "bar")
    assert "100%  12.0 of 12.0 MiB" in stderr


def test_quiet_prints_errors_only(ecr: LocalECR, path: Path, run_in_process: RunInProcess) -> None:
    ecr.fail("UploadLayerPart", "answer_lost")
    assert run_in_process(ecr, path, "demo", "--quiet") == (0, f"{DIGEST}\n", "")
    status, _, stderr = run_in_process(ecr, path, "none", "--quiet", "--progress", "bar")
    assert (status, stderr.startswith("error: ")) == (1, True)


def test_prints_json(ecr: LocalECR, path: Path, image: Path, run_in_process: RunInProcess) -> None:
    layer = json.loads(run_in_process(ecr, path, "demo", "--json")[1])
    assert layer.pop("seconds") > 0
    assert layer == {"digest": DIGEST, "size": len(BLOB), "existed": False, "parts": 3}
    pushed = json.loads(run_in_process(ecr, image, "demo", "--json", subcommand="push")[1])
    repository = ecr.registry.repositories["demo"]
    assert pushed["digest"] == repository.tags["v1"]
    assert pushed["tags"] == ["v1"]
    assert {layer["digest"] for layer in pushed["layers"]} == set(repository.layers) - {DIGEST}


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (80, "[######------------------------]  20%  20.0 of 100.0 MiB  5.0 MiB/s  16 s left"),
        (79, "[######------------------------]  20%  20.0 of 100.0 MiB  5.0 MiB/s  16 s left"),
        (78, "[#####------------------------]  20%  20.0 of 100.0 MiB  5.0 MiB/s  16 s left"),
        (59, "[##--------]  20%  20.0 of 100.0 MiB  5.0 MiB/s  16 s left"),
        (58, "20.0 of 100.0 MiB  5.0 MiB/s  16 s left"),
        (40, "20.0 of 100.0 MiB  5.0 MiB/s  16 s left"),
        (39, "20.0 of 100.0 MiB  5.0 MiB/s"),
        (20, "20.0 of 100.0 MiB"),
        (10, "20.0 of 1"),
    ],
)
def test_narrow_bar_leaves_out_what_does_not_fit(
    columns: int, line: str, mocker: MockerFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    now = mocker.patch("ecr_parts._command.terminal.time.monotonic", return_value=0.0)
    mocker.patch("os.get_terminal_size", return_value=os.terminal_size((columns, 24)))
    terminal = Terminal("bar")
    terminal.upload.size = 100 * MIB
    now.return_value = 1.0
    terminal.begin_part("request")
    for now.return_value in (3.0, 5.0):
        terminal.send("request", 10 * MIB)
    terminal.end_part("request")
    terminal.progress(20 * MIB)
    assert capfd.readouterr().err.rpartition("\r\x1b[K")[2] == line


def test_no_escape_sequences_on_dumb_terminal(ecr: LocalECR, path: Path) -> None:
    start_it = partial(start, ecr, path, "demo", environ={"TERM": "dumb"})
    output = run_on_terminal(start_it)
    assert "\x1b" not in output
    assert output.splitlines()[0].startswith("demo: 1 layer, 12.0 MiB, ")


def test_only_what_this_run_sends_is_reported(
    ecr: LocalECR, path: Path, run_in_process: RunInProcess, mocker: MockerFixture
) -> None:
    sent = mocker.spy(Progress, "send")
    ecr.fail("UploadLayerPart", "access_denied", call=3)
    assert run_in_process(ecr, path, "demo")[0] == 1
    in_flight = sum(call.args[2] for call in sent.call_args_list)
    assert 12 * MIB <= in_flight < 12 * MIB + 3_000  # bytes of the parameters
    _, _, stderr = run_in_process(ecr, path, "demo")
    assert stderr.endswith(": 2,097,152 bytes sent\n")


def test_bar_moves_while_a_part_is_sent(
    ecr: LocalECR, path: Path, run_in_process: RunInProcess, mocker: MockerFixture
) -> None:
    mocker.patch("ecr_parts._command.terminal._REDRAW_INTERVAL", -1)  # draw each time
    _, _, stderr = run_in_process(ecr, path, "demo", "--progress", "bar")
    shown = [float(text) for text in re.findall(r"([0-9.]+) of 12.0 MiB", stderr)]
    assert len({amount for amount in shown if amount < 5}) > 5
    bars = [int(text) for text in re.findall(r"\] +([0-9]+)%", stderr)]
    assert bars == sorted(bars)


def test_same_message_is_printed_once(capfd: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal("none")
    for text in ("lost", "lost", "found", "lost"):
        terminal.emit(logging.LogRecord("ecr_parts", logging.INFO, "", 0, text, None, None))
    assert capfd.readouterr().err == "lost\nfound\nlost\n"


def test_thread_that_never_stops_printing_holds_up_nobody(
    capfd: pytest.CaptureFixture[str], mocker: MockerFixture
) -> None:
    """A signal handler may have interrupted it at any point."""
    mocker.patch("ecr_parts._command.terminal._MAX_WAIT", 0)
    terminal = Terminal("bar")
    with terminal.exclusively() as alone:
        assert alone
        terminal.refresh(at_once=True)  # draws nothing
        terminal.end("interrupted")
    assert capfd.readouterr().err == "interrupted\n"
