"""The next part's request is sent while ECR processes a part, but ECR gets the parts in order."""

from __future__ import annotations

import base64
import io
import math
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, get_args

import pytest
import trustme
import urllib3
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import ConnectionClosedError
from helpers import (
    NO_WAIT,
    SMALL_LIMITS,
    StopUploadError,
    digest_of,
    random_bytes,
    stop_after,
    wait_for_threads,
    wait_until,
)
from order_proxy import OrderProxy
from pytest_mock import MockerFixture

from ecr_parts import CLIENT_CONFIG, LayerUploader, Limits, Part, ServiceError
from ecr_parts._base.threads import Abandoned, Task, Waiter
from ecr_parts._wire.call import CallOptions, Target
from ecr_parts._wire.gate import Gate, Overlap
from ecr_parts._wire.repository import Repository
from ecr_parts._wire.request import Attempt
from ecr_parts.testing import Fault, LocalECR, Unknowns

BLOB = random_bytes(45)  # six parts of 8 bytes, the last of 5
DIGEST = digest_of(BLOB)
PROCESSING_TIME = 0.02  # seconds; long enough for the next request to arrive meanwhile
CONFIGS = {
    "CLIENT_CONFIG": CLIENT_CONFIG,
    "legacy": Config(retries={"mode": "legacy"}),
    "standard": Config(retries={"mode": "standard"}),
}
FAULTS: list[Fault] = [
    fault
    for fault in get_args(Fault)
    if fault not in ("access_denied", "expired_token", "answer_drips")
]


@contextmanager
def watched(
    config: Config = CLIENT_CONFIG,
    *,
    read_timeout: float = 0.3,
    tls: tuple[ssl.SSLContext, str] | None = None,
    **options: Any,
) -> Iterator[tuple[LocalECR, OrderProxy, Any]]:
    """A LocalECR, the proxy in front of it, and a client. Checks the order at the end."""
    defaults = {"limits": SMALL_LIMITS, "part_size": 8, "processing_time": PROCESSING_TIME}
    with (
        LocalECR(**{**defaults, "slow": 60, **options}) as ecr,
        OrderProxy(ecr.endpoint_url, tls[0] if tls else None) as proxy,
    ):
        config = config.merge(Config(proxies={}, read_timeout=read_timeout))
        verify = tls[1] if tls else None
        yield ecr, proxy, ecr.client(endpoint_url=proxy.url, config=config, verify=verify)
    assert proxy.too_early == []


