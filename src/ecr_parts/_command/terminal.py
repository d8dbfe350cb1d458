"""What the command prints to standard error: messages and progress."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from botocore.awsrequest import AWSResponse
from typing_extensions import override

from ecr_parts._command.progress import Progress
from ecr_parts.testing.__main__ import print_to_stderr

_REDRAW_INTERVAL = 0.1  # seconds
_LINE_INTERVAL = 10.0  # seconds
_BAR_WIDTH = range(10, 31)  # characters between the brackets
_DEFAULT_COLUMNS = 80  # for a terminal that does not report its width
_PART_SIZE = "ecr_parts.part_size"  # in the context of a call
_CLEAR_LINE = "\r\x1b[K"


class Terminal(logging.Handler):
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
        self._drawn = 0.0
        now = time.monotonic()
        self._next_line = now + _LINE_INTERVAL
        self.upload = Progress(now)
        self._interrupted = False
        self.exit_status = 128 + signal.SIGINT
        """What an interrupted command exits with."""

    def interrupt(self, number: int, _frame: object) -> None:
        """Handle a signal that ends the command: Ctrl-C (SIGINT), SIGTERM or SIGHUP."""
        self._interrupted = True
        self.exit_status = 128 + number
        raise KeyboardInterrupt

    def progress(self, newly_confirmed: int) -> None:
        """The ``progress`` callback of the upload."""
        now = time.monotonic()
        self.upload.add(newly_confirmed)
        if self._interrupted:  # Python ignores a KeyboardInterrupt that is raised in ``__del__``
            raise KeyboardInterrupt
        if newly_confirmed or now - self._drawn > _REDRAW_INTERVAL:
            self._draw()

    @override
    def emit(self, record: logging.LogRecord) -> None:
        if not self._is_quiet:
            print_to_stderr(f"{_CLEAR_LINE if self._has_bar else ''}{record.getMessage()}\n")
            self._draw()

    def warn(self, line: str) -> None:
        """Print a warning."""
        print_to_stderr(f"{_CLEAR_LINE if self._has_bar else ''}warning: {line}\n")

    def part_begins(self, params: Mapping[str, Any], context: dict[str, Any], **_: object) -> None:
        """Handle botocore's event before a part is sent, in any thread."""
        context[_PART_SIZE] = params["partLastByte"] - params["partFirstByte"] + 1
        self.upload.begin_part(time.monotonic())

    def part_ends(self, http_response: AWSResponse, context: dict[str, Any], **_: object) -> None:
        """Handle botocore's event after an answer to a part."""
        if http_response.status_code == HTTPStatus.OK:
            self.upload.end_part(context[_PART_SIZE], time.monotonic())

    def end(self, line: str) -> None:
        """Print the last line, below the bar."""
        if self._has_bar and self._drawn:
            print_to_stderr("\n")
        self._has_bar = self._has_lines = False
        print_to_stderr(f"{line}\n")

    def succeed(self, line: str) -> None:
        """Print the last line of a command that succeeded."""
        if not self._is_quiet:
            self.end(line)

    def _draw(self) -> None:
        now = time.monotonic()
        if self._has_lines and now >= self._next_line:
            self._next_line = now + _LINE_INTERVAL
            done = self.upload.done
            texts = [*([] if done is None else [f"{done:.0%}"]), *self.upload.texts(now)]
            print_to_stderr(f"{'  '.join(texts)}\n")
        if self._has_bar:
            self._drawn = now
            self._draw_bar(self.upload.texts(now))

    def _draw_bar(self, texts: list[str]) -> None:
        columns = _DEFAULT_COLUMNS
        with suppress(OSError):
            columns = os.get_terminal_size(sys.stderr.fileno()).columns or _DEFAULT_COLUMNS
        line = "  ".join(texts)
        while len(line) >= columns and len(texts) > 1:
            texts = texts[:-1]
            line = "  ".join(texts)
        done = self.upload.done
        width = min(columns - len(line) - len("[]  50%   "), _BAR_WIDTH[-1])
        if done is not None and width in _BAR_WIDTH:
            line = f"[{'#' * int(width * done):-<{width}}] {done:4.0%}  {line}"
        print_to_stderr(f"{_CLEAR_LINE}{line[: columns - 1]}")  # a wrapped line cannot be cleared
