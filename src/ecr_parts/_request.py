"""The requests of a botocore client: UploadLayerPart's made ahead, and each one stoppable.

botocore base64-encodes a blob, has ``json.dumps`` scan the text and hashes the result for the
signature; half of its time goes into the scan. Here the same body, byte for byte, is made ahead
(``prepare``, which may run in a background thread), and botocore's public events put it in the
place of a request with an empty blob. A handler acts on blobs of ``prepare`` only, and only in
threads of this library: for anybody else's calls of the same client nothing changes.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import botocore.client
from typing_extensions import Self, override

from ecr_parts._threads import Task, current_task
from ecr_parts.source import Blob

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest, AWSRequest


def _fastest_base64() -> Callable[[Blob], bytes]:
    try:
        pybase64 = importlib.import_module("pybase64")  # the extra "speed": SIMD, without the GIL
    except ImportError:
        return base64.b64encode
    encode: Callable[[Blob], bytes] = pybase64.b64encode
    return encode


_base64 = _fastest_base64()
_KEY = "ecr_parts.prepared_blob"  # in the context that botocore hands from event to event
_PIECE = 256 * 1024  # bytes


class PreparedBlob(bytes):
    """A blob that is encoded already: for botocore an empty one, with the request's body beside it.

    It equals the bytes it stands for, so that ``botocore.stub.Stubber`` can compare it.
    """

    envelope: bytes
    """The body with an empty blob."""
    body: bytes
    sha256: str
    """Of the body, in hex: what SigV4 signs."""

    def for_one_attempt(self) -> Self:
        """The same, to be emptied when the attempt is over, while others may still use this."""
        own = type(self)()
        own.envelope, own.body, own.sha256 = self.envelope, self.body, self.sha256
        return own

    @override
    def __eq__(self, other: object) -> bool:
        head = len(self.envelope) - len(_TAIL)
        return base64.b64decode(self.body[head : -len(_TAIL)]) == other

    @override
    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]  # it is compared and not looked up

    @override
    def __repr__(self) -> str:
        return f"<{len(self.body) - len(self.envelope)} bytes of base64>"


_TAIL = b'"}'  # what follows the blob, which is the last member


def prepare(parameters: Mapping[str, object], blob: Blob) -> PreparedBlob:
    """The blob of an UploadLayerPart call whose other parameters are ``parameters``."""
    prepared = PreparedBlob()
    prepared.envelope = json.dumps({**parameters, "layerPartBlob": ""}).encode()
    head = prepared.envelope[: -len(_TAIL)]
    prepared.body = b"".join((head, _base64(blob), _TAIL))
    prepared.sha256 = hashlib.sha256(prepared.body).hexdigest()
    return prepared


class _Pieces:
    """A request's body, sent piece by piece, so that an abandoned call sends no further one.

    A small body too: connecting may take long, and what has no body is not executed.
    """

    def __init__(self, body: bytes, task: Task[Any]) -> None:
        self._body = body
        self._task = task
        task.when_over(self._empty)

    def __iter__(self) -> Iterator[memoryview]:
        body = memoryview(self._body)
        self._task.check()  # of an abandoned task the body is empty
        for at in range(0, len(body), _PIECE):
            self._task.check()
            yield body[at : at + _PIECE]

    def seek(self, _offset: int, _whence: int = 0) -> None:
        """For botocore, which rewinds a body that it sends again; each iteration starts at 0."""

    def _empty(self) -> None:
        self._body = b""


def watch(client: object) -> None:
    """Have ``client`` begin nothing for a call that was abandoned.

    It would do so by itself: botocore's own retries send a call again seconds later. A client that
    is not botocore's cannot be stopped. Doing it again changes nothing.
    """
    if isinstance(client, botocore.client.BaseClient):
        service = client.meta.service_model.service_id.hyphenize()
        events = client.meta.events
        events.register_first(f"before-send.{service}", _check, unique_id=f"{_KEY}.check")
        # Last of all, since other handlers may read the body, or answer by themselves.
        events.register_last("before-send", _send_in_pieces, unique_id=f"{_KEY}.pieces")


def attach(client: object) -> bool:
    """Have ``client`` send what ``prepare`` makes; ``False`` for a client that cannot.

    It must be botocore's, for a service that speaks JSON. Doing it again changes nothing.
    """
    if not isinstance(client, botocore.client.BaseClient):
        return False
    model = client.meta.service_model
    # Older botocore knows one protocol a service, and no "resolved" one.
    if getattr(model, "resolved_protocol", model.metadata.get("protocol")) != "json":
        return False
    name = f"{model.service_id.hyphenize()}.UploadLayerPart"
    events = client.meta.events
    # One ID an event: botocore takes an ID that it knows for registered, on whatever event.
    events.register_last(f"before-parameter-build.{name}", _keep, unique_id=f"{_KEY}.keep")
    events.register(f"before-call.{name}", _fill_in, unique_id=f"{_KEY}.fill_in")
    events.register(f"before-sign.{name}", _sign, unique_id=f"{_KEY}.sign")
    return True


def _keep(
    params: Mapping[str, object], context: MutableMapping[str, Any], **_event: object
) -> None:
    blob = params.get("layerPartBlob")
    if isinstance(blob, PreparedBlob):
        context[_KEY] = blob


def _fill_in(
    params: MutableMapping[str, Any], context: Mapping[str, Any], **_event: object
) -> None:
    blob: PreparedBlob | None = context.get(_KEY)
    if blob is None:
        return
    if params["body"] == blob.envelope:
        params["body"] = blob.body
    else:  # another handler changed the parameters
        head = len(blob.envelope) - len(_TAIL)
        request = json.loads(params["body"])
        request["layerPartBlob"] = blob.body[head : -len(_TAIL)].decode()
        params["body"] = json.dumps(request).encode()
    task = current_task()
    if task is not None:
        task.check()

        def empty() -> None:
            blob.body = params["body"] = b""

        task.when_over(empty)


def _sign(request: AWSRequest, signature_version: object, **_event: object) -> None:
    blob: PreparedBlob | None = request.context.get(_KEY)
    if blob is not None and signature_version == "v4" and request.data is blob.body:
        request.headers["X-Amz-Content-SHA256"] = blob.sha256


def _check(**_event: object) -> None:
    task = current_task()
    if task is not None:
        task.check()


def _send_in_pieces(request: AWSPreparedRequest, **_event: object) -> None:
    task = current_task()
    body: object = request.body
    if task is not None and isinstance(body, bytes):
        request.body = _Pieces(body, task)  # type: ignore[assignment]  # urllib3 takes it
