"""What the library relies on, and the questions that ECR's documentation leaves open.

    ECR_PARTS_LIVE_REPOSITORY=team/scratch python -m pytest tests/whole/test_live.py

This runs against the real ECR, with the credentials and the region that a botocore client finds. It
uploads about 140 MB of random bytes to the repository that the variable names. No image refers to
them, so ECR may delete them at any time. It prints one line for each question: please report them.

Without the variable, the same tests run against LocalECR, and check that they find the answers that
it simulates. Each question is a switch of ``Unknowns``.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import fields
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import botocore.session
import pytest
import tenacity
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError, ClientError, ConnectionClosedError
from botocore.httpsession import get_cert_path
from helpers import digest_of

from ecr_parts import CLIENT_CONFIG, LayerUploader, UploadedLayer, default_retrying
from ecr_parts.testing import LocalECR, Unknowns

MIB = 1024 * 1024
WRONG_FIRST_BYTE = 1_000 * MIB  # larger than any upload here
LIVE_REPOSITORY = os.environ.get("ECR_PARTS_LIVE_REPOSITORY", "")

SIMULATED = [
    Unknowns(largest_part=20 * MIB),
    Unknowns(
        nothing_stored="absent",
        completed_again="LayerAlreadyExistsException",
        missing_layers="failures alone",
        availability_lag=2,
        image_lag=3,
        broken_part="fragment",
        last_byte_received="in the part",
        longest_silence=0.05,
        signature_age=240.0,
        largest_part=10 * MIB,
        error_namespace="com.amazonaws.ecr",
    ),
]
"""The answers that LocalECR simulates: all tests run with each of these."""


class Service:
    """The ECR under test: its repository, its client, and its answers as they are."""

    def __init__(self, client: Any, repository: str, unknowns: Unknowns | None) -> None:
        self.client = client
        self.repository = repository
        self.unknowns = unknowns
        """The answers that LocalECR simulates; ``None`` for the real ECR."""
        self.uploader = LayerUploader(client, repository, part_size=5 * MIB)
        # Not if ``hang_up`` sends requests, because it does not hold them back.
        self.sequential_uploader = LayerUploader(
            client, repository, part_size=5 * MIB, overlap=False
        )
        self.last_body = b""
        """The body of the last answer."""
        client.meta.events.register("response-received.ecr", self._save_body)
        self.hang_up: Callable[[Any], None] | None = None
        """What to do with the next UploadLayerPart instead of sending it."""
        client.meta.events.register("before-send.ecr.UploadLayerPart", self._before_send)

    def initiate(self) -> str:
        return str(self.client.initiate_layer_upload(repositoryName=self.repository)["uploadId"])

    def upload_part(self, upload_id: str, first_byte: int, blob: bytes) -> dict[str, Any]:
        return self._call(
            self.client.upload_layer_part,
            uploadId=upload_id,
            partFirstByte=first_byte,
            partLastByte=first_byte + len(blob) - 1,
            layerPartBlob=blob,
        )

    def complete(self, upload_id: str, digest: str) -> dict[str, Any]:
        return self._call(
            self.client.complete_layer_upload, uploadId=upload_id, layerDigests=[digest]
        )

    def check_availability(self, digest: str) -> dict[str, Any]:
        return self._call(self.client.batch_check_layer_availability, layerDigests=[digest])

    def _call(self, method: Callable[..., dict[str, Any]], **parameters: object) -> dict[str, Any]:
        """The answer; if it is an error, also its code as ``"code"``."""
        try:
            return default_retrying()(method, repositoryName=self.repository, **parameters)
        except ClientError as error:
            return {"code": error.response["Error"]["Code"], **error.response}
        except BotoCoreError as error:  # the connection may just break if a part is too large
            return {"code": type(error).__name__}

    def refuse_part(self, upload_id: str) -> dict[str, Any]:
        """The answer to a part with a wrong offset."""
        answer = self.upload_part(upload_id, WRONG_FIRST_BYTE, b"x")
        assert answer.get("code") == "InvalidLayerPartException", answer
        return answer

    def wait_until_available(self, digest: str) -> int:
        """Ask until a layer is listed. Returns the number of calls."""

        def is_available() -> bool:
            layers = self.check_availability(digest).get("layers", [])
            return [layer["layerAvailability"] for layer in layers] == ["AVAILABLE"]

        return self.count_calls(is_available)

    def count_calls(self, call: Callable[[], bool]) -> int:
        """Call until it returns ``True``. Returns the number of calls."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda succeeded: not succeeded),
            wait=tenacity.wait_fixed(0.2 if self.unknowns is None else 0),
            stop=tenacity.stop_after_delay(60),
        )
        retrying(call)
        return int(retrying.statistics["attempt_number"])

    def put_image(self, manifest: str) -> dict[str, Any]:
        return self._call(self.client.put_image, imageManifest=manifest)

    def delete_image(self, digest: str) -> dict[str, Any]:
        return self._call(self.client.batch_delete_image, imageIds=[{"imageDigest": digest}])

    def _save_body(self, response_dict: dict[str, Any] | None, **_event: object) -> None:
        self.last_body = b"" if response_dict is None else response_dict["body"]

    def _before_send(self, request: Any, **_event: object) -> None:
        if self.hang_up is not None:
            hang_up, self.hang_up = self.hang_up, None
            hang_up(request)
            raise ConnectionClosedError(endpoint_url=request.url)


