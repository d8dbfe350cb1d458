"""The command ``ecr-parts``."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import stat
import sys
from contextlib import suppress
from pathlib import Path

import botocore.client
import botocore.session

from ecr_parts._checkpoint import Checkpoint
from ecr_parts._digest import hash_source
from ecr_parts._models import PushedImage, UploadedLayer
from ecr_parts._options import parse_options
from ecr_parts._retry import CLIENT_CONFIG
from ecr_parts._session import UploadSession
from ecr_parts._sources import open_source
from ecr_parts._state_directory import checkpoint_directory
from ecr_parts._terminal import Terminal
from ecr_parts._uploader import LayerUploader
from ecr_parts._validation import check_digest, mask_passwords, to_printable
from ecr_parts.errors import (
    CheckpointError,
    EcrPartsError,
    ServiceError,
    UnexpectedResponseError,
    UploadLostError,
)
from ecr_parts.testing.__main__ import serve

_MAX_MESSAGE_LENGTH = 4_000  # characters


def main() -> int:
    """Run the command line. Returns the exit status."""
    options = parse_options()
    terminal = Terminal(options.progress, quiet=options.quiet)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # unless it is ignored
        signal.signal(signal.SIGINT, terminal.interrupt)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, terminal.interrupt)
    log = logging.getLogger("ecr_parts")
    log.addHandler(terminal)
    log.setLevel(logging.INFO)
    try:
        if options.command == "push":
            _push(options, terminal)
        elif options.command == "upload":
            _upload(options, terminal)
        else:
            serve(options)
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


def _push(options: argparse.Namespace, terminal: Terminal) -> None:
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


def _upload(options: argparse.Namespace, terminal: Terminal) -> None:
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
    options: argparse.Namespace, client: botocore.client.BaseClient, terminal: Terminal
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
    terminal: Terminal,
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
