"""Exceptions of the caller's code leave every method as the same object, and end the upload.

They are raised by sources, by ``progress``, by the retry policy and by signal handlers.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import tenacity
from botocore.client import BaseClient
from helpers import KINDS, NO_WAIT, SMALL_LIMITS, digest_of, random_bytes, write_layer
from interrupts import DeadlineError, interrupt_when, joining_new_threads
from pytest_mock import MockerFixture

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
from ecr_parts.testing import Fault, LocalECR, Registry

BLOB = random_bytes(45)  # six parts of 8 bytes, the last of 5
DIGEST = digest_of(BLOB)
FOREVER = 10**6  # calls
# All errors of the library, and others that it could mistake for failures of its own.
EXCEPTIONS: list[type[BaseException]] = [
    *(
        value
        for value in vars(ecr_parts.errors).values()
        if isinstance(value, type) and issubclass(value, EcrPartsError)
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
EACH_EXCEPTION = pytest.mark.parametrize(
    "exception_type",
    [pytest.param(kind, marks=[pytest.mark.soak] * (kind not in KINDS)) for kind in EXCEPTIONS],
)


@contextlib.contextmanager
def raises_same(error: BaseException) -> Iterator[None]:
    """The block raises ``error`` itself, with no attribute added but ``upload_many``'s layer.

    Nor does it get a context, which a traceback would show as the cause: an exception of the
    caller must never be raised while one of the library's is being handled.
    """
    attributes_before = dict(vars(error))
    with pytest.raises(type(error)) as raised:
        yield
    assert raised.value is error
    assert error.__context__ is None
    vars(error).pop("layer", None)
    assert vars(error) == attributes_before


@pytest.fixture(scope="module")
def module_ecr() -> Iterator[LocalECR]:
    with LocalECR(limits=SMALL_LIMITS, part_size=8) as ecr:
        yield ecr


@pytest.fixture(scope="module")
def shared_client(module_ecr: LocalECR) -> BaseClient:
    return module_ecr.client()


@pytest.fixture
def shared_ecr(module_ecr: LocalECR) -> LocalECR:
    """One server for the tests with hundreds of cases, emptied before each of them."""
    module_ecr.registry = Registry(["demo"], limits=SMALL_LIMITS, part_size=8)
    module_ecr.calls.clear()
    return module_ecr


@pytest.fixture
def shared_uploader(shared_ecr: LocalECR, shared_client: BaseClient) -> LayerUploader:
    return LayerUploader(shared_client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)


@pytest.fixture
def slow_ecr() -> Iterator[LocalECR]:
    with LocalECR(limits=SMALL_LIMITS, part_size=8, slow=600) as ecr:
        yield ecr


@pytest.fixture
def slow_uploader(slow_ecr: LocalECR) -> LayerUploader:
    """Waits 600 seconds before it retries a call."""
    retrying = default_retrying().copy(wait=tenacity.wait_fixed(600))
    return LayerUploader(slow_ecr.client(), "demo", limits=SMALL_LIMITS, retrying=retrying)


@pytest.fixture
def frequent_wakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting threads wake every 50 ms instead of every second, which makes the test faster."""
    monkeypatch.setattr("ecr_parts._base.threads._WAKE_INTERVAL", 0.05)


def has_failed_call(ecr: LocalECR) -> bool:
    return any(call.outcome != "ok" for call in ecr.calls)


# Sources


@EACH_EXCEPTION
@pytest.mark.parametrize("bytes_before", range(0, 46, 9))
@pytest.mark.parametrize("digest", [None, DIGEST], ids=["without digest", "with digest"])
def test_passes_on_what_a_stream_raises_and_completes_nothing(
    exception_type: type[BaseException],
    bytes_before: int,
    digest: str | None,
    shared_ecr: LocalECR,
    shared_uploader: LayerUploader,
) -> None:
    error = exception_type("raised by the stream")

    class Stream:
        unread = BLOB[:bytes_before]
        raised = False

        def read(self, size: int) -> bytes:
            if self.raised:
                return b""  # as a generator that raised: afterwards, it seems to have ended
            if not self.unread:
                self.raised = True
                raise error
            piece, self.unread = self.unread[:size], self.unread[size:]
            return piece

    with raises_same(error):
        shared_uploader.upload(Stream(), digest=digest)
    assert not shared_ecr.calls_of("CompleteLayerUpload")
    with raises_same(error):
        shared_uploader.upload_many([Stream(), BLOB])


