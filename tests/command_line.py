"""Runs the command ``ecr-parts``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

from helpers import digest_of, random_bytes

from ecr_parts.testing import LocalECR

MIB = 1024 * 1024
BLOB = random_bytes(12 * MIB)  # three parts of 5 MiB, the last of 2
DIGEST = digest_of(BLOB)

Result: TypeAlias = tuple[int, str, str]
"""Exit status, standard output, standard error."""


class RunInProcess(Protocol):
    """Like ``run`` with an empty standard input, without the time that a new process takes."""

    def __call__(
        self, ecr: LocalECR | None, *arguments: object, subcommand: str = "upload"
    ) -> Result: ...


def command(*arguments: object, subcommand: str = "upload") -> list[str]:
    return [sys.executable, "-m", "ecr_parts", subcommand, *map(str, arguments)]


def start(
    ecr: LocalECR | None,
    *arguments: object,
    subcommand: str = "upload",
    environ: Mapping[str, str] = MappingProxyType({}),
    **options: Any,
) -> subprocess.Popen[bytes]:
    """Start the command in a new process, with an environment that points it at ``ecr``."""
    inherited = {name: os.environ[name] for name in ("PATH", "XDG_STATE_HOME")}
    no_metadata = {"AWS_EC2_METADATA_DISABLED": "true"}
    coverage = {name: os.environ[name] for name in os.environ if name.startswith("COVERAGE")}
    return subprocess.Popen(
        command(*arguments, subcommand=subcommand),
        env={**no_metadata, **inherited, **coverage, **(ecr.environ() if ecr else {}), **environ},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def run(
    ecr: LocalECR | None, *arguments: object, subcommand: str = "upload", stdin: bytes = b""
) -> Result:
    """Run the command in a new process."""
    with start(ecr, *arguments, subcommand=subcommand, stdin=subprocess.PIPE) as process:
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


def state_files() -> list[Path]:
    """The checkpoints in the default directory."""
    return list(Path(os.environ["XDG_STATE_HOME"]).rglob("*.*"))
