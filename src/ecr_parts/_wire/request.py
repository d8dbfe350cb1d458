"""What this library adds to a botocore client: parts encoded ahead, and calls that can be stopped.

botocore encodes a blob in base64, ``json.dumps`` scans the text, and the result is hashed for the
signature. Half of that time is the scan. ``encode_blob`` builds the same body, byte for byte,
without the scan, and can run in a background thread. The call is then made with an empty blob, and
handlers of botocore's public events put the encoded body in its place. The handlers act only on
the calls of this library: other calls of the same client are unchanged.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, overload

import botocore.client
from botocore.awsrequest import AWSPreparedRequest, AWSRequest
from typing_extensions import override

from ecr_parts._base import fast_base64
from ecr_parts._base.threads import Abandoned, Task, current_task
from ecr_parts._model.layers import Blob
from ecr_parts._wire.bandwidth import SHARE_SIZE, Bandwidth
from ecr_parts._wire.gate import Gate
from ecr_parts._wire.signature import SigningTime
from ecr_parts._wire.uplink import PIECE_SIZE, Turn

_T = TypeVar("_T")


_KEY = "ecr_parts.encoded_blob"  # in the context that botocore passes from event to event
_CHECK_INTERVAL = 0.5  # seconds between checks whether the call was abandoned
# Seconds between questions whether the part's turn begins, for each turn that must end first: the
# next in line asks often, so that the uplink is not idle between small parts.
_DELAY = 0.01
_HELD_BACK = 64 * 1024  # bytes at the end of a request that waits for its gate
_RESERVED = 33 * 1024 * 1024  # bytes
_SMALL = 1024 * 1024  # bytes
_END = b'"}'  # follows the blob, which is the last member


@dataclass(eq=False, repr=False)
class EncodedBlob(Sequence[int]):
    """An encoded part, in the place of the raw bytes in the parameters of a call.

    To other handlers of the client, it looks like the raw bytes: ``bytes(blob)``, its length, its
    items and ``==`` decode the body. Before Python 3.12, it is no buffer: what requires one fails.
    It is not a ``bytes``, because C code would ignore these methods and see an empty object.
    """

    envelope: bytes
    """The request's body with an empty blob."""
    body: bytes
    """The request's body. Each attempt has a copy of this object, whose body is emptied with it."""
    sha256: str
    """The SHA-256 of ``body`` in hex, for the signature."""

    def base64(self) -> memoryview:
        """The encoded bytes alone."""
        return memoryview(self.body)[len(self.envelope) - len(_END) : -len(_END)]

    def __bytes__(self) -> bytes:
        return fast_base64.decode(self.base64())

    def __buffer__(self, _flags: int, /) -> memoryview:  # called by Python 3.12 and later
        return memoryview(bytes(self))

    @override
    def __len__(self) -> int:
        text = self.base64()
        return len(text) // 4 * 3 - bytes(text[-2:]).count(b"=")

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> bytes: ...

    @override
    def __getitem__(self, index: int | slice) -> int | bytes:
        return bytes(self)[index]

    @override
    def __iter__(self) -> Iterator[int]:
        return iter(bytes(self))

    @override
    def __eq__(self, other: object) -> bool:
        return bytes(self) == other

    __hash__ = None  # type: ignore[assignment]  # mypy expects a method; it is mutable

    @override
    def __repr__(self) -> str:
        return f"<{len(self):,} bytes, encoded>"


def new_buffer(part_size: int) -> io.BytesIO:
    """A file for ``encode_blob``, to be used for parts of up to about ``part_size`` bytes.

    If parts have more than 1 MiB, it reserves so much that glibc maps it: what glibc takes from its
    heaps, up to 32 MiB, fragments them. 16 layers of 128 MiB with 8 workers peak at 363 MiB with
    this, and at 440 without. Pages that are not written to take only address space.
    """
    return io.BytesIO(bytes(_RESERVED) if part_size > _SMALL else b"")


