"""The commands ``upload`` and ``push``."""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
import tempfile
from abc import ABC, abstractmethod
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import botocore.session
import tenacity
from botocore.client import BaseClient
from botocore.exceptions import NoRegionError
from typing_extensions import override

from ecr_parts._checkpoint import Checkpoint
from ecr_parts._digest import hash_source
from ecr_parts._docker_archive import DockerArchive
from ecr_parts._images import read_image
from ecr_parts._models import Layer, PushedImage, UploadedLayer
from ecr_parts._retry import CLIENT_CONFIG, default_retrying
from ecr_parts._session import UploadSession
from ecr_parts._sources import open_source
from ecr_parts._state_directory import checkpoint_directory
from ecr_parts._terminal import Terminal
from ecr_parts._uploader import LayerUploader
from ecr_parts._validation import mask_passwords, to_printable
from ecr_parts.errors import CheckpointError

_START_OVER = "Run the command again to start over: "


class Command(ABC):
    """What both commands do: talk to ECR, save progress, and print results."""

    def __init__(self, options: argparse.Namespace, terminal: Terminal) -> None:
        self._options = options
        self._terminal = terminal

    @abstractmethod
    def run(self) -> None:
        """Run the command."""

    @abstractmethod
    def how_to_resume(self, *, started: bool) -> str:
        """Advice on how to resume; empty if nothing was sent.

        ``started``: whether this run has started or continued an upload.
        """

    def _create_client(self) -> BaseClient:
        options = self._options
        try:
            session = botocore.session.Session(profile=options.profile)
            # Here, in the main thread: this may ask for an MFA code on the terminal.
            credentials = session.get_credentials()
            if credentials is not None:
                credentials.get_frozen_credentials()
            # The API of ECR Public is in one region only.
            region = options.region or ("us-east-1" if options.public else None)
            client: BaseClient = session.create_client(
                "ecr-public" if options.public else "ecr",
                region_name=region,
                endpoint_url=options.endpoint_url,
                config=CLIENT_CONFIG,
            )
        except NoRegionError as error:
            raise ValueError(
                "there is no AWS region: set --region or AWS_DEFAULT_REGION"
            ) from error
        except Exception as error:  # of any type: botocore reads files and runs programs
            text = mask_passwords(to_printable(str(error))).rstrip(".")
            raise ValueError(
                f"cannot create a client: {type(error).__name__}: {text}. Check the AWS "
                "configuration, --profile, --region and --endpoint-url"
            ) from error
        if credentials is None:
            raise ValueError(
                "there are no AWS credentials: set --profile or AWS_PROFILE, or AWS_ACCESS_KEY_ID "
                "and AWS_SECRET_ACCESS_KEY"
            )
        return client

    def _create_uploader(self, client: BaseClient) -> LayerUploader:
        options = self._options
        retrying = default_retrying()
        if options.retry_for is not None:
            retrying = retrying.copy(stop=tenacity.stop_after_delay(options.retry_for))
        return LayerUploader(
            client,
            options.repository,
            registry_id=options.registry_id,
            part_size=options.part_size,
            retrying=retrying,
            max_bandwidth=options.limit_rate,
        )

    def _checkpoint_directory(self, client: BaseClient) -> Path | None:
        """The default directory for checkpoints of uploads to this repository."""
        options = self._options
        if options.no_checkpoint:
            return None
        destination = {
            "endpoint": client.meta.endpoint_url,  # also tells the region
            "profile": options.profile or os.environ.get("AWS_PROFILE"),
            "registry": options.registry_id,
            "repository": options.repository,
        }
        try:
            return checkpoint_directory(destination)
        except OSError as error:
            self._warn_of_checkpoint(error)
            return None

    def _warn_of_checkpoint(self, error: Exception) -> None:
        self._terminal.warn(f"progress is not saved, so the upload cannot be resumed: {error}")

    def _print(self, digest: str, details: dict[str, object]) -> None:
        line = json.dumps({"digest": digest, **details}) if self._options.json else digest
        os.write(sys.stdout.fileno(), f"{line}\n".encode())  # fails here, not at exit


