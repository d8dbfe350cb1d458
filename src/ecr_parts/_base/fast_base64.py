"""Base64 by pybase64, if it is installed (the extra "speed"), or else by Python's own module."""

from __future__ import annotations

import base64
import importlib
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

_Bytes: TypeAlias = bytes | bytearray | memoryview


def fastest() -> tuple[Callable[[_Bytes], bytes], Callable[[_Bytes], bytes]]:
    """The fastest functions that encode and decode."""
    try:
        module = importlib.import_module("pybase64")  # SIMD, and without the GIL
    except ImportError:
        module = base64
    return module.b64encode, partial(module.b64decode, validate=True)


encode, decode = fastest()
"""``encode`` returns the base64 of bytes, ``decode`` the bytes of base64. ``decode`` raises
``ValueError`` if it is malformed."""
