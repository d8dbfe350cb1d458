"""Checks of arguments, and how values appear in messages."""

from __future__ import annotations

import re
import reprlib

from typing_extensions import override

_MOST_LETTERS = 500  # of a name or an ID
_LARGEST = 2**63 - 1  # the API's Long, and the longest sequence that Python can have


class _Shortened(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 200

    @override
    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to convert a number of more than 4,300 digits.
        return repr(x) if x.bit_length() < 200 else f"an int of {x.bit_length():,} bits"

    def repr_bytes(self, x: bytes | bytearray, _level: int) -> str:
        return repr(x) if len(x) <= 40 else f"{len(x):,} bytes"

    repr_bytearray = repr_bytes


_shortened = _Shortened()


def shown(value: object) -> str:
    """``value`` as its ``repr``, in at most about 200 letters."""
    return printable(_shortened.repr(value), 300)


def printable(text: str, most: int = _MOST_LETTERS) -> str:
    """``text`` in one line of at most ``most`` letters, without control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:most])


def masked(text: str) -> str:
    """``text`` without the user and the password of the URLs in it."""
    return re.sub(r"://[^/\s]*@", "://***@", text)


def whole_number(name: str, value: object, *, at_least: int = 1) -> int:
    """``value`` as an ``int`` of ``at_least`` or more, or a ``TypeError``/``ValueError``."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {shown(value)}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, not {shown(value)}")
    if value > _LARGEST:
        raise ValueError(f"{name} must be at most {_LARGEST:,}")
    return value


def is_name_or_id(value: str) -> bool:
    """Whether ``value`` can stand in a log line."""
    return 0 < len(value) <= _MOST_LETTERS and value.isprintable()


def callback(name: str, value: object) -> None:
    """``TypeError`` for what can be neither called nor left out."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be callable, not {shown(value)}")


def name_or_id(name: str, value: object) -> str:
    """``value`` as a ``str`` that can stand in a log line, or a ``TypeError``/``ValueError``."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {shown(value)}")
    if not value:
        raise ValueError(f"{name} must not be empty")
    if not is_name_or_id(value):
        raise ValueError(
            f"{name} must be at most {_MOST_LETTERS:,} printable characters, not {shown(value)}"
        )
    return value
