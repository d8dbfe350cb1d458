"""The checkpoint file: when it is written and deleted, and what happens if it cannot be used.

What is resumed from a checkpoint is tested in ``test_resume``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    SMALL_LIMITS,
    StopUploadError,
    digest_of,
    random_bytes,
    stop_after,
    wait_for_threads,
    write_layer,
)
from image_makers import Layout
from interrupts import interrupt_when
from pytest_mock import MockerFixture

from ecr_parts import (
    CheckpointError,
    DigestMismatchError,
    Layer,
    LayerUploader,
    ServiceError,
    UploadSession,
)
from ecr_parts._upload.checkpoint import BestEffortPath, Checkpoint, checkpoint_name
from ecr_parts.testing import Fault, LocalECR

BLOB = random_bytes(45)  # six parts of 8 bytes, the last of 5
DIGEST = digest_of(BLOB)


@pytest.fixture
def uploader(sequential_uploader: LayerUploader) -> LayerUploader:
    """These tests need to know how far an upload got that was interrupted."""
    return sequential_uploader


def last_byte_in(checkpoint: Path) -> int:
    last_byte: int = json.loads(checkpoint.read_text())["lastByteReceived"]
    return last_byte


# When it is written and deleted


def test_saves_checkpoint_before_progress_is_called(
    uploader: LayerUploader, checkpoint: Path
) -> None:
    confirmed = 0

    def progress(newly_confirmed: int) -> None:
        nonlocal confirmed
        confirmed += newly_confirmed
        if newly_confirmed and confirmed < 45:
            assert last_byte_in(checkpoint) == confirmed - 1
            assert stat.S_IMODE(checkpoint.stat().st_mode) == 0o600

    uploader.upload(BLOB, checkpoint=checkpoint, progress=progress)
    assert confirmed == 45
    assert not checkpoint.exists()


def test_digest_mismatch_deletes_checkpoint(uploader: LayerUploader, checkpoint: Path) -> None:
    with pytest.raises(DigestMismatchError):
        uploader.upload(BLOB, digest=digest_of(b"other"), checkpoint=checkpoint)
    assert not checkpoint.exists()


def test_other_errors_keep_checkpoint(
    ecr: LocalECR, uploader: LayerUploader, checkpoint: Path
) -> None:
    faults: tuple[Fault, ...] = ("access_denied", "expired_token")
    for fault in faults:
        ecr.fail("UploadLayerPart", fault, call=2)
        with pytest.raises(ServiceError):
            uploader.upload(BLOB, checkpoint=checkpoint)
        assert checkpoint.exists()
    layer = uploader.upload(BLOB, checkpoint=checkpoint)
    assert [sent.part.first_byte for sent in layer.parts] == [16, 24, 32, 40]


def test_keyboard_interrupt_keeps_checkpoint_and_stops_threads(
    uploader: LayerUploader, checkpoint: Path
) -> None:
    def progress(newly_confirmed: int) -> None:
        if newly_confirmed:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        uploader.upload(BLOB, checkpoint=checkpoint, progress=progress)
    assert checkpoint.exists()
    wait_for_threads()


def test_existing_layer_leaves_checkpoint_of_other_layer_unchanged(
    uploader: LayerUploader, checkpoint: Path
) -> None:
    uploader.upload(BLOB)
    other = random_bytes(45, seed=1)
    with pytest.raises(StopUploadError):
        uploader.upload(other, checkpoint=checkpoint, progress=stop_after(16))
    assert uploader.upload(BLOB, checkpoint=checkpoint).existed
    layer = uploader.upload(other, checkpoint=checkpoint)
    assert layer.parts[0].part.first_byte == 16


# Its path


def test_follows_symbolic_link(uploader: LayerUploader, checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    checkpoint.symlink_to(target)
    with pytest.raises(StopUploadError):
        uploader.upload(BLOB, checkpoint=checkpoint, progress=stop_after(16))
    assert checkpoint.is_symlink()
    assert last_byte_in(target) == 15
    uploader.upload(BLOB, checkpoint=checkpoint)
    assert not target.exists()


def test_relative_path_is_resolved_when_upload_starts(
    uploader: LayerUploader, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint.parent)

    def progress(newly_confirmed: int) -> None:
        monkeypatch.chdir("/")
        if newly_confirmed:
            raise StopUploadError

    with pytest.raises(StopUploadError):
        uploader.upload(BLOB, checkpoint=checkpoint.name, progress=progress)
    assert checkpoint.exists()


def test_rejects_path_relative_to_deleted_directory(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted = tmp_path / "deleted"
    deleted.mkdir()
    monkeypatch.chdir(deleted)
    deleted.rmdir()
    for upload in (
        lambda: uploader.upload(BLOB, checkpoint="layer.checkpoint"),
        lambda: uploader.upload_many([Layer(BLOB, checkpoint="layer.checkpoint")]),
    ):
        with pytest.raises(CheckpointError, match="relative to a deleted working directory"):
            upload()
    assert ecr.calls == []


def test_accepts_longest_file_name(uploader: LayerUploader, tmp_path: Path) -> None:
    checkpoint = tmp_path / ("\N{MIDDLE DOT}" * 127)  # 254 bytes; 255 is the most that Linux allows
    with pytest.raises(StopUploadError):
        uploader.upload(BLOB, checkpoint=checkpoint, progress=stop_after(8))
    assert list(tmp_path.iterdir()) == [checkpoint]
    assert uploader.upload(BLOB, checkpoint=checkpoint).parts[0].part.first_byte == 8


def test_rejects_file_of_layer_as_checkpoint(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    path, link = write_layer(BLOB, tmp_path), tmp_path / "link"
    link.symlink_to(path)
    for checkpoint in (path, link):
        with pytest.raises(ValueError, match="checkpoint must not be the layer's own file"):
            uploader.upload(path, checkpoint=checkpoint)
    assert path.read_bytes() == BLOB
    assert ecr.calls == []


def test_rejects_path_of_wrong_type(uploader: LayerUploader) -> None:
    with pytest.raises(TypeError, match="checkpoint must be a path, not 5"):
        uploader.upload(BLOB, checkpoint=5)  # type: ignore[arg-type]  # wrong on purpose

    class PathOfBytes(os.PathLike[str]):
        def __fspath__(self) -> Any:
            return b"checkpoint"

    with pytest.raises(TypeError, match="checkpoint must be a path of type str"):
        uploader.upload(BLOB, checkpoint=PathOfBytes())


# Files that cannot be used: the error names the file, which is left unchanged


@pytest.mark.parametrize(
    ("content", "is_session"),
    [(b"", False), (b"{", False), (b"[]", False), (b"\xff", False), (b"[" * 100_000, False),
     (b'{"a": 1}', False), (b'{"version": 2}', False), (b'{"version": "1.0.0"}', False),
     (b'{"version": 2, "uploadId": "u"}', True), (b'{"version": 1, "uploadId": ""}', True)],
    ids=lambda content: repr(content[:20]) if isinstance(content, bytes) else "",
)  # fmt: skip
def test_rejects_damaged_or_newer_checkpoint(
    content: bytes, is_session: bool, ecr: LocalECR, uploader: LayerUploader, checkpoint: Path
) -> None:
    """Only what is a session is advised to be deleted: another file may be the user's own."""
    checkpoint.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"layer\.checkpoint' cannot be used") as raised:
        uploader.upload(BLOB, checkpoint=checkpoint)
    assert ("delete" in str(raised.value)) == is_session
    assert ("does not exist yet" in str(raised.value)) != is_session
    assert checkpoint.read_bytes() == content
    assert ecr.calls == []


