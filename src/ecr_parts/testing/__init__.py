"""A strict ECR for tests, with every fault a network has: for your tests too."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # at run time each name is imported when it is first asked for
    from ecr_parts.testing.faults import Fault
    from ecr_parts.testing.model import EcrError, Registry, Unknowns
    from ecr_parts.testing.server import Call, LocalECR

__all__ = ["Call", "EcrError", "Fault", "LocalECR", "Registry", "Unknowns"]


def __getattr__(name: str) -> object:
    for room in ("model", "faults", "server") if name in __all__ else ():
        module = import_module(f"{__name__}.{room}")
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
