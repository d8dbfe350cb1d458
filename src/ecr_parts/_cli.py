"""The command ``ecr-parts``."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import signal
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path

import botocore.client
import botocore.session
from typing_extensions import override

from ecr_parts._checkpoint import Checkpoint
from ecr_parts._digest import hash_source
from ecr_parts._models import PushedImage, UploadedLayer
from ecr_parts._retry import CLIENT_CONFIG
from ecr_parts._session import UploadSession
from ecr_parts._sources import open_source
from ecr_parts._state_directory import checkpoint_directory
from ecr_parts._uploader import LayerUploader
from ecr_parts._validation import check_digest, mask_passwords, to_printable
from ecr_parts._version import __version__
from ecr_parts.errors import (
    CheckpointError,
    EcrPartsError,
    ServiceError,
    UnexpectedResponseError,
    UploadLostError,
)
from ecr_parts.testing.__main__ import DESCRIPTION, add_options, serve

_MIB = 1024 * 1024
_REDRAW_INTERVAL = 0.1  # seconds
_LINE_INTERVAL = 10.0  # seconds
_BAR_WIDTH = 30  # characters
_DEFAULT_COLUMNS = 80  # for a terminal that does not report its width
_MAX_MESSAGE_LENGTH = 4_000  # characters
_EXIT_STATUS = (
    "Exit status: 0 if the {} is complete at ECR, 1 after an error, 2 for an invalid command line, "
    "130 after Ctrl-C, 143 after SIGTERM."
)
_UNITS = {
    "": 1, "B": 1, "kB": 10**3, "KiB": 2**10, "MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30,
}  # fmt: skip
_CLEAR_LINE = "\r\x1b[K"


class _Terminal(logging.Handler):
    """Standard error: log messages line by line, and progress as a bar below them, or as lines.

    If standard error is closed or full, the upload continues without messages.
    """

    def __init__(self, progress: str = "auto", *, quiet: bool = False) -> None:
        super().__init__()
        if progress == "auto":
            is_terminal = sys.stderr is not None and sys.stderr.isatty()
            progress = "bar" if is_terminal and os.environ.get("TERM") != "dumb" else "plain"
        self._has_bar = progress == "bar" and not quiet
        self._has_lines = progress == "plain" and not quiet
        self._is_quiet = quiet
        self._started = time.monotonic()
        self._drawn = 0.0
        self._next_line = self._started + _LINE_INTERVAL
        self.size: int | None = None
        """The layer's size in bytes, if known."""
        self.confirmed = 0
        """The number of bytes that ECR has."""
        self._interrupted = False
        self.exit_status = 128 + signal.SIGINT
        """What an interrupted command exits with."""

    def interrupt(self, number: int, _frame: object) -> None:
        """Handle Ctrl-C (SIGINT) and SIGTERM."""
        self._interrupted = True
        self.exit_status = 128 + number
        raise KeyboardInterrupt

    def progress(self, newly_confirmed: int) -> None:
        """The ``progress`` callback of the upload."""
        self.confirmed += newly_confirmed
        if self._interrupted:  # Python ignores a KeyboardInterrupt that is raised in ``__del__``
            raise KeyboardInterrupt
        if newly_confirmed or time.monotonic() - self._drawn > _REDRAW_INTERVAL:
            self._draw()

    @override
    def emit(self, record: logging.LogRecord) -> None:
        if not self._is_quiet:
            self._write(f"{_CLEAR_LINE if self._has_bar else ''}{record.getMessage()}\n")
            self._draw()

    def warn(self, line: str) -> None:
        """Print a warning."""
        self._write(f"{_CLEAR_LINE if self._has_bar else ''}warning: {line}\n")

    def warn_of_checkpoint(self, error: Exception) -> None:
        """Print that progress is not saved, and start to count progress anew."""
        self.warn(f"progress is not saved, so the upload cannot be resumed: {error}")
        self.confirmed = 0

    def end(self, line: str) -> None:
        """Print the last line, below the bar."""
        if self._has_bar and self._drawn:
            self._write("\n")
        self._has_bar = self._has_lines = False
        self._write(f"{line}\n")

    def succeed(self, line: str) -> None:
        """Print the last line of a command that succeeded."""
        if not self._is_quiet:
            self.end(line)

    def _draw(self) -> None:
        now = time.monotonic()
        if self._has_lines and now >= self._next_line:
            self._next_line = now + _LINE_INTERVAL
            of = f" of {self.size / _MIB:,.1f}" if self.size else ""
            text = f"{self.confirmed / _MIB:,.1f}{of} MiB  {now - self._started:.0f} s"
            self._write(f"{text}\n")
        if not self._has_bar:
            return
        self._drawn = time.monotonic()
        bar, of = "", ""
        if self.size:
            done = min(1, self.confirmed / self.size)
            bar = f"[{'#' * int(_BAR_WIDTH * done):-<{_BAR_WIDTH}}] {done:4.0%}  "
            of = f" of {self.size / _MIB:,.1f}"
        text = f"{self.confirmed / _MIB:,.1f}{of} MiB  {self._drawn - self._started:.0f} s"
        columns = _DEFAULT_COLUMNS
        with suppress(OSError):
            columns = os.get_terminal_size(sys.stderr.fileno()).columns or _DEFAULT_COLUMNS
        if len(bar + text) < columns:
            text = bar + text
        self._write(f"{_CLEAR_LINE}{text[: columns - 1]}")  # a wrapped line cannot be cleared

    def _write(self, text: str) -> None:
        if sys.stderr is not None:
            # Unbuffered: flushing a buffer to a closed stderr would fail when Python exits.
            with suppress(OSError):
                encoding = sys.stderr.encoding
                os.write(sys.stderr.fileno(), text.encode(encoding, "backslashreplace"))


