"""The chunks of bytes that sources return: checked, joined and cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPResponse
from typing import cast

import urllib3.response

from ecr_parts._model.layers import Blob, Readable

# Bytes that are hashed and encoded at once: few, so that they stay in the processor's cache. A
# multiple of 3, so that their base64 has no padding.
SLICE_SIZE = 1536 * 1024

READ_ADVICE: dict[type, str] = {
    type(None): "read() of the source returned None: the file must not be in non-blocking mode",
    str: "read() of the source returned str: open the file in binary mode, 'rb'",
    object: "read() of the source must return bytes, not {}",
}
_ITERABLE_ADVICE: dict[type, str] = {object: "the iterable must yield bytes, not {}"}


def read_all(read: Callable[[int], Blob], size: int) -> bytes | bytearray:
    """Read ``size`` bytes, in as many reads as needed; fewer only at the end."""
    chunk = read(size)
    if len(chunk) in (0, size):
        return bytes(chunk)
    blob, filled = bytearray(size), 0  # allocated once: one that grows needs twice the memory
    while len(chunk):
        blob[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
        chunk = read(size - filled) if filled < size else b""
    del blob[filled:]
    return blob


def contiguous_view(blob: Blob) -> memoryview:
    """A flat view of the bytes of ``blob``, copied only if ``blob`` is not C-contiguous."""
    view = memoryview(blob)
    if view.c_contiguous and view.nbytes:  # an empty view of several dimensions cannot be cast
        return view.cast("B")
    return memoryview(view.tobytes())


def to_bytes(chunk: Blob, max_size: int) -> bytes | bytearray:
    """At most ``max_size`` bytes of ``chunk``, not as a view: it would lock the caller's buffer."""
    if isinstance(chunk, memoryview) or len(chunk) > max_size:
        return memoryview(chunk)[:max_size].tobytes()
    return chunk


def slices(blob: Blob) -> Iterator[memoryview]:
    """``blob`` in views of ``SLICE_SIZE`` bytes."""
    view = memoryview(blob)
    for offset in range(0, len(view), SLICE_SIZE):
        yield view[offset : offset + SLICE_SIZE]


def check_chunk(chunk: object, advice: Mapping[type, str]) -> Blob:
    """``chunk`` as bytes or a flat view. ``advice`` has the message for each wrong type."""
    if type(chunk) in (bytes, bytearray):
        return cast("Blob", chunk)
    if isinstance(chunk, bytes | bytearray | memoryview):  # a subclass may have another ``len``
        return contiguous_view(chunk)
    text = advice.get(type(chunk), advice[object])
    raise TypeError(text.format(type(chunk).__name__))


def count_missing(file: Readable) -> int:
    """The number of bytes that are missing at the end of an HTTP response; 0 for other files.

    ``http.client``, and so ``urllib.request``, reports a normal end when the connection breaks.
    So does urllib3 if ``enforce_content_length`` is off, the default before version 2.
    """
    if isinstance(file, HTTPResponse):
        return file.length or 0
    if isinstance(file, urllib3.response.HTTPResponse):
        return file.length_remaining or 0
    return 0


def pull_from(
    items: Iterator[object], between_reads: Callable[[], object]
) -> Callable[[int], Blob]:
    """A function that returns the next chunk of ``items`` that is not empty; b"" at the end."""

    def pull(_max_size: int) -> Blob:
        between_reads()
        for item in items:
            between_reads()
            chunk = check_chunk(item, _ITERABLE_ADVICE)
            if len(chunk):
                return chunk
        return b""

    return pull