class UploadCommand(Command):
    """``ecr-parts upload``."""

    def __init__(self, options: argparse.Namespace, terminal: Terminal) -> None:
        super().__init__(options, terminal)
        self._from_stdin = options.files == ["-"]
        self._layers: list[Layer] = []

    @override
    def run(self) -> None:
        options = self._options
        _check_standard_output()
        self._examine_files()
        client = self._create_client()
        uploader = self._create_uploader(client)
        self._layers = [
            Layer(
                sys.stdin.buffer if self._from_stdin else file,
                digest=options.digest,
                size=options.size,
                checkpoint=options.checkpoint,
            )
            for file in options.files
        ]
        if options.checkpoint is None and not self._from_stdin:
            directory = self._checkpoint_directory(client)
            if directory is not None:
                self._layers = self._with_checkpoints(directory)
        try:
            uploaded = self._upload(uploader)
        except CheckpointError as error:
            if options.checkpoint is not None:
                raise
            self._layers = [replace(layer, checkpoint=None) for layer in self._layers]
            self._warn_of_checkpoint(error)
            self._terminal.restart()
            uploaded = self._upload(uploader, error.session)
        self._report(uploaded)

    def _examine_files(self) -> None:
        """Find out the total size, and whether files are streams."""
        options, terminal = self._options, self._terminal
        if self._from_stdin:
            _check_standard_input()
        descriptors = [sys.stdin.fileno()] if self._from_stdin else options.files
        statuses = [os.stat(file) for file in descriptors]
        if all(stat.S_ISREG(status.st_mode) for status in statuses):
            offset = os.lseek(sys.stdin.fileno(), 0, os.SEEK_CUR) if self._from_stdin else 0
            terminal.upload.size = sum(status.st_size for status in statuses) - offset
            return
        if options.checkpoint is not None:
            raise ValueError(
                "--checkpoint requires a regular file: a pipe cannot be resumed. Save the layer to "
                "a file first"
            )
        terminal.upload.size = options.size
        if options.size is None and options.digest is None:
            terminal.warn(
                "a stream without --size or --digest: if its producer fails, a truncated layer is "
                "uploaded"
            )

    def _with_checkpoints(self, directory: Path) -> list[Layer]:
        """The layers, each with a checkpoint that is named by its digest."""
        terminal, digests = self._terminal, set[str]()
        layers: list[Layer] = []
        terminal.upload.activity = "hashing"
        for path, layer in zip(self._options.files, self._layers, strict=True):
            if not os.path.isfile(path):
                layers.append(layer)  # a stream, which cannot be resumed
                continue
            digest = layer.digest
            if digest is None:
                with open_source(path) as source:
                    digest, size = hash_source(source, lambda: terminal.progress(0))
                    error = source.error_at_end(size)
                if error is not None:
                    raise error
            checkpoint = directory / f"{digest.partition(':')[2]}.checkpoint"
            # Of equal layers, one is sent.
            unique = None if digest in digests else checkpoint
            layers.append(replace(layer, digest=digest, checkpoint=unique))
            digests.add(digest)
        terminal.upload.activity = ""
        return layers

    def _upload(
        self, uploader: LayerUploader, session: UploadSession | None = None
    ) -> list[UploadedLayer]:
        if len(self._layers) > 1:
            return uploader.upload_many(
                self._layers,
                max_workers=self._options.max_workers,
                progress=self._terminal.progress,
            )
        (layer,) = self._layers
        uploaded = uploader.upload(
            layer.source,
            digest=layer.digest,
            size=layer.size,
            checkpoint=layer.checkpoint,
            session=session,
            progress=self._terminal.progress,
        )
        return [uploaded]

    def _report(self, uploaded: list[UploadedLayer]) -> None:
        size = sum(layer.size for layer in uploaded)
        parts = sum(len(layer.parts) for layer in uploaded)
        repository = self._options.repository
        if len(uploaded) == 1:
            what = "already exists in" if uploaded[0].existed else "uploaded to"
            what = f"layer {what} {repository}"
        else:
            sent = sum(not layer.existed for layer in uploaded)
            what = f"{len(uploaded)} layers are in {repository}, {sent} of them uploaded now"
        self._terminal.succeed(
            f"{what}: {size:,} bytes, {parts:,} part{'' if parts == 1 else 's'} sent"
        )
        for layer in uploaded:
            self._print(layer.digest, _describe(layer))

    @override
    def how_to_resume(self, *, started: bool) -> str:
        sessions: list[UploadSession] = []
        for layer in self._layers:
            if layer.checkpoint is not None:
                with suppress(CheckpointError):  # another error is being reported
                    session = Checkpoint(layer.checkpoint).load()
                    if session is not None:
                        sessions.append(session)
        confirmed = self._terminal.upload.confirmed
        if len(self._layers) == 1 and sessions:
            condition = "" if started else " if the checkpoint belongs to this layer"
            byte = sessions[0].next_byte
            return f"Run the same command again to resume at byte {byte:,}{condition}"
        if sessions or (confirmed and any(layer.checkpoint for layer in self._layers)):
            return "Run the same command again to resume"
        if confirmed and self._from_stdin:
            return f"{_START_OVER}standard input cannot be resumed"
        return f"{_START_OVER}its progress was not saved" if confirmed else ""


