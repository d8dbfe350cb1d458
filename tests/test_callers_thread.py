"""Whose thread waits, whose exceptions come out, and what goes on afterwards: nothing."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import io
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tenacity
from botocore.config import Config
from botocore.exceptions import ClientError
from helpers import PATIENT, SMALL, bytes_of, digest_of, join_threads, path_to
from typing_extensions import Self

import ecr_parts
from ecr_parts import (
    EcrPartsError,
    Layer,
    LayerTooLargeError,
    LayerUploader,
    ServiceError,
    UploadLostError,
    default_retrying,
)
from ecr_parts._request import EncodedBlob
from ecr_parts.testing import LocalECR

BLOB = bytes_of(45)  # six parts of 8 bytes, the last of 5
DIGEST = digest_of(BLOB)
# One of every kind that the library itself raises, and of those that it must take for failures.
EXCEPTIONS: list[type[BaseException]] = [
    *(
        kind
        for kind in vars(ecr_parts.errors).values()
        if isinstance(kind, type) and issubclass(kind, EcrPartsError)
    ),
    OSError,
    TimeoutError,
    ConnectionError,
    ValueError,
    StopIteration,
    GeneratorExit,
    KeyboardInterrupt,
    SystemExit,
    RuntimeError,
]


class Deadline(Exception):  # noqa: N818  (as RQ and Celery name theirs)
    """What a signal handler raises."""


def operations(ecr: LocalECR) -> list[str]:
    return [call.operation for call in ecr.calls]


@contextlib.contextmanager
def raises_the_very(error: BaseException) -> Iterator[None]:
    """The same object comes out, and nothing was put on it but ``upload_many``'s layer."""
    before = dict(vars(error))
    with pytest.raises(type(error)) as raised:
        yield
    assert raised.value is error
    vars(error).pop("layer", None)
    assert vars(error) == before


# What the source raises


@pytest.mark.parametrize("kind", EXCEPTIONS)
@pytest.mark.parametrize("after", range(0, 46, 9))
@pytest.mark.parametrize("digest", [None, DIGEST])
def test_what_a_stream_raises_comes_out_and_completes_nothing(
    kind: type[BaseException], after: int, digest: str | None, ecr: LocalECR,
    uploader: LayerUploader,
) -> None:  # fmt: skip
    error = kind("the producer's")

    class Source:
        left = BLOB[:after]
        raised = False

        def read(self, size: int) -> bytes:
            if self.raised:
                return b""  # a generator that raised looks as if it had ended
            if not self.left:
                self.raised = True
                raise error
            piece, self.left = self.left[:size], self.left[size:]
            return piece

    with raises_the_very(error):
        uploader.upload(Source(), digest=digest)
    assert "CompleteLayerUpload" not in operations(ecr)
    with raises_the_very(error):
        uploader.upload_many([Source(), BLOB])


