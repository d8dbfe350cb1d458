"""A fixture for the tests of LocalECR as a command."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def start_server() -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """Starts ``python -m ecr_parts.testing`` with options; returns the process and its URL.

    At the end, each process is terminated, and must succeed.
    """
    with contextlib.ExitStack() as stack:

        def start(*options: str) -> tuple[subprocess.Popen[str], str]:
            command = [sys.executable, "-m", "ecr_parts.testing", *options]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            stack.callback(stop, process)
            assert process.stdout is not None
            return process, process.stdout.readline().strip()

        yield start


def stop(process: subprocess.Popen[str]) -> None:
    with process:
        process.terminate()
        process.communicate()
    assert process.returncode == 0
