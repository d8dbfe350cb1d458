"""Uploads that are cut and go on: in the process, after a crash, from any copy of what was kept."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    PATIENT,
    REPLAYABLE,
    SMALL,
    STREAMS,
    bytes_of,
    digest_of,
    join_threads,
    path_to,
)
from simulation import Cut, ModelClient

from ecr_parts import (
    CheckpointError,
    DigestMismatchError,
    Layer,
    LayerUploader,
    Limits,
    ServiceError,
    SourceChangedError,
    UploadedLayer,
    UploadSession,
)
from ecr_parts.testing import Fault, LocalECR, Registry, Unknowns
from ecr_parts.testing._registry import Upload

BLOB = bytes_of(45)  # six parts of 8 bytes, the last of 5
DIGEST = digest_of(BLOB)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "kept").mkdir()
    return tmp_path / "kept" / "layer.checkpoint"


class StopError(Exception):
    """What the caller's progress raises."""


def stop_after(total: int) -> Any:
    heard = 0

    def progress(n: int) -> None:
        nonlocal heard
        heard += n
        if n and heard >= total:
            raise StopError

    return progress


def parts_sent(ecr: LocalECR) -> list[tuple[int | None, str]]:
    return [(c.first_byte, c.outcome) for c in ecr.calls if c.operation == "UploadLayerPart"]


@pytest.mark.parametrize("kind", REPLAYABLE)
def test_an_upload_goes_on_where_ecr_stands(
    kind: str, ecr: LocalECR, uploader: LayerUploader, checkpoint: Path, tmp_path: Path
) -> None:
    source = REPLAYABLE[kind](BLOB, tmp_path, random.Random(0))
    with pytest.raises(StopError):
        uploader.upload(source, checkpoint=checkpoint, progress=stop_after(24))
    assert json.loads(checkpoint.read_text())["lastByteReceived"] == 23
    if kind == "file":
        source = REPLAYABLE[kind](BLOB, tmp_path, random.Random(0))
    ecr.calls.clear()
    heard: list[int] = []

    layer = uploader.upload(source, checkpoint=str(checkpoint), progress=heard.append)

    assert layer == UploadedLayer(DIGEST, 45, existed=False)
    assert ecr.layer("demo", DIGEST) == BLOB
    assert parts_sent(ecr) == [(24, "ok"), (32, "ok"), (40, "ok")]
    assert [n for n in heard if n] == [24, 8, 8, 5]
    assert [sent.part.first_byte for sent in layer.parts] == [24, 32, 40]
    assert list(checkpoint.parent.iterdir()) == []


def test_it_is_written_before_progress_hears_of_it(
    uploader: LayerUploader, checkpoint: Path
) -> None:
    total = 0

    def progress(n: int) -> None:
        nonlocal total
        total += n
        if n and total < 45:
            assert json.loads(checkpoint.read_text())["lastByteReceived"] == total - 1
            assert stat.S_IMODE(checkpoint.stat().st_mode) == 0o600

    uploader.upload(BLOB, checkpoint=checkpoint, progress=progress)
    assert total == 45
    assert not checkpoint.exists()


@pytest.mark.parametrize("cut", range(1, 12))
@pytest.mark.parametrize("when", ["cut_before", "cut_after"])
@pytest.mark.parametrize("check_existing", [True, False])
def test_an_upload_is_cut_at_every_call_and_resumed_from_every_copy(
    cut: int, when: str, check_existing: bool, checkpoint: Path
) -> None:
    """From the last checkpoint and from each older one; nothing that ECR has is stored twice."""

    def upload(client: ModelClient, progress: Any = None) -> UploadedLayer:
        uploader = LayerUploader(client, "demo", limits=SMALL, retrying=PATIENT)
        return uploader.upload(
            BLOB, check_existing=check_existing, checkpoint=checkpoint, progress=progress
        )

    copies: list[str | None] = [None]
    for _ in range(20):  # as many copies as there may be, found out on the way
        checkpoint.unlink(missing_ok=True)
        copy = copies.pop()
        client = ModelClient(Registry(["demo"], limits=SMALL, part_size=8))
        setattr(client, when, cut)
        kept: list[str] = []

        def keep(_n: int, kept: list[str] = kept) -> None:
            if checkpoint.exists():
                kept.append(checkpoint.read_text())

        with contextlib.suppress(Cut):
            upload(client, keep)
        if checkpoint.exists():
            kept.append(checkpoint.read_text())
        if copy is None:
            copies = [*dict.fromkeys(kept)] or [""]
            copy = copies.pop()
        if copy:
            checkpoint.write_text(copy)
        setattr(client, when, 0)

        assert upload(client).digest == DIGEST
        layers = client.registry.repositories["demo"].layers
        assert b"".join(layers[DIGEST].blobs) == BLOB
        outcomes = [outcome for _, outcome in client.calls]
        assert outcomes.count("InvalidLayerPartException") <= 1
        assert not checkpoint.exists()
        if not copies:
            return


