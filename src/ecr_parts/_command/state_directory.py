"""Where the command saves checkpoints by default: a directory that only its user can read."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_MAX_AGE = 7 * 24 * 3600  # seconds


def checkpoint_directory(destination: Mapping[str, object]) -> Path:
    """The directory for uploads to ``destination``, created if necessary.

    Removes what was not written to for a week. Raises ``OSError``, also if the directory is not the
    user's own: someone else could read session data there, or replace it.
    """
    base = _state_home() / "ecr-parts"
    _make_private(base)
    _remove_stale_files(base)
    text = json.dumps(destination, sort_keys=True)
    directory = base / hashlib.sha256(text.encode()).hexdigest()[:32]
    _make_private(directory)
    return directory


def _state_home() -> Path:
    """``XDG_STATE_HOME`` of the XDG Base Directory Specification, or ``LOCALAPPDATA``."""
    home = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_STATE_HOME", "")
    if os.path.isabs(home):  # as the specification requires
        return Path(home)
    try:
        return Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise OSError("there is no home directory") from error


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = os.lstat(directory)
    is_private = os.name != "posix" or (
        status.st_uid == os.geteuid() and not status.st_mode & 0o077
    )
    if not stat.S_ISDIR(status.st_mode) or not is_private:
        raise OSError(f"{str(directory)!r} is not a directory that only you can read")


def _remove_stale_files(base: Path) -> None:
    oldest = time.time() - _MAX_AGE
    for path in base.glob("*/*"):
        with suppress(OSError):  # another process may have removed it
            if path.stat().st_mtime < oldest:
                path.unlink()
                path.parent.rmdir()  # if it is empty