@pytest.mark.parametrize("kind", EXCEPTIONS)
@pytest.mark.parametrize("method", ["read", "seek", "tell"])
@pytest.mark.parametrize("call", range(1, 12, 3))
def test_what_a_seekable_file_raises_comes_out(
    kind: type[BaseException], method: str, call: int, ecr: LocalECR, uploader: LayerUploader
) -> None:
    if method != "read" and kind is ValueError:
        pytest.skip("how a file says that it cannot be sought in")
    error = kind("the file's")
    calls = 0

    class File(io.BytesIO):
        pass

    def raising(self: File, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        return getattr(io.BytesIO, method)(self, *arguments)

    setattr(File, method, raising)
    try:
        with raises_the_very(error):
            uploader.upload(File(BLOB))
            raise error  # it was not called so often
    finally:
        assert calls < call or "CompleteLayerUpload" not in operations(ecr)


def test_a_source_that_tees_into_a_second_region_loses_its_upload_there(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    """What the review found: half a layer was completed, and called a success."""
    with LocalECR(limits=SMALL, part_size=8) as there:
        second = LayerUploader(there.client(), "demo", limits=SMALL, retrying=PATIENT)

        def tee() -> Iterator[bytes]:
            session = second.initiate()
            for first in range(0, 45, 8):
                if first == 16:
                    there.fail("UploadLayerPart", "upload_forgotten")
                second.upload_part(session, BLOB[first : first + 8])
                yield BLOB[first : first + 8]

        with pytest.raises(UploadLostError) as raised:
            uploader.upload(tee())
    assert raised.value.session is not None
    assert raised.value.session.next_byte == 16
    assert "CompleteLayerUpload" not in operations(ecr)
    assert operations(ecr).count("InitiateLayerUpload") == 1


# What ``progress`` and the policy raise


@pytest.mark.parametrize("kind", EXCEPTIONS)
@pytest.mark.parametrize("call", range(1, 17, 3))
def test_what_progress_raises_comes_out(
    kind: type[BaseException], call: int, uploader: LayerUploader, tmp_path: Path
) -> None:
    error = kind("progress's")
    path, checkpoint = path_to(BLOB, tmp_path), tmp_path / "checkpoint"
    upload: Callable[..., object]
    for upload in (
        partial(uploader.upload, BLOB),
        partial(uploader.upload, path, checkpoint=checkpoint),
    ):
        calls = 0

        def progress(_newly: int) -> None:
            nonlocal calls
            calls += 1
            if calls == call:
                raise error

        with raises_the_very(error):
            upload(progress=progress)
            raise error  # it was not called so often
        assert calls <= call


@pytest.mark.parametrize("kind", EXCEPTIONS)
@pytest.mark.parametrize("what", ["stop", "wait", "sleep"])
def test_what_the_policy_raises_comes_out(
    kind: type[BaseException], what: str, ecr: LocalECR
) -> None:
    error = kind("the policy's")

    def raising(_argument: object) -> Any:
        raise error

    changed: Any = {"sleep": lambda _seconds: None} | {what: raising}
    retrying = default_retrying().copy(**changed)
    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL, retrying=retrying)
    ecr.fail("UploadLayerPart", "throttled", call=2)
    with raises_the_very(error):
        uploader.upload(BLOB)


def test_the_policy_sees_the_failure_of_each_attempt(ecr: LocalECR) -> None:
    seen: list[object] = []

    def wait(state: tenacity.RetryCallState) -> float:
        assert state.outcome is not None
        seen.append((state.attempt_number, type(state.outcome.exception()).__name__))
        return 0

    uploader = LayerUploader(
        ecr.client(), "demo", limits=SMALL, retrying=default_retrying().copy(wait=wait)
    )
    ecr.fail("InitiateLayerUpload", "throttled")
    ecr.fail("InitiateLayerUpload", "answer_lost", call=2)
    uploader.upload(BLOB)
    assert seen == [(1, "ClientError"), (2, "ConnectionClosedError")]


# What a signal handler raises


def drip(ecr: LocalECR) -> None:
    ecr.fail("UploadLayerPart", "answer_drips", call=2, times=10**6)


def stall(ecr: LocalECR) -> None:
    ecr.fail("UploadLayerPart", "slow", call=2, times=10**6)


def wait_long(ecr: LocalECR) -> None:
    ecr.fail("UploadLayerPart", "throttled", call=2, times=10**6)


@pytest.fixture
def slow_ecr() -> Iterator[LocalECR]:
    with LocalECR(limits=SMALL, part_size=8, slow=600) as ecr:
        yield ecr


@pytest.fixture
def patient_uploader(slow_ecr: LocalECR) -> LayerUploader:
    retrying = default_retrying().copy(wait=tenacity.wait_fixed(600))
    return LayerUploader(slow_ecr.client(), "demo", limits=SMALL, retrying=retrying)


@contextlib.contextmanager
def alarm(seconds: float, handler: Callable[..., object]) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("trouble", [drip, stall, wait_long])
@pytest.mark.parametrize("kind", [Deadline, OSError, KeyboardInterrupt])
def test_a_deadline_ends_an_upload_in_the_middle_of_a_call(
    trouble: Callable[[LocalECR], None],
    kind: type[BaseException],
    slow_ecr: LocalECR,
    patient_uploader: LayerUploader,
) -> None:
    """All of these would last for minutes, or for ever."""
    trouble(slow_ecr)
    error = kind("time is up")

    def time_is_up(*_signal: object) -> None:
        raise error

    for upload in (
        lambda: patient_uploader.upload(BLOB),
        lambda: patient_uploader.upload_many([BLOB, BLOB[:40], iter([BLOB[:30]])]),
    ):
        with raises_the_very(error), alarm(0.2, time_is_up):
            upload()
    slow_ecr.stop()
    join_threads()


RANDOM_DEADLINES = """
import random, signal, sys
sys.path.insert(0, {tests!r})
from helpers import PATIENT, SMALL, bytes_of, digest_of, join_threads
from ecr_parts import LayerUploader
from ecr_parts.testing import LocalECR

class Deadline(Exception):
    pass

def time_is_up(*_signal):
    global raised
    raised = Deadline("time is up")
    raise raised

signal.signal(signal.SIGALRM, time_is_up)
rng, struck, dropped = random.Random({trials}), 0, 0
sys.unraisablehook = lambda _: globals().update(dropped=dropped + 1)
with LocalECR(limits=SMALL, part_size=8) as ecr:
    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL, retrying=PATIENT)
    for trial in range({trials}):
        raised, source = None, bytes_of(45, trial)
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0001, 0.02))
        try:
            uploader.upload(source if trial % 3 else iter([source]), check_existing=trial % 2 == 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Deadline as error:
            assert error is raised
            struck += 1
        else:
            assert raised is None or dropped, "the deadline is lost"
    for digest, layer in ecr.registry.repositories["demo"].layers.items():
        assert digest_of(b"".join(layer.blobs)) == digest
    uploader.upload(b"and it still works")
    join_threads()
print(struck, dropped)
"""


def deadlines_struck(trials: int) -> int:
    """How many of ``trials`` uploads were interrupted, each at a random instant if at all.

    In a process without coverage, whose own lock does not outlive such an exception. Python drops
    what a signal handler raises while an object is finalized: no library can mend that.
    """
    program = RANDOM_DEADLINES.format(tests=str(Path(__file__).parent), trials=trials)
    environ = {name: x for name, x in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    struck, dropped = map(int, done.stdout.split())
    assert dropped <= trials // 100
    return struck


def test_a_deadline_at_any_instant_comes_out() -> None:
    assert deadlines_struck(200) > 50


@pytest.mark.soak
def test_five_thousand_deadlines() -> None:
    assert deadlines_struck(5_000) > 1_000


def test_ctrl_c_while_a_complete_is_under_way_sends_no_second_one(slow_ecr: LocalECR) -> None:
    """With a default client botocore itself would send it again, after the timeout."""
    config = Config(proxies={}, read_timeout=1, retries={"mode": "legacy"})
    uploader = LayerUploader(slow_ecr.client(config=config), "demo", limits=SMALL)
    slow_ecr.fail("CompleteLayerUpload", "slow", times=10**6)
    session = uploader.initiate()
    uploader.upload_part(session, BLOB[:16])

    with (
        pytest.raises(KeyboardInterrupt),
        alarm(0.5, signal.default_int_handler),
    ):
        uploader.complete(session, digest_of(BLOB[:16]))
    join_threads()
    assert operations(slow_ecr).count("CompleteLayerUpload") == 1


# How the caller's thread waits


def test_a_call_that_hangs_has_a_heartbeat_each_second(
    slow_ecr: LocalECR, patient_uploader: LayerUploader
) -> None:
    class EnoughError(Exception):
        pass

    for trouble in (stall, wait_long):
        trouble(slow_ecr)
        heard: list[int] = []

        def progress(newly: int, heard: list[int] = heard) -> None:
            heard.append(newly)
            if heard[-4:] == [0, 0, 0, 0]:
                raise EnoughError

        with pytest.raises(EnoughError):
            patient_uploader.upload(BLOB, progress=progress)


@pytest.mark.parametrize("operation", ["InitiateLayerUpload", "UploadLayerPart"])
def test_an_answer_that_drips_for_ever_is_bounded(operation: str, ecr: LocalECR) -> None:
    patient = partial(LayerUploader, limits=SMALL, retrying=PATIENT, attempt_timeout=1)
    ecr.fail(operation, "answer_drips", times=2)
    layer = patient(ecr.client(), "demo").upload(BLOB)
    assert ecr.layer("demo", layer.digest) == BLOB

    ecr.fail(operation, "answer_drips", times=10**6)
    uploader = patient(ecr.client(), "demo")
    message = rf"{operation} .* after 3 attempts: .*attempt_timeout=1 seconds\. .*increase attempt"
    with pytest.raises(ServiceError, match=message) as raised:
        uploader.upload(BLOB[:40])
    assert raised.value.code == "AttemptTimeoutError"
    calls = len(ecr.calls)
    with pytest.raises(ServiceError, match="3 earlier attempts are still waiting for an answer"):
        uploader.upload(BLOB[:41])
    assert len(ecr.calls) == calls
    ecr.stop()
    join_threads()


def test_the_other_calls_have_the_same_bound(ecr: LocalECR) -> None:
    uploader = LayerUploader(
        ecr.client(), "demo", limits=SMALL, retrying=PATIENT, attempt_timeout=0.3
    )
    ecr.fail("BatchCheckLayerAvailability", "answer_drips")
    ecr.fail("CompleteLayerUpload", "answer_drips")
    assert uploader.upload(BLOB).digest == DIGEST
    assert ecr.layer("demo", DIGEST) == BLOB


@pytest.mark.parametrize(
    ("seconds", "error"),
    [(0, ValueError), (-1, ValueError), (float("nan"), ValueError), ("9", TypeError),
     (True, TypeError), (None, TypeError)],
)  # fmt: skip
def test_an_attempt_timeout_that_is_none(
    seconds: Any, error: type[Exception], ecr: LocalECR
) -> None:
    with pytest.raises(error, match="attempt_timeout must be a"):
        LayerUploader(ecr.client(), "demo", attempt_timeout=seconds)
    LayerUploader(ecr.client(), "demo", attempt_timeout=float("inf"))


class Hole:
    """A server that takes a request's beginning, and reads on only when it is told to."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.begun = threading.Event()
        self.read_on = threading.Event()
        self.received = 0
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        connection, _ = self._listening.accept()
        with connection:
            self.received += len(connection.recv(1000))
            self.begun.set()
            self.read_on.wait()
            with contextlib.suppress(ConnectionError):
                while more := connection.recv(1 << 20):
                    self.received += len(more)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.read_on.set()
        self._thread.join()
        self._listening.close()


def interrupt_once_begun(hole: Hole) -> None:
    hole.begun.wait()
    os.kill(os.getpid(), signal.SIGUSR1)


def test_an_abandoned_call_sends_no_further_piece_of_its_body(local_ecr: LocalECR) -> None:
    size = 15 * 1024**2  # more than the kernel buffers
    with Hole() as hole:
        uploader = LayerUploader(local_ecr.client(endpoint_url=hole.url), "demo")
        session = LayerUploader(local_ecr.client(), "demo").initiate()

        def interrupt(*_signal: object) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGUSR1, interrupt)
        try:
            waiting = threading.Thread(target=interrupt_once_begun, args=(hole,))
            waiting.start()
            with pytest.raises(KeyboardInterrupt):
                uploader.upload_part(session, bytes(size))
        finally:
            signal.signal(signal.SIGUSR1, before)
            waiting.join()
        hole.read_on.set()
        join_threads()
    assert 0 < hole.received < size


# Threads, and where there are none


RUN = """
import sys, threading
sys.path.insert(0, {tests!r})
from concurrent.futures import ThreadPoolExecutor
from helpers import SMALL, bytes_of
from ecr_parts import LayerUploader
from ecr_parts.testing import LocalECR

ecr = LocalECR(limits=SMALL, part_size=8, slow=600)
ecr.start()
uploader = LayerUploader(ecr.client(), "demo", limits=SMALL)
ended = threading.Event()

def upload(url):
    # To a server elsewhere, which can start threads at any time.
    uploader = LayerUploader(ecr.client(endpoint_url=url), "demo", limits=SMALL)
    uploader.upload_many([bytes_of(45), bytes_of(40), iter([bytes_of(30)])])
    uploader.upload(iter([bytes_of(50)]))
    print("sent", flush=True)

def interrupt():
    import os, signal, time
    while "UploadLayerPart" not in [call.operation for call in ecr.calls]:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    program = RUN.format(tests=str(Path(__file__).parent))
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program + code],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "code",
    [
        "threading.Thread(target=upload, args=[{url!r}]).start()",
        "ThreadPoolExecutor().submit(upload, {url!r})",
        "import atexit; atexit.register(upload, {url!r})",
    ],
)
def test_an_upload_goes_on_when_the_main_thread_has_ended(code: str) -> None:
    """Some versions of Python start no thread then."""
    with LocalECR(limits=SMALL, part_size=8, slow=0.5) as ecr:
        # Late enough for the main thread to have ended before the rest of the upload.
        ecr.fail("BatchCheckLayerAvailability", "slow")
        done = run(code.format(url=ecr.endpoint_url))
        assert (done.stdout, done.stderr, done.returncode) == ("sent\n", "", 0)
        for size in (45, 40, 30, 50):
            blob = bytes_of(size)
            assert ecr.layer("demo", digest_of(blob)) == blob


