"""What the command prints to standard error: messages and progress."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from typing_extensions import override

from ecr_parts._command.debug import Redactor, debug_text, format_traceback
from ecr_parts._command.messages import message_of
from ecr_parts._command.progress import Progress
from ecr_parts.testing.__main__ import print_to_stderr

_REDRAW_INTERVAL = 0.1  # seconds
_LINE_INTERVAL = 10.0  # seconds
_BAR_WIDTH = range(10, 31)  # characters between the brackets
_DEFAULT_COLUMNS = 80  # for a terminal that does not report its width
_MAX_WAIT = 1.0  # seconds for another thread that prints
_CLEAR_LINE = "\r\x1b[K"


class Terminal(logging.Handler):
    """Standard error: messages line by line, and progress as a bar below them, or as lines.

    Everything that the command prints there goes through ``_print``. If standard error is closed or
    full, the upload continues without messages.
    """

    def __init__(self, progress: str = "auto", *, quiet: bool = False, debug: bool = False) -> None:
        super().__init__()
        if progress == "auto":
            is_terminal = sys.stderr is not None and sys.stderr.isatty()
            progress = "bar" if is_terminal and os.environ.get("TERM") != "dumb" else "plain"
        self._has_bar = progress == "bar" and not quiet
        self._has_lines = progress == "plain" and not quiet
        self._is_quiet = quiet
        self._is_debug = debug
        self.redactor = Redactor()
        """Knows the secrets that ``--debug`` must not show."""
        now = time.monotonic()
        self._drawn = now - _REDRAW_INTERVAL
        self._has_drawn = False
        self._next_line = now + _LINE_INTERVAL
        self.upload = Progress(now)
        self._printing = threading.Lock()
        self._last_message = ""
        self._interrupted = False
        self.exit_status = 128 + signal.SIGINT
        """What an interrupted command exits with."""

    def interrupt(self, number: int, _frame: object) -> None:
        """Handle a signal that ends the command: Ctrl-C (SIGINT), SIGTERM or SIGHUP."""
        self._interrupted = True
        self.exit_status = 128 + number
        raise KeyboardInterrupt

    # Progress

    def progress(self, newly_confirmed: int) -> None:
        """The ``progress`` callback of the upload."""
        self.upload.add(newly_confirmed)
        if self._interrupted:  # Python ignores a KeyboardInterrupt that is raised in ``__del__``
            raise KeyboardInterrupt
        self.refresh(at_once=newly_confirmed != 0)

    def begin(self, activity: str, size: int | None = None) -> None:
        """Show what is done while nothing is sent. The arguments are those of ``Progress.begin``.

        If it is empty, what is sent is shown again.
        """
        self.upload.begin(activity, size)
        self.refresh(at_once=True)

    def refresh(self, *, at_once: bool = False) -> None:
        """Show how far the upload is, unless that was just done. May be called in any thread."""
        now = time.monotonic()
        if at_once or now - self._drawn > _REDRAW_INTERVAL:
            with self.exclusively() as alone:
                if alone:
                    self._draw(now)

    def begin_part(self, request: object) -> None:
        """Called before a part is sent, in any thread."""
        self.upload.begin_part(request, time.monotonic())

    def send(self, request: object, size: int) -> None:
        """Called when bytes of a part have left, in any thread."""
        self.upload.send(request, size, time.monotonic())
        self.refresh()

    def end_part(self, request: object) -> None:
        """Called when the request is over, in any thread."""
        self.upload.end_part(request)

    # Lines

    @override
    def emit(self, record: logging.LogRecord) -> None:
        text = debug_text(record, self.redactor) if self._is_debug else message_of(record)
        if text is not None and (self._is_debug or text != self._last_message):
            self._last_message = text
            self.say(text)

    def say(self, line: str) -> None:
        """Print a line that is not an error, above the bar."""
        if not self._is_quiet:
            self._print_line(line)

    def warn(self, line: str) -> None:
        """Print a warning, also if the command is quiet."""
        self._print_line(f"warning: {line}")

    def trace(self, error: BaseException) -> None:
        """Print the traceback of an error, if that is asked for."""
        if self._is_debug:
            self._print_line(self.redactor.clean(format_traceback(error)))

    def end(self, line: str) -> None:
        """Print the last line, instead of the bar."""
        clear = _CLEAR_LINE if self._has_drawn else ""
        with self.exclusively():
            self._has_bar = self._has_lines = False
            print_to_stderr(f"{clear}{line}\n")

    def succeed(self, line: str) -> None:
        """Print the last line of a command that succeeded."""
        if not self._is_quiet:
            self.end(line)

    @property
    def took(self) -> str:
        """How long the command has taken until now."""
        return self.upload.took(time.monotonic())

    def _print_line(self, line: str) -> None:
        with self.exclusively():
            print_to_stderr(f"{_CLEAR_LINE if self._has_drawn else ''}{line}\n")
            if self._has_drawn:
                self._draw_bar(self.upload.texts(time.monotonic()))

    @contextmanager
    def exclusively(self) -> Iterator[bool]:
        """A block that no two threads run at a time, unless one was interrupted in it."""
        alone = self._printing.acquire(timeout=_MAX_WAIT)
        try:
            yield alone
        finally:
            if alone:
                self._printing.release()

    def _draw(self, now: float) -> None:
        self._drawn = now
        if self._has_lines and now >= self._next_line:
            self._next_line = now + _LINE_INTERVAL
            done = self.upload.done
            texts = [*([] if done is None else [f"{done:.0%}"]), *self.upload.texts(now)]
            print_to_stderr(f"{'  '.join(texts)}\n")
        if self._has_bar:
            self._draw_bar(self.upload.texts(now))

    def _draw_bar(self, texts: list[str]) -> None:
        self._has_drawn = True
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
