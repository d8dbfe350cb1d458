"""UploadLayerPart on the wire, fast.

botocore base64-encodes a blob, has ``json.dumps`` scan the text and hashes the result for the
signature; half of its time goes into the scan. Here the same body, byte for byte, is made
beforehand (``encode``, which may run in a background thread), and botocore's public events put it
in the place of a request with an empty blob. A handler acts on blobs of ``encode`` only: for
anybody else's calls of the same client nothing changes.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
from collections.abc import Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import botocore.client
from typing_extensions import override

from ecr_parts.source import Blob

if TYPE_CHECKING:
    from botocore.awsrequest import AWSRequest


def _fastest_base64() -> Callable[[Blob], bytes]:
    try:
        pybase64 = importlib.import_module("pybase64")  # the extra "speed": SIMD, without the GIL
    except ImportError:
        return base64.b64encode
    encode: Callable[[Blob], bytes] = pybase64.b64encode
    return encode


_base64 = _fastest_base64()
_KEY = "ecr_parts.encoded_blob"  # in the context that botocore hands from event to event


class EncodedBlob(bytes):
    """A blob that is encoded already: for botocore an empty one, with the request's body beside it.

    It equals the bytes it stands for, so that ``botocore.stub.Stubber`` can compare it.
    """

    envelope: bytes
    """The body with an empty blob."""
    body: bytes
    sha256: str
    """Of the body, in hex: what SigV4 signs."""

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


def encode(parameters: Mapping[str, object], blob: Blob) -> EncodedBlob:
    """The blob of an UploadLayerPart call whose other parameters are ``parameters``."""
    encoded = EncodedBlob()
    encoded.envelope = json.dumps({**parameters, "layerPartBlob": ""}).encode()
    head = encoded.envelope[: -len(_TAIL)]
    encoded.body = b"".join((head, _base64(blob), _TAIL))
    encoded.sha256 = hashlib.sha256(encoded.body).hexdigest()
    return encoded


def attach(client: object) -> bool:
    """Have ``client`` send what ``encode`` makes; ``False`` for a client that cannot.

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
    if isinstance(blob, EncodedBlob):
        context[_KEY] = blob


def _fill_in(
    params: MutableMapping[str, Any], context: Mapping[str, Any], **_event: object
) -> None:
    blob: EncodedBlob | None = context.get(_KEY)
    if blob is None:
        return
    if params["body"] == blob.envelope:
        params["body"] = blob.body
    else:  # another handler changed the parameters
        head = len(blob.envelope) - len(_TAIL)
        request = json.loads(params["body"])
        request["layerPartBlob"] = blob.body[head : -len(_TAIL)].decode()
        params["body"] = json.dumps(request).encode()


def _sign(request: AWSRequest, signature_version: object, **_event: object) -> None:
    blob: EncodedBlob | None = request.context.get(_KEY)
    if blob is not None and signature_version == "v4" and request.data is blob.body:
        request.headers["X-Amz-Content-SHA256"] = blob.sha256
