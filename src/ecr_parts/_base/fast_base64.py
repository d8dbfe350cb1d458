"""Base64 by pybase64, if it is installed (the extra "speed"), or else by Python's own module."""

from __future__ import annotations

import base64
import importlib
from types import ModuleType
from typing import Any


def _fastest() -> ModuleType:
    try:
        return importlib.import_module("pybase64")  # SIMD, and without the GIL
    except ImportError:
        return base64


_module: Any = _fastest()


def encode(data: bytes | bytearray | memoryview) -> bytes:
    """The base64 of ``data``."""
    encoded: bytes = _module.b64encode(data)
    return encoded


def decode(text: bytes | memoryview) -> bytes:
    """The bytes that a base64 text encodes. Raises ``ValueError`` if it is malformed."""
    decoded: bytes = _module.b64decode(text, validate=True)
    return decoded
