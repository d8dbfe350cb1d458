"""The command ``ecr-parts``: its signals, its errors and its exit status."""

from __future__ import annotations

import logging
import os
import signal

from ecr_parts._base.validation import to_printable
from ecr_parts._command.common import Command, describe_os_error
from ecr_parts._command.options import parse_options
from ecr_parts._command.push import PushCommand
from ecr_parts._command.terminal import Terminal
from ecr_parts._command.upload import UploadCommand
from ecr_parts._model.layers import is_path
from ecr_parts._wire.failures import ACCESS_DENIED, CREDENTIAL_ERRORS
from ecr_parts.errors import (
    EcrPartsError,
    InvalidImageError,
    LayerTooLargeError,
    ServiceError,
    UnexpectedResponseError,
    UploadLostError,
)
from ecr_parts.testing.__main__ import serve

_MAX_MESSAGE_LENGTH = 4_000  # characters
_ENDING_SIGNALS = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
_OPTIONS = {
    **dict.fromkeys(CREDENTIAL_ERRORS, "--profile, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    **dict.fromkeys(ACCESS_DENIED, "--profile"),
    "ImageTagAlreadyExistsException": "REPOSITORY:TAG, --tag",
    "RegistryNotFoundException": "--registry-id",
    "RepositoryNotFoundException": "--region, --registry-id, --public",
    "UnsupportedCommandException": "--registry-id, --endpoint-url",
}
"""By error code: the options that set what an error tells the user to check."""

_NO_OPTIONS = ("uplink is too slow", "clock is")
"""Parts of messages of errors that no option can avoid, whatever their code."""

_SELF_EXPLANATORY = {
    "ConnectTimeoutError",
    "EndpointConnectionError",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidClientTokenId",
    "RegistryNotFoundException",
    "RepositoryNotFoundException",
    "UnrecognizedClientException",
}
"""Codes of errors whose message says what is wrong, whichever call has failed."""

_ARGUMENTS = {
    "pass name ": "--image",
    "pass platforms": "--platform",
    "preserve_digests": "--preserve-digests",
}
"""By a part of an error's message about an argument of ``push_image``: the option for it."""

_PERMANENT = frozenset({"ImageTagAlreadyExistsException", "InvalidParameterException"})
"""Codes of errors after which the same command fails again."""


def main() -> int:
    """Run the command line. Returns the exit status."""
    options = parse_options()
    if options.command == "local":
        return serve(options)
    terminal = Terminal(options.progress, quiet=options.quiet, debug=options.debug)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # unless it is ignored
        signal.signal(signal.SIGINT, terminal.interrupt)
    for number in _ENDING_SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, terminal.interrupt)
    for name in ("ecr_parts", "botocore") if options.debug else ("ecr_parts",):
        log = logging.getLogger(name)
        log.addHandler(terminal)
        log.setLevel(logging.DEBUG if options.debug else logging.INFO)
    kind: type[Command] = PushCommand if options.command == "push" else UploadCommand
    command = kind(options, terminal)
    try:
        command.run()
    except KeyboardInterrupt:
        for number in (signal.SIGINT, *_ENDING_SIGNALS):
            signal.signal(number, signal.SIG_IGN)  # while the advice is printed
        advice = command.how_to_resume(started=terminal.upload.confirmed > 0)
        terminal.end(f"interrupted. {advice or 'ECR has confirmed nothing yet: run it again'}")
        return terminal.exit_status
    except (EcrPartsError, OSError, TypeError, ValueError) as error:
        advice = ""
        if isinstance(error, UploadLostError):
            advice = "Run the command again to start over"
        elif isinstance(error, UnexpectedResponseError) or (
            isinstance(error, ServiceError) and error.code not in _PERMANENT
        ):
            advice = command.how_to_resume(started=error.session is not None)
        terminal.trace(error)
        file = _file_of(error) if options.command == "upload" else ""
        text = _describe(error, creates=options.command == "push")
        terminal.end(f"error: {file}{text}. {advice}".rstrip(". "))
        return 1
    except MemoryError:
        advice = command.how_to_resume(started=True)
        terminal.end(
            "error: there is not enough memory: pass --part-size 5MiB, or a smaller --max-workers. "
            f"{advice}".rstrip(". ")
        )
        return 1
    return 0


def _file_of(error: Exception) -> str:
    """The file that an error is about, if it is known and the error does not start with it."""
    layer = error.layer if isinstance(error, EcrPartsError) else None
    if layer is None or not is_path(layer.source):
        return ""
    path = os.fspath(layer.source)
    return "" if str(error).startswith(repr(path)) else f"{to_printable(path)}: "


def _describe(error: Exception, *, creates: bool) -> str:
    """What an error says, and which options to check.

    ``creates``: whether the command can create the repository.
    """
    options = _options_to_check(error)
    text = to_printable(describe_os_error(error), _MAX_MESSAGE_LENGTH).rstrip(".")
    if isinstance(error, ServiceError) and error.code in _SELF_EXPLANATORY:
        text = text[max(0, text.find(error.code)) :]
    if creates and isinstance(error, ServiceError) and error.code == "RepositoryNotFoundException":
        options = f"--create-repository, {options}"
    return f"{text} ({options})" if options else text


def _options_to_check(error: Exception) -> str:
    if isinstance(error, ServiceError):
        if any(text in str(error) for text in _NO_OPTIONS):
            return ""
        not_answered = "" if error.request_id else "--region, --endpoint-url"
        return _OPTIONS.get(error.code, not_answered)
    if isinstance(error, UnexpectedResponseError):
        return "--endpoint-url"
    if isinstance(error, InvalidImageError):
        return ", ".join(option for text, option in _ARGUMENTS.items() if text in str(error))
    needs_larger_parts = isinstance(error, LayerTooLargeError) and "use parts of" in str(error)
    return "--part-size" if needs_larger_parts else ""