class PushCommand(Command):
    """``ecr-parts push``."""

    def __init__(self, options: argparse.Namespace, terminal: Terminal) -> None:
        super().__init__(options, terminal)
        self._checkpoint_dir: str | Path | None = options.checkpoint_dir

    @override
    def run(self) -> None:
        _check_standard_output()
        with ExitStack() as temporary_files:
            self._push(temporary_files)

    def _push(self, temporary_files: ExitStack) -> None:
        options, terminal = self._options, self._terminal
        if options.image == "-":
            _check_standard_input()
        else:
            terminal.upload.size = self._size(options.image)
        client = self._create_client()
        uploader = self._create_uploader(client)
        if self._checkpoint_dir is None:
            self._checkpoint_dir = self._checkpoint_directory(client)
        image = options.image
        if image == "-":
            image = self._save_standard_input(temporary_files)
            terminal.upload.size = self._size(image)

        def push() -> PushedImage:
            return uploader.push_image(
                image,
                tags=options.tags,
                platforms=options.platforms,
                max_workers=options.max_workers,
                checkpoint_dir=self._checkpoint_dir,
                progress=terminal.progress,
            )

        try:
            pushed = push()
        except CheckpointError as error:
            if options.checkpoint_dir is not None:
                raise
            self._checkpoint_dir = None
            self._warn_of_checkpoint(error)
            terminal.restart()
            pushed = push()
        self._report(pushed)

    def _size(self, path: str) -> int | None:
        """The bytes of the image's blobs; ``None`` if some are yet to be compressed."""
        platforms = self._options.platforms
        image = read_image(path, None if platforms is None else tuple(platforms))
        if isinstance(image, DockerArchive):
            if not all(layer.is_compressed for layer in image.layers):
                return None
            layers = {layer.diff_id: layer.region.size for layer in image.layers}
            return sum(layers.values()) + (image.config.size or 0)
        return sum(blob.size or 0 for blob in image.blobs)

    def _save_standard_input(self, temporary_files: ExitStack) -> str:
        """The path of a temporary file with the image that standard input has."""
        terminal = self._terminal
        terminal.upload.activity = "reading standard input"
        terminal.progress(0)
        directory = temporary_files.enter_context(
            tempfile.TemporaryDirectory(prefix="ecr-parts-", ignore_cleanup_errors=True)
        )
        path = os.path.join(directory, "stdin")
        with open(path, "wb") as file:
            try:
                while block := os.read(sys.stdin.fileno(), 1024 * 1024):
                    file.write(block)
                    terminal.progress(0)
                file.flush()
            except OSError as error:
                raise OSError(
                    f"standard input cannot be saved in {tempfile.gettempdir()}: {error.strerror}. "
                    "Set TMPDIR to another directory"
                ) from error
        terminal.upload.activity = ""
        if not os.path.getsize(path):
            raise ValueError(
                "standard input is empty: check the program that should write the image to it"
            )
        return path

    def _report(self, image: PushedImage) -> None:
        repository = self._options.repository
        sent = [layer.size for layer in image.layers if not layer.existed]
        names = ", ".join(f"{repository}:{tag}" for tag in image.tags) or repository
        self._terminal.succeed(
            f"image pushed to {names}: {len(sent)} of {len(image.layers)} blobs sent, "
            f"{sum(sent):,} bytes"
        )
        layers = [_describe(layer) for layer in image.layers]
        self._print(image.digest, {"tags": image.tags, "layers": layers})

    @override
    def how_to_resume(self, *, started: bool) -> str:
        if not self._terminal.upload.confirmed:
            return ""
        if self._checkpoint_dir is None:
            return f"{_START_OVER}its progress was not saved"
        return "Run the same command again to resume"


def _check_standard_output() -> None:
    if sys.stdout is None:
        raise ValueError("standard output is closed: redirect it to a file or to /dev/null")


def _check_standard_input() -> None:
    if sys.stdin is None:
        raise ValueError("standard input is closed: pass a file, or pipe the data in")
    if sys.stdin.isatty():
        raise ValueError("standard input is a terminal: pass a file, or pipe the data in")


def _describe(layer: UploadedLayer) -> dict[str, object]:
    return {
        "digest": layer.digest,
        "size": layer.size,
        "existed": layer.existed,
        "parts": len(layer.parts),
        "seconds": round(sum(part.seconds for part in layer.parts), 3),
    }
