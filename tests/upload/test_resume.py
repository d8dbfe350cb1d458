"""Interrupted uploads that are resumed: from a checkpoint or a session, also by another process.

The checkpoint file itself is tested in ``test_checkpoint``.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from helpers import (
    NO_WAIT,
    REPLAYABLE,
    SMALL_LIMITS,
    STREAMS,
    StopUploadError,
    digest_of,
    operations,
    random_bytes,
    stop_after,
    wait_for_threads,
    write_layer,
)
from simulation import Cut, ModelClient

import ecr_parts
from ecr_parts import (
    DigestMismatchError,
    LayerUploader,
    Limits,
    ServiceError,
    SourceChangedError,
    UploadedLayer,
    UploadSession,
)
from ecr_parts.testing import EcrError, LocalECR, Registry, Unknowns

BLOB = random_bytes(45)  # six parts of 8 bytes, the last of 5
DIGEST = digest_of(BLOB)
MANY_PARTS = Limits(min_part=4, max_part=16, max_parts=10_000, max_layer=100_000)


@pytest.fixture
def uploader(sequential_uploader: LayerUploader) -> LayerUploader:
    """These tests need to know how far an upload got that was interrupted."""
    return sequential_uploader


def part_calls(ecr: LocalECR) -> list[tuple[int | None, str]]:
    """The first byte and the outcome of each UploadLayerPart."""
    return [(call.first_byte, call.outcome) for call in ecr.calls_of("UploadLayerPart")]


def part_outcomes(ecr: LocalECR) -> list[str]:
    return [call.outcome for call in ecr.calls_of("UploadLayerPart")]


# From a checkpoint


@pytest.mark.parametrize("kind", REPLAYABLE)
def test_resumes_after_last_byte_ecr_has(
    kind: str, ecr: LocalECR, uploader: LayerUploader, checkpoint: Path, tmp_path: Path
) -> None:
    source = REPLAYABLE[kind](BLOB, tmp_path, random.Random(0))
    with pytest.raises(StopUploadError):
        uploader.upload(source, checkpoint=checkpoint, progress=stop_after(24))
    assert json.loads(checkpoint.read_text())["lastByteReceived"] == 23
    if kind == "file":
        source = REPLAYABLE[kind](BLOB, tmp_path, random.Random(0))
    ecr.calls.clear()
    progress_calls: list[int] = []

    layer = uploader.upload(source, checkpoint=str(checkpoint), progress=progress_calls.append)

    assert layer == UploadedLayer(DIGEST, 45, existed=False)
    assert ecr.layer("demo", DIGEST) == BLOB
    assert part_calls(ecr) == [(24, "ok"), (32, "ok"), (40, "ok")]
    assert [n for n in progress_calls if n] == [24, 8, 8, 5]
    assert [sent.part.first_byte for sent in layer.parts] == [24, 32, 40]
    assert list(checkpoint.parent.iterdir()) == []


@pytest.mark.parametrize("cut", range(1, 12))
@pytest.mark.parametrize("position", ["cut_before", "cut_after"])
@pytest.mark.parametrize("check_existing", [True, False])
def test_resumes_after_any_call_from_any_copy_of_checkpoint(
    cut: int, position: str, check_existing: bool, checkpoint: Path
) -> None:
    """The process ends before or after call ``cut``. The copies are of the last checkpoint and of
    each older one. ECR refuses at most one part, so nothing it has is sent again."""

    def upload(client: ModelClient, progress: Any = None) -> UploadedLayer:
        uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
        return uploader.upload(
            BLOB, check_existing=check_existing, checkpoint=checkpoint, progress=progress
        )

    copies: list[str | None] = [None]  # found out in the first round
    for _ in range(20):  # more rounds than there can be copies
        checkpoint.unlink(missing_ok=True)
        copy = copies.pop()
        client = ModelClient(Registry(["demo"], limits=SMALL_LIMITS, part_size=8))
        setattr(client, position, cut)
        saved: list[str] = []

        def save_copy(_newly_confirmed: int, saved: list[str] = saved) -> None:
            if checkpoint.exists():
                saved.append(checkpoint.read_text())

        with contextlib.suppress(Cut):
            upload(client, save_copy)
        save_copy(0)
        if copy is None:
            copies = [*dict.fromkeys(saved)] or [""]
            copy = copies.pop()
        if copy:
            checkpoint.write_text(copy)
        setattr(client, position, 0)

        assert upload(client).digest == DIGEST
        layers = client.registry.repositories["demo"].layers
        assert b"".join(layers[DIGEST].blobs) == BLOB
        outcomes = [outcome for _, outcome in client.calls]
        assert outcomes.count("InvalidLayerPartException") <= 1
        assert not checkpoint.exists()
        if not copies:
            return


@pytest.mark.parametrize("parameter", ["checkpoint", "session"])
def test_uploads_changed_file_from_its_start(
    parameter: str, ecr: LocalECR, uploader: LayerUploader, checkpoint: Path, tmp_path: Path
) -> None:
    session = uploader.initiate(layer_digest=DIGEST, layer_size=45)
    resume: Any = {parameter: checkpoint if parameter == "checkpoint" else session}
    path = write_layer(BLOB, tmp_path)
    with pytest.raises(StopUploadError):
        uploader.upload(path, progress=stop_after(16), **resume)
    changed = BLOB[:44] + b"!"
    path.write_bytes(changed)
    progress_calls: list[int] = []

    layer = uploader.upload(path, progress=progress_calls.append, **resume)

    assert layer.digest == digest_of(changed)
    assert ecr.layer("demo", layer.digest) == changed
    assert sum(progress_calls) == 45
    assert len(layer.parts) == 6
    if parameter == "session":
        assert session.layer_digest == layer.digest
        assert session.next_byte == 45


@pytest.mark.parametrize(
    "fields",
    [
        {"repositoryName": "other"},
        {"registryId": "999999999999"},
        {"layerDigest": digest_of(b"other")},
        {"layerSize": 46},
        {"layerSize": None, "lastByteReceived": 45},
    ],
    ids=str,
)
def test_does_not_resume_checkpoint_of_other_layer_or_repository(
    fields: dict[str, Any], ecr: LocalECR, uploader: LayerUploader, checkpoint: Path
) -> None:
    with pytest.raises(StopUploadError):
        uploader.upload(BLOB, checkpoint=checkpoint, progress=stop_after(16))
    checkpoint.write_text(json.dumps(json.loads(checkpoint.read_text()) | fields))

    assert len(uploader.upload(BLOB, checkpoint=checkpoint).parts) == 6
    assert ecr.layer("demo", DIGEST) == BLOB


def test_starts_over_if_upload_expired(
    ecr: LocalECR, uploader: LayerUploader, checkpoint: Path
) -> None:
    with pytest.raises(StopUploadError):
        uploader.upload(BLOB, checkpoint=checkpoint, progress=stop_after(16))
    ecr.registry.repositories["demo"].uploads.clear()
    progress_calls: list[int] = []

    uploader.upload(BLOB, checkpoint=checkpoint, progress=progress_calls.append)

    assert ecr.layer("demo", DIGEST) == BLOB
    assert [n for n in progress_calls if n] == [16, -16, 8, 8, 8, 8, 8, 5]


def test_sends_nothing_if_layer_was_completed_meanwhile(
    ecr: LocalECR, uploader: LayerUploader, checkpoint: Path
) -> None:
    with pytest.raises(StopUploadError):
        uploader.upload(BLOB, checkpoint=checkpoint, progress=stop_after(16))
    uploader.upload(BLOB)
    ecr.calls.clear()
    progress_calls: list[int] = []

    layer = uploader.upload(BLOB, checkpoint=checkpoint, progress=progress_calls.append)

    assert layer.existed
    assert operations(ecr) == ["BatchCheckLayerAvailability"]
    assert sum(progress_calls) == 45
    assert not checkpoint.exists()


def test_starts_over_if_stored_fragments_are_too_small(
    ecr: LocalECR, uploader: LayerUploader, checkpoint: Path
) -> None:
    """An older checkpoint cannot tell two fragments in a row from one of sufficient size."""
    with pytest.raises(StopUploadError):
        uploader.upload(BLOB, checkpoint=checkpoint, progress=stop_after(8))
    (upload,) = ecr.registry.repositories["demo"].uploads.values()
    upload.store(BLOB[8:11])
    upload.store(BLOB[11:14])

    layer = uploader.upload(BLOB, checkpoint=checkpoint)

    assert ecr.layer("demo", DIGEST) == BLOB
    assert layer.parts[0].part.first_byte == 0


def test_starts_over_if_upload_is_empty_at_completion(
    ecr: LocalECR, uploader: LayerUploader, checkpoint: Path
) -> None:
    with pytest.raises(StopUploadError):
        uploader.upload(BLOB, checkpoint=checkpoint, progress=stop_after(45))
    ecr.respond("CompleteLayerUpload", EcrError("EmptyUploadException", "It has no parts"))

    assert len(uploader.upload(BLOB, checkpoint=checkpoint).parts) == 6
    assert ecr.layer("demo", DIGEST) == BLOB


def test_does_not_start_over_if_own_minimum_part_size_is_too_small(ecr: LocalECR) -> None:
    limits = Limits(min_part=2, max_part=3, max_parts=60, max_layer=500)
    uploader = LayerUploader(ecr.client(), "demo", limits=limits, retrying=NO_WAIT)
    with pytest.raises(ServiceError, match="LayerPartTooSmall"):
        uploader.upload(BLOB)
    assert len(ecr.calls_of("InitiateLayerUpload")) == 1


def test_resumes_with_allowed_part_size_if_that_in_checkpoint_is_too_large(
    uploader: LayerUploader, checkpoint: Path
) -> None:
    with pytest.raises(StopUploadError):
        uploader.upload(BLOB, checkpoint=checkpoint, progress=stop_after(16))
    document = json.loads(checkpoint.read_text())
    checkpoint.write_text(json.dumps(document | {"partSize": 10**12}))
    layer = uploader.upload(BLOB, checkpoint=checkpoint)
    assert [sent.part.size for sent in layer.parts] == [16, 13]


def test_detects_file_that_changes_while_it_is_uploaded(
    ecr: LocalECR, uploader: LayerUploader, checkpoint: Path, tmp_path: Path
) -> None:
    path = write_layer(BLOB, tmp_path)

    def truncate(newly_confirmed: int) -> None:
        if newly_confirmed:
            os.truncate(path, 20)

    with pytest.raises(SourceChangedError):
        uploader.upload(path, checkpoint=checkpoint, progress=truncate)
    path.write_bytes(BLOB)
    layer = uploader.upload(path, checkpoint=checkpoint)
    assert ecr.layer("demo", layer.digest) == BLOB


def test_rejects_sources_that_cannot_be_read_again(
    ecr: LocalECR, uploader: LayerUploader, checkpoint: Path, tmp_path: Path
) -> None:
    session = uploader.initiate()
    ecr.calls.clear()
    for make_source in STREAMS.values():
        for resume in ({"checkpoint": checkpoint}, {"session": session}):
            with pytest.raises(ValueError, match="read again"):
                uploader.upload(make_source(BLOB, tmp_path, random.Random(0)), **resume)
    assert ecr.calls == []


# From a session


def test_upload_updates_session_and_resumes_from_any_copy(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    session = uploader.initiate()
    copies: list[str] = []

    def progress(newly_confirmed: int) -> None:
        if newly_confirmed:
            copies.append(session.to_json())
        if session.next_byte == 32:
            raise StopUploadError

    with pytest.raises(StopUploadError):
        uploader.upload(BLOB, session=session, progress=progress)
    assert [json.loads(copy)["lastByteReceived"] for copy in copies] == [7, 15, 23, 31]

    resumed = UploadSession.from_json(copies[1])
    layer = uploader.upload(BLOB, session=resumed)

    assert ecr.layer("demo", layer.digest) == BLOB
    assert resumed.next_byte == 45
    assert part_outcomes(ecr).count("ok") == 6


class InterruptError(BaseException):
    """Raised between two lines of the library, as by a signal handler."""


def test_interrupted_start_mixes_no_two_uploads_in_session() -> None:
    """The session is that of the old upload or of the new one, at whichever line it is left."""
    package = Path(ecr_parts.__file__).parent
    traced = (str(package / "_upload"), str(package / "_model"))
    other, lines = random_bytes(24, seed=1), 0
    seen: set[bool] = set()
    while True:
        lines += 1
        client = ModelClient(Registry(["demo"], limits=SMALL_LIMITS, part_size=8))
        uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
        session = uploader.initiate(layer_digest=digest_of(other), layer_size=24)
        uploader.upload_part(session, other[:8])
        before, lines_left = session.to_json(), lines

        def trace(frame: FrameType, event: str, _argument: object) -> Any:
            nonlocal lines_left
            if not frame.f_code.co_filename.startswith(traced):
                return None
            calls = [operation for operation, _ in client.calls]  # noqa: B023  (same round)
            starting = calls.count("InitiateLayerUpload") == 2
            if event == "line" and starting and calls[-1] == "InitiateLayerUpload":
                lines_left -= 1
                if lines_left == 0:
                    raise InterruptError
            return trace

        trace_before = sys.gettrace()
        sys.settrace(trace)
        try:
            uploader.upload(BLOB, session=session)
            assert lines_left > 0
        except InterruptError:
            pass
        finally:
            sys.settrace(trace_before)
        if lines_left > 0:
            break
        is_new = session.upload_id != json.loads(before)["uploadId"]
        seen.add(is_new)
        if is_new:
            wait_for_threads()  # a part may have been sent already
            assert (session.layer_digest, session.layer_size) == (DIGEST, 45)
            assert session.last_byte_received == -1
        else:
            assert session.to_json() == before
        assert uploader.upload(BLOB, session=session).digest == DIGEST
    assert lines > 20
    assert seen == {True, False}


def test_resumes_session_although_copy_of_it_advanced(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    session = uploader.initiate(layer_digest=DIGEST)
    copy = UploadSession.from_json(session.to_json())
    with pytest.raises(StopUploadError):
        uploader.upload(BLOB, session=copy, progress=stop_after(24))

    uploader.upload(BLOB, session=session)

    assert ecr.layer("demo", DIGEST) == BLOB
    assert part_outcomes(ecr).count("ok") == 6


def test_resumes_session_of_error(ecr: LocalECR, uploader: LayerUploader) -> None:
    ecr.fail("UploadLayerPart", "access_denied", call=4)
    with pytest.raises(ServiceError) as raised:
        uploader.upload(BLOB)

    layer = uploader.upload(BLOB, session=raised.value.session)

    assert [sent.part.first_byte for sent in layer.parts] == [24, 32, 40]
    assert ecr.layer("demo", DIGEST) == BLOB


def test_starts_over_once_if_session_without_digest_is_of_other_layer(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    """Without a digest in the session, only CompleteLayerUpload shows that the layer is another."""
    ecr.fail("UploadLayerPart", "access_denied", call=4)
    with pytest.raises(ServiceError) as raised:
        uploader.upload(BLOB, check_existing=False)
    session = raised.value.session
    assert session is not None
    assert session.layer_digest is None
    other = random_bytes(45, seed=1)

    layer = uploader.upload(other, session=session)

    assert ecr.layer("demo", layer.digest) == other
    assert session.layer_digest == layer.digest
    with pytest.raises(DigestMismatchError):
        uploader.upload(other, session=uploader.initiate(), digest=DIGEST)


def test_starts_over_if_session_has_bytes_of_other_file(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    """If ``digest`` is passed, nothing is hashed, so an upload may have parts of two files."""
    path = write_layer(BLOB, tmp_path)
    session = uploader.initiate(layer_digest=DIGEST)
    uploader.upload_part(session, random_bytes(8, seed=1))
    assert session.next_byte == 8
    layer = uploader.upload(path, digest=DIGEST, session=session)
    assert ecr.layer("demo", layer.digest) == BLOB

    wrong = digest_of(b"other")
    session = uploader.initiate(layer_digest=wrong)
    with pytest.raises(DigestMismatchError):
        uploader.upload(path, digest=wrong, session=session, check_existing=False)


def test_starts_over_if_last_part_of_session_is_too_small(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    session = uploader.initiate(layer_size=45)
    uploader.upload_part(session, BLOB[:8])
    uploader.upload_part(session, BLOB[8:11])
    copy = UploadSession.from_json(session.to_json())
    with pytest.raises(ValueError, match="below the minimum of 4 bytes"):
        uploader.upload_part(copy, BLOB[11:19])

    uploader.upload(BLOB, session=copy)
    assert ecr.layer("demo", DIGEST) == BLOB
    assert [first_byte for first_byte, _ in part_calls(ecr)] == [0, 8, *range(0, 45, 8)]


def test_starts_over_if_rest_does_not_fit_in_parts_that_are_left(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    """As with a checkpoint that says that ECR has more parts than it accepts."""
    session = uploader.initiate(layer_digest=DIGEST, layer_size=45)
    uploader.upload_part(session, BLOB[:16])
    document = json.loads(session.to_json()) | {"partsReceived": 16}
    stored = UploadSession.from_json(json.dumps(document))
    limits = Limits(min_part=4, max_part=16, max_parts=17, max_layer=500)
    with_few_parts = LayerUploader(ecr.client(), "demo", limits=limits, retrying=NO_WAIT)
    layer = with_few_parts.upload(BLOB, session=stored)
    assert ecr.layer("demo", layer.digest) == BLOB
    assert len(ecr.calls_of("InitiateLayerUpload")) == 2


def test_starts_over_if_upload_is_of_a_longer_layer(ecr: LocalECR, uploader: LayerUploader) -> None:
    """A session may have the ID of an upload of someone else's."""
    other = uploader.initiate()
    for first_byte in range(0, 60, 10):
        uploader.upload_part(other, random_bytes(60, seed=1)[first_byte : first_byte + 10])
    session = UploadSession(
        repository_name="demo", upload_id=other.upload_id, part_size=8, layer_size=45
    )
    layer = uploader.upload(BLOB, session=session)
    assert ecr.layer("demo", layer.digest) == BLOB
    assert len(ecr.calls_of("InitiateLayerUpload")) == 2


