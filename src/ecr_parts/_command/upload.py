"""The command ``upload``."""

from __future__ import annotations

import argparse
import os
import stat
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import BinaryIO

from typing_extensions import override

from ecr_parts._command.common import START_OVER, Command, bytes_sent, layer_details
from ecr_parts._command.messages import count_layers, describe
from ecr_parts._command.options import service_limits
from ecr_parts._command.pipe import Pipe
from ecr_parts._command.progress import amount
from ecr_parts._command.terminal import Terminal
from ecr_parts._images.observer import Summary
from ecr_parts._model.layers import Layer, UploadedLayer
from ecr_parts._model.session import UploadSession
from ecr_parts._sources.digest import CHUNK_SIZE, hash_source
from ecr_parts._sources.kinds import open_source
from ecr_parts._upload.batch import BatchOptions, BatchUpload
from ecr_parts._upload.checkpoint import BestEffortPath, Checkpoint, checkpoint_name
from ecr_parts._upload.plan import Planner
from ecr_parts._uploader import LayerUploader, internals_of
from ecr_parts.errors import CheckpointError, EcrPartsError
from ecr_parts.testing.__main__ import check_standard_output


class UploadCommand(Command):
    """``ecr-parts upload``."""

    def __init__(self, options: argparse.Namespace, terminal: Terminal) -> None:
        super().__init__(options, terminal)
        self._from_stdin = options.files == ["-"]
        self._planner = Planner(service_limits(options), options.part_size)
        self._layers: list[Layer] = []
        self._start = 0
        """The byte of standard input at which the layer starts, if it is a regular file."""
        self._sizes: list[int | None] = []
        """Those of the layers, in bytes; ``None`` for a stream whose size was not passed."""

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
            if options.digest is None and not all(isinstance(one, Pipe) for one in sources):
                self._look_at_repository(uploader)
                self._terminal.begin("hashing", self._terminal.upload.size)
            self._layers = [self._with_digest(layer) for layer in self._layers]
            if options.checkpoint is None and not self._from_stdin:
                directory = self._checkpoint_directory(client)
                if directory is not None:
                    self._layers = self._with_checkpoints(directory)
            uploaded = self._upload(uploader)
            for source in sources:
                if isinstance(source, Pipe):
                    self._terminal.begin("reading the rest of the pipe")
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
            self._start = os.lseek(self._standard_input, 0, os.SEEK_CUR)
            size -= self._start
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
        if self._options.checkpoint is not None:
            checkpoint = Checkpoint(self._options.checkpoint)
            if not self._from_stdin and checkpoint.is_at(file):
                raise ValueError(f"the checkpoint must not be the layer's own file, {file!r}")
            checkpoint.load()  # raises if it cannot be read or written
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
        return Pipe(descriptor, self._options.size, self._terminal.refresh)

    def _with_digest(self, layer: Layer) -> Layer:
        """The layer with its digest, if it can be read again."""
        if isinstance(layer.source, Pipe):
            self._sizes.append(layer.size)
            return layer
        with open_source(layer.source) as source:
            digest, size, error = layer.digest, source.size, None
            if digest is None:
                digest, size = hash_source(source, self._count_hashed)
                error = source.error_at_end(size)
        if error is not None:
            raise error
        if self._from_stdin:
            os.lseek(self._standard_input, self._start, os.SEEK_SET)
        self._sizes.append(size)
        return replace(layer, digest=digest)

    def _count_hashed(self) -> None:
        self._terminal.upload.advance(CHUNK_SIZE)
        self._terminal.progress(0)

    def _with_checkpoints(self, directory: BestEffortPath) -> list[Layer]:
        """The layers, each with a checkpoint that is named by its digest."""
        digests = set[str]()
        layers: list[Layer] = []
        for layer in self._layers:
            # A pipe cannot be resumed, and of equal layers, one is sent.
            digest = None if isinstance(layer.source, Pipe) else layer.digest
            if digest is None or digest in digests:
                layers.append(layer)
                continue
            digests.add(digest)
            layers.append(replace(layer, checkpoint=directory / checkpoint_name(digest)))
        return layers

    def _upload(self, uploader: LayerUploader) -> list[UploadedLayer]:
        terminal, repository = self._terminal, self._options.repository
        wanted = {
            layer.digest: size
            for layer, size in zip(self._layers, self._sizes, strict=True)
            if layer.digest is not None
        }
        terminal.begin("asking ECR what it has")
        existing = self._find_existing(uploader, wanted)
        terminal.begin("")
        terminal.say(f"{repository}: {self._describe(wanted, existing)}")
        batch_options = BatchOptions(
            self._options.max_workers,
            progress=terminal.progress,
            sizes_at_ecr={digest: existing.get(digest) for digest in wanted},
        )
        return BatchUpload(*internals_of(uploader), batch_options).run(self._layers)

    def _describe(self, wanted: Mapping[str, int | None], existing: Mapping[str, int]) -> str:
        """What is about to be sent, in words."""
        if None in self._sizes or any(layer.digest is None for layer in self._layers):
            size = "" if None in self._sizes else f", {amount(sum(filter(None, self._sizes)))}"
            return f"{count_layers(len(self._layers))} from a pipe{size}"
        sizes = {digest: size or 0 for digest, size in wanted.items()}
        missing = sizes.keys() - existing.keys()
        summary = Summary(
            layers=len(sizes),
            size=sum(sizes.values()),
            missing=len(missing),
            missing_size=sum(sizes[digest] for digest in missing),
        )
        return describe(summary)

    def _report(self, uploaded: list[UploadedLayer]) -> None:
        repository, took = self._options.repository, self._terminal.took
        new = sum(not layer.existed for layer in uploaded)
        sent = bytes_sent(uploaded)
        if new:
            which = f"{new:,} of {len(uploaded):,} layers" if len(uploaded) > 1 else "the layer"
            line = f"uploaded {which} to {repository} in {took}: {sent:,} bytes sent"
        else:
            which = f"all {len(uploaded):,} layers" if len(uploaded) > 1 else "the layer"
            line = f"{repository} has {which} already: no layer was sent ({took})"
        self._terminal.succeed(line)
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
            where = f" to resume at byte {byte:,}{condition}" if byte else ""
            return f"Run the same command again{where}"
        if sessions or (confirmed and any(layer.checkpoint for layer in self._layers)):
            return "Run the same command again to resume"
        if confirmed and self._from_stdin:
            return f"{START_OVER}standard input cannot be resumed"
        return f"{START_OVER}its progress was not saved" if confirmed else ""
