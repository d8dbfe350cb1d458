"""``python -m ecr_parts.testing``: a LocalECR for any SDK and for the AWS CLI."""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
import signal
import sys
import textwrap
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from typing_extensions import override

from ecr_parts._base.validation import short_repr, to_printable
from ecr_parts.testing._parameters import REPOSITORY_NAME

if TYPE_CHECKING:
    from ecr_parts.testing._local_ecr import LocalECR

DESCRIPTION = (
    "Serve a LocalECR, which keeps everything in memory, until Ctrl-C. Prints its URL, the "
    "environment variables that point the AWS SDKs, the AWS CLI and ecr-parts at it, and how to "
    "push to it and to pull from it."
)
EPILOG = """\
examples:
  {command}
  {command} --port 5000 --repository team/app --repository team/base
  {command} --slow 0.5"""
_MAX_MESSAGE_LENGTH = 4_000  # characters
_MAX_PORT = 65_535
_MAX_SECONDS = 86_400
_WAKE_INTERVAL = 1.0  # seconds; on Windows, no handler runs while a lock is waited for


def check_standard_output() -> None:
    """Raise ``OSError`` if standard output is closed."""
    if sys.stdout is None:
        raise OSError("standard output is closed: redirect it to a file or to /dev/null")


def print_whole(text: str) -> None:
    """Print ``text`` to standard output. Raises ``OSError`` unless all of it was written."""
    check_standard_output()
    try:
        write_whole(sys.stdout, text)
    except OSError as error:
        raise OSError(f"printing to standard output failed: {error.strerror}") from error


def write_whole(stream: TextIO, text: str) -> None:
    """Write ``text`` to standard output or standard error, without a buffer.

    A buffer that cannot be written makes Python exit with status 120.
    """
    rest = text.encode(stream.encoding, "backslashreplace")
    while rest:  # a disk or a pipe that becomes full takes only the first bytes
        rest = rest[os.write(stream.fileno(), rest) :]


def print_to_stderr(text: str) -> None:
    """Print ``text`` to standard error, if that is possible."""
    if sys.stderr is not None:
        with suppress(OSError):
            write_whole(sys.stderr, text)


class HelpFormatter(argparse.HelpFormatter):
    """Wraps each paragraph to the terminal, but not lines that are indented, such as examples."""

    @override
    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(
            paragraph
            if "\n  " in paragraph
            else textwrap.fill(" ".join(paragraph.split()), width, break_on_hyphens=False)
            for paragraph in text.split("\n\n")
        )


class Parser(argparse.ArgumentParser):
    """Exits with 2 if the command line is not valid, and with 1 if the help cannot be printed."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": HelpFormatter, **options})

    @override
    def print_help(self, file: object = None) -> None:
        print_or_exit(self.format_help())

    @override
    def error(self, message: str) -> NoReturn:
        text = to_printable(message, _MAX_MESSAGE_LENGTH)
        print_to_stderr(f"{self.format_usage()}{self.prog}: error: {text}\n")
        sys.exit(2)


def print_or_exit(text: str) -> None:
    """Print ``text`` to standard output, or exit with 1."""
    try:
        print_whole(text)
    except OSError as error:
        print_to_stderr(f"error: {error}\n")
        sys.exit(1)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--port", type=_port, default=0, metavar="N", help="the port (default: any free one)"
    )
    parser.add_argument(
        "--repository",
        type=_repository,
        action="append",
        metavar="NAME",
        help="a repository that exists from the start; may be repeated (default: demo)",
    )
    parser.add_argument(
        "--slow",
        type=_seconds,
        default=0,
        metavar="SECONDS",
        help="delay of the answer to each part",
    )


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > _MAX_PORT:
        raise argparse.ArgumentTypeError(f"must be from 0 to {_MAX_PORT}, not {short_repr(text)}")
    return int(text)


def _repository(text: str) -> str:
    if not REPOSITORY_NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(
            "must be 2 to 256 lower-case letters, digits and separators, not " + short_repr(text)
        )
    return text


def _seconds(text: str) -> float:
    seconds = math.nan
    with suppress(ValueError):
        seconds = float(text)
    if not 0 <= seconds <= _MAX_SECONDS:  # also if it is not a number
        raise argparse.ArgumentTypeError(
            f"must be a number of seconds from 0 to {_MAX_SECONDS}, not {short_repr(text)}"
        )
    return seconds


def serve(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM. Returns the exit status."""
    try:
        _serve(options)
    except OSError as error:
        print_to_stderr(f"error: {error}\n")
        return 1
    return 0


def _serve(options: argparse.Namespace) -> None:
    # Here, because the other commands need the options only.
    from ecr_parts.testing._local_ecr import LocalECR
    from ecr_parts.testing._registry import Registry

    # Not an Event: a handler that sets it while this thread holds its inner lock waits for ever.
    serving = threading.Lock()
    serving.acquire()

    def stop(*_signal: object) -> None:
        with suppress(RuntimeError):  # it was released by an earlier signal
            serving.release()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    ecr = LocalECR(port=options.port, slow=options.slow)
    # Otherwise, a checkpoint of an earlier server could continue another upload of this one.
    ecr.registry = Registry(options.repository or ["demo"], random_upload_ids=True)
    try:
        ecr.start()
    except OSError as error:
        raise OSError(
            f"cannot listen on port {options.port}: {error.strerror}. Pass another --port, or none"
        ) from error
    if options.slow:
        ecr.fail("UploadLayerPart", "slow", times=sys.maxsize)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in ecr.environ().items()]
    try:
        print_whole("\n".join([ecr.endpoint_url, *exports, *_usage(ecr), ""]))
        while not serving.acquire(timeout=_WAKE_INTERVAL):
            pass  # pragma: no cover  (only after that time)
    finally:
        ecr.stop()


def _usage(ecr: LocalECR) -> list[str]:
    """How to use it, as comments of the shell, so that all lines can be pasted."""
    image = f"{ecr.endpoint_url.partition('://')[2]}/{next(iter(ecr.registry.repositories))}:v1"
    name = image.partition("/")[2]
    return [
        "# In a shell with these variables, push an image:",
        f"#   ecr-parts push image.tar {name}",
        "# Then pull it, with or without them:",
        f"#   docker pull {image}",
        f"#   skopeo copy --src-tls-verify=false docker://{image} oci:image",
    ]


def main() -> None:
    """Run the command line."""
    command = "python -m ecr_parts.testing"
    parser = Parser(prog=command, description=DESCRIPTION, epilog=EPILOG.format(command=command))
    add_options(parser)
    sys.exit(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
