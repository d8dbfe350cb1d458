"""``LayerUploader``: sources, existing layers, progress, limits, arguments and service errors."""

from __future__ import annotations

import io
import os
import random
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tenacity
from helpers import (
    NO_WAIT,
    REPLAYABLE,
    SMALL_LIMITS,
    SOURCES,
    BareReader,
    Unseekable,
    digest_of,
    operations,
    random_bytes,
    write_layer,
)
from typing_extensions import override

from ecr_parts import (
    EmptyLayerError,
    Layer,
    LayerSource,
    LayerTooLargeError,
    LayerUploader,
    Part,
    ServiceError,
    UnexpectedResponseError,
    UploadedLayer,
    UploadLostError,
    default_retrying,
)
from ecr_parts.testing import LocalECR

BLOB = random_bytes(45)  # six parts of 8 bytes, the last of 5
DIGEST = digest_of(BLOB)


# Sources and results


@pytest.mark.parametrize("kind", SOURCES)
def test_uploads_every_kind_of_source(
    kind: str, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    source = SOURCES[kind](BLOB, tmp_path, random.Random(0))
    progress_calls: list[int] = []

    layer = uploader.upload(source, progress=progress_calls.append)

    assert layer == UploadedLayer(DIGEST, 45, existed=False)
    assert ecr.layer("demo", DIGEST) == BLOB
    assert sum(progress_calls) == 45
    assert [sent.part for sent in layer.parts] == [
        Part(first, min(first + 7, 44)) for first in range(0, 45, 8)
    ]
    assert {sent.attempts for sent in layer.parts} == {1}
    assert all(sent.seconds >= 0 for sent in layer.parts)


def test_result_makes_oci_descriptor(uploader: LayerUploader) -> None:
    layer = uploader.upload(BLOB)

    media_type = "application/vnd.oci.image.layer.v1.tar+gzip"
    assert layer.descriptor(media_type) == {"mediaType": media_type, "digest": DIGEST, "size": 45}
    assert "parts" not in repr(layer)


def test_reads_unseekable_file_from_its_position(uploader: LayerUploader) -> None:
    file = Unseekable(b"head" + BLOB, 3)
    file.read(2)
    file.read(2)

    assert uploader.upload(file).digest == DIGEST


class ShortenedBytes(bytes):
    """Bytes whose length is not what Python code is told."""

    @override
    def __len__(self) -> int:
        return 3


class ShortenedReader(BareReader):
    @override
    def read(self, size: int, /) -> bytes:
        return ShortenedBytes(super().read(size))


@pytest.mark.parametrize(
    "source", [lambda: map(ShortenedBytes, (BLOB[:20], BLOB[20:])), lambda: ShortenedReader(BLOB)]
)
def test_sends_all_bytes_of_a_subclass_with_another_length(
    source: Callable[[], LayerSource], ecr: LocalECR, uploader: LayerUploader
) -> None:
    assert uploader.upload(source()).digest == DIGEST
    assert ecr.layer("demo", DIGEST) == BLOB


def test_caller_can_resize_buffer_after_upload(uploader: LayerUploader) -> None:
    blob = bytearray(BLOB)
    uploader.upload(blob)
    blob.append(1)  # a BufferError if a view of it still existed


def test_threads_can_share_uploader(ecr: LocalECR, uploader: LayerUploader) -> None:
    blobs = [random_bytes(100, seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        layers = list(pool.map(uploader.upload, blobs))
    for blob, layer in zip(blobs, layers, strict=True):
        assert ecr.layer("demo", layer.digest) == blob


# Existing layers


def test_skips_existing_layer(ecr: LocalECR, uploader: LayerUploader, tmp_path: Path) -> None:
    uploader.upload(BLOB)
    ecr.calls.clear()
    progress_calls: list[int] = []

    for source, digest in (
        (write_layer(BLOB, tmp_path), None),
        (BareReader(BLOB), DIGEST),
        (iter([BLOB]), DIGEST),
    ):
        layer = uploader.upload(source, digest=digest, progress=progress_calls.append)
        assert layer == UploadedLayer(DIGEST, 45, existed=True)
        assert layer.parts == ()

    assert operations(ecr) == ["BatchCheckLayerAvailability"] * 3
    assert sum(progress_calls) == 3 * 45


def test_result_of_stream_tells_that_layer_existed(uploader: LayerUploader) -> None:
    uploader.upload(BLOB)

    assert uploader.upload(iter([BLOB])) == UploadedLayer(DIGEST, 45, existed=True)


def test_does_not_accept_existing_layer_of_other_size(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    uploader.upload(BLOB)
    ecr.registry.repositories["demo"].layers[DIGEST].size = 44

    with pytest.raises(ServiceError, match="LayerAlreadyExists"):
        uploader.upload(BLOB)


def test_sends_archived_layer_again(ecr: LocalECR, uploader: LayerUploader) -> None:
    uploader.upload(BLOB)
    ecr.registry.repositories["demo"].layers[DIGEST].status = "ARCHIVED"
    ecr.calls.clear()

    assert uploader.missing([DIGEST]) == {DIGEST}
    with pytest.raises(ServiceError, match="restore its image with UpdateImageStorageClass"):
        uploader.upload(BLOB)  # an archived layer never counts as there
    assert "UploadLayerPart" in operations(ecr)


@pytest.mark.parametrize("digest", [DIGEST, None], ids=["digest given", "digest computed"])
def test_accepts_existing_layer_whose_size_ecr_does_not_report(
    digest: str | None, ecr: LocalECR, uploader: LayerUploader
) -> None:
    layer_without_size = {"layerDigest": DIGEST, "layerAvailability": "AVAILABLE"}
    ecr.respond("BatchCheckLayerAvailability", {"layers": [layer_without_size]}, times=100)

    assert uploader.upload(BLOB, digest=digest) == UploadedLayer(DIGEST, 45, existed=True)
    assert operations(ecr) == ["BatchCheckLayerAvailability"]

    # Nobody knows the size of a stream, so it is sent.
    layer = uploader.upload(iter([BLOB]), digest=digest)
    assert layer == UploadedLayer(DIGEST, 45, existed=False)


def test_missing_asks_about_100_layers_per_call(ecr: LocalECR, uploader: LayerUploader) -> None:
    assert uploader.missing([]) == set()
    assert ecr.calls == []
    uploader.upload(BLOB)
    ecr.calls.clear()
    missing = [digest_of(random_bytes(9, seed)) for seed in range(250)]

    assert uploader.missing([*missing, DIGEST, DIGEST]) == set(missing)
    assert operations(ecr) == ["BatchCheckLayerAvailability"] * 3


# Progress


def test_progress_is_called_before_each_attempt_and_after_each_part(
    uploader: LayerUploader,
) -> None:
    progress_calls: list[int] = []

    uploader.upload(BLOB, progress=progress_calls.append)

    hashing, checking, initiating, completing = [0], [0], [0], [0]
    sending = [0, 8] * 5 + [0, 5]
    assert progress_calls == hashing + checking + initiating + sending + completing


def test_progress_is_negative_when_upload_starts_over(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    ecr.fail("UploadLayerPart", "upload_forgotten", call=3)
    progress_calls: list[int] = []

    uploader.upload(BLOB, progress=progress_calls.append)

    assert [n for n in progress_calls if n] == [8, 8, -16, 8, 8, 8, 8, 8, 5]


@pytest.mark.parametrize("failing_call", range(1, 12))
def test_exception_from_progress_ends_upload(failing_call: int, uploader: LayerUploader) -> None:
    class StopError(ValueError):
        """Derived from a type that the library itself might catch."""

    calls = 0

    def progress(_n: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing_call:
            raise StopError

    with pytest.raises(StopError):
        uploader.upload(BLOB, progress=progress)

    assert calls == failing_call


@pytest.mark.parametrize("operation", ["UploadLayerPart", "CompleteLayerUpload"])
def test_does_not_handle_own_error_raised_by_progress(
    operation: str, ecr: LocalECR, uploader: LayerUploader
) -> None:
    """A callback that uses this library may raise its errors."""
    error = UploadLostError("raised by progress")
    ecr.fail(operation, "answer_lost")  # so that progress is called again before the retry

    def progress(_n: int) -> None:
        if ecr.calls_of(operation):
            raise error

    with pytest.raises(UploadLostError) as raised:
        uploader.upload(BLOB, progress=progress)

    assert raised.value is error
    assert len(ecr.calls_of("InitiateLayerUpload")) == 1


def test_keyboard_interrupt_ends_wait_before_retry(ecr: LocalECR) -> None:
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    ecr.fail("UploadLayerPart", "throttled")
    retrying = default_retrying().copy(sleep=interrupt)

    with pytest.raises(KeyboardInterrupt):
        LayerUploader(ecr.client(), "demo", retrying=retrying).upload(BLOB)


# Part sizes and limits


def test_part_size_overrides_size_suggested_by_ecr(ecr: LocalECR) -> None:
    uploader = LayerUploader(
        ecr.client(), "demo", part_size=12, limits=SMALL_LIMITS, retrying=NO_WAIT
    )

    layer = uploader.upload(BLOB)

    assert [sent.part.size for sent in layer.parts] == [12, 12, 12, 9]


@pytest.mark.parametrize("size_given", [True, False], ids=["size given", "size unknown"])
@pytest.mark.parametrize("size", [479, 480, 481, 499, 500])
def test_layer_of_any_allowed_size_fits(
    size: int, size_given: bool, ecr: LocalECR, uploader: LayerUploader
) -> None:
    """60 parts of 8 bytes hold 480. For more, parts are larger from the start or grow later."""
    blob = random_bytes(size)

    layer = uploader.upload(iter([blob]), size=size if size_given else None)

    assert ecr.layer("demo", layer.digest) == blob
    assert len(layer.parts) <= 60


@pytest.mark.parametrize("kind", REPLAYABLE)
def test_rejects_too_large_layer_before_first_call(
    kind: str, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    source = REPLAYABLE[kind](random_bytes(501), tmp_path, random.Random(0))

    with pytest.raises(LayerTooLargeError, match="at most 500"):
        uploader.upload(source)

    assert ecr.calls == []


def test_rejects_too_large_stream_of_known_size_before_first_call(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    with pytest.raises(LayerTooLargeError, match="at most 500"):
        uploader.upload(iter([random_bytes(501)]), size=501)
    assert ecr.calls == []


def test_never_completes_too_large_stream_of_unknown_size(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    with pytest.raises(LayerTooLargeError, match="the layer continues past byte"):
        uploader.upload(iter([random_bytes(501)]))
    assert ecr.calls_of("CompleteLayerUpload") == []


def test_rejects_part_size_too_small_for_layer(ecr: LocalECR) -> None:
    uploader = LayerUploader(ecr.client(), "demo", part_size=5, limits=SMALL_LIMITS)
    with pytest.raises(LayerTooLargeError, match="use parts of 6 bytes or more"):
        uploader.upload(random_bytes(301))
    assert ecr.calls == []


# Invalid arguments


@pytest.mark.parametrize("kind", SOURCES)
def test_rejects_empty_layer(
    kind: str, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    with pytest.raises(EmptyLayerError, match="empty"):
        uploader.upload(SOURCES[kind](b"", tmp_path, random.Random(0)))
    assert ecr.calls == []


def test_rejects_size_zero_as_value_error(ecr: LocalECR, uploader: LayerUploader) -> None:
    with pytest.raises(ValueError, match="empty"):
        uploader.upload(BareReader(b""), size=0)
    assert ecr.calls == []


def test_rejects_invalid_source(ecr: LocalECR, uploader: LayerUploader, tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        uploader.upload(tmp_path)
    with pytest.raises(FileNotFoundError):
        uploader.upload(tmp_path / "missing")
    for source in (None, 5, iter([5]), io.StringIO("text"), iter(["text"])):
        with pytest.raises(TypeError):
            uploader.upload(source)  # type: ignore[arg-type]  # checks the error for wrong types
    assert ecr.calls == []


@pytest.mark.parametrize(
    ("digest", "error"),
    [
        pytest.param("", ValueError, id="empty"),
        pytest.param("sha256:", ValueError, id="no digits"),
        pytest.param("sha256:" + "0" * 63, ValueError, id="63 digits"),
        pytest.param("sha256:" + "0" * 65, ValueError, id="65 digits"),
        pytest.param("sha256:" + "A" * 64, ValueError, id="upper case"),
        pytest.param("sha256:" + "g" * 64, ValueError, id="not hexadecimal"),
        pytest.param("0" * 64, ValueError, id="no algorithm"),
        pytest.param("sha512:" + "0" * 128, ValueError, id="sha512"),
        pytest.param(f"{DIGEST}\n", ValueError, id="trailing newline"),
        pytest.param(b"sha256:" + b"0" * 64, TypeError, id="bytes"),
    ],
)
def test_rejects_invalid_digest(
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


def test_missing_rejects_single_str(uploader: LayerUploader) -> None:
    with pytest.raises(TypeError, match="digests must be an iterable"):
        uploader.missing(DIGEST)


@pytest.mark.parametrize("session", ["{}", 5])
def test_upload_rejects_object_that_is_not_a_session(session: Any, uploader: LayerUploader) -> None:
    with pytest.raises(TypeError, match="must be an UploadSession"):
        uploader.upload(BLOB, session=session)


def test_rejects_invalid_constructor_arguments(ecr: LocalECR) -> None:
    valid: dict[str, Any] = {"client": ecr.client(), "repository_name": "demo"}
    invalid: list[tuple[dict[str, Any], type[Exception]]] = [
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
    ]
    for arguments, error in invalid:
        with pytest.raises(error):
            LayerUploader(**valid | arguments)
    with pytest.raises(ValueError, match="between 5,242,880 and 20,971,520"):
        LayerUploader(**valid, part_size=5 * 1024**2 - 1)


# Errors of the service


@pytest.mark.parametrize("check_existing", [True, False])
def test_error_for_missing_repository_says_to_create_it(
    check_existing: bool, ecr: LocalECR
) -> None:
    uploader = LayerUploader(ecr.client(), "team/missing", retrying=NO_WAIT)

    with pytest.raises(ServiceError, match=r"'team/missing'.*Create the repository") as raised:
        uploader.upload(BLOB, check_existing=check_existing)

    assert raised.value.code == "RepositoryNotFoundException"
    assert ecr.calls_of("UploadLayerPart") == []


def test_accepts_id_of_existing_registry(ecr: LocalECR) -> None:
    uploader = LayerUploader(ecr.client(), "demo", registry_id="012345678910", limits=SMALL_LIMITS)
    assert uploader.upload(BLOB).digest == DIGEST


@pytest.mark.parametrize(
    ("service", "code"),
    [("ecr", "RepositoryNotFoundException"), ("ecr-public", "RegistryNotFoundException")],
)
def test_error_for_missing_registry_names_it(service: str, code: str, ecr: LocalECR) -> None:
    uploader = LayerUploader(ecr.client(service), "demo", registry_id="999999999999")

    with pytest.raises(ServiceError, match="999999999999") as raised:
        uploader.upload(BLOB)

    assert raised.value.code == code


def test_wraps_error_for_parameter_that_botocore_rejects(ecr: LocalECR) -> None:
    with pytest.raises(ServiceError, match="Invalid length for parameter registryId"):
        LayerUploader(ecr.client("ecr-public"), "demo", registry_id="x").upload(BLOB)


@pytest.mark.parametrize(
    ("argument", "upload"),
    [
        ("source", lambda uploader, bad: uploader.upload(bad)),
        ("source", lambda uploader, bad: uploader.upload(Path(bad))),
        ("checkpoint", lambda uploader, bad: uploader.upload(BLOB, checkpoint=bad)),
        (r"layers\[1\].source", lambda uploader, bad: uploader.upload_many([BLOB, bad])),
        (
            "checkpoint",
            lambda uploader, bad: uploader.upload_many([BLOB, Layer(BLOB, checkpoint=bad)]),
        ),
        ("image", lambda uploader, bad: uploader.push_image(bad)),
        ("checkpoint_dir", lambda uploader, bad: uploader.push_image(".", checkpoint_dir=bad)),
    ],
)
@pytest.mark.parametrize("bad", ["a\0b", "a\ud800b"])
def test_rejects_path_that_no_file_can_have(
    bad: str,
    argument: str,
    upload: Callable[[LayerUploader, str], object],
    ecr: LocalECR,
    uploader: LayerUploader,
) -> None:
    with pytest.raises(ValueError, match=f"{argument} must be a path without NUL") as raised:
        upload(uploader, bad)
    assert bad not in str(raised.value)
    assert ecr.calls == []


class BytesPath(os.PathLike[Any]):
    """Like the entries of ``os.scandir(b"…")``."""

    @override
    def __fspath__(self) -> bytes:
        return b"a path"


@pytest.mark.parametrize(
    ("argument", "upload"),
    [
        ("source", lambda uploader: uploader.upload(BytesPath())),
        (r"layers\[0\].source", lambda uploader: uploader.upload_many([BytesPath()])),
        ("checkpoint", lambda uploader: uploader.upload(BLOB, checkpoint=BytesPath())),
        ("image", lambda uploader: uploader.push_image(BytesPath())),
        ("checkpoint_dir", lambda uploader: uploader.push_image(".", checkpoint_dir=BytesPath())),
    ],
)
def test_rejects_path_of_type_bytes(
    argument: str, upload: Callable[[LayerUploader], object], ecr: LocalECR, uploader: LayerUploader
) -> None:
    """A path made absolute is bytes, and would be taken for the content of the layer."""
    with pytest.raises(TypeError, match=f"{argument} must be a path of type str, not b'a path'"):
        upload(uploader)
    assert ecr.calls == []


@pytest.mark.skipif(sys.platform != "linux", reason="file names must be UTF-8")
def test_accepts_name_that_cannot_be_decoded(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    """Python has surrogates for bytes that are not UTF-8."""
    path = os.fsencode(tmp_path) + b"/\xff"
    with open(path, "wb") as file:
        file.write(BLOB)
    assert uploader.upload(os.fsdecode(path)).digest == DIGEST


@pytest.mark.parametrize(
    "name",
    ["x", "Team/app", "team/app:v1", "team//app", "team/app/", "-app", "a" * 257,
     "012345678910.dkr.ecr.us-east-1.amazonaws.com/Team"],
)  # fmt: skip
def test_rejects_name_that_no_repository_can_have(name: str, ecr: LocalECR) -> None:
    with pytest.raises(ValueError, match=r"^repository_name must "):
        LayerUploader(ecr.client(), name)


@pytest.mark.parametrize("name", ["ab", "team/app", "a.b_c__d-e--f/g", "ghcr.io/team/app"])
def test_accepts_name_of_a_repository(name: str, ecr: LocalECR) -> None:
    assert repr(name) in repr(LayerUploader(ecr.client(), name))
    assert ecr.calls == []


@pytest.mark.parametrize("service", ["ecr", "ecr-public"])
def test_error_for_denied_access_names_iam_action(service: str, ecr: LocalECR) -> None:
    ecr.fail("InitiateLayerUpload", "access_denied")
    uploader = LayerUploader(ecr.client(service), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)

    with pytest.raises(ServiceError, match=f"Allow {service}:InitiateLayerUpload on"):
        uploader.upload(BLOB)

    assert ecr.calls_of("UploadLayerPart") == []


def test_error_for_expired_credentials_carries_session(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    ecr.fail("UploadLayerPart", "expired_token", call=2)

    with pytest.raises(ServiceError, match=r"ExpiredToken.*get new credentials") as raised:
        uploader.upload(BLOB)

    assert len(ecr.calls_of("UploadLayerPart")) == 2
    assert raised.value.session is not None
    assert raised.value.session.next_byte == 8


def test_wraps_error_for_missing_credentials(
    ecr: LocalECR, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_rejects_part_size_zero_from_ecr(ecr: LocalECR, uploader: LayerUploader) -> None:
    ecr.respond("InitiateLayerUpload", {"uploadId": "u-1", "partSize": 0})
    with pytest.raises(UnexpectedResponseError, match=r"partSize positive, not .* and 0"):
        uploader.upload(BLOB)
