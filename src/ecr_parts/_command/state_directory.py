"""Where the command saves checkpoints by default: a directory that only its user can read."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_MAX_AGE = 7 * 24 * 3600  # seconds
_DIRECTORY = re.compile(r"[0-9a-f]{32}")
# The second one is that of a temporary file, which a process that was killed has left.
_CHECKPOINT = re.compile(
    r"([0-9a-f]{16}-)?[0-9a-f]{64}\.checkpoint|\.[0-9a-f-]{40}\.[0-9]+\.[^.]+\.tmp"
)


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
    """Create ``directory`` unless it exists. It may be a symbolic link of the user's own."""
    with suppress(FileExistsError):  # as what it is: see below
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    link, status = os.lstat(directory), os.stat(directory)
    is_private = os.name != "posix" or (
        link.st_uid == status.st_uid == os.geteuid() and not status.st_mode & 0o077
    )
    if not stat.S_ISDIR(status.st_mode) or not is_private:
        raise OSError(f"{str(directory)!r} is not a directory that only you can read")


def _remove_stale_files(base: Path) -> None:
    # Only regular files with names of ours, and no symbolic link is followed: the user may have put
    # other files here, or links to files elsewhere.
    oldest = time.time() - _MAX_AGE
    for directory in _entries(base, _DIRECTORY):
        if directory.is_dir(follow_symlinks=False):
            for file in _entries(directory, _CHECKPOINT):
                with suppress(OSError):  # another process may have removed it
                    status = file.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode) and status.st_mtime < oldest:
                        os.unlink(file)
                        os.rmdir(directory)  # if it is empty


def _entries(directory: os.PathLike[str], name: re.Pattern[str]) -> list[os.DirEntry[str]]:
    with suppress(OSError), os.scandir(directory) as entries:
        return [entry for entry in entries if name.fullmatch(entry.name)]
    return []
