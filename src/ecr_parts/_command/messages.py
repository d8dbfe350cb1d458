"""What the command says while it runs: what the library logs, in the words of a user.

The library's log lines are for programs: they name operations, upload IDs and exceptions. A person
who pushes an image wants to know which layer it is about, and whether to do something.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

from ecr_parts._command.progress import amount
from ecr_parts._images.observer import Summary
from ecr_parts._upload.current import current_layer

_OPERATIONS = {
    "BatchCheckLayerAvailability": "asking which layers ECR has",
    "CompleteLayerUpload": "completing the layer",
    "InitiateLayerUpload": "starting the upload",
    "PutImage": "putting a manifest",
    "UploadLayerPart": "sending a part",
}
_REASONS = {
    "AttemptTimeoutError": "ECR took too long to answer",
    "ConnectTimeoutError": "ECR cannot be reached",
    "ConnectionClosedError": "the connection was lost",
    "EndpointConnectionError": "ECR cannot be reached",
    "HTTPClientError": "the connection was lost",
    "ProxyConnectionError": "the proxy cannot be reached",
    "ReadTimeoutError": "ECR did not answer",
    "ServerException": "ECR had an internal error",
    "ThrottlingException": "ECR asks for fewer calls a second",
    "malformed answer": "the answer cannot be read",
}
"""By the name of an error: why an attempt has failed. The error has its message, if it comes to
that."""


def describe(summary: Summary) -> str:
    """What is about to be sent, in words."""
    text = f"{count_layers(summary.layers)}, {amount(summary.size)}"
    if summary.to_compress:
        all_of_them = summary.to_compress == summary.layers
        which = "" if all_of_them else f"{summary.to_compress:,} of "
        verb = "is" if summary.to_compress == 1 else "are"
        return f"{text}, {which}which {verb} compressed before being sent"
    if summary.to_prepare:
        return text
    if not summary.missing_size:
        return f"{text}, all of which ECR has already"
    if summary.missing_size == summary.size:
        return f"{text}, which ECR lacks"
    if not summary.missing:
        return f"{text}, of which ECR lacks only the configuration ({amount(summary.missing_size)})"
    return f"{text}, of which ECR lacks {summary.missing:,} ({amount(summary.missing_size)})"


def count_layers(layers: int) -> str:
    """``"1 layer"``, or ``"2 layers"``."""
    return f"{layers:,} layer{'' if layers == 1 else 's'}"


def message_of(record: logging.LogRecord) -> str | None:
    """What to print for what the library has logged; ``None`` for what nobody need know."""
    phrase = PHRASES.get(str(record.msg))
    arguments = record.args if isinstance(record.args, tuple) else ()
    return record.getMessage() if phrase is None else phrase(*arguments)


def _layer() -> str:
    layer = current_layer()
    if layer is None or layer.digest is None:
        return "the layer"
    return f"layer {layer.digest[:19]}…"


def _repeated(call: Any, attempts: int, description: str, seconds: float) -> str:
    about = _layer() if current_layer() else _OPERATIONS.get(call.operation, call.operation)
    attempt = f"attempt {attempts}: " if attempts > 1 else ""
    return f"{about}: {attempt}{_reason(description)}; trying again in {seconds:.1f} s"


def _sent_ahead(_call: str, description: str) -> str:
    return f"{_layer()}: {_reason(description)}; sending the part again"


def _reason(description: str) -> str:
    name, _, text = description.partition(": ")
    if name == "AttemptTimeoutError":
        return text  # which says how long
    return _REASONS.get(name, description)


def _moved(message: str, action: str, at: str) -> str:
    event = message.partition(": ")[2]
    if match := re.search(r"\((ECR has .*)\)", event):
        event = match[1]
    return _with_separators(f"{_layer()}: {event}; {action}{at}")


def _resumed(_upload_id: str, next_byte: int) -> str:
    layer = current_layer()
    size = "" if layer is None or layer.size is None else f" of {layer.size:,}"
    return f"{_layer()}: continuing at {next_byte:,}{size} bytes"


def _with_separators(text: str) -> str:
    return re.sub(r"\b[0-9]{4,}\b", lambda match: f"{int(match[0]):,}", text)


PHRASES: dict[str, Callable[..., str | None]] = {
    "%s, attempt %d: %s; trying again in %.1f s": _repeated,
    "%s, sent ahead: %s; trying again in its turn": _sent_ahead,
    "sending no more parts ahead: %s": lambda reason: (
        f"from now on, each part is sent after the one before: {_reason(reason)}"
    ),
    "%s; %s%s": _moved,
    "resuming upload %s at byte %d": _resumed,
    "not resuming: the session is for another layer or repository, or no part can follow its last "
    "one": lambda: (
        f"{_layer()}: starting at the beginning, because its saved progress cannot be continued"
    ),
    "starting over (restart %d of %d): %s": lambda number, most, _error: (
        f"{_layer()}: its upload cannot be completed; sending it again (restart {number} of {most})"
    ),
    "%s is complete at ECR, despite %s": lambda _digest, _refusal: f"{_layer()}: ECR has all of it",
    # Questions that need not be answered.
    "cannot check whether %s exists: %s": lambda *_: None,
    "cannot ask for images: %s": lambda *_: None,
    "cannot ask for the tag %s: %s": lambda *_: None,
    "cannot ask whether tags are immutable: %s": lambda *_: None,
}
"""By what is passed to the library's logger."""
