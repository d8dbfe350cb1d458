"""The upload of one layer, and how it recovers from everything ECR or the network may do.

``test_session.py`` has the decisions without I/O, ``test_resume.py`` resuming in a later call.
"""

from __future__ import annotations

import copy
import hashlib
import io
import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import tenacity
from botocore.config import Config
from helpers import (
    NO_WAIT,
    OPERATIONS,
    SMALL_LIMITS,
    SOURCES,
    STREAMS,
    digest_of,
    random_bytes,
    write_layer,
)
from pytest_mock import MockerFixture

from ecr_parts import (
    CLIENT_CONFIG,
    DigestMismatchError,
    LayerUploader,
    Limits,
    Part,
    ServiceError,
    SourceChangedError,
    UnexpectedResponseError,
    UploadedLayer,
    UploadLostError,
)
from ecr_parts.testing import Call, EcrError, Fault, LocalECR, Unknowns

BLOB = random_bytes(45)  # six parts of 8 bytes, the last of 5
DIGEST = digest_of(BLOB)
FIRST_BYTES = [0, 8, 16, 24, 32, 40]  # of its parts


def lose_bytes_once(ecr: LocalECR, *, parts_sent: int, size_left: int) -> Callable[[int], None]:
    """A progress callback: once ECR has ``parts_sent`` parts, it loses all but ``size_left`` bytes.

    There must be one upload only, of ``BLOB`` in parts of 8 bytes.
    """
    lost = False

    def progress(_n: int) -> None:
        nonlocal lost
        if len(ecr.calls_of("UploadLayerPart")) == parts_sent and not lost:
            lost = True
            (upload,) = ecr.registry.repositories["demo"].uploads.values()
            left = BLOB[:size_left]
            upload.blobs = [left[first : first + 8] for first in range(0, size_left, 8)]
            upload.size, upload.hash = size_left, hashlib.sha256(left)

    return progress


# Faults and retries


@pytest.mark.parametrize("kind", ["path", "unseekable"])
@pytest.mark.parametrize(
    "fault",
    [
        "request_lost", "answer_lost", "reset", "throttled", "server_error", "html_503",
        "answer_cut", "answer_garbled",
    ],
)  # fmt: skip
@pytest.mark.parametrize("operation", OPERATIONS)
def test_recovers_from_each_fault_of_each_call(
    kind: str, fault: Fault, operation: str, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    ecr.fail(operation, fault, call=1, times=2)
    if operation == "UploadLayerPart":
        ecr.fail(operation, fault, call=6, times=2)

    layer = uploader.upload(SOURCES[kind](BLOB, tmp_path, random.Random(0)), digest=DIGEST, size=45)

    assert ecr.layer("demo", DIGEST) == BLOB
    assert layer == UploadedLayer(DIGEST, 45, existed=False)


@pytest.mark.parametrize("stored", ["nothing", "fragment"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_recovers_from_connection_broken_within_request(
    stored: Literal["nothing", "fragment"], operation: str, tmp_path: Path
) -> None:
    blob = random_bytes(4500)  # in parts so large that the middle of a request is in the blob
    limits = Limits(min_part=100, max_part=1600, max_parts=60, max_layer=50_000)
    unknowns = Unknowns(broken_part=stored)
    with LocalECR(limits=limits, part_size=800, unknowns=unknowns) as ecr:
        uploader = LayerUploader(ecr.client(), "demo", limits=limits, retrying=NO_WAIT)
        ecr.fail(operation, "reset", call=1, times=2)

        layer = uploader.upload(write_layer(blob, tmp_path))

        assert ecr.layer("demo", layer.digest) == blob
        first_part = ecr.registry.repositories["demo"].layers[layer.digest].blobs[0]
        fragment_expected = stored == "fragment" and operation == "UploadLayerPart"
        assert (100 < len(first_part) < 800) == fragment_expected


def test_read_timeout_counts_as_lost_answer() -> None:
    with LocalECR(limits=SMALL_LIMITS, part_size=8, slow=60) as ecr:
        ecr.fail("UploadLayerPart", "slow", call=2)
        # The other calls need milliseconds. This is enough for them on a loaded machine, too.
        client = ecr.client(config=CLIENT_CONFIG.merge(Config(proxies={}, read_timeout=0.5)))

        layer = LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT).upload(BLOB)

        assert ecr.layer("demo", DIGEST) == BLOB
        assert [sent.attempts for sent in layer.parts] == [1, 2, 1, 1, 1, 1]


def test_refusal_of_resent_part_counts_as_success(ecr: LocalECR, uploader: LayerUploader) -> None:
    """The refusal of the second attempt reports that ECR has the part."""
    ecr.fail("UploadLayerPart", "answer_lost", call=2)

    layer = uploader.upload(BLOB, digest=DIGEST)

    assert ecr.calls_of("UploadLayerPart")[1:4] == [
        Call("UploadLayerPart", 8, 15, "answer_lost"),
        Call("UploadLayerPart", 8, 15, "InvalidLayerPartException"),
        Call("UploadLayerPart", 16, 23, "ok"),
    ]
    assert [sent.attempts for sent in layer.parts] == [1, 2, 1, 1, 1, 1]


def test_error_after_last_retry_describes_call_and_carries_session(ecr: LocalECR) -> None:
    ecr.fail("UploadLayerPart", "throttled", call=2, times=100)
    retrying = NO_WAIT.copy(stop=tenacity.stop_after_attempt(3))
    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS, retrying=retrying)

    with pytest.raises(
        ServiceError,
        match=r"^UploadLayerPart in repository 'demo', bytes 8-15 failed after 3 attempts: "
        r"ThrottlingException: Rate exceeded\. ",
    ) as raised:
        uploader.upload(BLOB)

    assert raised.value.code == "ThrottlingException"
    assert raised.value.repository_name == "demo"
    assert raised.value.request_id == f"local-{len(ecr.calls)}"
    assert raised.value.__cause__ is not None
    assert raised.value.session is not None
    assert raised.value.session.last_byte_received == 7
    assert len(raised.value.parts) == 1


@pytest.mark.parametrize(
    "retries",
    [
        {"mode": "legacy", "max_attempts": 4},
        {"mode": "standard", "total_max_attempts": 3},
        {"mode": "adaptive", "total_max_attempts": 2},
    ],
    ids=lambda retries: retries["mode"],
)
@pytest.mark.parametrize("fault", ["answer_lost", "reset"])
def test_works_with_retries_of_botocore(
    retries: Any, fault: Fault, ecr: LocalECR, mocker: MockerFixture
) -> None:
    mocker.patch("time.sleep")  # botocore's own waits
    client = ecr.client(config=Config(proxies={}, retries=retries))
    for operation in ("InitiateLayerUpload", "UploadLayerPart", "CompleteLayerUpload"):
        ecr.fail(operation, fault)

    layer = LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT).upload(BLOB)

    assert layer.digest == DIGEST
    assert ecr.layer("demo", DIGEST) == BLOB


