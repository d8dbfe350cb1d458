"""Temporary files for content that does not fit into memory."""

from __future__ import annotations

import errno
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_CHECK_INTERVAL = 16 * 1024 * 1024  # bytes written between two looks at the free space
_RESERVE = 64 * 1024 * 1024  # bytes that are left to others, or 5 % of a small file system


class TemporaryFile:
    """A temporary file that is filled once, and then read by its path.

    On Linux it has no name, so that nothing is left behind if the process is killed. ``stack``
    removes it. ``purpose`` says in errors what it is for, as in "decompressing the image".
    """

    def __init__(self, stack: ExitStack, purpose: str) -> None:
        self._purpose = purpose
        self._unchecked = 0
        self.size = 0
        """Bytes."""
        unnamed: io.FileIO = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  (as below)
        self.file = stack.enter_context(unnamed)
        self.path = f"/proc/self/fd/{self.file.fileno()}"
        if not os.path.exists(self.path):
            directory = tempfile.TemporaryDirectory(prefix="ecr-parts-", ignore_cleanup_errors=True)
            self.path = os.path.join(stack.enter_context(directory), "file")
            opened = open(self.path, "w+b", buffering=0)  # noqa: SIM115  (the stack closes it)
            self.file = stack.enter_context(opened)

    def write(self, content: bytes) -> None:
        """Append ``content``. Raises ``OSError`` if the disk is full."""
        self._unchecked += len(content)
        if self._unchecked >= _CHECK_INTERVAL:
            self._unchecked = 0
            check_free_space(0, self._purpose)
        view = memoryview(content)
        with self._explained_errors():
            while view:
                view = view[self.file.write(view) :]
        self.size += len(content)

    def skip_to(self, size: int) -> None:
        """Make the file ``size`` bytes long, with a hole at its end."""
        with self._explained_errors():
            self.file.truncate(size)
            self.file.seek(size)
        self.size = size

    @contextmanager
    def _explained_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self._purpose} into a temporary file in {tempfile.gettempdir()} failed: "
                f"{error.strerror}. Set TMPDIR to a directory with more space",
            ) from error


def check_free_space(needed: int, purpose: str) -> None:
    """Raise ``OSError`` unless there is space for a temporary file of ``needed`` bytes."""
    directory = tempfile.gettempdir()
    total, _, free = shutil.disk_usage(directory)
    reserve = min(_RESERVE, total // 20)
    if free < needed + reserve:
        raise OSError(
            errno.ENOSPC,
            f"{purpose} may need {needed or _CHECK_INTERVAL:,} bytes more, and {directory} has "
            f"{free:,}: set TMPDIR to a directory with more space",
        )
