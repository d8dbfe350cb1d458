"""The checkpoints that the command saves without being asked."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from command_line import BLOB, DIGEST, MIB, RunInProcess, state_files
from helpers import digest_of, random_bytes
from image_makers import Layout
from pytest_mock import MockerFixture

from ecr_parts.testing import LocalECR


def fail_fsync_after(calls: int, mocker: MockerFixture) -> None:
    fsync, count = os.fsync, itertools.count()

    def fail_once_disk_is_full(descriptor: int) -> None:
        if next(count) >= calls:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    mocker.patch("os.fsync", fail_once_disk_is_full)


def first_bytes_sent(ecr: LocalECR) -> list[int | None]:
    return [call.first_byte for call in ecr.calls_of("UploadLayerPart")]


@pytest.mark.parametrize("digest", [(), ("--digest", DIGEST)])
def test_resumes_without_option(
    digest: tuple[str, ...], ecr: LocalECR, path: Path, run_in_process: RunInProcess
) -> None:
    ecr.fail("UploadLayerPart", "access_denied", call=3)
    _, _, stderr = run_in_process(ecr, path, "demo", *digest)
    assert stderr.endswith("Run the same command again to resume at byte 10,485,760\n")
    (checkpoint,) = state_files()
    assert checkpoint.name == f"{DIGEST[7:]}.checkpoint"
    ecr.calls.clear()
    copy = path.with_name("copy")
    copy.write_bytes(BLOB)
    assert run_in_process(ecr, copy, "demo", *digest)[:2] == (0, f"{DIGEST}\n")
    assert first_bytes_sent(ecr) == [10 * MIB]
    assert state_files() == []


def test_resumes_push_without_option(
    ecr: LocalECR, image: Path, run_in_process: RunInProcess
) -> None:
    ecr.fail("CompleteLayerUpload", "access_denied", call=3)
    _, _, stderr = run_in_process(ecr, image, "demo", subcommand="push")
    assert stderr.endswith("Run the same command again to resume\n")
    assert state_files()
    assert run_in_process(ecr, image, "demo", subcommand="push")[0] == 0
    assert state_files() == []


@pytest.mark.parametrize("subcommand", ["upload", "push"])
def test_no_checkpoint_saves_nothing(
    subcommand: str, ecr: LocalECR, path: Path, image: Path, run_in_process: RunInProcess
) -> None:
    source = path if subcommand == "upload" else image
    ecr.fail("CompleteLayerUpload", "access_denied")
    _, _, stderr = run_in_process(ecr, source, "demo", "--no-checkpoint", subcommand=subcommand)
    assert stderr.endswith("Run the command again to start over: its progress was not saved\n")
    assert state_files() == []


@pytest.mark.parametrize("subcommand", ["upload", "push"])
@pytest.mark.parametrize("problem", ["directory", "disk"])
def test_uploads_although_progress_cannot_be_saved(
    problem: str,
    subcommand: str,
    ecr: LocalECR,
    path: Path,
    image: Path,
    run_in_process: RunInProcess,
    mocker: MockerFixture,
) -> None:
    if problem == "directory":
        Path(os.environ["XDG_STATE_HOME"], "ecr-parts").touch()
    else:
        mocker.patch("os.fsync", side_effect=OSError(28, "No space left on device"))
    source = path if subcommand == "upload" else image
    status, _, stderr = run_in_process(ecr, source, "demo", subcommand=subcommand)
    assert status == 0
    assert stderr.count("warning: progress is not saved: ") == 1
    assert ecr.registry.repositories["demo"].layers


def test_each_profile_has_its_own_checkpoints(
    ecr: LocalECR,
    path: Path,
    run_in_process: RunInProcess,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """They may be of different accounts, whose uploads have nothing in common."""
    credentials = "aws_access_key_id = local\naws_secret_access_key = local\n"
    (tmp_path / "config").write_text(f"[profile a]\n{credentials}[profile b]\n{credentials}")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    ecr.fail("CompleteLayerUpload", "access_denied", times=3)
    for profile in ("a", "b", "a"):
        run_in_process(ecr, path, "demo", "--profile", profile)
    assert len(state_files()) == 2
    monkeypatch.setenv("AWS_PROFILE", "a")
    run_in_process(ecr, path, "demo")
    assert len(state_files()) == 1  # resumed


def test_each_registry_has_its_own_checkpoints(
    ecr: LocalECR, path: Path, run_in_process: RunInProcess
) -> None:
    ecr.fail("CompleteLayerUpload", "access_denied", times=2)
    for registry in ((), ("--registry-id", "012345678910")):  # the same one, but this is not known
        run_in_process(ecr, path, "demo", *registry)
    assert len(state_files()) == 2


def test_state_directory_is_printable_in_its_warning(
    ecr: LocalECR,
    path: Path,
    tmp_path: Path,
    run_in_process: RunInProcess,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = tmp_path / "\x1b[2J"
    home.touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(home))
    status, _, stderr = run_in_process(ecr, path, "demo")
    assert (status, stderr.count("warning: progress is not saved: ")) == (0, 1)
    assert "\x1b" not in stderr


def test_continues_where_progress_could_last_be_saved(
    ecr: LocalECR, path: Path, run_in_process: RunInProcess, mocker: MockerFixture
) -> None:
    fail_fsync_after(4, mocker)  # two for each part
    status, _, stderr = run_in_process(ecr, path, "demo", "--progress", "bar")
    assert status == 0
    stored = [call.first_byte for call in ecr.calls_of("UploadLayerPart") if call.outcome == "ok"]
    assert stored == [0, 5 * MIB, 10 * MIB]  # no part twice
    assert stderr.count("warning: ") == 1
    assert "100%  12.0 of 12.0 MiB" in stderr


@pytest.mark.parametrize("subcommand", ["upload", "push"])
def test_checkpoint_that_was_asked_for_must_be_saved(
    subcommand: str,
    ecr: LocalECR,
    path: Path,
    image: Path,
    run_in_process: RunInProcess,
    mocker: MockerFixture,
    tmp_path: Path,
) -> None:
    mocker.patch("os.fsync", side_effect=OSError(28, "No space left on device"))
    source, option = (
        (path, "--checkpoint") if subcommand == "upload" else (image, "--checkpoint-dir")
    )
    status, _, stderr = run_in_process(
        ecr, source, "demo", option, tmp_path / "c", subcommand=subcommand
    )
    assert status == 1
    assert "No space left on device" in stderr


def test_file_that_shrinks_while_it_is_hashed(
    ecr: LocalECR, path: Path, run_in_process: RunInProcess, mocker: MockerFixture
) -> None:
    mocker.patch("ecr_parts._command.upload.hash_source", return_value=(DIGEST, 5))
    status, _, stderr = run_in_process(ecr, path, "demo")
    assert (status, ecr.calls_of("InitiateLayerUpload")) == (1, [])
    assert "ended after 5 of" in stderr


@pytest.mark.parametrize("subcommand", ["upload", "push"])
def test_nothing_is_sent_twice_if_the_disk_becomes_full(
    subcommand: str,
    ecr: LocalECR,
    tmp_path: Path,
    run_in_process: RunInProcess,
    mocker: MockerFixture,
) -> None:
    blobs = [random_bytes(11 * MIB, seed=seed) for seed in range(2)]
    fail_fsync_after(8, mocker)
    if subcommand == "upload":
        paths = [tmp_path / str(seed) for seed in range(2)]
        for path, blob in zip(paths, blobs, strict=True):
            path.write_bytes(blob)
        status, _, stderr = run_in_process(ecr, *paths, "demo")
    else:
        layout = Layout(tmp_path / "layout")
        image = layout.finish(layout.add_image("amd64", blobs))
        status, _, stderr = run_in_process(ecr, image, "demo", subcommand="push")
    assert (status, stderr.count("warning: progress is not saved: ")) == (0, 1)
    parts = [call for call in ecr.calls_of("UploadLayerPart") if call.outcome == "ok"]
    sent = sum((call.last_byte or 0) - (call.first_byte or 0) + 1 for call in parts)
    digests = list(ecr.registry.repositories["demo"].layers)
    assert set(map(digest_of, blobs)) <= set(digests)
    assert sent == sum(len(ecr.layer("demo", digest)) for digest in digests)


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_damaged_checkpoint_is_replaced(
    content: str, ecr: LocalECR, path: Path, run_in_process: RunInProcess
) -> None:
    ecr.fail("UploadLayerPart", "access_denied", call=2)
    run_in_process(ecr, path, "demo")
    (checkpoint,) = state_files()
    checkpoint.write_text(content)
    ecr.fail("UploadLayerPart", "access_denied", call=2)
    _, _, stderr = run_in_process(ecr, path, "demo")
    assert "warning" not in stderr
    assert stderr.count(".checkpoint' is ignored: ") == 1
    assert stderr.endswith("Run the same command again to resume at byte 5,242,880\n")
    assert run_in_process(ecr, path, "demo")[0] == 0
    assert state_files() == []


def test_upload_that_was_lost_is_to_be_run_again(
    ecr: LocalECR, run_in_process: RunInProcess, path: Path, mocker: MockerFixture
) -> None:
    mocker.patch("tenacity.wait_random_exponential.__call__", return_value=0)
    ecr.fail("UploadLayerPart", "upload_forgotten", times=100)
    _, _, stderr = run_in_process(ecr, path, "demo")
    assert stderr.endswith("start a new one. Run the command again to start over\n")
