"""The command ``push``."""

from __future__ import annotations

import argparse
from contextlib import ExitStack

from typing_extensions import override

from ecr_parts._base.temporary import TemporaryFile
from ecr_parts._command.common import START_OVER, Command, layer_details
from ecr_parts._command.pipe import Pipe
from ecr_parts._command.terminal import Terminal
from ecr_parts._images.push import PushObserver, PushOptions
from ecr_parts._model.layers import PushedImage
from ecr_parts._upload.checkpoint import BestEffortPath
from ecr_parts._uploader import LayerUploader, push_observed
from ecr_parts.errors import InvalidImageError
from ecr_parts.testing.__main__ import check_standard_output

_BLOCK_SIZE = 1024 * 1024  # bytes


class PushCommand(Command):
    """``ecr-parts push``."""

    def __init__(self, options: argparse.Namespace, terminal: Terminal) -> None:
        super().__init__(options, terminal)
        self._checkpoint_dir: str | BestEffortPath | None = options.checkpoint_dir

    @override
    def run(self) -> None:
        options = self._options
        check_standard_output()
        if options.image == "-":
            self._take_standard_input()
        client = self._create_client()
        if self._checkpoint_dir is None:
            self._checkpoint_dir = self._checkpoint_directory(client)
        uploader = self._create_uploader(client)
        if options.image != "-":
            self._push(uploader, options.image)
            return
        with ExitStack() as temporary_files:
            path = self._save_standard_input(temporary_files)
            try:
                self._push(uploader, path)
            except InvalidImageError as error:
                raise InvalidImageError(str(error).replace(repr(path), "standard input")) from error

    def _push(self, uploader: LayerUploader, path: str) -> None:
        options = self._options
        push = PushOptions(
            name=options.image_name,
            tags=options.tags,
            platforms=options.platforms,
            preserve_digests=options.preserve_digests,
            create_repository=options.create_repository,
            max_workers=options.max_workers,
            checkpoint_dir=self._checkpoint_dir,
            progress=self._terminal.progress,
            observer=_Observer(self._terminal),
        )
        self._report(push_observed(uploader, path, push))

    def _save_standard_input(self, temporary_files: ExitStack) -> str:
        """The path of a temporary file with the image that standard input has."""
        terminal = self._terminal
        pipe = Pipe(self._standard_input, None)
        copy = TemporaryFile(temporary_files, "copying standard input")
        terminal.upload.activity = "reading standard input"
        terminal.progress(0)
        while block := pipe.read(_BLOCK_SIZE):
            copy.write(block)
            terminal.progress(0)
        return copy.path

    def _report(self, image: PushedImage) -> None:
        repository = self._options.repository
        sent = [layer.size for layer in image.layers if not layer.existed]
        names = ", ".join(f"{repository}:{tag}" for tag in image.tags) or repository
        self._terminal.succeed(
            f"image pushed to {names}: {len(sent)} of {len(image.layers)} blobs sent, "
            f"{sum(sent):,} bytes"
        )
        layers = [layer_details(layer) for layer in image.layers]
        self._print(image.digest, {"tags": image.tags, "layers": layers})

    @override
    def how_to_resume(self, *, started: bool) -> str:
        if not self._terminal.upload.confirmed:
            return ""
        if self._checkpoint_dir is None:
            return f"{START_OVER}its progress was not saved"
        return "Run the same command again to resume"


class _Observer(PushObserver):
    """Shows on the terminal how a push goes on."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    @override
    def begin(self, activity: str) -> None:
        self._terminal.upload.activity = activity

    @override
    def plan(self, to_send: int, to_read: int) -> None:
        self._terminal.upload.plan(to_send, to_read)

    @override
    def read(self, size: int) -> None:
        self._terminal.upload.read(size)
