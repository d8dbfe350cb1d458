"""Many layers: side by side, each content once, and the first error ends them all."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import TypeVar

from ecr_parts._calls import MOST_DIGESTS, UploadCalls, check_digest
from ecr_parts._client import Failed
from ecr_parts._layer_upload import Layer, UploadedLayer, hash_source, upload_layer
from ecr_parts._threads import Abandoned, Task, Waiter
from ecr_parts._validation import callback, whole_number
from ecr_parts.checkpoint import Checkpoint
from ecr_parts.source import LayerSource, check_source, is_background_readable, open_source

_T = TypeVar("_T")
_STOPS_WITHIN = 1.5  # seconds: what runs wakes once a second
_LOOKS_EVERY = 1.0  # seconds: for a worker that found no thread to run in


@dataclass(eq=False)
class _Item:
    """One of the layers, and what is known of it."""

    place: int
    """In the results."""
    layer: Layer
    background_readable: bool
    identity: object
    """What tells its source from others."""
    size: int | None
    """Bytes, where it is known beforehand."""
    digest: str | None
    asked: bool = False
    """Whether ECR has been asked for it, with others in one call."""


class BatchUpload:
    """One call of ``upload_many``.

    Layers that may be read in the background are uploaded by workers, threads of this library;
    the others in the caller's thread, which counts as a worker then. The caller's thread pulls
    the layers, puts those for workers in a queue, and starts workers while there is room.

    The first error, wherever it comes from, sets ``_stopped``: then no thread begins anything,
    and each ends with ``Abandoned`` when it wakes.
    """

    def __init__(
        self,
        calls: UploadCalls,
        max_workers: int,
        check_existing: bool,
        progress: Callable[[int], object] | None,
    ) -> None:
        whole_number("max_workers", max_workers)
        callback("progress", progress)
        self._stopped = False
        self._waiter = Waiter(self._check_stopped, self._is_stopped)
        self._calls = calls.with_waiter(self._waiter)
        self._check_existing = check_existing
        self._progress = progress
        self._one_at_a_time = threading.Lock()
        self._error: BaseException | None = None
        # The queue and its workers. Deques, sets and dicts, as each change of them is atomic.
        self._places = max_workers
        """How many workers there may be."""
        self._queue: deque[tuple[_Item, Callable[[_Item], None]]] = deque()
        self._working: set[int] = set()
        self._starting: set[int] = set()
        """Those of ``_working`` that have taken nothing from the queue yet."""
        self._tasks: dict[int, Task[None]] = {}
        self._changed = threading.Lock()
        """Released when a worker takes something from the queue, or ends."""
        self._changed.acquire()
        # What has been found out.
        self._checkpoints: set[str] = set()
        self._sizes_there: dict[str, int] = {}
        """The sizes (bytes) of layers that ECR had when it was asked for many."""
        self._first_with: dict[str, _Item] = {}
        """By digest."""
        self._repeats: list[tuple[_Item, _Item]] = []
        """Layers that are not sent, each with the one that is sent for it."""
        self._results: dict[int, UploadedLayer] = {}

    def upload(self, layers: Iterable[LayerSource | Layer]) -> list[UploadedLayer]:
        """Upload every layer."""
        if isinstance(layers, str | bytes | bytearray | memoryview | Layer):
            raise TypeError(f"layers must be an iterable of layers, not {type(layers).__name__}")
        stopped: Abandoned | None = None
        with self._waiter:
            try:
                if isinstance(layers, Sequence):
                    self._upload_list([_as_layer(given) for given in layers])
                else:
                    self._upload_as_they_come(layers)
            except Abandoned as abandoned:
                stopped = abandoned  # raised below, as ``from`` would change somebody's error
            finally:
                self._stopped = True
                self._wait_for_workers()
                if stopped is None:
                    self._error = None  # it is on its way, with frames that lead here: a cycle
        if stopped is not None:
            error, self._error = self._error, None
            try:
                raise stopped if error is None else error
            finally:
                del error, stopped  # likewise
        return [self._results[place] for place in range(len(self._results))]

    def _upload_list(self, layers: list[Layer]) -> None:
        """Layers that are all known: checked before the first call, and asked for in one call."""
        everything = [self._describe(place, layer) for place, layer in enumerate(layers)]
        first_from: dict[object, _Item] = {}
        items: list[_Item] = []
        same_source: list[tuple[_Item, _Item]] = []
        for item in everything:
            first = first_from.setdefault(item.identity, item)
            if first is item:
                items.append(item)
            elif item.background_readable:
                same_source.append((item, first))
            else:
                raise ValueError("the same stream was passed twice")
        for at in range(0, len(items), MOST_DIGESTS):
            self._upload_block(items[at : at + MOST_DIGESTS])
        self._repeat_results(same_source)

    def _upload_block(self, items: list[_Item]) -> None:
        if self._check_existing:
            for item in items:
                if item.background_readable and item.digest is None:
                    self._submit(item, self._hash, ahead=len(items))
            self._finish_queue()
            self._ask(items)
        items = [item for item in items if self._is_first(item)]
        # Those for workers first: afterwards the caller's thread may be busy for long.
        for item in sorted(items, key=lambda item: not item.background_readable):
            self._submit(item, self._send, ahead=len(items))
        self._finish_queue()

    def _upload_as_they_come(self, layers: Iterable[LayerSource | Layer]) -> None:
        """Layers of an iterator: pulled as workers take them, and one more."""
        last: _Item | None = None
        for place, given in enumerate(layers):
            item = self._describe(place, _as_layer(given))
            stream = not item.background_readable
            if stream and last is not None and item.layer.source is last.layer.source:
                raise ValueError("the same stream was passed twice")
            last = item
            self._submit(item, self._hash_and_send, ahead=0)
        self._finish_queue()

    def _describe(self, place: int, layer: Layer) -> _Item:
        return self._noting(layer, partial(self._checked, place, layer))

    def _checked(self, place: int, layer: Layer) -> _Item:
        """Refuse what cannot be uploaded, as far as that is known beforehand."""
        if layer.digest is not None:
            check_digest(layer.digest)
        callback("progress", layer.progress)
        check_source(layer.source)
        if layer.size is not None:
            whole_number("size", layer.size, at_least=0)
        item = self._waiter.run("disk", partial(_inspect, place, layer))
        self._calls.check_size(item.size)
        if layer.checkpoint is not None:
            checkpoint = Checkpoint(layer.checkpoint)
            path = str(checkpoint.path)
            if path in self._checkpoints:
                raise ValueError(f"the checkpoint {path!r} was passed twice")
            self._checkpoints.add(path)
            if not item.background_readable and not hasattr(layer.source, "seek"):
                raise ValueError("only a source that can be read again can be resumed, no stream")
            self._waiter.run("disk", checkpoint.load)
        return item

    # The queue and its workers

    def _submit(self, item: _Item, function: Callable[[_Item], None], *, ahead: int) -> None:
        """Have a worker call ``function``; return when at most ``ahead`` calls wait for one."""
        if item.background_readable:
            self._queue.append((item, function))
            self._wait_until(lambda: len(self._queue) <= ahead)
        else:
            self._places -= 1
            self._wait_until(lambda: len(self._working) <= self._places)
            self._noting(item.layer, partial(function, item))
            self._places += 1

    def _finish_queue(self) -> None:
        self._wait_until(lambda: not self._queue and not self._working)
        repeats, self._repeats = self._repeats, []
        self._repeat_results(repeats)

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        while True:
            self._check_stopped()
            self._start_workers()
            if condition():
                return
            self._waiter.acquire(self._changed, _LOOKS_EVERY)

    def _start_workers(self) -> None:
        while len(self._queue) > len(self._starting) and len(self._working) < self._places:
            number = next(n for n in count() if n not in self._working)
            self._working.add(number)
            self._starting.add(number)
            self._tasks[number] = self._waiter.start(f"layer {number}", partial(self._work, number))
        for task in list(self._tasks.values()):
            if task.without_thread:
                self._waiter.wait(task)

    def _work(self, number: int) -> None:
        """What a worker does: all that waits in the queue, while there is room for the worker."""
        try:
            while len(self._working) <= self._places and not self._stopped:
                try:
                    item, function = self._queue.popleft()
                except IndexError:
                    return
                self._starting.discard(number)
                self._wake()
                self._noting(item.layer, partial(function, item))
        finally:
            self._starting.discard(number)
            self._working.discard(number)
            self._wake()

    def _wake(self) -> None:
        with suppress(RuntimeError):  # it is released already
            self._changed.release()

    def _wait_for_workers(self) -> None:
        """Let the workers end; one that does not is abandoned, and begins nothing any more."""
        waiter = Waiter()
        end = time.monotonic() + _STOPS_WITHIN
        for worker in self._tasks.values():
            if worker.running:
                waiter.wait(worker, max(0.0, end - time.monotonic()))
            worker.error = None  # it was noted, and its frames lead back here
        self._tasks = {}

    # What is done for each layer, in a worker or in the caller's thread

    def _hash(self, item: _Item) -> None:
        with open_source(item.layer.source, item.layer.size) as source:
            self._calls.check_size(source.size)
            item.digest, size = hash_source(source, partial(self._notify, item.layer, 0))
            changed = source.ended_at(size)
        if changed is not None:
            raise changed

    def _ask(self, items: list[_Item]) -> None:
        """Ask ECR for all of ``items`` whose digest is known, in one call."""
        wanted: dict[str, int | None] = {}
        for item in items:
            if item.digest is not None:
                wanted.setdefault(item.digest, item.size)
        layers = [item.layer for item in items]
        with Waiter(partial(self._notify_all, layers, 0), self._is_stopped) as waiter:
            there = self._calls.with_waiter(waiter).sizes_there(wanted)
        if isinstance(there, Failed):
            raise there.error
        self._sizes_there |= there
        for item in items:
            item.asked = item.digest is not None

    def _is_first(self, item: _Item) -> bool:
        """Whether no layer before has the same digest; otherwise that one is sent for both."""
        if item.digest is None:
            return True
        first = self._first_with.setdefault(item.digest, item)
        if first is not item:
            self._repeats.append((item, first))
        return first is item

    def _hash_and_send(self, item: _Item) -> None:
        if item.background_readable and item.digest is None and self._check_existing:
            self._hash(item)
        if self._is_first(item):
            self._send(item)

    def _send(self, item: _Item) -> None:
        there = self._sizes_there.get(item.digest or "")
        if there is not None and item.layer.checkpoint is None:
            self._notify(item.layer, there)
            self._results[item.place] = UploadedLayer(item.digest or "", there, existed=True)
        else:
            self._upload(item)

    def _upload(self, item: _Item) -> None:
        self._notify(item.layer, 0)
        layer = replace(item.layer, digest=item.digest, progress=partial(self._notify, item.layer))
        asked = item.asked and layer.checkpoint is None
        self._results[item.place] = upload_layer(
            self._calls,
            layer,
            check_existing=self._check_existing and not asked,
            cancelled=self._is_stopped,
        )

    def _repeat_results(self, repeats: list[tuple[_Item, _Item]]) -> None:
        for item, first in repeats:
            self._noting(item.layer, partial(self._repeat_result, item, first))

    def _repeat_result(self, item: _Item, first: _Item) -> None:
        """Take over the result of ``first``, unless the caller said that this layer differs."""
        result = self._results[first.place]
        if item.digest in (None, result.digest) and item.size in (None, result.size):
            if item.layer.checkpoint is not None:
                checkpoint = Checkpoint(item.layer.checkpoint)
                self._waiter.run("disk", partial(_delete_if_of, checkpoint, result.digest))
            self._notify(item.layer, result.size)
            self._results[item.place] = replace(result, existed=True, parts=())
        else:
            self._upload(item)  # ECR finds that the digest does not match

    # What is told to others

    def _notify(self, layer: Layer, newly: int) -> None:
        self._notify_all([layer], newly)

    def _notify_all(self, layers: list[Layer], newly: int) -> None:
        """Call ``progress``, that of the call and those of ``layers``: one call at a time."""
        self._waiter.acquire(self._one_at_a_time)
        try:
            self._check_stopped()
            for progress in (self._progress, *(layer.progress for layer in layers)):
                if progress is not None:
                    progress(newly)
        finally:
            self._one_at_a_time.release()

    def _is_stopped(self) -> bool:
        return self._stopped

    def _check_stopped(self) -> None:
        if self._stopped:
            raise Abandoned

    def _noting(self, layer: Layer, function: Callable[[], _T]) -> _T:
        """Run ``function``; if it raises, note the first error, and which layer it was."""
        try:
            return function()
        except BaseException as error:
            if not self._stopped and not isinstance(error, Abandoned):
                self._error = error
                with suppress(Exception):  # an exception may have no place for it
                    if isinstance(error, Exception) and getattr(error, "layer", None) is None:
                        error.layer = layer  # type: ignore[attr-defined]  # of any kind
            self._stopped = True
            raise


def _as_layer(given: LayerSource | Layer) -> Layer:
    return given if isinstance(given, Layer) else Layer(given)


def _delete_if_of(checkpoint: Checkpoint, digest: str) -> None:
    stored = checkpoint.load()
    if stored is not None and stored.layer_digest == digest:
        checkpoint.delete()


def _inspect(place: int, layer: Layer) -> _Item:
    """What a layer's file or buffer says of it; of a stream, only what the caller says."""
    identity: object = id(layer.source)
    background_readable, size = is_background_readable(layer.source), layer.size
    if background_readable:
        with open_source(layer.source, layer.size) as source:
            size = source.size
        if isinstance(layer.source, str | os.PathLike):
            status = os.stat(layer.source)
            identity = (status.st_dev, status.st_ino)
    return _Item(place, layer, background_readable, identity, size, layer.digest)
