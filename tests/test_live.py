"""Against the real ECR: what is promised holds there, and what is unknown of it is settled.

    ECR_PARTS_LIVE_REPOSITORY=team/scratch python -m pytest tests/test_live.py

With the credentials and the region that a botocore client finds by itself, and a repository that
layers may be written to: about 100 MB of random bytes, which no image refers to, so that ECR may
clean them up. It costs nothing but the traffic. Each switch of ``Unknowns`` is one question here;
what the test prints of the real service belongs into an issue, and then into ``Unknowns``.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import botocore.session
import pytest
import tenacity
from botocore.exceptions import BotoCoreError, ClientError, ConnectionClosedError
from botocore.httpsession import get_cert_path
from helpers import digest_of

from ecr_parts import CLIENT_CONFIG, LayerUploader, UploadedLayer, default_retrying
from ecr_parts.testing import LocalECR, Unknowns

MIB = 1024 * 1024
FAR = 1_000 * MIB  # a byte where none of these uploads stands
LIVE = os.environ.get("ECR_PARTS_LIVE_REPOSITORY", "")
live = pytest.mark.skipif(not LIVE, reason="ECR_PARTS_LIVE_REPOSITORY names no repository")


class Ecr:
    """The service under test: its own client, and what it answers, unwrapped."""

    def __init__(self) -> None:
        self.client: Any = botocore.session.Session().create_client("ecr", config=CLIENT_CONFIG)
        self.uploader = LayerUploader(self.client, LIVE, part_size=5 * MIB)
        self.raw = b""
        """The body of the last answer."""
        self.client.meta.events.register("response-received.ecr", self._keep)
        self.hang_up: Callable[[Any], None] | None = None
        """What is done instead of the next UploadLayerPart."""
        self.client.meta.events.register("before-send.ecr.UploadLayerPart", self._before_send)

    def initiate(self) -> str:
        return str(self.client.initiate_layer_upload(repositoryName=LIVE)["uploadId"])

    def part(self, upload_id: str, first_byte: int, blob: bytes) -> dict[str, Any]:
        """ECR's answer, also if it is an error."""
        last_byte = first_byte + len(blob) - 1
        return self._answer(
            self.client.upload_layer_part,
            uploadId=upload_id, partFirstByte=first_byte, partLastByte=last_byte,
            layerPartBlob=blob,
        )  # fmt: skip

    def complete(self, upload_id: str, digest: str) -> dict[str, Any]:
        return self._answer(
            self.client.complete_layer_upload, uploadId=upload_id, layerDigests=[digest]
        )

    def available(self, digest: str) -> dict[str, Any]:
        return self._answer(self.client.batch_check_layer_availability, layerDigests=[digest])

    def _answer(self, call: Callable[..., dict[str, Any]], **parameters: object) -> dict[str, Any]:
        try:
            return default_retrying()(call, repositoryName=LIVE, **parameters)
        except ClientError as error:
            return {"code": error.response["Error"]["Code"], **error.response}
        except BotoCoreError as error:  # of a part too large, the connection may just break
            return {"code": type(error).__name__}

    def refused(self, upload_id: str) -> dict[str, Any]:
        """What ECR says of a part that begins where no upload stands."""
        answer = self.part(upload_id, FAR, b"x")
        assert answer.get("code") == "InvalidLayerPartException", answer
        return answer

    def _keep(self, response_dict: dict[str, Any] | None, **_event: object) -> None:
        self.raw = b"" if response_dict is None else response_dict["body"]

    def _before_send(self, request: Any, **_event: object) -> None:
        if self.hang_up is not None:
            hang_up, self.hang_up = self.hang_up, None
            hang_up(request)
            raise ConnectionClosedError(endpoint_url=request.url)


@contextmanager
def connection_with(request: Any, body: bytes) -> Iterator[http.client.HTTPConnection]:
    """A connection on which ``request`` has been sent with ``body``, all of it or its beginning."""
    url = urlsplit(request.url)
    host, port = url.hostname or "", url.port
    connection = http.client.HTTPConnection(host, port, timeout=60)
    if url.scheme == "https":
        bundle = botocore.session.Session().get_config_variable("ca_bundle")
        trusted = ssl.create_default_context(cafile=bundle or get_cert_path(verify=True))
        connection = http.client.HTTPSConnection(host, port, timeout=60, context=trusted)
    with closing(connection):
        connection.putrequest(request.method, url.path or "/", skip_accept_encoding=True)
        for name, value in request.headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        connection.send(body)
        yield connection


