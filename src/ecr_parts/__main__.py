"""``python -m ecr_parts``: one layer to ECR, by hand."""

from __future__ import annotations

import argparse
import logging
import os
import stat
import sys
import time
from contextlib import suppress
from typing import TextIO

import botocore.session
from botocore.exceptions import BotoCoreError
from typing_extensions import override

from ecr_parts.checkpoint import Checkpoint
from ecr_parts.errors import (
    CheckpointError,
    EcrPartsError,
    ServiceError,
    UnexpectedResponseError,
    UploadLostError,
)
from ecr_parts.retry import CLIENT_CONFIG
from ecr_parts.uploader import LayerUploader

_MIB = 1024 * 1024
_REDRAWN = 0.1  # seconds
_WIDTH = 30  # characters
_CLEAR = "\r\x1b[K"  # to the line's beginning, and wipe it


class _Terminal(logging.Handler):
    """Standard error: what is logged and said, line by line, and on a terminal a bar below it."""

    def __init__(self, out: TextIO) -> None:
        super().__init__()
        self._out = out
        self._has_bar = out.isatty()
        self._begun = time.monotonic()
        self._drawn = 0.0
        self.size: int | None = None
        """The layer's bytes, where they are known."""
        self.confirmed = 0
        """Bytes that ECR has."""

    def progress(self, newly: int) -> None:
        """For ``upload(progress=…)``."""
        self.confirmed += newly
        if newly or time.monotonic() - self._drawn > _REDRAWN:
            self._draw()

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self._out.write(f"{_CLEAR if self._has_bar else ''}{record.getMessage()}\n")
        self._draw()

    def end(self, line: str) -> None:
        """Leave the bar as it is, and say how it ended."""
        if self._has_bar and self._drawn:
            self._out.write("\n")
        self._has_bar = False
        self._out.write(f"{line}\n")
        self._out.flush()

    def _draw(self) -> None:
        if self._has_bar:
            self._drawn = time.monotonic()
            bar, of = "", ""
            if self.size:
                done = min(1, self.confirmed / self.size)
                bar = f"[{'#' * int(_WIDTH * done):-<{_WIDTH}}] {done:4.0%}  "
                of = f" of {self.size / _MIB:,.1f}"
            seconds = self._drawn - self._begun
            self._out.write(f"{_CLEAR}{bar}{self.confirmed / _MIB:,.1f}{of} MiB  {seconds:.0f} s")
        self._out.flush()


def main() -> int:
    """Do what the command line says. Returns the exit status."""
    options = _options()
    terminal = _Terminal(sys.stderr)
    log = logging.getLogger("ecr_parts")
    log.addHandler(terminal)
    log.setLevel(logging.INFO)
    try:
        _upload(options, terminal)
    except KeyboardInterrupt as error:
        terminal.end(f"interrupted. {_how_to_go_on(options, terminal.confirmed, error)}")
        return 130
    except (EcrPartsError, BotoCoreError, OSError, ValueError) as error:
        how = _how_to_go_on(options, terminal.confirmed, error)
        terminal.end(f"error: {str(error).rstrip('.')}. {how}".rstrip())
        return 1
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ecr_parts", description="Upload image layers to Amazon ECR in parts."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    upload = commands.add_parser(
        "upload",
        help="upload one layer",
        description="Upload one layer. Its digest goes to standard output, everything else to "
        "standard error.",
        epilog="Exit status: 0 when the layer is at ECR, whole; 1 after an error; 2 for a wrong "
        "command line; 130 after Ctrl-C.",
    )
    upload.add_argument("file", metavar="FILE", help="the layer; - is standard input")
    upload.add_argument("repository", metavar="REPOSITORY", help="the repository's name")
    upload.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="keeps how far the upload is: the same command goes on there, whatever ended this one",
    )
    upload.add_argument(
        "--digest", metavar="D", help="the layer's, sha256:…, if known: ECR then proves it"
    )
    upload.add_argument(
        "--registry-id", metavar="ID", help="the AWS account of the registry (default: your own)"
    )
    upload.add_argument("--region", metavar="R", help="the registry's region")
    upload.add_argument("--profile", metavar="P", help="of your AWS configuration")
    upload.add_argument("--endpoint-url", metavar="URL", help="where ECR is, if not at AWS")
    return parser.parse_args()


def _upload(options: argparse.Namespace, terminal: _Terminal) -> None:
    client = botocore.session.Session(profile=options.profile).create_client(
        "ecr", region_name=options.region, endpoint_url=options.endpoint_url, config=CLIENT_CONFIG
    )
    uploader = LayerUploader(client, options.repository, registry_id=options.registry_id)
    status = os.stat(sys.stdin.fileno() if options.file == "-" else options.file)
    terminal.size = status.st_size if stat.S_ISREG(status.st_mode) else None
    layer = uploader.upload(
        sys.stdin.buffer if options.file == "-" else options.file,
        digest=options.digest,
        checkpoint=options.checkpoint,
        progress=terminal.progress,
    )
    has = "had it already" if layer.existed else "has it now"
    sent = f"{len(layer.parts):,} part{'' if len(layer.parts) == 1 else 's'} sent"
    terminal.end(f"{options.repository} {has}: {layer.size:,} bytes, {sent}")
    os.write(sys.stdout.fileno(), f"{layer.digest}\n".encode())  # a failure is an error now


def _how_to_go_on(options: argparse.Namespace, confirmed: int, error: BaseException) -> str:
    if isinstance(error, BotoCoreError):  # no client
        return "Check --profile, --region and --endpoint-url"
    mends = (KeyboardInterrupt, ServiceError, UnexpectedResponseError)
    if not isinstance(error, mends) or isinstance(error, UploadLostError):
        return ""
    if options.checkpoint is not None:
        kept = None
        with suppress(CheckpointError):  # another error is being told
            kept = Checkpoint(options.checkpoint).load()
        if kept is not None:
            return f"Run the same command again: it goes on at byte {kept.next_byte:,}"
    if confirmed:
        return "Run it again, from the beginning: only --checkpoint keeps how far it was"
    return "Nothing was sent"


if __name__ == "__main__":
    sys.exit(main())