@pytest.mark.parametrize("fault", ["answer_drips", "slow"])
def test_a_process_ends_with_the_upload_that_was_interrupted(fault: str) -> None:
    """Even if the network is dead, and there are workers."""
    done = run(
        f"ecr.fail('UploadLayerPart', {fault!r}, times=10**6)\n"
        "threading.Thread(target=interrupt).start()\n"
        "uploader.upload_many([bytes_of(45), bytes_of(40)])"
    )
    assert done.stderr.endswith("KeyboardInterrupt\n")
    assert done.returncode == -signal.SIGINT


@pytest.mark.parametrize("kind", ["path", "stream", "many"])
def test_where_no_thread_can_be_started_the_callers_is_used(
    kind: str, ecr: LocalECR, tmp_path: Path, mocker: Any
) -> None:
    threads: set[int] = set()
    client = ecr.client()
    client.meta.events.register(
        "before-send.ecr", lambda **_event: threads.add(threading.get_ident())
    )
    uploader = LayerUploader(client, "demo", limits=SMALL, retrying=PATIENT)
    ecr.fail("UploadLayerPart", "answer_lost", call=2)
    context = contextvars.copy_context()

    def upload() -> None:
        # A context that is entered refuses, by a RuntimeError raised in C, as no thread does.
        mocker.patch("_thread.start_new_thread", context.run)
        if kind == "many":
            layers = uploader.upload_many([path_to(BLOB, tmp_path), BLOB[:40], iter([BLOB[:30]])])
            assert [layer.size for layer in layers] == [45, 40, 30]
        else:
            uploader.upload(path_to(BLOB, tmp_path) if kind == "path" else iter([BLOB]))

    context.run(upload)
    assert ecr.layer("demo", DIGEST) == BLOB
    assert threads == {threading.get_ident()}


