"""A layer that is written like a file: ``LayerUploader.open_layer``.

The block and the file are two objects, because other code closes files: what wraps a file often
closes it whether or not all was written. So only the block decides whether the layer is complete.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from typing_extensions import Buffer, Self, override

from ecr_parts._base.frames import ClearOwnFrames
from ecr_parts._base.threads import Waiter
from ecr_parts._model.layers import Blob, UploadedLayer
from ecr_parts._sources.chunks import contiguous_view
from ecr_parts._upload.handover import Handover, Written, WrittenLayer
from ecr_parts.errors import SourceChangedError

_INCOMPLETE = (
    "the layer is incomplete, because an exception has interrupted a write, complete() or the "
    "block: write it again from its beginning, in a new open_layer()"
)

_CLOSED = (
    "the layer's file is closed, so nothing can be written to it: close what wraps it, such as a "
    "TarFile, inside the block, and before the file"
)


class LayerFile(io.BufferedIOBase):
    """A layer that is uploaded while it is written. ``LayerUploader.open_layer`` returns it.

    It is a binary file that can only be written, from start to end. One thread at a time may use
    it.

    An exception that leaves ``write`` or ``complete`` makes the layer incomplete, except for a
    ``TypeError`` because of ``data``. Later writes are ignored, so that code that writes while it
    handles the exception, as ``tarfile`` does, does not replace it by another one.
    """

    __module__ = "ecr_parts"

    if TYPE_CHECKING:
        name: Any  # as in typeshed's ``io.BytesIO``: its ``TextIOWrapper`` requires it
    else:
        # The finalizer of ``IOBase`` would call ``close``, and Python drops what a signal handler
        # raises meanwhile. This one is C code, which does nothing.
        __del__ = object.__init__

    def __init__(
        self,
        upload: Callable[[Handover], Written],
        *,
        piece_size: int,
        size: int | None,
        progress: Callable[[int], object] | None,
    ) -> None:
        self._upload = upload
        self._piece_size = piece_size
        self._size = size
        self._progress = progress
        self._handover = Handover(self)
        self._piece = bytearray()
        """What was written last. A full piece stays here until more is written, or ``complete``."""
        self._written = 0
        self._closed = False
        self._layer: UploadedLayer | None = None
        self._diff_id: str | None = None
        self._process = os.getpid()
        self._in_use = threading.Lock()
        """Held while a thread is in ``write`` or ``complete``, and after an exception left them."""
        self._is_running = False
        """Whether a thread is in ``write`` or ``complete``."""

    @override
    def writable(self) -> bool:
        return True

    @property
    @override
    def closed(self) -> bool:
        return self._closed

    @override
    def close(self) -> None:
        """Refuse further writes. This neither completes nor abandons the layer."""
        self._closed = True

    @override
    def tell(self) -> int:
        """The number of bytes written."""
        return self._written

    @override
    def write(self, data: Buffer, /) -> int:
        """Write all of ``data``; the number of its bytes. Waits until the upload takes them.

        Raises ``ValueError`` if the file is closed; ``SourceChangedError`` if more is written than
        the ``size`` that was passed; ``RuntimeError`` if another thread writes, or in a process
        that was forked since; what ended the upload, such as ``ServiceError``; and what
        ``progress`` raises.
        """
        blob = data if type(data) is bytes else contiguous_view(cast("Blob", data))
        if self._layer is not None:
            raise ValueError(_CLOSED)
        with ClearOwnFrames():
            self._run(partial(self._add, blob))
        return len(blob)

    def complete(self) -> UploadedLayer:
        """Complete the layer, and close the file. A block that ends normally does this, too.

        Where the end of the block must not wait, as in asyncio, call this in a thread before. Does
        nothing if the layer is complete.

        Raises ``ValueError`` if the layer is incomplete; ``EmptyLayerError``; and what ``write``
        raises.
        """
        if self._layer is None:
            with ClearOwnFrames():
                self._run(self._finish)
        return self.layer

    @property
    def layer(self) -> UploadedLayer:
        """The layer, once it is complete. Raises ``ValueError`` before."""
        if self._layer is None:
            later = "the layer is not complete: it is once the block has ended, or after complete()"
            raise ValueError(_INCOMPLETE if self._handover.abandoned else later)
        return self._layer

    @property
    def diff_id(self) -> str:
        """The layer's diff ID, for the image's config: the digest of what was written.

        Raises ``ValueError`` if the layer is not complete, or if what was written is gzip or zstd:
        the diff ID is the digest of its content. Reference: "Layer DiffID" in the OCI image
        specification.
        """
        layer = self.layer
        if self._diff_id is None:
            raise ValueError(
                f"what was written to the layer {layer.digest} is compressed, and the diff ID is "
                "the digest of the uncompressed content: compute it yourself, or write "
                "uncompressed data with compress=True"
            )
        return self._diff_id

    # There is no ``except`` in this class, which might catch an exception of ``progress`` or of a
    # signal handler.

    def _start(self) -> Self:
        """Start the thread that uploads."""
        upload = partial(self._upload, self._handover)
        with Waiter(cancelled=self._handover.is_over) as waiter:  # its thread ends with the task
            self._task = waiter.start("layer", upload)
        self._check_thread()
        return self

    def _abandon(self) -> None:
        """Send nothing more, and never complete the layer, unless it is complete already."""
        self._handover.abandon()
        self._closed = True
        self._piece = bytearray()

    def _run(self, step: Callable[[], None]) -> None:
        """Run ``step``, unless the layer is incomplete. If it raises, the layer is incomplete."""
        self._check_process()
        if self._handover.abandoned:
            return
        if not self._in_use.acquire(blocking=False):
            self._handover.abandon()
            # If no call is running, an exception has left one between two lines.
            if self._is_running:  # pragma: no branch  (only the line-by-line test gets there)
                raise RuntimeError(
                    "write() or complete() was called while another call was running, by another "
                    "thread or by progress: the layer is incomplete now. Write it again, in one "
                    "thread at a time"
                )
            return  # pragma: no cover  (likewise: it runs with a tracer of its own)
        done = False
        try:
            self._is_running = True
            step()
            self._is_running = False
            done = True
        finally:
            if not done:
                self._is_running = False
                self._handover.abandon()
        self._in_use.release()

    def _add(self, blob: Blob) -> None:
        if self._closed:
            raise ValueError(_CLOSED)
        size = len(blob)
        if self._size is not None and self._written + size > self._size:
            raise SourceChangedError(
                f"the layer has more than {self._size:,} bytes, the size that was passed to "
                "open_layer: pass the right size, or none"
            )
        if len(self._piece) + size <= self._piece_size:
            self._piece += blob
            self._written += size
            return
        view = memoryview(blob)
        while len(view):
            if len(self._piece) == self._piece_size:
                self._put(is_last=False)
            added = view[: self._piece_size - len(self._piece)]
            self._piece += added
            self._written += len(added)
            view = view[len(added) :]

    def _finish(self) -> None:
        self._closed = True
        self._put(is_last=True)
        layer, self._diff_id = self._result()
        self._report()
        self._layer = layer

    def _put(self, *, is_last: bool) -> None:
        """Hand the piece over. Raises what ended the upload, if it has ended."""
        piece, self._piece = self._piece, bytearray()
        self._handover.put(piece, Waiter(self._heartbeat).acquire, is_last=is_last)
        if self._handover.ended and not is_last:
            self._result()
        self._report()

    def _result(self) -> Written:
        Waiter(self._heartbeat).acquire(self._task.ended)
        self._check_wanted()
        return self._task.result()

    def _report(self) -> None:
        """Call ``progress`` with what ECR has confirmed."""
        while self._handover.confirmed:
            newly_confirmed = self._handover.confirmed.popleft()
            if self._progress is not None:
                self._progress(newly_confirmed)
        self._check_process()

    def _heartbeat(self) -> None:
        """Called about once a second while this thread waits."""
        self._check_thread()
        self._check_wanted()  # another thread may have left the block
        self._report()
        if self._progress is not None:
            self._progress(0)
        self._check_process()

    def _check_wanted(self) -> None:
        if self._handover.abandoned:
            raise ValueError(_INCOMPLETE)

    def _check_thread(self) -> None:
        if self._task.must_run_here:
            self._handover.abandon()
            raise RuntimeError(
                "no thread could be started to upload the layer while it is written: end other "
                "threads, or write a file and upload it, which requires no thread"
            )

    def _check_process(self) -> None:
        if self._process != os.getpid():  # pragma: no cover  (a forked child)
            raise RuntimeError(
                "this process was forked after the layer was opened, so only its parent can write "
                "to it: open the layer in the process that writes it"
            )


class LayerBlock(AbstractContextManager[LayerFile]):
    """The block in which a layer is written: how it is left decides whether it is completed."""

    def __init__(self, layer: WrittenLayer, progress: Callable[[int], object] | None) -> None:
        self._layer = layer
        self._progress = progress
        self._file: LayerFile | None = None
        self._handled: BaseException | None = None

    @override
    def __enter__(self) -> LayerFile:
        if self._file is not None:
            raise RuntimeError("this layer was opened already: call open_layer() for each block")
        self._handled = sys.exc_info()[1]
        layer = self._layer
        self._file = LayerFile(
            layer.upload, piece_size=layer.piece_size, size=layer.size, progress=self._progress
        )
        return self._file._start()

    @override
    def __exit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        # ``ExitStack.close`` passes no exception. If it is called while one is handled, and was not
        # when the block began, that exception ends the block.
        file = cast("LayerFile", self._file)
        try:
            handled, self._handled = self._handled, None
            current = sys.exc_info()[1]
            if error is None and (current is None or current is handled):
                file.complete()
        finally:
            file._abandon()  # unless it is complete
