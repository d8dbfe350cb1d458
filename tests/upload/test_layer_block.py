"""How the block of a written layer is left: by exceptions, in threads, and not at all."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import io
import os
import subprocess
import sys
import tarfile
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from helpers import (
    KINDS,
    NO_WAIT,
    SMALL_LIMITS,
    StopUploadError,
    digest_of,
    random_bytes,
    wait_until,
    waits_for_a_piece,
)
from interrupts import DeadlineError, interrupt_when, joining_new_threads
from pytest_mock import MockerFixture

from ecr_parts import LayerFile, LayerUploader, Limits, ServiceError
from ecr_parts._wire.request import EncodedBlob
from ecr_parts.testing import LocalECR, Registry

BLOB = random_bytes(45)  # six parts of 8 bytes, the last of 5
DIGEST = digest_of(BLOB)
START, PART, COMPLETE = "InitiateLayerUpload", "UploadLayerPart", "CompleteLayerUpload"
FOREVER = 10**6  # calls
MIB = 1024 * 1024
pytestmark = pytest.mark.usefixtures("frequent_wakes")


@pytest.fixture
def frequent_wakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting threads wake every 50 ms instead of every second, which makes the tests faster."""
    monkeypatch.setattr("ecr_parts._base.threads._WAKE_INTERVAL", 0.05)


@pytest.fixture
def slow_ecr() -> Iterator[LocalECR]:
    """Its parts are never answered."""
    with LocalECR(limits=SMALL_LIMITS, part_size=8, slow=600) as ecr:
        ecr.fail(PART, "slow", times=FOREVER)
        yield ecr


@pytest.fixture
def slow_uploader(slow_ecr: LocalECR) -> LayerUploader:
    return LayerUploader(slow_ecr.client(), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)


@contextmanager
def raises_same(error: BaseException) -> Iterator[None]:
    """The block raises ``error`` itself, without a context."""
    with pytest.raises(type(error)) as raised:
        yield
    assert raised.value is error
    assert error.__context__ is None


@contextmanager
def ending_incomplete(block: AbstractContextManager[LayerFile]) -> Iterator[LayerFile]:
    """A block that ends normally, and raises that its layer is incomplete."""
    with ExitStack() as stack:
        yield stack.enter_context(block)
        with pytest.raises(ValueError, match="the layer is incomplete"):
            stack.close()


@contextmanager
def stopping(ecr: LocalECR) -> Iterator[None]:
    """Stop ``ecr`` after the block, and wait for the threads that wait for its answers."""
    with joining_new_threads():
        try:
            yield
        finally:
            ecr.stop()


def layer_threads() -> list[threading.Thread]:
    """Those that upload layers that are written."""
    return [thread for thread in threading.enumerate() if thread.name == "ecr_parts layer"]


def check_incomplete(file: LayerFile, ecr: LocalECR) -> None:
    """The layer is not complete, and cannot be completed any more."""
    for get in (file.complete, lambda: file.layer, lambda: file.diff_id):
        with pytest.raises(ValueError, match="the layer is incomplete"):
            get()
    assert file.write(b"ignored") == 7
    assert not ecr.calls_of(COMPLETE)
    assert not ecr.registry.repositories["demo"].layers


# Exceptions in the block


@pytest.mark.parametrize("kind", [*KINDS, GeneratorExit])
@pytest.mark.parametrize("size", [0, 5, 8, 20, 45])
def test_exception_in_the_block_abandons_the_layer(
    kind: type[BaseException], size: int, ecr: LocalECR, uploader: LayerUploader
) -> None:
    error = kind("in the block")
    with joining_new_threads(), raises_same(error), uploader.open_layer() as file:
        file.write(BLOB[:size])
        raise error
    assert file.closed
    check_incomplete(file, ecr)


