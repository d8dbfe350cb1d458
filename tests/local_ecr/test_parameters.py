"""LocalECR refuses the parameters that violate botocore's models of ECR and ECR Public."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.config import Config
from botocore.loaders import create_loader
from botocore.model import ServiceModel
from ecr_calls import Caller
from helpers import digest_of

from ecr_parts.testing import EcrError, LocalECR, Registry
from ecr_parts.testing._registry import OPERATIONS
from ecr_parts.testing._service_model import check_parameters, has_operation

DIGEST = digest_of(b"a layer")
DIGEST_PATTERN = "[a-zA-Z0-9-_+.]+:[a-fA-F0-9]+"
AT_LEAST_1 = "Member must have length greater than or equal to 1"
VALID = {
    "RegistryId": "012345678910",
    "RegistryIdOrAlias": "012345678910",
    "RepositoryName": "demo",
    "UploadId": "00000000-0000-0000-0000-000000000001",
    "LayerDigest": DIGEST,
    "ImageTagMutabilityExclusionFilterValue": "v*",
}
"""Values of the strings that have a pattern in the models."""


@pytest.mark.parametrize(
    ("method", "parameters", "name", "constraint"),
    [
        (
            "complete_layer_upload",
            {"uploadId": VALID["UploadId"], "layerDigests": [DIGEST, "none"]},
            "layerDigests",
            f"Member must satisfy constraint: [must satisfy regular expression '{DIGEST_PATTERN}']",
        ),
        ("put_image", {"imageManifest": "{}", "imageTag": ""}, "imageTag", AT_LEAST_1),
        ("put_image", {"imageManifest": ""}, "imageManifest", AT_LEAST_1),
        (
            "batch_get_image",
            {"imageIds": [{"imageTag": "v1"}, {"imageTag": ""}]},
            "imageIds.2.member.imageTag",
            AT_LEAST_1,
        ),
        (
            "batch_get_image",
            {"imageIds": [{"imageTag": "v1"}], "acceptedMediaTypes": []},
            "acceptedMediaTypes",
            AT_LEAST_1,
        ),
        (
            "describe_repositories",
            {"registryId": "1"},
            "registryId",
            "must satisfy regular expression '[0-9]{12}'",
        ),
        (
            "list_images",
            {"maxResults": 1001},
            "maxResults",
            "Member must have value less than or equal to 1000",
        ),
        (
            "list_images",
            {"filter": {"tagStatus": "NO"}},
            "filter.tagStatus",
            "Member must satisfy enum value set: [TAGGED, UNTAGGED, ANY]",
        ),
        ("delete_repository", {"force": 1}, "force", "Member must be a boolean"),
        (
            "get_download_url_for_layer",
            {"layerDigest": None},
            "layerDigest",
            "Member must not be null",
        ),
    ],
)
def test_names_parameter_and_constraint(
    method: str, parameters: dict[str, Any], name: str, constraint: str, ecr: LocalECR
) -> None:
    call = Caller(ecr.client(config=Config(parameter_validation=False)))
    answer = call(method, **parameters)
    assert answer["code"] == "InvalidParameterException"
    expected = f"Invalid parameter at '{name}' failed to satisfy constraint: '{constraint}'"
    assert answer["message"] == expected


@pytest.mark.parametrize("registry_ids", [["1"], ["012345678910"] * 11])
def test_limits_registry_ids(registry_ids: list[str], ecr: LocalECR) -> None:
    client = ecr.client(config=Config(parameter_validation=False))
    with pytest.raises(client.exceptions.InvalidParameterException, match="at 'registryIds'"):
        client.get_authorization_token(registryIds=registry_ids)


# Every constraint of the models


def valid_value(shape: Any) -> Any:
    """A value that satisfies ``shape``."""
    if shape.type_name == "structure":
        return {name: valid_value(member) for name, member in shape.members.items()}
    if shape.type_name == "list":
        return [valid_value(shape.member)]
    if shape.type_name == "string":
        return VALID.get(shape.name) or (shape.enum or ["x" * shape.metadata.get("min", 1)])[0]
    return {"boolean": True, "blob": b"x"}.get(shape.type_name, 1)


def invalid_values(shape: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Values that violate one constraint of ``shape`` each, with the name of what violates it."""
    kind, limits = shape.type_name, shape.metadata
    yield path, "x" if kind in ("structure", "list", "boolean", "integer", "long") else 1
    if kind in ("integer", "long"):
        yield from ((path, value) for value in (True, 1.0, limits["min"] - 1, 10**400))
        yield path, limits.get("max", 2**63 - 1) + 1
    if kind == "string":
        yield path, "\ud800"
        if limits.get("min"):
            yield path, ""
        if "max" in limits:
            yield path, "x" * (limits["max"] + 1)
        if "pattern" in limits:
            yield from ((path, value) for value in ("\u2603", f"{VALID[shape.name]}\n"))
        if shape.enum:
            yield path, shape.enum[0].lower()
    if kind == "list":
        if limits.get("min"):
            yield path, []
        if "max" in limits:
            yield path, [valid_value(shape.member)] * (limits["max"] + 1)
        yield path, [None]
        is_structure = shape.member.type_name == "structure"
        for name, value in invalid_values(shape.member, f"{path}.1.member"):
            yield (name if is_structure and isinstance(value, dict) else path), [value]
    if kind == "structure":
        valid = valid_value(shape)
        for name in shape.required_members:
            yield f"{path}.{name}", {key: valid[key] for key in valid if key != name}
            yield f"{path}.{name}", {**valid, name: None}
        for name, member in shape.members.items():
            for inner_path, value in invalid_values(member, f"{path}.{name}"):
                yield inner_path, {**valid, name: value}


def input_shape(operation: str, service: str) -> Any:
    model = ServiceModel(create_loader().load_service_model(service, "service-2"), service)
    return model.operation_model(operation).input_shape


every_operation = pytest.mark.parametrize(
    ("service", "operation"),
    [
        (service, operation)
        for service in ("ecr", "ecr-public")
        for operation in OPERATIONS
        if has_operation(operation, public=service == "ecr-public")
    ],
)


@every_operation
def test_refuses_what_violates_the_model(service: str, operation: str) -> None:
    registry, shape = Registry(["demo"]), input_shape(operation, service)
    for path, parameters in invalid_values(shape):
        if not isinstance(parameters, dict):
            continue  # a request is always a structure
        name = re.escape(path.removeprefix("."))
        message = f"^Invalid parameter at '{name}' failed to satisfy constraint: '"
        with pytest.raises(EcrError, match=message) as raised:
            registry.call(operation, parameters, public=service == "ecr-public")
        assert raised.value.code == "InvalidParameterException"
        json.dumps(raised.value.body)


@every_operation
def test_ignores_null_and_what_the_model_does_not_have(service: str, operation: str) -> None:
    shape = input_shape(operation, service)
    valid, public = valid_value(shape), service == "ecr-public"
    assert check_parameters(operation, {**valid, "other": [[[]]]}, public=public) == valid
    for name in set(shape.members) - set(shape.required_members):
        without = {key: valid[key] for key in valid if key != name}
        assert check_parameters(operation, {**valid, name: None}, public=public) == without


def test_does_not_copy_blob() -> None:
    part = valid_value(input_shape("UploadLayerPart", "ecr"))
    part["layerPartBlob"] = blob = bytes(100)
    checked = check_parameters("UploadLayerPart", part, public=False)
    assert checked["layerPartBlob"] is blob