def encode_blob(
    parameters: Mapping[str, object], slices: Iterable[Blob], file: io.BytesIO | None = None
) -> EncodedBlob:
    """Encode a part for an UploadLayerPart call with the other parameters ``parameters``.

    The size of each of ``slices`` but the last must be a multiple of 3 bytes. The body is written
    to ``file``, whose memory is used again unless an earlier body is still referenced.
    """
    file = io.BytesIO() if file is None else file
    envelope = json.dumps({**parameters, "layerPartBlob": ""}).encode()
    start = envelope[: -len(_END)]
    file.seek(0)
    file.write(start)
    sha256 = hashlib.sha256(start)
    for piece in slices:
        text = fast_base64.encode(piece)
        file.write(text)
        sha256.update(text)  # while it is in the processor's cache
    file.write(_END)
    sha256.update(_END)
    file.truncate()
    return EncodedBlob(envelope, file.getvalue(), sha256.hexdigest())  # without a copy


class Attempt(Task[_T]):
    """A task that makes one call."""

    def __init__(
        self,
        function: Callable[[], _T],
        cancelled: Callable[[], bool],
        gate: Gate | None,
        next_gate: Gate,
        bandwidth: Bandwidth | None = None,
        turn: Turn | None = None,
    ) -> None:
        super().__init__(function, cancelled)
        self.sent_secrets: list[str] = []
        """The signature and the token of each request that was sent, for ``CallFailed.of``."""
        self.bandwidth = bandwidth
        self._paused = 0.0
        """Seconds that were spent waiting, and that are not part of the time for the attempt."""
        self.gate = gate
        """Holds back the end of the request; ``None`` if the part before is confirmed."""
        self.next_gate = next_gate
        """The gate of the next part's call."""
        self.turn = turn
        """The part's turn to be sent; ``None`` for other calls."""
        self.signed = SigningTime()
        """Of the latest request."""
        self.piece_size = PIECE_SIZE if bandwidth is None else SHARE_SIZE
        """The bytes of a request that are sent at once."""
        self.when_over(next_gate.close)
        if gate is not None:
            self.when_over(gate.close)
        if turn is not None:
            self.when_over(turn.end)

    @property
    def held_back(self) -> bool:
        """Whether the request had to pause at its gate."""
        return self.gate is not None and self.gate.held_back

    @override
    def check(self) -> None:
        """Raise ``Abandoned`` also if the request was withdrawn."""
        super().check()
        if self.gate is not None and self.gate.is_closed:
            raise Abandoned

    def wait_for_turn(self) -> None:
        """Wait until the part may be sent. Raises what ``check`` and ``Turn.begins`` raise."""
        if self.gate is not None:
            self.gate.wait_for_link()
        self.check()
        asked_at = time.monotonic()
        while self.turn is not None and not self.turn.begins():
            # In the attempt's thread, which may sleep: the caller's thread keeps its heartbeat.
            time.sleep(min(_CHECK_INTERVAL, _DELAY * self.turn.waits_for))
            # Measured, because a thread wakes late if others need the processor or the GIL: with
            # four of them, a fifth of the wait would count as time of the attempt.
            asked_before, asked_at = asked_at, time.monotonic()
            self._paused += asked_at - asked_before
            self.check()
        self.signed = SigningTime()

    def reserve(self, size: int) -> None:
        """Wait until ``size`` bytes may be sent, as ``max_bandwidth`` says."""
        if self.bandwidth is None:
            return
        left = self.bandwidth.reserve(size)
        self._paused += left  # before it has passed, because the time may be over meanwhile
        while left > 0:
            self.check()
            time.sleep(min(left, _CHECK_INTERVAL))  # likewise
            left -= _CHECK_INTERVAL

    @override
    def more_time(self) -> float:
        paused, self._paused = self._paused, 0.0
        if paused:
            return paused
        # If the gate is open already, ECR has confirmed the part, and the attempt ends at once.
        return 0.0 if self.next_gate.close() else float("inf")


