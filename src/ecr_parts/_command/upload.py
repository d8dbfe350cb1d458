"""The command ``upload``."""

from __future__ import annotations

import argparse
import os
import stat
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import BinaryIO

from typing_extensions import override

from ecr_parts._command.common import START_OVER, Command, layer_details
from ecr_parts._command.options import service_limits
from ecr_parts._command.pipe import Pipe
from ecr_parts._command.terminal import Terminal
from ecr_parts._model.layers import Layer, UploadedLayer
from ecr_parts._model.session import UploadSession
from ecr_parts._sources.digest import hash_source
from ecr_parts._sources.kinds import open_source
from ecr_parts._upload.checkpoint import BestEffortPath, Checkpoint, checkpoint_name
from ecr_parts._upload.plan import Planner
from ecr_parts._uploader import LayerUploader
from ecr_parts.errors import CheckpointError, EcrPartsError
from ecr_parts.testing.__main__ import check_standard_output


class UploadCommand(Command):
    """``ecr-parts upload``."""

    def __init__(self, options: argparse.Namespace, terminal: Terminal) -> None:
        super().__init__(options, terminal)
        self._from_stdin = options.files == ["-"]
        self._planner = Planner(service_limits(options), options.part_size)
        self._layers: list[Layer] = []

    @override
    def run(self) -> None:
        options = self._options
        check_standard_output()
        self._check_files()
        client = self._create_client()
        uploader = self._create_uploader(client)
        with ExitStack() as files:
            sources = [self._open(file, files) for file in options.files]
            self._layers = [
                Layer(
                    source, digest=options.digest, size=options.size, checkpoint=options.checkpoint
                )
                for source in sources
            ]
            if options.checkpoint is None and not self._from_stdin:
                directory = self._checkpoint_directory(client)
                if directory is not None:
                    self._layers = self._with_checkpoints(directory)
            uploaded = self._upload(uploader)
            for source in sources:
                if isinstance(source, Pipe):
                    self._terminal.upload.activity = "reading the rest of the pipe"
                    source.drain(lambda: self._terminal.progress(0))
        self._report(uploaded)

    def _check_files(self) -> None:
        """Check what can be known without reading the files, and find out their total size."""
        options, terminal = self._options, self._terminal
        if self._from_stdin:
            self._take_standard_input()
        total = 0
        has_pipe = False
        for file in options.files:
            size = self._check_file(file)
            total += size or 0
            has_pipe = has_pipe or size is None
        if not has_pipe:
            terminal.upload.size = total
            return
        if options.checkpoint is not None:
            raise ValueError(
                "--checkpoint requires a regular file: a pipe cannot be resumed. Save the layer to "
                "a file first"
            )
        terminal.upload.size = options.size
        if options.size is None and options.digest is None:
            what = "a stream without --size or --digest" if len(options.files) == 1 else "a stream"
            terminal.warn(f"{what}: if its producer fails, a truncated layer is uploaded")

    def _check_file(self, file: str) -> int | None:
        """The size of a layer that can be uploaded; ``None`` if it is a pipe."""
        status = os.stat(self._standard_input if self._from_stdin else file)
        if stat.S_ISDIR(status.st_mode):
            raise ValueError(
                f"{file} is a directory, and a layer is a file: an image's directory is pushed "
                "by ecr-parts push"
            )
        if not stat.S_ISREG(status.st_mode):
            return None
        size = status.st_size
        if self._from_stdin:
            size -= os.lseek(self._standard_input, 0, os.SEEK_CUR)
        expected = self._options.size
        if expected not in (None, size):
            raise ValueError(
                f"{'standard input' if self._from_stdin else file} has {size:,} bytes, but --size "
                f"is {expected:,}: omit --size, or wait until the file is complete"
            )
        try:
            self._planner.check_layer(size)
        except EcrPartsError as error:
            if not self._from_stdin:
                error.layer = Layer(file)
            raise
        return size

    def _open(self, file: str, files: ExitStack) -> str | BinaryIO | Pipe:
        """The source of a layer."""
        if self._from_stdin:
            descriptor = self._standard_input
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return files.enter_context(open(descriptor, "rb", closefd=False))
        elif os.path.isfile(file):
            return file
        else:
            descriptor = os.open(file, os.O_RDONLY)
            files.callback(os.close, descriptor)
        return Pipe(descriptor, self._options.size)

    def _with_checkpoints(self, directory: BestEffortPath) -> list[Layer]:
        """The layers, each with a checkpoint that is named by its digest."""
        terminal, digests = self._terminal, set[str]()
        layers: list[Layer] = []
        terminal.upload.activity = "hashing"
        for layer in self._layers:
            if isinstance(layer.source, Pipe):
                layers.append(layer)  # cannot be resumed
                continue
            digest = layer.digest
            if digest is None:
                with open_source(layer.source) as source:
                    digest, size = hash_source(source, lambda: terminal.progress(0))
                    error = source.error_at_end(size)
                if error is not None:
                    raise error
            # Of equal layers, one is sent.
            checkpoint = None if digest in digests else directory / checkpoint_name(digest)
            layers.append(replace(layer, digest=digest, checkpoint=checkpoint))
            digests.add(digest)
        terminal.upload.activity = ""
        return layers

    def _upload(self, uploader: LayerUploader) -> list[UploadedLayer]:
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
            progress=self._terminal.progress,
        )
        return [uploaded]

    def _report(self, uploaded: list[UploadedLayer]) -> None:
        repository = self._options.repository
        new = sum(not layer.existed for layer in uploaded)
        parts = sum(len(layer.parts) for layer in uploaded)
        if len(uploaded) > 1:
            line = f"{len(uploaded)} layers are in {repository}, {new} of them uploaded now"
        else:
            what = "uploaded to" if new else "already exists in"
            line = f"layer {what} {repository}: {uploaded[0].size:,} bytes"
        self._terminal.succeed(f"{line}, {parts:,} part{'' if parts == 1 else 's'} sent")
        for layer in uploaded:
            self._print(layer.digest, layer_details(layer))

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
            unsure = self._options.checkpoint is not None and not started
            condition = " if the checkpoint belongs to this layer" if unsure else ""
            byte = sessions[0].next_byte
            return f"Run the same command again to resume at byte {byte:,}{condition}"
        if sessions or (confirmed and any(layer.checkpoint for layer in self._layers)):
            return "Run the same command again to resume"
        if confirmed and self._from_stdin:
            return f"{START_OVER}standard input cannot be resumed"
        return f"{START_OVER}its progress was not saved" if confirmed else ""