def test_a_runtime_error_of_a_signal_handler_is_no_missing_thread(
    uploader: LayerUploader, mocker: Any
) -> None:
    error = RuntimeError("can't start new thread")
    mocker.patch("_thread.start_new_thread", side_effect=error)
    with raises_the_very(error):
        uploader.upload(BLOB)


def test_one_copy_of_the_context_for_each_call(ecr: LocalECR) -> None:
    """So that OpenTelemetry finds the caller's span."""
    span: contextvars.ContextVar[str] = contextvars.ContextVar("span")
    seen: list[str] = []

    def handler(**_event: object) -> None:
        seen.append(span.get())
        span.set("of the call")

    client = ecr.client()
    client.meta.events.register("before-send.ecr", handler)
    token = span.set("the caller's")
    LayerUploader(client, "demo", limits=SMALL).upload(BLOB)
    assert set(seen) == {"the caller's"}
    assert span.get() == "the caller's"
    span.reset(token)


# What a hostile review by trial found


class FalsyError(Exception):
    """As exceptions are that hold a list of problems."""

    def __len__(self) -> int:
        return 0


def test_an_exception_that_is_falsy_is_one(ecr: LocalECR) -> None:
    error = FalsyError("of a plugin")

    def broken(**_call: object) -> None:
        raise error

    client = ecr.client()
    client.meta.events.register("before-call.ecr.CompleteLayerUpload", broken)
    uploader = LayerUploader(client, "demo", limits=SMALL, retrying=PATIENT)
    with pytest.raises(ServiceError, match="FalsyError: of a plugin"):
        uploader.upload(BLOB)
    with raises_the_very(error):
        uploader.upload_many([BLOB], progress=lambda _newly: broken())


