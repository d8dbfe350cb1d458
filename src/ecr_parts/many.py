"""Many layers: side by side, each content once, and the first error ends them all."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
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
        self._seen: set[object] = set()
        self._done: dict[str, UploadedLayer] = {}

    def upload(self, layers: Iterable[LayerSource | Layer]) -> list[UploadedLayer]:
        """Every layer, a window at a time."""
        if isinstance(layers, str | bytes | bytearray | memoryview | Layer):
            raise TypeError(f"layers is one {type(layers).__name__}, and must be an iterable")
        checked: Iterable[Layer] = map(self._checked, layers)
        heavy = self._max_workers
        if isinstance(
            layers, Sequence
        ):  # in memory as it is: all are checked before the first call
            checked, heavy = list(checked), MOST_DIGESTS
        results: list[UploadedLayer] = []
        with ThreadPoolExecutor(self._max_workers, "ecr_parts.layer") as pool:
            try:
                for window in _windows(checked, heavy):
                    results += self._upload_window(window, pool)
            except _Cancelled as cancelled:  # in this thread, by an error in another
                raise (self._error or cancelled) from None
            except BaseException as error:
                self._fail(error)
                raise
        return results

    def _checked(self, item: LayerSource | Layer) -> Layer:
        """An item as a layer; ``ValueError`` for what cannot be used twice."""
        layer = item if isinstance(item, Layer) else Layer(item)
        if layer.digest is not None:
            check_digest(layer.digest)
        once: list[object] = [] if is_ours(layer.source) else [id(layer.source)]
        if layer.checkpoint is not None:
            once.append(os.path.abspath(layer.checkpoint))  # noqa: PTH100
        if not self._seen.isdisjoint(once):
            raise ValueError(f"a stream or a checkpoint is there twice: {layer}")
        self._seen.update(once)
        return layer

    def _upload_window(self, window: list[Layer], pool: Executor) -> list[UploadedLayer]:
        window = self._all([pool.submit(self._guarded, self._with_digest, x) for x in window])
        there = self._ask(window)
        results: dict[int, UploadedLayer] = {}
        sending: dict[int, Future[UploadedLayer]] = {}
        first: set[str] = set()
        mine: list[int] = []
        for i, layer in enumerate(window):
            if layer.digest is not None and (layer.digest in self._done or layer.digest in first):
                continue
            if layer.digest in there and layer.checkpoint is None:
                results[i] = UploadedLayer(layer.digest, there[layer.digest], existed=True)
                self._hear(layer, results[i].size)
            elif is_ours(layer.source):
                sending[i] = pool.submit(self._guarded, self._send, layer)
            else:
                mine.append(i)
            if layer.digest is not None:
                first.add(layer.digest)
        for i in mine:
            results[i] = self._guarded(self._send, window[i])
        results |= zip(sending, self._all(list(sending.values())), strict=True)
        self._done |= {result.digest: result for result in results.values()}
        return [results.get(i) or self._again(layer) for i, layer in enumerate(window)]

    def _with_digest(self, layer: Layer) -> Layer:
        """To ask for it; of what is read in the caller's thread the digest is not made here."""
        if not self._check_existing or layer.digest is not None or not is_ours(layer.source):
            return layer
        with open_source(layer.source, layer.size) as source:
            self._steps.check_size(source.size)
            return replace(layer, digest=hash_source(source, lambda: self._hear(layer, 0)))

    def _ask(self, window: list[Layer]) -> dict[str, int]:
        if not self._check_existing:
            return {}
        wanted = {layer.digest: layer.size for layer in window if layer.digest is not None}
        return self._steps.sizes_there({d: wanted[d] for d in wanted if d not in self._done})

    def _send(self, layer: Layer) -> UploadedLayer:
        with self._running:
            self._hear(layer, 0)
            heard = replace(layer, progress=lambda newly: self._hear(layer, newly))
            asked = layer.digest is not None and layer.checkpoint is None
            return upload_layer(
                self._steps, heard, check_existing=self._check_existing and not asked
            )

    def _again(self, layer: Layer) -> UploadedLayer:
        """The result of content that was sent for another layer."""
        before = self._done[layer.digest or ""]
        if layer.checkpoint is not None:
            Checkpoint(layer.checkpoint).delete()
        self._hear(layer, before.size)
        return replace(before, existed=True, parts=())

    def _hear(self, layer: Layer, newly: int) -> None:
        if self._stop.is_set():
            raise _Cancelled
        with self._one_at_a_time:
            for progress in (self._progress, layer.progress):
                if progress is not None:
                    progress(newly)

    def _guarded(self, do: Callable[[Layer], _T], layer: Layer) -> _T:
        try:
            return do(layer)
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
                        error.layer = layer  # type: ignore[attr-defined]
            self._stop.set()


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
