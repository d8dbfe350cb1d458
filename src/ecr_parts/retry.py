"""What is retried, and how: which errors may pass, and the policy."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Mapping
from http.client import HTTPException

import tenacity
from botocore.config import Config
from botocore.exceptions import (
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    SSLError,
)
from botocore.exceptions import (
    ConnectionError as BotocoreConnectionError,
)
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from ecr_parts._validation import masked, printable

_log = logging.getLogger("ecr_parts")
_MOST_LETTERS = 2_000  # of a text before a pattern is applied: some take quadratic time

CLIENT_CONFIG = Config(
    # One send a call, because the retrying is done here. Both are said, as botocore writes what
    # is missing into this shared object.
    retries={"mode": "standard", "total_max_attempts": 1},
    # Seconds of silence. A part is sent in pieces of 256 KiB, and each piece has as long.
    connect_timeout=60,
    read_timeout=60,
    tcp_keepalive=True,
)
"""What a client made for this library is best configured with. With any other the outcome is the
same, but botocore's own retries multiply those of this library."""


def default_retrying() -> tenacity.Retrying:
    """The retry policy that is used where none is given.

    Ten attempts a call, with waits that grow from up to half a second to up to 30 seconds, drawn
    at random, about two minutes in all. ``default_retrying().copy(wait=…, stop=…, sleep=…)``
    changes it, and ``default_retrying()(client.put_image, …)`` serves ECR calls of one's own.
    """
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=30),
        stop=tenacity.stop_after_attempt(10),
        before_sleep=tenacity.before_sleep_log(_log, logging.INFO),
        reraise=True,
    )


# Sources: the ECR API reference (ServerException, LimitExceededException), the retry guide of
# the AWS SDKs (throttling codes), and the code ECR itself is seen to use (ThrottlingException).
_TRANSIENT_CODES = frozenset(
    {
        "PriorRequestNotComplete",
        "RequestLimitExceeded",
        "RequestThrottledException",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServerException",
        "SlowDown",
        "ThrottledException",
        "ThrottleException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)


class BadAnswerError(Exception):
    """An answer whose field is missing, as botocore makes of an HTML page, or makes no sense."""

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


class AttemptTimeoutError(Exception):
    """An attempt that took too long in all, although no timeout of the client's ended it."""

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later."""
    if not isinstance(error, Exception):
        return False
    if isinstance(error, ClientError):
        status = _member(error.response.get("ResponseMetadata"), "HTTPStatusCode")
        # ECR's own 400 has a code; botocore gives "400" to one that lost it on the way.
        if error_code(error) in (*_TRANSIENT_CODES, "400"):
            return True
        return isinstance(status, int) and (status in (408, 429) or status >= 500)
    if isinstance(error, (AttemptTimeoutError, BadAnswerError)):
        return error.transient
    if type(error) is HTTPClientError:
        # What botocore does not know: only what the network or HTTP raised may pass.
        known = isinstance(error.kwargs.get("error"), (OSError, HTTPException, HTTPError))
        return known and not _cannot_be_sent(error) and not _is_local(error)
    if isinstance(error, (BotocoreConnectionError, HTTPClientError, IncompleteReadError)):
        return not _is_local(error)
    return isinstance(error, ResponseParserError) or _raised_in_parsing(error)


def _is_local(error: HTTPClientError | BotocoreConnectionError | IncompleteReadError) -> bool:
    """Whether a file of certificates is missing or useless, or does not know the server's."""
    inner: object = error.kwargs.get("error")
    if isinstance(inner, HTTPError) and inner.args:
        inner = inner.args[0]
    if isinstance(inner, FileNotFoundError | IsADirectoryError | PermissionError):
        return True
    return isinstance(error, SSLError) and any(word in text_of(error) for word in _CERTIFICATES)


_CERTIFICATES = ("CERTIFICATE_VERIFY_FAILED", "NO_CERTIFICATE_OR_CRL_FOUND")


def _cannot_be_sent(error: BaseException | None) -> bool:
    """Whether the request itself is impossible: its URL, or a credential with a line break."""
    return type(error) is HTTPClientError and isinstance(error.kwargs.get("error"), ValueError)


def _raised_in_parsing(error: BaseException) -> bool:
    """Whether an answer was not the JSON that botocore expects: it lets out any exception then."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") == "botocore.parsers" for frame, _ in frames)


def _member(mapping: object, name: str) -> object:
    return mapping.get(name) if isinstance(mapping, Mapping) else None


def error_code(error: ClientError) -> str:
    """ECR's name of the error, e.g. ``"UploadNotFoundException"``."""
    return printable(str(_member(error.response.get("Error"), "Code") or ""), 100)


def message(response: Mapping[str, object]) -> str:
    """What ECR says of an error: its beginning, as it may be a page of HTML."""
    return str(_member(response.get("Error"), "Message") or "")[:_MOST_LETTERS]


def text_of(error: BaseException) -> str:
    """The beginning of ``str(error)``; empty where an exception has no text.

    Called in threads of this library only, where nothing that it catches is the caller's.
    """
    try:
        return str(error)[:_MOST_LETTERS]
    except Exception:  # noqa: BLE001  (of any kind: it is somebody else's code)
        return ""


def reason(error: BaseException) -> str:
    """A failure in one line, without a full stop: its name and its message."""
    name, text, kms = type(error).__name__, text_of(error), ""
    if isinstance(error, BadAnswerError):
        name = "an answer that makes no sense"
    if isinstance(error, ClientError):
        name = error_code(error)
        text = re.sub("<[^>]*>", " ", message(error.response))
        kms = str(error.response.get("kmsError") or "")
    if _cannot_be_sent(error):
        text = "the request cannot be sent"  # its own text may hold a credential
    line = f"{name[:100]}: {masked(text)[:500]}" + (f" (kmsError: {kms[:100]})" if kms else "")
    return " ".join(printable(line).split()).rstrip(".")


def holds_secret(error: BaseException) -> bool:
    """Whether the text of ``error`` may hold a password or a credential."""
    text = text_of(error)
    return _cannot_be_sent(error) or masked(text) != text