def test_creating_client_does_not_change_client_config(ecr: LocalECR) -> None:
    before = copy.deepcopy(vars(CLIENT_CONFIG))
    ecr.client(config=CLIENT_CONFIG)
    assert vars(CLIENT_CONFIG) == before
    assert before["retries"] == {"mode": "standard", "total_max_attempts": 1}


# Fragments and rewinds


def test_continues_after_stored_fragment(ecr: LocalECR, uploader: LayerUploader) -> None:
    ecr.fail("UploadLayerPart", "stored_in_part", call=2)

    layer = uploader.upload(BLOB, digest=DIGEST)

    assert ecr.layer("demo", DIGEST) == BLOB
    assert [sent.part for sent in layer.parts] == [
        Part(0, 7), Part(8, 11), Part(12, 19), Part(20, 27), Part(28, 35), Part(36, 43),
        Part(44, 44),
    ]  # fmt: skip


def test_starts_over_after_fragment_below_minimum(ecr: LocalECR) -> None:
    limits = Limits(min_part=5, max_part=16, max_parts=60, max_layer=500)
    uploader = LayerUploader(ecr.client(), "demo", limits=limits, retrying=NO_WAIT)
    ecr.fail("UploadLayerPart", "stored_in_part", call=2)

    uploader.upload(BLOB, digest=DIGEST)

    assert len(ecr.calls_of("InitiateLayerUpload")) == 2
    assert ecr.layer("demo", DIGEST) == BLOB


def test_rewinds_when_ecr_loses_confirmed_part(
    ecr: LocalECR, sequential_uploader: LayerUploader, tmp_path: Path
) -> None:
    progress = lose_bytes_once(ecr, parts_sent=3, size_left=8)

    layer = sequential_uploader.upload(write_layer(BLOB, tmp_path), progress=progress)

    assert ecr.layer("demo", DIGEST) == BLOB
    assert [sent.part.first_byte for sent in layer.parts] == FIRST_BYTES