def test_counts_parts_that_were_larger_than_part_size_of_session() -> None:
    """The same at ECR's scale: ECR proposed 10 MiB for a layer of unknown size, parts had to be
    larger to send 48,000 MiB, and the upload was interrupted at 44,000 MiB."""
    limits = Limits(min_part=4, max_part=10, max_parts=60, max_layer=600)
    blob = random_bytes(590)
    with LocalECR(limits=limits, part_size=8) as ecr:
        uploader = LayerUploader(ecr.client(), "demo", limits=limits, retrying=NO_WAIT)
        session = uploader.initiate()
        ecr.fail("UploadLayerPart", "access_denied", call=51)
        with pytest.raises(ServiceError, match="bytes 500-509"):
            uploader.upload(blob, session=session)
        assert session.part_size == 8
        document_of_earlier_version = json.loads(session.to_json())
        assert document_of_earlier_version.pop("partsReceived") == 50
        del document_of_earlier_version["lastPartSize"]
        resumed = UploadSession.from_json(json.dumps(document_of_earlier_version))
        ecr.fail("UploadLayerPart", "access_denied", call=5)
        with pytest.raises(ServiceError, match="AccessDenied"):
            uploader.upload(blob, session=resumed)

        uploader.upload(blob, session=UploadSession.from_json(resumed.to_json()))
        assert ecr.layer("demo", digest_of(blob)) == blob
        first_bytes = [first for first, outcome in part_calls(ecr) if outcome == "ok"]
        assert first_bytes[:51] == [*range(0, 501, 10)]
        assert len(first_bytes) == 60


