"""``LayerUploader.upload_many``: order, equal content, errors, progress and checkpoints."""

from __future__ import annotations

import copy
import io
import os
import pickle
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    NO_WAIT,
    SMALL_LIMITS,
    SOURCES,
    StopUploadError,
    digest_of,
    random_bytes,
    wait_for_threads,
    write_layer,
)
from pytest_mock import MockerFixture

from ecr_parts import (
    CheckpointError,
    DigestMismatchError,
    EcrPartsError,
    EmptyLayerError,
    Layer,
    LayerTooLargeError,
    LayerUploader,
    ServiceError,
    SourceChangedError,
    UploadedLayer,
    UploadSession,
    default_retrying,
)
from ecr_parts.testing import LocalECR

BLOBS = [random_bytes(20 + seed, seed) for seed in range(12)]


@pytest.fixture(params=["ecr", "ecr-public"])
def uploader(ecr: LocalECR, request: pytest.FixtureRequest) -> LayerUploader:
    return LayerUploader(ecr.client(request.param), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)


def count(ecr: LocalECR, operation: str) -> int:
    return len(ecr.calls_of(operation))


def store_layer(ecr: LocalECR, blob: bytes) -> None:
    """Store a layer of one part without HTTP, which takes longer."""
    call, repository = ecr.registry.call, {"repositoryName": "demo"}
    upload = repository | {"uploadId": call("InitiateLayerUpload", repository)["uploadId"]}
    part = {"partFirstByte": 0, "partLastByte": len(blob) - 1, "layerPartBlob": blob}
    call("UploadLayerPart", upload | part)
    call("CompleteLayerUpload", upload | {"layerDigests": [digest_of(blob)]})


def session_of(blob: bytes) -> UploadSession:
    return UploadSession(
        repository_name="demo", upload_id="u", part_size=8, layer_digest=digest_of(blob)
    )


# Results


