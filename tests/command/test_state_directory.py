"""The directory where the command saves checkpoints by default."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest
from command_line import RunInProcess
from pytest_mock import MockerFixture

from ecr_parts._command.state_directory import checkpoint_directory
from ecr_parts.testing import LocalECR

WEEK = 7 * 24 * 3600
NAMES = [f"{'a' * 64}.checkpoint", f"{'b' * 16}-{'a' * 64}.checkpoint", f".{'a' * 40}.12.x_y.tmp"]


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


@pytest.mark.parametrize("what", ["readable", "link to readable", "file", "not ours"])
def test_refuses_directory_that_is_not_private(
    what: str, home: Path, mocker: MockerFixture
) -> None:
    base = home / "state" / "ecr-parts"
    base.parent.mkdir()
    if what.endswith("readable"):
        directory = home / "elsewhere" if what.startswith("link") else base
        directory.mkdir()
        directory.chmod(0o755)
        if directory != base:
            base.symlink_to(directory)
    elif what == "file":
        base.touch()
    else:
        mocker.patch("os.geteuid", return_value=os.geteuid() + 1)
    with pytest.raises(OSError, match="is not a directory that only you can read"):
        checkpoint_directory({})


@pytest.mark.parametrize("owner", ["user", "someone else"])
def test_uses_link_of_the_user_to_private_directory(
    owner: str, home: Path, mocker: MockerFixture
) -> None:
    base = home / "state" / "ecr-parts"
    base.parent.mkdir()
    (home / "elsewhere").mkdir(mode=0o700)
    base.symlink_to(home / "elsewhere")
    if owner == "user":
        directory = checkpoint_directory({})
        assert directory.parent == base
        assert [path.name for path in (home / "elsewhere").iterdir()] == [directory.name]
        return
    status = list(os.lstat(base))
    status[stat.ST_UID] += 1
    mocker.patch("os.lstat", return_value=os.stat_result(status))
    with pytest.raises(OSError, match="is not a directory that only you can read"):
        checkpoint_directory({})


@pytest.mark.parametrize("where", ["state home", "base", "directory"])
def test_uploads_although_a_link_of_the_state_directory_leads_to_itself(
    where: str, home: Path, path: Path, ecr: LocalECR, run_in_process: RunInProcess
) -> None:
    ecr.fail("UploadLayerPart", "access_denied")
    run_in_process(ecr, path, "demo")  # creates the directory
    (directory,) = (home / "state" / "ecr-parts").iterdir()
    steps_up = {"directory": 0, "base": 1, "state home": 2}[where]
    link = (directory, *directory.parents)[steps_up]
    shutil.rmtree(link)
    link.symlink_to(link.name)
    status, _, stderr = run_in_process(ecr, path, "demo")
    warning, _first, summary = stderr.splitlines()
    assert (status, summary[:27]) == (0, "uploaded the layer to demo ")
    assert warning.startswith("warning: progress is not saved: ")
    assert warning.endswith(": Too many levels of symbolic links")


def make_old(path: Path, age: float = WEEK + 60) -> Path:
    path.touch()
    written = path.stat().st_mtime - age
    os.utime(path, (written, written))
    return path


def test_removes_what_is_older_than_a_week(home: Path) -> None:
    old, new = checkpoint_directory({"n": 1}), checkpoint_directory({"n": 2})
    for directory, age in ((old, WEEK + 60), (new, WEEK - 60)):
        for name in NAMES:
            make_old(directory / name, age)
    checkpoint_directory({"n": 3})
    assert not old.exists()
    assert {path.name for path in new.iterdir()} == set(NAMES)


def test_what_is_saved_has_names_that_are_removed(
    home: Path, path: Path, ecr: LocalECR, run_in_process: RunInProcess, mocker: MockerFixture
) -> None:
    mkstemp = mocker.spy(tempfile, "mkstemp")
    ecr.fail("CompleteLayerUpload", "access_denied")
    run_in_process(ecr, path, "demo")
    (checkpoint,) = (home / "state" / "ecr-parts").glob("*/*")
    temporary = Path(mkstemp.spy_return[1])
    assert temporary.parent == checkpoint.parent
    for left_over in (checkpoint, temporary):
        make_old(left_over)
    checkpoint_directory({"n": 1})
    assert not checkpoint.parent.exists()


def test_removes_only_regular_files_with_names_of_ours(home: Path) -> None:
    elsewhere = home / "elsewhere"
    elsewhere.mkdir()
    directory = checkpoint_directory({"n": 1})
    base = directory.parent
    kept = [make_old(elsewhere / NAMES[0]), make_old(directory / "notes.txt")]
    (base / ("0" * 32)).symlink_to(elsewhere)
    (base / "mine").mkdir()
    kept += [make_old(base / "mine" / NAMES[0]), make_old(base / NAMES[0])]
    (directory / NAMES[0]).symlink_to(kept[0])
    os.utime(directory / NAMES[0], (0, 0), follow_symlinks=False)
    (directory / NAMES[1]).mkdir()
    os.utime(directory / NAMES[1], (0, 0))
    make_old(base / ("1" * 32))  # a file in the place of a directory
    checkpoint_directory({"n": 2})
    assert all(path.exists() for path in kept)
    assert (directory / NAMES[0]).is_symlink()
    assert (directory / NAMES[1]).is_dir()


def test_clean_up_ignores_what_cannot_be_listed(home: Path, mocker: MockerFixture) -> None:
    mocker.patch("os.scandir", side_effect=PermissionError)
    assert checkpoint_directory({}).is_dir()
