"""Calls run in threads of the library: what ends them, and what works without threads."""

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
from botocore.config import Config
from botocore.exceptions import ClientError
from helpers import (
    NO_WAIT,
    SMALL_LIMITS,
    StopUploadError,
    digest_of,
    random_bytes,
    stop_after,
    wait_until,
    write_layer,
)
from image_makers import Layout
from interrupts import interrupt_when, joining_new_threads
from pytest_mock import MockerFixture
from typing_extensions import Self

from ecr_parts import LayerUploader, ServiceError, UploadSession
from ecr_parts._wire.request import EncodedBlob
from ecr_parts.testing import Fault, LocalECR

BLOB = random_bytes(45)  # six parts of 8 bytes, the last of 5
DIGEST = digest_of(BLOB)
FOREVER = 10**6  # calls


# The time limit of an attempt


@pytest.mark.parametrize("operation", ["InitiateLayerUpload", "UploadLayerPart"])
def test_attempt_timeout_bounds_answers_without_an_end(operation: str, ecr: LocalECR) -> None:
    new_uploader = partial(
        LayerUploader, ecr.client(), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT
    )
    with joining_new_threads():
        ecr.fail(operation, "answer_drips", times=2)
        layer = new_uploader(attempt_timeout=0.4).upload(BLOB)
        assert ecr.layer("demo", layer.digest) == BLOB

        ecr.fail(operation, "answer_drips", times=FOREVER)
        uploader = new_uploader(attempt_timeout=0.2)
        message = rf"{operation} .* after 3 attempts: .* within 0.2 seconds\. .*each attempt"
        with pytest.raises(ServiceError, match=message) as raised:
            uploader.upload(BLOB[:40])
        assert raised.value.code == "AttemptTimeoutError"
        calls_before = len(ecr.calls)
        message = "3 earlier attempts are still waiting for an answer"
        with pytest.raises(ServiceError, match=message):
            uploader.upload(BLOB[:41])
        assert len(ecr.calls) == calls_before
        ecr.stop()


def test_attempt_timeout_bounds_the_calls_before_and_after_the_parts(ecr: LocalECR) -> None:
    uploader = LayerUploader(
        ecr.client(), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT, attempt_timeout=0.3
    )
    ecr.fail("BatchCheckLayerAvailability", "answer_drips")
    ecr.fail("CompleteLayerUpload", "answer_drips")
    assert uploader.upload(BLOB).digest == DIGEST
    assert ecr.layer("demo", DIGEST) == BLOB


@pytest.mark.parametrize(
    ("seconds", "error"),
    [(0, ValueError), (-1, ValueError), (float("nan"), ValueError), (10**400, ValueError),
     ("9", TypeError), (True, TypeError), (None, TypeError)],
)  # fmt: skip
def test_rejects_invalid_attempt_timeout(
    seconds: Any, error: type[Exception], ecr: LocalECR
) -> None:
    with pytest.raises(error, match="attempt_timeout must be a"):
        LayerUploader(ecr.client(), "demo", attempt_timeout=seconds)
    LayerUploader(ecr.client(), "demo", attempt_timeout=float("inf"))


# Sources that deliver little by little


def drip() -> Iterator[bytes]:
    while True:
        yield b"x"


def drip_nothing() -> Iterator[bytes]:
    while True:
        yield b""


class DrippingFile(io.RawIOBase):
    def readable(self) -> bool:
        return True

    def read(self, _size: int = -1, /) -> bytes:
        return b"x"


