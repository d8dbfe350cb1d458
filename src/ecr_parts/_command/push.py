"""The command ``push``."""

from __future__ import annotations

import argparse
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from typing_extensions import override

from ecr_parts._command.common import START_OVER, Command, layer_details
from ecr_parts._command.pipe import Pipe
from ecr_parts._command.terminal import Terminal
from ecr_parts._images.docker import DockerArchive
from ecr_parts._images.push import read_image
from ecr_parts._model.layers import PushedImage
from ecr_parts._upload.checkpoint import BestEffortPath
from ecr_parts._uploader import LayerUploader
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
        else:
            self._terminal.upload.size = self._size(options.image)
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
                self._terminal.upload.size = self._size(path)
                self._push(uploader, path)
            except InvalidImageError as error:
                raise InvalidImageError(str(error).replace(repr(path), "standard input")) from error

    def _push(self, uploader: LayerUploader, path: str) -> None:
        options = self._options
        image = uploader.push_image(
            path,
            tags=options.tags,
            platforms=options.platforms,
            max_workers=options.max_workers,
            checkpoint_dir=self._checkpoint_dir,
            progress=self._terminal.progress,
        )
        self._report(image)

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
        pipe = Pipe(self._standard_input, None)
        try:
            file, path = _create_temporary_file(temporary_files)
            terminal.upload.activity = "reading standard input"
            terminal.progress(0)
            while block := pipe.read(_BLOCK_SIZE):
                file.write(block)
                terminal.progress(0)
            file.flush()
        except OSError as error:
            raise OSError(
                f"copying standard input to {tempfile.gettempdir()} failed: {error.strerror}. Set "
                "TMPDIR to another directory if this one is full"
            ) from error
        terminal.upload.activity = ""
        return path

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


def _create_temporary_file(stack: ExitStack) -> tuple[IO[bytes], str]:
    """A file, and a path by which it can be opened again. ``stack`` removes it."""
    # On Linux, it needs no name, so nothing is left behind if the process is killed.
    file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (the stack closes it)
    stack.enter_context(file)
    path = f"/proc/self/fd/{file.fileno()}"
    if os.path.exists(path):
        return file, path
    directory = tempfile.TemporaryDirectory(prefix="ecr-parts-", ignore_cleanup_errors=True)
    path = os.path.join(stack.enter_context(directory), "stdin")
    return stack.enter_context(Path(path).open("wb")), path