@pytest.mark.parametrize("operation", ["UploadLayerPart", "CompleteLayerUpload"])
def test_what_tenacity_knows_is_still_the_callers(
    operation: str, slow_ecr: LocalECR, patient_uploader: LayerUploader
) -> None:
    error = tenacity.TryAgain()

    def time_is_up(*_signal: object) -> None:
        raise error

    slow_ecr.fail(operation, "slow", times=10**6)
    with raises_the_very(error), alarm(0.2, time_is_up):
        patient_uploader.upload(BLOB)


def test_a_client_that_is_a_bridge_to_asyncio_lives_on(ecr: LocalECR) -> None:
    """The failure of one call has come through the frame that waits for the next."""
    real = ecr.client()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    queue: asyncio.Queue[Any] = asyncio.Queue()

    async def serve() -> None:
        while (item := await queue.get()) is not None:
            name, parameters, future = item
            try:
                future.set_result(getattr(real, name)(**parameters))
            except Exception as error:  # noqa: BLE001  (the bridge carries it over)
                future.set_exception(error)

    class Bridge:
        def __getattr__(self, name: str) -> Any:
            def call(**parameters: object) -> Any:
                future: Future[Any] = Future()
                loop.call_soon_threadsafe(queue.put_nowait, (name, parameters, future))
                return future.result()

            return call

    serving = asyncio.run_coroutine_threadsafe(serve(), loop)
    ecr.fail("UploadLayerPart", "throttled", call=2)
    uploader = LayerUploader(Bridge(), "demo", limits=SMALL, retrying=PATIENT, attempt_timeout=9)
    assert uploader.upload(BLOB).digest == DIGEST
    loop.call_soon_threadsafe(queue.put_nowait, None)
    serving.result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_a_call_that_was_abandoned_while_it_connects_has_no_effect(
    ecr: LocalECR, uploader: LayerUploader, mocker: Any
) -> None:
    session = uploader.initiate()
    uploader.upload_part(session, BLOB[:8])
    connecting, abandoned = threading.Event(), threading.Event()
    look_up = socket.getaddrinfo

    def slow(*arguments: Any, **more: Any) -> Any:
        connecting.set()
        abandoned.wait()
        return look_up(*arguments, **more)

    mocker.patch("socket.getaddrinfo", slow)
    fresh = LayerUploader(ecr.client(), "demo", limits=SMALL)
    with pytest.raises(KeyboardInterrupt), alarm(0.2, signal.default_int_handler):
        fresh.complete(session, digest_of(BLOB[:8]))
    assert connecting.is_set()
    abandoned.set()
    join_threads()
    # Its head may arrive, but no body.
    assert [call.outcome for call in ecr.calls][2:] in ([], ["reset"])
    assert not ecr.registry.repositories["demo"].layers


