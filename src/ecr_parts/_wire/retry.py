"""Which errors are retried, the retry policy, and the recommended client configuration."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable, Iterable, Mapping
from http.client import HTTPException
from typing import Any, cast

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

from ecr_parts._base.redaction import has_secret, show_error, show_text
from ecr_parts._base.threads import Waiter
from ecr_parts._base.validation import to_printable
from ecr_parts._version import __version__

_log = logging.getLogger("ecr_parts")
_MAX_TEXT_LENGTH = 2_000  # characters; some patterns below take quadratic time
_LOOKUP_OF_CODE = "_add_modeled_error_fields"  # in botocore
_CERTIFICATE_ERRORS = ("CERTIFICATE_VERIFY_FAILED", "NO_CERTIFICATE_OR_CRL_FOUND")
# References: the ECR API reference (ServerException), the retry guide of the AWS SDKs (throttling
# codes), and answers of ECR in public reports (ThrottlingException).
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

CLIENT_CONFIG = Config(
    # This library retries. Set both explicitly, because botocore writes its defaults into this
    # shared object.
    retries={"mode": "standard", "total_max_attempts": 1},
    # Seconds without data. Each piece of a part must be sent within this time.
    connect_timeout=60,
    read_timeout=60,
    tcp_keepalive=True,
    # Two for each layer of ``upload_many``: one request is sent while another is processed.
    max_pool_connections=50,
    user_agent_extra=f"ecr-parts/{__version__}",
)
"""The recommended botocore configuration. Any other works too, but botocore's own retries then
multiply those of this library."""


def default_retrying() -> tenacity.Retrying:
    """The default retry policy: up to ten attempts per call, over about two minutes at most.

    The waits are random: up to half a second at first, up to 30 seconds in the end, and a minute
    in total on average. Change it with ``default_retrying().copy(wait=…, stop=…, sleep=…)``. It can
    also retry your own ECR calls: ``default_retrying()(client.put_image, …)``.
    """
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=30),
        stop=tenacity.stop_after_attempt(10),
        before_sleep=_log_retry,
        reraise=True,
    )


default_retrying.__module__ = "ecr_parts"


class Backoff:
    """Counts the attempts of one call, and waits between them as the user's policy says.

    Only the stop, wait and sleep of the policy are used, and not its ``__call__``. It would catch
    exceptions of the caller's code: it retries after ``TryAgain``, and keeps others, with every
    part in their frames, in reference cycles.
    """

    def __init__(
        self, retrying: tenacity.BaseRetrying, waiter: Waiter, function: Callable[..., object]
    ) -> None:
        self._retrying = retrying
        self._waiter = waiter
        self._state = tenacity.RetryCallState(retrying, function, (), {})

    @property
    def attempt(self) -> int:
        """The number of the current attempt, from 1."""
        return self._state.attempt_number

    @property
    def seconds(self) -> float:
        """The duration of the planned wait."""
        return self._state.upcoming_sleep

    def plan(self, error: Exception) -> None:
        """Ask the policy how long to wait after an attempt that failed with ``error``."""
        self._state.set_exception((type(error), error, error.__traceback__))
        self._state.upcoming_sleep = self._retrying.wait(self._state)

    def gives_up(self) -> bool:
        """Ask the policy whether this was the last attempt."""
        if self._retrying.stop(self._state):
            self._state.outcome = None  # its frames hold the part
            return True
        return False

    def wait(self) -> None:
        """Wait until the next attempt."""
        self._waiter.heartbeat()
        self._state.idle_for += self.seconds
        self._state.prepare_for_next_attempt()  # drops the error, whose frames hold the part
        sleep = self._retrying.sleep
        if sleep is tenacity.nap.sleep:  # tenacity's default would not call the heartbeat
            sleep = self._waiter.sleep
        sleep(self.seconds)


class BadAnswerError(Exception):
    """ECR's answer is invalid, or lacks a field, for example because it is an HTML page."""

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


