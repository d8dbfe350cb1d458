"""The uploader over real HTTP, with a real botocore client, against LocalECR."""

from __future__ import annotations

import copy
import hashlib
import io
import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tenacity
from botocore.config import Config
from helpers import (
    OPERATIONS,
    PATIENT,
    REPLAYABLE,
    SMALL,
    SOURCES,
    STREAMS,
    BareReader,
    Unseekable,
    bytes_of,
    chunks_of,
    digest_of,
    path_to,
)

from ecr_parts import (
    CLIENT_CONFIG,
    DigestMismatchError,
    EmptyLayerError,
    LayerTooLargeError,
    LayerUploader,
    Limits,
    Part,
    ServiceError,
    SourceChangedError,
    UnexpectedResponseError,
    UploadedLayer,
    UploadLostError,
    UploadSession,
    default_retrying,
)
from ecr_parts.testing import LocalECR, Unknowns
from ecr_parts.testing._registry import Layer

BLOB = bytes_of(45)  # six parts of 8 bytes, the last of 5
DIGEST = digest_of(BLOB)


def operations(ecr: LocalECR) -> list[str]:
    return [call.operation for call in ecr.calls]


def sent(ecr: LocalECR) -> list[tuple[int | None, int | None, str]]:
    return [
        (call.first_byte, call.last_byte, call.outcome)
        for call in ecr.calls
        if call.operation == "UploadLayerPart"
    ]


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_source_arrives_whole(
    kind: str, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    heard: list[int] = []

    layer = uploader.upload(SOURCES[kind](BLOB, tmp_path, random.Random(0)), progress=heard.append)

    assert layer == UploadedLayer(DIGEST, 45, existed=False)
    assert ecr.layer("demo", DIGEST) == BLOB
    assert sum(heard) == 45
    assert [part.part for part in layer.parts] == [
        Part(first, min(first + 7, 44)) for first in range(0, 45, 8)
    ]
    assert {part.attempts for part in layer.parts} == {1}
    assert all(part.seconds >= 0 for part in layer.parts)


def test_the_result_makes_a_descriptor(uploader: LayerUploader) -> None:
    layer = uploader.upload(BLOB)

    media_type = "application/vnd.oci.image.layer.v1.tar+gzip"
    assert layer.descriptor(media_type) == {"mediaType": media_type, "digest": DIGEST, "size": 45}
    assert "parts" not in repr(layer)


def test_what_ecr_has_is_not_sent(ecr: LocalECR, uploader: LayerUploader, tmp_path: Path) -> None:
    uploader.upload(BLOB)
    ecr.calls.clear()
    heard: list[int] = []

    for source, digest in (
        (path_to(BLOB, tmp_path), None),
        (BareReader(BLOB), DIGEST),
        (iter([BLOB]), DIGEST),
    ):
        layer = uploader.upload(source, digest=digest, progress=heard.append)
        assert layer == UploadedLayer(DIGEST, 45, existed=True)
        assert layer.parts == ()

    assert operations(ecr) == ["BatchCheckLayerAvailability"] * 3
    assert sum(heard) == 3 * 45


def test_a_stream_without_a_digest_is_sent_and_found_to_exist(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    uploader.upload(BLOB)

    assert uploader.upload(iter([BLOB])) == UploadedLayer(DIGEST, 45, existed=True)


def test_a_part_is_hashed_before_the_next_is_read_over_it(
    uploader: LayerUploader, tmp_path: Path, mocker: Any
) -> None:
    """A file is read into one buffer for all parts."""
    from ecr_parts._sources import RunningDigest, _RegularFile

    feed, read = RunningDigest.feed, _RegularFile._read_all
    hashed = reads = 0

    def feed_slowly(self: Any, first_byte: int, blob: Any) -> None:
        nonlocal hashed
        for _ in range(1_000_000):
            pass
        feed(self, first_byte, blob)
        hashed += 1

    def watched(self: Any, size: int) -> Any:
        nonlocal reads
        assert hashed == max(0, reads - 1)  # the first read looks whether there is a byte
        reads += 1
        return read(self, size)

    mocker.patch.object(RunningDigest, "feed", feed_slowly)
    mocker.patch.object(_RegularFile, "_read_all", watched)
    layer = uploader.upload(path_to(BLOB, tmp_path), check_existing=False)
    assert layer.digest == DIGEST
    assert reads == 7


def test_without_check_existing_a_file_is_read_once(uploader: LayerUploader) -> None:
    class Counting(io.BytesIO):
        bytes_read = 0

        def read(self, size: int | None = -1, /) -> bytes:
            blob = super().read(size)
            self.bytes_read += len(blob)
            return blob

    once, twice = Counting(BLOB), Counting(BLOB)
    uploader.upload(once, check_existing=False)
    uploader.upload(twice)

    assert once.bytes_read == 45 + 1  # one byte ahead, to see that there is one
    assert twice.bytes_read == 45 + 1


def test_a_layer_of_another_size_is_no_match(ecr: LocalECR, uploader: LayerUploader) -> None:
    uploader.upload(BLOB)
    ecr.registry.repositories["demo"].layers[DIGEST].size = 44

    with pytest.raises(ServiceError, match="LayerAlreadyExists"):
        uploader.upload(BLOB)


def test_an_archived_layer_is_sent_again(ecr: LocalECR, uploader: LayerUploader) -> None:
    uploader.upload(BLOB)
    ecr.registry.repositories["demo"].layers[DIGEST].status = "ARCHIVED"
    ecr.calls.clear()

    assert uploader.missing([DIGEST]) == {DIGEST}
    assert uploader.upload(BLOB).existed  # as Complete says, and the archive settles
    assert "UploadLayerPart" in operations(ecr)


def test_progress_beats_while_hashing_and_before_each_attempt(uploader: LayerUploader) -> None:
    heard: list[int] = []

    uploader.upload(BLOB, progress=heard.append)

    hashing, asking, beginning, completing = [0], [0], [0], [0]
    sending = [0, 8] * 5 + [0, 5]
    assert heard == hashing + asking + beginning + sending + completing


def test_progress_falls_when_an_upload_starts_over(ecr: LocalECR, uploader: LayerUploader) -> None:
    ecr.fail("UploadLayerPart", "upload_forgotten", call=3)
    heard: list[int] = []

    uploader.upload(BLOB, progress=heard.append)

    assert [n for n in heard if n] == [8, 8, -16, 8, 8, 8, 8, 8, 5]


@pytest.mark.parametrize("call", range(1, 12))
def test_what_progress_raises_ends_the_upload(
    call: int, ecr: LocalECR, uploader: LayerUploader
) -> None:
    class EnoughError(ValueError):
        """One that the library itself might catch."""

    heard = 0

    def progress(_n: int) -> None:
        nonlocal heard
        heard += 1
        if heard == call:
            raise EnoughError

    with pytest.raises(EnoughError):
        uploader.upload(BLOB, progress=progress)

    assert heard == call


def test_keyboard_interrupt_passes_from_a_wait(ecr: LocalECR) -> None:
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    ecr.fail("UploadLayerPart", "throttled")
    retrying = default_retrying().copy(sleep=interrupt)
    with pytest.raises(KeyboardInterrupt):
        LayerUploader(ecr.client(), "demo", retrying=retrying).upload(BLOB)


@pytest.mark.parametrize("kind", ["path", "unseekable"])
@pytest.mark.parametrize(
    "fault",
    [
        "request_lost", "answer_lost", "reset", "throttled", "server_error", "html_503",
        "answer_cut", "answer_garbled",
    ],
)  # fmt: skip
@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_fault_of_each_call_is_got_over(
    kind: str, fault: Any, operation: str, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    ecr.fail(operation, fault, call=1, times=2)
    if operation == "UploadLayerPart":
        ecr.fail(operation, fault, call=6, times=2)

    layer = uploader.upload(SOURCES[kind](BLOB, tmp_path, random.Random(0)), digest=DIGEST, size=45)

    assert ecr.layer("demo", DIGEST) == BLOB
    assert layer == UploadedLayer(DIGEST, 45, existed=False)


@pytest.mark.parametrize("kept", ["nothing", "fragment"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_connection_that_breaks_in_the_middle_of_a_request(
    kept: Any, operation: str, tmp_path: Path
) -> None:
    blob = bytes_of(4500)  # parts so large that half of the request is within the blob
    limits = Limits(min_part=100, max_part=1600, max_parts=60, max_layer=50_000)
    unknowns = Unknowns(broken_part=kept)
    with LocalECR(limits=limits, part_size=800, unknowns=unknowns) as ecr:
        uploader = LayerUploader(ecr.client(), "demo", limits=limits, retrying=PATIENT)
        ecr.fail(operation, "reset", call=1, times=2)
        layer = uploader.upload(path_to(blob, tmp_path))
        assert ecr.layer("demo", layer.digest) == blob
        broke_off = ecr.registry.repositories["demo"].layers[layer.digest].blobs[0]
        fragment = kept == "fragment" and operation == "UploadLayerPart"
        assert (100 < len(broke_off) < 800) == fragment


def test_a_part_ecr_has_is_not_sent_a_third_time(ecr: LocalECR, uploader: LayerUploader) -> None:
    ecr.fail("UploadLayerPart", "answer_lost", call=2)

    layer = uploader.upload(BLOB, digest=DIGEST)

    assert sent(ecr)[1:4] == [
        (8, 15, "answer_lost"),
        (8, 15, "InvalidLayerPartException"),
        (16, 23, "ok"),
    ]
    assert [part.attempts for part in layer.parts] == [1, 2, 1, 1, 1, 1]


def test_a_fragment_is_gone_on_from(ecr: LocalECR, uploader: LayerUploader) -> None:
    ecr.fail("UploadLayerPart", "stored_in_part", call=2)

    layer = uploader.upload(BLOB, digest=DIGEST)

    assert ecr.layer("demo", DIGEST) == BLOB
    assert [part.part for part in layer.parts] == [
        Part(0, 7), Part(8, 11), Part(12, 19), Part(20, 27), Part(28, 35), Part(36, 43),
        Part(44, 44),
    ]  # fmt: skip


def test_a_fragment_under_the_minimum_starts_over(ecr: LocalECR) -> None:
    limits = Limits(min_part=5, max_part=16, max_parts=60, max_layer=500)
    uploader = LayerUploader(ecr.client(), "demo", limits=limits, retrying=PATIENT)
    ecr.fail("UploadLayerPart", "stored_in_part", call=2)

    uploader.upload(BLOB, digest=DIGEST)

    assert operations(ecr).count("InitiateLayerUpload") == 2
    assert ecr.layer("demo", DIGEST) == BLOB


@pytest.mark.parametrize("kind", ["path", "list"])
def test_an_ecr_that_loses_a_part_it_had(
    kind: str, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    """What can be read again is sent again from there; a stream cannot."""
    lost = False

    def progress(_n: int) -> None:
        nonlocal lost
        for upload in ecr.registry.repositories["demo"].uploads.values():
            if len(upload.blobs) == 3 and not lost:
                lost = True
                del upload.blobs[1:]
                upload.size, upload.hash = 8, hashlib.sha256(BLOB[:8])

    source = SOURCES[kind](BLOB, tmp_path, random.Random(0))
    if kind == "list":
        with pytest.raises(UploadLostError, match=r"bytes 24-31, attempt 1: ECR .* up to byte 7: "):
            uploader.upload(source, progress=progress)
    else:
        layer = uploader.upload(source, progress=progress)
        assert ecr.layer("demo", DIGEST) == BLOB
        assert [part.part.first_byte for part in layer.parts] == list(range(0, 45, 8))


def test_an_upload_is_started_over_three_times(ecr: LocalECR, uploader: LayerUploader) -> None:
    ecr.fail("UploadLayerPart", "upload_forgotten", call=2)
    ecr.fail("UploadLayerPart", "upload_forgotten", call=5)
    ecr.fail("CompleteLayerUpload", "upload_forgotten", call=1)

    layer = uploader.upload(BLOB, digest=DIGEST)

    assert operations(ecr).count("InitiateLayerUpload") == 4
    assert ecr.layer("demo", DIGEST) == BLOB
    assert [part.part.first_byte for part in layer.parts] == list(range(0, 45, 8))


def test_an_upload_that_is_always_lost_is_an_error(ecr: LocalECR, uploader: LayerUploader) -> None:
    ecr.fail("UploadLayerPart", "upload_forgotten", call=2, times=100)

    with pytest.raises(UploadLostError, match="UploadNotFoundException") as raised:
        uploader.upload(BLOB, digest=DIGEST)

    assert operations(ecr).count("InitiateLayerUpload") == 4
    assert raised.value.session is not None
    assert raised.value.operation == "UploadLayerPart"


def test_a_stream_that_is_lost_says_where(ecr: LocalECR, uploader: LayerUploader) -> None:
    ecr.fail("UploadLayerPart", "upload_forgotten", call=3)

    with pytest.raises(UploadLostError, match="bytes 16-23") as raised:
        uploader.upload(iter([BLOB]))

    assert raised.value.session is not None
    assert raised.value.session.next_byte == 16
    assert [part.part for part in raised.value.parts] == [Part(0, 7), Part(8, 15)]


def test_a_stream_of_which_nothing_is_lost_starts_over(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    ecr.fail("UploadLayerPart", "upload_forgotten", call=1)

    uploader.upload(iter([BLOB]))

    assert ecr.layer("demo", DIGEST) == BLOB


def test_a_layer_that_somebody_else_completes_is_not_sent_again(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    def progress(n: int) -> None:
        if n == 8 and not ecr.registry.repositories["demo"].layers:
            LayerUploader(ecr.client(), "demo", limits=SMALL).upload(BLOB)
            ecr.fail("UploadLayerPart", "upload_forgotten")

    layer = uploader.upload(BLOB, digest=DIGEST, check_existing=False, progress=progress)

    assert layer.existed
    assert operations(ecr).count("InitiateLayerUpload") == 2  # ours, and somebody else's


def test_an_archived_layer_is_there_only_for_a_complete_in_doubt(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    uploader.upload(BLOB)
    ecr.registry.repositories["demo"].layers[DIGEST].status = "ARCHIVED"

    ecr.fail("UploadLayerPart", "upload_forgotten", call=3)
    uploader.upload(BLOB)
    assert operations(ecr).count("InitiateLayerUpload") == 3  # it was started over

    ecr.fail("CompleteLayerUpload", "access_denied")
    with pytest.raises(ServiceError, match="AccessDenied"):
        uploader.upload(BLOB)


def test_a_layer_completed_by_a_lost_answer_did_not_exist(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    ecr.registry._unknowns = Unknowns(completed_again="LayerAlreadyExistsException")
    ecr.fail("CompleteLayerUpload", "answer_lost")
    assert not uploader.upload(BLOB).existed


@pytest.mark.parametrize("digest", [DIGEST, None])
def test_an_available_layer_of_unknown_size_is_there(
    digest: str | None, ecr: LocalECR, uploader: LayerUploader, mocker: Any
) -> None:
    from ecr_parts._client import Answered, Availability, RepositoryClient

    found = Answered({DIGEST: Availability("AVAILABLE", None)}, attempts=1)
    mocker.patch.object(RepositoryClient, "batch_check_layer_availability", return_value=found)
    assert uploader.upload(BLOB, digest=digest) == UploadedLayer(DIGEST, 45, existed=True)
    assert operations(ecr) == []
    layer = uploader.upload(iter([BLOB]), digest=digest)  # whose size nobody knows: it is sent
    assert layer == UploadedLayer(DIGEST, 45, existed=False)


def test_a_layer_smaller_than_what_is_sent_already_is_another(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    def progress(n: int) -> None:
        if n:
            layers = ecr.registry.repositories["demo"].layers
            layers[DIGEST] = Layer([BLOB[:5]], 5)

    ecr.fail("UploadLayerPart", "upload_forgotten", call=3)
    with pytest.raises(UploadLostError):
        uploader.upload(iter([BLOB]), digest=DIGEST, progress=progress)


def test_what_progress_raises_is_never_taken_for_ecrs(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    """A callback that uses this library raises its errors."""
    mine = UploadLostError("mine")

    def progress(n: int) -> None:
        if n == 8 or (ecr.calls and ecr.calls[-1].operation == "CompleteLayerUpload"):
            raise mine

    with pytest.raises(UploadLostError) as raised:
        uploader.upload(BLOB, progress=progress)
    assert raised.value is mine
    assert operations(ecr).count("InitiateLayerUpload") == 1


def test_a_service_that_goes_back_again_and_again_is_stuck(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    """It confirms one part more each time, and then says it has nothing."""

    class Zig:
        def __init__(self) -> None:
            self.requests = 0
            self.furthest = -1

        def batch_check_layer_availability(self, **_: object) -> dict[str, object]:
            return {"layers": []}

        def initiate_layer_upload(self, **_: object) -> dict[str, object]:
            return {"uploadId": "u-1", "partSize": 8}

        def upload_layer_part(self, **part: Any) -> dict[str, object]:
            self.requests += 1
            if part["partLastByte"] > self.furthest + 8:
                self.furthest += 8
                return {"lastByteReceived": -1}
            return {"lastByteReceived": part["partLastByte"]}

        def complete_layer_upload(self, **_: object) -> dict[str, object]:
            return {}

    client = Zig()
    with pytest.raises(UnexpectedResponseError, match="keeps answering without progress"):
        LayerUploader(client, "demo", limits=SMALL, retrying=PATIENT).upload(bytes_of(480))
    assert client.requests < 40


def test_a_rewind_into_a_part_starts_over_at_completion(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    lost = False

    def progress(_n: int) -> None:
        nonlocal lost
        for upload in ecr.registry.repositories["demo"].uploads.values():
            if len(upload.blobs) == 4 and not lost:
                lost = True
                upload.blobs[2:] = [BLOB[16:18]]
                upload.size, upload.hash = 18, hashlib.sha256(BLOB[:18])
            if len(upload.blobs) == 4 and upload.size == 26:
                seen.append("rewound")

    seen: list[str] = []
    layer = uploader.upload(BLOB, progress=progress)
    assert seen
    assert ecr.layer("demo", DIGEST) == BLOB
    assert operations(ecr).count("InitiateLayerUpload") == 2
    assert [sent.part.first_byte for sent in layer.parts] == list(range(0, 45, 8))


def test_retries_run_out(ecr: LocalECR) -> None:
    ecr.fail("UploadLayerPart", "throttled", call=2, times=100)
    retrying = default_retrying().copy(
        sleep=lambda _seconds: None, stop=tenacity.stop_after_attempt(3)
    )
    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL, retrying=retrying)

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


def test_a_slow_answer_is_a_lost_answer() -> None:
    with LocalECR(limits=SMALL, part_size=8, slow=60) as ecr:
        ecr.fail("UploadLayerPart", "slow", call=2)
        client = ecr.client(config=CLIENT_CONFIG.merge(Config(proxies={}, read_timeout=0.2)))
        layer = LayerUploader(client, "demo", limits=SMALL, retrying=PATIENT).upload(BLOB)

        assert ecr.layer("demo", DIGEST) == BLOB
        assert [part.attempts for part in layer.parts] == [1, 2, 1, 1, 1, 1]


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
def test_botocores_own_retries_change_nothing(
    retries: Any, fault: Any, ecr: LocalECR, mocker: Any
) -> None:
    mocker.patch("time.sleep")  # botocore's own waits
    client = ecr.client(config=Config(proxies={}, retries=retries))
    for operation in ("InitiateLayerUpload", "UploadLayerPart", "CompleteLayerUpload"):
        ecr.fail(operation, fault)

    layer = LayerUploader(client, "demo", limits=SMALL, retrying=PATIENT).upload(BLOB)

    assert layer.digest == DIGEST
    assert ecr.layer("demo", DIGEST) == BLOB


def test_the_shared_config_stays_as_it_is(ecr: LocalECR) -> None:
    before = copy.deepcopy(vars(CLIENT_CONFIG))
    ecr.client(config=CLIENT_CONFIG)
    assert vars(CLIENT_CONFIG) == before
    assert before["retries"] == {"mode": "standard", "total_max_attempts": 1}


@pytest.mark.parametrize("again", ["UploadNotFoundException", "LayerAlreadyExistsException"])
@pytest.mark.parametrize("lag", [0, 3])
@pytest.mark.parametrize("fault", ["answer_lost", "answer_cut", "answer_garbled"])
def test_a_doubtful_complete_is_settled(again: Any, lag: int, fault: Any) -> None:
    unknowns = Unknowns(completed_again=again, availability_lag=lag)
    with LocalECR(limits=SMALL, part_size=8, unknowns=unknowns) as ecr:
        ecr.fail("CompleteLayerUpload", fault)
        uploader = LayerUploader(ecr.client(), "demo", limits=SMALL, retrying=PATIENT)
        uploader.upload(iter([BLOB]))
        assert ecr.layer("demo", DIGEST) == BLOB


def test_a_complete_that_fails_for_ever_is_settled_too(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    ecr.fail("CompleteLayerUpload", "answer_lost")
    ecr.fail("CompleteLayerUpload", "html_503", call=2, times=100)

    assert uploader.upload(BLOB, check_existing=False).digest == DIGEST


def test_when_it_cannot_be_settled_the_first_error_counts(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    ecr.fail("CompleteLayerUpload", "html_503", times=100)
    ecr.fail("BatchCheckLayerAvailability", "access_denied", times=100)

    with pytest.raises(ServiceError, match="503") as raised:
        uploader.upload(iter([BLOB]))
    assert raised.value.operation == "CompleteLayerUpload"


def test_a_wrong_digest_is_a_mismatch(ecr: LocalECR, uploader: LayerUploader) -> None:
    with pytest.raises(DigestMismatchError, match="None of the provided layer digests") as raised:
        uploader.upload(BLOB, digest=digest_of(b"other"))

    assert raised.value.session is not None
    assert ecr.registry.repositories["demo"].layers == {}


# Sizes of parts


def test_the_part_size_is_what_ecr_answers_unless_given(ecr: LocalECR) -> None:
    uploader = LayerUploader(ecr.client(), "demo", part_size=12, limits=SMALL, retrying=PATIENT)
    layer = uploader.upload(BLOB)
    assert [part.part.size for part in layer.parts] == [12, 12, 12, 9]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("size", [479, 480, 481, 499, 500])
def test_a_layer_of_any_allowed_size_fits(size: int, known: bool, ecr: LocalECR) -> None:
    """60 parts of 8 bytes hold 480: beyond, parts are larger, or grow on the way."""
    blob = bytes_of(size)
    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL, retrying=PATIENT)

    layer = uploader.upload(iter([blob]), size=size if known else None)

    assert ecr.layer("demo", layer.digest) == blob
    assert len(layer.parts) <= 60


@pytest.mark.parametrize("kind", REPLAYABLE)
def test_what_cannot_fit_is_refused_before_the_first_call(
    kind: str, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    source = REPLAYABLE[kind](bytes_of(501), tmp_path, random.Random(0))
    with pytest.raises(LayerTooLargeError, match="at most 500"):
        uploader.upload(source)
    assert ecr.calls == []


def test_a_stream_too_large_is_refused_when_its_size_is_known_and_noticed_when_not(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    with pytest.raises(LayerTooLargeError, match="at most 500"):
        uploader.upload(iter([bytes_of(501)]), size=501)
    assert ecr.calls == []
    with pytest.raises(LayerTooLargeError, match="the layer continues past byte"):
        uploader.upload(iter([bytes_of(501)]))
    assert "CompleteLayerUpload" not in operations(ecr)


def test_a_part_size_too_small_for_the_layer_is_refused(ecr: LocalECR) -> None:
    uploader = LayerUploader(ecr.client(), "demo", part_size=5, limits=SMALL)
    with pytest.raises(LayerTooLargeError, match="part_size=6 or more"):
        uploader.upload(bytes_of(301))
    assert ecr.calls == []


# Bad input: refused, and wherever possible before the first call


@pytest.mark.parametrize("kind", SOURCES)
def test_an_empty_layer(kind: str, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path) -> None:
    with pytest.raises(EmptyLayerError, match="empty"):
        uploader.upload(SOURCES[kind](b"", tmp_path, random.Random(0)))
    with pytest.raises(ValueError, match="empty"):
        uploader.upload(BareReader(b""), size=0)
    assert ecr.calls == []


def test_sources_that_are_none(ecr: LocalECR, uploader: LayerUploader, tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        uploader.upload(tmp_path)
    with pytest.raises(FileNotFoundError):
        uploader.upload(tmp_path / "nothing")
    for source in (None, 5, iter([5]), io.StringIO("text"), iter(["text"])):
        with pytest.raises(TypeError):
            uploader.upload(source)  # type: ignore[arg-type]  # the point of the test
    assert ecr.calls == []


@pytest.mark.parametrize(
    ("digest", "error"),
    [
        ("", ValueError),
        ("sha256:", ValueError),
        ("sha256:" + "0" * 63, ValueError),
        ("sha256:" + "0" * 65, ValueError),
        ("sha256:" + "A" * 64, ValueError),
        ("sha256:" + "g" * 64, ValueError),
        ("0" * 64, ValueError),
        ("sha512:" + "0" * 128, ValueError),
        (f"{DIGEST}\n", ValueError),
        (b"sha256:" + b"0" * 64, TypeError),
    ],
)
def test_a_digest_that_is_none(
    digest: Any, error: type[Exception], ecr: LocalECR, uploader: LayerUploader
) -> None:
    for call in (
        lambda: uploader.upload(BLOB, digest=digest),
        lambda: uploader.initiate(layer_digest=digest),
        lambda: uploader.missing([DIGEST, digest]),
    ):
        with pytest.raises(error, match="digest must be"):
            call()
    assert ecr.calls == []


def test_arguments_of_the_uploader_that_are_none(ecr: LocalECR) -> None:
    client = ecr.client()
    for arguments, error in (
        ({"repository_name": ""}, ValueError),
        ({"repository_name": None}, TypeError),
        ({"registry_id": 12}, TypeError),
        ({"part_size": 3}, ValueError),
        ({"part_size": 10**13}, ValueError),
        ({"part_size": "8"}, TypeError),
        ({"retrying": tenacity.AsyncRetrying()}, TypeError),
        ({"client": object()}, TypeError),
        ({"client": None}, TypeError),
        ({"limits": 5}, TypeError),
    ):
        good: dict[str, Any] = {"client": client, "repository_name": "demo"}
        with pytest.raises(error):
            LayerUploader(**good | arguments)
    with pytest.raises(ValueError, match="between 5,242,880 and 20,971,520"):
        LayerUploader(client, "demo", part_size=5 * 1024**2 - 1)


def test_a_repository_that_does_not_exist(ecr: LocalECR) -> None:
    uploader = LayerUploader(ecr.client(), "team/none", retrying=PATIENT)
    for upload in (uploader.upload, lambda blob: uploader.upload(blob, check_existing=False)):
        with pytest.raises(ServiceError, match=r"'team/none'.*Create the repository") as raised:
            upload(BLOB)
        assert raised.value.code == "RepositoryNotFoundException"
    assert sent(ecr) == []


@pytest.mark.parametrize("service", ["ecr", "ecr-public"])
def test_no_permission_names_the_action(service: str, ecr: LocalECR) -> None:
    ecr.fail("InitiateLayerUpload", "access_denied")
    uploader = LayerUploader(ecr.client(service), "demo", limits=SMALL, retrying=PATIENT)
    with pytest.raises(ServiceError, match=f"Allow {service}:InitiateLayerUpload on"):
        uploader.upload(BLOB)
    assert sent(ecr) == []


def test_single_steps_raise_what_ecr_refuses(ecr: LocalECR) -> None:
    uploader = LayerUploader(ecr.client(), "none", limits=SMALL, retrying=PATIENT)
    for call in (uploader.initiate, lambda: uploader.missing([DIGEST])):
        with pytest.raises(ServiceError, match="'none' failed: RepositoryNotFoundException"):
            call()
    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL, retrying=PATIENT)
    session = uploader.initiate()
    uploader.upload_part(session, BLOB[:8])
    ecr.fail("CompleteLayerUpload", "access_denied")
    with pytest.raises(ServiceError, match="AccessDenied") as raised:
        uploader.complete(session, digest_of(BLOB[:8]))
    assert raised.value.session is session


def test_a_complete_whose_answer_is_lost_is_settled(ecr: LocalECR, uploader: LayerUploader) -> None:
    session = uploader.initiate()
    uploader.upload_part(session, BLOB[:8])
    ecr.fail("CompleteLayerUpload", "answer_lost")
    assert not uploader.complete(session, digest_of(BLOB[:8])).existed
    lost = uploader.initiate()
    uploader.upload_part(lost, BLOB[:9])
    ecr.fail("CompleteLayerUpload", "upload_forgotten")
    with pytest.raises(UploadLostError):
        uploader.complete(lost, digest_of(BLOB[:9]))


def test_expired_credentials_say_so(ecr: LocalECR, uploader: LayerUploader) -> None:
    ecr.fail("UploadLayerPart", "expired_token", call=2)
    with pytest.raises(ServiceError, match=r"ExpiredToken.*credentials.*clock") as raised:
        uploader.upload(BLOB)
    assert len(sent(ecr)) == 2
    assert raised.value.session is not None
    assert raised.value.session.next_byte == 8


def test_no_credentials_say_so(ecr: LocalECR, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    client = ecr.client(aws_access_key_id=None, aws_secret_access_key=None)
    with pytest.raises(ServiceError, match="credentials") as raised:
        LayerUploader(client, "demo").upload(BLOB)
    assert raised.value.code == "NoCredentialsError"
    assert ecr.calls == []


def test_a_name_no_repository_can_have(ecr: LocalECR) -> None:
    with pytest.raises(ServiceError, match="Invalid length for parameter repositoryName"):
        LayerUploader(ecr.client(), "x").upload(BLOB)
    assert ecr.calls == []


def test_a_registry_that_does_not_exist(ecr: LocalECR) -> None:
    for service, code in (
        ("ecr", "RepositoryNotFoundException"),
        ("ecr-public", "RegistryNotFoundException"),
    ):
        uploader = LayerUploader(ecr.client(service), "demo", registry_id="999999999999")
        with pytest.raises(ServiceError, match="999999999999") as raised:
            uploader.upload(BLOB)
        assert raised.value.code == code
    uploader = LayerUploader(ecr.client(), "demo", registry_id="012345678910", limits=SMALL)
    assert uploader.upload(BLOB).digest == DIGEST


# Sources that change


def test_a_file_that_changes_on_the_way_is_never_completed(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    path = path_to(BLOB, tmp_path)

    def progress(n: int) -> None:
        if n == 8:
            with path.open("ab") as file:
                file.write(b"more")

    with pytest.raises(SourceChangedError, match=r"layer\.tar\.gz") as raised:
        uploader.upload(path, progress=progress)
    assert "CompleteLayerUpload" not in operations(ecr)
    assert raised.value.session is not None


@pytest.mark.parametrize("many", [False, True])
def test_a_file_that_shrinks_while_it_is_hashed(many: bool, ecr: LocalECR, tmp_path: Path) -> None:
    uploader = LayerUploader(ecr.client(), "demo", retrying=PATIENT)
    path = path_to(bytes_of(3 * 1024**2), tmp_path)

    def progress(_n: int) -> None:
        os.truncate(path, 100)

    upload: Any = partial(uploader.upload_many, [path]) if many else partial(uploader.upload, path)
    with pytest.raises(SourceChangedError, match=r"ended after .* before its size of 3,145,728"):
        upload(progress=progress)
    assert ecr.calls == []


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_of_another_size_is_never_completed(
    kind: str, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    for size in (44, 46):
        source = STREAMS[kind](BLOB, tmp_path, random.Random(0))
        if size == 44 and hasattr(source, "read"):
            continue  # what follows the layer may be somebody else's
        with pytest.raises(SourceChangedError, match=f"{size} bytes"):
            uploader.upload(source, size=size)
    assert "CompleteLayerUpload" not in operations(ecr)


def test_a_source_that_fails_on_the_way_fails_as_itself(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    def items() -> Iterator[bytes]:
        yield BLOB[:20]
        raise ConnectionError("the producer died")

    with pytest.raises(ConnectionError, match="the producer died"):
        uploader.upload(items())
    assert "CompleteLayerUpload" not in operations(ecr)


# Step by step


def drive(uploader: LayerUploader, session: UploadSession, blob: bytes) -> None:
    """The one loop that covers every case."""
    while session.next_byte < len(blob):
        first = session.next_byte
        uploader.upload_part(session, blob[first : first + session.part_size])


@pytest.mark.parametrize("fault", [None, "answer_lost", "stored_in_part", "reset"])
def test_the_steps(fault: Any, ecr: LocalECR, uploader: LayerUploader) -> None:
    if fault:
        ecr.fail("UploadLayerPart", fault, call=2)
    session = uploader.initiate(layer_size=45, layer_digest=DIGEST)
    assert (session.next_byte, session.part_size, session.layer_size) == (0, 8, 45)
    drive(uploader, session, BLOB)

    assert uploader.complete(session, DIGEST) == UploadedLayer(DIGEST, 45, existed=False)
    assert ecr.layer("demo", DIGEST) == BLOB


def test_the_steps_from_a_session_in_json(ecr: LocalECR, uploader: LayerUploader) -> None:
    """Another process went on with the session; this copy of it finds out where ECR stands."""
    session = uploader.initiate()
    old = session.to_json()
    drive(uploader, session, BLOB[:32])

    resumed = UploadSession.from_json(old)
    drive(uploader, resumed, BLOB)
    uploader.complete(resumed, DIGEST)

    assert ecr.layer("demo", DIGEST) == BLOB
    assert [call[2] for call in sent(ecr)].count("ok") == 6


def test_a_layer_too_small_for_the_default_parts_of_a_step(ecr: LocalECR) -> None:
    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL)
    assert uploader.initiate(layer_size=480).part_size == 9
    with pytest.raises(LayerTooLargeError):
        uploader.initiate(layer_size=501)
    with pytest.raises(EmptyLayerError):
        uploader.initiate(layer_size=0)


def test_a_part_after_a_part_under_the_minimum_is_refused_here(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    session = uploader.initiate()
    uploader.upload_part(session, BLOB[:3])
    with pytest.raises(ValueError, match=r"before byte 3 is below the minimum of 4 bytes"):
        uploader.upload_part(session, BLOB[3:11])
    assert len(sent(ecr)) == 1
    assert uploader.complete(session, digest_of(BLOB[:3])).size == 3


def test_a_fragment_under_the_minimum_ends_a_session(ecr: LocalECR) -> None:
    limits = Limits(min_part=5, max_part=16, max_parts=60, max_layer=500)
    uploader = LayerUploader(ecr.client(), "demo", limits=limits, retrying=PATIENT)
    ecr.fail("UploadLayerPart", "stored_in_part")
    session = uploader.initiate()

    with pytest.raises(UploadLostError, match="too small to be a part") as raised:
        uploader.upload_part(session, BLOB[:8])
    assert raised.value.session is session
    assert session.next_byte == 0


@pytest.mark.parametrize(
    ("blob", "error", "message"),
    [
        (b"", ValueError, "1 to 16 bytes, not 0"),
        (bytes(17), ValueError, "1 to 16 bytes, not 17"),
        (bytes(11), ValueError, "ends past the layer's 10 bytes"),
        (memoryview(bytes(20)).cast("I"), ValueError, "1 to 16 bytes, not 20"),
        ("text", TypeError, "must be bytes, .*text"),
        (None, TypeError, "must be bytes, .*None"),
    ],
)
def test_what_is_no_part(
    blob: Any, error: type[Exception], message: str, ecr: LocalECR, uploader: LayerUploader
) -> None:
    session = uploader.initiate(layer_size=10)
    with pytest.raises(error, match=message):
        uploader.upload_part(session, blob)
    assert sent(ecr) == []


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_part_is_any_buffer(kind: Any, ecr: LocalECR, uploader: LayerUploader) -> None:
    session = uploader.initiate()
    uploader.upload_part(session, kind(BLOB[:16]))
    uploader.complete(session, digest_of(BLOB[:16]))
    assert ecr.layer("demo", digest_of(BLOB[:16])) == BLOB[:16]


def test_completing_too_early_or_as_something_else_is_refused_here(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    session = uploader.initiate(layer_size=45, layer_digest=DIGEST)
    uploader.upload_part(session, BLOB[:8])
    with pytest.raises(ValueError, match="ECR has 8 of the layer's 45 bytes"):
        uploader.complete(session, DIGEST)
    with pytest.raises(ValueError, match="must be the session's"):
        uploader.complete(session, digest_of(b"other"))
    with pytest.raises(EmptyLayerError):
        uploader.complete(uploader.initiate(), DIGEST)
    assert "CompleteLayerUpload" not in operations(ecr)


def test_a_session_of_another_repository_is_refused(ecr: LocalECR, uploader: LayerUploader) -> None:
    session = LayerUploader(ecr.client(), "demo", registry_id="012345678910").initiate()
    for call in (
        lambda: uploader.upload_part(session, BLOB[:8]),
        lambda: uploader.complete(session, DIGEST),
    ):
        with pytest.raises(ValueError, match="session must be of repository"):
            call()


@pytest.mark.parametrize("none", ["{}", 5])
def test_a_session_that_is_none(none: Any, uploader: LayerUploader) -> None:
    for call in (
        lambda: uploader.upload_part(none, BLOB),
        lambda: uploader.complete(none, DIGEST),
        lambda: uploader.upload(BLOB, session=none),
    ):
        with pytest.raises(TypeError, match="must be an UploadSession"):
            call()
    with pytest.raises(TypeError, match=r"layer_size must be an int, not 5\.5"):
        uploader.initiate(layer_size=5.5)  # type: ignore[arg-type]  # the point of the test
    with pytest.raises(TypeError, match="digests must be an iterable"):
        uploader.missing(DIGEST)


def test_the_callers_buffer_is_free_afterwards(uploader: LayerUploader) -> None:
    blob = bytearray(BLOB)
    uploader.upload(blob)
    blob.append(1)


def test_complete_carries_the_session_of_its_error(ecr: LocalECR, uploader: LayerUploader) -> None:
    session = uploader.initiate()
    uploader.upload_part(session, BLOB[:8])
    with pytest.raises(DigestMismatchError) as raised:
        uploader.complete(session, DIGEST)
    assert raised.value.session is session


def test_missing_asks_100_at_a_time(ecr: LocalECR, uploader: LayerUploader) -> None:
    assert uploader.missing([]) == set()
    assert ecr.calls == []
    uploader.upload(BLOB)
    ecr.calls.clear()
    others = [digest_of(bytes_of(9, seed)) for seed in range(250)]

    assert uploader.missing([*others, DIGEST, DIGEST]) == set(others)
    assert operations(ecr) == ["BatchCheckLayerAvailability"] * 3


def test_the_caller_may_send_while_another_thread_does(ecr: LocalECR) -> None:
    from concurrent.futures import ThreadPoolExecutor

    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL, retrying=PATIENT)
    blobs = [bytes_of(100, seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        layers = list(pool.map(uploader.upload, blobs))
    for blob, layer in zip(blobs, layers, strict=True):
        assert ecr.layer("demo", layer.digest) == blob


def test_an_answer_that_makes_no_sense(ecr: LocalECR, uploader: LayerUploader) -> None:
    """A service that does not move: asked so many times, and no more."""
    ecr.registry._part_size = 0
    with pytest.raises(UnexpectedResponseError, match="partSize 0"):
        uploader.upload(BLOB)


def test_a_generator_is_read_one_part_ahead_and_no_further(uploader: LayerUploader) -> None:
    given: list[int] = []

    def items() -> Iterator[bytes]:
        for i, chunk in enumerate(chunks_of(BLOB, lambda: 5)):
            given.append(i)
            yield chunk

    def progress(n: int) -> None:
        if n:
            raise StopAsyncIteration

    with pytest.raises(StopAsyncIteration):
        uploader.upload(items(), progress=progress)
    assert given == [0, 1, 2, 3]  # for bytes 0 to 15


def test_a_pipe_like_file_is_read_where_it_stands(ecr: LocalECR, uploader: LayerUploader) -> None:
    file = Unseekable(b"head" + BLOB, 3)
    file.read(2)
    file.read(2)
    assert uploader.upload(file).digest == DIGEST
