"""Putting a manifest that the caller has written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import pytest
from ecr_calls import PushingClient
from helpers import NO_WAIT, SMALL_LIMITS, digest_of, operations
from image_makers import (
    CONFIG_TYPE,
    DOCKER_MANIFEST_TYPE,
    INDEX_TYPE,
    LAYER_TYPE,
    MANIFEST_TYPE,
)
from typing_extensions import override

from ecr_parts import (
    InvalidImageError,
    LayerUploader,
    PushedImage,
    ServiceError,
    UnexpectedResponseError,
)
from ecr_parts.testing import EcrError, LocalECR, Unknowns

Document = dict[str, Any]


@pytest.fixture
def document(uploader: LayerUploader) -> Document:
    """A manifest whose config and layer ECR has."""
    config = json.dumps({"architecture": "amd64", "os": "linux"}).encode()
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": uploader.upload(config).descriptor(CONFIG_TYPE),
        "layers": [uploader.upload(b"a layer").descriptor(LAYER_TYPE)],
    }


def manifest_of(ecr: LocalECR, digest: str) -> str:
    return ecr.registry.repositories["demo"].images[digest].manifest


def tags_of(ecr: LocalECR) -> dict[str, str]:
    return ecr.registry.repositories["demo"].tags


# What is put


@pytest.mark.parametrize("kind", [str, str.encode])
def test_text_and_bytes_are_put_as_they_are(
    kind: Callable[[str], Any], ecr: LocalECR, uploader: LayerUploader, document: Document
) -> None:
    text = json.dumps(document | {"annotations": {"é": "\u2028"}}, indent=3, ensure_ascii=False)
    text = text.replace("\n", "\r\n") + "\n"
    image = uploader.put_manifest(kind(text), tags=["v1"])
    content = text.encode()
    assert image == PushedImage(
        digest_of(content), MANIFEST_TYPE, ("v1",), (), size=len(content)
    )  # fmt: skip
    assert manifest_of(ecr, image.digest) == text
    assert tags_of(ecr) == {"v1": image.digest}


def test_mapping_is_put_as_json(ecr: LocalECR, uploader: LayerUploader, document: Document) -> None:
    document["annotations"] = MappingProxyType({"é": "1"})
    document["layers"] = tuple(map(MappingProxyType, document["layers"]))
    image = uploader.put_manifest(MappingProxyType(document))
    stored = manifest_of(ecr, image.digest)
    assert json.loads(stored) == {
        **document, "annotations": {"é": "1"}, "layers": list(map(dict, document["layers"]))
    }  # fmt: skip
    assert list(json.loads(stored)) == list(document)
    assert image.size == len(stored.encode())
    assert image.tags == ()


def test_descriptor_is_what_an_index_needs(
    ecr: LocalECR, uploader: LayerUploader, document: Document
) -> None:
    image = uploader.put_manifest(document)
    content = manifest_of(ecr, image.digest).encode()
    assert image.descriptor() == {
        "mediaType": MANIFEST_TYPE, "digest": digest_of(content), "size": len(content)
    }  # fmt: skip
    child = {**image.descriptor(), "platform": {"architecture": "amd64", "os": "linux"}}
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [child]}
    pushed = uploader.put_manifest(index, tags=["v1", "latest", "v1"])
    assert pushed.tags == ("v1", "latest")
    assert pushed.media_type == INDEX_TYPE
    assert tags_of(ecr) == {"v1": pushed.digest, "latest": pushed.digest}
    assert len(ecr.calls_of("PutImage")) == 3


@pytest.mark.parametrize("service", ["ecr", "ecr-public"])
def test_media_type_is_passed_where_the_document_has_none(
    service: Any, ecr: LocalECR, document: Document
) -> None:
    del document["mediaType"]
    uploader = LayerUploader(ecr.client(service), "demo", limits=SMALL_LIMITS)
    image = uploader.put_manifest(document, media_type=DOCKER_MANIFEST_TYPE)
    assert image.media_type == DOCKER_MANIFEST_TYPE
    found = ecr.client().batch_get_image(
        repositoryName="demo", imageIds=[{"imageDigest": image.digest}]
    )
    assert found["images"][0]["imageManifestMediaType"] == DOCKER_MANIFEST_TYPE


def test_manifest_is_put_twice(ecr: LocalECR, uploader: LayerUploader, document: Document) -> None:
    for tags in (None, (tag for tag in ("v1", "v2")), {"v1"}):
        assert uploader.put_manifest(document, tags=tags).digest
    assert set(tags_of(ecr)) == {"v1", "v2"}


def test_needs_no_method_but_put_image(ecr: LocalECR, document: Document) -> None:
    client = PushingClient(ecr.client())
    image = LayerUploader(client, "demo", limits=SMALL_LIMITS).put_manifest(document, tags=["v1"])
    assert tags_of(ecr) == {"v1": image.digest}


# What is refused before the first call


class Odd(Mapping[str, Any]):
    """A mapping whose items are whatever it was given."""

    def __init__(self, items: Mapping[Any, Any]) -> None:
        self._items = items

    @override
    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    @override
    def __len__(self) -> int:
        return len(self._items)


def recursive() -> Document:
    document: Document = {}
    document["annotations"] = document
    return document


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"annotations": {"a": float("nan")}}, ValueError, "manifest['annotations']['a'] must be"),
        ({"annotations": {"a": float("inf")}}, ValueError, "a number that JSON has, not inf"),
        ({"annotations": {1: "a", "1": "b"}}, TypeError, "manifest['annotations'] must have"),
        ({"annotations": {None: "a"}}, TypeError, "must have keys of type str, not None"),
        ({3: "a"}, TypeError, "manifest must have keys of type str, not 3"),
        ({"annotations": Odd({2: 3})}, TypeError, "must have keys of type str, not 2"),
        ({"annotations": {"a": b"bytes"}}, TypeError, "must be what JSON has, not b'bytes'"),
        ({"annotations": [{"a": {1}}]}, TypeError, "manifest['annotations'][0]['a'] must be what"),
        ({"annotations": recursive()}, ValueError, "something in it contains itself"),
        ({"annotations": {"a": "\ud800"}}, ValueError, "must be text without lone surrogates"),
        ({"schemaVersion": 1}, InvalidImageError, "manifest must have the schemaVersion 2, not 1"),
        ({"schemaVersion": None}, InvalidImageError, "the schemaVersion 2, not None"),
        ({"mediaType": None}, ValueError, "media_type must be passed, because the manifest"),
        ({"mediaType": ""}, ValueError, "media_type must be passed, because the manifest"),
        ({"mediaType": 3}, ValueError, "media_type must be one of application/vnd.oci.image.index"),
        ({"mediaType": ["a"]}, ValueError, "media_type must be one of application/vnd.oci.image."),
        ({"mediaType": "text/plain"}, ValueError, "+json, not 'text/plain'"),
        ({"layers": []}, InvalidImageError, "the manifest has no layers, and ECR accepts no image"),
        ({"layers": None}, InvalidImageError, "the manifest has no layers, and ECR accepts no"),
        ({"config": {}}, InvalidImageError, "the manifest has no descriptor as config, but {}"),
        ({"subject": {"size": 1}}, InvalidImageError, "the manifest has no descriptor as subject"),
        ({"mediaType": INDEX_TYPE}, InvalidImageError, "the manifest has no list of manifests"),
    ],
)  # fmt: skip
def test_mapping_that_ecr_would_refuse_is_refused(
    change: Any, error: type[Exception], message: str, ecr: LocalECR, uploader: LayerUploader,
    document: Document,
) -> None:  # fmt: skip
    ecr.calls.clear()
    with pytest.raises(error) as raised:
        uploader.put_manifest(document | change, tags=["v1"])
    assert message in str(raised.value)
    assert ecr.calls == []


@pytest.mark.skipif(not hasattr(sys, "get_int_max_str_digits"), reason="no limit of digits")
def test_int_that_has_no_text_is_refused(uploader: LayerUploader, document: Document) -> None:
    with pytest.raises(ValueError, match="manifest must be JSON: Exceeds the limit"):
        uploader.put_manifest(document | {"annotations": {"a": 10**5_000}})


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (b"", "the manifest is not JSON in UTF-8: Expecting value"),
        (b"\xff{}", "the manifest is not JSON in UTF-8: 'utf-8' codec"),
        (b"\xef\xbb\xbf{}", "the manifest is not JSON in UTF-8: "),
        ("[" * 100_000, "the manifest is not JSON in UTF-8: "),
        ('{"a": NaN}', "the manifest is not JSON in UTF-8: NaN is not a number in JSON"),
        ("[]", "the manifest is not a JSON object, but []"),
        ("\ud800", "manifest must be text without lone surrogates"),
        (b"{}" + b" " * 4 * 1024**2, "the manifest has 4,194,306 bytes, more than 4,194,304"),
    ],
    ids=range(8),
)
def test_text_that_is_no_manifest_is_refused(
    manifest: Any, message: str, ecr: LocalECR, uploader: LayerUploader
) -> None:
    with pytest.raises(ValueError, match="manifest") as raised:
        uploader.put_manifest(manifest, media_type=MANIFEST_TYPE)
    assert message in str(raised.value)
    assert str(raised.value).isprintable()
    assert ecr.calls == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"manifest": None}, TypeError, "manifest must be a mapping, bytes or str, not None"),
        ({"manifest": [("a", 1)]}, TypeError, "manifest must be a mapping, bytes or str, not ["),
        ({"manifest": bytearray(b"{}")}, TypeError, "a mapping, bytes or str, not bytearray"),
        ({"media_type": 3}, TypeError, "media_type must be a str, not 3"),
        ({"media_type": ""}, ValueError, "media_type must be 1 to 500 printable characters"),
        ({"media_type": INDEX_TYPE}, ValueError, f"the manifest, '{MANIFEST_TYPE}', or omitted"),
        ({"media_type": f"{MANIFEST_TYPE};a=b"}, ValueError, "or omitted, not 'applica"),
        ({"tags": "v1"}, TypeError, "tags must be an iterable of str, not 'v1': pass a list"),
        ({"tags": 3}, TypeError, "tags must be an iterable of str, not 3: pass a list"),
        ({"tags": ["v1", 3]}, TypeError, "tags must be an iterable of str, not of 3"),
        ({"tags": [["v1"]]}, TypeError, "tags must be an iterable of str, not of ['v1']"),
        ({"tags": ["v1", "-v"]}, ValueError, "tags: '-v' does not match "),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(
    arguments: Any, error: type[Exception], message: str, ecr: LocalECR, uploader: LayerUploader,
    document: Document,
) -> None:  # fmt: skip
    ecr.calls.clear()
    with pytest.raises(error) as raised:
        uploader.put_manifest(**{"manifest": document, **arguments})
    assert message in str(raised.value)
    assert ecr.calls == []


def test_client_without_put_image_is_refused(ecr: LocalECR, document: Document) -> None:
    client = PushingClient(ecr.client())
    del client.put_image
    uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS)
    with pytest.raises(TypeError, match="which has no put_image"):
        uploader.put_manifest(document)


def test_exceptions_of_the_caller_pass_unchanged(
    ecr: LocalECR, uploader: LayerUploader, document: Document
) -> None:
    error = RecursionError("of the caller")

    class Failing(Odd):
        @override
        def __iter__(self) -> Iterator[str]:
            raise error

    def failing_tags() -> Iterator[str]:
        yield "v1"
        raise error

    with pytest.raises(RecursionError) as raised:
        uploader.put_manifest(document | {"annotations": Failing({})})
    assert raised.value is error
    with pytest.raises(RecursionError) as raised:
        uploader.put_manifest(document, tags=failing_tags())
    assert raised.value is error
    assert ecr.calls_of("PutImage") == []


# What ECR answers


def test_lag_behind_completed_layers_is_waited_for(document: Document, ecr: LocalECR) -> None:
    with LocalECR(limits=SMALL_LIMITS, part_size=8, unknowns=Unknowns(image_lag=3)) as lagging:
        uploader = LayerUploader(lagging.client(), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
        for content in (b'{"architecture": "amd64", "os": "linux"}', b"a layer"):
            uploader.upload(content)
        uploader.put_manifest(document, tags=["v1"])
        outcomes = [call.outcome for call in lagging.calls_of("PutImage")]
    assert outcomes == [*["LayersNotFoundException"] * 3, "ok"]


def test_missing_layers_are_an_error_that_says_what_to_do(
    ecr: LocalECR, uploader: LayerUploader, document: Document
) -> None:
    document["layers"].append({**document["layers"][0], "digest": digest_of(b"missing")})
    with pytest.raises(ServiceError, match="before put_manifest, upload the config") as raised:
        uploader.put_manifest(document)
    assert raised.value.code == "LayersNotFoundException"
    assert "sha256:" in str(raised.value)
    assert raised.value.manifests == ()
    assert len(ecr.calls_of("PutImage")) == 5


def test_error_says_what_was_put(
    ecr: LocalECR, uploader: LayerUploader, document: Document
) -> None:
    ecr.respond("PutImage", EcrError("AccessDeniedException", "no"), call=3)
    with pytest.raises(ServiceError) as raised:
        uploader.put_manifest(document, tags=["a", "b", "c"])
    digest = tags_of(ecr)["a"]
    assert f"{digest} as c failed: " in str(raised.value)
    assert str(raised.value).endswith(". It was put as a, b")
    assert raised.value.manifests == (digest,)


def test_answer_with_another_digest_is_an_error(
    ecr: LocalECR, uploader: LayerUploader, document: Document
) -> None:
    ecr.respond("PutImage", {"image": {"imageId": {"imageDigest": digest_of(b"other")}}})
    with pytest.raises(UnexpectedResponseError, match="instead of sha256:"):
        uploader.put_manifest(document)


def test_immutable_tag_may_be_put_again_with_the_same_manifest(document: Document) -> None:
    with LocalECR(["other"], limits=SMALL_LIMITS, part_size=8) as ecr:
        client = ecr.client()
        client.create_repository(repositoryName="demo", imageTagMutability="IMMUTABLE")
        uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
        for content in (b'{"architecture": "amd64", "os": "linux"}', b"a layer"):
            uploader.upload(content)
        image = uploader.put_manifest(document, tags=["v1"])
        assert uploader.put_manifest(document, tags=["v1"]) == image
        ecr.calls.clear()
        with pytest.raises(InvalidImageError, match="v1 is immutable and that of") as raised:
            uploader.put_manifest(document | {"annotations": {"a": "b"}}, tags=["v2", "v1"])
        assert str(raised.value).startswith("the manifest cannot be put: the tag v1")
        assert image.digest in str(raised.value)
        assert "PutImage" not in operations(ecr)
