"""Clears the frames that exceptions refer to, which would keep parts and sources in memory."""

from __future__ import annotations

import traceback
from contextlib import suppress
from types import FrameType, TracebackType


def clear_client_frames(error: BaseException, handled: BaseException | None) -> None:
    """Clear the local variables of the frames in the traceback of ``error``.

    They hold several copies of the part. urllib3 and botocore store exceptions in local variables
    of the frames that the exceptions' tracebacks refer to, and such cycles live until Python's
    garbage collector runs. 240 MiB file, every part's first answer lost: peak 84 MiB with this,
    176 without. Frames of other modules are left alone (clearing a generator's frame would end
    it), and so is ``handled``, the exception that was being handled before, if any.
    """
    seen = {id(handled)}
    linked = [error]
    while linked:
        link = linked.pop()
        if id(link) not in seen:
            seen.add(id(link))
            for frame, _ in traceback.walk_tb(link.__traceback__):
                _clear_with_callers(frame)
            linked += [other for other in (link.__cause__, link.__context__) if other is not None]


def _clear_with_callers(frame: FrameType | None) -> None:
    # The callers' frames too: botocore passes exceptions to frames that are in no traceback.
    with suppress(RuntimeError):  # the frame is still running, and so are its callers
        while frame is not None:
            if _package_of(frame) in _CLIENT_PACKAGES:
                frame.clear()
            frame = frame.f_back


def _package_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]


_CLIENT_PACKAGES = frozenset({"botocore", "http", "urllib3"})


class Carrier(Exception):  # noqa: N818  (it is no error: nobody sees it)
    """The base of exceptions that carry something inside this library. Nobody else sees them."""


class ClearOwnFrames:
    """A context manager that removes what is private from an exception that leaves the library.

    It clears the frames of this library in the traceback. Their local variables refer to the
    caller's source and to parts, and some to the exception itself. Such cycles live until Python's
    garbage collector runs. It also removes each ``Carrier`` from the context of the exception: a
    signal handler may raise while one is handled.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, _type: object, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        while error is not None and isinstance(error.__context__, Carrier):
            error.__context__ = error.__context__.__context__
        for frame, _ in traceback.walk_tb(tb):
            if _package_of(frame) == "ecr_parts":
                try:
                    frame.clear()
                except RuntimeError as running:
                    # The frame is still running. If the traceback has a further frame, a signal
                    # handler raised the exception.
                    further = running.__traceback__ and running.__traceback__.tb_next
                    if further:  # pragma: no cover  (no test can interrupt ``clear``)
                        raise
