"""Whatever is passed, kept or answered: every error is typed, and no layer is wrong."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError
from helpers import OPERATIONS, PATIENT, SMALL, bytes_of, digest_of
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

BLOB = bytes_of(45)
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
    return LayerUploader(client, "demo", limits=SMALL, retrying=PATIENT)


def model_client() -> ModelClient:
    return ModelClient(Registry(["demo"], limits=SMALL, part_size=8))


def one_of(valid: Any) -> st.SearchStrategy[Any]:
    return st.one_of(st.just(valid), JUNK)


def check_arguments(data: st.DataObject) -> None:
    """Call something public with arguments of which some are junk."""
    draw = data.draw
    client = model_client()
    uploader = uploader_of(client)
    session = uploader.initiate(layer_size=45)
    size, digest = one_of(45), one_of(DIGEST)

    def upload() -> object:
        return uploader.upload(
            draw(SOURCES), digest=draw(digest), size=draw(size), session=draw(one_of(session)),
            progress=draw(one_of(None)),
        )  # fmt: skip

    def upload_many() -> object:
        layer = Layer(draw(SOURCES), digest=draw(digest), size=draw(size))
        layers = draw(st.sampled_from([[layer], [BLOB, layer, draw(JUNK)], draw(JUNK)]))
        return uploader.upload_many(layers, max_workers=draw(one_of(2)))

    calls: list[Callable[[], object]] = [
        upload,
        upload_many,
        lambda: uploader.initiate(layer_size=draw(size), layer_digest=draw(digest)),
        lambda: uploader.upload_part(draw(one_of(session)), draw(SOURCES)),
        lambda: uploader.complete(draw(one_of(session)), draw(digest)),
        lambda: uploader.missing(draw(JUNK)),
        lambda: LayerUploader(
            draw(one_of(client)),
            draw(one_of("demo")),
            registry_id=draw(JUNK),
            part_size=draw(one_of(8)),
            limits=draw(one_of(SMALL)),
            retrying=draw(one_of(PATIENT)),
            attempt_timeout=draw(one_of(9)),
        ).initiate(),
        lambda: repr(list(Chunker(draw(size), part_size=draw(one_of(8)))[:9])),
        lambda: Chunker(draw(size), part_size=draw(one_of(8)))._repr_html_(),
        lambda: Part(draw(JUNK), draw(JUNK)),
        lambda: Limits(
            min_part=draw(JUNK), max_part=draw(JUNK), max_parts=draw(JUNK), max_layer=draw(JUNK)
        ),
        lambda: UploadSession(
            repository_name=draw(one_of("demo")),
            upload_id=draw(one_of("u")),
            part_size=draw(one_of(8)),
            layer_size=draw(size),
            layer_digest=draw(digest),
            last_byte_received=draw(one_of(7)),
            registry_id=draw(JUNK),
        )._repr_html_(),
    ]
    with contextlib.suppress(OSError):  # of a path that cannot be opened
        outcome_of(draw(st.sampled_from(calls)))
    check_layers(client)


def outcome_of(call: Callable[[], object], typed: tuple[type[Exception], ...] = TYPED) -> object:
    """What ``call`` returns, or ``None`` where it raises one of ``typed``."""
    said = ""
    try:
        return call()
    except typed as error:
        said = str(error)
    assert len(said) < 5_000
    return None


def check_layers(client: ModelClient) -> None:
    for digest, layer in client.registry.repositories["demo"].layers.items():
        assert digest_of(b"".join(layer.blobs)) == digest


def check_json(data: st.DataObject) -> None:
    """Continue with a session whose text was changed anywhere."""
    client = model_client()
    uploader = uploader_of(client)
    session = uploader.initiate(layer_size=45)
    uploader.upload_part(session, BLOB[:8])
    document = json.loads(session.to_json())
    for key in data.draw(st.lists(st.sampled_from([*document]), max_size=3)):
        document[key] = data.draw(SCALARS.filter(lambda value: not isinstance(value, bytes)))
    text = json.dumps(document)
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(st.text(max_size=3)) + text[at:]
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


class LyingClient:
    """A model's client some of whose answers have junk in some of their fields."""

    def __init__(self, model: ModelClient, data: st.DataObject) -> None:
        self.model = model
        self._data = data
        self._lies = data.draw(st.integers(1, 4))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(**parameters: Any) -> Any:
            draw = self._data.draw
            honest = getattr(self.model, name)
            if not self._lies or not draw(st.booleans()):
                return honest(**parameters)
            self._lies -= 1
            kind = draw(st.sampled_from(["answer", "fields", "layers", "refusal"]))
            if kind == "answer":
                return draw(JUNK)
            if kind == "refusal":
                error: Any = ClientError(
                    {
                        "Error": {"Code": draw(st.sampled_from(CODES)), "Message": draw(st.text())},
                        # Not all that botocore puts there.
                        "ResponseMetadata": {"HTTPStatusCode": 400},  # type: ignore[typeddict-item]
                    },
                    name,
                )
                if draw(st.booleans()):
                    error.response[draw(st.sampled_from(FIELDS))] = draw(JUNK)
                raise error
            answer = dict(honest(**parameters))
            if kind == "layers":
                layer = {"layerDigest": DIGEST, "layerAvailability": "AVAILABLE", "layerSize": 45}
                layer[draw(st.sampled_from([*layer]))] = draw(JUNK)
                answer["layers"] = [layer]
            else:
                answer[draw(st.sampled_from(FIELDS))] = draw(JUNK)
            return answer

        return call


def check_answers(data: st.DataObject) -> None:
    """Upload to a service that lies now and then."""
    client = LyingClient(model_client(), data)
    uploader = uploader_of(client)
    source: LayerSource = iter([BLOB]) if data.draw(st.booleans()) else BLOB
    layer = outcome_of(lambda: uploader.upload(source), (EcrPartsError,))
    assert layer is None or (isinstance(layer, UploadedLayer) and layer.digest == DIGEST)
    assert len(client.model.calls) < 500
    check_layers(client.model)


CHECKS = [check_arguments, check_json, check_answers]


@pytest.mark.parametrize("check", CHECKS)
@settings(max_examples=150)
@given(data=st.data())
def test_every_error_is_typed(check: Callable[[st.DataObject], None], data: st.DataObject) -> None:
    check(data)


@pytest.mark.soak
@pytest.mark.parametrize("check", CHECKS)
@settings(max_examples=20_000, derandomize=False)
@given(data=st.data())
def test_every_error_is_typed_in_20_000_examples(
    check: Callable[[st.DataObject], None], data: st.DataObject
) -> None:
    check(data)


def test_the_operations_are_those_of_the_model() -> None:
    assert all(callable(getattr(model_client(), name)) for name in OPERATIONS.values())
