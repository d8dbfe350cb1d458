"""A session on disk, so that another process can resume its upload."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ecr_parts._base.files import NotRegularError, open_regular
from ecr_parts._base.threads import current_task
from ecr_parts._base.validation import check_path, short_repr
from ecr_parts._model.session import NotASessionError, UploadSession
from ecr_parts.errors import CheckpointError

_log = logging.getLogger("ecr_parts")
_MAX_FILE_SIZE = 64 * 1024  # bytes; a larger file cannot be a checkpoint
_MAX_PREFIX_LENGTH = 40  # characters of the file's name that its temporary files begin with
_MAX_SAVING_TIME = 60.0  # seconds; an older temporary file was left by a process that was killed


@dataclass(frozen=True)
class BestEffortPath(os.PathLike[str]):
    """The path of a checkpoint that the user did not ask for.

    If it cannot be read or written, ``report`` is called, in any thread, and the upload goes on. If
    it is damaged, it is ignored and then replaced. A directory of such files has one too.
    """

    path: str
    report: Callable[[CheckpointError], object]

    def __fspath__(self) -> str:
        return self.path

    def __truediv__(self, name: str) -> BestEffortPath:
        return replace(self, path=os.path.join(self.path, name))


def raise_or_report(
    path: str | os.PathLike[str], error: CheckpointError, cause: OSError | None
) -> None:
    """Raise ``error``, which is about the file at ``path``, or report it if that is optional."""
    if not isinstance(path, BestEffortPath):
        raise error from cause
    path.report(error)


def checkpoint_name(digest: str, destination: str = "") -> str:
    """The name of the checkpoint of a layer, in a directory for several.

    ``destination`` says where the layer is uploaded, if the directory is not for one repository.
    """
    prefix = hashlib.sha256(destination.encode()).hexdigest()[:16] + "-" if destination else ""
    return f"{prefix}{digest.partition(':')[2]}.checkpoint"


class Checkpoint:
    """The file that holds an upload's session. Creating this object does not access the file.

    Each ``save`` replaces the file atomically and flushes it to the disk, so that it survives a
    crash at any instant. Only its owner can read the file. If it cannot be read or written, a
    ``CheckpointError`` names it, and it is left unchanged. ``BestEffortPath`` is the exception.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"checkpoint must be a path, not {short_repr(path)}")
        self._given = path
        name = check_path("checkpoint", path)
        try:
            self.path = Path(os.path.abspath(name))  # the working directory may change
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint {short_repr(name)} is relative to a deleted working directory: "
                f"{error}. Pass an absolute path"
            ) from error

    @cached_property
    def _target(self) -> Path:
        """The file itself, if the path is that of a symbolic link when it is first used.

        A link that is put in its place later is replaced, not followed: it may lead to any file.
        """
        return Path(os.path.realpath(self.path))  # ``Path.resolve`` may raise RuntimeError

    @property
    def absolute(self) -> str | BestEffortPath:
        """The path that was given, made absolute."""
        if isinstance(self._given, BestEffortPath):
            return replace(self._given, path=str(self.path))
        return str(self.path)

    def load(self) -> UploadSession | None:
        """Return the session in the file, or ``None`` if the file does not exist yet.

        Raises ``CheckpointError`` if the file cannot be read or is not a checkpoint, and if
        ``save`` could not write it, so that this is known before anything is sent.
        """
        try:
            text = self._read(self._target)
        except OSError as error:
            raise_or_report(self._given, self._error("cannot be read", error), error)
            return None
        try:
            self._remove_left_over()
            descriptor, temporary = self._open_temporary()
            os.close(descriptor)
            os.unlink(temporary)
        except OSError as error:
            raise_or_report(self._given, self._error("cannot be written", error), error)
        if text is None:
            return None
        try:
            return UploadSession.from_json(text)
        except ValueError as error:
            if isinstance(self._given, BestEffortPath):
                _log.info("%s", self._error("is ignored", error))
                return None
            advice = "Pass the path of a file that does not exist yet"
            # Anything else may be the user's own file.
            if not isinstance(error, NotASessionError) and b'"uploadId"' in text:
                advice = "Pass another file, or delete this one to start over"
            raise self._error("cannot be used", f"{error}. {advice}") from error

    def _read(self, path: Path) -> bytes | None:
        try:
            with open_regular(path) as file:
                return file.read(_MAX_FILE_SIZE)
        except FileNotFoundError:
            return None
        except NotRegularError:
            error = self._error("is not a regular file", "pass the path of a file")
            raise_or_report(self._given, error, None)
            return None

    def _remove_left_over(self) -> None:
        """Delete temporary files of processes that were killed while they saved this checkpoint."""
        target = self._target
        name = re.compile(re.escape(_prefix(target)) + r"(\d{1,9})\.[^.]+\.tmp")
        with suppress(FileNotFoundError), os.scandir(target.parent) as entries:
            for entry in entries:
                found = name.fullmatch(entry.name)
                if found is None or not entry.is_file(follow_symlinks=False):
                    continue
                age = time.time() - entry.stat(follow_symlinks=False).st_mtime
                if age > _MAX_SAVING_TIME or not _is_running(int(found[1])):
                    os.unlink(entry.path)

    def delete_if_of(self, digest: str) -> None:
        """Delete the file if it has the session of the layer with ``digest``."""
        stored = self.load()
        if stored is not None and stored.layer_digest == digest:
            self.delete()

    def is_at(self, path: str | os.PathLike[str]) -> bool:
        """Whether ``path`` refers to the same file."""
        try:
            return os.path.samefile(self.path, path)
        except OSError:  # the checkpoint does not exist yet
            return False

    def save(self, session: UploadSession) -> None:
        """Write the session to the file, and flush it to the disk.

        If the process is killed meanwhile, a small ``.NAME.….tmp`` file is left beside it, which
        the next ``load`` removes.
        """
        try:
            try:
                self._replace(session)
            except FileNotFoundError:  # another host took the temporary file for one that was left
                self._replace(session)
        except OSError as error:
            raise_or_report(self._given, self._error("cannot be written", error), error)
            return
        _flush_directory(self._target.parent)

    def _replace(self, session: UploadSession) -> None:
        descriptor, temporary = self._open_temporary()
        try:
            with open(descriptor, "wb") as file:
                file.write(session.to_json().encode())
                file.flush()
                os.fsync(descriptor)
            task = current_task()
            if task is not None:
                task.check()  # nothing is replaced once the upload has ended
            os.replace(temporary, self._target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _open_temporary(self) -> tuple[int, str]:
        """Create a file beside the checkpoint that only its owner can read: descriptor and path."""
        target = self._target
        prefix = f"{_prefix(target)}{os.getpid()}."
        return tempfile.mkstemp(prefix=prefix, suffix=".tmp", dir=target.parent)

    def delete(self) -> None:
        """Delete the file, if it exists."""
        try:
            self._target.unlink(missing_ok=True)
        except OSError as error:
            raise_or_report(self._given, self._error("cannot be deleted", error), error)

    def _error(self, problem: str, detail: object) -> CheckpointError:
        if isinstance(detail, OSError):  # without the name of the temporary file
            detail = f"{detail.strerror}. Check the permissions and the free space of its directory"
        return CheckpointError(f"the checkpoint {short_repr(str(self.path))} {problem}: {detail}")


def _prefix(target: Path) -> str:
    return f".{target.name[:_MAX_PREFIX_LENGTH]}."  # cut, because names are limited


def _is_running(process: int) -> bool:
    if os.name != "posix":  # pragma: no cover  (elsewhere, ``os.kill`` ends the process)
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it belongs to someone else
    return True


def _flush_directory(directory: Path) -> None:
    """Make a rename in ``directory`` survive a power loss, if the system supports it.

    Failures are ignored: some file systems do not support it (``EINVAL``), a directory may be
    writable but not readable, and the checkpoint itself has been written.
    """
    if os.name == "posix":  # pragma: no branch  (Windows cannot, and is not tested)
        with suppress(OSError):
            descriptor = os.open(directory, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