def test_stream_is_lost_if_ecr_loses_confirmed_part(
    ecr: LocalECR, sequential_uploader: LayerUploader
) -> None:
    progress = lose_bytes_once(ecr, parts_sent=3, size_left=8)

    with pytest.raises(UploadLostError, match=r"bytes 24-31: ECR no longer has .* byte 7\)"):
        sequential_uploader.upload([BLOB], progress=progress)


def test_starts_over_if_rewind_left_fragment_below_minimum(
    ecr: LocalECR, sequential_uploader: LayerUploader
) -> None:
    """ECR does not refuse the parts after such a fragment, only the completion."""
    progress = lose_bytes_once(ecr, parts_sent=4, size_left=18)

    layer = sequential_uploader.upload(BLOB, progress=progress)

    assert Call("UploadLayerPart", 18, 25, "ok") in ecr.calls
    assert ecr.layer("demo", DIGEST) == BLOB
    assert len(ecr.calls_of("InitiateLayerUpload")) == 2
    assert [sent.part.first_byte for sent in layer.parts] == FIRST_BYTES


def test_gives_up_on_service_that_rewinds_repeatedly() -> None:
    class RewindingClient:
        """Confirms one part more each time, and then reports that it has nothing."""

        def __init__(self) -> None:
            self.requests = 0
            self.furthest_byte = -1

        def batch_check_layer_availability(self, **_: object) -> dict[str, object]:
            return {"layers": []}

        def initiate_layer_upload(self, **_: object) -> dict[str, object]:
            return {"uploadId": "u-1", "partSize": 8}

        def upload_layer_part(self, **part: Any) -> dict[str, object]:
            self.requests += 1
            if part["partLastByte"] > self.furthest_byte + 8:
                self.furthest_byte += 8
                return {"lastByteReceived": -1}
            return {"lastByteReceived": part["partLastByte"]}

        def complete_layer_upload(self, **_: object) -> dict[str, object]:
            return {}

    client = RewindingClient()
    with pytest.raises(UnexpectedResponseError, match="keeps answering without progress"):
        LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT).upload(
            random_bytes(480)
        )
    assert client.requests < 40


# Lost uploads


def test_starts_over_up_to_three_times(ecr: LocalECR, uploader: LayerUploader) -> None:
    ecr.fail("UploadLayerPart", "upload_forgotten", call=2)
    ecr.fail("UploadLayerPart", "upload_forgotten", call=5)
    ecr.fail("CompleteLayerUpload", "upload_forgotten", call=1)

    layer = uploader.upload(BLOB, digest=DIGEST)

    assert len(ecr.calls_of("InitiateLayerUpload")) == 4
    assert ecr.layer("demo", DIGEST) == BLOB
    assert [sent.part.first_byte for sent in layer.parts] == FIRST_BYTES


def test_raises_if_upload_is_lost_every_time(ecr: LocalECR, uploader: LayerUploader) -> None:
    ecr.fail("UploadLayerPart", "upload_forgotten", call=2, times=100)

    with pytest.raises(UploadLostError, match="UploadNotFoundException") as raised:
        uploader.upload(BLOB, digest=DIGEST)

    assert len(ecr.calls_of("InitiateLayerUpload")) == 4
    assert raised.value.session is not None
    assert raised.value.operation == "UploadLayerPart"