def main() -> int:
    """Run the command line. Returns the exit status."""
    options = _options()
    terminal = _Terminal(options.progress, quiet=options.quiet)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # unless it is ignored
        signal.signal(signal.SIGINT, terminal.interrupt)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, terminal.interrupt)
    log = logging.getLogger("ecr_parts")
    log.addHandler(terminal)
    log.setLevel(logging.INFO)
    try:
        options.run(options, terminal)
    except KeyboardInterrupt:
        advice = _how_to_resume(options, terminal.confirmed, own=terminal.confirmed > 0)
        terminal.end(f"interrupted. {advice or 'ECR has confirmed nothing yet: run it again'}")
        return terminal.exit_status
    except (EcrPartsError, OSError, TypeError, ValueError) as error:
        advice = ""
        resumable = ServiceError | UnexpectedResponseError
        if isinstance(error, resumable) and not isinstance(error, UploadLostError):
            advice = _how_to_resume(options, terminal.confirmed, own=error.session is not None)
        message = to_printable(str(error), _MAX_MESSAGE_LENGTH).rstrip(".")
        terminal.end(f"error: {message}. {advice}".rstrip(". "))
        return 1
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ecr-parts", description="Upload images and layers to Amazon ECR in parts."
    )
    parser.add_argument("--version", action="version", version=f"ecr-parts {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    push = commands.add_parser(
        "push",
        help="push an image",
        description="Push an image from an OCI image layout, an archive of one, or a docker "
        "archive (docker save, podman save). Prints its digest to standard output, and everything "
        "else to standard error.",
        epilog=_EXIT_STATUS.format("image"),
    )
    push.set_defaults(run=_push)
    push.add_argument("image", metavar="IMAGE", help="the image's directory or archive")
    push.add_argument(
        "repository", metavar="REPOSITORY[:TAG]", help="the repository's name, and a tag"
    )
    push.add_argument(
        "--tag",
        action="append",
        metavar="TAG",
        dest="tags",
        help="a tag; may be repeated (default: the tags that the image has in its archive)",
    )
    push.add_argument(
        "--platform",
        action="append",
        metavar="OS/ARCH",
        dest="platforms",
        help="push only the image for this platform, such as linux/arm64; may be repeated",
    )
    push.add_argument(
        "--max-workers",
        type=int,
        default=4,
        metavar="N",
        help="how many layers are uploaded at a time (default: 4)",
    )
    push.add_argument(
        "--checkpoint-dir",
        metavar="DIR",
        help="save progress in this directory (default: ~/.local/state/ecr-parts, for a week); run "
        "the same command again to resume",
    )
    _add_common_options(push)
    upload = commands.add_parser(
        "upload",
        help="upload one layer",
        description="Upload one layer. Prints its digest to standard output, and everything else "
        "to standard error.",
        epilog=_EXIT_STATUS.format("layer"),
    )
    upload.set_defaults(run=_upload)
    upload.add_argument("file", metavar="FILE", help="the layer's file, or - for standard input")
    upload.add_argument("repository", metavar="REPOSITORY", help="the repository's name")
    upload.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="save progress in this file (default: in ~/.local/state/ecr-parts, for a week); run "
        "the same command again to resume",
    )
    upload.add_argument(
        "--digest", metavar="D", help="the layer's digest, sha256:..., if known; verified by ECR"
    )
    upload.add_argument(
        "--size",
        type=_size,
        metavar="N",
        help="the layer's size, in bytes or as 5MiB; a stream that ends before is not completed",
    )
    _add_common_options(upload)
    local = commands.add_parser(
        "local", help="serve a local emulator of ECR", description=DESCRIPTION
    )
    local.set_defaults(run=lambda options, _terminal: serve(options), progress="none", quiet=False)
    add_options(local)
    return parser.parse_args()