def uploader_of(client: Any, **options: Any) -> LayerUploader:
    return LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT, **options)


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, str]:
    """A server's context, and the path of the certificate of its authority."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    path = tmp_path_factory.mktemp("tls") / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    return context, str(path)


def replace_by_file(request: Any, **_event: object) -> None:
    """As a handler does that sends a file instead of bytes."""
    if isinstance(request.body, bytes):
        request.body = io.BytesIO(request.body)


SOURCES: dict[str, Callable[[Path], Any]] = {
    "bytes": lambda _tmp: BLOB,
    "path": lambda tmp: tmp / "layer",
    "stream": lambda _tmp: iter([BLOB[:20], BLOB[20:]]),
}


@pytest.mark.parametrize("source", SOURCES)
def test_sends_each_part_while_the_one_before_is_processed(source: str, tmp_path: Path) -> None:
    (tmp_path / "layer").write_bytes(BLOB)
    with watched(read_timeout=60) as (ecr, proxy, client):
        proxy.hold_answers = 5
        layer = uploader_of(client).upload(SOURCES[source](tmp_path))
        assert ecr.layer("demo", layer.digest) == BLOB
        assert proxy.begun_ahead >= 5
        assert [call.outcome for call in ecr.calls_of("UploadLayerPart")] == 6 * ["ok"]
        assert [sent.attempts for sent in layer.parts] == 6 * [1]


def test_sends_nothing_ahead_without_overlap() -> None:
    with watched() as (ecr, proxy, client):
        layer = uploader_of(client, overlap=False).upload(BLOB)
        assert ecr.layer("demo", layer.digest) == BLOB
        assert proxy.begun_ahead == 0


ALL_CASES = [(config, call) for config in CONFIGS for call in (1, 2, 5, 6)]
SOME_CASES = [("CLIENT_CONFIG", 1), ("CLIENT_CONFIG", 5), ("legacy", 2), ("standard", 6)]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    ("config", "call"),
    [
        pytest.param(*case, marks=[pytest.mark.soak] * (case not in SOME_CASES))
        for case in ALL_CASES
    ],
)
def test_keeps_order_through_fault(
    fault: Fault, config: str, call: int, mocker: MockerFixture
) -> None:
    mocker.patch("time.sleep")  # botocore's own waits
    with watched(CONFIGS[config]) as (ecr, _, client):
        ecr.fail("UploadLayerPart", fault, call=call)
        layer = uploader_of(client).upload(BLOB)
        assert ecr.layer("demo", layer.digest) == BLOB


@pytest.mark.parametrize("fault", FAULTS)
def test_keeps_order_through_faults_of_several_calls_over_tls(
    fault: Fault, tls: tuple[ssl.SSLContext, str]
) -> None:
    with watched(tls=tls, processing_time=0.06) as (ecr, proxy, client):
        ecr.fail("UploadLayerPart", fault, call=2, times=2)
        ecr.fail("UploadLayerPart", fault, call=6)
        layer = uploader_of(client).upload(BLOB)
        assert ecr.layer("demo", layer.digest) == BLOB
        assert proxy.begun_ahead


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    ("secure", "number"),
    [(False, 1), (False, 2), (True, 3), (True, 6)],
    ids=["http-1", "http-2", "https-3", "https-6"],
)
def test_keeps_order_if_a_request_is_answered_before_it_is_complete(
    number: int,
    secure: bool,
    config: str,
    tls: tuple[ssl.SSLContext, str],
    mocker: MockerFixture,
) -> None:
    """botocore's own retries must wait for the part before, too."""
    mocker.patch("time.sleep")  # botocore's own waits
    with watched(CONFIGS[config], tls=tls if secure else None) as (ecr, proxy, client):
        proxy.answer_early = {number}
        layer = uploader_of(client).upload(BLOB)
        assert ecr.layer("demo", layer.digest) == BLOB


def test_keeps_order_if_another_handler_replaces_the_body() -> None:
    with watched() as (ecr, _, client):
        uploader = uploader_of(client)
        client.meta.events.register("before-send.ecr.UploadLayerPart", replace_by_file)
        layer = uploader.upload(BLOB)
        assert ecr.layer("demo", layer.digest) == BLOB


@pytest.mark.parametrize("fault", ["slow", "answer_lost"])
@pytest.mark.parametrize("call", [2, 3, 4])
def test_keeps_order_if_another_handler_replaces_the_body_of_one_part(
    call: int, fault: Fault
) -> None:
    requests = 0

    def replace_one(request: Any, **event: object) -> None:
        nonlocal requests
        requests += 1
        if requests == call:
            replace_by_file(request, **event)

    with watched(processing_time=0.06, slow=0.01) as (ecr, proxy, client):
        ecr.fail("UploadLayerPart", fault, call=call - 1)
        uploader = uploader_of(client)
        client.meta.events.register("before-send.ecr.UploadLayerPart", replace_one)
        layer = uploader.upload(BLOB)
        assert ecr.layer("demo", layer.digest) == BLOB
        assert proxy.begun_ahead


