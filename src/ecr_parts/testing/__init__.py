"""A strict ECR for tests, with every fault a network has: for your tests too."""

from ecr_parts.testing.faults import Fault
from ecr_parts.testing.model import EcrError, Registry, Unknowns
from ecr_parts.testing.server import Call, LocalECR

__all__ = ["Call", "EcrError", "Fault", "LocalECR", "Registry", "Unknowns"]