@pytest.mark.parametrize("way", ["checkpoint", "session"])
def test_a_changed_file_is_uploaded_afresh(
    way: str, ecr: LocalECR, uploader: LayerUploader, checkpoint: Path, tmp_path: Path
) -> None:
    session = uploader.initiate(layer_digest=DIGEST, layer_size=45)
    kept: Any = {"checkpoint": checkpoint} if way == "checkpoint" else {"session": session}
    path = path_to(BLOB, tmp_path)
    with pytest.raises(StopError):
        uploader.upload(path, progress=stop_after(16), **kept)
    changed = BLOB[:44] + b"!"
    path.write_bytes(changed)
    heard: list[int] = []

    layer = uploader.upload(path, progress=heard.append, **kept)

    assert layer.digest == digest_of(changed)
    assert ecr.layer("demo", layer.digest) == changed
    assert sum(heard) == 45
    assert len(layer.parts) == 6
    if way == "session":
        assert session.layer_digest == layer.digest
        assert session.next_byte == 45


@pytest.mark.parametrize(
    "other",
    [
        {"repositoryName": "other"},
        {"registryId": "999999999999"},
        {"layerDigest": digest_of(b"other")},
        {"layerSize": 46},
        {"layerSize": None, "lastByteReceived": 45},
    ],
    ids=str,
)
def test_a_checkpoint_of_something_else_is_not_resumed(
    other: dict[str, Any], ecr: LocalECR, uploader: LayerUploader, checkpoint: Path
) -> None:
    with pytest.raises(StopError):
        uploader.upload(BLOB, checkpoint=checkpoint, progress=stop_after(16))
    checkpoint.write_text(json.dumps(json.loads(checkpoint.read_text()) | other))

    assert len(uploader.upload(BLOB, checkpoint=checkpoint).parts) == 6
    assert ecr.layer("demo", DIGEST) == BLOB


def test_an_expired_upload_begins_afresh(
    ecr: LocalECR, uploader: LayerUploader, checkpoint: Path
) -> None:
    with pytest.raises(StopError):
        uploader.upload(BLOB, checkpoint=checkpoint, progress=stop_after(16))
    ecr.registry.repositories["demo"].uploads.clear()
    heard: list[int] = []

    uploader.upload(BLOB, checkpoint=checkpoint, progress=heard.append)

    assert ecr.layer("demo", DIGEST) == BLOB
    assert [n for n in heard if n] == [16, -16, 8, 8, 8, 8, 8, 5]


def test_a_layer_completed_meanwhile_is_not_sent(
    ecr: LocalECR, uploader: LayerUploader, checkpoint: Path
) -> None:
    with pytest.raises(StopError):
        uploader.upload(BLOB, checkpoint=checkpoint, progress=stop_after(16))
    uploader.upload(BLOB)
    ecr.calls.clear()
    heard: list[int] = []

    layer = uploader.upload(BLOB, checkpoint=checkpoint, progress=heard.append)

    assert layer.existed
    assert [call.operation for call in ecr.calls] == ["BatchCheckLayerAvailability"]
    assert sum(heard) == 45
    assert not checkpoint.exists()


def test_what_others_stored_in_fragments_starts_over_at_completion(
    ecr: LocalECR, uploader: LayerUploader, checkpoint: Path
) -> None:
    """From an older copy, two fragments in a row look like one that is large enough."""
    with pytest.raises(StopError):
        uploader.upload(BLOB, checkpoint=checkpoint, progress=stop_after(8))
    (upload,) = ecr.registry.repositories["demo"].uploads.values()
    upload.store(BLOB[8:11])
    upload.store(BLOB[11:14])

    layer = uploader.upload(BLOB, checkpoint=checkpoint)

    assert ecr.layer("demo", DIGEST) == BLOB
    assert layer.parts[0].part.first_byte == 0


