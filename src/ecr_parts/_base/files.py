"""Files that must be regular ones, opened without waiting for anybody."""

from __future__ import annotations

import errno
import io
import os
import stat


class NotRegularError(OSError):
    """The path is not, or not any more, that of a regular file."""


def open_regular(path: str | os.PathLike[str]) -> io.FileIO:
    """Open a regular file for reading. Raises ``NotRegularError``, and what ``open`` raises.

    Opening a FIFO would wait for its other end, and reading a device may never end.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegularError(errno.EINVAL, "not a regular file", os.fspath(path))
    return io.FileIO(descriptor, "rb")
