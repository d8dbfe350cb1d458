"""The rules for manifests, with the constraints that ECR names."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import digest_of

from ecr_parts._model.manifests import find_violation

OCI = "application/vnd.oci.image."
MANIFEST, INDEX = f"{OCI}manifest.v1+json", f"{OCI}index.v1+json"
ONE = {"mediaType": "a/b", "digest": digest_of(b"1"), "size": 1}
SYNTAX = "Invalid JSON syntax"


def image(**members: Any) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": MANIFEST, "config": ONE, "layers": [ONE], **members}


@pytest.mark.parametrize(
    ("document", "media_type"),
    [
        (image(), MANIFEST),
        (image(mediaType=None), MANIFEST),
        (image(mediaType=""), MANIFEST),
        (image(layers=[ONE] * 500), MANIFEST),
        (image(subject=ONE), MANIFEST),
        ({"manifests": [ONE]}, INDEX),
        ({"manifests": []}, INDEX),
        ({"anything": 1}, "application/json"),
    ],
)
def test_accepts_manifest(document: dict[str, Any], media_type: str) -> None:
    assert find_violation(document, media_type) is None


@pytest.mark.parametrize(
    ("document", "constraint", "problem"),
    [
        (image(layers=[]), "Image has to have at least 1 layer", "has no layers"),
        (image(layers=None), "Image has to have at least 1 layer", "has no layers"),
        (image(layers=[ONE] * 501), "Limit on number of layers per image exceeded", "merge some"),
        (image(layers={"a": ONE}), SYNTAX, "has no list of layers"),
        (image(config=None), SYNTAX, "has no descriptor as config, but None"),
        (image(config={**ONE, "mediaType": "a/b;version=0.2"}), SYNTAX, "with parameters (;)"),
        (image(layers=[{**ONE, "mediaType": "a/b;c"}]), SYNTAX, "for one of its layers"),
        (image(layers=[{**ONE, "digest": "sha512:00"}]), SYNTAX, "digest 'sha512:00'"),
        (image(layers=[{**ONE, "size": True}]), SYNTAX, "the size True"),
        (image(layers=[{**ONE, "size": -1}]), SYNTAX, "the size -1"),
        (image(layers=[1]), SYNTAX, "has no descriptor as one of its layers, but 1"),
        (image(subject=[]), SYNTAX, "has no descriptor as subject"),
        (image(mediaType=INDEX), SYNTAX, "has two media types"),
    ],
)
def test_names_the_rule_that_is_violated(
    document: dict[str, Any], constraint: str, problem: str
) -> None:
    violation = find_violation(document, MANIFEST)
    assert violation is not None
    assert violation.constraint == constraint
    assert problem in violation.problem


@pytest.mark.parametrize("media_type", [None, "", 1])
def test_a_media_type_is_necessary(media_type: Any) -> None:
    violation = find_violation({}, media_type)
    assert violation is not None
    assert (violation.constraint, violation.problem[:17]) == (SYNTAX, "has no media type")


def test_an_index_has_manifests() -> None:
    violation = find_violation({"manifests": {}}, INDEX)
    assert violation is not None
    assert violation.problem == "has no list of manifests, but {}"