@EACH_EXCEPTION
@pytest.mark.parametrize("method", ["read", "seek", "tell"])
@pytest.mark.parametrize("raising_call", range(1, 12, 3))
def test_passes_on_what_a_seekable_file_raises(
    exception_type: type[BaseException],
    method: str,
    raising_call: int,
    shared_ecr: LocalECR,
    shared_uploader: LayerUploader,
) -> None:
    if method != "read" and exception_type is ValueError:
        pytest.skip("with ValueError, a file says that it is not seekable")
    error = exception_type("raised by the file")
    calls = 0

    class File(io.BytesIO):
        pass

    def call_method(self: File, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == raising_call:
            raise error
        return getattr(io.BytesIO, method)(self, *arguments)

    setattr(File, method, call_method)
    with raises_same(error):
        shared_uploader.upload(File(BLOB))
        raise error  # the method was called fewer times
    assert calls < raising_call or not shared_ecr.calls_of("CompleteLayerUpload")


def test_passes_on_layer_error_raised_while_a_file_is_inspected(uploader: LayerUploader) -> None:
    """``LayerTooLargeError`` is a ``ValueError``, which files raise if they cannot seek."""
    error = LayerTooLargeError("of another upload")

    class File(io.BytesIO):
        def tell(self) -> int:
            raise error

    with raises_same(error):
        uploader.upload(File(BLOB))


def test_upload_lost_error_of_source_is_not_taken_for_own(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    """Regression: half a layer was completed when a source uploads to a second region."""
    with LocalECR(limits=SMALL_LIMITS, part_size=8) as second_ecr:
        second_uploader = LayerUploader(
            second_ecr.client(), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT
        )

        def upload_to_second_region() -> Iterator[bytes]:
            session = second_uploader.initiate()
            for first_byte in range(0, 45, 8):
                if first_byte == 16:
                    second_ecr.fail("UploadLayerPart", "upload_forgotten")
                part = BLOB[first_byte : first_byte + 8]
                second_uploader.upload_part(session, part)
                yield part

        with pytest.raises(UploadLostError) as raised:
            uploader.upload(upload_to_second_region())
    assert raised.value.session is not None
    assert raised.value.session.next_byte == 16
    assert not ecr.calls_of("CompleteLayerUpload")
    assert len(ecr.calls_of("InitiateLayerUpload")) == 1


# ``progress``


@EACH_EXCEPTION
@pytest.mark.parametrize("raising_call", range(1, 17, 3))
def test_passes_on_what_progress_raises(
    exception_type: type[BaseException],
    raising_call: int,
    shared_uploader: LayerUploader,
    tmp_path: Path,
) -> None:
    error = exception_type("raised by progress")
    path, checkpoint = write_layer(BLOB, tmp_path), tmp_path / "checkpoint"
    upload: Callable[..., object]
    for upload in (
        partial(shared_uploader.upload, BLOB),
        partial(shared_uploader.upload, path, checkpoint=checkpoint),
    ):
        calls = 0

        def progress(_newly_confirmed: int) -> None:
            nonlocal calls
            calls += 1
            if calls == raising_call:
                raise error

        with raises_same(error):
            upload(progress=progress)
            raise error  # progress was called fewer times
        assert calls <= raising_call


def test_passes_on_exception_without_writable_attributes(uploader: LayerUploader) -> None:
    """``upload_many`` sets ``layer`` on exceptions where that is possible."""

    class FrozenError(Exception):
        def __setattr__(self, name: str, value: object) -> None:
            if name == "layer":
                raise TypeError("frozen")
            super().__setattr__(name, value)

    error = FrozenError()

    def progress(_newly_confirmed: int) -> None:
        raise error

    with raises_same(error):
        uploader.upload_many([BLOB], progress=progress)


class FalsyError(Exception):
    """False in a condition, as are exceptions that hold an empty list of problems."""

    def __len__(self) -> int:
        return 0


def test_handles_falsy_exceptions_as_errors(ecr: LocalECR) -> None:
    error = FalsyError("raised by a plugin")

    def raise_error(**_call: object) -> None:
        raise error

    client = ecr.client()
    client.meta.events.register("before-call.ecr.CompleteLayerUpload", raise_error)
    uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
    with pytest.raises(ServiceError, match="FalsyError: raised by a plugin"):
        uploader.upload(BLOB)
    with raises_same(error):
        uploader.upload_many([BLOB], progress=lambda _newly_confirmed: raise_error())


def test_does_not_call_progress_again_after_it_raised(uploader: LayerUploader) -> None:
    calls = 0
    second_call = threading.Barrier(2)

    def progress(_newly_confirmed: int) -> None:
        nonlocal calls
        calls += 1
        with contextlib.suppress(threading.BrokenBarrierError):
            second_call.wait(0.2)  # would be passed if another thread called progress meanwhile
        raise DeadlineError

    with pytest.raises(DeadlineError):
        uploader.upload_many([random_bytes(45, seed) for seed in range(4)], progress=progress)
    assert calls == 1


@pytest.mark.parametrize("fault", ["slow", "throttled"])
@pytest.mark.usefixtures("frequent_wakes")
def test_calls_progress_while_an_upload_waits(
    fault: Fault, slow_ecr: LocalECR, slow_uploader: LayerUploader
) -> None:
    slow_ecr.fail("UploadLayerPart", fault, call=2, times=FOREVER)
    heartbeats = 0

    def progress(newly_confirmed: int) -> None:
        nonlocal heartbeats
        if has_failed_call(slow_ecr) and newly_confirmed == 0:
            heartbeats += 1
            if heartbeats == 4:
                raise DeadlineError

    with pytest.raises(DeadlineError):
        slow_uploader.upload(BLOB, progress=progress)


@pytest.mark.usefixtures("frequent_wakes")
def test_progress_can_stop_upload_many_while_it_asks_which_layers_exist(
    slow_ecr: LocalECR, slow_uploader: LayerUploader
) -> None:
    slow_ecr.fail("BatchCheckLayerAvailability", "slow")
    layer_progress_calls: list[int] = []

    def progress(_newly_confirmed: int) -> None:
        if slow_ecr.calls and layer_progress_calls:
            raise DeadlineError

    with pytest.raises(DeadlineError):
        slow_uploader.upload_many(
            [Layer(BLOB, progress=layer_progress_calls.append)], progress=progress
        )


# The retry policy


@pytest.mark.parametrize("exception_type", EXCEPTIONS)
@pytest.mark.parametrize("function", ["stop", "wait", "sleep"])
def test_passes_on_what_the_retry_policy_raises(
    exception_type: type[BaseException],
    function: str,
    shared_ecr: LocalECR,
    shared_client: BaseClient,
) -> None:
    error = exception_type("raised by the policy")

    def raise_error(_argument: object) -> Any:
        raise error

    functions: Any = {"sleep": lambda _seconds: None} | {function: raise_error}
    retrying = default_retrying().copy(**functions)
    uploader = LayerUploader(shared_client, "demo", limits=SMALL_LIMITS, retrying=retrying)
    shared_ecr.fail("UploadLayerPart", "throttled", call=2)
    with raises_same(error):
        uploader.upload(BLOB)


def test_retry_policy_gets_the_error_of_each_attempt(ecr: LocalECR) -> None:
    failures: list[tuple[int, str]] = []

    def wait(state: tenacity.RetryCallState) -> float:
        assert state.outcome is not None
        failures.append((state.attempt_number, type(state.outcome.exception()).__name__))
        return 0

    uploader = LayerUploader(
        ecr.client(), "demo", limits=SMALL_LIMITS, retrying=default_retrying().copy(wait=wait)
    )
    ecr.fail("InitiateLayerUpload", "throttled")
    ecr.fail("InitiateLayerUpload", "answer_lost", call=2)
    uploader.upload(BLOB)
    assert failures == [(1, "ClientError"), (2, "ConnectionClosedError")]


def test_does_not_wait_if_the_retry_policy_returns_nan(ecr: LocalECR) -> None:
    retrying = default_retrying().copy(wait=lambda _state: float("nan"))
    ecr.fail("UploadLayerPart", "throttled", times=3)
    progress_calls: list[int] = []
    LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS, retrying=retrying).upload(
        BLOB, progress=progress_calls.append
    )
    assert len(progress_calls) < 40


# Signal handlers


@pytest.mark.parametrize("many", [False, True], ids=["upload", "upload_many"])
@pytest.mark.parametrize("fault", ["answer_drips", "slow", "throttled"])
@pytest.mark.parametrize("exception_type", [DeadlineError, OSError, KeyboardInterrupt])
@pytest.mark.usefixtures("frequent_wakes")  # at which the workers of upload_many stop
def test_signal_handler_can_end_an_upload_that_waits(
    many: bool,
    fault: Fault,
    exception_type: type[BaseException],
    slow_ecr: LocalECR,
    slow_uploader: LayerUploader,
) -> None:
    """Without the signal, each upload would wait for minutes, or for ever."""
    slow_ecr.fail("UploadLayerPart", fault, call=2, times=FOREVER)
    error = exception_type("time is up")
    with joining_new_threads():
        with raises_same(error), interrupt_when(lambda: has_failed_call(slow_ecr), error):
            if many:
                slow_uploader.upload_many([BLOB, BLOB[:40], iter([BLOB[:30]])])
            else:
                slow_uploader.upload(BLOB)
        slow_ecr.stop()


@pytest.mark.parametrize("operation", ["UploadLayerPart", "CompleteLayerUpload"])
def test_passes_on_try_again_of_a_signal_handler(
    operation: str, slow_ecr: LocalECR, slow_uploader: LayerUploader
) -> None:
    """``tenacity`` itself would retry after ``TryAgain``."""
    error = tenacity.TryAgain()
    slow_ecr.fail(operation, "slow", times=FOREVER)
    with raises_same(error), interrupt_when(lambda: has_failed_call(slow_ecr), error):
        slow_uploader.upload(BLOB)


def test_passes_on_runtime_error_raised_while_a_thread_is_started(
    uploader: LayerUploader, mocker: MockerFixture
) -> None:
    """A signal handler may raise the same error as Python if it cannot start a thread."""
    error = RuntimeError("can't start new thread")
    mocker.patch("_thread.start_new_thread", side_effect=error)
    with raises_same(error):
        uploader.upload(BLOB)


def interrupted_uploads(uploads: int) -> int:
    """How many of so many uploads were interrupted, each at a random instant if at all.

    They run in a process without coverage, which may deadlock if a signal handler raises while it
    holds its lock.
    """
    program = str(Path(__file__).parents[1] / "random_deadlines.py")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, program, str(uploads)],
        env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    interrupted, dropped = map(int, done.stdout.split())
    assert dropped <= uploads // 100
    return interrupted


