"""Fuzz tests of arguments, sessions and answers: every error is typed, and no layer is wrong."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError
from helpers import NO_WAIT, OPERATIONS, SMALL_LIMITS, digest_of, random_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation import ModelClient

from ecr_parts import (
    Chunker,
    EcrPartsError,
    Layer,
    LayerSource,
    LayerUploader,
    Limits,
    Part,
    UploadedLayer,
    UploadSession,
)
from ecr_parts.testing import Registry

BLOB = random_bytes(45)
DIGEST = digest_of(BLOB)
TYPED = (EcrPartsError, TypeError, ValueError)

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 50),
    st.sampled_from([2**62, 2**63, -(2**63), 10**4_000, -(10**4_000)]),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["demo", "u\x1b[2J\r\n", "\ud800", "x" * 100_000, "../..", DIGEST, "sha256:"]),
    st.binary(max_size=20),
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
SOURCES = st.one_of(JUNK, st.just(BLOB), st.just(memoryview(BLOB)[::2]))


def uploader_of(client: Any) -> LayerUploader:
    return LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)


def new_client() -> ModelClient:
    return ModelClient(Registry(["demo"], limits=SMALL_LIMITS, part_size=8))


def valid_or_junk(valid: Any) -> st.SearchStrategy[Any]:
    return st.one_of(st.just(valid), JUNK)


def check_arguments(data: st.DataObject) -> None:
    """Call a public function, some of whose arguments are junk."""
    draw = data.draw
    client = new_client()
    uploader = uploader_of(client)
    session = uploader.initiate(layer_size=45)
    size, digest = valid_or_junk(45), valid_or_junk(DIGEST)

    def upload() -> object:
        return uploader.upload(
            draw(SOURCES),
            digest=draw(digest),
            size=draw(size),
            session=draw(valid_or_junk(session)),
            progress=draw(valid_or_junk(None)),
        )

    def upload_many() -> object:
        layer = Layer(draw(SOURCES), digest=draw(digest), size=draw(size))
        layers = draw(st.sampled_from([[layer], [BLOB, layer, draw(JUNK)], draw(JUNK)]))
        return uploader.upload_many(layers, max_workers=draw(valid_or_junk(2)))

    calls: list[Callable[[], object]] = [
        upload,
        upload_many,
        lambda: uploader.initiate(layer_size=draw(size), layer_digest=draw(digest)),
        lambda: uploader.upload_part(draw(valid_or_junk(session)), draw(SOURCES)),
        lambda: uploader.complete(draw(valid_or_junk(session)), draw(digest)),
        lambda: uploader.missing(draw(JUNK)),
        lambda: LayerUploader(
            draw(valid_or_junk(client)),
            draw(valid_or_junk("demo")),
            registry_id=draw(JUNK),
            part_size=draw(valid_or_junk(8)),
            limits=draw(valid_or_junk(SMALL_LIMITS)),
            retrying=draw(valid_or_junk(NO_WAIT)),
            attempt_timeout=draw(valid_or_junk(9)),
        ).initiate(),
        lambda: repr(list(Chunker(draw(size), part_size=draw(valid_or_junk(8)))[:9])),
        lambda: Chunker(draw(size), part_size=draw(valid_or_junk(8)))._repr_html_(),
        lambda: Part(draw(JUNK), draw(JUNK)),
        lambda: Limits(
            min_part=draw(JUNK), max_part=draw(JUNK), max_parts=draw(JUNK), max_layer=draw(JUNK)
        ),
        lambda: UploadSession(
            repository_name=draw(valid_or_junk("demo")),
            upload_id=draw(valid_or_junk("u")),
            part_size=draw(valid_or_junk(8)),
            layer_size=draw(size),
            layer_digest=draw(digest),
            last_byte_received=draw(valid_or_junk(7)),
            registry_id=draw(JUNK),
        )._repr_html_(),
    ]
    with contextlib.suppress(OSError):  # a path that cannot be opened
        outcome_of(draw(st.sampled_from(calls)))
    check_layers(client)


def outcome_of(call: Callable[[], object], typed: tuple[type[Exception], ...] = TYPED) -> object:
    """What ``call`` returns, or ``None`` if it raises one of ``typed``."""
    try:
        return call()
    except typed as error:
        message = str(error)
    assert len(message) < 5_000
    return None


def check_layers(client: ModelClient) -> None:
    for digest, layer in client.registry.repositories["demo"].layers.items():
        assert digest_of(b"".join(layer.blobs)) == digest


def check_json(data: st.DataObject) -> None:
    """Resume from a session whose JSON was changed."""
    client = new_client()
    uploader = uploader_of(client)
    session = uploader.initiate(layer_size=45)
    uploader.upload_part(session, BLOB[:8])
    document = json.loads(session.to_json())
    for key in data.draw(st.lists(st.sampled_from([*document]), max_size=3)):
        document[key] = data.draw(SCALARS.filter(lambda value: not isinstance(value, bytes)))
    text = json.dumps(document)
    if data.draw(st.booleans()):
        position = data.draw(st.integers(0, len(text)))
        text = text[:position] + data.draw(st.text(max_size=3)) + text[position:]
    layer = outcome_of(lambda: uploader.upload(BLOB, session=UploadSession.from_json(text)))
    if isinstance(layer, UploadedLayer):
        assert layer.digest == DIGEST
        assert DIGEST in client.registry.repositories["demo"].layers
    check_layers(client)


FIELDS = [
    "layers", "failures", "uploadId", "partSize", "lastByteReceived", "layerDigest",
    "lastValidByteReceived", "Error", "ResponseMetadata", "kmsError", "__type", "message",
]  # fmt: skip
CODES = [
    "InvalidLayerPartException", "UploadNotFoundException", "LayerAlreadyExistsException",
    "InvalidLayerException", "LayerPartTooSmallException", "EmptyUploadException",
    "ThrottlingException", "AccessDeniedException", "KmsException", "400",
]  # fmt: skip


class FuzzedClient:
    """A client of the model, up to four of whose answers are replaced or have junk fields."""

    def __init__(self, model: ModelClient, data: st.DataObject) -> None:
        self.model = model
        self._data = data
        self._fuzzed_left = data.draw(st.integers(1, 4))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(**parameters: Any) -> Any:
            draw = self._data.draw
            method = getattr(self.model, name)
            if not self._fuzzed_left or not draw(st.booleans()):
                return method(**parameters)
            self._fuzzed_left -= 1
            kind = draw(st.sampled_from(["answer", "field", "layer", "error"]))
            if kind == "answer":
                return draw(JUNK)
            if kind == "error":
                response: Any = {
                    "Error": {"Code": draw(st.sampled_from(CODES)), "Message": draw(st.text())},
                    "ResponseMetadata": {"HTTPStatusCode": 400},
                }
                if draw(st.booleans()):
                    response[draw(st.sampled_from(FIELDS))] = draw(JUNK)
                raise ClientError(response, name)
            answer = dict(method(**parameters))
            if kind == "layer":
                layer = {"layerDigest": DIGEST, "layerAvailability": "AVAILABLE", "layerSize": 45}
                layer[draw(st.sampled_from([*layer]))] = draw(JUNK)
                answer["layers"] = [layer]
            else:
                answer[draw(st.sampled_from(FIELDS))] = draw(JUNK)
            return answer

        return call


def check_answers(data: st.DataObject) -> None:
    """Upload to a service some of whose answers are junk."""
    client = FuzzedClient(new_client(), data)
    uploader = uploader_of(client)
    source: LayerSource = iter([BLOB]) if data.draw(st.booleans()) else BLOB
    layer = outcome_of(lambda: uploader.upload(source), (EcrPartsError,))
    assert layer is None or (isinstance(layer, UploadedLayer) and layer.digest == DIGEST)
    assert len(client.model.calls) < 500
    check_layers(client.model)


each_check = pytest.mark.parametrize("check", [check_arguments, check_json, check_answers])


@each_check
@settings(max_examples=150)
@given(data=st.data())
def test_raises_only_typed_errors(
    check: Callable[[st.DataObject], None], data: st.DataObject
) -> None:
    check(data)


@pytest.mark.soak
@each_check
@settings(max_examples=20_000, derandomize=False)
@given(data=st.data())
def test_raises_only_typed_errors_in_20_000_examples(
    check: Callable[[st.DataObject], None], data: st.DataObject
) -> None:
    check(data)


def test_model_client_has_every_method() -> None:
    assert all(callable(getattr(new_client(), name)) for name in OPERATIONS.values())