@pytest.mark.parametrize("make_source", [drip, drip_nothing, DrippingFile])
def test_progress_can_end_an_upload_whose_source_never_fills_a_part(
    make_source: Callable[[], Any], local_ecr: LocalECR, mocker: MockerFixture
) -> None:
    """The source is read in the caller's thread, between two reads of which it is called."""
    mocker.patch("ecr_parts._sources.kinds._INTERVAL", 0.01)  # seconds, for a faster test
    uploader = LayerUploader(local_ecr.client(), "demo")
    calls = 0

    def progress(_newly_confirmed: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 10:  # more than before the first read
            raise StopUploadError

    for upload in (
        partial(uploader.upload, make_source()),
        partial(uploader.upload_many, [make_source()]),
    ):
        calls = 0
        with pytest.raises(StopUploadError):
            upload(progress=progress)


def test_first_error_of_upload_many_stops_a_stream_that_never_fills_a_part(
    ecr: LocalECR,
) -> None:
    ecr.fail("UploadLayerPart", "access_denied", times=FOREVER)
    uploader = LayerUploader(ecr.client(), "demo", part_size=16, limits=SMALL_LIMITS)
    with pytest.raises(ServiceError, match="AccessDenied"):
        uploader.upload_many([BLOB, drip_nothing()])


# Abandoned calls


class PausingServer:
    """Reads the first bytes of a request, and the rest only once ``resume`` is set."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.request_started = threading.Event()
        self.resume = threading.Event()
        self.bytes_received = 0
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        connection, _ = self._listening.accept()
        with connection:
            self.bytes_received += len(connection.recv(1000))
            self.request_started.set()
            self.resume.wait()
            with contextlib.suppress(ConnectionError):
                while received := connection.recv(1 << 20):
                    self.bytes_received += len(received)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.resume.set()
        self._thread.join()
        self._listening.close()


def test_abandoned_call_stops_sending_its_body(local_ecr: LocalECR) -> None:
    size = 15 * 1024**2  # bytes: more than the kernel buffers
    session = UploadSession(repository_name="demo", upload_id="upload", part_size=size)
    with PausingServer() as server, joining_new_threads():
        uploader = LayerUploader(local_ecr.client(endpoint_url=server.url), "demo")
        with (
            pytest.raises(KeyboardInterrupt),
            interrupt_when(server.request_started.is_set, KeyboardInterrupt()),
        ):
            uploader.upload_part(session, bytes(size))
        server.resume.set()
    assert 0 < server.bytes_received < size


def test_call_abandoned_while_connecting_has_no_effect(
    ecr: LocalECR, uploader: LayerUploader, mocker: MockerFixture
) -> None:
    session = uploader.initiate()
    uploader.upload_part(session, BLOB[:8])
    connecting, abandoned = threading.Event(), threading.Event()
    getaddrinfo = socket.getaddrinfo

    def slow_getaddrinfo(*args: Any, **kwargs: Any) -> Any:
        connecting.set()
        abandoned.wait()
        return getaddrinfo(*args, **kwargs)

    mocker.patch("socket.getaddrinfo", slow_getaddrinfo)
    unconnected = LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS)
    with joining_new_threads():
        with (
            pytest.raises(KeyboardInterrupt),
            interrupt_when(connecting.is_set, KeyboardInterrupt()),
        ):
            unconnected.complete(session, digest_of(BLOB[:8]))
        abandoned.set()
    # The request's head may arrive, but no body.
    assert [call.outcome for call in ecr.calls][2:] in ([], ["reset"])
    assert not ecr.registry.repositories["demo"].layers


def test_sends_complete_once_if_interrupted_meanwhile() -> None:
    """botocore's own retries would send it again after the timeout."""
    config = Config(proxies={}, read_timeout=0.5, retries={"mode": "legacy"})
    with LocalECR(limits=SMALL_LIMITS, part_size=8, slow=600) as ecr, joining_new_threads():
        uploader = LayerUploader(ecr.client(config=config), "demo", limits=SMALL_LIMITS)
        ecr.fail("CompleteLayerUpload", "slow", times=FOREVER)
        session = uploader.initiate()
        uploader.upload_part(session, BLOB[:16])
        with (
            pytest.raises(KeyboardInterrupt),
            interrupt_when(lambda: bool(ecr.calls_of("CompleteLayerUpload")), KeyboardInterrupt()),
        ):
            uploader.complete(session, digest_of(BLOB[:16]))
    assert len(ecr.calls_of("CompleteLayerUpload")) == 1


@pytest.mark.parametrize("many", [False, True], ids=["upload", "upload_many"])
def test_interrupted_upload_leaves_no_part_in_memory(
    many: bool, ecr: LocalECR, uploader: LayerUploader
) -> None:
    """Reference cycles of exceptions and frames would keep parts until the collector runs."""
    uploader.upload(b"first")
    gc.collect()
    gc.disable()
    try:
        ecr.fail("UploadLayerPart", "throttled")
        with joining_new_threads(), contextlib.suppress(StopUploadError):
            if many:
                uploader.upload_many([BLOB], progress=stop_after(1))
            else:
                uploader.upload(BLOB, progress=stop_after(1))
        wait_until(lambda: EncodedBlob not in map(type, gc.get_objects()))
    finally:
        gc.enable()


# Threads at the end of the process, and where none can be started


PROLOGUE = """
import sys
sys.path.insert(0, {tests!r})
from helpers import SMALL_LIMITS, random_bytes
from interrupts import interrupt_when
from ecr_parts import LayerUploader
from ecr_parts.testing import LocalECR

ecr = LocalECR(limits=SMALL_LIMITS, part_size=8, slow=600)
ecr.start()
uploader = LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS)
"""


def run_program(program: str) -> subprocess.CompletedProcess[str]:
    """Run ``program`` in another process, with an uploader and the LocalECR that it uses."""
    prologue = PROLOGUE.format(tests=str(Path(__file__).parents[1]))
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", prologue + program],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "start",
    [
        "import threading; threading.Thread(target=upload).start()",
        "from concurrent.futures import ThreadPoolExecutor; ThreadPoolExecutor().submit(upload)",
        "import atexit; atexit.register(upload)",
    ],
    ids=["thread", "executor", "atexit"],
)
def test_upload_continues_after_the_main_thread_has_ended(start: str) -> None:
    """Some versions of Python start no thread then."""
    # The first answer is late, so that the main thread has ended by then. The server runs in this
    # process, because it needs new threads, too.
    with LocalECR(limits=SMALL_LIMITS, part_size=8, slow=0.2) as ecr:
        ecr.fail("BatchCheckLayerAvailability", "slow")
        done = run_program(f"""
def upload():
    client = ecr.client(endpoint_url={ecr.endpoint_url!r})
    uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS)
    uploader.upload_many([random_bytes(45), random_bytes(40), iter([random_bytes(30)])])
    uploader.upload(iter([random_bytes(50)]))
    print("uploaded", flush=True)

{start}
""")
        assert (done.stdout, done.stderr, done.returncode) == ("uploaded\n", "", 0)
        for size in (45, 40, 30, 50):
            blob = random_bytes(size)
            assert ecr.layer("demo", digest_of(blob)) == blob


