"""LocalECR: a strict ECR on loopback for tests, with faults to inject."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # at run time, each name is imported when it is first used
    from ecr_parts.testing._faults import Fault
    from ecr_parts.testing._local_ecr import LocalECR
    from ecr_parts.testing._parameters import EcrError
    from ecr_parts.testing._registry import Registry
    from ecr_parts.testing._service import Call
    from ecr_parts.testing._unknowns import Unknowns

__all__ = ["Call", "EcrError", "Fault", "LocalECR", "Registry", "Unknowns"]

_MODULE_OF = {
    "Call": "_service",
    "EcrError": "_parameters",
    "Fault": "_faults",
    "LocalECR": "_local_ecr",
    "Registry": "_registry",
    "Unknowns": "_unknowns",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return __all__
