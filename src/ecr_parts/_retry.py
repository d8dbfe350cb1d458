"""Which errors are retried, the retry policy, and the recommended client configuration."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable, Mapping
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

from ecr_parts._threads import Waiter
from ecr_parts._validation import mask_passwords, to_printable

_log = logging.getLogger("ecr_parts")
_MAX_TEXT_LENGTH = 2_000  # characters that patterns are matched on: some take quadratic time

CLIENT_CONFIG = Config(
    # This library does the retrying. Set both explicitly: botocore writes its defaults into this
    # shared object.
    retries={"mode": "standard", "total_max_attempts": 1},
    # Seconds without data. Each piece of 256 KiB of a part has this long to be sent.
    connect_timeout=60,
    read_timeout=60,
    tcp_keepalive=True,
)
"""The recommended botocore configuration. Any other works too, but botocore's own retries then
multiply those of this library."""


def default_retrying() -> tenacity.Retrying:
    """The default retry policy: ten attempts a call, over about two minutes.

    The waits are random, at most half a second at first and at most 30 seconds in the end. Adapt
    it with ``default_retrying().copy(wait=…, stop=…, sleep=…)``. It also retries your own ECR
    calls: ``default_retrying()(client.put_image, …)``.
    """
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=30),
        stop=tenacity.stop_after_attempt(10),
        before_sleep=tenacity.before_sleep_log(_log, logging.INFO),
        reraise=True,
    )


default_retrying.__module__ = "ecr_parts"


class Backoff:
    """The attempts of one call, and the waits between them, as the user's policy says.

    Only the stop, wait and sleep of the policy are used, and not its ``__call__``. That would
    catch what the caller's code raises: it acts on a ``TryAgain``, and keeps other exceptions in
    reference cycles, along with every part in their frames.
    """

    def __init__(
        self, retrying: tenacity.BaseRetrying, waiter: Waiter, function: Callable[..., object]
    ) -> None:
        self._retrying = retrying
        self._waiter = waiter
        self._state = tenacity.RetryCallState(retrying, function, (), {})

    @property
    def attempt(self) -> int:
        """The number of the attempt, from 1."""
        return self._state.attempt_number

    @property
    def seconds(self) -> float:
        """The planned wait."""
        return self._state.upcoming_sleep

    def plan(self, error: Exception) -> None:
        """Ask the policy how long to wait after an attempt that failed with ``error``."""
        self._state.set_exception((type(error), error, error.__traceback__))
        self._state.upcoming_sleep = self._retrying.wait(self._state)

    def gives_up(self) -> bool:
        """Ask the policy whether to make no further attempt."""
        if self._retrying.stop(self._state):
            self._state.outcome = None
            return True
        return False

    def wait(self) -> None:
        """Wait until the next attempt."""
        self._state.next_action = tenacity.RetryAction(self.seconds)
        self._state.idle_for += self.seconds
        self._waiter.heartbeat()
        sleep = self._retrying.sleep
        if sleep is tenacity.nap.sleep:  # it would not wake for the heartbeat
            sleep = self._waiter.sleep
        self._state.prepare_for_next_attempt()
        sleep(self.seconds)


# Sources: the ECR API reference (ServerException), the retry guide of the AWS SDKs (throttling
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


class BadAnswerError(Exception):
    """An answer that lacks a field, as botocore's parse of an HTML page does, or makes no sense."""

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


class AttemptTimeoutError(Exception):
    """An attempt that took longer than ``attempt_timeout``."""

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later."""
    if not isinstance(error, Exception):
        return False
    if isinstance(error, ClientError):
        status = _member(error.response.get("ResponseMetadata"), "HTTPStatusCode")
        # ECR's own errors have a code. botocore reports "400" if the body with it was cut off.
        if error_code(error) in (*_TRANSIENT_CODES, "400"):
            return True
        return isinstance(status, int) and (status in (408, 429) or status >= 500)
    if isinstance(error, (AttemptTimeoutError, BadAnswerError)):
        return error.transient
    if type(error) is HTTPClientError:
        # botocore wraps any unknown exception in it: only those of network and HTTP are transient.
        known = isinstance(error.kwargs.get("error"), (OSError, HTTPException, HTTPError))
        return known and not _cannot_be_sent(error) and not _is_local(error)
    if isinstance(error, (BotocoreConnectionError, HTTPClientError, IncompleteReadError)):
        return not _is_local(error)
    return isinstance(error, ResponseParserError) or _raised_in_parsing(error)


def _is_local(error: HTTPClientError | BotocoreConnectionError | IncompleteReadError) -> bool:
    """Whether the cause is on this machine: a certificate file that is missing or unsuitable."""
    inner: object = error.kwargs.get("error")
    if isinstance(inner, HTTPError) and inner.args:
        inner = inner.args[0]
    if isinstance(inner, FileNotFoundError | IsADirectoryError | PermissionError):
        return True
    return isinstance(error, SSLError) and any(
        word in error_text(error) for word in _CERTIFICATE_ERRORS
    )


_CERTIFICATE_ERRORS = ("CERTIFICATE_VERIFY_FAILED", "NO_CERTIFICATE_OR_CRL_FOUND")


def _cannot_be_sent(error: BaseException | None) -> bool:
    """Whether the request is invalid: a malformed URL, or a credential with a line break."""
    return type(error) is HTTPClientError and isinstance(error.kwargs.get("error"), ValueError)


def _raised_in_parsing(error: BaseException) -> bool:
    """Whether botocore failed to parse an answer. It raises any kind of exception then."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") == "botocore.parsers" for frame, _ in frames)


def _member(mapping: object, name: str) -> object:
    return mapping.get(name) if isinstance(mapping, Mapping) else None


def error_code(error: ClientError) -> str:
    """ECR's error code, e.g. ``"UploadNotFoundException"``."""
    return to_printable(str(_member(error.response.get("Error"), "Code") or ""), 100)


def error_message(response: Mapping[str, object]) -> str:
    """The start of ECR's error message, which may be a whole HTML page."""
    return str(_member(response.get("Error"), "Message") or "")[:_MAX_TEXT_LENGTH]


def error_text(error: BaseException) -> str:
    """The start of ``str(error)``; empty if that fails.

    Only called in threads of this library, so no exception of the caller's is caught here.
    """
    try:
        return str(error)[:_MAX_TEXT_LENGTH]
    except Exception:  # noqa: BLE001  (someone else's ``__str__`` may raise anything)
        return ""


def describe_error(error: BaseException) -> str:
    """The name and the message of an error, in one line without a full stop."""
    name, text, kms = type(error).__name__, error_text(error), ""
    if isinstance(error, BadAnswerError):
        name = "malformed answer"
    if isinstance(error, ClientError):
        name = error_code(error)
        text = re.sub("<[^>]*>", " ", error_message(error.response))
        kms = str(error.response.get("kmsError") or "")
    if _cannot_be_sent(error):
        text = "the request cannot be sent"  # the text of ``error`` may contain a credential
    line = f"{name[:100]}: {mask_passwords(text)[:500]}" + (
        f" (kmsError: {kms[:100]})" if kms else ""
    )
    return " ".join(to_printable(line).split()).rstrip(".")


def may_contain_secret(error: BaseException) -> bool:
    """Whether the text of ``error`` may contain a password or a credential."""
    text = error_text(error)
    return _cannot_be_sent(error) or mask_passwords(text) != text
