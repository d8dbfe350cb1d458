"""Many layers: side by side, each content once, and the first error ends them all."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TypeVar

from ecr_parts._calls import MOST_DIGESTS, UploadCalls, check_digest
from ecr_parts._client import Failed
from ecr_parts._layer_upload import Layer, UploadedLayer, hash_source, upload_layer
from ecr_parts._threads import Abandoned, Task, Waiter
from ecr_parts.checkpoint import Checkpoint
from ecr_parts.limits import whole_number
from ecr_parts.source import LayerSource, is_background_readable, open_source

_T = TypeVar("_T")
_STOPS_WITHIN = 1.5  # seconds: what runs wakes once a second


class BatchUpload:
    """One call of ``upload_many``.

    Layers that may be read in the background are uploaded by workers, threads of this library;
    the others in the caller's thread. The first error, wherever it comes from, sets ``_stopped``:
    then no thread begins anything, and each ends with ``Abandoned`` when it wakes.
    """

    def __init__(
        self,
        calls: UploadCalls,
        max_workers: int,
        check_existing: bool,
        progress: Callable[[int], object] | None,
    ) -> None:
        whole_number("max_workers", max_workers)
        self._stopped = False
        self._waiter = Waiter(self._check_stopped, self._is_stopped)
        self._calls = calls.with_waiter(self._waiter)
        self._max_workers = max_workers
        self._check_existing = check_existing
        self._progress = progress
        self._one_at_a_time = threading.Lock()
        self._error: BaseException | None = None
        self._workers: list[Task[None]] = []
        self._checkpoints: set[str] = set()
        self._done: dict[str, UploadedLayer] = {}

    def upload(self, layers: Iterable[LayerSource | Layer]) -> list[UploadedLayer]:
        """Every layer, a window at a time."""
        if isinstance(layers, str | bytes | bytearray | memoryview | Layer):
            raise TypeError(f"layers must be an iterable of layers, not {type(layers).__name__}")
        windows = _windows(map(_layer, layers), self._max_workers)
        if isinstance(layers, Sequence):  # in memory as it is: checked before the first call
            everything = list(map(_layer, layers))
            _refuse_streams_twice(everything)
            self._refuse_checkpoints_twice(everything)
            self._checkpoints.clear()
            windows = _windows(everything, MOST_DIGESTS)
        results: list[UploadedLayer] = []
        stopped: Abandoned | None = None
        with self._waiter:
            try:
                for window in windows:
                    _refuse_streams_twice(window)
                    self._refuse_checkpoints_twice(window)
                    results += self._upload_window(window)
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
        return results

    def _wait_for_workers(self) -> None:
        """Let the workers end; one that does not is abandoned, and begins nothing any more."""
        waiter = Waiter()
        end = time.monotonic() + _STOPS_WITHIN
        for worker in self._workers:
            if worker.running:
                waiter.wait(worker, max(0.0, end - time.monotonic()))
            worker.error = None  # it was noted, and its frames lead back here
        self._workers = []

    def _refuse_checkpoints_twice(self, layers: list[Layer]) -> None:
        for layer in layers:
            if layer.checkpoint is not None:
                path = os.path.abspath(layer.checkpoint)
                if path in self._checkpoints:
                    raise ValueError(f"the checkpoint {path!r} was passed twice")
                self._checkpoints.add(path)

    def _upload_window(self, window: list[Layer]) -> list[UploadedLayer]:
        digests = self._side_by_side(
            window, {i: partial(self._digest, layer) for i, layer in enumerate(window)}
        )
        there = self._ask(window, digests)
        results: dict[int, UploadedLayer] = {}
        by_workers: dict[int, Callable[[], UploadedLayer]] = {}
        by_caller: dict[int, Callable[[], UploadedLayer]] = {}
        first: set[str] = set()
        for i, layer in enumerate(window):
            digest = digests[i]
            if digest is not None and (digest in self._done or digest in first):
                continue
            if digest in there and layer.checkpoint is None:
                results[i] = UploadedLayer(digest, there[digest], existed=True)
                self._notify(layer, results[i].size)
            elif is_background_readable(layer.source):
                by_workers[i] = partial(self._send, layer, digest)
            else:
                by_caller[i] = partial(self._send, layer, digest)
            if digest is not None:
                first.add(digest)
        results |= self._side_by_side(window, by_workers, by_caller)
        self._done |= {result.digest: result for result in results.values()}
        for i, layer in enumerate(window):
            if i not in results:
                results[i] = self._noting(layer, partial(self._again, layer, digests[i]))
        return [results[i] for i in range(len(window))]

    def _side_by_side(
        self,
        window: list[Layer],
        by_workers: dict[int, Callable[[], _T]],
        by_caller: dict[int, Callable[[], _T]] | None = None,
    ) -> dict[int, _T]:
        """What the functions return, ``max_workers`` of them at a time; the keys are layers.

        Those of ``by_caller`` run one after another in this thread, which counts as a worker.
        """
        results: dict[int, _T] = {}

        def run_all(work: Iterator[tuple[int, Callable[[], _T]]]) -> None:
            for i, function in work:
                results[i] = self._noting(window[i], function)

        def start_workers(most: int) -> None:
            self._workers = [
                self._waiter.start(f"layer {n}", partial(run_all, left))
                for n in range(min(most, len(by_workers)))
            ]

        left = iter(list(by_workers.items()))  # shared: each item goes to one worker
        start_workers(self._max_workers - bool(by_caller))
        run_all(iter((by_caller or {}).items()))
        if not self._workers:
            start_workers(self._max_workers)
        for worker in self._workers:
            self._waiter.wait(worker)
        self._check_stopped()
        for worker in self._workers:
            worker.result()
        return results

    def _digest(self, layer: Layer) -> str | None:
        """To ask for it; of what is read in the caller's thread it is not made here."""
        if (
            not self._check_existing
            or layer.digest is not None
            or not is_background_readable(layer.source)
        ):
            return layer.digest
        with open_source(layer.source, layer.size) as source:
            self._calls.check_size(source.size)
            digest, size = hash_source(source, partial(self._notify, layer, 0))
            changed = source.ended_at(size)
        if changed is not None:
            raise changed
        return digest

    def _ask(self, window: list[Layer], digests: dict[int, str | None]) -> dict[str, int]:
        if not self._check_existing:
            return {}
        wanted = {
            digest: layer.size
            for i, layer in enumerate(window)
            if (digest := digests[i]) is not None and digest not in self._done
        }
        with Waiter(partial(self._notify_all, window, 0), self._is_stopped) as waiter:
            there = self._calls.with_waiter(waiter).sizes_there(wanted)
        if isinstance(there, Failed):
            raise there.error
        return there

    def _send(self, layer: Layer, digest: str | None) -> UploadedLayer:
        self._notify(layer, 0)
        asked = digest is not None and layer.checkpoint is None
        return upload_layer(
            self._calls,
            replace(layer, digest=digest, progress=partial(self._notify, layer)),
            check_existing=self._check_existing and not asked,
            cancelled=self._is_stopped,
        )

    def _again(self, layer: Layer, digest: str | None) -> UploadedLayer:
        """The result of content that was sent for another layer."""
        before = self._done[digest or ""]
        if layer.checkpoint is not None:
            checkpoint = Checkpoint(layer.checkpoint)

            def delete_if_its_own() -> None:
                stored = checkpoint.load()
                if stored is not None and stored.layer_digest == digest:
                    checkpoint.delete()

            self._waiter.run("disk", delete_if_its_own)
        self._notify(layer, before.size)
        return replace(before, existed=True, parts=())

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


def _layer(item: LayerSource | Layer) -> Layer:
    layer = item if isinstance(item, Layer) else Layer(item)
    if layer.digest is not None:
        check_digest(layer.digest)
    return layer


def _refuse_streams_twice(layers: list[Layer]) -> None:
    """Of layers that are all in memory: the ``id`` of one that is gone may be another's."""
    streams = [id(layer.source) for layer in layers if not is_background_readable(layer.source)]
    if len(set(streams)) < len(streams):
        raise ValueError("the same stream was passed twice")


def _windows(layers: Iterable[Layer], heavy: int) -> Iterator[list[Layer]]:
    """As many layers as are asked for in one call; but of those in memory ``heavy`` at most."""
    window: list[Layer] = []
    for layer in layers:
        window.append(layer)
        weight = sum(not isinstance(x.source, str | os.PathLike) for x in window)
        if len(window) == MOST_DIGESTS or weight == heavy:
            yield window
            window = []
    if window:
        yield window
