"""The bodies of requests: reading their JSON, and memory for large ones."""

from __future__ import annotations

import json
import mmap
import re
from contextlib import suppress
from typing import Any, TypeAlias

from ecr_parts._base import fast_base64

Blob: TypeAlias = bytes | memoryview

_LARGE = 1024**2  # bytes
_SLICE = 1024**2  # bytes of base64 that are decoded at a time; a multiple of 4
_BLOB = re.compile(rb'"layerPartBlob"\s*:\s*"')
_TAIL = 4096  # bytes at the end of a body, in which its last parameters are
_MAX_FREE = 2  # buffers that are kept to be used again
# Touching memory that forked children would share takes half as long again. Windows has no flags.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


def new_buffer(size: int) -> memoryview:
    """A buffer of ``size`` bytes. The memory of a large one is returned when it is released.

    960 MiB of layers from 8 uploads at a time: the process takes 1,609 MiB if parts and bodies are
    ``bytes``, 1,001 MiB with these. What is freed between two ``bytes`` that stay is not returned.
    """
    return memoryview(mmap.mmap(-1, size, **_PRIVATE) if size >= _LARGE else bytearray(size))


class BodyBuffers:
    """Buffers for the bodies of requests, used again. For several threads.

    Touching new memory is slow: 350 MiB of layers in parts of 10 MiB take 0.36 s of system time
    with these, 0.49 s with a new buffer for each request.
    """

    def __init__(self) -> None:
        self._free: list[memoryview] = []

    def take(self, size: int) -> memoryview:
        """A buffer of at least ``size`` bytes, with any content."""
        if size < _LARGE:
            return new_buffer(size)
        with suppress(IndexError):  # there is none, or another thread has taken the last one
            buffer = self._free.pop()
            if len(buffer) >= size:
                return buffer
        # Rounded up, because requests for later parts are larger by some digits.
        return new_buffer(size + _LARGE - size % _LARGE)

    def give_back(self, buffer: memoryview) -> None:
        """Keep a buffer that nobody uses any more."""
        if len(buffer) >= _LARGE and len(self._free) < _MAX_FREE:
            self._free.append(buffer)


def parse_json(text: Blob | str) -> Any:
    """The value of a JSON text, without Python's extensions to JSON.

    Raises ``ValueError`` and ``RecursionError``.
    """
    text = text if isinstance(text, str) else str(text, "utf-8")
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


def parse_body(body: Blob) -> dict[str, Any]:
    """The parameters in the body of a request. Raises ``ValueError`` and ``RecursionError``."""
    if found := _BLOB.search(body):
        # The JSON is parsed without the blob, so that the blob is not copied on the way.
        with suppress(ValueError):  # it has escapes, or is not where it belongs: see below
            start, end = found.end(), _end_of_string(body, found.end())
            blob = _decode(memoryview(body)[start:end])
            parameters = _parse_object(b"".join((body[:start], body[end:])))
            if parameters.get("layerPartBlob") == "":
                return {**parameters, "layerPartBlob": blob}
    parameters = _parse_object(body)
    text = parameters.get("layerPartBlob")
    if isinstance(text, str):
        parameters["layerPartBlob"] = _decode(memoryview(text.encode()))
    return parameters


def _end_of_string(body: Blob, start: int) -> int:
    """Where the next quote is, or a later one. Raises ``ValueError`` if there is none.

    Only the end of a long body is searched: a quote before it makes the base64 malformed.
    """
    tail = max(start, len(body) - _TAIL)
    return tail + bytes(body[tail:]).index(b'"')


def parse_fragment(body: Blob) -> dict[str, Any]:
    """The parameters of a request of which only the start arrived; empty if it has no blob."""
    body = bytes(body)
    base64_text = body.rpartition(b'"')[2]
    try:
        fragment = parse_body(body[: len(body) - len(base64_text) % 4] + b'"}')
        size = len(fragment["layerPartBlob"])
        fragment["partLastByte"] = fragment["partFirstByte"] + size - 1
    except (KeyError, RecursionError, TypeError, ValueError):
        return {}
    return fragment


def _parse_object(body: Blob) -> dict[str, Any]:
    parameters: Any = parse_json(body)
    if not isinstance(parameters, dict):
        raise ValueError("a request must be a JSON object")  # noqa: TRY004  (it is malformed)
    return parameters


def _decode(text: memoryview) -> Blob:
    """The bytes that a base64 text encodes. Raises ``ValueError`` if it is malformed."""
    if len(text) < _LARGE:
        return fast_base64.decode(text)
    blob = new_buffer(len(text) // 4 * 3 - bytes(text[-2:]).count(b"="))
    for start in range(0, len(text), _SLICE):
        piece = fast_base64.decode(text[start : start + _SLICE])
        # Raises ValueError for padding inside the text, which makes a piece too short.
        blob[start // 4 * 3 : (start + _SLICE) // 4 * 3] = piece
    return blob.toreadonly()
