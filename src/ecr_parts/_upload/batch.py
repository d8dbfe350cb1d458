"""Many layers in parallel: identical layers are uploaded once, and the first error stops all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import TypeAlias, TypeVar

from ecr_parts._base.frames import ClearOwnFrames
from ecr_parts._base.threads import Abandoned, Waiter
from ecr_parts._base.validation import check_callback, check_digest, check_int, short_repr
from ecr_parts._base.workers import Stop, Workers
from ecr_parts._model.layers import Layer, LayerSource, UploadedLayer, is_path
from ecr_parts._sources.digest import hash_source
from ecr_parts._sources.kinds import check_source, open_source
from ecr_parts._upload.checkpoint import Checkpoint
from ecr_parts._upload.current import Uploading
from ecr_parts._upload.item import Item, create_item, with_absolute_paths
from ecr_parts._upload.layer import NOT_RESUMABLE, UploadOptions, upload_layer
from ecr_parts._upload.plan import Planner
from ecr_parts._wire.call import answer_of
from ecr_parts._wire.repository import MAX_DIGESTS, Repository
from ecr_parts.errors import EcrPartsError

_T = TypeVar("_T")
AddLayer: TypeAlias = Callable[[LayerSource | Layer], None]
"""Uploads one more layer, once there is a worker for it."""
_REPEAT_INTERVAL = 0.05  # seconds between checks whether an equal layer was sent


@dataclass(frozen=True)
class BatchOptions:
    """How several layers are uploaded."""

    max_workers: int = 4
    check_existing: bool = True
    progress: Callable[[int], object] | None = None
    sizes_at_ecr: Mapping[str, int | None] = field(default_factory=dict)
    """By digest: the sizes (bytes) of layers that ECR was asked for; ``None`` if it lacks one."""
    finished: Callable[[Layer], object] = lambda _layer: None
    """Called in any thread when ECR has a layer, and its source is not needed any more."""


class BatchUpload:
    """One call of ``upload_many``.

    Layers that can be read in the background are uploaded by workers. The others are uploaded in
    the caller's thread, which counts as a worker while it does so. The caller's thread also fetches
    the layers and submits them.

    The first error, in whichever thread, requests a stop. Then no thread sends anything new, and
    each ends with ``Abandoned`` when it wakes.
    """

    def __init__(self, repository: Repository, planner: Planner, options: BatchOptions) -> None:
        check_int("max_workers", options.max_workers)
        check_callback("progress", options.progress)
        if repository.options.bandwidth is not None:
            repository.options.bandwidth.check_workers(options.max_workers)
        self._stop = Stop()
        self._waiter = Waiter(self.heartbeat, self._stop.is_requested)
        self._workers = Workers(options.max_workers, self._waiter, self._stop)
        self._repository = repository.with_waiter(self._waiter)
        self._planner = planner
        self._check_existing = options.check_existing
        self._progress = options.progress
        self._finished = options.finished
        self._progress_lock = threading.Lock()
        self._error: BaseException | None = None
        # What is known about the layers. Indexes, because items hold the sources.
        self._checkpoints: set[str] = set()
        self._sizes_at_ecr = dict(options.sizes_at_ecr)
        """By digest, for those that ECR was asked for."""
        self._first_with_digest: dict[str, int] = {}
        """By digest: the index of the first layer, which is sent for all with this digest."""
        self._results: dict[int, UploadedLayer] = {}

    def is_stopped(self) -> bool:
        """Whether there was an error, so that what is done for this call must end."""
        return self._stop.requested

    def run(self, layers: Iterable[LayerSource | Layer]) -> list[UploadedLayer]:
        """Upload all layers."""
        single = isinstance(layers, str | bytes | bytearray | memoryview | Layer)
        if single or hasattr(layers, "read") or not isinstance(layers, Iterable):
            raise TypeError(
                f"layers must be an iterable of layers, not {short_repr(layers)}: pass a list"
            )
        if isinstance(layers, Sequence):
            return self._run(lambda: self._upload_list([_to_layer(given) for given in layers]))
        return self.run_each(partial(_add_all, layers))

    def run_each(self, produce: Callable[[AddLayer], object]) -> list[UploadedLayer]:
        """Upload the layers that ``produce`` adds, one after the other, as those of an iterator.

        Unlike an iterator, it may raise ``StopIteration``, as the caller's ``progress`` may.
        """
        return self._run(partial(self._upload_each, produce))

    def _run(self, upload: Callable[[], object]) -> list[UploadedLayer]:
        stopped: Abandoned | None = None
        with ClearOwnFrames(), self._waiter:
            try:
                upload()
            except Abandoned as abandoned:
                stopped = abandoned  # raised below: ``from`` would change the user's exception
            finally:
                self._workers.stop()
                if stopped is None:
                    self._error = None  # if there is one, its frames refer to this object
        if stopped is not None:
            error, self._error = self._error, None
            try:
                with ClearOwnFrames():
                    raise stopped if error is None else error
            finally:
                del error, stopped  # they refer to this frame: a cycle
        return [self._results[index] for index in range(len(self._results))]

    def _upload_list(self, layers: list[Layer]) -> None:
        """Upload layers of a list: check all before the first call, and look up 100 in one call."""
        items: list[Item] = []
        same_source: list[tuple[Item, int]] = []
        checked = [self._inspect(index, layer) for index, layer in enumerate(layers)]
        # Of layers with the same source, one without a digest is sent for all of them, if there is
        # one: a digest that was passed for one layer is no knowledge about another.
        first_with_source: dict[object, int] = {}
        for item in sorted(checked, key=lambda item: item.digest is not None):
            first_with_source.setdefault(item.identity, item.index)
        for item in checked:
            first = first_with_source[item.identity]
            if first == item.index:
                items.append(item)
            elif item.background_readable:
                same_source.append((item, first))
            else:
                self._recording_error(item.layer, _raise_repeated_stream)
        for i in range(0, len(items), MAX_DIGESTS):
            self._upload_block(items[i : i + MAX_DIGESTS])
        self._copy_results(same_source)

    def _upload_block(self, items: list[Item]) -> None:
        if self._check_existing:
            for item in items:
                if item.background_readable and item.digest is None:
                    self._submit(item, self._hash, max_waiting=len(items))
            self._workers.finish()
            self._ask_which_exist(items)
        firsts = {item.index: self._first_of(item) for item in items}
        repeats = [(item, firsts[item.index]) for item in items if firsts[item.index] != item.index]
        items = [item for item in items if firsts[item.index] == item.index]
        # Those for workers first, because the caller's thread may be busy afterwards. The largest
        # first, so that no worker is alone with one in the end.
        for item in sorted(items, key=lambda item: (not item.background_readable, -item.size_or_0)):
            self._submit(item, self._send, max_waiting=len(items))
        self._workers.finish()
        self._copy_results(repeats)

    def _upload_each(self, produce: Callable[[AddLayer], object]) -> None:
        """Upload layers that are added one by one, at most one ahead of the workers."""
        last: Item | None = None
        numbers = count()

        def add(given: LayerSource | Layer) -> None:
            nonlocal last
            item = self._inspect(next(numbers), _to_layer(given))
            stream = not item.background_readable
            if stream and last is not None and item.layer.source is last.layer.source:
                self._recording_error(item.layer, _raise_repeated_stream)
            last = item
            self._submit(item, self._hash_and_send, max_waiting=0)

        produce(add)
        self._workers.finish()

    def _inspect(self, index: int, layer: Layer) -> Item:
        return self._recording_error(layer, partial(self._checked_item, index, layer))

    def _checked_item(self, index: int, layer: Layer) -> Item:
        """Raise an error if the layer cannot be uploaded, as far as this is known beforehand."""
        name = f"layers[{index}]"
        if layer.digest is not None:
            check_digest(f"{name}.digest", layer.digest)
        check_callback(f"{name}.progress", layer.progress)
        check_source(layer.source, f"{name}.source")
        if layer.size is not None:
            check_int(f"{name}.size", layer.size, minimum=0)
        resolved = with_absolute_paths(layer)
        item = self._waiter.run("disk", partial(create_item, index, layer, resolved))
        self._planner.check_layer(item.size)
        if resolved.checkpoint is not None:
            checkpoint = Checkpoint(resolved.checkpoint)
            path = str(checkpoint.path)
            if path in self._checkpoints:
                raise ValueError(
                    f"{name}.checkpoint, {path!r}, was passed twice: use one for each layer"
                )
            self._checkpoints.add(path)
            if not item.background_readable and not hasattr(layer.source, "seek"):
                raise ValueError(NOT_RESUMABLE)
            self._waiter.run("disk", checkpoint.load)  # raises if it cannot be read or written
        return item

    def _submit(self, item: Item, function: Callable[[Item], None], *, max_waiting: int) -> None:
        """Have a worker call ``function``, or call it here if the source may only be read here."""
        call = partial(self._recording_error, item.layer, partial(function, item))
        if item.background_readable:
            self._workers.submit(call, max_waiting=max_waiting)
        else:
            self._workers.call_here(call)

    # What is done for each layer, by a worker or in the caller's thread

    def _hash(self, item: Item) -> None:
        layer = item.resolved
        with open_source(layer.source, layer.size, must_be_regular=is_path(layer.source)) as source:
            self._planner.check_layer(source.size)
            item.digest, size = hash_source(source, partial(self._notify, item.layer, 0))
            error = source.error_at_end(size)
        if error is not None:
            raise error

    def _ask_which_exist(self, items: list[Item]) -> None:
        """Ask ECR in one call which of ``items`` with a known digest exist."""
        wanted: dict[str, int | None] = {}
        for item in items:
            if item.digest is not None and item.digest not in self._sizes_at_ecr:
                wanted.setdefault(item.digest, item.size)
        layers = [item.layer for item in items]
        with Waiter(partial(self._notify_all, layers, 0), self._stop.is_requested) as waiter:
            repository = self._repository.with_waiter(waiter)
            sizes = answer_of(partial(repository.existing_sizes, wanted))
        self._sizes_at_ecr |= {digest: sizes.get(digest) for digest in wanted}

    def _first_of(self, item: Item) -> int:
        """The index of the first layer with the digest of ``item``, which may be its own."""
        if item.digest is None:
            return item.index
        return self._first_with_digest.setdefault(item.digest, item.index)

    def _hash_and_send(self, item: Item) -> None:
        if item.background_readable and item.digest is None and self._check_existing:
            self._hash(item)
        first = self._first_of(item)
        if first == item.index:
            self._send(item)
            return
        # The first may still be uploading. Waiting here keeps no more sources than workers.
        waiter = Waiter(self._stop.check)
        while first not in self._results:
            waiter.heartbeat()
            waiter.sleep(_REPEAT_INTERVAL)
        self._copy_result(item, first)

    def _send(self, item: Item) -> None:
        digest = item.digest or ""
        size = self._sizes_at_ecr.get(digest)
        if size is None:
            self._upload(item)
        else:
            self._delete_checkpoint(item.resolved, digest)
            self._notify(item.layer, size)
            self._results[item.index] = UploadedLayer(digest, size, existed=True)
        self._finished(item.layer)

    def _upload(self, item: Item) -> None:
        self._notify(item.layer, 0)  # before the source is opened
        progress = partial(self._notify, item.layer)
        layer = replace(item.resolved, digest=item.digest, progress=progress)
        options = UploadOptions(
            check_existing=self._check_existing and item.digest not in self._sizes_at_ecr,
            cancelled=self._stop.is_requested,
            must_be_regular=item.background_readable,
        )
        with Uploading(item.digest, item.size):
            result = upload_layer(self._repository, self._planner, layer, options)
        self._results[item.index] = result

    def _copy_results(self, repeats: list[tuple[Item, int]]) -> None:
        for item, first in repeats:
            self._recording_error(item.layer, partial(self._copy_result, item, first))

    def _copy_result(self, item: Item, first: int) -> None:
        """Use the result of the layer ``first``, unless this one has another digest or size."""
        result = self._results[first]
        if item.digest in (None, result.digest) and item.size in (None, result.size):
            self._delete_checkpoint(item.resolved, result.digest)
            self._notify(item.layer, result.size)
            self._results[item.index] = replace(result, existed=True, parts=())
        else:
            self._upload(item)  # which raises an error for the difference

    def _delete_checkpoint(self, layer: Layer, digest: str) -> None:
        """Delete the layer's checkpoint, if it is of the layer with ``digest``."""
        if layer.checkpoint is not None:
            checkpoint = Checkpoint(layer.checkpoint)
            # A waiter of its own, because this may run in a worker.
            with Waiter(self._stop.check, self._stop.is_requested) as waiter:
                waiter.run("disk", partial(checkpoint.delete_if_of, digest))

    # Progress and errors

    def heartbeat(self) -> None:
        """Called once a second while the caller's thread waits. Raises after an error."""
        self._stop.check()
        if self._progress is not None and self._progress_lock.acquire(blocking=False):
            try:  # or else a worker is calling it
                self._progress(0)
            finally:
                self._progress_lock.release()

    def _notify(self, layer: Layer, newly_confirmed: int) -> None:
        self._notify_all([layer], newly_confirmed)

    def _notify_all(self, layers: list[Layer], newly_confirmed: int) -> None:
        """Call ``progress``, that of the batch and those of ``layers``, one call at a time."""
        Waiter(self._stop.check).acquire(self._progress_lock)
        try:
            self._stop.check()
            for progress in (self._progress, *(layer.progress for layer in layers)):
                if progress is not None:
                    progress(newly_confirmed)
            self._waiter.check_process()
        finally:
            self._progress_lock.release()

    def _recording_error(self, layer: Layer, function: Callable[[], _T]) -> _T:
        """Run ``function``. If it raises the first error of the batch, record it and its layer."""
        try:
            return function()
        except BaseException as error:
            if not self._stop.requested and not isinstance(error, Abandoned):
                self._error = error
                if isinstance(error, Exception) and not _names_layer(error):
                    with suppress(AttributeError, TypeError):  # not every exception can have it
                        error.layer = layer  # type: ignore[attr-defined]  # an error of any type
            self._stop.requested = True
            raise


def _names_layer(error: Exception) -> bool:
    """Whether ``error`` has its layer. Another type of error may have that of an earlier batch."""
    return isinstance(error, EcrPartsError) and error.layer is not None


def _raise_repeated_stream() -> None:
    raise ValueError("the same stream was passed twice: pass each stream once")


def _add_all(layers: Iterable[LayerSource | Layer], add: AddLayer) -> None:
    for given in layers:
        add(given)


def _to_layer(given: LayerSource | Layer) -> Layer:
    return given if isinstance(given, Layer) else Layer(given)
