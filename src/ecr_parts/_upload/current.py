"""Which layer a worker of ``upload_many`` uploads: what is logged meanwhile is about it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import NamedTuple


class CurrentLayer(NamedTuple):
    """What is known of a layer that is being uploaded."""

    digest: str | None
    size: int | None
    """Bytes."""


_current: ContextVar[CurrentLayer | None] = ContextVar("ecr_parts_layer", default=None)


def current_layer() -> CurrentLayer | None:
    """The layer that this thread uploads for ``upload_many``; ``None`` in other threads."""
    return _current.get()


class Uploading:
    """A block in which a layer is the current one, also in the threads of the calls it makes."""

    def __init__(self, digest: str | None, size: int | None) -> None:
        self._layer = CurrentLayer(digest, size)

    def __enter__(self) -> None:
        self._previous = _current.set(self._layer)

    def __exit__(self, *_error: object) -> None:
        _current.reset(self._previous)
