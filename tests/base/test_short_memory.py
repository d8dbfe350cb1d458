"""Threads of the library that die of a MemoryError: nobody waits for them."""

from __future__ import annotations

import inspect
import linecache
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from helpers import BareReader, digest_of, random_bytes, write_layer

from ecr_parts import EcrPartsError, Layer, LayerUploader, UploadedLayer
from ecr_parts._base import threads, workers

BLOB = random_bytes(45)


def fail_before(line: str) -> Any:
    """A trace function that raises ``MemoryError`` once, in a thread of the library."""
    failed: list[str] = []

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        name = threading.current_thread().name
        if not name.startswith("ecr_parts ") or "_base" not in frame.f_code.co_filename:
            return None
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if event == "line" and text == line and not failed:
            failed.append(name)
            raise MemoryError
        return trace

    return trace


@pytest.mark.parametrize(
    "line",
    [
        "task.run()",
        "previous = current_task()",
        "self.check()",
        "_running.task = previous",
        "while len(self._working) <= self._slots and not self._stop.requested:",
        "self._starting.discard(number)",
        "self._working.discard(number)",
    ],
)
@pytest.mark.parametrize(
    ("upload", "count"),
    [
        (lambda uploader, path: [uploader.upload(path, checkpoint=f"{path}.checkpoint")], 1),
        (lambda uploader, path: uploader.upload_many([Layer(path), BLOB], check_existing=False), 2),
        (lambda uploader, path: uploader.upload_many(iter([BareReader(BLOB), path])), 2),
    ],
    ids=["upload", "list", "iterator"],
)
def test_thread_that_dies_of_short_memory_is_not_waited_for(
    upload: Callable[[LayerUploader, Path], list[UploadedLayer]],
    count: int,
    line: str,
    uploader: LayerUploader,
    tmp_path: Path,
) -> None:
    """Either there is an error, or every layer has arrived."""
    assert any(line in inspect.getsource(module) for module in (threads, workers))
    path, ended = write_layer(BLOB, tmp_path), list[bool]()

    def run() -> None:
        threading.settrace(fail_before(line))  # of threads that are started from now on
        try:
            layers = upload(uploader, path)
        except (MemoryError, EcrPartsError):
            ended.append(True)
        else:
            ended.append([layer.digest for layer in layers] == [digest_of(BLOB)] * count)

    trace_before = threading.gettrace()
    try:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(20)
    finally:
        threading.settrace(trace_before)
    assert ended == [True]
