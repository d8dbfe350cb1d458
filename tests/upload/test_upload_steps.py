"""An upload in single steps: ``initiate``, ``upload_part`` and ``complete``."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import NO_WAIT, SMALL_LIMITS, digest_of, random_bytes

from ecr_parts import (
    DigestMismatchError,
    EcrPartsError,
    EmptyLayerError,
    LayerTooLargeError,
    LayerUploader,
    Limits,
    ServiceError,
    UnexpectedResponseError,
    UploadedLayer,
    UploadLostError,
    UploadSession,
)
from ecr_parts.testing import EcrError, Fault, LocalECR

BLOB = random_bytes(45)  # six parts of 8 bytes, the last of 5
DIGEST = digest_of(BLOB)


def send_rest(uploader: LayerUploader, session: UploadSession, blob: bytes) -> None:
    """Send what ECR does not have yet: the loop that the documentation recommends."""
    while session.next_byte < len(blob):
        first_byte = session.next_byte
        uploader.upload_part(session, blob[first_byte : first_byte + session.part_size])


@pytest.mark.parametrize("fault", [None, "answer_lost", "stored_in_part", "reset"])
def test_uploads_layer_in_single_steps(
    fault: Fault | None, ecr: LocalECR, uploader: LayerUploader
) -> None:
    if fault is not None:
        ecr.fail("UploadLayerPart", fault, call=2)

    session = uploader.initiate(layer_size=45, layer_digest=DIGEST)
    assert (session.next_byte, session.part_size, session.layer_size) == (0, 8, 45)
    send_rest(uploader, session, BLOB)

    assert uploader.complete(session, DIGEST) == UploadedLayer(DIGEST, 45, existed=False)
    assert ecr.layer("demo", DIGEST) == BLOB


def test_outdated_session_from_json_catches_up_with_ecr(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    """After the JSON was saved, another process continued the upload."""
    session = uploader.initiate()
    outdated = session.to_json()
    send_rest(uploader, session, BLOB[:32])

    resumed = UploadSession.from_json(outdated)
    send_rest(uploader, resumed, BLOB)
    uploader.complete(resumed, DIGEST)

    assert ecr.layer("demo", DIGEST) == BLOB
    outcomes = [call.outcome for call in ecr.calls_of("UploadLayerPart")]
    assert outcomes.count("ok") == 6


def test_initiate_and_missing_report_missing_repository(ecr: LocalECR) -> None:
    uploader = LayerUploader(ecr.client(), "none", limits=SMALL_LIMITS, retrying=NO_WAIT)
    for call in (uploader.initiate, lambda: uploader.missing([DIGEST])):
        with pytest.raises(ServiceError, match="'none' failed: RepositoryNotFoundException"):
            call()


def test_rejects_session_of_other_repository(ecr: LocalECR, uploader: LayerUploader) -> None:
    session = LayerUploader(ecr.client(), "demo", registry_id="012345678910").initiate()
    for call in (
        lambda: uploader.upload_part(session, BLOB[:8]),
        lambda: uploader.complete(session, DIGEST),
    ):
        with pytest.raises(ValueError, match="session must be for repository"):
            call()


@pytest.mark.parametrize("session", ["{}", 5])
def test_rejects_object_that_is_not_a_session(session: Any, uploader: LayerUploader) -> None:
    for call in (
        lambda: uploader.upload_part(session, BLOB),
        lambda: uploader.complete(session, DIGEST),
    ):
        with pytest.raises(TypeError, match="must be an UploadSession"):
            call()


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [("last_byte_received", "7", TypeError), ("last_byte_received", -2, ValueError),
     ("part_size", 0, ValueError), ("upload_id", "", ValueError)],
)  # fmt: skip
def test_rejects_session_whose_fields_are_no_longer_valid(
    field: str, value: Any, error: type[Exception], ecr: LocalECR, uploader: LayerUploader
) -> None:
    session = uploader.initiate()
    ecr.calls.clear()
    setattr(session, field, value)
    for call in (
        lambda: uploader.upload_part(session, BLOB[:8]),
        lambda: uploader.complete(session, DIGEST),
        lambda: uploader.upload(BLOB, session=session),
    ):
        with pytest.raises(error, match=f"^{field} must be"):
            call()
    assert ecr.calls == []


# initiate


def test_initiate_chooses_part_size_for_layer_size(ecr: LocalECR) -> None:
    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS)
    assert uploader.initiate(layer_size=480).part_size == 9  # 8 would take all of the 60 parts


def test_initiate_rejects_size_outside_limits(uploader: LayerUploader) -> None:
    with pytest.raises(LayerTooLargeError):
        uploader.initiate(layer_size=501)
    with pytest.raises(EmptyLayerError):
        uploader.initiate(layer_size=0)


def test_initiate_rejects_size_that_is_not_an_int(uploader: LayerUploader) -> None:
    with pytest.raises(TypeError, match=r"layer_size must be an int, not 5\.5"):
        uploader.initiate(layer_size=5.5)  # type: ignore[arg-type]  # wrong on purpose


# upload_part


@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview])
def test_upload_part_accepts_any_buffer(
    buffer: Any, ecr: LocalECR, uploader: LayerUploader
) -> None:
    blob = BLOB[:16]
    session = uploader.initiate()
    uploader.upload_part(session, buffer(blob))
    uploader.complete(session, digest_of(blob))
    assert ecr.layer("demo", digest_of(blob)) == blob


@pytest.mark.parametrize(
    ("blob", "error", "message"),
    [
        pytest.param(b"", ValueError, "1 to 16 bytes long, not 0", id="empty"),
        pytest.param(bytes(17), ValueError, "1 to 16 bytes long, not 17", id="too large"),
        pytest.param(bytes(11), ValueError, "ends past the layer's 10 bytes", id="past the end"),
        pytest.param(
            memoryview(bytes(20)).cast("I"),
            ValueError,
            "1 to 16 bytes long, not 20",
            id="wide items",
        ),
        pytest.param("text", TypeError, "must be bytes, .*text", id="str"),
        pytest.param(None, TypeError, "must be bytes, .*None", id="None"),
    ],
)
def test_upload_part_rejects_invalid_blob(
    blob: Any, error: type[Exception], message: str, ecr: LocalECR, uploader: LayerUploader
) -> None:
    session = uploader.initiate(layer_size=10)
    with pytest.raises(error, match=message):
        uploader.upload_part(session, blob)
    assert ecr.calls_of("UploadLayerPart") == []


def test_upload_part_rejects_part_after_one_below_minimum(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    session = uploader.initiate()
    uploader.upload_part(session, BLOB[:3])
    with pytest.raises(ValueError, match=r"before byte 3 is below the minimum of 4 bytes"):
        uploader.upload_part(session, BLOB[3:11])
    assert len(ecr.calls_of("UploadLayerPart")) == 1
    assert uploader.complete(session, digest_of(BLOB[:3])).size == 3


def test_upload_part_raises_if_stored_fragment_is_below_minimum(ecr: LocalECR) -> None:
    limits = Limits(min_part=5, max_part=16, max_parts=60, max_layer=500)
    uploader = LayerUploader(ecr.client(), "demo", limits=limits, retrying=NO_WAIT)
    ecr.fail("UploadLayerPart", "stored_in_part")
    session = uploader.initiate()

    with pytest.raises(UploadLostError, match="too small to be a part") as raised:
        uploader.upload_part(session, BLOB[:8])

    assert raised.value.session is session
    assert session.next_byte == 0


# complete


def test_complete_rejects_incomplete_layer_and_other_digest(
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
    assert ecr.calls_of("CompleteLayerUpload") == []


def test_complete_allows_parts_larger_than_part_size(ecr: LocalECR) -> None:
    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS, part_size=4)
    blob = random_bytes(250)  # more than 60 parts of 4 bytes
    session = uploader.initiate()
    for first_byte in range(0, 250, 16):
        uploader.upload_part(session, blob[first_byte : first_byte + 16])
    uploader.complete(session, digest_of(blob))
    assert ecr.layer("demo", digest_of(blob)) == blob


def test_complete_finds_layer_after_lost_answer(ecr: LocalECR, uploader: LayerUploader) -> None:
    session = uploader.initiate()
    uploader.upload_part(session, BLOB[:8])
    ecr.fail("CompleteLayerUpload", "answer_lost")
    assert not uploader.complete(session, digest_of(BLOB[:8])).existed


def test_complete_raises_if_upload_is_lost(ecr: LocalECR, uploader: LayerUploader) -> None:
    session = uploader.initiate()
    uploader.upload_part(session, BLOB[:9])
    ecr.fail("CompleteLayerUpload", "upload_forgotten")
    with pytest.raises(UploadLostError):
        uploader.complete(session, digest_of(BLOB[:9]))


def test_error_of_complete_carries_session(ecr: LocalECR, uploader: LayerUploader) -> None:
    session = uploader.initiate()
    uploader.upload_part(session, BLOB[:8])
    with pytest.raises(DigestMismatchError) as mismatch:
        uploader.complete(session, DIGEST)
    assert mismatch.value.session is session

    ecr.fail("CompleteLayerUpload", "access_denied")
    with pytest.raises(ServiceError, match="AccessDenied") as denied:
        uploader.complete(session, digest_of(BLOB[:8]))
    assert denied.value.session is session


# What ECR may have after a call that failed


def claim_byte(ecr: LocalECR, last_byte: int) -> None:
    error = EcrError("InvalidLayerPartException", "…", lastValidByteReceived=last_byte)
    ecr.respond("UploadLayerPart", error)


def test_refused_part_is_known_not_to_be_stored(ecr: LocalECR, uploader: LayerUploader) -> None:
    session = uploader.initiate()
    uploader.upload_part(session, BLOB[:8])
    ecr.fail("UploadLayerPart", "access_denied")
    with pytest.raises(ServiceError, match="AccessDenied"):
        uploader.upload_part(session, BLOB[8:16])
    claim_byte(ecr, 40)
    with pytest.raises(UnexpectedResponseError):
        uploader.upload_part(session, BLOB[8:16])


@pytest.mark.parametrize("lost", ["answer_lost", "malformed"])
def test_part_without_an_answer_may_be_stored(
    lost: str, ecr: LocalECR, uploader: LayerUploader
) -> None:
    session = uploader.initiate()
    if lost == "malformed":
        ecr.respond("UploadLayerPart", {"lastByteReceived": "seven"})
    else:
        ecr.fail("UploadLayerPart", "answer_lost")
        uploader = LayerUploader(
            ecr.client(),
            "demo",
            limits=SMALL_LIMITS,
            retrying=NO_WAIT.copy(stop=lambda _state: True),
        )
    with pytest.raises(EcrPartsError):
        uploader.upload_part(session, BLOB[:16])
    uploader.upload_part(session, BLOB[:8])
    assert session.next_byte == 16