def test_an_upload_found_empty_at_completion_starts_over(
    ecr: LocalECR, uploader: LayerUploader, checkpoint: Path
) -> None:
    with pytest.raises(StopError):
        uploader.upload(BLOB, checkpoint=checkpoint, progress=stop_after(45))
    uploads = ecr.registry.repositories["demo"].uploads
    uploads.update(dict.fromkeys(uploads, Upload()))

    assert len(uploader.upload(BLOB, checkpoint=checkpoint).parts) == 6
    assert ecr.layer("demo", DIGEST) == BLOB


def test_a_part_under_the_minimum_of_ones_own_is_no_lost_upload(ecr: LocalECR) -> None:
    limits = Limits(min_part=2, max_part=3, max_parts=60, max_layer=500)
    uploader = LayerUploader(ecr.client(), "demo", limits=limits, retrying=PATIENT)
    with pytest.raises(ServiceError, match="LayerPartTooSmall"):
        uploader.upload(BLOB)
    assert [call.operation for call in ecr.calls].count("InitiateLayerUpload") == 1


def test_a_digest_that_does_not_match_deletes_the_checkpoint(
    uploader: LayerUploader, checkpoint: Path
) -> None:
    with pytest.raises(DigestMismatchError):
        uploader.upload(BLOB, digest=digest_of(b"other"), checkpoint=checkpoint)
    assert not checkpoint.exists()


def test_other_errors_keep_it(ecr: LocalECR, uploader: LayerUploader, checkpoint: Path) -> None:
    faults: tuple[Fault, ...] = ("access_denied", "expired_token")
    for fault in faults:
        ecr.fail("UploadLayerPart", fault, call=2)
        with pytest.raises(ServiceError):
            uploader.upload(BLOB, checkpoint=checkpoint)
        assert checkpoint.exists()
    layer = uploader.upload(BLOB, checkpoint=checkpoint)
    assert [sent.part.first_byte for sent in layer.parts] == [16, 24, 32, 40]


# Sessions of the caller's


