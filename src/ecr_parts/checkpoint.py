"""A session on disk, so that another process can go on with its upload."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from ecr_parts._session import UploadSession
from ecr_parts._validation import shown
from ecr_parts.errors import CheckpointError

_MOST_BYTES = 64 * 1024  # of a session: more is another file
_MOST_OF_NAME = 40  # characters of the checkpoint's name in a temporary file's


class Checkpoint:
    """The file that holds an upload's session. Nothing is read or written before it is asked for.

    It is replaced atomically and flushed to the disk each time, so that it is whole after a crash
    at any instant, and readable by its owner only. Every failure is a ``CheckpointError`` that
    names the file, and leaves it as it was.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"checkpoint must be a path, not {shown(path)}")
        name = os.fspath(path)
        if not isinstance(name, str):
            raise TypeError(f"checkpoint must be a path of type str, not {shown(name)}")
        try:
            self.path = Path(os.path.abspath(name))  # relative to where the caller is now
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint {shown(name)} is relative to a directory that is gone: {error}"
            ) from error

    def load(self) -> UploadSession | None:
        """The session it holds; ``None`` if the file does not exist yet.

        Raises ``CheckpointError`` where ``save`` could not write, too, so that this is known
        before anything is sent.
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
                f"{error}. Name another file; or, if it was one, delete it to start over",
            ) from error

    def _read(self) -> bytes | None:
        try:
            if not stat.S_ISREG(self.path.stat().st_mode):
                raise self._error("is not a regular file", "name another")
            with self.path.open("rb") as file:
                return file.read(_MOST_BYTES)
        except FileNotFoundError:
            return None

    def is_at(self, path: str | os.PathLike[str]) -> bool:
        """Whether that is its own file, by whatever name."""
        with suppress(OSError):  # there is none yet
            return os.path.samefile(self.path, path)
        return False

    def save(self, session: UploadSession) -> None:
        """Replace it, on the disk and not only in its cache.

        A process that is killed in the middle leaves a small ``.NAME.*.tmp`` beside it.
        """
        try:
            file, temporary = self._open_temporary()
            try:
                with open(file, "wb") as writing:
                    writing.write(session.to_json().encode())
                    writing.flush()
                    os.fsync(file)
                os.replace(temporary, self.path.resolve())
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise self._error("cannot be written", error) from error
        _flush_directory(self.path.resolve().parent)

    def _open_temporary(self) -> tuple[int, str]:
        """A new file, readable by its owner only, where it can be renamed to this one."""
        target = self.path.resolve()
        prefix = f".{target.name[:_MOST_OF_NAME]}."  # or a long name would be too long with it
        return tempfile.mkstemp(prefix=prefix, suffix=".tmp", dir=target.parent)

    def delete(self) -> None:
        """Remove it, if it is there."""
        try:
            self.path.resolve().unlink(missing_ok=True)
        except OSError as error:
            raise self._error("cannot be deleted", error) from error

    def _error(self, what: str, why: object) -> CheckpointError:
        return CheckpointError(f"the checkpoint {shown(str(self.path))} {what}: {why}")


def _flush_directory(directory: Path) -> None:
    """Make a rename in ``directory`` outlast a power loss, where the system has a way.

    Some file systems cannot (``EINVAL``), and a directory may be writable and not readable. The
    checkpoint is written all the same.
    """
    if os.name == "posix":  # pragma: no branch  (Windows has no way, and is not tested on)
        with suppress(OSError):
            descriptor = os.open(directory, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
