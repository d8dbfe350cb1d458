"""Many layers at a time, over real HTTP."""

from __future__ import annotations

import copy
import io
import pickle
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import PATIENT, SMALL, SOURCES, bytes_of, digest_of, join_threads

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

BLOBS = [bytes_of(20 + seed, seed) for seed in range(12)]


@pytest.fixture(params=["ecr", "ecr-public"])
def uploader(ecr: LocalECR, request: pytest.FixtureRequest) -> LayerUploader:
    return LayerUploader(ecr.client(request.param), "demo", limits=SMALL, retrying=PATIENT)


def count(ecr: LocalECR, operation: str) -> int:
    return [call.operation for call in ecr.calls].count(operation)


@pytest.mark.parametrize("max_workers", [1, 2, 4, 32])
@pytest.mark.parametrize("check_existing", [True, False])
def test_as_many_results_as_layers_in_their_order(
    max_workers: int, check_existing: bool, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    rng = random.Random(0)
    layers = []
    for i, kind in enumerate(SOURCES):
        directory = tmp_path / str(i)
        directory.mkdir()
        layers.append(SOURCES[kind](BLOBS[i % 12] + bytes([i]), directory, rng))
    heard: list[int] = []

    results = uploader.upload_many(
        layers, max_workers=max_workers, check_existing=check_existing, progress=heard.append
    )

    expected = [BLOBS[i % 12] + bytes([i]) for i in range(len(SOURCES))]
    assert [result.digest for result in results] == [digest_of(blob) for blob in expected]
    for blob in expected:
        assert ecr.layer("demo", digest_of(blob)) == blob
    assert sum(heard) == sum(map(len, expected))
    join_threads()


def test_equal_content_is_sent_once(ecr: LocalECR, uploader: LayerUploader) -> None:
    a, b, digest = BLOBS[0], BLOBS[1], digest_of(BLOBS[0])
    own: list[int] = []
    everything: list[int] = []

    results = uploader.upload_many(
        [a, b, Layer(bytearray(a), progress=own.append), Layer(iter([a]), digest=digest)],
        progress=everything.append,
    )

    assert [result.existed for result in results] == [False, False, True, True]
    assert results[2] == UploadedLayer(digest, 20, existed=True)
    assert count(ecr, "InitiateLayerUpload") == 2
    assert sum(own) == 20
    assert sum(everything) == 20 * 3 + 21


def test_availability_is_asked_100_at_a_time(ecr: LocalECR, uploader: LayerUploader) -> None:
    blobs = [bytes_of(5, seed) for seed in range(250)]
    uploader.upload_many(blobs[:120])
    ecr.calls.clear()
    heard: list[int] = []

    results = uploader.upload_many(blobs, max_workers=8, progress=heard.append)

    assert [result.existed for result in results] == [True] * 120 + [False] * 130
    assert count(ecr, "BatchCheckLayerAvailability") == 3
    assert count(ecr, "InitiateLayerUpload") == 130
    assert sum(heard) == 250 * 5


def test_a_generator_is_read_no_further_than_may_run(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    given: list[int] = []

    def layers() -> Iterator[bytes]:
        for i in range(40):
            done = len(ecr.registry.repositories["demo"].layers)
            assert len(given) - done <= 3
            given.append(i)
            yield bytes_of(9, i)

    assert len(uploader.upload_many(layers(), max_workers=3)) == 40


def test_at_the_first_error_nothing_new_begins_and_waits_end(ecr: LocalECR) -> None:
    """One layer is throttled, and waits; another fails: the wait does not last."""
    client = ecr.client()
    waiting = threading.Event()
    retrying = default_retrying().copy(wait=lambda _state: 3_600)
    ecr.fail("InitiateLayerUpload", "throttled", call=1)
    uploader = LayerUploader(client, "demo", limits=SMALL, retrying=retrying)

    def wait_is_on(n: int) -> None:
        if any(call.outcome == "throttled" for call in ecr.calls) and n == 0:
            waiting.set()

    def fails() -> Iterator[bytes]:
        waiting.wait()
        raise ConnectionError("the producer died")
        yield b""

    bad = Layer(fails())
    with pytest.raises(ConnectionError, match="the producer died") as raised:
        uploader.upload_many(
            [BLOBS[0], bad, *BLOBS[1:]],
            max_workers=2,
            check_existing=False,
            progress=wait_is_on,
        )
    assert raised.value.layer is bad  # type: ignore[attr-defined]  # as promised of any error
    join_threads()
    assert len(ecr.registry.repositories["demo"].layers) < len(BLOBS)


def test_the_error_says_which_layer(ecr: LocalECR, uploader: LayerUploader, tmp_path: Path) -> None:
    wrong = Layer(BLOBS[3], digest=digest_of(b"other"))
    cases: list[tuple[Any, type[Exception]]] = [
        (wrong, DigestMismatchError),
        (Layer(b""), EmptyLayerError),
        (Layer(tmp_path / "nothing"), FileNotFoundError),
        (Layer(bytes(501)), EcrPartsError),
        (Layer(io.StringIO("text")), TypeError),  # type: ignore[arg-type]  # the point
    ]
    for layer, error in cases:
        with pytest.raises(error) as raised:
            uploader.upload_many([BLOBS[0], layer, BLOBS[1]])
        assert raised.value.layer is layer  # type: ignore[attr-defined]  # as promised of any error
    ecr.fail("InitiateLayerUpload", "access_denied")
    fresh = Layer(b"whose digest is made here")
    with pytest.raises(ServiceError) as denied:
        uploader.upload_many([fresh])
    assert denied.value.layer is fresh
    with pytest.raises(ServiceError) as refused:
        LayerUploader(ecr.client(), "none", retrying=PATIENT).upload_many(BLOBS[:2])
    assert refused.value.layer is None  # the question was for all of them


def test_what_progress_raises_ends_all(uploader: LayerUploader) -> None:
    class EnoughError(Exception):
        pass

    def progress(n: int) -> None:
        if n:
            raise EnoughError

    for layers in (BLOBS, [io.BytesIO(BLOBS[0])], [Layer(BLOBS[0], progress=progress)]):
        with pytest.raises(EnoughError):
            uploader.upload_many(layers, progress=progress)


def test_progress_is_heard_one_call_at_a_time(uploader: LayerUploader) -> None:
    inside = heard = 0

    def progress(_n: int) -> None:
        nonlocal inside, heard
        heard += 1
        inside += 1
        for _ in range(1_000_000 if heard < 10 else 0):  # long enough for another to come
            pass
        assert inside == 1
        inside -= 1

    uploader.upload_many(BLOBS, max_workers=8, progress=progress)


def test_the_callers_files_are_read_in_the_callers_thread(uploader: LayerUploader) -> None:
    threads: set[int] = set()

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            threads.add(threading.get_ident())
            return super().read(size)

    def items(blob: bytes) -> Iterator[bytes]:
        threads.add(threading.get_ident())
        yield blob

    files = [Watched(blob) for blob in BLOBS[:4]]
    uploader.upload_many([*files, *map(items, BLOBS[4:8]), *BLOBS[8:]])
    assert threads == {threading.get_ident()}


def test_each_layer_may_have_a_checkpoint(
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

    again = [*layers, Layer(BLOBS[0], checkpoint=tmp_path / "again")]
    (tmp_path / "again").write_text(
        UploadSession(
            repository_name="demo", upload_id="u", part_size=8, layer_digest=digest_of(BLOBS[0])
        ).to_json()
    )
    results = uploader.upload_many(again, max_workers=1)

    assert [result.existed for result in results] == [False, False, False, True]
    assert count(ecr, "UploadLayerPart") - parts_before == 3 * 3 - 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damaged", [True, False])
def test_a_checkpoint_of_another_layer_or_damaged_is_left_alone(
    damaged: bool, uploader: LayerUploader, tmp_path: Path
) -> None:
    kept = tmp_path / "checkpoint"
    other = UploadSession(
        repository_name="demo", upload_id="u", part_size=8, layer_digest=digest_of(b"other")
    )
    text = "damaged" if damaged else other.to_json()
    kept.write_text(text)
    twice = Layer(BLOBS[0], checkpoint=kept)
    if damaged:
        with pytest.raises(CheckpointError) as raised:
            uploader.upload_many([BLOBS[0], twice])
        assert raised.value.layer is twice
    else:
        assert uploader.upload_many([BLOBS[0], twice])[1].existed
    assert kept.read_text() == text


def test_a_generator_of_streams_may_let_go_of_them(uploader: LayerUploader) -> None:
    """A new stream may have the place in memory, and so the id, of one that is gone."""
    files = (io.BytesIO(b"%d" % i) for i in range(50))
    assert len(uploader.upload_many(files, max_workers=1)) == 50


def test_what_is_there_twice_and_cannot_be(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    stream = iter(BLOBS)
    file = io.BytesIO(BLOBS[0])
    path = tmp_path / "checkpoint"
    lists: list[list[Any]] = [
        [stream, stream],
        [file, Layer(file)],
        [Layer(BLOBS[0], checkpoint=path), Layer(BLOBS[1], checkpoint=str(path))],
    ]
    for twice in lists:
        with pytest.raises(ValueError, match="twice"):
            uploader.upload_many(twice)
        assert ecr.calls == []
    with pytest.raises(ValueError, match="checkpoint' was passed twice"):
        uploader.upload_many(iter(lists[2]), max_workers=1)
    with pytest.raises(ValueError, match="the same stream was passed twice"):
        uploader.upload_many(iter([file, file]), max_workers=2)


@pytest.mark.parametrize(
    ("layers", "more", "error"),
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
def test_what_is_no_call(
    layers: Any, more: Any, error: type[Exception], ecr: LocalECR, uploader: LayerUploader
) -> None:
    with pytest.raises(error):
        uploader.upload_many(layers, **more)
    assert ecr.calls == []


def test_an_error_in_a_thread_ends_the_callers_upload(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    failed = threading.Event()

    def fail(n: int) -> None:
        if n:
            failed.set()
            raise ConnectionError("in a thread")

    def long() -> Iterator[bytes]:
        failed.wait()
        for _ in range(50):
            yield bytes(8)

    with pytest.raises(ConnectionError, match="in a thread"):
        uploader.upload_many([Layer(BLOBS[0], progress=fail), long()])
    assert digest_of(bytes(400)) not in ecr.registry.repositories["demo"].layers


def test_no_layers_are_no_calls(ecr: LocalECR, uploader: LayerUploader) -> None:
    assert uploader.upload_many([]) == []
    assert uploader.upload_many(iter([])) == []
    assert ecr.calls == []


def test_faults_are_got_over_side_by_side(ecr: LocalECR, uploader: LayerUploader) -> None:
    for call in range(1, 40, 3):
        ecr.fail("UploadLayerPart", "answer_lost", call=call)
    uploader.upload_many(BLOBS, max_workers=6, check_existing=False)
    for blob in BLOBS:
        assert ecr.layer("demo", digest_of(blob)) == blob


def test_layers_pickle() -> None:
    layer = Layer("layer.tar.gz", digest=digest_of(b"x"), size=1, checkpoint="c")
    assert pickle.loads(pickle.dumps(layer)) == layer
    error = EcrPartsError("m")
    error.layer = layer
    assert pickle.loads(pickle.dumps(error)).layer == layer


def test_an_interrupt_ends_what_runs(ecr: LocalECR, uploader: LayerUploader) -> None:
    def interrupted() -> Iterator[bytes]:
        yield BLOBS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        uploader.upload_many([interrupted(), *BLOBS])


def pickled_error(error: BaseException) -> tuple[int, Any]:
    text = pickle.dumps(error)
    return len(text), pickle.loads(text)


def test_the_errors_pickle_and_are_small(
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
        size, twin = pickled_error(raised.value)
        assert size < 5_000
        assert str(twin) == str(raised.value)
        assert twin.layer.digest == layer.digest
        assert twin.layer.progress is None
        if isinstance(source, str | Path):
            assert twin.layer.source == str(path)
        else:
            with pytest.raises(TypeError, match="a source that was not pickled"):
                uploader.upload(twin.layer.source)

    def broken() -> Iterator[bytes]:
        yield BLOBS[0]
        raise ConnectionError("the producer died")

    with pytest.raises(ConnectionError) as of_the_source:
        uploader.upload_many([Layer(broken(), progress=lambda _n: None)])
    assert str(pickled_error(of_the_source.value)[1]) == "the producer died"


def test_a_copy_of_a_layer_has_its_source() -> None:
    layer = Layer(BLOBS[0], progress=print)
    assert copy.copy(layer) is layer
    assert copy.deepcopy([layer])[0].source == BLOBS[0]


@pytest.mark.parametrize("check_existing", [True, False])
def test_the_same_path_or_buffer_of_a_list_is_sent_once(
    check_existing: bool, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    path, link = tmp_path / "layer", tmp_path / "link"
    path.write_bytes(BLOBS[0])
    link.symlink_to(path)
    buffer = bytearray(BLOBS[1])
    heard: list[int] = []
    results = uploader.upload_many(
        [path, str(path), Layer(link, digest=digest_of(BLOBS[0]), size=20), buffer, buffer],
        check_existing=check_existing,
        progress=heard.append,
    )
    assert [result.digest for result in results] == [digest_of(BLOBS[0])] * 3 + [
        digest_of(BLOBS[1])
    ] * 2
    assert [result.existed for result in results] == [False, True, True, False, True]
    assert count(ecr, "InitiateLayerUpload") == 2
    assert sum(heard) == 20 * 3 + 21 * 2


def test_what_contradicts_the_layer_it_repeats_is_refused_by_ecr(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    path = tmp_path / "layer"
    path.write_bytes(BLOBS[0])
    contradictions: list[list[Any]] = [
        [path, Layer(path, digest=digest_of(b"other"))],
        [Layer(path, digest=digest_of(BLOBS[0])), Layer(b"abc", digest=digest_of(BLOBS[0]))],
    ]
    for layers in contradictions:
        with pytest.raises(DigestMismatchError) as raised:
            uploader.upload_many(layers)
        assert raised.value.layer is layers[1]


def test_an_iterator_is_pulled_as_workers_take_layers(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    """So that each file may be a temporary one, deleted when the next but few is asked for."""
    pulled: list[Path] = []

    def paths() -> Iterator[Path]:
        for i in range(30):
            done = len(ecr.registry.repositories["demo"].layers)
            assert len(pulled) - done <= 3
            pulled.append(tmp_path / str(i))
            pulled[-1].write_bytes(bytes_of(9, i))
            yield pulled[-1]

    results = uploader.upload_many(paths(), max_workers=3)
    assert [result.digest for result in results] == [digest_of(bytes_of(9, i)) for i in range(30)]


def test_an_iterator_of_everything(ecr: LocalECR, uploader: LayerUploader, tmp_path: Path) -> None:
    rng = random.Random(1)
    made = [
        maker(BLOBS[i % 12], tmp_path, rng)
        for i, (kind, maker) in enumerate(SOURCES.items())
        if kind not in ("path", "str")
    ]
    assert len(uploader.upload_many(iter(made), max_workers=2)) == len(made)
    for max_workers in (1, 2, 5):
        layers: list[Any] = [b"a%d" % max_workers, b"a%d" % max_workers, io.BytesIO(b"b")]
        results = uploader.upload_many(iter(layers), max_workers=max_workers)
        assert sorted(result.existed for result in results[:2]) == [False, True]
        assert results[2].digest == digest_of(b"b")


BAD_LAYERS: list[tuple[Any, type[Exception]]] = [
    (5, TypeError),
    (Layer(None), TypeError),  # type: ignore[arg-type]  # the point
    (Layer(b"x", size=-1), ValueError),
    (Layer(b"x", size="1"), TypeError),  # type: ignore[arg-type]  # the point
    (Layer(b"x", size=2), SourceChangedError),
    (Layer(b""), EmptyLayerError),
    (Layer(iter([b"x"]), size=0), EmptyLayerError),
    (Layer(bytes(501)), LayerTooLargeError),
    (Layer("/nonexistent", digest=digest_of(b"x")), FileNotFoundError),
    (Layer(b"x", progress=5), TypeError),  # type: ignore[arg-type]  # the point
    (Layer(b"x", checkpoint=5), TypeError),  # type: ignore[arg-type]  # the point
    (Layer(b"x", checkpoint=b"c"), TypeError),  # type: ignore[arg-type]  # the point
    (Layer(b"x", checkpoint=""), CheckpointError),
    (Layer(b"x", checkpoint="/nonexistent/c"), CheckpointError),
    (Layer(b"x", checkpoint="a\0b"), ValueError),
    (Layer(iter([b"x"]), checkpoint="c"), ValueError),
    (Layer(b"x", digest="sha256:"), ValueError),
]


@pytest.mark.parametrize("check_existing", [True, False])
@pytest.mark.parametrize(("bad", "error"), BAD_LAYERS)
def test_a_layer_that_cannot_be_is_refused_before_the_first_call(
    bad: Any, error: type[Exception], check_existing: bool, ecr: LocalECR, uploader: LayerUploader
) -> None:
    with pytest.raises(error) as raised:
        uploader.upload_many([BLOBS[0], bad, BLOBS[1]], check_existing=check_existing)
    assert ecr.calls == []
    if isinstance(bad, Layer):
        assert raised.value.layer is bad  # type: ignore[attr-defined]  # as promised of any error


def test_a_progress_that_cannot_be_called(ecr: LocalECR, uploader: LayerUploader) -> None:
    for call in (
        lambda: uploader.upload(BLOBS[0], progress=5),  # type: ignore[arg-type]  # the point
        lambda: uploader.upload_many(BLOBS, progress=5),  # type: ignore[arg-type]  # the point
    ):
        with pytest.raises(TypeError, match="progress must be callable, not 5"):
            call()
    assert ecr.calls == []
