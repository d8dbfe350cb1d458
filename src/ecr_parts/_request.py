"""What this library adds to a botocore client: parts encoded ahead, and calls that can be stopped.

botocore encodes a blob in base64, ``json.dumps`` scans the text, and the result is hashed for the
signature. Half of that time is the scan. ``encode_blob`` builds the same body, byte for byte,
without the scan, and can run in a background thread. The call is then made with an empty blob, and
handlers of botocore's public events put the encoded body in its place. The handlers act only on
the calls of this library: other calls of the same client are unchanged.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import botocore.client
from botocore.awsrequest import AWSPreparedRequest, AWSRequest
from typing_extensions import Self, override

from ecr_parts._models import Blob
from ecr_parts._threads import Task, current_task


def _fastest_base64() -> Callable[[Blob], bytes]:
    try:
        pybase64 = importlib.import_module("pybase64")  # the extra "speed": SIMD, without the GIL
    except ImportError:
        return base64.b64encode
    encode: Callable[[Blob], bytes] = pybase64.b64encode
    return encode


_base64 = _fastest_base64()
_KEY = "ecr_parts.encoded_blob"  # in the context that botocore passes from event to event
_PIECE_SIZE = 256 * 1024  # bytes
_END = b'"}'  # follows the blob, which is the last member


class EncodedBlob(bytes):
    """An encoded part. To botocore it is an empty blob, with the request's body as an attribute.

    It equals the raw bytes, because ``botocore.stub.Stubber`` compares parameters.
    """

    envelope: bytes
    """The request's body with an empty blob."""
    body: bytes
    """The request's body."""
    sha256: str
    """The SHA-256 of ``body`` in hex, for the signature."""

    def copy(self) -> Self:
        """A copy for one attempt, whose body is dropped with the attempt."""
        copy = type(self)()
        copy.envelope, copy.body, copy.sha256 = self.envelope, self.body, self.sha256
        return copy

    def base64(self) -> bytes:
        """The encoded bytes alone."""
        return self.body[len(self.envelope) - len(_END) : -len(_END)]

    @override
    def __eq__(self, other: object) -> bool:
        return base64.b64decode(self.base64()) == other

    @override
    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]  # mypy expects a method; it is mutable

    @override
    def __repr__(self) -> str:
        return f"<{len(self.body) - len(self.envelope)} bytes of base64>"


def encode_blob(parameters: Mapping[str, object], blob: Blob) -> EncodedBlob:
    """Encode ``blob`` for an UploadLayerPart call with the other parameters ``parameters``."""
    encoded = EncodedBlob()
    encoded.envelope = json.dumps({**parameters, "layerPartBlob": ""}).encode()
    start = encoded.envelope[: -len(_END)]
    encoded.body = b"".join((start, _base64(blob), _END))
    encoded.sha256 = hashlib.sha256(encoded.body).hexdigest()
    return encoded


class _StoppableBody:
    """A request's body, sent in pieces, so that an abandoned call sends no further piece.

    Also used for small bodies: a call may be abandoned while it connects, and ECR does not carry
    out a call without its body.
    """

    def __init__(self, body: bytes, task: Task[Any]) -> None:
        self._body = body
        self._task = task
        task.when_over(self._release)

    def __iter__(self) -> Iterator[memoryview]:
        body = memoryview(self._body)
        self._task.check()  # after taking the body, which ``_release`` may have emptied
        for offset in range(0, len(body), _PIECE_SIZE):
            self._task.check()
            yield body[offset : offset + _PIECE_SIZE]

    def seek(self, _offset: int, _whence: int = 0) -> None:
        """Called by botocore before it sends again. Each iteration starts at 0 anyway."""

    def _release(self) -> None:
        self._body = b""


def make_calls_stoppable(client: object) -> None:
    """Make ``client`` send nothing more for a call that was abandoned.

    Without this, botocore's own retries would send it again seconds later. Clients that are not
    botocore's cannot be stopped. Calling this again changes nothing.
    """
    if isinstance(client, botocore.client.BaseClient):
        service = client.meta.service_model.service_id.hyphenize()
        events = client.meta.events
        events.register_first(f"before-send.{service}", _check_task, unique_id=f"{_KEY}.check")
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
    events.register_last(f"before-parameter-build.{name}", _take_blob, unique_id=f"{_KEY}.take")
    events.register(f"before-call.{name}", _insert_body, unique_id=f"{_KEY}.insert")
    events.register(f"before-sign.{name}", _add_hash, unique_id=f"{_KEY}.hash")
    return True


def _take_blob(
    params: Mapping[str, object], context: MutableMapping[str, Any], **_event: object
) -> None:
    blob = params.get("layerPartBlob")
    if isinstance(blob, EncodedBlob):
        context[_KEY] = blob


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
        request["layerPartBlob"] = blob.base64().decode()
        params["body"] = json.dumps(request).encode()
    task = current_task()
    if task is not None:
        task.check()

        def release() -> None:
            blob.body = params["body"] = b""

        task.when_over(release)


def _add_hash(request: AWSRequest, signature_version: object, **_event: object) -> None:
    blob: EncodedBlob | None = request.context.get(_KEY)
    if blob is not None and signature_version == "v4" and request.data is blob.body:
        request.headers["X-Amz-Content-SHA256"] = blob.sha256


def _check_task(**_event: object) -> None:
    task = current_task()
    if task is not None:
        task.check()


def _send_in_pieces(request: AWSPreparedRequest, **_event: object) -> None:
    task = current_task()
    body: object = request.body
    if task is not None and isinstance(body, bytes):
        request.body = _StoppableBody(body, task)  # type: ignore[assignment]  # urllib3 takes it
