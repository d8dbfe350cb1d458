"""Checks of arguments, and how values appear in messages."""

from __future__ import annotations

import re
import reprlib

from typing_extensions import override

_MAX_NAME_LENGTH = 500  # characters of a name or an ID
_MAX_INT = 2**63 - 1  # the API's Long, and the longest sequence that Python can have


class _ShortRepr(reprlib.Repr):
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


_short_repr = _ShortRepr()


def short_repr(value: object) -> str:
    """The ``repr`` of ``value``, cut to about 200 characters."""
    return to_printable(_short_repr.repr(value), 300)


def to_printable(text: str, max_length: int = _MAX_NAME_LENGTH) -> str:
    """The first ``max_length`` characters of ``text``, control characters as spaces."""
    return "".join(char if char.isprintable() else " " for char in text[:max_length])


def mask_passwords(text: str) -> str:
    """``text`` without the user names and passwords of the URLs in it."""
    return re.sub(r"://[^/\s]*@", "://***@", text)


def check_int(name: str, value: object, *, minimum: int = 1, maximum: int = _MAX_INT) -> int:
    """``value`` itself; ``TypeError`` or ``ValueError`` unless it is an ``int`` in range."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {short_repr(value)}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, not {short_repr(value)}")
    if value > maximum:
        raise ValueError(f"{name} must be at most {maximum:,}, not {short_repr(value)}")
    return value


def check_seconds(name: str, value: object) -> None:
    """``TypeError`` or ``ValueError`` unless ``value`` is a positive number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds, not {short_repr(value)}")
    if not value > 0:
        raise ValueError(f"{name} must be a positive number of seconds, not {short_repr(value)}")


def check_callback(name: str, value: object) -> None:
    """``TypeError`` unless ``value`` is callable or ``None``."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be callable, not {short_repr(value)}")


def is_name(value: str) -> bool:
    """Whether ``value`` is non-empty, printable and short enough for a log line."""
    return 0 < len(value) <= _MAX_NAME_LENGTH and value.isprintable()


def check_name(name: str, value: object) -> str:
    """``value`` itself; ``TypeError`` or ``ValueError`` unless it is a ``str`` and ``is_name``."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {short_repr(value)}")
    if not value:
        raise ValueError(f"{name} must not be empty")
    if not is_name(value):
        raise ValueError(
            f"{name} must be at most {_MAX_NAME_LENGTH:,} printable characters, not "
            f"{short_repr(value)}"
        )
    return value


def check_digest(digest: object) -> str:
    """``digest`` itself; ``TypeError`` or ``ValueError`` unless ECR can verify it.

    ECR verifies ``sha256:`` followed by 64 lower-case hex digits, and nothing else.
    """
    if not isinstance(digest, str):
        raise TypeError(f"digest must be a str, not {short_repr(digest)}")
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise ValueError(
            f"digest must be 'sha256:' and 64 lower-case hex digits, not {short_repr(digest)}: "
            "ECR verifies no other kind"
        )
    return digest
