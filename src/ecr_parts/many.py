"""Many layers: side by side, each content once, and the first error ends them all."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TypeVar

from ecr_parts.checkpoint import Checkpoint
from ecr_parts.limits import whole_number
from ecr_parts.run import Layer, UploadedLayer, hash_source, upload_layer
from ecr_parts.source import LayerSource, is_ours, open_source
from ecr_parts.steps import MOST_DIGESTS, Steps, check_digest

_T = TypeVar("_T")


class _Cancelled(BaseException):
    """Another layer failed: what runs stops here."""


class Many:
    """One call of ``upload_many``."""

    def __init__(
        self,
        steps: Steps,
        max_workers: int,
        check_existing: bool,
        progress: Callable[[int], object] | None,
    ) -> None:
        whole_number("max_workers", max_workers)
        self._stop = threading.Event()
        self._steps = steps.with_sleep(self._stop.wait)
        self._max_workers = max_workers
        self._running = threading.Semaphore(max_workers)
        self._check_existing = check_existing
        self._progress = progress
        self._one_at_a_time = threading.Lock()
        self._failing = threading.Lock()
        self._error: BaseException | None = None
        self._checkpoints: set[str] = set()
        self._done: dict[str, UploadedLayer] = {}

    def upload(self, layers: Iterable[LayerSource | Layer]) -> list[UploadedLayer]:
        """Every layer, a window at a time."""
        if isinstance(layers, str | bytes | bytearray | memoryview | Layer):
            raise TypeError(f"layers is one {type(layers).__name__}, and must be an iterable")
        windows = _windows(map(_layer, layers), self._max_workers)
        if isinstance(layers, Sequence):  # in memory as it is: checked before the first call
            everything = list(map(_layer, layers))
            _refuse_streams_twice(everything)
            self._refuse_checkpoints_twice(everything)
            self._checkpoints.clear()
            windows = _windows(everything, MOST_DIGESTS)
        results: list[UploadedLayer] = []
        with ThreadPoolExecutor(self._max_workers, "ecr_parts.layer") as pool:
            try:
                for window in windows:
                    _refuse_streams_twice(window)
                    self._refuse_checkpoints_twice(window)
                    results += self._upload_window(window, pool)
            except _Cancelled as cancelled:  # in this thread, by an error in another
                raise (self._error or cancelled) from None
            except BaseException as error:
                self._fail(error)
                raise
        return results

    def _refuse_checkpoints_twice(self, layers: list[Layer]) -> None:
        for layer in layers:
            if layer.checkpoint is not None:
                path = os.path.abspath(layer.checkpoint)
                if path in self._checkpoints:
                    raise ValueError(f"the checkpoint {path!r} is there twice")
                self._checkpoints.add(path)

    def _upload_window(self, window: list[Layer], pool: Executor) -> list[UploadedLayer]:
        digests = self._all([pool.submit(self._guarded, x, self._digest) for x in window])
        there = self._ask(window, digests)
        results: dict[int, UploadedLayer] = {}
        sending: dict[int, Future[UploadedLayer]] = {}
        first: set[str] = set()
        mine: list[int] = []
        for i, (layer, digest) in enumerate(zip(window, digests, strict=True)):
            if digest is not None and (digest in self._done or digest in first):
                continue
            if digest in there and layer.checkpoint is None:
                results[i] = UploadedLayer(digest, there[digest], existed=True)
                self._hear(layer, results[i].size)
            elif is_ours(layer.source):
                sending[i] = pool.submit(self._guarded, layer, self._send, digest)
            else:
                mine.append(i)
            if digest is not None:
                first.add(digest)
        for i in mine:
            results[i] = self._guarded(window[i], self._send, digests[i])
        results |= zip(sending, self._all(list(sending.values())), strict=True)
        self._done |= {result.digest: result for result in results.values()}
        return [
            results[i] if i in results else self._guarded(layer, self._again, digests[i])
            for i, layer in enumerate(window)
        ]

    def _digest(self, layer: Layer) -> str | None:
        """To ask for it; of what is read in the caller's thread it is not made here."""
        if not self._check_existing or layer.digest is not None or not is_ours(layer.source):
            return layer.digest
        with open_source(layer.source, layer.size) as source:
            self._steps.check_size(source.size)
            return hash_source(source, lambda: self._hear(layer, 0))

    def _ask(self, window: list[Layer], digests: list[str | None]) -> dict[str, int]:
        if not self._check_existing:
            return {}
        wanted = {
            digest: layer.size
            for layer, digest in zip(window, digests, strict=True)
            if digest is not None and digest not in self._done
        }
        return self._steps.sizes_there(wanted)

    def _send(self, layer: Layer, digest: str | None) -> UploadedLayer:
        with self._running:
            self._hear(layer, 0)
            asked = digest is not None and layer.checkpoint is None
            return upload_layer(
                self._steps,
                replace(layer, digest=digest, progress=partial(self._hear, layer)),
                check_existing=self._check_existing and not asked,
            )

    def _again(self, layer: Layer, digest: str | None) -> UploadedLayer:
        """The result of content that was sent for another layer."""
        before = self._done[digest or ""]
        if layer.checkpoint is not None:
            kept = Checkpoint(layer.checkpoint)
            stored = kept.load()
            if stored is not None and stored.layer_digest == digest:
                kept.delete()
        self._hear(layer, before.size)
        return replace(before, existed=True, parts=())

    def _hear(self, layer: Layer, newly: int) -> None:
        if self._stop.is_set():
            raise _Cancelled
        with self._one_at_a_time:
            for progress in (self._progress, layer.progress):
                if progress is not None:
                    progress(newly)

    def _guarded(self, layer: Layer, do: Callable[..., _T], *more: object) -> _T:
        try:
            return do(layer, *more)
        except BaseException as error:
            self._fail(error, layer)
            raise

    def _all(self, futures: list[Future[_T]]) -> list[_T]:
        """The results, or the first error once nothing runs any more."""
        wait(futures)
        if self._error is not None:
            raise self._error
        return [future.result() for future in futures]

    def _fail(self, error: BaseException, layer: Layer | None = None) -> None:
        with self._failing:
            if self._error is None and not isinstance(error, _Cancelled):
                self._error = error
                if layer is not None and isinstance(error, Exception):
                    with suppress(AttributeError):  # an exception may have no place for it
                        error.layer = layer  # type: ignore[attr-defined]  # of any kind
            self._stop.set()


def _layer(item: LayerSource | Layer) -> Layer:
    layer = item if isinstance(item, Layer) else Layer(item)
    if layer.digest is not None:
        check_digest(layer.digest)
    return layer


def _refuse_streams_twice(layers: list[Layer]) -> None:
    """Of layers that are all in memory: the ``id`` of one that is gone may be another's."""
    streams = [id(layer.source) for layer in layers if not is_ours(layer.source)]
    if len(set(streams)) < len(streams):
        raise ValueError("a stream is there twice, and can be read once")


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
