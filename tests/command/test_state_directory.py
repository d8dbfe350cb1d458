"""The directory where the command saves checkpoints by default."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from ecr_parts._command.state_directory import checkpoint_directory

WEEK = 7 * 24 * 3600


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def test_directory_is_private_and_depends_on_destination(home: Path) -> None:
    first = checkpoint_directory({"repository": "a", "region": None})
    assert first == checkpoint_directory({"region": None, "repository": "a"})
    assert first != checkpoint_directory({"repository": "b", "region": None})
    assert first.parent == home / "state" / "ecr-parts"
    for directory in (first, first.parent):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@pytest.mark.parametrize("state_home", ["", "relative"])
def test_directory_is_below_home_by_default(
    state_home: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", state_home)
    directory = checkpoint_directory({})
    assert directory.parent == home / "home" / ".local" / "state" / "ecr-parts"


def test_reports_that_there_is_no_home(
    home: Path, monkeypatch: pytest.MonkeyPatch, mocker: MockerFixture
) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    mocker.patch("pathlib.Path.home", side_effect=RuntimeError)
    with pytest.raises(OSError, match="no home directory"):
        checkpoint_directory({})


@pytest.mark.parametrize("what", ["readable", "link", "file", "not ours"])
def test_refuses_directory_that_is_not_private(
    what: str, home: Path, mocker: MockerFixture
) -> None:
    base = home / "state" / "ecr-parts"
    base.parent.mkdir()
    if what == "readable":
        base.mkdir(mode=0o755)
        base.chmod(0o755)
    elif what == "link":
        (home / "elsewhere").mkdir(mode=0o700)
        base.symlink_to(home / "elsewhere")
    elif what == "file":
        base.touch()
    else:
        mocker.patch("os.geteuid", return_value=os.geteuid() + 1)
    with pytest.raises(OSError, match=r"only you can read|File exists"):
        checkpoint_directory({})


def test_removes_what_is_older_than_a_week(home: Path) -> None:
    old, new = checkpoint_directory({"n": 1}), checkpoint_directory({"n": 2})
    for directory, age in ((old, WEEK + 60), (new, WEEK - 60)):
        for name in ("a.checkpoint", "compressed-layers.json"):
            path = directory / name
            path.touch()
            written = path.stat().st_mtime - age
            os.utime(path, (written, written))
    checkpoint_directory({"n": 3})
    assert not old.exists()
    assert len(list(new.iterdir())) == 2