def hang_up_before_the_answer(request: Any) -> None:
    with connection_with(request, request.body) as connection:
        assert connection.getresponse().status == 200  # so it is stored; and nobody is told


def hang_up_in_the_middle(request: Any) -> None:
    with connection_with(request, request.body[: len(request.body) // 2]) as connection:
        connection.sock.shutdown(socket.SHUT_WR)
        connection.sock.settimeout(10)
        with suppress(OSError):  # until ECR is done with it, behind what TLS has to say
            while connection.sock.recv(65_536):
                pass


@pytest.fixture
def ecr() -> Iterator[Ecr]:
    ecr = Ecr()
    yield ecr
    ecr.client.close()


@live
def test_round_trip(ecr: Ecr, tmp_path: Path) -> None:
    blob = os.urandom(12 * MIB)
    path = tmp_path / "layer"
    path.write_bytes(blob)
    layer = ecr.uploader.upload(path, checkpoint=tmp_path / "checkpoint")
    assert layer == UploadedLayer(digest_of(blob), len(blob), existed=False)
    assert [sent.part.size for sent in layer.parts] == [5 * MIB, 5 * MIB, 2 * MIB]


@live
def test_a_lost_answer(ecr: Ecr, caplog: pytest.LogCaptureFixture) -> None:
    """What everything rests on: a part sent again is refused, with the byte where ECR stands."""
    caplog.set_level("INFO", "ecr_parts")
    blob = os.urandom(12 * MIB)
    confirmed: list[int] = []

    def lose_the_second(newly: int) -> None:
        if newly:
            confirmed.append(newly)
            ecr.hang_up = hang_up_before_the_answer if len(confirmed) == 1 else None

    layer = ecr.uploader.upload(blob, progress=lose_the_second)
    assert layer == UploadedLayer(digest_of(blob), len(blob), existed=False)
    assert "bytes 5242880-10485759, attempt 2: ECR refused the part and has" in caplog.text


@live
def test_a_layer_that_is_there(ecr: Ecr) -> None:
    blob, missing = os.urandom(MIB), digest_of(os.urandom(8))
    assert not ecr.uploader.upload(blob).existed
    wait_for(ecr, digest_of(blob))
    assert ecr.uploader.upload(blob).existed
    assert ecr.uploader.upload(blob, check_existing=False).existed
    assert ecr.uploader.missing([digest_of(blob), missing]) == {missing}


@live
def test_step_by_step_and_resumed(ecr: Ecr) -> None:
    blob = os.urandom(11 * MIB)
    session = ecr.uploader.initiate(layer_size=len(blob))
    older = type(session).from_json(session.to_json())
    ecr.uploader.upload_part(session, blob[: 5 * MIB])
    for known in (session, older):  # the older one is told where ECR stands
        while known.next_byte < 10 * MIB:
            first = known.next_byte
            ecr.uploader.upload_part(known, blob[first : first + 5 * MIB])
    ecr.uploader.upload_part(older, blob[10 * MIB :])
    layer = ecr.uploader.complete(older, digest_of(blob))
    assert layer == UploadedLayer(digest_of(blob), len(blob), existed=False)


def wait_for(ecr: Ecr, digest: str) -> int:
    """Ask, five times a second, until a layer is listed. Returns how often."""
    asked = 0

    def is_there() -> bool:
        nonlocal asked
        asked += 1
        layers = ecr.available(digest).get("layers", [])
        return [layer["layerAvailability"] for layer in layers] == ["AVAILABLE"]

    tenacity.Retrying(
        retry=tenacity.retry_if_result(lambda there: not there),
        wait=tenacity.wait_fixed(0.2),
        stop=tenacity.stop_after_delay(60),
    )(is_there)
    return asked


def nothing_stored(ecr: Ecr) -> object:
    return ecr.refused(ecr.initiate()).get("lastValidByteReceived", "absent")


def completed_again(ecr: Ecr) -> object:
    blob, upload_id = os.urandom(1024), ecr.initiate()
    ecr.part(upload_id, 0, blob)
    completed = ecr.complete(upload_id, digest_of(blob))
    assert completed.get("layerDigest") == digest_of(blob), completed
    return ecr.complete(upload_id, digest_of(blob)).get("code", "no error")


def missing_layers(ecr: Ecr) -> object:
    answer = ecr.available(digest_of(os.urandom(8)))
    if "layers" not in answer:
        return "failures alone"
    return "layers" if answer["layers"] else "failures"


def availability_lag(ecr: Ecr) -> object:
    blob, upload_id = os.urandom(1024), ecr.initiate()
    ecr.part(upload_id, 0, blob)
    ecr.complete(upload_id, digest_of(blob))
    return wait_for(ecr, digest_of(blob)) - 1


def broken_part(ecr: Ecr) -> object:
    blob, upload_id = os.urandom(5 * MIB), ecr.initiate()
    ecr.part(upload_id, 0, blob)
    ecr.hang_up = hang_up_in_the_middle
    with pytest.raises(ConnectionClosedError):
        ecr.client.upload_layer_part(
            repositoryName=LIVE, uploadId=upload_id,
            partFirstByte=len(blob), partLastByte=2 * len(blob) - 1,
            layerPartBlob=blob,  # last, so that what is sent of it says where it belongs
        )  # fmt: skip
    stands = ecr.refused(upload_id)["lastValidByteReceived"]
    return "nothing" if stands == len(blob) - 1 else "fragment"


def last_byte_received(ecr: Ecr) -> object:
    blob, upload_id = os.urandom(5 * MIB), ecr.initiate()
    ecr.part(upload_id, 0, blob)
    answered = ecr.part(upload_id, len(blob), b"second")["lastByteReceived"]
    return {len(blob) + 5: "in the layer", 5: "in the part"}[answered]


def largest_part(ecr: Ecr) -> object:
    upload_id, next_byte, largest = ecr.initiate(), 0, None
    for size in (10 * MIB, 20 * MIB):
        if "lastByteReceived" in ecr.part(upload_id, next_byte, bytes(size)):
            next_byte, largest = next_byte + size, size
    assert largest, ecr.raw
    return largest


def error_namespace(ecr: Ecr) -> object:
    ecr.refused(ecr.initiate())
    return str(json.loads(ecr.raw)["__type"]).rpartition("#")[0]


UNKNOWN: dict[str, tuple[str, Callable[[Ecr], object]]] = {
    "nothing_stored": (
        "what lastValidByteReceived says of a refused part when nothing is stored",
        nothing_stored,
    ),
    "completed_again": (
        "what a second Complete of the same upload is refused with",
        completed_again,
    ),
    "missing_layers": (
        "where BatchCheckLayerAvailability lists a layer that is missing",
        missing_layers,
    ),
    "availability_lag": (
        "for how many questions a completed layer still counts as missing",
        availability_lag,
    ),
    "broken_part": (
        "what is stored of a part whose connection breaks while it is sent",
        broken_part,
    ),
    "last_byte_received": (
        "whether lastByteReceived counts in the layer or in the part",
        last_byte_received,
    ),
    "largest_part": (
        "the largest part taken, in bytes, of 10 MiB and 20 MiB",
        largest_part,
    ),
    "error_namespace": (
        "what stands before the # in an error's __type",
        error_namespace,
    ),
}
"""What is unknown of ECR, by the switch of ``Unknowns``: the question, and how it is settled."""


def test_the_list_is_complete() -> None:
    assert list(UNKNOWN) == [field.name for field in fields(Unknowns)]


@live
@pytest.mark.parametrize("switch", UNKNOWN)
def test_what_is_unknown_is_settled(
    switch: str, ecr: Ecr, capsys: pytest.CaptureFixture[str]
) -> None:
    question, settle = UNKNOWN[switch]
    answer = settle(ecr)
    with capsys.disabled():
        sys.stdout.write(f"\nsettled: {switch}={answer!r} ({question})\n")


MIRRORED = [
    Unknowns(largest_part=20 * MIB),
    Unknowns(
        nothing_stored="absent",
        completed_again="LayerAlreadyExistsException",
        missing_layers="failures alone",
        availability_lag=2,
        broken_part="fragment",
        last_byte_received="in the part",
        largest_part=10 * MIB,
        error_namespace="com.amazonaws.ecr",
    ),
]


@pytest.mark.skipif(bool(LIVE), reason="against the real ECR there is nothing to mirror")
@pytest.mark.parametrize("unknowns", MIRRORED)
def test_the_live_test_passes_and_settles_what_a_local_ecr_was_told(unknowns: Unknowns) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    with LocalECR(unknowns=unknowns) as ecr:
        environ = {**os.environ, **ecr.environ(), "ECR_PARTS_LIVE_REPOSITORY": "demo"}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    settled = [line for line in done.stdout.splitlines() if line.startswith("settled: ")]
    assert settled == [
        f"settled: {field.name}={getattr(unknowns, field.name)!r} ({UNKNOWN[field.name][0]})"
        for field in fields(unknowns)
    ]
