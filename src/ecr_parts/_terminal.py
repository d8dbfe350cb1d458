"""What the command prints to standard error: messages and progress."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from contextlib import suppress

from typing_extensions import override

_MIB = 1024 * 1024
_REDRAW_INTERVAL = 0.1  # seconds
_LINE_INTERVAL = 10.0  # seconds
_BAR_WIDTH = 30  # characters
_DEFAULT_COLUMNS = 80  # for a terminal that does not report its width
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
        self._started = time.monotonic()
        self._drawn = 0.0
        self._next_line = self._started + _LINE_INTERVAL
        self.size: int | None = None
        """The layer's size in bytes, if known."""
        self.confirmed = 0
        """The number of bytes that ECR has."""
        self._interrupted = False
        self.exit_status = 128 + signal.SIGINT
        """What an interrupted command exits with."""

    def interrupt(self, number: int, _frame: object) -> None:
        """Handle Ctrl-C (SIGINT) and SIGTERM."""
        self._interrupted = True
        self.exit_status = 128 + number
        raise KeyboardInterrupt

    def progress(self, newly_confirmed: int) -> None:
        """The ``progress`` callback of the upload."""
        self.confirmed += newly_confirmed
        if self._interrupted:  # Python ignores a KeyboardInterrupt that is raised in ``__del__``
            raise KeyboardInterrupt
        if newly_confirmed or time.monotonic() - self._drawn > _REDRAW_INTERVAL:
            self._draw()

    @override
    def emit(self, record: logging.LogRecord) -> None:
        if not self._is_quiet:
            self._write(f"{_CLEAR_LINE if self._has_bar else ''}{record.getMessage()}\n")
            self._draw()

    def warn(self, line: str) -> None:
        """Print a warning."""
        self._write(f"{_CLEAR_LINE if self._has_bar else ''}warning: {line}\n")

    def warn_of_checkpoint(self, error: Exception) -> None:
        """Print that progress is not saved, and start to count progress anew."""
        self.warn(f"progress is not saved, so the upload cannot be resumed: {error}")
        self.confirmed = 0

    def end(self, line: str) -> None:
        """Print the last line, below the bar."""
        if self._has_bar and self._drawn:
            self._write("\n")
        self._has_bar = self._has_lines = False
        self._write(f"{line}\n")

    def succeed(self, line: str) -> None:
        """Print the last line of a command that succeeded."""
        if not self._is_quiet:
            self.end(line)

    def _draw(self) -> None:
        now = time.monotonic()
        of = f" of {self.size / _MIB:,.1f}" if self.size else ""
        text = f"{self.confirmed / _MIB:,.1f}{of} MiB  {now - self._started:.0f} s"
        if self._has_lines and now >= self._next_line:
            self._next_line = now + _LINE_INTERVAL
            self._write(f"{text}\n")
        if self._has_bar:
            self._drawn = now
            self._draw_bar(text)

    def _draw_bar(self, text: str) -> None:
        columns = _DEFAULT_COLUMNS
        with suppress(OSError):
            columns = os.get_terminal_size(sys.stderr.fileno()).columns or _DEFAULT_COLUMNS
        if self.size:
            done = min(1, self.confirmed / self.size)
            bar = f"[{'#' * int(_BAR_WIDTH * done):-<{_BAR_WIDTH}}] {done:4.0%}  "
            if len(bar + text) < columns:
                text = bar + text
        self._write(f"{_CLEAR_LINE}{text[: columns - 1]}")  # a wrapped line cannot be cleared

    def _write(self, text: str) -> None:
        if sys.stderr is not None:
            # Unbuffered: flushing a buffer to a closed stderr would fail when Python exits.
            with suppress(OSError):
                encoding = sys.stderr.encoding
                os.write(sys.stderr.fileno(), text.encode(encoding, "backslashreplace"))