def test_a_session_is_moved_in_place_and_goes_on_from_any_copy(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    session = uploader.initiate()
    kept: list[str] = []

    def keep(n: int) -> None:
        if n:
            kept.append(session.to_json())
        if session.next_byte == 32:
            raise StopError

    with pytest.raises(StopError):
        uploader.upload(BLOB, session=session, progress=keep)
    assert [json.loads(text)["lastByteReceived"] for text in kept] == [7, 15, 23, 31]

    resumed = UploadSession.from_json(kept[1])
    layer = uploader.upload(BLOB, session=resumed)

    assert ecr.layer("demo", layer.digest) == BLOB
    assert resumed.next_byte == 45
    assert [outcome for _, outcome in parts_sent(ecr)].count("ok") == 6


def test_a_session_goes_on_though_a_copy_of_it_went_further(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    session = uploader.initiate(layer_digest=DIGEST)
    copied = UploadSession.from_json(session.to_json())
    with pytest.raises(StopError):
        uploader.upload(BLOB, session=copied, progress=stop_after(24))

    uploader.upload(BLOB, session=session)

    assert ecr.layer("demo", DIGEST) == BLOB
    assert [outcome for _, outcome in parts_sent(ecr)].count("ok") == 6


def test_the_session_of_an_error_goes_on(ecr: LocalECR, uploader: LayerUploader) -> None:
    ecr.fail("UploadLayerPart", "access_denied", call=4)
    with pytest.raises(ServiceError) as raised:
        uploader.upload(BLOB)

    layer = uploader.upload(BLOB, session=raised.value.session)

    assert [sent.part.first_byte for sent in layer.parts] == [24, 32, 40]
    assert ecr.layer("demo", DIGEST) == BLOB


def test_an_unproven_session_of_something_else_starts_over_once(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    """It carries no digest, so only Complete can tell that its bytes are another layer's."""
    ecr.fail("UploadLayerPart", "access_denied", call=4)
    with pytest.raises(ServiceError) as raised:
        uploader.upload(BLOB, check_existing=False)
    session = raised.value.session
    assert session is not None
    assert session.layer_digest is None
    other = bytes_of(45, seed=1)

    layer = uploader.upload(other, session=session)

    assert ecr.layer("demo", layer.digest) == other
    assert session.layer_digest == layer.digest
    with pytest.raises(DigestMismatchError):
        uploader.upload(other, session=uploader.initiate(), digest=DIGEST)


def test_a_checkpoint_with_huge_parts_is_sent_in_allowed_ones(
    uploader: LayerUploader, checkpoint: Path
) -> None:
    with pytest.raises(StopError):
        uploader.upload(BLOB, checkpoint=checkpoint, progress=stop_after(16))
    document = json.loads(checkpoint.read_text())
    checkpoint.write_text(json.dumps(document | {"partSize": 10**12}))
    layer = uploader.upload(BLOB, checkpoint=checkpoint)
    assert [sent.part.size for sent in layer.parts] == [16, 13]


def test_another_layers_checkpoint_is_left_alone_by_one_that_exists(
    uploader: LayerUploader, checkpoint: Path
) -> None:
    uploader.upload(BLOB)
    other = bytes_of(45, seed=1)
    with pytest.raises(StopError):
        uploader.upload(other, checkpoint=checkpoint, progress=stop_after(16))
    assert uploader.upload(BLOB, checkpoint=checkpoint).existed
    layer = uploader.upload(other, checkpoint=checkpoint)
    assert layer.parts[0].part.first_byte == 16


def test_a_relative_checkpoint_stays_where_the_caller_was(
    uploader: LayerUploader, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint.parent)

    def go_elsewhere(n: int) -> None:
        monkeypatch.chdir("/")
        if n:
            raise StopError

    with pytest.raises(StopError):
        uploader.upload(BLOB, checkpoint=checkpoint.name, progress=go_elsewhere)
    assert checkpoint.exists()


def test_a_stream_cannot_be_resumed(
    ecr: LocalECR, uploader: LayerUploader, checkpoint: Path, tmp_path: Path
) -> None:
    session = uploader.initiate()
    ecr.calls.clear()
    for make in STREAMS.values():
        for kept in ({"checkpoint": checkpoint}, {"session": session}):
            with pytest.raises(ValueError, match="read again"):
                uploader.upload(make(BLOB, tmp_path, random.Random(0)), **kept)
    assert ecr.calls == []


def test_a_session_and_a_checkpoint_are_one_too_many(
    ecr: LocalECR, uploader: LayerUploader, checkpoint: Path
) -> None:
    session = uploader.initiate()
    with pytest.raises(ValueError, match="pass session or checkpoint, not both"):
        uploader.upload(BLOB, session=session, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="session must be of repository"):
        LayerUploader(ecr.client(), "other").upload(BLOB, session=session)
    with pytest.raises(TypeError, match="checkpoint must be a path, not 5"):
        uploader.upload(BLOB, checkpoint=5)  # type: ignore[arg-type]  # the point of the test

    class OfBytes(os.PathLike[str]):
        def __fspath__(self) -> Any:
            return b"checkpoint"

    with pytest.raises(TypeError, match="checkpoint must be a path of type str"):
        uploader.upload(BLOB, checkpoint=OfBytes())


# Checkpoints that cannot be used: an error that names the file, and the file as it was


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff", b'{"version": 2}', b'{"version": 1}', b"[" * 100_000],
    ids=lambda content: repr(content[:20]),
)
def test_a_damaged_or_newer_checkpoint(
    content: bytes, ecr: LocalECR, uploader: LayerUploader, checkpoint: Path
) -> None:
    checkpoint.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"layer\.checkpoint' is not a checkpoint.*delete"):
        uploader.upload(BLOB, checkpoint=checkpoint)
    assert checkpoint.read_bytes() == content
    assert ecr.calls == []


def test_a_checkpoint_that_is_a_directory_or_in_none(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read: .* too long"):
        uploader.upload(BLOB, checkpoint=tmp_path / ("x" * 300))
    with pytest.raises(CheckpointError, match=f"{tmp_path}' is not a regular file"):
        uploader.upload(BLOB, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match=r"none/here' cannot be written: .*No such file"):
        uploader.upload(BLOB, checkpoint=tmp_path / "none" / "here")
    assert ecr.calls == []


@pytest.mark.parametrize("broken", ["os.fsync", "os.replace", "tempfile.mkstemp"])
def test_a_disk_that_breaks(
    broken: str, ecr: LocalECR, uploader: LayerUploader, checkpoint: Path, mocker: Any
) -> None:
    with pytest.raises(StopError):
        uploader.upload(BLOB, checkpoint=checkpoint, progress=stop_after(16))
    before = checkpoint.read_bytes()
    disk = mocker.patch(broken, side_effect=OSError(28, "No space left on device"))
    ecr.calls.clear()
    with pytest.raises(CheckpointError, match=r"cannot be written: .*No space left") as raised:
        uploader.upload(BLOB, checkpoint=checkpoint)
    assert checkpoint.read_bytes() == before
    assert list(checkpoint.parent.iterdir()) == [checkpoint]
    if broken == "tempfile.mkstemp":  # known before the first call
        assert ecr.calls == []
    else:
        assert raised.value.session is not None
        assert raised.value.session.next_byte == 24

    mocker.stop(disk)
    assert uploader.upload(BLOB, checkpoint=checkpoint).digest == DIGEST


@pytest.mark.parametrize("broken", ["open", "fsync"])
def test_a_directory_that_cannot_be_flushed_is_no_error(
    broken: str, ecr: LocalECR, uploader: LayerUploader, checkpoint: Path, mocker: Any
) -> None:
    """Of some file systems, and of a directory that may be written and not read."""
    real = getattr(os, broken)

    def refuse_directories(target: Any, *arguments: Any, **more: Any) -> Any:
        if os.path.isdir(target):
            raise OSError(22, "Invalid argument")
        return real(target, *arguments, **more)

    with pytest.raises(StopError):
        uploader.upload(BLOB, checkpoint=checkpoint, progress=stop_after(8))
    mocker.patch(f"os.{broken}", refuse_directories)
    with pytest.raises(StopError):
        uploader.upload(BLOB, checkpoint=checkpoint, progress=stop_after(24))
    assert json.loads(checkpoint.read_text())["lastByteReceived"] == 23
    assert uploader.upload(BLOB, checkpoint=checkpoint).digest == DIGEST


def test_a_checkpoint_with_a_long_name(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    longest = tmp_path / ("\N{MIDDLE DOT}" * 127)  # 254 bytes, of the 255 that a name may have
    with pytest.raises(StopError):
        uploader.upload(BLOB, checkpoint=longest, progress=stop_after(8))
    assert list(tmp_path.iterdir()) == [longest]
    assert uploader.upload(BLOB, checkpoint=longest).parts[0].part.first_byte == 8


def test_a_relative_checkpoint_in_a_directory_that_is_gone(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for upload in (
        lambda: uploader.upload(BLOB, checkpoint="layer.checkpoint"),
        lambda: uploader.upload_many([Layer(BLOB, checkpoint="layer.checkpoint")]),
    ):
        with pytest.raises(CheckpointError, match="relative to a deleted directory"):
            upload()
    assert ecr.calls == []


def test_a_checkpoint_that_cannot_be_deleted(
    uploader: LayerUploader, checkpoint: Path, mocker: Any
) -> None:
    mocker.patch.object(Path, "unlink", side_effect=PermissionError(13, "Permission denied"))
    with pytest.raises(CheckpointError, match="cannot be deleted"):
        uploader.upload(BLOB, checkpoint=checkpoint)


def test_a_link_stays_a_link(uploader: LayerUploader, checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    checkpoint.symlink_to(target)
    with pytest.raises(StopError):
        uploader.upload(BLOB, checkpoint=checkpoint, progress=stop_after(16))
    assert checkpoint.is_symlink()
    assert json.loads(target.read_text())["lastByteReceived"] == 15
    uploader.upload(BLOB, checkpoint=checkpoint)
    assert not target.exists()


# More than one process


def test_two_uploaders_on_one_client_and_one_checkpoint(
    ecr: LocalECR, checkpoint: Path, tmp_path: Path
) -> None:
    path = path_to(BLOB, tmp_path)
    client = ecr.client()
    start = threading.Barrier(4)

    def upload(_i: int) -> UploadedLayer:
        start.wait()
        uploader = LayerUploader(client, "demo", limits=SMALL, retrying=PATIENT)
        return uploader.upload(path, checkpoint=checkpoint, check_existing=False)

    with ThreadPoolExecutor(4) as pool:
        layers = list(pool.map(upload, range(4)))
    assert {layer.digest for layer in layers} == {DIGEST}
    assert ecr.layer("demo", DIGEST) == BLOB
    assert len(ecr.calls) < 100


CHILD = """
import sys
from ecr_parts import LayerUploader, Limits, default_retrying
from ecr_parts.testing import LocalECR

url, path, checkpoint = sys.argv[1:]
client = LocalECR().client(endpoint_url=url)
limits = Limits(min_part=4, max_part=16, max_parts=1_000, max_layer=10_000)
retrying = default_retrying().copy(sleep=lambda seconds: None)
uploader = LayerUploader(client, "demo", limits=limits, retrying=retrying)
print("ready", flush=True)
layer = uploader.upload(path, checkpoint=checkpoint, progress=lambda n: print(n, flush=True))
print(layer.digest, flush=True)
"""


def killed_child(ecr: LocalECR, path: Path, checkpoint: Path, rng: random.Random) -> str:
    """Run an upload in a process that is killed after so many lines of output; its last line."""
    command = [sys.executable, "-c", CHILD, ecr.endpoint_url, str(path), str(checkpoint)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        line = ""
        for _ in range(rng.randint(1, 30)):
            line = child.stdout.readline().strip() or line
        child.send_signal(signal.SIGKILL)
    return line


def kill_in_a_row(kills: int, parts: int, seed: int, tmp_path: Path, checkpoint: Path) -> None:
    rng = random.Random(seed)
    limits = Limits(min_part=4, max_part=16, max_parts=1_000, max_layer=10_000)
    blob = bytes_of(parts * 8, seed)
    path = path_to(blob, tmp_path)
    stood: list[int] = []
    with LocalECR(limits=limits, part_size=8) as ecr:
        for _ in range(kills):
            last = killed_child(ecr, path, checkpoint, rng)
            assert not last.startswith("sha256:"), "it was faster than the kills: give more parts"
            if checkpoint.exists():
                stood.append(json.loads(checkpoint.read_text())["lastByteReceived"])
        assert stood == sorted(stood)
        assert len(set(stood)) > kills // 2  # most of them got on
        refused = [outcome for _, outcome in parts_sent(ecr)].count("InvalidLayerPartException")
        assert refused <= kills  # one part in flight each, and not more
        uploader = LayerUploader(ecr.client(), "demo", limits=limits, retrying=PATIENT)
        assert uploader.upload(path, checkpoint=checkpoint).digest == digest_of(blob)
        assert ecr.layer("demo", digest_of(blob)) == blob
        stored = [first for first, outcome in parts_sent(ecr) if outcome == "ok"]
        kept_from = len(stored) - stored[::-1].index(0) - 1
        assert stored[kept_from:] == list(range(0, len(blob), 8))  # nothing of it twice


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL")
def test_a_process_is_killed_several_times_in_a_row(tmp_path: Path, checkpoint: Path) -> None:
    kill_in_a_row(5, 100, 1, tmp_path, checkpoint)


@pytest.mark.soak
def test_fifty_kills_in_a_row(tmp_path: Path, checkpoint: Path) -> None:
    kill_in_a_row(50, 900, 2, tmp_path, checkpoint)


def test_an_interrupt_keeps_the_checkpoint_and_leaves_no_thread(
    ecr: LocalECR, uploader: LayerUploader, checkpoint: Path
) -> None:
    def interrupt(n: int) -> None:
        if n:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        uploader.upload(BLOB, checkpoint=checkpoint, progress=interrupt)
    assert checkpoint.exists()
    join_threads()


def test_a_file_that_changes_while_it_is_resumed(
    ecr: LocalECR, uploader: LayerUploader, checkpoint: Path, tmp_path: Path
) -> None:
    path = path_to(BLOB, tmp_path)

    def change(n: int) -> None:
        if n:
            os.truncate(path, 20)

    with pytest.raises(SourceChangedError):
        uploader.upload(path, checkpoint=checkpoint, progress=change)
    path.write_bytes(BLOB)
    layer = uploader.upload(path, checkpoint=checkpoint)
    assert ecr.layer("demo", layer.digest) == BLOB


def test_a_checkpoint_that_is_the_layers_own_file_is_refused(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    path, link = path_to(BLOB, tmp_path), tmp_path / "link"
    link.symlink_to(path)
    for checkpoint in (path, link):
        with pytest.raises(ValueError, match="checkpoint must be another file than the layer"):
            uploader.upload(path, checkpoint=checkpoint)
    assert path.read_bytes() == BLOB
    assert ecr.calls == []


def test_a_checkpoint_that_is_no_file_or_a_large_one_is_not_read(
    uploader: LayerUploader, tmp_path: Path
) -> None:
    fifo, large = tmp_path / "fifo", tmp_path / "large"
    os.mkfifo(fifo)
    large.write_text(" " * 100_000 + uploader.initiate().to_json())
    for checkpoint, said in ((fifo, "is not a regular file"), (large, "is not a checkpoint")):
        with pytest.raises(CheckpointError, match=said):
            uploader.upload(BLOB, checkpoint=checkpoint)


def test_a_session_with_a_digest_of_the_callers_is_mended_when_its_file_was_another(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    """With ``digest`` nothing is hashed, so that parts of two files may meet in one upload."""
    path = path_to(BLOB, tmp_path)
    session = uploader.initiate(layer_digest=DIGEST)
    uploader.upload_part(session, bytes_of(8, seed=1))
    assert session.next_byte == 8
    layer = uploader.upload(path, digest=DIGEST, session=session)
    assert ecr.layer("demo", layer.digest) == BLOB

    wrong = digest_of(b"other")
    session = uploader.initiate(layer_digest=wrong)
    with pytest.raises(DigestMismatchError):
        uploader.upload(path, digest=wrong, session=session, check_existing=False)


@pytest.mark.parametrize("where", ["failures", "layers", "failures alone"])
def test_wherever_missing_layers_are_listed(where: Any) -> None:
    with LocalECR(limits=SMALL, part_size=8, unknowns=Unknowns(missing_layers=where)) as ecr:
        uploader = LayerUploader(ecr.client(), "demo", limits=SMALL, retrying=PATIENT)
        assert uploader.missing([DIGEST]) == {DIGEST}
        assert not uploader.upload(BLOB).existed
        assert uploader.upload(BLOB).existed


def test_parts_that_had_to_be_larger_are_counted_as_they_were_sent() -> None:
    """At ECR: 10 MiB answered for a size not yet known, 48,000 MiB sent, cut at 44,000."""
    limits = Limits(min_part=4, max_part=10, max_parts=60, max_layer=600)
    blob = bytes_of(590)
    with LocalECR(limits=limits, part_size=8) as ecr:
        uploader = LayerUploader(ecr.client(), "demo", limits=limits, retrying=PATIENT)
        session = uploader.initiate()
        ecr.fail("UploadLayerPart", "access_denied", call=51)
        with pytest.raises(ServiceError, match="bytes 500-509"):
            uploader.upload(blob, session=session)
        assert session.part_size == 8
        text_of_an_earlier_version = json.loads(session.to_json())
        assert text_of_an_earlier_version.pop("partsReceived") == 50
        del text_of_an_earlier_version["lastPartSize"]
        resumed = UploadSession.from_json(json.dumps(text_of_an_earlier_version))
        ecr.fail("UploadLayerPart", "access_denied", call=5)
        with pytest.raises(ServiceError, match="AccessDenied"):
            uploader.upload(blob, session=resumed)

        uploader.upload(blob, session=UploadSession.from_json(resumed.to_json()))
        assert ecr.layer("demo", digest_of(blob)) == blob
        first_bytes = [first for first, outcome in parts_sent(ecr) if outcome == "ok"]
        assert first_bytes[:51] == [*range(0, 501, 10)]
        assert len(first_bytes) == 60


def test_a_session_whose_last_part_is_too_small_is_not_continued(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    session = uploader.initiate(layer_size=45)
    uploader.upload_part(session, BLOB[:8])
    uploader.upload_part(session, BLOB[8:11])
    kept = UploadSession.from_json(session.to_json())
    with pytest.raises(ValueError, match="below the minimum of 4 bytes"):
        uploader.upload_part(kept, BLOB[11:19])

    uploader.upload(BLOB, session=kept)
    assert ecr.layer("demo", DIGEST) == BLOB
    assert [first for first, _ in parts_sent(ecr)] == [0, 8, *range(0, 45, 8)]
