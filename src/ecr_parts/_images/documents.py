"""The JSON of manifests, indexes and configs: read with limits, and written as it was read."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from typing_extensions import override

from ecr_parts._base.validation import short_repr
from ecr_parts._images.files import ImageFiles, read_file
from ecr_parts._model.layers import FileRegion
from ecr_parts.errors import InvalidImageError

_T = TypeVar("_T")
_MAX_DOCUMENT = 8 * 1024 * 1024  # bytes of ``index.json`` and others that are not sent

ErrorOf = Callable[[str], InvalidImageError]
"""Creates the error for a message about an image."""


def read_json(files: ImageFiles, name: str, error_of: ErrorOf) -> Any:
    """The JSON value in the file called ``name``."""
    return parse_json(read_file(find_json(files, name, error_of)), error_of, name)


def find_json(files: ImageFiles, name: str, error_of: ErrorOf) -> FileRegion:
    """Where the file called ``name`` is, which must be small enough to be read at once."""
    region, shown = files.find(name), short_repr(name)
    if region is None:
        raise error_of(f"it has no {shown}. Save the image again, whole")
    if region.size > _MAX_DOCUMENT:
        raise error_of(f"{shown} has {region.size:,} bytes, more than {_MAX_DOCUMENT:,}")
    if files.is_linked(region):
        raise error_of(f"{shown} is a link to a file elsewhere")
    return region


def parse_json(content: bytes, error_of: ErrorOf, where: str) -> Any:
    """The value of JSON in UTF-8. Numbers with a point or an exponent keep their digits."""
    try:
        return json.loads(content.decode(), parse_float=_Number, parse_constant=refuse_constant)
    except (RecursionError, ValueError) as error:
        raise error_of(f"{where} is not JSON: {error}. Save the image again") from error


@dataclass(frozen=True)
class _Number:
    """A number that is written as it was read: a ``float`` would round it, or be infinite."""

    text: str

    @override
    def __repr__(self) -> str:
        return self.text


def refuse_constant(name: str) -> NoReturn:
    """Raise ``ValueError``: for NaN and the like, which Python's parser accepts."""
    raise ValueError(f"{name} is not a number in JSON")


def write_json(document: Mapping[str, Any]) -> bytes:
    """JSON whose numbers are those that ``parse_json`` has read."""
    mark = secrets.token_hex(16)  # which nothing in the document can have been made to look like
    text = json.dumps(_with_marks(document, mark), separators=(",", ":"))
    return re.sub(f'"{mark}([^"]*)"', r"\1", text).encode()


def _with_marks(value: Any, mark: str) -> Any:
    if isinstance(value, _Number):
        return mark + value.text
    if isinstance(value, dict):
        return {key: _with_marks(item, mark) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_marks(item, mark) for item in value]
    return value


def member(item: object, name: str, kind: type[_T], error_of: ErrorOf, where: str) -> _T:
    """A member of a JSON object."""
    value = item.get(name) if isinstance(item, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise error_of(f"{where}: {name} is {short_repr(value)}. Save the image again")
    return value