class AttemptTimeoutError(Exception):
    """An attempt took longer than ``attempt_timeout``."""

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed if it is repeated."""
    if not isinstance(error, Exception):
        return False
    if isinstance(error, ClientError):
        code = error_code(error)
        status = _member(error.response.get("ResponseMetadata"), "HTTPStatusCode")
        # ECR's own errors have a code. If the body was cut off, botocore uses the HTTP status.
        if code in _TRANSIENT_CODES or code == "400":
            return True
        return isinstance(status, int) and (status in (408, 429) or status >= 500)
    if isinstance(error, (AttemptTimeoutError, BadAnswerError)):
        return error.transient
    if type(error) is HTTPClientError:
        # botocore wraps every unexpected exception in it. Only those of network and HTTP count.
        from_network = isinstance(error.kwargs.get("error"), (OSError, HTTPException, HTTPError))
        return from_network and not _is_invalid_request(error) and not _is_certificate_error(error)
    if isinstance(error, (BotocoreConnectionError, HTTPClientError, IncompleteReadError)):
        return not _is_certificate_error(error)
    return isinstance(error, ResponseParserError) or _raised_in_parsing(error)


def _is_certificate_error(
    error: HTTPClientError | BotocoreConnectionError | IncompleteReadError,
) -> bool:
    """Whether certificates are missing or not trusted, which retrying does not change."""
    inner: object = error.kwargs.get("error")
    if isinstance(inner, HTTPError) and inner.args:  # urllib3 wraps the cause
        inner = inner.args[0]
    if isinstance(inner, FileNotFoundError | IsADirectoryError | PermissionError):
        return True
    return isinstance(error, SSLError) and any(
        name in show_error(error) for name in _CERTIFICATE_ERRORS
    )


def _is_invalid_request(error: BaseException) -> bool:
    """Whether the request is invalid: its URL is malformed, or a credential has a line break."""
    return type(error) is HTTPClientError and isinstance(error.kwargs.get("error"), ValueError)


def _raised_in_parsing(error: BaseException) -> bool:
    """Whether botocore failed to parse an answer, which may raise any kind of exception."""
    where = [
        (frame.f_globals.get("__name__"), frame.f_code.co_name)
        for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    # A code that is not a string is parsed, and fails when it is looked up.
    if any(module == "botocore.parsers" or name == _LOOKUP_OF_CODE for module, name in where):
        return True
    # "null" is parsed, and fails in the function that called the parser. Exceptions of event
    # handlers pass through that function, but are not raised there.
    return where[-1:] == [("botocore.endpoint", "_do_get_response")]


def _member(mapping: object, name: str) -> object:
    return mapping.get(name) if isinstance(mapping, Mapping) else None


def error_code(error: ClientError) -> str:
    """ECR's error code, e.g. ``"UploadNotFoundException"``."""
    return to_printable(str(_member(error.response.get("Error"), "Code") or ""), 100)


def error_message(response: Mapping[str, object]) -> str:
    """The start of ECR's error message, which may be an HTML page."""
    return str(_member(response.get("Error"), "Message") or "")[:_MAX_TEXT_LENGTH]


def describe_error(error: BaseException) -> str:
    """The name and the message of an error, in one line without a trailing full stop."""
    name, text, kms = type(error).__name__, show_error(error), ""
    if isinstance(error, BadAnswerError):
        name = "malformed answer"
    if isinstance(error, ClientError):
        name = error_code(error) or "an error without a code"
        text = show_text(re.sub("<[^>]*>", " ", error_message(error.response)))
        kms = str(error.response.get("kmsError") or "")
    if _is_invalid_request(error):
        text = "the request cannot be sent"  # the text of ``error`` may contain a credential
    line = f"{name[:100]}: {text[:500]}" if text else name[:100]
    if kms:
        line += f" (kmsError: {show_text(kms[:100])})"
    return " ".join(to_printable(line, _MAX_TEXT_LENGTH).split()).rstrip(".")


def may_contain_secret(error: BaseException, secrets: Iterable[str]) -> bool:
    """Whether the text of ``error`` may contain a password or a credential, or has ``secrets``."""
    return _is_invalid_request(error) or has_secret(error, secrets)


def _log_retry(state: tenacity.RetryCallState) -> None:
    error = cast("Any", state.outcome).exception()  # there is one: only exceptions are retried
    _log.info("%s; trying again in %.1f s", describe_error(error), state.upcoming_sleep)