def _size(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,18})(|B|kB|KiB|MB|MiB|GB|GiB)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be bytes, or a size such as 5MiB, not {text!r}")
    return int(match[1]) * _UNITS[match[2]]


def _add_common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--progress",
        choices=("auto", "bar", "plain", "none"),
        default="auto",
        help="a bar, a line every ten seconds, or nothing (default: a bar on a terminal, otherwise "
        "lines)",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="print nothing but warnings and errors"
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON object instead of the digest"
    )
    parser.add_argument("--no-checkpoint", action="store_true", help="do not save progress")
    parser.add_argument("--public", action="store_true", help="use ECR Public")
    parser.add_argument(
        "--part-size", type=_size, metavar="N", help="the size of the parts, such as 10MiB"
    )
    parser.add_argument(
        "--limit-rate",
        type=_size,
        metavar="N",
        help="send at most this many bytes per second, such as 5MiB",
    )
    parser.add_argument(
        "--registry-id",
        metavar="ID",
        help="the AWS account ID of the registry (default: that of the credentials)",
    )
    parser.add_argument("--region", metavar="R", help="the AWS region of the registry")
    parser.add_argument("--profile", metavar="P", help="a profile of the AWS configuration")
    parser.add_argument(
        "--endpoint-url",
        metavar="URL",
        help="the URL of ECR, if it is not the default of the region",
    )


def _push(options: argparse.Namespace, terminal: _Terminal) -> None:
    _check_standard_output()
    directory, slash, name = options.repository.rpartition("/")
    name, colon, tag = name.partition(":")
    repository = f"{directory}{slash}{name}"
    tags = [*([tag] if colon else []), *(options.tags or [])]
    client = _client(options)
    uploader = _uploader(options, client, repository)
    is_default = options.checkpoint_dir is None
    if is_default:
        options.checkpoint_dir = _checkpoint_directory(options, client, repository, terminal)

    def push() -> PushedImage:
        return uploader.push_image(
            options.image,
            tags=tags or None,
            platforms=options.platforms,
            max_workers=options.max_workers,
            checkpoint_dir=options.checkpoint_dir,
            progress=terminal.progress,
        )

    try:
        image = push()
    except CheckpointError as error:
        if not is_default:
            raise
        options.checkpoint_dir = None
        terminal.warn_of_checkpoint(error)
        image = push()
    sent = [layer.size for layer in image.layers if not layer.existed]
    names = ", ".join(f"{repository}:{tag}" for tag in image.tags) or repository
    terminal.succeed(
        f"image pushed to {names}: {len(sent)} of {len(image.layers)} blobs sent, "
        f"{sum(sent):,} bytes"
    )
    layers = [_describe(layer) for layer in image.layers]
    _print(options, image.digest, {"tags": image.tags, "layers": layers})


def _upload(options: argparse.Namespace, terminal: _Terminal) -> None:
    stdin = options.file == "-"
    _check_standard_output()
    if stdin and sys.stdin is None:
        raise ValueError("standard input is closed: pass a file, or pipe the layer in")
    status = os.stat(sys.stdin.fileno() if stdin else options.file)
    if options.checkpoint is not None and not stat.S_ISREG(status.st_mode):
        raise ValueError(
            "--checkpoint requires a regular file: a pipe cannot be resumed. Save the layer to a "
            "file first"
        )
    if not stat.S_ISREG(status.st_mode) and options.digest is None and options.size is None:
        terminal.warn(
            "a stream without --size or --digest: if its producer fails, a truncated layer is "
            "uploaded"
        )
    client = _client(options)
    uploader = _uploader(options, client, options.repository)
    if stat.S_ISREG(status.st_mode):
        offset = os.lseek(sys.stdin.fileno(), 0, os.SEEK_CUR) if stdin else 0
        terminal.size = status.st_size - offset
    is_default = options.checkpoint is None
    if is_default and not stdin and stat.S_ISREG(status.st_mode):
        options.checkpoint = _default_checkpoint(options, client, terminal)

    def upload(session: UploadSession | None = None) -> UploadedLayer:
        return uploader.upload(
            sys.stdin.buffer if stdin else options.file,
            digest=options.digest,
            size=options.size,
            checkpoint=options.checkpoint,
            session=session,
            progress=terminal.progress,
        )

    try:
        layer = upload()
    except CheckpointError as error:
        if not is_default:
            raise
        options.checkpoint = None
        terminal.warn_of_checkpoint(error)
        layer = upload(error.session)
    what = "already exists in" if layer.existed else "uploaded to"
    sent = f"{len(layer.parts):,} part{'' if len(layer.parts) == 1 else 's'} sent"
    terminal.succeed(f"layer {what} {options.repository}: {layer.size:,} bytes, {sent}")
    _print(options, layer.digest, _describe(layer))


