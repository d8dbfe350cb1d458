"""Argument checks, and the formatting of values for messages."""

from __future__ import annotations

import os
import re
import reprlib

from typing_extensions import override

_MAX_NAME_LENGTH = 500  # characters of a name or an ID
_MAX_INT = 2**63 - 1  # the maximum of the API's Long, and ``sys.maxsize`` on 64-bit Python
_MAX_SECONDS = 1_000_000  # locks and sockets accept this on every system


class _ShortRepr(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 200

    @override
    def repr_int(self, x: int, _level: int) -> str:
        # ``repr`` raises ValueError for an int of more than 4,300 digits.
        return repr(x) if x.bit_length() < 200 else f"an int of {x.bit_length():,} bits"

    def repr_bytes(self, x: bytes | bytearray, _level: int) -> str:
        return repr(x) if len(x) <= 40 else f"{len(x):,} bytes"

    repr_bytearray = repr_bytes


_short_repr = _ShortRepr()


def short_repr(value: object) -> str:
    """The ``repr`` of ``value``, printable and at most 300 characters long."""
    return to_printable(_short_repr.repr(value), 300)


def to_printable(text: str, max_length: int = 500) -> str:
    """The first ``max_length`` characters of ``text``, with spaces for what is not printable."""
    return "".join(char if char.isprintable() else " " for char in text[:max_length])


def check_int(name: str, value: object, *, minimum: int = 1, maximum: int = _MAX_INT) -> int:
    """Return ``value``. Raise ``TypeError`` or ``ValueError`` unless it is an ``int`` in range."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {short_repr(value)}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum:,}, not {short_repr(value)}")
    if value > maximum:
        raise ValueError(f"{name} must be at most {maximum:,}, not {short_repr(value)}")
    return value


def check_positive(name: str, value: object, unit: str) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless ``value`` is a positive number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of {unit}, not {short_repr(value)}")
    # An int that is larger than any float cannot be used in arithmetic with floats.
    if not value > 0 or (isinstance(value, int) and value > _MAX_INT):
        raise ValueError(f"{name} must be a positive number of {unit}, not {short_repr(value)}")


def check_seconds(name: str, value: object) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless ``value`` is a time in seconds, or zero."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds, not {short_repr(value)}")
    if not 0 <= value <= _MAX_SECONDS:
        raise ValueError(
            f"{name} must be between 0 and {_MAX_SECONDS:,} seconds, not {short_repr(value)}"
        )


def check_path(name: str, path: str | os.PathLike[str]) -> str:
    """Return ``path``. Raise ``TypeError`` or ``ValueError`` if no file can have it as a str."""
    text: object = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a path of type str, not {short_repr(text)}")
    try:
        valid = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        valid = False
    if not valid:
        raise ValueError(
            f"{name} must be a path without NUL characters and lone surrogates, not "
            f"{short_repr(text)}"
        )
    return text


def check_callback(name: str, value: object) -> None:
    """Raise ``TypeError`` unless ``value`` is callable or ``None``."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be callable or None, not {short_repr(value)}")


def is_name(value: str) -> bool:
    """Whether ``value`` can be a name or an ID: printable, and of 1 to 500 characters."""
    return 0 < len(value) <= _MAX_NAME_LENGTH and value.isprintable()


def check_name(name: str, value: object) -> str:
    """Return ``value``. Raise ``TypeError`` or ``ValueError`` unless it can be a name or an ID."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {short_repr(value)}")
    if not is_name(value):
        raise ValueError(
            f"{name} must be 1 to {_MAX_NAME_LENGTH} printable characters, not {short_repr(value)}"
        )
    return value


def is_digest(value: str) -> bool:
    """Whether ``value`` is a SHA-256 digest in the form of the OCI specifications."""
    return re.fullmatch(r"sha256:[0-9a-f]{64}", value) is not None


def check_digest(name: str, value: object) -> str:
    """Return ``value``. Raise ``TypeError`` or ``ValueError`` unless it is a SHA-256 digest."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {short_repr(value)}")
    if not is_digest(value):
        raise ValueError(
            f"{name} must be 'sha256:' followed by 64 lower-case hex digits, not "
            f"{short_repr(value)}: ECR verifies no other kind of digest"
        )
    return value