@pytest.mark.parametrize("fault", ["answer_drips", "slow"])
def test_process_ends_although_a_call_is_not_answered(fault: Fault) -> None:
    """The calls are made by workers of ``upload_many``."""
    done = run_program(f"""
import ecr_parts._base.threads
ecr_parts._base.threads._WAKE_INTERVAL = 0.05  # seconds: at which the workers stop
ecr.fail("UploadLayerPart", {fault!r}, times={FOREVER})
with interrupt_when(lambda: bool(ecr.calls_of("UploadLayerPart")), KeyboardInterrupt()):
    uploader.upload_many([random_bytes(45), random_bytes(40)])
""")
    assert done.stderr.endswith("KeyboardInterrupt\n")
    assert done.returncode == -signal.SIGINT


@pytest.mark.parametrize("warm", [False, True], ids=["first upload", "later upload"])
def test_finalizer_can_start_an_upload_at_the_end_of_the_interpreter(warm: bool) -> None:
    done = run_program(
        """
class Client:
    def batch_check_layer_availability(self, **_):
        return {"layers": []}
    def initiate_layer_upload(self, **_):
        return {"uploadId": "upload", "partSize": 8}
    upload_layer_part = complete_layer_upload = initiate_layer_upload

class Finalized:
    def __del__(
        self, initiate=LayerUploader(Client(), "demo", limits=SMALL_LIMITS).initiate, print=print
    ):
        print(initiate().upload_id, flush=True)

ecr.stop()
finalized = Finalized()
"""
        + ("LayerUploader(Client(), 'demo', limits=SMALL_LIMITS).initiate()" if warm else "")
    )
    assert (done.stdout, done.stderr, done.returncode) == ("upload\n", "", 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="requires os.fork")