def _default_checkpoint(
    options: argparse.Namespace, client: botocore.client.BaseClient, terminal: _Terminal
) -> Path | None:
    """The path of the checkpoint for this layer, which is named by its digest."""
    directory = _checkpoint_directory(options, client, options.repository, terminal)
    if directory is None:
        return None
    if options.digest is None:
        with open_source(options.file) as source:
            options.digest, size = hash_source(source, lambda: terminal.progress(0))
            error = source.error_at_end(size)
        if error is not None:
            raise error
    check_digest("digest", options.digest)
    return directory / f"{options.digest.partition(':')[2]}.checkpoint"


def _checkpoint_directory(
    options: argparse.Namespace,
    client: botocore.client.BaseClient,
    repository: str,
    terminal: _Terminal,
) -> Path | None:
    """The default directory for checkpoints of uploads to ``repository``."""
    if options.no_checkpoint:
        return None
    destination = {
        "endpoint": client.meta.endpoint_url,  # also tells the region
        "profile": options.profile or os.environ.get("AWS_PROFILE"),
        "registry": options.registry_id,
        "repository": repository,
    }
    try:
        return checkpoint_directory(destination)
    except OSError as error:
        terminal.warn_of_checkpoint(error)
        return None


def _check_standard_output() -> None:
    if sys.stdout is None:
        raise ValueError("standard output is closed: redirect it to a file or to /dev/null")


def _describe(layer: UploadedLayer) -> dict[str, object]:
    return {
        "digest": layer.digest,
        "size": layer.size,
        "existed": layer.existed,
        "parts": len(layer.parts),
        "seconds": round(sum(part.seconds for part in layer.parts), 3),
    }


def _print(options: argparse.Namespace, digest: str, details: dict[str, object]) -> None:
    line = json.dumps({"digest": digest, **details}) if options.json else digest
    os.write(sys.stdout.fileno(), f"{line}\n".encode())  # fails here, not at exit


def _uploader(
    options: argparse.Namespace, client: botocore.client.BaseClient, repository: str
) -> LayerUploader:
    return LayerUploader(
        client,
        repository,
        registry_id=options.registry_id,
        part_size=options.part_size,
        max_bandwidth=options.limit_rate,
    )


def _client(options: argparse.Namespace) -> botocore.client.BaseClient:
    try:
        session = botocore.session.Session(profile=options.profile)
        # Here, in the main thread: this may ask for an MFA code on the terminal.
        credentials = session.get_credentials()
        if credentials is not None:
            credentials.get_frozen_credentials()
        return session.create_client(
            "ecr-public" if options.public else "ecr",
            # The API of ECR Public is in one region only.
            region_name=options.region or ("us-east-1" if options.public else None),
            endpoint_url=options.endpoint_url,
            config=CLIENT_CONFIG,
        )
    except Exception as error:  # of any type: botocore reads files and runs programs
        text = mask_passwords(to_printable(str(error))).rstrip(".")
        raise ValueError(
            f"cannot create a client: {type(error).__name__}: {text}. Check the AWS configuration, "
            "--profile, --region and --endpoint-url"
        ) from error


def _how_to_resume(options: argparse.Namespace, confirmed: int, *, own: bool) -> str:
    """Advice on how to resume. ``own``: whether the checkpoint was written by this upload."""
    if options.command == "push":
        if not confirmed:
            return ""
        if options.checkpoint_dir is None:
            return "Run the command again to start over: its progress was not saved"
        return "Run the same command again to resume"
    saved = None
    if options.checkpoint is not None:
        with suppress(CheckpointError):  # another error is being reported
            saved = Checkpoint(options.checkpoint).load()
    if saved is not None:
        condition = "" if own else " if the checkpoint belongs to this layer"
        return f"Run the same command again to resume at byte {saved.next_byte:,}{condition}"
    if confirmed and options.file == "-":
        return "Run the command again to start over: standard input cannot be resumed"
    if confirmed:
        return "Run the command again to start over: its progress was not saved"
    return ""