def test_rejects_directory_and_path_that_cannot_be_created(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read: .* too long"):
        uploader.upload(BLOB, checkpoint=tmp_path / ("x" * 300))
    with pytest.raises(CheckpointError, match=f"{tmp_path}' is not a regular file"):
        uploader.upload(BLOB, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match=r"missing/file' cannot be written: .*No such file"):
        uploader.upload(BLOB, checkpoint=tmp_path / "missing" / "file")
    assert ecr.calls == []


def test_does_not_read_named_pipe_or_large_file(uploader: LayerUploader, tmp_path: Path) -> None:
    pipe, large_file = tmp_path / "pipe", tmp_path / "large file"
    os.mkfifo(pipe)
    large_file.write_text(" " * 100_000 + uploader.initiate().to_json())
    for checkpoint, message in (
        (pipe, "is not a regular file"),
        (large_file, "cannot be used"),
    ):
        with pytest.raises(CheckpointError, match=message):
            uploader.upload(BLOB, checkpoint=checkpoint)


@pytest.mark.parametrize("function", ["os.fsync", "os.replace", "tempfile.mkstemp"])
def test_full_disk_leaves_checkpoint_unchanged(
    function: str, ecr: LocalECR, uploader: LayerUploader, checkpoint: Path, mocker: Any
) -> None:
    with pytest.raises(StopUploadError):
        uploader.upload(BLOB, checkpoint=checkpoint, progress=stop_after(16))
    content = checkpoint.read_bytes()
    full_disk = mocker.patch(function, side_effect=OSError(28, "No space left on device"))
    ecr.calls.clear()
    with pytest.raises(CheckpointError, match=r"cannot be written: .*No space left") as raised:
        uploader.upload(BLOB, checkpoint=checkpoint)
    assert isinstance(raised.value.__cause__, OSError)
    assert checkpoint.read_bytes() == content
    assert list(checkpoint.parent.iterdir()) == [checkpoint]
    if function == "tempfile.mkstemp":  # fails before the first call
        assert ecr.calls == []
    else:
        assert raised.value.session is not None
        assert raised.value.session.next_byte == 24

    mocker.stop(full_disk)
    assert uploader.upload(BLOB, checkpoint=checkpoint).digest == DIGEST


@pytest.mark.parametrize("function", ["open", "fsync"])
def test_ignores_directory_that_cannot_be_flushed(
    function: str, uploader: LayerUploader, checkpoint: Path, mocker: Any
) -> None:
    """Some file systems do not support it, and a directory may be writable but not readable."""
    original = getattr(os, function)

    def fail_for_directories(target: Any, *arguments: Any, **keywords: Any) -> Any:
        if os.path.isdir(target):
            raise OSError(22, "Invalid argument")
        return original(target, *arguments, **keywords)

    with pytest.raises(StopUploadError):
        uploader.upload(BLOB, checkpoint=checkpoint, progress=stop_after(8))
    mocker.patch(f"os.{function}", fail_for_directories)
    with pytest.raises(StopUploadError):
        uploader.upload(BLOB, checkpoint=checkpoint, progress=stop_after(24))
    assert last_byte_in(checkpoint) == 23
    assert uploader.upload(BLOB, checkpoint=checkpoint).digest == DIGEST


def test_reports_checkpoint_that_cannot_be_deleted(
    uploader: LayerUploader, checkpoint: Path, mocker: Any
) -> None:
    mocker.patch.object(Path, "unlink", side_effect=PermissionError(13, "Permission denied"))
    message = re.escape(f"the checkpoint {str(checkpoint)!r} cannot be deleted: Permission denied")
    with pytest.raises(CheckpointError, match=message) as raised:
        uploader.upload(BLOB, checkpoint=checkpoint)
    assert isinstance(raised.value.__cause__, PermissionError)


def test_name_of_checkpoint_depends_on_digest_and_destination() -> None:
    assert checkpoint_name(DIGEST) == f"{DIGEST[7:]}.checkpoint"
    names = {checkpoint_name(DIGEST, destination) for destination in ("", "a", "b")}
    assert len(names) == 3
    assert checkpoint_name(DIGEST, "a") in names
    assert all(name.endswith(f"{DIGEST[7:]}.checkpoint") for name in names)


@pytest.mark.skipif(os.name != "posix", reason="directories are flushed on POSIX systems only")
def test_flushes_file_and_directory_after_each_part(
    uploader: LayerUploader, checkpoint: Path, mocker: Any
) -> None:
    flush = mocker.spy(os, "fsync")
    uploader.upload(BLOB, checkpoint=checkpoint)
    assert flush.call_count == 2 * 7  # at the start and after each of six parts


def test_optional_checkpoint_that_cannot_be_read_or_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    reports: list[CheckpointError] = []
    checkpoint = Checkpoint(BestEffortPath(str(tmp_path), reports.append) / "file" / "checkpoint")
    assert checkpoint.load() is None
    checkpoint.save(UploadSession(repository_name="demo", upload_id="u-1", part_size=10))
    checkpoint.delete()
    directory = Checkpoint(BestEffortPath(str(tmp_path), reports.append))
    assert directory.load() is None
    problems = [re.search("cannot be [a-z]+|is not a regular", str(error)) for error in reports]
    assert [problem and problem[0] for problem in problems] == [
        "cannot be read",
        "cannot be written",
        "cannot be deleted",
        "is not a regular",
    ]


# What an interrupted or killed process leaves


@pytest.mark.parametrize("call", range(1, 8))
def test_interrupted_save_leaves_no_temporary_file_and_writes_nothing_afterwards(
    call: int, uploader: LayerUploader, checkpoint: Path, mocker: MockerFixture
) -> None:
    """The caller's thread waits for the thread that saves, unless the disk hangs."""
    interrupted, calls = False, 0
    fsync, replace = os.fsync, os.replace

    def interrupt_while_saving(descriptor: int) -> None:
        nonlocal interrupted, calls
        calls += 1
        if calls == call:
            interrupted = True
            pause.wait(0.2)
        fsync(descriptor)

    def record_replace(source: str, target: Path) -> None:
        replaced.append(ended)
        replace(source, target)

    replaced: list[bool] = []
    pause, ended = threading.Event(), False
    mocker.patch("os.fsync", interrupt_while_saving)
    mocker.patch("os.replace", record_replace)
    with (
        contextlib.suppress(KeyboardInterrupt),
        interrupt_when(lambda: interrupted, KeyboardInterrupt()),
    ):
        uploader.upload(BLOB, checkpoint=checkpoint)
    ended = True
    wait_for_threads()
    assert True not in replaced
    assert [path.name for path in checkpoint.parent.iterdir()] in ([], [checkpoint.name])


def test_thread_that_saves_on_a_hanging_disk_replaces_nothing_afterwards(
    uploader: LayerUploader, checkpoint: Path, mocker: MockerFixture
) -> None:
    hanging, go_on, fsync, calls = threading.Event(), threading.Event(), os.fsync, 0

    def hang(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:  # the second save; the first one flushes the directory, too
            hanging.set()
            go_on.wait(10)
        fsync(descriptor)

    mocker.patch("os.fsync", hang)
    mocker.patch("ecr_parts._base.threads._WAKE_INTERVAL", 0.05)
    with pytest.raises(KeyboardInterrupt), interrupt_when(hanging.is_set, KeyboardInterrupt()):
        uploader.upload(BLOB, checkpoint=checkpoint)
    before = checkpoint.read_bytes()
    go_on.set()
    wait_for_threads()
    assert checkpoint.read_bytes() == before
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]


def test_next_upload_removes_temporary_files_of_killed_processes(
    uploader: LayerUploader, checkpoint: Path, mocker: MockerFixture
) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    left = checkpoint.with_name(f".{checkpoint.name}.{dead}.abc.tmp")
    old = checkpoint.with_name(f".{checkpoint.name}.{os.getpid()}.old.tmp")
    saving = checkpoint.with_name(f".{checkpoint.name}.{os.getpid()}.new.tmp")
    of_init = checkpoint.with_name(f".{checkpoint.name}.1.new.tmp")
    kill = os.kill

    def deny(process: int, number: int) -> None:
        if process == 1:
            raise PermissionError
        kill(process, number)

    mocker.patch("os.kill", deny)
    others = [checkpoint.with_name(name) for name in (f".{checkpoint.name}.tmp", "notes.1.a.tmp")]
    for path in (left, old, saving, of_init, *others):
        path.touch()
    os.utime(old, (0, 0))
    link = checkpoint.with_name(f".{checkpoint.name}.{dead}.link.tmp")
    link.symlink_to(others[1])
    uploader.upload(BLOB, checkpoint=checkpoint)
    assert {*checkpoint.parent.iterdir()} == {saving, of_init, link, *others}


def test_save_survives_that_another_host_removes_its_temporary_file(
    uploader: LayerUploader, checkpoint: Path, mocker: MockerFixture
) -> None:
    removed: list[str] = []
    replace = os.replace

    def lose_first(source: str, target: Path) -> None:
        if not removed:
            removed.append(source)
            os.unlink(source)
        replace(source, target)

    mocker.patch("os.replace", lose_first)
    assert uploader.upload(BLOB, checkpoint=checkpoint).digest == DIGEST
    assert removed


def test_repositories_may_share_a_checkpoint_directory(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    """Or else each push would destroy the progress of the other."""
    ecr.client().create_repository(repositoryName="other")
    other = LayerUploader(ecr.client(), "other", limits=SMALL_LIMITS, overlap=False)
    layout = Layout(tmp_path / "image")
    image = layout.finish(layout.add_image("amd64", [BLOB]))
    directory = tmp_path / "checkpoints"
    for destination in (uploader, other):
        with pytest.raises(StopUploadError):
            destination.push_image(image, checkpoint_dir=directory, progress=stop_after(24))
    ecr.calls.clear()
    for destination in (uploader, other):
        destination.push_image(image, checkpoint_dir=directory)
    sent = [call.first_byte for call in ecr.calls_of("UploadLayerPart")]
    assert sent.count(0) <= 4  # small blobs, but not the layer again
    assert list(directory.glob("*.checkpoint")) == []


def test_mismatch_of_a_resumed_upload_deletes_the_checkpoint_at_once(
    ecr: LocalECR, uploader: LayerUploader, checkpoint: Path
) -> None:
    """Or else the next run would complete the wrong upload once more."""
    session = uploader.initiate(layer_digest=DIGEST, layer_size=45)
    for first_byte in range(0, 45, 8):
        uploader.upload_part(session, random_bytes(45, seed=9)[first_byte : first_byte + 8])
    checkpoint.write_text(session.to_json())
    ecr.fail("InitiateLayerUpload", "access_denied")
    with pytest.raises(ServiceError, match="InitiateLayerUpload"):
        uploader.upload(BLOB, checkpoint=checkpoint)
    assert not checkpoint.exists()


def test_checkpoint_can_be_saved_in_any_thread(checkpoint: Path) -> None:
    session = UploadSession(repository_name="demo", upload_id="u-1", part_size=10)
    Checkpoint(checkpoint).save(session)
    assert Checkpoint(checkpoint).load() == session


def test_link_that_leads_to_itself_cannot_be_read(
    uploader: LayerUploader, checkpoint: Path
) -> None:
    checkpoint.symlink_to(checkpoint)
    with pytest.raises(CheckpointError, match=r"cannot be read: .*symbolic links"):
        uploader.upload(BLOB, checkpoint=checkpoint)
    Checkpoint(BestEffortPath(str(checkpoint), lambda _error: None)).save(
        UploadSession(repository_name="demo", upload_id="u-1", part_size=10)
    )


@pytest.mark.parametrize("victim", ["a file", "a FIFO"])
def test_link_that_takes_the_place_of_the_checkpoint_is_not_followed(
    victim: str, uploader: LayerUploader, checkpoint: Path, tmp_path: Path
) -> None:
    """It may lead to any file, which would be replaced and then deleted."""
    target = tmp_path / "the user's own"
    if victim == "a file":
        target.write_text("precious")
    else:
        os.mkfifo(target)
    before = target.lstat()

    def put_link(newly_confirmed: int) -> None:
        if newly_confirmed and not checkpoint.is_symlink():
            checkpoint.unlink(missing_ok=True)
            checkpoint.symlink_to(target)

    uploader.upload(BLOB, checkpoint=checkpoint, progress=put_link)
    assert target.lstat() == before


def test_left_over_file_may_name_any_process(uploader: LayerUploader, checkpoint: Path) -> None:
    left = checkpoint.with_name(f".{checkpoint.name}.{'9' * 30}.abc.tmp")
    left.touch()
    uploader.upload(BLOB, checkpoint=checkpoint)
    assert left.exists()


def test_starts_over_if_upload_id_cannot_be_ecrs(
    ecr: LocalECR, uploader: LayerUploader, checkpoint: Path
) -> None:
    document = json.loads(uploader.initiate(layer_digest=DIGEST, layer_size=45).to_json())
    checkpoint.write_text(json.dumps({**document, "uploadId": "x"}))
    uploader.upload(BLOB, checkpoint=checkpoint)
    assert ecr.layer("demo", DIGEST) == BLOB