def test_rejects_session_with_checkpoint_or_of_other_repository(
    ecr: LocalECR, uploader: LayerUploader, checkpoint: Path
) -> None:
    session = uploader.initiate()
    with pytest.raises(ValueError, match="pass session or checkpoint, not both"):
        uploader.upload(BLOB, session=session, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="session must be for repository"):
        LayerUploader(ecr.client(), "other").upload(BLOB, session=session)


# With every way in which ECR may list missing layers


@pytest.mark.parametrize("missing_layers", ["failures", "layers", "failures alone"])
def test_detects_missing_layer_however_ecr_lists_it(missing_layers: Any) -> None:
    unknowns = Unknowns(missing_layers=missing_layers)
    with LocalECR(limits=SMALL_LIMITS, part_size=8, unknowns=unknowns) as ecr:
        uploader = LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
        assert uploader.missing([DIGEST]) == {DIGEST}
        assert not uploader.upload(BLOB).existed
        assert uploader.upload(BLOB).existed


# Several threads or processes


def test_uploaders_may_share_client_and_checkpoint(
    ecr: LocalECR, checkpoint: Path, tmp_path: Path
) -> None:
    path = write_layer(BLOB, tmp_path)
    client = ecr.client()
    barrier = threading.Barrier(4)

    def upload(_number: int) -> UploadedLayer:
        barrier.wait()
        uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
        return uploader.upload(path, checkpoint=checkpoint, check_existing=False)

    with ThreadPoolExecutor(4) as pool:
        layers = list(pool.map(upload, range(4)))
    assert {layer.digest for layer in layers} == {DIGEST}
    assert ecr.layer("demo", DIGEST) == BLOB
    assert len(ecr.calls) < 100