def test_ends_overlap_after_two_lost_requests(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ecr_parts")
    with watched(unknowns=Unknowns(longest_silence=0.05), processing_time=0.2) as (
        ecr,
        proxy,
        client,
    ):
        uploader = uploader_of(client)
        layer = uploader.upload(BLOB)
        assert ecr.layer("demo", layer.digest) == BLOB
        begun_ahead = proxy.begun_ahead
        assert begun_ahead >= 2
        assert [sent.attempts for sent in layer.parts].count(2) == 2
        uploader.upload(random_bytes(45, seed=1))
        assert proxy.begun_ahead == begun_ahead
    ended = [record for record in caplog.records if "no more parts ahead" in record.message]
    assert len(ended) == 1


def test_withdraws_request_that_was_held_back_for_long(
    mocker: MockerFixture, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ecr_parts")
    mocker.patch("ecr_parts._wire.gate._MAX_HOLD", 0.02)
    with watched(processing_time=0.1) as (ecr, proxy, client):
        layer = uploader_of(client).upload(BLOB)
        assert ecr.layer("demo", layer.digest) == BLOB
        assert proxy.begun_ahead >= 2
        assert [sent.attempts for sent in layer.parts] == 6 * [1]
        assert len(ecr.calls_of("UploadLayerPart")) == 6
    assert "took too long" in caplog.text


def test_lost_request_is_no_attempt_of_the_policy() -> None:
    once = NO_WAIT.copy(stop=lambda state: state.attempt_number >= 1)
    with watched(unknowns=Unknowns(longest_silence=0.05), processing_time=0.2) as (ecr, _, client):
        uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=once)
        assert ecr.layer("demo", uploader.upload(BLOB).digest) == BLOB


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("source", ["bytes", "stream"])
def test_continues_after_fragment_of_withdrawn_request(source: str, call: int) -> None:
    """ECR may store what it got of a request that was not completed."""
    part_size = 200_000  # more than the last bytes of a request, which are held back
    blob = random_bytes(3 * part_size)
    limits = Limits(min_part=1, max_part=part_size, max_parts=100, max_layer=len(blob))
    options: dict[str, Any] = {"limits": limits, "part_size": part_size, "processing_time": 0.2}
    with watched(**options, unknowns=Unknowns(broken_part="fragment")) as (ecr, _, client):

        def wait_for_fragment(_seconds: float) -> None:
            (upload,) = ecr.registry.repositories["demo"].uploads.values()
            wait_until(lambda: upload.size % part_size > 0)

        ecr.fail("UploadLayerPart", "answer_lost", call=call)
        retrying = NO_WAIT.copy(sleep=wait_for_fragment)
        uploader = LayerUploader(client, "demo", limits=limits, retrying=retrying)
        layer = uploader.upload(blob if source == "bytes" else iter([blob]))
        assert ecr.layer("demo", layer.digest) == blob


def test_session_of_error_may_be_behind_ecr(ecr: LocalECR) -> None:
    once = NO_WAIT.copy(stop=lambda _state: True)
    uploader = LayerUploader(
        ecr.client(), "demo", limits=SMALL_LIMITS, retrying=once, overlap=False
    )
    ecr.fail("UploadLayerPart", "answer_lost", call=2)
    with pytest.raises(ServiceError) as raised:
        uploader.upload(BLOB)
    session = raised.value.session
    assert session is not None
    assert session.next_byte == 8
    uploader.upload_part(session, BLOB[8:12])
    assert session.next_byte == 16


def test_withdrawn_request_sends_no_further_piece() -> None:
    gate = Gate()
    attempt = Attempt(lambda: None, lambda: False, gate, Gate())
    attempt.check()
    gate.close()
    with pytest.raises(Abandoned):
        attempt.check()


def test_attempt_that_ecr_confirms_at_the_last_moment_is_waited_for() -> None:
    confirmed, unanswered = Gate(), Gate()
    confirmed.open()
    for next_gate, seconds in ((confirmed, math.inf), (unanswered, 0.0)):
        attempt = Attempt(lambda: None, lambda: False, None, next_gate)
        assert attempt.more_time() == seconds
    assert unanswered.is_closed


def test_does_not_complete_next_part_after_another_answer_than_expected() -> None:
    with watched() as (ecr, _, client):
        ecr.respond("UploadLayerPart", {"lastByteReceived": 11}, call=2)
        layer = uploader_of(client, part_size=8).upload(BLOB)
        assert ecr.layer("demo", layer.digest) == BLOB
        first_bytes = [call.first_byte for call in ecr.calls_of("UploadLayerPart")]
        assert first_bytes[:3] == [0, 8, 12]


@pytest.mark.parametrize("confirmed", range(8, 46, 8))
def test_resumes_although_a_part_was_sent_ahead(confirmed: int, tmp_path: Path) -> None:
    """The checkpoint may be one part behind ECR."""
    with watched(processing_time=0) as (ecr, _, client):
        uploader, path = uploader_of(client), tmp_path / "checkpoint"
        with pytest.raises(StopUploadError):
            uploader.upload(BLOB, checkpoint=path, progress=stop_after(confirmed))
        wait_for_threads()
        ecr.calls.clear()
        layer = uploader.upload(BLOB, checkpoint=path)
        assert ecr.layer("demo", layer.digest) == BLOB
        outcomes = [call.outcome for call in ecr.calls_of("UploadLayerPart")]
        assert outcomes.count("InvalidLayerPartException") <= 1
        assert outcomes.count("ok") <= 6 - confirmed // 8


def test_begins_nothing_after_upload_has_ended(mocker: MockerFixture) -> None:
    """The next part may still be prepared, for example if the disk hangs."""
    ended, encodings = threading.Event(), 0

    def encode(blob: bytes) -> bytes:
        nonlocal encodings
        encodings += 1
        if encodings == 2:
            ended.wait(10)
        return base64.b64encode(blob)

    mocker.patch("ecr_parts._base.fast_base64.encode", encode)
    begun: list[str] = []
    with watched(processing_time=0) as (_, _, client):
        client.meta.events.register(
            "before-send.ecr.UploadLayerPart", lambda event_name, **_: begun.append(event_name)
        )
        with pytest.raises(StopUploadError):
            uploader_of(client).upload(BLOB, check_existing=False, progress=stop_after(8))
        ended.set()
        wait_for_threads()
    assert len(begun) == 1


def test_ends_request_whose_turn_had_come_when_upload_ended() -> None:
    """Its gate is open, so only being abandoned can stop it."""
    requests, ended = count(1), threading.Event()

    def wait_for_end(**_event: object) -> None:
        if next(requests) == 2:
            ended.wait(10)

    with watched() as (ecr, _, client):
        uploader = uploader_of(client)
        client.meta.events.register("before-send.ecr.UploadLayerPart", wait_for_end)
        with pytest.raises(StopUploadError):
            uploader.upload(BLOB, check_existing=False, progress=stop_after(8))
        ended.set()
        wait_for_threads()
        assert [call.first_byte for call in ecr.calls_of("UploadLayerPart")] == [0]


def test_sends_nothing_ahead_of_a_repeated_attempt() -> None:
    """A repeated attempt has another gate than the first, which the next part may be given late."""
    with watched(read_timeout=60) as (ecr, proxy, client):
        proxy.hold_answers = 1
        ecr.fail("UploadLayerPart", "throttled", call=2)

        def chunks() -> Iterator[bytes]:
            yield BLOB[:16]
            wait_until(lambda: "throttled" in [call.outcome for call in ecr.calls])
            wait_for_threads()  # until the answer has arrived
            yield BLOB[16:24]

        assert ecr.layer("demo", uploader_of(client).upload(chunks()).digest) == BLOB[:24]
        assert proxy.begun_ahead == 1  # the part that was throttled


@pytest.mark.parametrize("is_open", [True, False])
def test_gate_may_be_decided_by_several_threads_at_once(is_open: bool) -> None:
    """The answer, the end of the attempt and the caller's thread may all release it."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(200):
            gate, start = Gate(), threading.Barrier(5)
            outcomes: list[bool] = []

            def decide(gate: Gate = gate, start: threading.Barrier = start) -> None:
                start.wait()
                gate.previous_has_left()
                if is_open:
                    gate.open()
                outcomes.append(gate.close())  # noqa: B023  (joined in the same round)

            def pass_gate(gate: Gate = gate, start: threading.Barrier = start) -> None:
                start.wait()
                gate.wait_for_link()
                gate.wait()

            threads = [threading.Thread(target=decide) for _ in range(3)]
            threads += [threading.Thread(target=pass_gate) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(10)
                assert not thread.is_alive()
            assert outcomes == 3 * [not is_open]
    finally:
        sys.setswitchinterval(interval)


def test_opening_a_gate_releases_what_waits_at_it() -> None:
    gate = Gate()
    threads = [threading.Thread(target=wait) for wait in (gate.wait_for_link, gate.wait)]
    for thread in threads:
        thread.daemon = True
        thread.start()
    wait_until(lambda: gate.held_back)
    gate.open()
    for thread in threads:
        thread.join(2)
        assert not thread.is_alive()
    assert not gate.held_too_long


def test_begins_no_part_while_attempts_hang(ecr: LocalECR) -> None:
    """Nor the part after it, which would wait for a gate that nothing opens."""
    hanging = [Task(lambda: None, lambda: False) for _ in range(3)]
    options = CallOptions(NO_WAIT, attempt_timeout=5, overlap=Overlap(enabled=True))
    with Waiter() as waiter:
        repository = Repository(Target(ecr.client(), "demo"), options, waiter)
        upload_id, _ = repository.initiate()
        options.hanging.update(hanging)
        parts = [Part(0, 7), Part(8, 15)]
        calls = [repository.prepare_part(upload_id, part, [bytes(8)]) for part in parts]
        calls[0].begin()
        for task in hanging:
            task.ended.release()
        options.hanging.clear()
        calls[1].begin(calls[0])
        for call in calls:
            call.begin()
            assert call.settle().last_byte == call.part.last_byte


def failing_ahead(numbers: set[int]) -> Callable[..., None]:
    """A handler that fails some of the requests with parts, by their numbers."""
    requests = count(1)

    def fail(request: Any, **_event: object) -> None:
        if next(requests) in numbers:
            raise ConnectionClosedError(endpoint_url=request.url)

    return fail


def test_reports_requests_that_failed_before_their_turn(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ecr_parts")
    with watched(processing_time=0.1) as (ecr, _, client):
        uploader = uploader_of(client)
        client.meta.events.register("before-send.ecr.UploadLayerPart", failing_ahead({2, 4}))
        layer = uploader.upload(BLOB)
        assert ecr.layer("demo", layer.digest) == BLOB
        assert [sent.attempts for sent in layer.parts] == 6 * [1]
    messages = [record.message for record in caplog.records]
    assert len([text for text in messages if "trying again in its turn" in text]) == 2
    assert len([text for text in messages if "no more parts ahead" in text]) == 1


class RawResponse:
    """What botocore reads an answer from."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self, **_options: object) -> Iterator[bytes]:
        yield self._body


def test_ends_overlap_if_a_handler_answers_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    """The end of a request that another handler sends cannot be held back."""
    caplog.set_level("INFO", "ecr_parts")
    requests, pool = count(1), urllib3.PoolManager()

    def answer_second(request: Any, **_event: object) -> Any:
        if next(requests) != 2:
            return None
        headers = dict(request.headers)
        answer = pool.request("POST", request.url, body=request.body, headers=headers)
        raw: Any = RawResponse(answer.data)
        answer_headers: Any = answer.headers
        return AWSResponse(request.url, answer.status, answer_headers, raw)

    with LocalECR(limits=SMALL_LIMITS, part_size=8, processing_time=PROCESSING_TIME) as ecr:
        client = ecr.client()
        uploader = uploader_of(client)
        client.meta.events.register("before-send.ecr.UploadLayerPart", answer_second)
        layer = uploader.upload(BLOB)
        assert ecr.layer("demo", layer.digest) == BLOB
    pool.clear()
    assert "sending no more parts ahead: another handler" in caplog.text


def test_end_of_the_overlap_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Also if requests of several layers, which were sent ahead before, are lost afterwards."""
    caplog.set_level("INFO")
    overlap = Overlap(enabled=True)
    for number in range(4):
        assert overlap.enabled == (number < 2)
        overlap.count_loss("it failed")
    assert caplog.text.count("sending no more parts ahead: it failed") == 1
