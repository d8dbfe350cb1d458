"""What ``--debug`` prints: the log of the library and of botocore, and tracebacks, no secrets.

botocore logs requests with their headers, what signatures are made of, and answers, which may have
credentials. So only those of its loggers are shown that say what the command needs to know, its
requests only by their operation and host, and no line that may have a secret.
"""

from __future__ import annotations

import logging
import os
import traceback
from typing import Any

from botocore.client import BaseClient

from ecr_parts._base.redaction import repeats, secrets_of, show_text, show_url
from ecr_parts._base.validation import to_printable
from ecr_parts._wire.api import endpoint_url, loaded_secrets

_LOGGERS = (
    "ecr_parts",
    "botocore.client",
    "botocore.configprovider",
    "botocore.credentials",
    "botocore.endpoint",
    "botocore.httpsession",
    "botocore.regions",
    "botocore.retries",
    "botocore.tokens",
)
_WITH_REQUEST = {
    "Making request for %s with params: %s": "calling {0.name}",
    "Sending http request: %s": "sending {0.method} to {1}",
}
"""Messages that have a request as an argument, and what is shown of it."""
_SECRET_VARIABLES = ("SECRET", "TOKEN", "PASSWORD")
_MAX_LENGTH = 2_000  # characters of a line
_NOT_SHOWN = "(not shown: this may contain a credential)"


class Redactor:
    """Removes lines that may have a secret."""

    def __init__(self) -> None:
        self.client: BaseClient | None = None
        """Its credentials are secrets, too."""

    def clean(self, text: str) -> str:
        """``text`` without what must not be shown, and without control characters."""
        secrets = self._secrets()
        return "\n".join(self._clean_line(line, secrets) for line in text.splitlines())

    def _clean_line(self, line: str, secrets: list[str]) -> str:
        start = line[: 2 * _MAX_LENGTH]
        if show_text(start) != start or repeats(start, secrets):
            return _NOT_SHOWN
        return to_printable(start, _MAX_LENGTH)

    def _secrets(self) -> list[str]:
        secrets: list[str] = []
        if self.client is not None:
            secrets = loaded_secrets(self.client) + secrets_of(endpoint_url(self.client))
        for name, value in os.environ.items():
            if name.upper().startswith("AWS_") and any(part in name for part in _SECRET_VARIABLES):
                secrets.append(value)
            secrets += secrets_of(value)
        return secrets


def debug_text(record: logging.LogRecord, redactor: Redactor) -> str | None:
    """What is shown of a log record; ``None`` for nothing."""
    if not any(record.name == name or record.name.startswith(f"{name}.") for name in _LOGGERS):
        return None
    form = _WITH_REQUEST.get(str(record.msg))
    if form is not None:
        request: Any = record.args[0]  # type: ignore[index]  # both have arguments
        text = form.format(request, show_url(str(getattr(request, "url", ""))))
    else:
        text = record.getMessage()
    lines = f"{record.name}: {text}"
    if record.exc_info and record.exc_info[1] is not None:
        lines += f"\n{format_traceback(record.exc_info[1])}"
    return redactor.clean(lines)


def format_traceback(error: BaseException) -> str:
    """The traceback of an error and of its causes."""
    return "".join(traceback.format_exception(error)).rstrip()
