"""A session on disk, so that another process can go on with its upload."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from ecr_parts._session import UploadSession
from ecr_parts.errors import CheckpointError

_MOST_BYTES = 64 * 1024  # of a session: more is another file


class Checkpoint:
    """The file that holds an upload's session. Nothing is read or written before it is asked for.

    It is replaced atomically and flushed to the disk each time, so that it is whole after a crash
    at any instant, and readable by its owner only. Every failure is a ``CheckpointError`` that
    names the file, and leaves it as it was.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"checkpoint is {path!r}, and must be a path")
        self._path = Path(os.path.abspath(path))  # where the caller is now

    def load(self) -> UploadSession | None:
        """The session it holds; ``None`` where there is no file, but could be."""
        try:
            if not stat.S_ISREG(self._path.stat().st_mode):
                raise self._error("is no file", "name another")
            with self._path.open("rb") as file:
                text = file.read(_MOST_BYTES)
        except FileNotFoundError:
            if not os.access(self._path.parent, os.W_OK):
                raise self._error(
                    "cannot be written", "its directory is missing or not writable"
                ) from None
            return None
        except OSError as error:
            raise self._error("cannot be read", error) from error
        try:
            return UploadSession.from_json(text)
        except ValueError as error:
            raise self._error(
                "is no checkpoint",
                f"{error}. Name another file; or, if it was one, delete it to begin anew",
            ) from error

    def is_at(self, path: str | os.PathLike[str]) -> bool:
        """Whether that is its own file, by whatever name."""
        with suppress(OSError):  # there is none yet
            return os.path.samefile(self._path, path)
        return False

    def save(self, session: UploadSession) -> None:
        """Replace it, on the disk and not only in its cache.

        A process that is killed in the middle leaves a small ``.NAME.*.tmp`` beside it.
        """
        try:
            target = self._path.resolve()
            file, temporary = tempfile.mkstemp(  # mode 0600
                prefix=f".{target.name}.", suffix=".tmp", dir=target.parent
            )
            try:
                with open(file, "wb") as writing:
                    writing.write(session.to_json().encode())
                    writing.flush()
                    os.fsync(file)
                os.replace(temporary, target)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            _flush_directory(target.parent)
        except OSError as error:
            raise self._error("cannot be written", error) from error

    def delete(self) -> None:
        """Remove it, if it is there."""
        try:
            self._path.resolve().unlink(missing_ok=True)
        except OSError as error:
            raise self._error("cannot be deleted", error) from error

    def _error(self, what: str, why: object) -> CheckpointError:
        return CheckpointError(f"the checkpoint {str(self._path)!r} {what}: {why}")


def _flush_directory(directory: Path) -> None:
    """Make a rename in ``directory`` outlast a power loss, where the system has a way."""
    if os.name == "posix":  # pragma: no branch  (Windows has no way, and is not tested on)
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