class _Body:
    """A request's body, sent in pieces, so that an abandoned call sends no further piece.

    Also used for small bodies: a call may be abandoned while it connects, and ECR does not carry
    out a call without its body.
    """

    def __init__(self, body: bytes, attempt: Attempt[Any]) -> None:
        self._body = body
        self._attempt = attempt
        attempt.when_over(partial(setattr, self, "_body", b""))

    def __iter__(self) -> Iterator[memoryview]:
        body, attempt = memoryview(self._body), self._attempt
        attempt.check()  # after taking the body, which may have been dropped
        start, gate = 0, attempt.gate
        held_back = 0 if gate is None else min(_HELD_BACK, len(body) // 2)
        for stop in (len(body) - held_back, len(body)):
            if stop == len(body) and gate is not None:
                gate.wait()
            while start < stop:
                if attempt.turn is not None:
                    measured = gate is None or gate.is_decided
                    attempt.turn.sending(start, len(body), measured=measured)
                piece = body[start : min(start + attempt.piece_size, stop)]
                attempt.reserve(len(piece))
                attempt.check()
                yield piece
                start += len(piece)
        if attempt.turn is not None:
            attempt.turn.sending(len(body), len(body), measured=False)
        attempt.next_gate.previous_has_left()

    def seek(self, _offset: int, _whence: int = 0) -> None:
        """Called by botocore before it sends again. Each iteration starts at 0 anyway."""


def make_calls_stoppable(client: object) -> None:
    """Make ``client`` send nothing more for a call that was abandoned.

    Without this, botocore's own retries would send it again seconds later. Clients that are not
    botocore's cannot be stopped. Calling this again changes nothing.
    """
    if isinstance(client, botocore.client.BaseClient):
        service = client.meta.service_model.service_id.hyphenize()
        events = client.meta.events
        events.register_first(f"before-send.{service}", _note_request, unique_id=f"{_KEY}.check")
        # Last of all, because other handlers may read the body or answer the call themselves.
        events.register_last("before-send", _send_in_pieces, unique_id=f"{_KEY}.pieces")


def accept_encoded_blobs(client: object) -> bool:
    """Make ``client`` accept an ``EncodedBlob``; ``False`` if that is not possible.

    It must be a botocore client for a service with a JSON protocol. Calling this again changes
    nothing.
    """
    if not isinstance(client, botocore.client.BaseClient):
        return False
    model = client.meta.service_model
    # Older botocore has one protocol for each service, and no "resolved" one.
    if getattr(model, "resolved_protocol", model.metadata.get("protocol")) != "json":
        return False
    name = f"{model.service_id.hyphenize()}.UploadLayerPart"
    events = client.meta.events
    # Each event needs its own ID: botocore ignores a handler whose ID is already registered.
    # Last of all, because other handlers may read or replace the blob, or change the body.
    events.register_last("before-parameter-build", _take_blob, unique_id=f"{_KEY}.take")
    events.register(f"before-call.{name}", _insert_body, unique_id=f"{_KEY}.insert")
    events.register_last("before-sign", _add_hash, unique_id=f"{_KEY}.hash")
    return True


def _take_blob(
    params: MutableMapping[str, object], context: MutableMapping[str, Any], **_event: object
) -> None:
    blob = params.get("layerPartBlob")
    if isinstance(blob, EncodedBlob):  # or else another handler has replaced it
        context[_KEY] = blob
        params["layerPartBlob"] = b""


def _insert_body(
    params: MutableMapping[str, Any], context: Mapping[str, Any], **_event: object
) -> None:
    blob: EncodedBlob | None = context.get(_KEY)
    if blob is None:
        return
    if params["body"] == blob.envelope:
        params["body"] = blob.body
    else:  # another handler changed the parameters
        request = json.loads(params["body"])
        request["layerPartBlob"] = str(blob.base64(), "ascii")
        params["body"] = json.dumps(request).encode()
    task = current_task()
    if task is not None:
        task.check()
        task.when_over(partial(params.__setitem__, "body", b""))


def _add_hash(request: AWSRequest, signature_version: object, **_event: object) -> None:
    blob: EncodedBlob | None = request.context.get(_KEY)
    if blob is not None and signature_version == "v4" and request.data is blob.body:
        request.headers["X-Amz-Content-SHA256"] = blob.sha256


def _note_request(request: AWSPreparedRequest, **_event: object) -> None:
    """Check that the request is still wanted; note when it was signed, and its secrets."""
    task = current_task()
    if task is not None:
        task.check()
    if isinstance(task, Attempt):
        task.signed = SigningTime()
        for name in ("Authorization", "X-Amz-Security-Token"):
            value: object = request.headers.get(name, "")  # usually bytes
            text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
            task.sent_secrets.append(text.rpartition("Signature=")[2])


def _send_in_pieces(request: AWSPreparedRequest, **_event: object) -> None:
    task = current_task()
    if not isinstance(task, Attempt):
        return
    if isinstance(request.body, bytes):
        request.body = _Body(request.body, task)  # type: ignore[assignment]  # urllib3 takes it
    elif task.gate is not None:  # another handler has replaced the body
        task.gate.wait()
        task.check()