def test_passes_on_deadlines_at_random_instants() -> None:
    assert interrupted_uploads(200) > 50


@pytest.mark.soak
def test_passes_on_five_thousand_deadlines_at_random_instants() -> None:
    assert interrupted_uploads(5_000) > 1_000


class InterruptError(BaseException):
    """Raised between two lines of the library, as by a signal handler."""


@pytest.mark.parametrize("line", range(1, 12))
def test_exception_raised_while_a_failure_is_handled_gets_no_context(
    line: int, ecr: LocalECR, uploader: LayerUploader
) -> None:
    """The failure of a call is private."""
    ecr.fail("BatchCheckLayerAvailability", "access_denied")
    error, lines_left = InterruptError(), line

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines_left
        if event == "exception" and frame.f_code.co_name == "outcome_of":
            frame.f_trace_opcodes = True  # each instruction while the failure is handled
        if event in ("opcode", "line") and frame.f_trace_opcodes:
            lines_left -= 1
            if lines_left == 0:
                raise error
        return trace

    trace_before = sys.gettrace()
    with raises_same(error):
        sys.settrace(trace)
        try:
            uploader.missing([DIGEST])
        finally:
            sys.settrace(trace_before)
    assert lines_left == 0


def test_client_may_switch_to_another_one_between_attempts(ecr: LocalECR) -> None:
    """Its method is looked up for each attempt, and in the caller's thread."""
    healthy, looked_up_in = ecr.client(), set()

    class Client:
        client: Any = ecr.client(endpoint_url="http://127.0.0.1:9")

        def __getattr__(self, name: str) -> Any:
            looked_up_in.add(threading.get_ident())
            return getattr(self.client, name)

    client = Client()

    def switch(_seconds: float) -> None:
        client.client = healthy

    retrying = default_retrying().copy(sleep=switch)
    uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=retrying)
    assert ecr.layer("demo", uploader.upload(BLOB).digest) == BLOB
    assert looked_up_in == {threading.get_ident()}


def test_session_resumes_after_its_part_was_interrupted(
    slow_ecr: LocalECR, slow_uploader: LayerUploader
) -> None:
    """The part may have arrived, so ECR may have more than the session says."""
    session = slow_uploader.initiate()
    slow_ecr.fail("UploadLayerPart", "slow")
    error = KeyboardInterrupt()
    with raises_same(error), interrupt_when(lambda: has_failed_call(slow_ecr), error):
        slow_uploader.upload_part(session, BLOB[:16])
    slow_uploader.upload_part(session, BLOB[:8])
    assert session.next_byte == 16
