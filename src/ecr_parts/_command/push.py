"""The command ``push``."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from contextlib import ExitStack

from typing_extensions import override

from ecr_parts._base.temporary import TemporaryFile
from ecr_parts._base.validation import is_name, short_repr
from ecr_parts._command.common import START_OVER, Command, bytes_sent, layer_details
from ecr_parts._command.image_argument import parse_image
from ecr_parts._command.messages import describe
from ecr_parts._command.pipe import Pipe
from ecr_parts._command.terminal import Terminal
from ecr_parts._images.files import is_compressed_archive
from ecr_parts._images.observer import PushObserver, Summary
from ecr_parts._images.push import PushOptions
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
        self._parse_image()
        if options.image == "-":
            self._take_standard_input()
        client = self._create_client()
        if self._checkpoint_dir is None:
            self._checkpoint_dir = self._checkpoint_directory(client)
        uploader = self._create_uploader(client)
        takes_long = options.image == "-" or is_compressed_archive(options.image)
        if takes_long and not options.create_repository:
            self._look_at_repository(uploader)
        if options.image != "-":
            self._push(uploader, options.image)
            return
        with ExitStack() as temporary_files:
            path = self._save_standard_input(temporary_files)
            try:
                self._push(uploader, path)
            except InvalidImageError as error:
                raise InvalidImageError(str(error).replace(repr(path), "standard input")) from error

    def _parse_image(self) -> None:
        """Take the kind of the file and the image's name out of ``IMAGE``."""
        options = self._options
        options.image, name = parse_image(options.image, _names(options.repository, options.tags))
        if name is None:
            return
        if options.image_name not in (None, name):
            raise ValueError(
                f"IMAGE names the image {short_repr(name)}, and --image names "
                f"{short_repr(options.image_name)}: pass one name"
            )
        if not is_name(name):
            raise ValueError(f"an image's name has printable characters, unlike {short_repr(name)}")
        options.image_name = name

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
            observer=_Observer(self._terminal, options.repository),
        )
        self._report(push_observed(uploader, path, push))

    def _save_standard_input(self, temporary_files: ExitStack) -> str:
        """The path of a temporary file with the image that standard input has."""
        terminal = self._terminal
        pipe = Pipe(self._standard_input, None, terminal.refresh)
        copy = TemporaryFile(temporary_files, "copying standard input")
        terminal.begin("reading standard input", 0)
        while block := pipe.read(_BLOCK_SIZE):
            copy.write(block)
            terminal.upload.advance(len(block))
            terminal.progress(0)
        return copy.path

    def _report(self, image: PushedImage) -> None:
        names = _names(self._options.repository, image.tags)
        sent = bytes_sent(image.layers)
        what = f"{sent:,} bytes sent" if sent else "no layer was sent, because ECR had all of them"
        self._terminal.succeed(f"pushed {names} in {self._terminal.took}: {what}")
        layers = [layer_details(layer) for layer in image.layers]
        self._print(image.digest, {"tags": image.tags, "layers": layers})

    @override
    def how_to_resume(self, *, started: bool) -> str:
        if not self._terminal.upload.confirmed:
            return ""
        if self._checkpoint_dir is None:
            return f"{START_OVER}its progress was not saved"
        return "Run the same command again to resume"


def _names(repository: str, tags: Iterable[str] | None) -> str:
    return ", ".join(f"{repository}:{tag}" for tag in tags or ()) or repository


class _Observer(PushObserver):
    """Shows on the terminal how a push goes on."""

    def __init__(self, terminal: Terminal, repository: str) -> None:
        self._terminal = terminal
        self._repository = repository

    @override
    def begin(self, activity: str) -> None:
        self._terminal.begin(activity)

    @override
    def decompressed(self, position: int, size: int) -> None:
        if not position:
            self._terminal.begin("decompressing the image", size)
        self._terminal.upload.reach(position)
        self._terminal.refresh()

    @override
    def start(self, tags: tuple[str, ...], summary: Summary) -> None:
        self._terminal.say(f"{_names(self._repository, tags)}: {describe(summary)}")

    @override
    def plan(self, to_send: int, to_read: int) -> None:
        self._terminal.upload.plan(to_send, to_read)

    @override
    def read(self, size: int) -> None:
        self._terminal.upload.read(size)
        self._terminal.refresh()

    @override
    def notice(self, text: str) -> None:
        self._terminal.say(f"note: {text}")
