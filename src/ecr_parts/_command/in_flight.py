"""Counts the bytes of parts that have left this machine, while botocore sends them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, Protocol

from botocore.awsrequest import AWSPreparedRequest
from botocore.client import BaseClient

from ecr_parts._base.threads import current_task


class Counter(Protocol):
    """What counts. ``request`` is the same object in all calls for one request."""

    def begin_part(self, request: object) -> None:
        """Called before a part is sent, in any thread."""

    def send(self, request: object, size: int) -> None:
        """Called when ``size`` bytes more of it have left."""

    def end_part(self, request: object) -> None:
        """Called when the request was answered, has failed or was abandoned."""


def count_parts(client: BaseClient, counter: Counter) -> None:
    """Count the parts that ``client`` sends. To be called once it has a ``LayerUploader``."""
    # After the handler of ``_wire/request.py``, which makes the body one that is iterated.
    client.meta.events.register_last("before-send", partial(_count, counter))


def _count(counter: Counter, request: AWSPreparedRequest, event_name: str, **_: object) -> None:
    task = current_task()
    if task is None or not event_name.endswith(".UploadLayerPart"):
        return
    key = threading.get_ident()  # a thread sends one request at a time
    counter.begin_part(key)
    task.when_over(partial(counter.end_part, key))
    body = _CountedBody(request.body, partial(counter.send, key))
    request.body = body  # type: ignore[assignment]  # urllib3 takes any iterable


class _CountedBody:
    """A request's body. ``send`` is called with the bytes of the part that were taken of it."""

    def __init__(self, body: Any, send: partial[None]) -> None:
        self._body, self._send = body, send

    def __iter__(self) -> Iterator[memoryview]:
        for piece in self._body:
            yield piece
            self._send(len(piece) // 4 * 3)  # it is in base64

    def seek(self, offset: int, whence: int = 0) -> None:
        """Called by botocore before it sends again."""
        self._body.seek(offset, whence)