@pytest.mark.parametrize("max_workers", [1, 3, 32])
@pytest.mark.parametrize("check_existing", [True, False])
def test_returns_one_result_per_layer_in_order(
    max_workers: int, check_existing: bool, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    rng = random.Random(0)
    blobs = [BLOBS[i % 12] + bytes([i]) for i in range(len(SOURCES))]
    sources = []
    for i, make_source in enumerate(SOURCES.values()):
        directory = tmp_path / str(i)
        directory.mkdir()
        sources.append(make_source(blobs[i], directory, rng))
    progress_calls: list[int] = []

    results = uploader.upload_many(
        sources,
        max_workers=max_workers,
        check_existing=check_existing,
        progress=progress_calls.append,
    )

    assert [result.digest for result in results] == [digest_of(blob) for blob in blobs]
    for blob in blobs:
        assert ecr.layer("demo", digest_of(blob)) == blob
    assert sum(progress_calls) == sum(map(len, blobs))
    wait_for_threads()


def test_empty_list_makes_no_calls(ecr: LocalECR, uploader: LayerUploader) -> None:
    assert uploader.upload_many([]) == []
    assert uploader.upload_many(iter([])) == []
    assert ecr.calls == []


def test_checks_100_digests_per_call(ecr: LocalECR, uploader: LayerUploader) -> None:
    blobs = [random_bytes(5, seed) for seed in range(300)]
    missing = range(0, 300, 20)
    for number in {*range(300)}.difference(missing):
        store_layer(ecr, blobs[number])
    progress_calls: list[int] = []

    results = uploader.upload_many(blobs, max_workers=8, progress=progress_calls.append)

    assert [i for i, result in enumerate(results) if not result.existed] == [*missing]
    assert count(ecr, "BatchCheckLayerAvailability") == 3
    assert count(ecr, "InitiateLayerUpload") == len(missing)
    assert sum(progress_calls) == 300 * 5


def test_recovers_from_lost_answers_in_parallel(ecr: LocalECR, uploader: LayerUploader) -> None:
    for call in range(1, 40, 3):
        ecr.fail("UploadLayerPart", "answer_lost", call=call)
    uploader.upload_many(BLOBS, max_workers=6, check_existing=False)
    for blob in BLOBS:
        assert ecr.layer("demo", digest_of(blob)) == blob


def test_reads_file_objects_and_iterators_in_callers_thread(uploader: LayerUploader) -> None:
    threads: set[int] = set()

    class RecordingFile(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            threads.add(threading.get_ident())
            return super().read(size)

    def chunks(blob: bytes) -> Iterator[bytes]:
        threads.add(threading.get_ident())
        yield blob

    files = [RecordingFile(blob) for blob in BLOBS[:4]]
    uploader.upload_many([*files, *map(chunks, BLOBS[4:8]), *BLOBS[8:]])
    assert threads == {threading.get_ident()}


# Iterators of layers


def test_reads_iterator_as_workers_take_layers(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    """So each layer may be a temporary file that is deleted a few layers later."""
    blobs = [random_bytes(9, i) for i in range(20)]
    started = 0

    def layers() -> Iterator[bytes | Path]:
        nonlocal started
        for i, blob in enumerate(blobs):
            completed = len(ecr.registry.repositories["demo"].layers)
            assert started - completed <= 3
            started += 1
            if i % 2:
                yield blob
            else:
                path = tmp_path / str(i)
                path.write_bytes(blob)
                yield path

    results = uploader.upload_many(layers(), max_workers=3)
    assert [result.digest for result in results] == [digest_of(blob) for blob in blobs]


def test_iterator_may_drop_streams_after_yielding_them(uploader: LayerUploader) -> None:
    """A new stream may get the memory address, and so the ``id``, of one that was deleted."""
    files = (io.BytesIO(b"%d" % i) for i in range(15))
    assert len(uploader.upload_many(files, max_workers=1)) == 15


def test_iterator_may_mix_all_kinds_of_sources(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    rng = random.Random(1)
    sources = [
        make_source(BLOBS[i % 12], tmp_path, rng)
        for i, (kind, make_source) in enumerate(SOURCES.items())
        if kind not in ("path", "str")
    ]
    assert len(uploader.upload_many(iter(sources), max_workers=2)) == len(sources)
    for max_workers in (1, 2, 5):
        layers: list[Any] = [b"a%d" % max_workers, b"a%d" % max_workers, io.BytesIO(b"b")]
        results = uploader.upload_many(iter(layers), max_workers=max_workers)
        assert sorted(result.existed for result in results[:2]) == [False, True]
        assert results[2].digest == digest_of(b"b")


# Layers with equal content


def test_sends_equal_content_once(ecr: LocalECR, uploader: LayerUploader) -> None:
    a, b, digest = BLOBS[0], BLOBS[1], digest_of(BLOBS[0])
    layer_progress: list[int] = []
    batch_progress: list[int] = []

    results = uploader.upload_many(
        [
            a,
            b,
            Layer(bytearray(a), progress=layer_progress.append),
            Layer(iter([a]), digest=digest),
        ],
        progress=batch_progress.append,
    )

    assert [result.existed for result in results] == [False, False, True, True]
    assert results[2] == UploadedLayer(digest, 20, existed=True)
    assert count(ecr, "InitiateLayerUpload") == 2
    assert sum(layer_progress) == 20
    assert sum(batch_progress) == 20 * 3 + 21


@pytest.mark.parametrize("check_existing", [True, False])
def test_digest_of_one_layer_is_no_knowledge_about_another_with_the_same_source(
    check_existing: bool, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    path = write_layer(BLOBS[0], tmp_path)
    other = uploader.upload(random_bytes(len(BLOBS[0]), seed=99)).digest
    claimed, unclaimed = uploader.upload_many(
        [Layer(path, digest=other), path], check_existing=True
    )
    assert claimed.digest == other  # as the caller says
    assert unclaimed.digest == digest_of(BLOBS[0])
    assert ecr.layer("demo", unclaimed.digest) == BLOBS[0]
    if not check_existing:
        with pytest.raises(DigestMismatchError):
            uploader.upload_many([path, Layer(path, digest=other)], check_existing=False)


@pytest.mark.parametrize("check_existing", [True, False])
def test_sends_same_path_or_buffer_once(
    check_existing: bool, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    path, link = tmp_path / "layer", tmp_path / "link"
    path.write_bytes(BLOBS[0])
    link.symlink_to(path)
    buffer = bytearray(BLOBS[1])
    progress_calls: list[int] = []
    results = uploader.upload_many(
        [path, str(path), Layer(link, digest=digest_of(BLOBS[0]), size=20), buffer, buffer],
        check_existing=check_existing,
        progress=progress_calls.append,
    )
    digests = [digest_of(BLOBS[0])] * 3 + [digest_of(BLOBS[1])] * 2
    assert [result.digest for result in results] == digests
    assert [result.existed for result in results] == [False, True, True, False, True]
    assert count(ecr, "InitiateLayerUpload") == 2
    assert sum(progress_calls) == 20 * 3 + 21 * 2


def test_ecr_rejects_repeated_layer_with_wrong_digest(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    path = tmp_path / "layer"
    path.write_bytes(BLOBS[0])
    pairs: list[list[Any]] = [
        [path, Layer(path, digest=digest_of(b"other"))],
        [Layer(path, digest=digest_of(BLOBS[0])), Layer(b"abc", digest=digest_of(BLOBS[0]))],
    ]
    for layers in pairs:
        with pytest.raises(DigestMismatchError) as raised:
            uploader.upload_many(layers)
        assert raised.value.layer is layers[1]


def test_rejects_stream_or_checkpoint_passed_twice(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    stream = iter(BLOBS)
    file = io.BytesIO(BLOBS[0])
    path = tmp_path / "checkpoint"
    same_checkpoint = [Layer(BLOBS[0], checkpoint=path), Layer(BLOBS[1], checkpoint=str(path))]
    lists: list[list[Any]] = [[stream, stream], [file, Layer(file)], same_checkpoint]
    for layers in lists:
        with pytest.raises(ValueError, match="twice"):
            uploader.upload_many(layers)
        assert ecr.calls == []
    with pytest.raises(ValueError, match=r"layers\[1\].checkpoint, '.*', was passed twice"):
        uploader.upload_many(iter(same_checkpoint), max_workers=1)
    with pytest.raises(ValueError, match="the same stream was passed twice"):
        uploader.upload_many(iter([file, file]), max_workers=2)


# Progress


@pytest.mark.parametrize("kind", ["list", "file object", "progress of the layer"])
def test_exception_in_progress_ends_batch(kind: str, uploader: LayerUploader) -> None:
    class ProgressError(Exception):
        pass

    def progress(newly_confirmed: int) -> None:
        if newly_confirmed:
            raise ProgressError

    layers: dict[str, list[Any]] = {
        "list": [*BLOBS],
        "file object": [io.BytesIO(BLOBS[0])],
        "progress of the layer": [Layer(BLOBS[0], progress=progress)],
    }
    with pytest.raises(ProgressError):
        uploader.upload_many(layers[kind], progress=progress)


def test_calls_progress_one_at_a_time(uploader: LayerUploader) -> None:
    running = calls = 0

    def progress(_newly_confirmed: int) -> None:
        nonlocal running, calls
        calls += 1
        running += 1
        for _ in range(100_000 if calls < 10 else 0):  # gives the other workers time to call it
            pass
        assert running == 1
        running -= 1

    uploader.upload_many(BLOBS, max_workers=8, progress=progress)


# Errors


def test_first_error_stops_other_layers_and_their_waits(
    ecr: LocalECR, mocker: MockerFixture
) -> None:
    """One layer is throttled and would wait for an hour while another one fails."""
    mocker.patch("ecr_parts._base.threads._WAKE_INTERVAL", 0.05)  # seconds, for a faster test
    throttled = threading.Event()
    retrying = default_retrying().copy(wait=lambda _state: 3_600)
    ecr.fail("InitiateLayerUpload", "throttled", call=1)
    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS, retrying=retrying)

    def progress(newly_confirmed: int) -> None:
        if newly_confirmed == 0 and any(call.outcome == "throttled" for call in ecr.calls):
            throttled.set()

    def failing_source() -> Iterator[bytes]:
        throttled.wait()
        raise ConnectionError("the producer died")
        yield b""

    failing = Layer(failing_source())
    with pytest.raises(ConnectionError, match="the producer died") as raised:
        uploader.upload_many(
            [BLOBS[0], failing, *BLOBS[1:]],
            max_workers=2,
            check_existing=False,
            progress=progress,
        )
    assert raised.value.layer is failing  # type: ignore[attr-defined]  # set on any exception
    wait_for_threads()
    assert len(ecr.registry.repositories["demo"].layers) < len(BLOBS)


def test_error_in_worker_ends_upload_in_callers_thread(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    failed = threading.Event()

    def fail(newly_confirmed: int) -> None:
        if newly_confirmed:
            failed.set()
            raise ConnectionError("in a worker")

    def long_source() -> Iterator[bytes]:
        failed.wait()
        for _ in range(50):
            yield bytes(8)

    with pytest.raises(ConnectionError, match="in a worker"):
        uploader.upload_many([Layer(BLOBS[0], progress=fail), long_source()])
    assert digest_of(bytes(400)) not in ecr.registry.repositories["demo"].layers


def test_keyboard_interrupt_in_source_ends_batch(ecr: LocalECR, uploader: LayerUploader) -> None:
    def interrupted_source() -> Iterator[bytes]:
        yield BLOBS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        uploader.upload_many([interrupted_source(), *BLOBS])


def test_error_names_its_layer(ecr: LocalECR, uploader: LayerUploader, tmp_path: Path) -> None:
    cases: list[tuple[Any, type[Exception]]] = [
        (Layer(BLOBS[3], digest=digest_of(b"other")), DigestMismatchError),
        (Layer(b""), EmptyLayerError),
        (Layer(tmp_path / "missing"), FileNotFoundError),
        (Layer(bytes(501)), EcrPartsError),
        (Layer(io.StringIO("text")), TypeError),  # type: ignore[arg-type]  # wrong on purpose
    ]
    for layer, error in cases:
        with pytest.raises(error) as raised:
            uploader.upload_many([BLOBS[0], layer, BLOBS[1]])
        assert raised.value.layer is layer  # type: ignore[attr-defined]  # set on any exception

    ecr.fail("InitiateLayerUpload", "access_denied")
    without_digest = Layer(b"its digest is computed by the uploader")
    with pytest.raises(ServiceError) as denied:
        uploader.upload_many([without_digest])
    assert denied.value.layer is without_digest

    with pytest.raises(ServiceError) as missing_repository:
        LayerUploader(ecr.client(), "none", retrying=NO_WAIT).upload_many(BLOBS[:2])
    assert missing_repository.value.layer is None  # one call asked for both layers


@pytest.mark.parametrize(
    ("layers", "arguments", "error"),
    [
        ("layer.tar.gz", {}, TypeError),
        (b"bytes", {}, TypeError),
        (Layer(b"one"), {}, TypeError),
        (None, {}, TypeError),
        ([b"x"], {"max_workers": 0}, ValueError),
        ([b"x"], {"max_workers": "4"}, TypeError),
        ([Layer(b"x", digest="md5:00")], {}, ValueError),
        ([5], {}, TypeError),
    ],
)
def test_rejects_invalid_arguments_before_first_call(
    layers: Any, arguments: Any, error: type[Exception], ecr: LocalECR, uploader: LayerUploader
) -> None:
    with pytest.raises(error):
        uploader.upload_many(layers, **arguments)
    assert ecr.calls == []


INVALID_LAYERS: list[tuple[Any, type[Exception]]] = [
    (5, TypeError),
    (Layer(None), TypeError),  # type: ignore[arg-type]  # wrong on purpose
    (Layer(b"x", size=-1), ValueError),
    (Layer(b"x", size="1"), TypeError),  # type: ignore[arg-type]  # wrong on purpose
    (Layer(b"x", size=2), SourceChangedError),
    (Layer(b""), EmptyLayerError),
    (Layer(iter([b"x"]), size=0), EmptyLayerError),
    (Layer(bytes(501)), LayerTooLargeError),
    (Layer("/nonexistent", digest=digest_of(b"x")), FileNotFoundError),
    (Layer(b"x", progress=5), TypeError),  # type: ignore[arg-type]  # wrong on purpose
    (Layer(b"x", checkpoint=5), TypeError),  # type: ignore[arg-type]  # wrong on purpose
    (Layer(b"x", checkpoint=b"c"), TypeError),  # type: ignore[arg-type]  # wrong on purpose
    (Layer(b"x", checkpoint=""), CheckpointError),
    (Layer(b"x", checkpoint="/nonexistent/c"), CheckpointError),
    (Layer(b"x", checkpoint="a\0b"), ValueError),
    (Layer(iter([b"x"]), checkpoint="c"), ValueError),
    (Layer(b"x", digest="sha256:"), ValueError),
]


@pytest.mark.parametrize("check_existing", [True, False])
@pytest.mark.parametrize(("invalid", "error"), INVALID_LAYERS)
def test_rejects_invalid_layer_before_first_call(
    invalid: Any,
    error: type[Exception],
    check_existing: bool,
    ecr: LocalECR,
    uploader: LayerUploader,
) -> None:
    with pytest.raises(error) as raised:
        uploader.upload_many([BLOBS[0], invalid, BLOBS[1]], check_existing=check_existing)
    assert ecr.calls == []
    if isinstance(invalid, Layer):
        assert raised.value.layer is invalid  # type: ignore[attr-defined]  # set on any exception


def test_rejects_progress_that_is_not_callable(ecr: LocalECR, uploader: LayerUploader) -> None:
    for upload in (
        lambda: uploader.upload(BLOBS[0], progress=5),  # type: ignore[arg-type]  # wrong on purpose
        lambda: uploader.upload_many(BLOBS, progress=5),  # type: ignore[arg-type]  # wrong on purpose
    ):
        with pytest.raises(TypeError, match="progress must be callable or None, not 5"):
            upload()
    assert ecr.calls == []


# Checkpoints


def test_each_layer_may_have_its_own_checkpoint(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    ecr.fail("UploadLayerPart", "access_denied", call=3)
    layers = [
        Layer(blob, checkpoint=tmp_path / f"{i}.checkpoint") for i, blob in enumerate(BLOBS[:3])
    ]
    with pytest.raises(ServiceError):
        uploader.upload_many(layers, max_workers=1)
    assert len(list(tmp_path.iterdir())) == 1
    parts_before = count(ecr, "UploadLayerPart")

    repeated = Layer(BLOBS[0], checkpoint=tmp_path / "repeated.checkpoint")
    (tmp_path / "repeated.checkpoint").write_text(session_of(BLOBS[0]).to_json())
    results = uploader.upload_many([*layers, repeated], max_workers=1)

    assert [result.existed for result in results] == [False, False, False, True]
    assert count(ecr, "UploadLayerPart") - parts_before == 3 * 3 - 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damaged", [True, False])
def test_repeated_layer_leaves_foreign_or_damaged_checkpoint_unchanged(
    damaged: bool, uploader: LayerUploader, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    text = "damaged" if damaged else session_of(b"other").to_json()
    checkpoint.write_text(text)
    repeated = Layer(BLOBS[0], checkpoint=checkpoint)
    if damaged:
        with pytest.raises(CheckpointError) as raised:
            uploader.upload_many([BLOBS[0], repeated])
        assert raised.value.layer is repeated
    else:
        assert uploader.upload_many([BLOBS[0], repeated])[1].existed
    assert checkpoint.read_text() == text


# Pickling and copying


def test_layer_and_its_error_can_be_pickled() -> None:
    layer = Layer("layer.tar.gz", digest=digest_of(b"x"), size=1, checkpoint="c")
    assert pickle.loads(pickle.dumps(layer)) == layer
    error = EcrPartsError("message")
    error.layer = layer
    assert pickle.loads(pickle.dumps(error)).layer == layer


def pickle_error(error: BaseException) -> tuple[int, Any]:
    """The size of the pickle (bytes), and the error that it is loaded as."""
    text = pickle.dumps(error)
    return len(text), pickle.loads(text)


def test_pickled_error_omits_content_of_source(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    path = tmp_path / "layer"
    path.write_bytes(BLOBS[0])
    large = bytes(100_000)
    sources: list[Any] = [
        path,
        str(path),
        large,
        bytearray(large),
        io.BytesIO(large),
        iter([large]),
    ]
    for source in sources:
        layer = Layer(source, digest=digest_of(b"other"), progress=lambda _n: None)
        with pytest.raises(EcrPartsError) as raised:
            uploader.upload_many([layer], check_existing=False, progress=lambda _n: None)
        assert raised.value.layer is layer
        size, loaded = pickle_error(raised.value)
        assert size < 5_000
        assert str(loaded) == str(raised.value)
        assert loaded.layer.digest == layer.digest
        assert loaded.layer.progress is None
        if isinstance(source, str | Path):
            assert loaded.layer.source == str(path)
        else:
            with pytest.raises(TypeError, match="a source that was not pickled"):
                uploader.upload(loaded.layer.source)

    def failing_source() -> Iterator[bytes]:
        yield BLOBS[0]
        raise ConnectionError("the producer died")

    with pytest.raises(ConnectionError) as raised_by_source:
        uploader.upload_many([Layer(failing_source(), progress=lambda _n: None)])
    assert str(pickle_error(raised_by_source.value)[1]) == "the producer died"


def test_copied_layer_keeps_its_source() -> None:
    layer = Layer(BLOBS[0], progress=print)
    assert copy.copy(layer) is layer
    assert copy.deepcopy([layer])[0].source == BLOBS[0]


def test_rejects_file_whose_lines_would_become_layers(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    path = tmp_path / "layer"
    path.write_bytes(b"a\nb\n")
    with path.open("rb") as file, pytest.raises(TypeError, match="pass a list"):
        uploader.upload_many(file)
    with pytest.raises(TypeError, match="pass a list"):
        uploader.upload_many(5)  # type: ignore[arg-type]  # checks the error for wrong types
    assert ecr.calls == []


def test_error_of_repeated_stream_names_its_layer(uploader: LayerUploader) -> None:
    stream = io.BytesIO(b"stream")
    for layers in ([stream, stream], iter([stream, stream])):
        with pytest.raises(ValueError, match="passed twice") as raised:
            uploader.upload_many(layers)
        assert raised.value.layer.source is stream  # type: ignore[attr-defined]  # set by us


def test_exception_raised_again_names_the_layer_of_the_last_call(uploader: LayerUploader) -> None:
    error = ValueError("raised twice")

    def progress(_newly_confirmed: int) -> None:
        raise error

    for source in (b"first", b"second"):
        with pytest.raises(ValueError, match="raised twice"):
            uploader.upload_many([source], progress=progress, check_existing=False)
        assert error.layer.source == source  # type: ignore[attr-defined]  # set by us


def test_pickled_layer_names_no_private_module() -> None:
    for layer in (Layer("path"), Layer(b"bytes", digest=digest_of(b"bytes"))):
        assert b"_models" not in pickle.dumps(layer)
        assert pickle.loads(pickle.dumps(layer)).digest == layer.digest


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Layer(b"x", digest="sha256:no"), "layers[1].digest must be"),
        (Layer(b"x", size=-1), "layers[1].size must be"),
        (Layer(b"x", progress=1), "layers[1].progress must be"),  # type: ignore[arg-type]  # the point
        (5, "layers[1].source must be"),
        (io.StringIO("x"), "layers[1].source, <_io.StringIO object, is open as text"),
    ],
)
def test_error_about_an_argument_names_the_layer(
    layer: Any, message: str, uploader: LayerUploader, ecr: LocalECR
) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        uploader.upload_many([BLOBS[0], layer])
    assert message.partition("<")[0] in str(caught.value)
    assert not ecr.calls


def test_starts_largest_layers_first(ecr: LocalECR, uploader: LayerUploader) -> None:
    blobs = [random_bytes(size) for size in (8, 40, 24)]
    results = uploader.upload_many(blobs, max_workers=1, check_existing=False)
    assert [result.size for result in results] == [8, 40, 24]
    completed = list(ecr.registry.repositories["demo"].layers)
    assert completed == [digest_of(blob) for blob in sorted(blobs, key=len, reverse=True)]


# The caller's thread, and paths that change


def test_paths_are_those_of_the_working_directory_at_the_call(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A callback may change the working directory, in which there may be files of that name."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for number in range(3):
        (tmp_path / f"layer-{number}").write_bytes(BLOBS[number])
        (elsewhere / f"layer-{number}").write_bytes(b"another layer of that name")
    monkeypatch.chdir(tmp_path)
    layers = uploader.upload_many(
        [Layer(f"layer-{number}", checkpoint=f"checkpoint-{number}") for number in range(3)],
        max_workers=1,
        progress=lambda _newly_confirmed: os.chdir(elsewhere),
    )
    assert [layer.digest for layer in layers] == [digest_of(blob) for blob in BLOBS[:3]]
    assert list(elsewhere.glob("checkpoint*")) == list(tmp_path.glob("checkpoint*")) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="requires FIFOs")
def test_path_that_becomes_a_fifo_is_an_error(uploader: LayerUploader, tmp_path: Path) -> None:
    """A worker would wait for ever for the FIFO's other end."""
    path = tmp_path / "layer"
    path.write_bytes(BLOBS[0])
    other = tmp_path / "other"
    other.write_bytes(BLOBS[1] * 2)

    def replace_by_fifo(_newly_confirmed: int) -> None:
        if path.is_file():
            path.unlink()
            os.mkfifo(path)

    with pytest.raises(SourceChangedError, match="is not a regular file any more"):
        uploader.upload_many([other, path], max_workers=1, progress=replace_by_fifo)


def test_progress_is_called_while_all_workers_wait(
    ecr: LocalECR, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it can end the call even if no worker gets to call it."""
    monkeypatch.setattr("ecr_parts._base.threads._WAKE_INTERVAL", 0.05)  # seconds
    reading, go_on = threading.Event(), threading.Event()

    def hang(_blob: object) -> bytes:
        reading.set()
        go_on.wait(10)
        raise OSError("the disk hung")

    monkeypatch.setattr("ecr_parts._base.fast_base64.encode", hang)
    calls_while_hanging = 0

    def progress(_newly_confirmed: int) -> None:
        nonlocal calls_while_hanging
        if reading.is_set() and threading.current_thread() is threading.main_thread():
            calls_while_hanging += 1
            if calls_while_hanging == 3:
                raise StopUploadError

    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
    try:
        with pytest.raises(StopUploadError):
            uploader.upload_many(BLOBS[:2], check_existing=False, progress=progress)
    finally:
        go_on.set()
    wait_for_threads()


@pytest.mark.parametrize("layers", [1, 3])
def test_error_of_the_last_call_is_raised_if_it_runs_in_the_callers_thread(
    layers: int, ecr: LocalECR, uploader: LayerUploader, mocker: MockerFixture
) -> None:
    """Or else the call would return as if it had succeeded."""
    mocker.patch("ecr_parts._base.threads._START_TIMEOUT", 0.01)
    mocker.patch("ecr_parts._base.workers._POLL_INTERVAL", 0.05)  # seconds, for a faster test
    mocker.patch("_thread.start_new_thread", return_value=1)
    ecr.fail("InitiateLayerUpload", "access_denied", times=100)
    with pytest.raises(ServiceError, match="AccessDenied"):
        uploader.upload_many(BLOBS[:layers], check_existing=False)
