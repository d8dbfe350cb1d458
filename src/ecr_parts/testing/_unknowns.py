"""The switches for what is not known about ECR."""

# No ``from __future__ import annotations`` here; ``ecr_parts._model.layers`` has the reason.

from dataclasses import dataclass, fields
from typing import Literal, get_args, get_origin

from ecr_parts._base.validation import check_int, check_positive, check_seconds, short_repr


@dataclass(frozen=True)
class Unknowns:
    """How ECR behaves where that is not documented: a switch for each open question.

    A client should work with every value of each switch. Raises ``TypeError`` and ``ValueError``
    for other values.
    """

    __module__ = "ecr_parts.testing"

    nothing_stored: Literal[-1, 0, "absent"] = -1
    """``lastValidByteReceived`` of a refused part if nothing of the layer is stored."""
    completed_again: Literal["UploadNotFoundException", "LayerAlreadyExistsException"] = (
        "UploadNotFoundException"
    )
    """The error of a second CompleteLayerUpload of the same upload."""
    missing_layers: Literal["failures", "layers", "failures alone"] = "failures"
    """Where BatchCheckLayerAvailability lists a missing layer: in ``failures``, or in ``layers`` as
    ``UNAVAILABLE``. With ``"failures alone"``, an empty ``layers`` is left out of the answer."""
    availability_lag: int = 0
    """How many times a completed layer is still reported as missing."""
    image_lag: int = 0
    """How many times PutImage still reports a completed layer as missing."""
    broken_part: Literal["nothing", "fragment"] = "nothing"
    """What is stored of a part if the connection breaks while it is sent."""
    last_byte_received: Literal["in the layer", "in the part"] = "in the layer"
    """Where ``lastByteReceived`` counts from. AWS's reference says "in the request"."""
    longest_silence: float | None = None
    """Seconds after which the connection of an incomplete request is closed if nothing arrives;
    ``None`` for never."""
    signature_age: float | None = None
    """Seconds. A request that has arrived later than this after it was signed is refused; ``None``
    for never. By public reports, it is 300 in AWS."""
    largest_part: int | None = None
    """The largest part that is accepted (bytes); ``None`` for that of the limits. AWS's API page
    says 20,971,520, its quotas page 10,485,760."""
    error_namespace: str = ""
    """The part before the ``#`` in an error's ``__type``; if empty, there is no ``#``."""

    def __post_init__(self) -> None:
        for field_ in fields(self):
            choices, value = get_args(field_.type), getattr(self, field_.name)
            known = any(type(value) is type(choice) and value == choice for choice in choices)
            if get_origin(field_.type) is Literal and not known:
                raise ValueError(f"{field_.name} must be one of {choices}, not {short_repr(value)}")
        if not isinstance(self.error_namespace, str):
            raise TypeError(
                f"error_namespace must be a str, not {short_repr(self.error_namespace)}"
            )
        check_int("availability_lag", self.availability_lag, minimum=0)
        check_int("image_lag", self.image_lag, minimum=0)
        for name in ("longest_silence", "signature_age"):
            seconds = getattr(self, name)
            if seconds is not None:
                check_seconds(name, seconds)
                check_positive(name, seconds, "seconds")
        if self.largest_part is not None:
            check_int("largest_part", self.largest_part)