def test_error_for_lost_stream_carries_session_and_parts(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    ecr.fail("UploadLayerPart", "upload_forgotten", call=3)

    with pytest.raises(UploadLostError, match="bytes 16-23") as raised:
        uploader.upload(iter([BLOB]))

    assert raised.value.session is not None
    assert raised.value.session.next_byte == 16
    assert [sent.part for sent in raised.value.parts] == [Part(0, 7), Part(8, 15)]


def test_stream_starts_over_if_nothing_was_confirmed(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    ecr.fail("UploadLayerPart", "upload_forgotten", call=1)

    uploader.upload(iter([BLOB]))

    assert ecr.layer("demo", DIGEST) == BLOB


def test_does_not_start_over_if_someone_else_completed_layer(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    def progress(n: int) -> None:
        if n == 8 and not ecr.registry.repositories["demo"].layers:
            LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS).upload(BLOB)
            ecr.fail("UploadLayerPart", "upload_forgotten")

    layer = uploader.upload(BLOB, digest=DIGEST, check_existing=False, progress=progress)

    assert layer.existed
    assert len(ecr.calls_of("InitiateLayerUpload")) == 2  # this upload, and the other one


def test_starts_over_although_archived_layer_exists(ecr: LocalECR, uploader: LayerUploader) -> None:
    uploader.upload(BLOB)
    ecr.registry.repositories["demo"].layers[DIGEST].status = "ARCHIVED"
    ecr.fail("UploadLayerPart", "upload_forgotten", call=3)

    with pytest.raises(ServiceError, match="If it is archived, restore its image"):
        uploader.upload(BLOB)

    assert len(ecr.calls_of("InitiateLayerUpload")) == 3


@pytest.mark.parametrize("again", ["UploadNotFoundException", "LayerAlreadyExistsException"])
def test_archived_layer_does_not_prove_that_a_lost_complete_succeeded(again: Any) -> None:
    """It may have been archived before, and cannot be pulled."""
    unknowns = Unknowns(completed_again=again)
    with LocalECR(limits=SMALL_LIMITS, part_size=8, unknowns=unknowns) as ecr:
        uploader = LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
        uploader.upload(BLOB)
        ecr.registry.repositories["demo"].layers[DIGEST].status = "ARCHIVED"
        ecr.fail("CompleteLayerUpload", "request_lost", times=100)
        with pytest.raises(ServiceError, match="CompleteLayerUpload"):
            uploader.upload(BLOB)
        assert uploader.missing([DIGEST]) == {DIGEST}


def test_lost_stream_does_not_match_existing_layer_smaller_than_sent_bytes(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    smaller = {"layerDigest": DIGEST, "layerAvailability": "AVAILABLE", "layerSize": 5}
    ecr.fail("UploadLayerPart", "upload_forgotten", call=3)
    ecr.respond("BatchCheckLayerAvailability", {"layers": [smaller]}, call=2, times=100)

    with pytest.raises(UploadLostError):
        uploader.upload(iter([BLOB]), digest=DIGEST)

    assert len(ecr.calls_of("BatchCheckLayerAvailability")) == 2


# Completion


@pytest.mark.parametrize(
    "second_answer", ["UploadNotFoundException", "LayerAlreadyExistsException"]
)
@pytest.mark.parametrize("lag", [0, 3])
@pytest.mark.parametrize("fault", ["answer_lost", "answer_cut", "answer_garbled"])
def test_finds_layer_completed_by_unanswered_call(
    second_answer: Literal["UploadNotFoundException", "LayerAlreadyExistsException"],
    lag: int,
    fault: Fault,
) -> None:
    unknowns = Unknowns(completed_again=second_answer, availability_lag=lag)
    with LocalECR(limits=SMALL_LIMITS, part_size=8, unknowns=unknowns) as ecr:
        ecr.fail("CompleteLayerUpload", fault)
        uploader = LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)

        layer = uploader.upload(iter([BLOB]))

        assert not layer.existed  # before this upload
        assert ecr.layer("demo", DIGEST) == BLOB


def test_existed_is_false_if_own_unanswered_call_completed_layer() -> None:
    unknowns = Unknowns(completed_again="LayerAlreadyExistsException")
    with LocalECR(limits=SMALL_LIMITS, part_size=8, unknowns=unknowns) as ecr:
        ecr.fail("CompleteLayerUpload", "answer_lost")
        uploader = LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)

        assert not uploader.upload(BLOB).existed


def test_finds_completed_layer_after_last_retry(ecr: LocalECR, uploader: LayerUploader) -> None:
    ecr.fail("CompleteLayerUpload", "answer_lost")
    ecr.fail("CompleteLayerUpload", "html_503", call=2, times=100)

    assert uploader.upload(BLOB, check_existing=False).digest == DIGEST


def test_raises_error_of_complete_if_availability_check_fails(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    ecr.fail("CompleteLayerUpload", "html_503", times=100)
    ecr.fail("BatchCheckLayerAvailability", "access_denied", times=100)

    with pytest.raises(ServiceError, match="503") as raised:
        uploader.upload(iter([BLOB]))

    assert raised.value.operation == "CompleteLayerUpload"


def test_raises_refusal_of_complete_although_archived_layer_exists(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    uploader.upload(BLOB)
    ecr.registry.repositories["demo"].layers[DIGEST].status = "ARCHIVED"
    ecr.fail("CompleteLayerUpload", "access_denied")

    with pytest.raises(ServiceError, match="AccessDenied"):
        uploader.upload(BLOB)


def test_wrong_digest_raises_digest_mismatch_error(ecr: LocalECR, uploader: LayerUploader) -> None:
    with pytest.raises(DigestMismatchError, match="None of the provided layer digests") as raised:
        uploader.upload(BLOB, digest=digest_of(b"other"))

    assert raised.value.session is not None
    assert ecr.registry.repositories["demo"].layers == {}


# Sources that change or fail during the upload


def test_never_completes_file_that_changes_during_upload(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    path = write_layer(BLOB, tmp_path)

    def progress(n: int) -> None:
        if n == 8:
            with path.open("ab") as file:
                file.write(b"more")

    with pytest.raises(SourceChangedError, match=r"layer\.tar\.gz") as raised:
        uploader.upload(path, progress=progress)

    assert ecr.calls_of("CompleteLayerUpload") == []
    assert raised.value.session is not None


@pytest.mark.parametrize("method", ["upload", "upload_many"])
def test_raises_if_file_shrinks_while_it_is_hashed(
    method: str, ecr: LocalECR, tmp_path: Path
) -> None:
    uploader = LayerUploader(ecr.client(), "demo", retrying=NO_WAIT)
    path = write_layer(random_bytes(3 * 1024**2), tmp_path)  # files are hashed 1 MiB at a time
    upload: Any = partial(uploader.upload, path)
    if method == "upload_many":
        upload = partial(uploader.upload_many, [path])

    with pytest.raises(SourceChangedError, match=r"ended after .* of 3,145,728 bytes"):
        upload(progress=lambda _n: os.truncate(path, 100))

    assert ecr.calls == []


@pytest.mark.parametrize("kind", STREAMS)
def test_never_completes_stream_that_ends_before_its_size(
    kind: str, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    with pytest.raises(SourceChangedError, match="46 bytes"):
        uploader.upload(STREAMS[kind](BLOB, tmp_path, random.Random(0)), size=46)
    assert ecr.calls_of("CompleteLayerUpload") == []


@pytest.mark.parametrize("kind", ["chunks", "list", "bytearrays", "memoryviews"])
def test_never_completes_iterable_that_continues_past_its_size(
    kind: str, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    """What follows the layer in a file object is not read: it may belong to someone else."""
    with pytest.raises(SourceChangedError, match="more than 44 bytes, the size that was passed"):
        uploader.upload(STREAMS[kind](BLOB, tmp_path, random.Random(0)), size=44)
    assert ecr.calls_of("CompleteLayerUpload") == []


def test_exception_from_source_ends_upload(ecr: LocalECR, uploader: LayerUploader) -> None:
    def items() -> Iterator[bytes]:
        yield BLOB[:20]
        raise ConnectionError("the producer died")

    with pytest.raises(ConnectionError, match="the producer died"):
        uploader.upload(items())

    assert ecr.calls_of("CompleteLayerUpload") == []


def test_counts_restarts_of_each_call_from_zero(ecr: LocalECR, uploader: LayerUploader) -> None:
    ecr.fail("UploadLayerPart", "upload_forgotten", call=2, times=100)
    with pytest.raises(UploadLostError) as raised:
        uploader.upload(BLOB)
    session = raised.value.session
    assert len(ecr.calls_of("InitiateLayerUpload")) == 4

    with LocalECR(limits=SMALL_LIMITS, part_size=8) as second:
        other = LayerUploader(second.client(), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
        second.fail("UploadLayerPart", "upload_forgotten", call=2)
        assert not other.upload(b"other" + BLOB, session=session).existed
        assert len(second.calls_of("InitiateLayerUpload")) == 2


def test_starts_over_after_small_fragment_although_parts_were_sent_repeatedly(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    nothing_stored = EcrError("InvalidLayerPartException", "first byte", lastValidByteReceived=-1)
    small_fragment = EcrError("InvalidLayerPartException", "first byte", lastValidByteReceived=2)
    ecr.respond("UploadLayerPart", nothing_stored, times=5)
    ecr.respond("UploadLayerPart", small_fragment, call=6)
    assert uploader.upload(BLOB).digest == DIGEST
    assert len(ecr.calls_of("InitiateLayerUpload")) == 2


@pytest.mark.parametrize("kind", ["file", "path"])
def test_source_that_shrinks_and_grows_again_is_not_called_too_large(
    kind: str, uploader: LayerUploader, tmp_path: Path
) -> None:
    path = write_layer(BLOB, tmp_path)
    reads = 0

    class File(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            nonlocal reads
            reads += 1
            return b"" if reads == 4 else super().read(size)

    def truncate(newly_confirmed: int) -> None:
        if newly_confirmed:
            path.write_bytes(BLOB[:16])

    source = File(BLOB) if kind == "file" else path
    with pytest.raises(SourceChangedError, match="ended after"):
        uploader.upload(source, check_existing=False, progress=truncate if kind == "path" else None)
