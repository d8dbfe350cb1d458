"""The checks of requests against botocore's models of ECR and ECR Public."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from ecr_parts._base import fast_base64
from ecr_parts.testing._parameters import invalid

if TYPE_CHECKING:
    from botocore.loaders import Loader
    from botocore.model import ServiceModel

_PART = "LayerPartBlob"
_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "blob": (bytes, memoryview),
    "boolean": bool,
    "integer": int,
    "long": int,
    "list": list,
    "structure": dict,
}
_RANGES = {
    "blob": (0, sys.maxsize),
    "integer": (-(2**31), 2**31 - 1),
    "long": (-(2**63), 2**63 - 1),
    "string": (0, sys.maxsize),
    "list": (0, sys.maxsize),
}
"""The numbers, and the lengths, that a type allows where the model says nothing else."""


@cache
def model_loader() -> Loader:
    """The loader of botocore's models. Shared, because loading a model takes long."""
    from botocore.loaders import create_loader  # here, so that importing the kit stays fast

    return create_loader()


def has_operation(operation: str, *, public: bool) -> bool:
    """Whether ECR, or ECR Public, has ``operation``."""
    return operation in _service_model(public=public).operation_names


def check_parameters(
    operation: str, parameters: Mapping[str, object], *, public: bool
) -> dict[str, Any]:
    """Return the parameters that the model has and that are not null.

    Raises ``EcrError`` for parameters that violate the model.
    """
    shape = _service_model(public=public).operation_model(operation).input_shape
    return _check_members(shape, parameters, prefix="")


@cache
def _service_model(*, public: bool) -> ServiceModel:
    from botocore.model import ServiceModel

    service = "ecr-public" if public else "ecr"
    return ServiceModel(model_loader().load_service_model(service, "service-2"), service)


def _check_members(shape: Any, members: Mapping[str, object], prefix: str) -> dict[str, Any]:
    for name in shape.required_members:
        if members.get(name) is None:
            raise invalid(f"{prefix}{name}", "Member must not be null")
    return {
        name: _check(member, members[name], f"{prefix}{name}")
        for name, member in shape.members.items()
        if members.get(name) is not None
    }


def _check(shape: Any, value: Any, name: str) -> Any:
    """Return ``value``, of structures only the members that ``shape`` has."""
    if shape.type_name == "blob" and isinstance(value, str):
        with suppress(ValueError):  # then it is not a blob
            value = fast_base64.decode(value.encode())
    if violated := _violated_constraint(shape, value):
        raise invalid(name, violated)
    if isinstance(value, dict):
        return _check_members(shape, value, f"{name}.")
    if not isinstance(value, list):
        return value
    for item in value:
        if violated := _violated_constraint(shape.member, item):
            raise invalid(name, f"Member must satisfy constraint: [{violated}]")
    return [_check(shape.member, item, f"{name}.{i}.member") for i, item in enumerate(value, 1)]


def _violated_constraint(shape: Any, value: Any) -> str:
    """The constraint that ``value`` violates, in ECR's words; empty if there is none.

    The members of lists and structures are not checked, nor is the size of a part: ``Limits`` and
    ``Unknowns`` say how large it may be.
    """
    kind, limits = shape.type_name, {} if shape.name == _PART else shape.metadata
    if not _has_type(value, kind):
        return f"Member must be a {kind}"
    if kind in _RANGES:
        number, measure = (value, "value") if _TYPES[kind] is int else (len(value), "length")
        smallest, largest = _RANGES[kind]
        if number < (smallest := limits.get("min", smallest)):
            return f"Member must have {measure} greater than or equal to {smallest}"
        if number > (largest := limits.get("max", largest)):
            return f"Member must have {measure} less than or equal to {largest}"
    if kind == "string" and not _is_unicode(value):
        return "Member must be valid Unicode"
    if "enum" in limits and value not in limits["enum"]:
        return f"Member must satisfy enum value set: [{', '.join(limits['enum'])}]"
    if "pattern" in limits and not re.fullmatch(limits["pattern"], value):
        return f"must satisfy regular expression '{limits['pattern']}'"
    return ""


def _has_type(value: object, kind: str) -> bool:
    # In Python, unlike in JSON, a bool is a number.
    return isinstance(value, _TYPES[kind]) and isinstance(value, bool) == (kind == "boolean")


def _is_unicode(text: str) -> bool:
    """Whether ``text`` can be encoded: JSON may hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