@pytest.mark.parametrize("many", [False, True])
def test_an_upload_that_was_interrupted_keeps_no_part(
    many: bool, ecr: LocalECR, uploader: LayerUploader
) -> None:
    """Nothing of it lives on in cycles of exceptions and frames."""

    def interrupt(newly: int) -> None:
        if newly:
            raise Deadline

    uploader.upload(b"first")
    gc.collect()
    gc.disable()
    try:
        ecr.fail("UploadLayerPart", "throttled")
        with contextlib.suppress(Deadline):
            if many:
                uploader.upload_many([BLOB], progress=interrupt)
            else:
                uploader.upload(BLOB, progress=interrupt)
        join_threads()
        assert [thing for thing in gc.get_objects() if type(thing) is EncodedBlob] == []
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_has_threads_of_its_own() -> None:
    done = run(
        "import os, warnings\n"
        "warnings.simplefilter('ignore', DeprecationWarning)\n"
        "session = uploader.initiate()\n"
        "if os.fork() == 0:\n"
        "    uploader.upload_part(session, bytes(8))\n"
        "    print('sent', flush=True)\n"
        "    os._exit(0)\n"
        "os.wait()"
    )
    assert (done.stdout, done.stderr, done.returncode) == ("sent\n", "", 0)


@pytest.mark.parametrize("warm", [False, True])
def test_an_upload_by_a_finalizer_at_the_interpreters_end(warm: bool) -> None:
    done = run(
        """
class Client:
    def batch_check_layer_availability(self, **_):
        return {"layers": []}
    def initiate_layer_upload(self, **_):
        return {"uploadId": "u", "partSize": 8}
    upload_layer_part = complete_layer_upload = initiate_layer_upload

class Late:
    def __del__(self, begin=LayerUploader(Client(), "demo", limits=SMALL).initiate, say=print):
        say(begin().upload_id, flush=True)

ecr.stop()
late = Late()
"""
        + ("LayerUploader(Client(), 'demo', limits=SMALL).initiate()" if warm else "")
    )
    assert (done.stdout, done.stderr, done.returncode) == ("u\n", "", 0)


