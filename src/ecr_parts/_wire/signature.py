"""Signatures that AWS refuses because of their time: the clock is wrong, or the uplink slow."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone

from botocore.exceptions import ClientError

from ecr_parts._wire.retry import error_code, error_message

# Public reports have "Signature expired: 20160223T110202Z is now earlier than 20160223T110243Z
# (20160223T110743Z - 5 min.)", and "Signature not yet current: … is still later than …":
# https://github.com/docker/for-win/issues/203
_EXPIRED = re.compile(r"expired|is now earlier than", re.IGNORECASE)
_NOT_YET_CURRENT = re.compile(r"not yet current|is still later than", re.IGNORECASE)
_CODES = frozenset({"InvalidSignatureException", "RequestTimeTooSkewed", "SignatureDoesNotMatch"})
_TIME = re.compile(r"\b(\d{8}T\d{6})Z")
_FORMAT = "%Y%m%dT%H%M%S"
MIN_AGE = 2.0  # seconds; a request that is younger has not expired: the clock is wrong
_CLOCK_IS_WRONG = 60.0  # seconds


@dataclass(frozen=True)
class SigningTime:
    """When a request was signed. Its age includes the time during which the machine slept."""

    monotonic: float = field(default_factory=time.monotonic)
    wall: float = field(default_factory=time.time)

    @property
    def age(self) -> float:
        """Seconds."""
        return max(time.monotonic() - self.monotonic, time.time() - self.wall)


def has_expired(error: Exception) -> bool:
    """Whether ``error`` says that a signature is too old."""
    return _says(error, _EXPIRED) or (
        isinstance(error, ClientError) and error_code(error) == "RequestExpired"
    )


def clock_remedy(error: Exception, age: float) -> str | None:
    """What to do if ``error`` shows that the clock is wrong, else ``None``.

    ``age`` is that of the signature.
    """
    if not has_expired(error) and not _says(error, _NOT_YET_CURRENT):
        return None
    ahead = _seconds_ahead(error, age)
    if ahead is None:  # the message has no times
        return "Set this machine's clock, for example by NTP" if age < MIN_AGE else None
    if age >= MIN_AGE and abs(ahead) < _CLOCK_IS_WRONG:  # the request was slow
        return None
    return (
        f"This machine's clock is {abs(ahead):,.0f} s {'ahead' if ahead > 0 else 'behind'}: set "
        "it, for example by NTP"
    )


def _says(error: Exception, pattern: re.Pattern[str]) -> bool:
    if not isinstance(error, ClientError) or error_code(error) not in _CODES:
        return False
    return pattern.search(error_message(error.response)) is not None


def _seconds_ahead(error: Exception, age: float) -> float | None:
    """By how much this machine's clock is ahead, if AWS's message has both times."""
    message = error_message(error.response) if isinstance(error, ClientError) else ""
    try:
        signed, *_, now = [
            datetime.strptime(text, _FORMAT).replace(tzinfo=timezone.utc)
            for text in _TIME.findall(message)
        ]
    except ValueError:  # there are fewer than two, or one is not valid
        return None
    return (signed - now).total_seconds() + age
