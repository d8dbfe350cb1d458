"""What may be shown of URLs and of exceptions: no password, no credential, no signature.

Nothing is masked by a pattern: a password can look like anything. A URL is taken apart, and only
what is known to be harmless is shown. What repeats a known secret is not shown at all.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from urllib.parse import unquote, urlsplit

_MAX_LENGTH = 2_000  # characters
# Characters. A secret that is cut, wrapped or escaped still has so many in a row, and two unrelated
# texts do not. AWS's secret keys have 40, its tokens hundreds.
_PIECE_LENGTH = 12
_MIN_LENGTH = 8  # characters; a shorter one, as in tests, may be any word
_MAX_COMPARED = 100_000  # characters
# In messages of AWS that repeat a request: its headers, or what its signature was made of.
_REQUEST_MARKS = ("canonical", "x-amz-", "authorization=", "credential=", "signature=")
HIDDEN_URL = "<a URL that is not shown>"


def show_url(url: str) -> str:
    """The scheme, the host and the port of ``url``, or ``HIDDEN_URL``."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return HIDDEN_URL
    rest = f"{parts.path}{parts.query}{parts.fragment}"
    if not parts.scheme.isalnum() or not host or not host.isprintable() or "@" in rest:
        return HIDDEN_URL  # a user name or a password with "/", "?" or "#" in it
    if " " in host or "%" in host:
        return HIDDEN_URL
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}" + ("" if port is None else f":{port}")


def secrets_of(url: str) -> list[str]:
    """The password of ``url``, and what an HTTP header has in its place."""
    user_info = url.partition("://")[2].rpartition("@")[0]
    _, _, password = user_info.partition(":")
    basic = base64.b64encode(unquote(user_info).encode()).decode()
    return [password, unquote(password), basic] if password else []


def show_error(error: BaseException) -> str:
    """The start of the message of ``error``, without what must not be shown; empty if that fails.

    Must be called in a thread of this library, where it cannot catch an exception of a signal
    handler.
    """
    try:
        return _show(error)[:_MAX_LENGTH]
    except Exception:  # noqa: BLE001  (someone else's ``__str__`` may raise anything)
        return ""


def show_text(text: str) -> str:
    """The part of a message of a service that may be shown: no request and no user of a URL."""
    first_line = text.strip().partition("\n")[0]
    for candidate in (text, first_line):
        lower = candidate.lower()
        repeats_request = any(mark in lower for mark in _REQUEST_MARKS)
        if not repeats_request and not ("://" in candidate and "@" in candidate):
            return candidate
    return ""


def repeats(text: str, secrets: Iterable[str]) -> bool:
    """Whether ``text`` has one of ``secrets``, or 12 or more of its characters in a row."""
    for secret in secrets:
        length = min(len(secret), _PIECE_LENGTH)
        if length >= _MIN_LENGTH and not _pieces(text, length).isdisjoint(_pieces(secret, length)):
            return True
    return False


def _pieces(text: str, length: int) -> set[str]:
    return {text[start : start + length] for start in range(len(text) - length + 1)}


def has_secret(error: BaseException, secrets: Iterable[str] = ()) -> bool:
    """Whether a traceback of ``error`` might show what ``show_error`` leaves out, or a secret."""
    try:
        return any(_has_secret(link, secrets) for link in _chain(error))
    except Exception:  # noqa: BLE001  (as above)
        return True


def _has_secret(error: BaseException, secrets: Iterable[str]) -> bool:
    text = str(error)
    if show_text(text) != text or any(map(_may_have_secret, _urls_of(error))):
        return True
    return len(text) > _MAX_COMPARED or repeats(text, secrets)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """``error``, and those that a traceback shows with it."""
    seen: set[int] = set()
    linked: list[BaseException | None] = [error]
    while linked:
        link = linked.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            yield link
            linked += (link.__cause__, link.__context__)


def _urls_of(error: BaseException) -> list[str]:
    kwargs = getattr(error, "kwargs", None)
    items = kwargs.items() if isinstance(kwargs, dict) else ()
    return [value for name, value in items if str(name).endswith("url") and isinstance(value, str)]


def _may_have_secret(url: str) -> bool:
    """Whether a URL has more than a scheme, a host and a port."""
    return show_url(url) != url.rstrip("/")


def _show(error: BaseException) -> str:
    kwargs, form = getattr(error, "kwargs", None), getattr(error, "fmt", None)
    if not isinstance(kwargs, dict) or not isinstance(form, str):
        return show_text(str(error)[:_MAX_LENGTH])
    # An exception of botocore: its message is made of these.
    return form.format(**{name: _show_value(name, value) for name, value in kwargs.items()})


def _show_value(name: str, value: object) -> str:
    if name.endswith("url") and isinstance(value, str):
        return show_url(value)
    if isinstance(value, BaseException):
        return _show(value) or type(value).__name__
    return show_text(str(value)[:_MAX_LENGTH])