def test_forked_process_starts_threads_of_its_own() -> None:
    done = run_program("""
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads
session = uploader.initiate()
if os.fork() == 0:
    uploader.upload_part(session, bytes(8))
    print("uploaded", flush=True)
    os._exit(0)
os.wait()
""")
    assert (done.stdout, done.stderr, done.returncode) == ("uploaded\n", "", 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="requires os.fork")
def test_forked_process_does_not_wait_for_a_part_of_its_parent() -> None:
    """The uplink is slow, and it is the parent's turn."""
    done = run_program("""
import os, signal, threading, warnings
from ecr_parts._wire.signature import SigningTime
from ecr_parts.testing import EcrError
warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads
SigningTime.age = 400
client = ecr.client()
uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS)
ecr.respond("UploadLayerPart", EcrError("InvalidSignatureException", "Signature expired"))
uploader.upload(b"slow")
sent, forked = threading.Event(), threading.Event()

def hold(**_event):
    if not sent.is_set():
        sent.set()
        forked.wait(20)

client.meta.events.register("after-call.ecr.UploadLayerPart", hold)
thread = threading.Thread(target=uploader.upload, args=(b"parent",))
thread.start()
sent.wait(20)
child = os.fork()
if child == 0:
    signal.alarm(20)  # or else a child that hangs would be left behind
    uploader.upload(b"child")
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
forked.set()
thread.join()
""")
    assert (done.stdout, done.stderr, done.returncode) == ("0\n", "", 0)


FORK_IN_PROGRESS = """
import os, signal, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads
path, blob, parent = {path!r}, random_bytes(45), os.getpid()
moments = dict(
    confirmed=lambda newly_confirmed: newly_confirmed,
    not_confirmed=lambda newly_confirmed: not newly_confirmed,
    other_thread=lambda _: threading.current_thread() is not threading.main_thread(),
)

def upload(moment):
    child = None

    def progress(newly_confirmed):
        nonlocal child
        if child is None and moments[moment](newly_confirmed):
            child = os.fork()
            if child == 0:
                signal.alarm(20)  # or else a child that hangs would be left behind

    ecr.client().create_repository(repositoryName=moment)
    uploader = LayerUploader(ecr.client(), moment, limits=SMALL_LIMITS)
    try:
        uploader.{call}
    except RuntimeError as error:
        assert os.getpid() != parent
        print(error, file=sys.stderr)
        os._exit(1)
    if os.getpid() == parent:
        print(moment, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

for moment in {moments}:
    upload(moment)
"""
MOMENTS = ["confirmed", "not_confirmed"]
MOMENTS_WITH_WORKERS = [*MOMENTS, "other_thread"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="requires os.fork")
@pytest.mark.parametrize(
    ("call", "moments"),
    [
        ("upload(path, progress=progress)", MOMENTS),
        ("upload(iter([blob]), progress=progress)", MOMENTS),
        ("upload_many([path, iter([blob[:40]])], progress=progress)", MOMENTS_WITH_WORKERS),
        ("push_image(path, progress=progress)", MOMENTS_WITH_WORKERS),
    ],
    ids=["path", "stream", "many", "image"],
)
def test_process_that_progress_forks_gets_an_error(
    call: str, moments: list[str], tmp_path: Path
) -> None:
    """It has none of the library's threads. The uploads of its parent must not be harmed."""
    path = write_layer(BLOB, tmp_path)
    if call.startswith("push_image"):
        layout = Layout(tmp_path / "layout")
        path = layout.finish(layout.add_image("amd64", [BLOB]))
    done = run_program(FORK_IN_PROGRESS.format(path=str(path), moments=moments, call=call))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{moment} 1" for moment in moments], done.stderr
    assert done.stderr.count("this process was forked during an upload") == len(moments)


