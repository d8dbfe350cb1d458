"""LocalECR refuses invalid arguments at once, and names the argument and its value."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from inspect import signature
from typing import Any, cast

import pytest

from ecr_parts import Limits
from ecr_parts._base.validation import short_repr
from ecr_parts.testing import LocalECR, Registry, Unknowns

HUGE = 10**400  # too large for a float
NO_INT: list[Any] = [None, "1", 1.0, True, [], math.nan]
NO_COUNT = [*NO_INT, 0, -1, HUGE]
NO_SECONDS: list[Any] = [
    None,
    "1",
    True,
    [],
    1j,
    -1,
    -0.1,
    math.nan,
    math.inf,
    -math.inf,
    HUGE,
    1e300,
]


class Ambiguous:
    """Like an array of NumPy: it can be compared, but the result has no truth value."""

    def __eq__(self, other: object) -> Any:
        return self

    def __hash__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        raise ValueError("ambiguous")

    def __repr__(self) -> str:
        return "Ambiguous"


INVALID: dict[str, tuple[Callable[..., object], list[Any]]] = {
    "slow": (LocalECR, NO_SECONDS),
    "processing_time": (LocalECR, NO_SECONDS),
    "port": (LocalECR, [*NO_INT, -1, 65_536, HUGE]),
    "part_size": (LocalECR, NO_COUNT[1:]),
    "limits": (LocalECR, [5, "ecr", {}, Limits, Unknowns()]),
    "unknowns": (LocalECR, [5, "ecr", {}, Unknowns, Ambiguous()]),
    "repositories": (
        LocalECR,
        [None, 5, "demo", b"demo", [5], [None], ["Demo"], [""], ["a" * 257], ["demo\n"]],
    ),
    "status": (
        lambda status: LocalECR().respond("PutImage", {}, status=status),
        [*NO_INT, 0, -1, 100, 199, 600, HUGE],
    ),
    "call": (lambda call: LocalECR().fail("PutImage", "slow", call=call), NO_COUNT),
    "times": (lambda times: LocalECR().fail("PutImage", "slow", times=times), NO_COUNT),
    "call of respond": (lambda call: LocalECR().respond("PutImage", {}, call=call), NO_COUNT),
    "operation": (lambda operation: LocalECR().fail(operation, "slow"), [None, 5, [], "Put" * 99]),
    "fault": (lambda fault: LocalECR().fail("PutImage", fault), [None, 5, [], "tired" * 99]),
    "answer": (lambda answer: LocalECR().respond("PutImage", answer), [None, 5, [], "x" * 999]),
    "availability_lag": (Unknowns, [*NO_INT, -1, HUGE]),
    "image_lag": (Unknowns, [*NO_INT, -1, HUGE]),
    "longest_silence": (Unknowns, [*NO_SECONDS[1:], 0]),
    "signature_age": (Unknowns, [*NO_SECONDS[1:], 0]),
    "largest_part": (Unknowns, NO_COUNT[1:]),
    "error_namespace": (Unknowns, [None, 5, b"a", []]),
    **{
        name: (Unknowns, [None, 5, True, False, 0.0, -1.0, "", "typo", [], Ambiguous(), HUGE])
        for name in (
            "nothing_stored",
            "completed_again",
            "missing_layers",
            "broken_part",
            "last_byte_received",
        )
    },
}
"""By argument: what is called with it, and values that are invalid."""


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, (_, values) in INVALID.items() for value in values],
    ids=lambda value: short_repr(value)[:20],
)
def test_names_invalid_argument_and_its_value(name: str, value: Any) -> None:
    name, function = name.partition(" ")[0], INVALID[name][0]
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b") as raised:
        function(**{name: value})
    (shown,) = value if isinstance(value, list) and value else [value]
    assert short_repr(shown) in str(raised.value)
    assert len(str(raised.value)) < 1_000


def test_every_argument_is_tested() -> None:
    arguments = {*signature(LocalECR).parameters, *signature(Unknowns).parameters}
    assert arguments <= set(INVALID)


def test_registry_checks_its_arguments_too() -> None:
    for name in ("limits", "part_size", "unknowns", "repositories"):
        with pytest.raises(TypeError, match=name):
            Registry(**cast("Any", {name: 5j}))


def test_accepts_ints_and_floats_as_seconds() -> None:
    with LocalECR(slow=0, processing_time=1_000_000, unknowns=Unknowns(longest_silence=1e6)) as ecr:
        ecr.client().initiate_layer_upload(repositoryName="demo")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--port", "-1"), ("--port", "65536"), ("--port", "9" * 5_000), ("--port", "1.5")]
    + [("--slow", value) for value in ("nan", "-1", "inf", "1e300", "x")],
)
def test_command_names_invalid_option(option: str, value: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ecr_parts.testing", option, value],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    message = done.stderr.splitlines()[-1]
    assert f"argument {option}: must be " in message
    assert len(message) < 1_000