def test_progress_ends_many_uploads_while_ecr_is_asked(
    slow_ecr: LocalECR, patient_uploader: LayerUploader
) -> None:
    slow_ecr.fail("BatchCheckLayerAvailability", "slow")
    own: list[int] = []

    def progress(_newly: int) -> None:
        if operations(slow_ecr) and own:
            raise Deadline

    with pytest.raises(Deadline):
        patient_uploader.upload_many([Layer(BLOB, progress=own.append)], progress=progress)


def test_progress_that_has_raised_is_not_called_again(uploader: LayerUploader) -> None:
    calls = 0
    others_wait = threading.Barrier(2)

    def progress(_newly: int) -> None:
        nonlocal calls
        calls += 1
        with contextlib.suppress(threading.BrokenBarrierError):
            others_wait.wait(0.2)  # no other call comes meanwhile
        raise Deadline

    with pytest.raises(Deadline):
        uploader.upload_many([bytes_of(45, i) for i in range(4)], progress=progress)
    assert calls == 1


def test_a_wait_that_is_no_number_is_none(ecr: LocalECR) -> None:
    retrying = default_retrying().copy(wait=lambda _state: float("nan"))
    ecr.fail("UploadLayerPart", "throttled", times=3)
    heard: list[int] = []
    LayerUploader(ecr.client(), "demo", limits=SMALL, retrying=retrying).upload(
        BLOB, progress=heard.append
    )
    assert len(heard) < 40


def test_a_status_that_is_no_number_is_not_transient(mocker: Any) -> None:
    client = mocker.Mock()
    response: Any = {"Error": {"Code": "Odd"}, "ResponseMetadata": {"HTTPStatusCode": "500"}}
    client.initiate_layer_upload.side_effect = ClientError(response, "InitiateLayerUpload")
    with pytest.raises(ServiceError, match="Odd"):
        LayerUploader(client, "demo").initiate()


def test_an_exception_that_takes_no_attributes_comes_out(uploader: LayerUploader) -> None:
    class FrozenError(Exception):
        def __setattr__(self, name: str, value: object) -> None:
            if name == "layer":
                raise TypeError("frozen")
            super().__setattr__(name, value)

    error = FrozenError()

    def progress(_newly: int) -> None:
        raise error

    with raises_the_very(error):
        uploader.upload_many([BLOB], progress=progress)


def test_a_files_own_error_about_a_layer_is_not_about_seeking(uploader: LayerUploader) -> None:
    error = LayerTooLargeError("of an upload inside")

    class File(io.BytesIO):
        def tell(self) -> int:
            raise error

    with raises_the_very(error):
        uploader.upload(File(BLOB))


def test_a_session_whose_part_was_interrupted_counts_as_resumed(
    slow_ecr: LocalECR, patient_uploader: LayerUploader
) -> None:
    """The part may have arrived, so ECR may be further on than the session."""
    session = patient_uploader.initiate()
    slow_ecr.fail("UploadLayerPart", "slow")
    with pytest.raises(KeyboardInterrupt), alarm(0.2, signal.default_int_handler):
        patient_uploader.upload_part(session, BLOB[:16])
    patient_uploader.upload_part(session, BLOB[:8])
    assert session.next_byte == 16