def test_nothing_is_begun_after_the_block(ecr: LocalECR, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that has not left does not leave, even before the thread that waits for it wakes."""
    monkeypatch.setattr("ecr_parts._base.threads._WAKE_INTERVAL", 600)
    client = ecr.client()
    begun, left = threading.Event(), threading.Event()

    def wait(**_event: object) -> None:
        begun.set()
        left.wait()

    client.meta.events.register("before-parameter-build.ecr.InitiateLayerUpload", wait)
    uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS)
    with joining_new_threads():
        with suppress(KeyError), uploader.open_layer() as file:
            file.write(BLOB[:30])
            begun.wait()
            raise KeyError
        left.set()
    assert not ecr.calls
    check_incomplete(file, ecr)


def test_part_that_was_sent_ahead_is_not_completed(
    slow_ecr: LocalECR, slow_uploader: LayerUploader
) -> None:
    with stopping(slow_ecr), suppress(KeyError), slow_uploader.open_layer() as file:
        file.write(BLOB[:30])
        wait_until(lambda: len(slow_ecr.calls_of(PART)) == 1)
        raise KeyError
    assert [call.operation for call in slow_ecr.calls] == [START, PART]
    check_incomplete(file, slow_ecr)


def test_threads_wake_each_other(
    ecr: LocalECR, uploader: LayerUploader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the layer is abandoned, or the upload has failed: they do not wait for a second."""
    monkeypatch.setattr("ecr_parts._base.threads._WAKE_INTERVAL", 600)
    with joining_new_threads(), suppress(KeyError), uploader.open_layer() as file:
        file.write(BLOB[:5])
        wait_until(waits_for_a_piece)
        raise KeyError
    ecr.fail(PART, "access_denied")
    with joining_new_threads(), pytest.raises(ServiceError), uploader.open_layer() as file:
        file.write(BLOB)
    check_incomplete(file, ecr)


@pytest.mark.parametrize("fails", [False, True])
def test_exit_stack_that_is_closed_in_finally_sees_the_exception(
    fails: bool, ecr: LocalECR, uploader: LayerUploader
) -> None:
    """``ExitStack.close`` passes none to the block."""
    stack = ExitStack()
    with joining_new_threads(), suppress(KeyError):
        try:
            file = stack.enter_context(uploader.open_layer())
            file.write(BLOB)
            if fails:
                raise KeyError
        finally:
            stack.close()
    if fails:
        check_incomplete(file, ecr)
    else:
        assert file.layer.digest == DIGEST


def test_exception_that_was_handled_before_the_block_does_not_matter(
    uploader: LayerUploader,
) -> None:
    try:
        int("no number")
    except ValueError:
        with uploader.open_layer() as file:
            file.write(BLOB)
        with suppress(OSError), uploader.open_layer() as other:
            other.write(BLOB)
            raise OSError from None
    assert file.layer.digest == DIGEST
    with pytest.raises(ValueError, match="incomplete"):
        other.complete()


def test_early_return_completes_the_layer(uploader: LayerUploader) -> None:
    def write() -> LayerFile:
        with uploader.open_layer() as file:
            file.write(BLOB)
            return file

    assert write().layer.digest == DIGEST


@pytest.mark.parametrize("closed", [False, True])
def test_generator_that_does_not_end_abandons_the_layer(
    closed: bool, ecr: LocalECR, uploader: LayerUploader
) -> None:
    def write() -> Iterator[LayerFile]:
        with uploader.open_layer() as file:
            file.write(BLOB)
            yield file

    with joining_new_threads():
        generator: Any = write()
        file = next(generator)
        if closed:
            generator.close()
        del generator
    check_incomplete(file, ecr)


def test_nested_blocks_are_independent(ecr: LocalECR, uploader: LayerUploader) -> None:
    with uploader.open_layer() as outer:
        outer.write(BLOB[:20])
        with suppress(KeyError), uploader.open_layer() as inner:
            inner.write(BLOB[:40])
            raise KeyError
        outer.write(BLOB[20:])
    assert ecr.layer("demo", outer.layer.digest) == BLOB
    with pytest.raises(ValueError, match="incomplete"):
        inner.layer  # noqa: B018  (the point of the test)


# close


def test_wrapper_that_closes_the_file_does_not_complete_the_layer(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    with (
        joining_new_threads(),
        suppress(KeyError),
        uploader.open_layer() as file,
        io.TextIOWrapper(file, "ascii") as text,
    ):
        text.write("half of it")
        text.flush()
        raise KeyError
    check_incomplete(file, ecr)


def test_closed_file_is_completed_by_the_block(ecr: LocalECR, uploader: LayerUploader) -> None:
    with uploader.open_layer() as file, file:
        file.write(BLOB)
    assert ecr.layer("demo", file.layer.digest) == BLOB


def test_layer_is_incomplete_if_something_was_written_after_close(
    ecr: LocalECR, uploader: LayerUploader
) -> None:
    """Such as the end of an archive, by a finalizer that swallows the exception."""
    with joining_new_threads(), ending_incomplete(uploader.open_layer()) as file:
        file.write(BLOB)
        file.close()
        with pytest.raises(ValueError, match="closed"):
            file.write(b"end")
    check_incomplete(file, ecr)


# Exceptions that leave ``write`` and ``complete``


@pytest.mark.parametrize("kind", [*KINDS, GeneratorExit])
def test_passes_on_what_progress_raises(
    kind: type[BaseException], ecr: LocalECR, uploader: LayerUploader
) -> None:
    """At each of its calls; the last ones are those of ``complete``."""
    for raising_call in count(1):
        error, calls = kind("raised by progress"), 0

        def progress(
            _newly_confirmed: int,
            error: BaseException = error,
            raising_call: int = raising_call,
        ) -> None:
            nonlocal calls
            calls += 1
            if calls == raising_call:
                raise error

        with (
            joining_new_threads(),
            raises_same(error),
            uploader.open_layer(progress=progress) as file,
        ):
            for byte in BLOB:
                file.write(bytes([byte]))
            file.complete()
            raise error  # it was called fewer times
        if calls < raising_call:
            break
        with pytest.raises(ValueError, match="incomplete"):
            file.layer  # noqa: B018  (the point of the test)
    assert raising_call > 6


@pytest.mark.parametrize("swallowed", [False, True])
def test_write_that_failed_makes_the_layer_incomplete(
    swallowed: bool, ecr: LocalECR, uploader: LayerUploader
) -> None:
    ecr.fail(PART, "access_denied", call=2)
    if swallowed:
        failures = 0
        with joining_new_threads(), ending_incomplete(uploader.open_layer()) as file:
            for byte in BLOB * 2:
                try:
                    file.write(bytes([byte]))
                except ServiceError:
                    failures += 1
        assert failures == 1
    else:
        with (
            joining_new_threads(),
            pytest.raises(ServiceError, match="AccessDenied"),
            uploader.open_layer() as file,
        ):
            file.write(BLOB * 2)
    check_incomplete(file, ecr)


def test_interrupted_write_ends_the_upload_at_once(ecr: LocalECR, uploader: LayerUploader) -> None:
    """Not only at the next write, or at the end of the block."""

    def progress(_newly_confirmed: int) -> None:
        raise StopUploadError

    with ending_incomplete(uploader.open_layer(progress=progress)) as file:
        wait_until(lambda: bool(layer_threads()))
        with pytest.raises(StopUploadError):
            file.write(random_bytes(500))
        wait_until(lambda: not layer_threads())
    assert not ecr.registry.repositories["demo"].layers


class Refused(io.BytesIO):
    """Content of a tar member, of which reading a part fails."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() > MIB:
            raise StopUploadError
        return super().read(size)


def add(tar: tarfile.TarFile, content: type[io.BytesIO]) -> None:
    for number in range(9):
        member = tarfile.TarInfo(f"file-{number}")
        member.size = 4 * MIB
        tar.addfile(member, content(random_bytes(4 * MIB)))


@pytest.mark.parametrize("mode", ["w|", "w:", "w|gz"])
@pytest.mark.parametrize("reason", ["progress", "service", "content"])
def test_tarfile_does_not_replace_the_exception(mode: Any, reason: str) -> None:
    """It writes again while it handles one."""
    limits = Limits(min_part=1, max_part=2 * MIB, max_parts=100, max_layer=100 * MIB)
    with LocalECR(limits=limits, part_size=MIB) as ecr, joining_new_threads():
        uploader = LayerUploader(ecr.client(), "demo", limits=limits, retrying=NO_WAIT)
        interrupt = KeyboardInterrupt()

        def progress(newly_confirmed: int) -> None:
            if newly_confirmed and reason == "progress":
                raise interrupt

        if reason == "service":
            ecr.fail(PART, "access_denied")
        expected: dict[str, type[BaseException]] = {
            "progress": KeyboardInterrupt, "service": ServiceError, "content": StopUploadError
        }  # fmt: skip
        content = Refused if reason == "content" else io.BytesIO
        with (
            pytest.raises(expected[reason]) as raised,
            uploader.open_layer(progress=progress) as file,
            tarfile.open(fileobj=file, mode=mode) as tar,
        ):
            add(tar, content)
        assert raised.value.__context__ is None
        check_incomplete(file, ecr)


# Signal handlers


@pytest.mark.parametrize("exception_type", [DeadlineError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("size", [8, 45])
def test_signal_handler_ends_a_write_that_waits(
    exception_type: type[BaseException],
    size: int,
    slow_ecr: LocalECR,
    slow_uploader: LayerUploader,
) -> None:
    """Or the end of the block, if that waits: for ever, without the signal."""
    error = exception_type("time is up")
    with (
        stopping(slow_ecr),
        raises_same(error),
        interrupt_when(lambda: bool(slow_ecr.calls_of(PART)), error),
        slow_uploader.open_layer() as file,
    ):
        file.write(BLOB[:size])
    check_incomplete(file, slow_ecr)


def test_progress_is_called_while_write_waits(
    slow_ecr: LocalECR, slow_uploader: LayerUploader
) -> None:
    calls = 0

    def progress(newly_confirmed: int) -> None:
        nonlocal calls
        assert newly_confirmed == 0
        calls += 1
        if calls == 5:
            raise StopUploadError

    with (
        stopping(slow_ecr),
        pytest.raises(StopUploadError),
        slow_uploader.open_layer(progress=progress) as file,
    ):
        file.write(BLOB)


class InterruptError(BaseException):
    """Raised between two lines of the library, as by a signal handler."""


@contextmanager
def raising_at(instant: int, event: str, error: BaseException) -> Iterator[Callable[[], bool]]:
    """Raise ``error`` at the n-th line or opcode that this thread runs in the modules of the file.

    Yields a function that tells whether it was raised.
    """
    left = instant

    def trace(frame: FrameType, kind: str, _argument: Any) -> Any:
        nonlocal left
        if frame.f_globals["__name__"].rpartition(".")[2] not in ("layer_file", "handover"):
            return None
        frame.f_trace_opcodes = event == "opcode"
        if kind == event:
            left -= 1
            if left == 0:
                raise error
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lambda: left <= 0
    finally:
        sys.settrace(before)


def write_all(uploader: LayerUploader) -> None:
    with uploader.open_layer() as file:
        for start in (0, 10):
            file.write(BLOB[start : start + 10])


def write_all_and_swallow(uploader: LayerUploader, written: list[bytes]) -> str:
    """The caller swallows what interrupts a write. Returns the digest, or "incomplete"."""
    try:
        with uploader.open_layer() as file:
            for start in (0, 10):
                with suppress(InterruptError):
                    file.write(BLOB[start : start + 10])
                    written.append(BLOB[start : start + 10])
    except ValueError as error:
        return "incomplete" if "the layer is incomplete" in str(error) else str(error)
    return file.layer.digest


def check_interrupts(ecr: LocalECR, uploader: LayerUploader, event: str) -> int:
    """Interrupt a block at one instant after the other; how many there were.

    A layer whose write was interrupted is either incomplete, or what was interrupted is as if it
    had been interrupted before that write, or after it.
    """
    whole, instant, raised = digest_of(BLOB[:20]), 1, True
    while raised:
        with joining_new_threads():
            error, caught = InterruptError(), None
            try:
                with raising_at(instant, event, error) as was_raised:
                    write_all(uploader)
            except BaseException as raised_error:  # noqa: BLE001  (checked next)
                caught = raised_error
            raised = was_raised()
            assert caught is (error if raised else None)
            assert error.__context__ is None
            error.__traceback__ = caught = None  # its frames refer to the file
        assert set(ecr.registry.repositories["demo"].layers) <= {whole}
        with joining_new_threads():
            error, written = InterruptError(), list[bytes]()
            with suppress(InterruptError), raising_at(instant, event, error):
                digest = write_all_and_swallow(uploader, written)
                assert digest in ("incomplete", digest_of(b"".join(written)), whole)
            error.__traceback__ = None
        ecr.registry = Registry(["demo"], limits=SMALL_LIMITS, part_size=8)
        instant += 1
    return instant


def test_exception_between_two_lines_is_passed_on(ecr: LocalECR, uploader: LayerUploader) -> None:
    assert check_interrupts(ecr, uploader, "line") > 100


@pytest.mark.soak
def test_exception_at_any_instruction_is_passed_on(ecr: LocalECR, uploader: LayerUploader) -> None:
    assert check_interrupts(ecr, uploader, "opcode") > 500


# Files that are dropped


@pytest.mark.parametrize("size", [0, 5, 8, 45])
def test_block_that_is_never_left_is_abandoned(
    size: int, ecr: LocalECR, uploader: LayerUploader
) -> None:
    """Without the garbage collector: nothing refers to itself."""
    gc.collect()
    gc.disable()
    try:
        with joining_new_threads():
            block = uploader.open_layer()
            file = block.__enter__()
            file.write(BLOB[:size])
            reference = weakref.ref(file)
            del block, file
            assert reference() is None
    finally:
        gc.enable()
    assert not ecr.calls_of(COMPLETE)


def test_no_python_code_finalizes_a_file(uploader: LayerUploader) -> None:
    """Python drops what a signal handler raises in a finalizer."""
    called: list[str] = []

    def profile(frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call":
            called.append(frame.f_code.co_name)

    with joining_new_threads():
        file = uploader.open_layer().__enter__()
        file.write(BLOB)
        sys.setprofile(profile)
        del file
        sys.setprofile(None)
    assert not called


def test_abandoned_files_leave_nothing_behind(ecr: LocalECR, uploader: LayerUploader) -> None:
    def abandon(number: int) -> None:
        if number % 7 == 0:
            ecr.fail(PART, "access_denied")
        with (
            suppress(KeyError, ServiceError),
            uploader.open_layer(compress=number % 5 == 0) as file,
        ):
            file.write(BLOB[: number % 46])
            if number % 2:
                file.complete()
            raise KeyError

    def open_descriptors() -> int:
        return len(os.listdir("/dev/fd"))

    def is_kept() -> bool:
        """Whether a file is in memory, or a part that has content."""
        return any(
            type(kept) is LayerFile or (type(kept) is EncodedBlob and kept.body)
            for kept in gc.get_objects()
        )

    with joining_new_threads():
        for number in range(50):
            abandon(number)
    before = open_descriptors()
    gc.collect()
    gc.disable()
    try:
        with joining_new_threads():
            for number in range(150):
                abandon(number)
        wait_until(lambda: not is_kept())
        assert open_descriptors() <= before + 20  # the client keeps up to 10 connections
    finally:
        gc.enable()


# Threads and processes


def test_two_threads_that_write_at_once_get_an_error(
    slow_ecr: LocalECR, slow_uploader: LayerUploader
) -> None:
    failures: list[BaseException] = []
    waiting = threading.Event()

    def write(file: LayerFile) -> None:
        try:
            file.write(BLOB)
        except ValueError as error:
            failures.append(error)

    block = slow_uploader.open_layer(progress=lambda _: waiting.set())
    with stopping(slow_ecr), ending_incomplete(block) as file:
        thread = threading.Thread(target=write, args=[file])
        thread.start()
        waiting.wait()
        with pytest.raises(RuntimeError, match="another call was running"):
            file.write(b"at once")
    thread.join()
    assert "the layer is incomplete" in str(failures)
    check_incomplete(file, slow_ecr)


@pytest.mark.parametrize("method", ["write", "complete"])
def test_progress_cannot_write(method: str, ecr: LocalECR, uploader: LayerUploader) -> None:
    def progress(_newly_confirmed: int) -> None:
        file.complete() if method == "complete" else file.write(b"more")

    with (
        joining_new_threads(),
        pytest.raises(RuntimeError, match="another call was running"),
        uploader.open_layer(progress=progress) as file,
    ):
        file.write(BLOB)
    check_incomplete(file, ecr)


@pytest.mark.parametrize("dies", [False, True], ids=["no thread", "dead thread"])
def test_block_raises_if_no_thread_can_be_started(
    dies: bool, ecr: LocalECR, uploader: LayerUploader, mocker: MockerFixture
) -> None:
    mocker.patch("ecr_parts._base.threads._START_TIMEOUT", 0.01)
    context = contextvars.copy_context()

    def write() -> None:
        # See ``test_calls_ecr_in_the_callers_thread_if_no_other_runs``.
        start: Any = (lambda *_arguments: 1) if dies else context.run
        mocker.patch("_thread.start_new_thread", start)
        with (
            pytest.raises(RuntimeError, match="no thread could be started"),
            uploader.open_layer() as file,
        ):
            file.write(BLOB)

    context.run(write)
    assert not ecr.calls


FORKS = """
import os, sys, warnings
sys.path.insert(0, {tests!r})
from helpers import SMALL_LIMITS, random_bytes
from ecr_parts import LayerUploader
from ecr_parts.testing import LocalECR

warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads
ecr = LocalECR(limits=SMALL_LIMITS, part_size=8)
ecr.start()
uploader = LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS)
blob, errors, child = random_bytes(45), 0, None

def fork(_newly_confirmed=0):
    global child
    if child is None:
        child = os.fork()

try:
    with uploader.open_layer(progress={progress}) as file:
        file.write(blob[:40])
        {fork}
        if child == 0:
            for call in (file.complete, lambda: file.write(blob)):
                try:
                    call()
                except RuntimeError:
                    errors += 1
            if {leaves}:
                raise KeyError
        file.write(blob[40:])
except (RuntimeError, KeyError) as error:
    assert child == 0, error
    os._exit(10 + errors)
print(file.layer.digest, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="requires os.fork")
@pytest.mark.parametrize(
    ("moment", "leaves", "errors"),
    [("block", "True", 2), ("block", "False", 2), ("progress", "False", 0)],
)
def test_forked_child_gets_an_error_and_its_parent_goes_on(
    moment: str, leaves: str, errors: int
) -> None:
    program = FORKS.format(
        tests=str(Path(__file__).parents[1]),
        progress="fork" if moment == "progress" else "None",
        fork="fork()" if moment == "block" else "",
        leaves=leaves,
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (f"{DIGEST} {10 + errors}\n", "")


AT_EXIT = """
from ecr_parts import LayerUploader
from ecr_parts.testing import LocalECR

ecr = LocalECR()
ecr.start()
file = LayerUploader(ecr.client(), "demo").open_layer(compress=True).__enter__()
file.write(bytes(3 << 20))
print("ended")
"""


def test_process_ends_although_a_block_was_never_left() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", AT_EXIT],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == ("ended\n", "", 0)


# asyncio


def test_block_in_a_coroutine_completes_in_a_thread(ecr: LocalECR, uploader: LayerUploader) -> None:
    async def handle() -> str:
        with uploader.open_layer() as file:
            for start in range(0, 45, 5):
                await asyncio.to_thread(file.write, BLOB[start : start + 5])
            layer = await asyncio.to_thread(file.complete)
        return layer.digest

    assert ecr.layer("demo", asyncio.run(handle())) == BLOB


@pytest.mark.parametrize("method", ["write", "complete"])
def test_cancelled_coroutine_abandons_the_layer(
    method: str, slow_ecr: LocalECR, slow_uploader: LayerUploader
) -> None:
    """Its threads end, which ``asyncio.run`` waits for, although ECR does not answer."""
    files: list[LayerFile] = []

    async def handle() -> None:
        with slow_uploader.open_layer() as file:
            files.append(file)
            await asyncio.to_thread(file.write, BLOB[: 10 if method == "complete" else 45])
            await asyncio.to_thread(file.complete)

    async def serve() -> None:
        handling = asyncio.create_task(handle())
        while not slow_ecr.calls_of(PART):
            await asyncio.sleep(0.01)
        handling.cancel()
        await asyncio.wait([handling])
        assert handling.cancelled()

    with stopping(slow_ecr):
        asyncio.run(serve())
    check_incomplete(files[0], slow_ecr)
