"""Fixtures for the tests of the command: a LocalECR with ECR's limits, a layer and an image."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import BLOB, MIB, Result, RunInProcess
from image_makers import two_platforms

from ecr_parts._command.cli import main
from ecr_parts.testing import LocalECR

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # that the command handles


@pytest.fixture
def ecr() -> Iterator[LocalECR]:
    with LocalECR(part_size=5 * MIB) as ecr:
        yield ecr


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A layer of three parts."""
    path = tmp_path / "layer.tar.gz"
    path.write_bytes(BLOB)
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return two_platforms(tmp_path / "image").path


@pytest.fixture
def run_in_process(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[RunInProcess]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    signal_handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    logs = [logging.getLogger(name) for name in ("ecr_parts", "botocore")]
    before = [(log, log.level, log.handlers.copy()) for log in logs]

    def run_main(ecr: LocalECR | None, *arguments: object, subcommand: str = "upload") -> Result:
        for name, value in (ecr.environ() if ecr else {}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["ecr_parts", subcommand, *map(str, arguments)])
        read_end, write_end = os.pipe()
        os.close(write_end)
        with open(read_end) as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            try:
                status = main()
            except SystemExit as exit_:  # of argparse
                status = int(exit_.code or 0)
        for log, level, handlers in before:
            log.setLevel(level)
            for handler in log.handlers.copy():
                if handler not in handlers:
                    log.removeHandler(handler)
        return status, *capfd.readouterr()

    yield run_main
    for number, signal_handler in signal_handlers.items():
        signal.signal(number, signal_handler)
