"""The values of options, checked while the command line is parsed."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from ecr_parts._base.validation import is_digest, is_name, short_repr
from ecr_parts._images.choice import TAG
from ecr_parts._images.push import PLATFORM

_SIZE_UNITS = {
    "": 1, "B": 1, "kB": 10**3, "KiB": 2**10, "MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30,
}  # fmt: skip
_TIME_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}
_REGION = re.compile(r"(?![0-9]+$)(?!-)[A-Za-z0-9-]{1,63}(?<!-)")  # as botocore requires


def size(text: str) -> int:
    return _with_unit(text, _SIZE_UNITS, "a whole number of bytes, or a size such as 5MiB")


def duration(text: str) -> int:
    return _with_unit(text, _TIME_UNITS, "a whole number of seconds, or a time such as 10m")


def _with_unit(text: str, units: Mapping[str, int], what: str) -> int:
    match = re.fullmatch(r"([0-9]{1,18})([A-Za-z]*)", text)
    if match is None or match[2] not in units:
        raise argparse.ArgumentTypeError(f"must be {what}, not {short_repr(text)}")
    return int(match[1]) * units[match[2]]


def url(text: str) -> str:
    try:
        url = urlsplit(text)
        valid = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # for example, the port is no number
        valid = False
    valid = valid and text.isascii() and is_name(text) and " " not in text
    if not valid or "@" in text:  # the value is not shown, because it may have a password
        raise argparse.ArgumentTypeError("must be like https://HOST:PORT, without a user name")
    return text


def count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,4}", text) or not int(text):
        raise argparse.ArgumentTypeError(f"must be a number from 1 to 9999, not {short_repr(text)}")
    return int(text)


def digest(text: str) -> str:
    if not is_digest(text):
        raise argparse.ArgumentTypeError(
            "must be sha256: followed by 64 lower-case hex digits, not " + short_repr(text)
        )
    return text


def name(text: str) -> str:
    if not is_name(text):
        raise argparse.ArgumentTypeError(f"must be printable characters, not {short_repr(text)}")
    return text


def region(text: str) -> str:
    if not _REGION.fullmatch(text):
        raise argparse.ArgumentTypeError(f"must be like eu-west-1, not {short_repr(text)}")
    return text


def path(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must be a path, not ''")
    return text


def tag(text: str) -> str:
    if not TAG.fullmatch(text):
        raise argparse.ArgumentTypeError(
            "must be 1 to 300 letters, digits, '.', '_' and '-', and must not start with '.' or "
            f"'-': {short_repr(text)}"
        )
    return text


def platform(text: str) -> str:
    if not PLATFORM.fullmatch(text):
        raise argparse.ArgumentTypeError(f"must be like linux/arm64, not {short_repr(text)}")
    return text