@pytest.fixture(
    params=[None] if LIVE_REPOSITORY else SIMULATED,
    ids=["live"] if LIVE_REPOSITORY else ["simulated 1", "simulated 2"],
)
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    with nullcontext() if LIVE_REPOSITORY else LocalECR(unknowns=request.param) as ecr:
        if ecr is None:
            client: Any = botocore.session.Session().create_client("ecr", config=CLIENT_CONFIG)
        else:
            client = ecr.client()
        with closing(client):
            yield Service(client, LIVE_REPOSITORY or "demo", request.param)


@contextmanager
def send(request: Any, body: bytes) -> Iterator[http.client.HTTPConnection]:
    """Send ``request`` with ``body``, which may be only the start of its body."""
    url = urlsplit(request.url)
    host, port = url.hostname or "", url.port
    connection = http.client.HTTPConnection(host, port, timeout=60)
    if url.scheme == "https":
        bundle = botocore.session.Session().get_config_variable("ca_bundle")
        context = ssl.create_default_context(cafile=bundle or get_cert_path(verify=True))
        connection = http.client.HTTPSConnection(host, port, timeout=60, context=context)
    with closing(connection):
        connection.putrequest(request.method, url.path or "/", skip_accept_encoding=True)
        for name, value in request.headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        connection.send(body)
        yield connection


def hang_up_after_answer(request: Any) -> None:
    """ECR stores the part, but the client does not get the answer."""
    with send(request, request.body) as connection:
        assert connection.getresponse().status == 200