@pytest.mark.parametrize("method", ["upload path", "upload stream", "upload_many"])
@pytest.mark.parametrize("dies", [False, True], ids=["no thread", "dead thread"])
def test_calls_ecr_in_the_callers_thread_if_no_other_runs(
    method: str, dies: bool, ecr: LocalECR, tmp_path: Path, mocker: MockerFixture
) -> None:
    """No thread can be started, or it dies before it begins, as when memory is short."""
    mocker.patch("ecr_parts._base.threads._START_TIMEOUT", 0.01)
    mocker.patch("ecr_parts._base.workers._POLL_INTERVAL", 0.05)  # seconds, for a faster test
    calling_threads: set[int] = set()
    client = ecr.client()
    client.meta.events.register(
        "before-send.ecr", lambda **_event: calling_threads.add(threading.get_ident())
    )
    uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
    ecr.fail("UploadLayerPart", "answer_lost", call=2)
    context = contextvars.copy_context()

    def upload() -> None:
        # Like start_new_thread without threads, ``run`` of a context that is being run already
        # raises a RuntimeError in C code, so its traceback has no further frame.
        start: Any = (lambda *_arguments: 1) if dies else context.run
        mocker.patch("_thread.start_new_thread", start)
        if method == "upload_many":
            layers = uploader.upload_many(
                [write_layer(BLOB, tmp_path), BLOB[:40], iter([BLOB[:30]])]
            )
            assert [layer.size for layer in layers] == [45, 40, 30]
        elif method == "upload path":
            uploader.upload(write_layer(BLOB, tmp_path))
        else:
            uploader.upload(iter([BLOB]))

    context.run(upload)
    assert ecr.layer("demo", DIGEST) == BLOB
    assert calling_threads == {threading.get_ident()}


# Clients


def test_each_call_runs_in_its_own_copy_of_the_callers_context(ecr: LocalECR) -> None:
    """OpenTelemetry needs the context to find the caller's span."""
    span: contextvars.ContextVar[str] = contextvars.ContextVar("span")
    spans_of_calls: list[str] = []

    def handler(**_event: object) -> None:
        spans_of_calls.append(span.get())
        span.set("the call's")

    client = ecr.client()
    client.meta.events.register("before-send.ecr", handler)
    token = span.set("the caller's")
    LayerUploader(client, "demo", limits=SMALL_LIMITS).upload(BLOB)
    assert set(spans_of_calls) == {"the caller's"}
    assert span.get() == "the caller's"
    span.reset(token)


def test_client_can_be_a_bridge_to_asyncio(ecr: LocalECR) -> None:
    """``serve`` runs on after a failed call, though its frame is in the traceback of the error."""
    botocore_client = ecr.client()
    queue: asyncio.Queue[Any] = asyncio.Queue()

    async def serve() -> None:
        while (call := await queue.get()) is not None:
            method, parameters, future = call
            try:
                future.set_result(getattr(botocore_client, method)(**parameters))
            except Exception as error:  # noqa: BLE001  (passed on to the caller)
                future.set_exception(error)

    class Bridge:
        def __getattr__(self, method: str) -> Any:
            def call(**parameters: object) -> Any:
                future: Future[Any] = Future()
                loop.call_soon_threadsafe(queue.put_nowait, (method, parameters, future))
                return future.result()

            return call

    ecr.fail("UploadLayerPart", "throttled", call=2)
    uploader = LayerUploader(
        Bridge(), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT, attempt_timeout=9
    )
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=[serve()])
    thread.start()
    try:
        assert uploader.upload(BLOB).digest == DIGEST
    finally:
        loop.call_soon_threadsafe(queue.put_nowait, None)
        thread.join()
        loop.close()


def test_http_status_that_is_not_a_number_is_not_retried(mocker: MockerFixture) -> None:
    client = mocker.Mock()
    response: Any = {"Error": {"Code": "Odd"}, "ResponseMetadata": {"HTTPStatusCode": "500"}}
    client.initiate_layer_upload.side_effect = ClientError(response, "InitiateLayerUpload")
    with pytest.raises(ServiceError, match="Odd"):
        LayerUploader(client, "demo").initiate()
    client.initiate_layer_upload.assert_called_once()
