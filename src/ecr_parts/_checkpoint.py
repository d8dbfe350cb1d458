"""A session on disk, so that another process can resume its upload."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from ecr_parts._session import UploadSession
from ecr_parts._validation import short_repr
from ecr_parts.errors import CheckpointError

_MAX_SIZE = 64 * 1024  # bytes that are read: a larger file is not a checkpoint
_MAX_PREFIX_LENGTH = 40  # characters of the checkpoint's name in that of its temporary file


class Checkpoint:
    """The file that holds an upload's session. Creating this object does no I/O.

    Each ``save`` replaces the file atomically and flushes it to the disk, so that it is intact
    after a crash at any instant. Only its owner can read it. Every failure is a
    ``CheckpointError`` that names the file, and leaves it unchanged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"checkpoint must be a path, not {short_repr(path)}")
        name = os.fspath(path)
        if not isinstance(name, str):
            raise TypeError(f"checkpoint must be a path of type str, not {short_repr(name)}")
        try:
            self.path = Path(os.path.abspath(name))  # the caller may change the directory
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint {short_repr(name)} is relative to a deleted directory: {error}. "
                "Pass an absolute path"
            ) from error

    def load(self) -> UploadSession | None:
        """The session in the file; ``None`` if the file does not exist yet.

        Also raises ``CheckpointError`` if ``save`` could not write, so that this is known before
        anything is sent.
        """
        try:
            text = self._read()
        except OSError as error:
            raise self._error("cannot be read", error) from error
        try:
            file, temporary = self._open_temporary()
            os.close(file)
            os.unlink(temporary)
        except OSError as error:
            raise self._error("cannot be written", error) from error
        if text is None:
            return None
        try:
            return UploadSession.from_json(text)
        except ValueError as error:
            raise self._error(
                "is not a checkpoint",
                f"{error}. Use another file, or delete this one to start over",
            ) from error

    def _read(self) -> bytes | None:
        try:
            if not stat.S_ISREG(self.path.stat().st_mode):
                raise self._error("is not a regular file", "use another")
            with self.path.open("rb") as file:
                return file.read(_MAX_SIZE)
        except FileNotFoundError:
            return None

    def is_at(self, path: str | os.PathLike[str]) -> bool:
        """Whether ``path`` is the same file, also by another name."""
        with suppress(OSError):  # it does not exist yet
            return os.path.samefile(self.path, path)
        return False

    def save(self, session: UploadSession) -> None:
        """Write the session to the file, on the disk and not only in its cache.

        A process that is killed meanwhile leaves a small ``.NAME.*.tmp`` file beside it.
        """
        try:
            file, temporary = self._open_temporary()
            try:
                with open(file, "wb") as stream:
                    stream.write(session.to_json().encode())
                    stream.flush()
                    os.fsync(file)
                os.replace(temporary, self.path.resolve())
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise self._error("cannot be written", error) from error
        _flush_directory(self.path.resolve().parent)

    def _open_temporary(self) -> tuple[int, str]:
        """A new file in the checkpoint's directory, readable by its owner only."""
        target = self.path.resolve()
        prefix = f".{target.name[:_MAX_PREFIX_LENGTH]}."  # a longer name could be too long
        return tempfile.mkstemp(prefix=prefix, suffix=".tmp", dir=target.parent)

    def delete(self) -> None:
        """Delete the file, if it exists."""
        try:
            self.path.resolve().unlink(missing_ok=True)
        except OSError as error:
            raise self._error("cannot be deleted", error) from error

    def _error(self, what: str, why: object) -> CheckpointError:
        return CheckpointError(f"the checkpoint {short_repr(str(self.path))} {what}: {why}")


def _flush_directory(directory: Path) -> None:
    """Make a rename in ``directory`` survive a power loss, if the system supports it.

    Some file systems do not (``EINVAL``), and a directory may be writable but not readable. The
    checkpoint has been written in any case.
    """
    if os.name == "posix":  # pragma: no branch  (Windows cannot, and is not tested)
        with suppress(OSError):
            descriptor = os.open(directory, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