UPLOADING_PROCESS = """
import sys
from ecr_parts import LayerUploader, Limits, default_retrying
from ecr_parts.testing import LocalECR

url, path, checkpoint = sys.argv[1:]
client = LocalECR().client(endpoint_url=url)
limits = Limits(min_part=4, max_part=16, max_parts=10_000, max_layer=100_000)
retrying = default_retrying().copy(sleep=lambda seconds: None)
uploader = LayerUploader(client, "demo", limits=limits, retrying=retrying)
print("ready", flush=True)
layer = uploader.upload(path, checkpoint=checkpoint, progress=lambda n: print(n, flush=True))
print(layer.digest, flush=True)
"""


def run_and_kill(ecr: LocalECR, path: Path, checkpoint: Path, rng: random.Random) -> str:
    """Run an upload in a process, kill it after a random number of lines, return the last line."""
    arguments = [ecr.endpoint_url, str(path), str(checkpoint)]
    command = [sys.executable, "-c", UPLOADING_PROCESS, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = ""
        for _ in range(rng.randint(1, 30)):
            line = process.stdout.readline().strip() or line
        process.send_signal(signal.SIGKILL)
    return line


def check_repeated_kills(
    kills: int, parts: int, seed: int, tmp_path: Path, checkpoint: Path
) -> None:
    """Kill the process of an upload ``kills`` times, then complete the upload."""
    rng = random.Random(seed)
    blob = random_bytes(parts * 8, seed)
    path = write_layer(blob, tmp_path)
    saved_offsets: list[int] = []
    with LocalECR(limits=MANY_PARTS, part_size=8) as ecr:
        for _ in range(kills):
            last_line = run_and_kill(ecr, path, checkpoint, rng)
            assert not last_line.startswith("sha256:"), "it completed: increase ``parts``"
            if checkpoint.exists():
                saved_offsets.append(json.loads(checkpoint.read_text())["lastByteReceived"])
        assert saved_offsets == sorted(saved_offsets)
        assert len(set(saved_offsets)) > kills // 2  # most processes confirmed a part
        # Only the part that was in flight when the process was killed may be refused.
        assert part_outcomes(ecr).count("InvalidLayerPartException") <= kills
        uploader = LayerUploader(ecr.client(), "demo", limits=MANY_PARTS, retrying=NO_WAIT)
        assert uploader.upload(path, checkpoint=checkpoint).digest == digest_of(blob)
        assert ecr.layer("demo", digest_of(blob)) == blob
        stored = [first_byte for first_byte, outcome in part_calls(ecr) if outcome == "ok"]
        # A process may be killed before it saves its first checkpoint. The next one then starts
        # another upload, so only the last upload counts: it has each part once.
        last_start = len(stored) - stored[::-1].index(0) - 1
        assert stored[last_start:] == list(range(0, len(blob), 8))


@pytest.mark.skipif(os.name != "posix", reason="requires SIGKILL")
def test_resumes_after_repeated_kills(tmp_path: Path, checkpoint: Path) -> None:
    check_repeated_kills(5, 100, 1, tmp_path, checkpoint)


@pytest.mark.soak
def test_resumes_after_two_hundred_kills(tmp_path: Path, checkpoint: Path) -> None:
    check_repeated_kills(200, 4_000, 2, tmp_path, checkpoint)