def hang_up_in_body(request: Any) -> None:
    with send(request, request.body[: len(request.body) // 2]) as connection:
        connection.sock.shutdown(socket.SHUT_WR)
        connection.sock.settimeout(10)
        with suppress(OSError):  # wait until ECR closes the connection; TLS sends some bytes before
            while connection.sock.recv(65_536):
                pass


# What the library relies on


def test_uploads_file_with_checkpoint(service: Service, tmp_path: Path) -> None:
    blob = os.urandom(12 * MIB)
    path = tmp_path / "layer"
    path.write_bytes(blob)
    layer = service.uploader.upload(path, checkpoint=tmp_path / "checkpoint")
    assert layer == UploadedLayer(digest_of(blob), len(blob), existed=False)
    assert [sent.part.size for sent in layer.parts] == [5 * MIB, 5 * MIB, 2 * MIB]


def test_repeated_part_is_refused_with_last_byte(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """The basis of everything else: this tells a part that was stored from one that was lost."""
    caplog.set_level("INFO", "ecr_parts")
    blob = os.urandom(12 * MIB)
    confirmed: list[int] = []

    def lose_second_answer(newly_confirmed: int) -> None:
        if newly_confirmed:
            confirmed.append(newly_confirmed)
            service.hang_up = hang_up_after_answer if len(confirmed) == 1 else None

    layer = service.sequential_uploader.upload(blob, progress=lose_second_answer)
    assert layer == UploadedLayer(digest_of(blob), len(blob), existed=False)
    assert "bytes 5242880-10485759, attempt 2: ECR already has this part; continuing" in caplog.text


def test_existing_layer_is_found(service: Service) -> None:
    blob, missing = os.urandom(MIB), digest_of(os.urandom(8))
    assert not service.uploader.upload(blob).existed
    service.wait_until_available(digest_of(blob))
    assert service.uploader.upload(blob).existed
    assert service.uploader.upload(blob, check_existing=False).existed
    assert service.uploader.missing([digest_of(blob), missing]) == {missing}


def test_older_copy_of_session_can_be_continued(service: Service) -> None:
    blob = os.urandom(11 * MIB)
    session = service.uploader.initiate(layer_size=len(blob))
    older_copy = type(session).from_json(session.to_json())
    service.uploader.upload_part(session, blob[: 5 * MIB])
    for known in (session, older_copy):  # the refusal of a part updates the older copy
        while known.next_byte < 10 * MIB:
            first = known.next_byte
            service.uploader.upload_part(known, blob[first : first + 5 * MIB])
    service.uploader.upload_part(older_copy, blob[10 * MIB :])
    layer = service.uploader.complete(older_copy, digest_of(blob))
    assert layer == UploadedLayer(digest_of(blob), len(blob), existed=False)


# What is unknown about ECR


def nothing_stored(service: Service) -> object:
    return service.refuse_part(service.initiate()).get("lastValidByteReceived", "absent")


def completed_again(service: Service) -> object:
    blob, upload_id = os.urandom(1024), service.initiate()
    service.upload_part(upload_id, 0, blob)
    completed = service.complete(upload_id, digest_of(blob))
    assert completed.get("layerDigest") == digest_of(blob), completed
    return service.complete(upload_id, digest_of(blob)).get("code", "no error")


def missing_layers(service: Service) -> object:
    answer = service.check_availability(digest_of(os.urandom(8)))
    if "layers" not in answer:
        return "failures alone"
    return "layers" if answer["layers"] else "failures"


def availability_lag(service: Service) -> object:
    blob, upload_id = os.urandom(1024), service.initiate()
    service.upload_part(upload_id, 0, blob)
    service.complete(upload_id, digest_of(blob))
    return service.wait_until_available(digest_of(blob)) - 1


def image_lag(service: Service) -> object:
    """Puts an image without a tag, and deletes it if that is permitted."""
    blob, upload_id = os.urandom(1024), service.initiate()
    service.upload_part(upload_id, 0, blob)
    service.complete(upload_id, digest_of(blob))
    descriptor = {"digest": digest_of(blob), "size": len(blob)}
    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {**descriptor, "mediaType": "application/vnd.oci.empty.v1+json"},
        "layers": [{**descriptor, "mediaType": "application/vnd.oci.image.layer.v1.tar"}],
    }
    manifest = json.dumps(document)

    def is_put() -> bool:
        answer = service.put_image(manifest)
        assert answer.get("code") in (None, "LayersNotFoundException"), answer
        return "image" in answer

    calls = service.count_calls(is_put)
    service.delete_image(digest_of(manifest.encode()))
    return calls - 1


def broken_part(service: Service) -> object:
    blob, upload_id = os.urandom(5 * MIB), service.initiate()
    service.upload_part(upload_id, 0, blob)
    service.hang_up = hang_up_in_body
    with pytest.raises(ConnectionClosedError):
        service.client.upload_layer_part(
            repositoryName=service.repository,
            uploadId=upload_id,
            partFirstByte=len(blob),
            partLastByte=2 * len(blob) - 1,
            layerPartBlob=blob,  # the last parameter, so the others arrive before the break
        )
    last_byte = service.refuse_part(upload_id)["lastValidByteReceived"]
    return "nothing" if last_byte == len(blob) - 1 else "fragment"


def last_byte_received(service: Service) -> object:
    blob, upload_id = os.urandom(5 * MIB), service.initiate()
    service.upload_part(upload_id, 0, blob)
    last_byte = service.upload_part(upload_id, len(blob), b"second")["lastByteReceived"]
    return {len(blob) + 5: "in the layer", 5: "in the part"}[last_byte]


def longest_silence(service: Service) -> object:
    """Requests that are sent ahead are silent until the part before them is confirmed."""
    longest = 20.0  # seconds
    if service.unknowns is not None and service.unknowns.longest_silence is None:
        longest = 0.2  # the connection stays open for ever
    silence: float | None = None

    def hold_back(request: Any) -> None:
        nonlocal silence
        with send(request, request.body[:-1]) as connection:
            started = time.monotonic()
            connection.sock.settimeout(longest)
            with suppress(TimeoutError):  # the connection is still open
                while connection.sock.recv(65_536):  # an answer before the close, such as 408
                    pass
                silence = time.monotonic() - started
                return
            connection.sock.settimeout(60)
            connection.send(request.body[-1:])
            assert connection.getresponse().status == 200

    upload_id = service.initiate()
    service.hang_up = hold_back
    with pytest.raises(ConnectionClosedError):
        service.client.upload_layer_part(
            repositoryName=service.repository,
            uploadId=upload_id,
            partFirstByte=0,
            partLastByte=5 * MIB - 1,
            layerPartBlob=os.urandom(5 * MIB),
        )
    if silence is None or service.unknowns is None:
        return silence
    # The exact time depends on this machine.
    return service.unknowns.longest_silence if silence < longest else silence


class _LateAuth(SigV4Auth):
    """Signs as if it were an hour ago."""

    def _modify_request_before_signing(self, request: AWSRequest) -> None:
        an_hour_ago = datetime.now(timezone.utc) - timedelta(hours=1)
        request.context["timestamp"] = an_hour_ago.strftime("%Y%m%dT%H%M%SZ")
        super()._modify_request_before_signing(request)  # type: ignore[misc]  # not in the stubs


def signature_age(service: Service) -> object:
    """The message of a refusal has it: "(… - 5 min.)"."""
    messages = []

    def send_late(request: Any) -> None:
        names = ("Content-Type", "X-Amz-Target", "Content-Length")
        values = [request.headers[name] for name in names]
        texts = [value.decode() if isinstance(value, bytes) else value for value in values]
        headers = dict(zip(names, texts, strict=True))
        late = AWSRequest(request.method, request.url, headers, request.body)
        credentials = botocore.session.Session().get_credentials() or Credentials("key", "secret")
        _LateAuth(credentials, "ecr", service.client.meta.region_name).add_auth(late)
        with send(late.prepare(), request.body) as connection:
            messages.append(connection.getresponse().read().decode())

    service.hang_up = send_late
    with pytest.raises(ConnectionClosedError):
        service.client.upload_layer_part(
            repositoryName=service.repository,
            uploadId=service.initiate(),
            partFirstByte=0,
            partLastByte=4,
            layerPartBlob=b"layer",
        )
    age = re.search(r"Signature expired.* - ([\d.]+) min", messages[0])
    return float(age[1]) * 60 if age else None


def largest_part(service: Service) -> object:
    upload_id, next_byte, largest = service.initiate(), 0, None
    for size in (10 * MIB, 20 * MIB):
        if "lastByteReceived" in service.upload_part(upload_id, next_byte, bytes(size)):
            next_byte, largest = next_byte + size, size
    assert largest, service.last_body
    return largest


def error_namespace(service: Service) -> object:
    service.refuse_part(service.initiate())
    return str(json.loads(service.last_body)["__type"]).rpartition("#")[0]


UNKNOWN: dict[str, tuple[str, Callable[[Service], object]]] = {
    "nothing_stored": (
        "the value of lastValidByteReceived in a refusal if nothing of the layer is stored",
        nothing_stored,
    ),
    "completed_again": (
        "the error of a second CompleteLayerUpload of the same upload",
        completed_again,
    ),
    "missing_layers": (
        "where BatchCheckLayerAvailability lists a missing layer",
        missing_layers,
    ),
    "availability_lag": (
        "how many times a completed layer is still reported as missing",
        availability_lag,
    ),
    "image_lag": (
        "how many times PutImage still reports a completed layer as missing",
        image_lag,
    ),
    "broken_part": (
        "what is stored of a part if the connection breaks while it is sent",
        broken_part,
    ),
    "last_byte_received": (
        "whether lastByteReceived is an offset in the layer or in the part",
        last_byte_received,
    ),
    "longest_silence": (
        "seconds until the connection of an incomplete request is closed; None if over 20",
        longest_silence,
    ),
    "signature_age": (
        "seconds after which a signature is too old",
        signature_age,
    ),
    "largest_part": (
        "the largest part that is accepted (bytes): 10 MiB or 20 MiB",
        largest_part,
    ),
    "error_namespace": (
        "the part before the # in an error's __type",
        error_namespace,
    ),
}
"""For each switch of ``Unknowns``: the question, and the function that finds the answer."""


def test_measures_processing_time(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """The time from a part's last byte to its answer: what sending ahead makes use of."""
    seconds: list[float] = []

    def measure(request: Any) -> None:
        with send(request, request.body) as connection:
            started = time.monotonic()
            assert connection.getresponse().status == 200
            seconds.append(time.monotonic() - started)

    upload_id = service.initiate()
    for first_byte in (0, 10 * MIB, 20 * MIB):
        service.hang_up = measure
        with pytest.raises(ConnectionClosedError):
            service.client.upload_layer_part(
                repositoryName=service.repository,
                uploadId=upload_id,
                partFirstByte=first_byte,
                partLastByte=first_byte + 10 * MIB - 1,
                layerPartBlob=os.urandom(10 * MIB),
            )
    if service.unknowns is None:
        with capsys.disabled():
            times = ", ".join(f"{value:.2f}" for value in seconds)
            sys.stdout.write(f"\nmeasured: {times} s from a part's last byte to its answer\n")


def test_each_switch_has_a_question() -> None:
    assert list(UNKNOWN) == [field.name for field in fields(Unknowns)]


@pytest.mark.parametrize("switch", UNKNOWN)
def test_settles_unknown(switch: str, service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    question, find_answer = UNKNOWN[switch]
    answer = find_answer(service)
    if service.unknowns is None:
        with capsys.disabled():
            sys.stdout.write(f"\nsettled: {switch}={answer!r} ({question})\n")
    else:
        assert answer == getattr(service.unknowns, switch)
