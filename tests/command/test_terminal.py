"""What the command prints: progress as a bar or as lines, and JSON."""

from __future__ import annotations

import json
import os
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
    assert any(line.startswith("42%  5.0 of 12.0 MiB  ") for line in lines)
    assert not set("\r\x1b") & set(stderr)

    with LocalECR() as other:
        stream = run(other, "-", "demo", "--progress", "plain", stdin=BLOB)
    assert stream[0] == 0  # the ten seconds have not passed
    assert len(stream[2].splitlines()) == 2


@pytest.mark.parametrize("options", [("--progress", "none"), ("--progress", "plain")])
def test_prints_no_line_before_ten_seconds(
    options: tuple[str, ...], ecr: LocalECR, path: Path, run_in_process: RunInProcess
) -> None:
    _, _, stderr = run_in_process(ecr, path, "demo", *options)
    assert len(stderr.splitlines()) == 1


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
    terminal.upload.begin_part(1.0)
    for now.return_value in (3.0, 5.0):
        terminal.upload.end_part(10 * MIB, now.return_value)
        terminal.progress(10 * MIB)
    assert capfd.readouterr().err.rpartition("\r\x1b[K")[2] == line


def test_no_escape_sequences_on_dumb_terminal(ecr: LocalECR, path: Path) -> None:
    start_it = partial(start, ecr, path, "demo", environ={"TERM": "dumb"})
    output = run_on_terminal(start_it)
    assert "\x1b" not in output
    assert output.splitlines()[0].startswith("layer uploaded to demo: ")


def test_only_parts_that_were_sent_count_for_the_rate(
    ecr: LocalECR, path: Path, run_in_process: RunInProcess, mocker: MockerFixture
) -> None:
    sent = mocker.spy(Progress, "end_part")
    ecr.fail("UploadLayerPart", "access_denied", call=3)
    for status in (1, 0, 0):  # interrupted, resumed, exists
        assert run_in_process(ecr, path, "demo")[0] == status
    assert [call.args[1] for call in sent.call_args_list] == [5 * MIB, 5 * MIB, 2 * MIB]
