"""Standard input, output and error that are closed, full or broken."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from command_line import DIGEST, RunInProcess, command, start

from ecr_parts.testing import LocalECR
from ecr_parts.testing.__main__ import print_whole

FULL_DISK = "No space left on device"


CLOSED = "standard output is closed: redirect it to a file or to /dev/null"
PROBLEMS = [FULL_DISK, "Broken pipe", "Resource temporarily unavailable", CLOSED]


@contextmanager
def stdout_with(problem: str) -> Iterator[None]:
    """Replace ``sys.stdout`` by one that cannot be written to."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    os.write(write_end, bytes(2**20))  # more than it takes
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        open(read_end, "rb") as reader,
        open(write_end, "w") as full_pipe,
        open("/dev/full", "w") as full_disk,
    ):
        stdout = {FULL_DISK: full_disk, CLOSED: None}.get(problem, full_pipe)
        monkeypatch.setattr(sys, "stdout", stdout)
        if problem == "Broken pipe":
            reader.close()
        yield


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize(
    "arguments",
    [
        ("--version",), ("--help",), ("upload", "--help"), ("push", "--help"), ("local", "--help"),
        ("local",), ("upload", "FILE", "demo"), ("upload", "FILE", "demo", "--json"),
        ("push", "IMAGE", "demo"),
    ],
)  # fmt: skip
def test_output_that_cannot_be_printed_is_an_error(
    arguments: tuple[str, ...],
    problem: str,
    ecr: LocalECR,
    path: Path,
    image: Path,
    run_in_process: RunInProcess,
) -> None:
    subcommand, *rest = arguments
    paths = {"FILE": path, "IMAGE": image}
    with stdout_with(problem):
        status, _, stderr = run_in_process(
            ecr, *[paths.get(text, text) for text in rest], subcommand=subcommand
        )
    *_, last_line = stderr.splitlines()
    assert (status, last_line.startswith("error: "), last_line.endswith(problem)) == (1, True, True)


@pytest.mark.parametrize("problem", PROBLEMS[:-1])
def test_error_has_the_digest_that_could_not_be_printed(
    problem: str, ecr: LocalECR, path: Path, run_in_process: RunInProcess
) -> None:
    with stdout_with(problem):
        _, _, stderr = run_in_process(ecr, path, "demo")
    _first, _summary, error = stderr.splitlines()
    assert error == f"error: ECR has {DIGEST}, but printing to standard output failed: {problem}"


def test_output_that_is_cut_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk that becomes full: the first write takes some bytes, the second one none."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (tmp_path / "output").open("w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
        try:
            with pytest.raises(OSError, match="printing to standard output failed: File too large"):
                print_whole(f"{DIGEST}\n")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "output").read_text() == DIGEST[:20]


@pytest.mark.parametrize(
    ("arguments", "stream", "status"),
    [(("--version",), "stdout", 1), (("local",), "stdout", 1), (("upload",), "stderr", 2)],
)
def test_python_reports_nothing_at_exit(
    arguments: tuple[str, ...], stream: str, status: int
) -> None:
    """A buffer that it cannot write makes it exit with 120."""
    subcommand, *rest = arguments
    with open("/dev/full", "w") as full:
        streams: dict[str, Any] = {stream: full}
        with start(None, *rest, subcommand=subcommand, **streams) as process:
            _, stderr = process.communicate()
    assert process.returncode == status
    assert stderr in (None, f"error: printing to standard output failed: {FULL_DISK}\n".encode())


CLOSED_STREAMS = {"<&-": 0, ">&-": 1, "2>&-": 0, "<&- 2>&-": 0, "<&- >&- 2>&-": 1}
"""Redirections that close streams, and the exit status of the command."""


@pytest.mark.parametrize(
    ("subcommand", "closed", "status"),
    [
        pytest.param(
            *(subcommand, closed, status),
            # What they do is shared: one success and one failure of the others are enough.
            marks=[pytest.mark.soak]
            * (subcommand != "upload" and closed not in (">&-", "<&- 2>&-")),
        )
        for subcommand in ("upload", "push", "local")
        for closed, status in CLOSED_STREAMS.items()
    ],
)
def test_closed_streams_leave_no_traceback(
    subcommand: str, closed: str, status: int, ecr: LocalECR, path: Path, image: Path
) -> None:
    sources = {"upload": (path, "demo"), "push": (image, "demo"), "local": ()}
    line = command(*sources[subcommand], subcommand=subcommand)
    with subprocess.Popen(
        ["bash", "-c", f'exec "$0" "$@" {closed}', *line],
        env={**os.environ, **ecr.environ()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        first_line = process.stdout.readline()
        if subcommand == "local" and status == 0:
            process.terminate()
        _, stderr = process.communicate()
    assert process.returncode == status
    assert bool(first_line) == (status == 0)
    if closed == ">&-":
        assert stderr == f"error: {CLOSED}\n"
    else:
        assert "Traceback" not in stderr
