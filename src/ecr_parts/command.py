"""``python -m ecr_parts upload``: one layer to ECR, by hand."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import stat
import sys
import time
from contextlib import suppress

import botocore.client
import botocore.session
from typing_extensions import override

from ecr_parts._validation import masked, printable
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
_CELLS = 30  # of the bar
_COLUMNS = 80  # of a terminal that does not say
_MOST_LETTERS = 4_000  # of an error
_CLEAR = "\r\x1b[K"  # to the line's beginning, and wipe it


class _Terminal(logging.Handler):
    """Standard error: what is logged and said, line by line, and on a terminal a bar below it.

    A standard error that is closed or full changes nothing about the upload.
    """

    def __init__(self) -> None:
        super().__init__()
        self._has_bar = (
            sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        )
        self._begun = time.monotonic()
        self._drawn = 0.0
        self.size: int | None = None
        """The layer's bytes, where they are known."""
        self.confirmed = 0
        """Bytes that ECR has."""
        self._interrupted = False

    def interrupt(self, *_signal: object) -> None:
        """Ctrl-C."""
        self._interrupted = True
        raise KeyboardInterrupt

    def progress(self, newly: int) -> None:
        """For ``upload(progress=…)``."""
        self.confirmed += newly
        if self._interrupted:  # Python drops what is raised while an object is finalized
            raise KeyboardInterrupt
        if newly or time.monotonic() - self._drawn > _REDRAWN:
            self._draw()

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self._write(f"{_CLEAR if self._has_bar else ''}{record.getMessage()}\n")
        self._draw()

    def end(self, line: str) -> None:
        """Leave the bar as it is, and say how it ended."""
        if self._has_bar and self._drawn:
            self._write("\n")
        self._has_bar = False
        self._write(f"{line}\n")

    def _draw(self) -> None:
        if not self._has_bar:
            return
        self._drawn = time.monotonic()
        bar, of = "", ""
        if self.size:
            done = min(1, self.confirmed / self.size)
            bar = f"[{'#' * int(_CELLS * done):-<{_CELLS}}] {done:4.0%}  "
            of = f" of {self.size / _MIB:,.1f}"
        text = f"{self.confirmed / _MIB:,.1f}{of} MiB  {self._drawn - self._begun:.0f} s"
        columns = _COLUMNS
        with suppress(OSError):
            columns = os.get_terminal_size(sys.stderr.fileno()).columns or _COLUMNS
        if len(bar + text) < columns:
            text = bar + text
        self._write(f"{_CLEAR}{text[: columns - 1]}")  # a line that wraps could not be wiped

    def _write(self, text: str) -> None:
        if sys.stderr is not None:
            # Not through its buffer, which would be flushed in vain when Python ends.
            with suppress(OSError):
                encoding = sys.stderr.encoding
                os.write(sys.stderr.fileno(), text.encode(encoding, "backslashreplace"))


def main() -> int:
    """Do what the command line says. Returns the exit status."""
    options = _options()
    terminal = _Terminal()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored
        signal.signal(signal.SIGINT, terminal.interrupt)
    log = logging.getLogger("ecr_parts")
    log.addHandler(terminal)
    log.setLevel(logging.INFO)
    try:
        _upload(options, terminal)
    except KeyboardInterrupt:
        how = _how_to_go_on(options, terminal.confirmed, ours=terminal.confirmed > 0)
        terminal.end(f"interrupted. {how or 'ECR has confirmed nothing yet: run it again'}")
        return 130
    except (EcrPartsError, OSError, TypeError, ValueError) as error:
        how = ""
        mends = ServiceError | UnexpectedResponseError
        if isinstance(error, mends) and not isinstance(error, UploadLostError):
            how = _how_to_go_on(options, terminal.confirmed, ours=error.session is not None)
        terminal.end(
            f"error: {printable(str(error), _MOST_LETTERS).rstrip('.')}. {how}".rstrip(". ")
        )
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
        "--digest", metavar="D", help="the layer's, sha256:..., if known: ECR then proves it"
    )
    upload.add_argument(
        "--registry-id", metavar="ID", help="the AWS account of the registry (default: your own)"
    )
    upload.add_argument("--region", metavar="R", help="the registry's region")
    upload.add_argument("--profile", metavar="P", help="of your AWS configuration")
    upload.add_argument("--endpoint-url", metavar="URL", help="where ECR is, if not at AWS")
    return parser.parse_args()


def _upload(options: argparse.Namespace, terminal: _Terminal) -> None:
    stdin = options.file == "-"
    if sys.stdout is None or (stdin and sys.stdin is None):
        raise ValueError("standard output, or the standard input to upload, is closed")
    uploader = LayerUploader(_client(options), options.repository, registry_id=options.registry_id)
    status = os.stat(sys.stdin.fileno() if stdin else options.file)
    if stat.S_ISREG(status.st_mode):
        read = os.lseek(sys.stdin.fileno(), 0, os.SEEK_CUR) if stdin else 0
        terminal.size = status.st_size - read
    layer = uploader.upload(
        sys.stdin.buffer if stdin else options.file,
        digest=options.digest,
        checkpoint=options.checkpoint,
        progress=terminal.progress,
    )
    has = "had it already" if layer.existed else "has it now"
    sent = f"{len(layer.parts):,} part{'' if len(layer.parts) == 1 else 's'} sent"
    terminal.end(f"{options.repository} {has}: {layer.size:,} bytes, {sent}")
    os.write(sys.stdout.fileno(), f"{layer.digest}\n".encode())  # a failure is an error now


def _client(options: argparse.Namespace) -> botocore.client.BaseClient:
    try:
        return botocore.session.Session(profile=options.profile).create_client(
            "ecr",
            region_name=options.region,
            endpoint_url=options.endpoint_url,
            config=CLIENT_CONFIG,
        )
    except Exception as error:  # of any kind: botocore reads files, and runs programs
        text = masked(printable(str(error))).rstrip(".")
        raise ValueError(
            f"cannot create a client: {type(error).__name__}: {text}. Check the AWS configuration, "
            "--profile, --region and --endpoint-url"
        ) from error


def _how_to_go_on(options: argparse.Namespace, confirmed: int, *, ours: bool) -> str:
    """``ours``: whether the checkpoint, if there is one, is surely of this upload."""
    kept = None
    if options.checkpoint is not None:
        with suppress(CheckpointError):  # another error is being told
            kept = Checkpoint(options.checkpoint).load()
    if kept is not None:
        of_another = "" if ours else ", if the checkpoint is of this layer"
        return f"Run the same command again: it goes on at byte {kept.next_byte:,}{of_another}"
    if confirmed:
        return "Run it again, from the beginning: only --checkpoint keeps how far it was"
    return ""
