"""ECR without HTTP: a registry, its faults, and the calls so far. For several threads."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from ecr_parts.testing._body import Blob, parse_fragment
from ecr_parts.testing._faults import Effect, Faults, Reply, answer
from ecr_parts.testing._parameters import EcrError
from ecr_parts.testing._pull import PullAnswer, PullRequest, pull
from ecr_parts.testing._registry import Registry
from ecr_parts.testing._unknowns import Unknowns

_DATE = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True)
class Call:
    """A call that reached LocalECR."""

    __module__ = "ecr_parts.testing"

    operation: str
    first_byte: int | None
    """The first byte of the part, for UploadLayerPart; ``None`` if its request was cut off."""
    last_byte: int | None
    """The last byte of the part, inclusive."""
    outcome: str
    """``"ok"``, the fault that hit the call, the code of ECR's error, or ``"replaced"`` for an
    answer of ``LocalECR.respond``."""


class Service:
    """Answers requests, as the faults that are planned for them prescribe."""

    def __init__(
        self, registry: Registry, unknowns: Unknowns, *, slow: float, processing_time: float
    ) -> None:
        self.registry = registry
        self.unknowns = unknowns
        self.calls: list[Call] = []
        self.lock = threading.Lock()
        """To be held while the registry or the faults are used."""
        self.stopped = threading.Event()
        """Set when the server stops. Then nothing waits any more."""
        self.faults = Faults()
        self._slow = slow
        self._processing_time = processing_time
        self._incomplete: Counter[str] = Counter()
        """By operation: the number of requests that are being received."""

    def begin_request(self, operation: str) -> bool:
        """Whether the connection breaks in the middle of the request."""
        with self.lock:
            # Calls are counted when they are complete, because a client may break one off.
            if not self._incomplete[operation] and self.faults.peek(operation) == "reset":
                self.faults.next(operation)
                return True
            self._incomplete[operation] += 1
            return False

    def end_request(self, operation: str, *, complete: bool) -> Effect | None:
        """What is planned for a request that ``begin_request`` let through."""
        with self.lock:
            self._incomplete[operation] -= 1
            return self.faults.next(operation) if complete else None

    def check_signature(self, signed: str) -> EcrError | None:
        """The error if a request that has just arrived was ``signed`` too long ago.

        ``signed`` is its ``X-Amz-Date``. The wording is that of public reports:
        https://github.com/docker/for-win/issues/203
        """
        seconds = self.unknowns.signature_age
        if seconds is None:
            return None
        now = datetime.now(timezone.utc)
        try:
            signed_at = datetime.strptime(signed, _DATE).replace(tzinfo=timezone.utc)
        except ValueError:
            signed_at = now  # it is not signed
        if now.replace(microsecond=0) - signed_at <= timedelta(seconds=seconds):
            return None
        return EcrError(
            "InvalidSignatureException",
            f"Signature expired: {signed} is now earlier than "
            f"{now - timedelta(seconds=seconds):{_DATE}} ({now:{_DATE}} - {seconds / 60:g} min.)",
        )

    def keep_fragment(self, body: Blob) -> None:
        """Store what arrived before a connection broke, if ``broken_part`` is ``"fragment"``."""
        if self.unknowns.broken_part == "fragment":
            with self.lock, suppress(EcrError):  # it may be another call, or at the wrong byte
                self.registry.call("UploadLayerPart", parse_fragment(body))

    def answer(
        self,
        operation: str,
        parameters: dict[str, object],
        planned: Effect | None,
        *,
        public: bool,
        endpoint_url: str,
    ) -> Reply:
        """Answer a call. ``endpoint_url`` is where the URLs in the answer lead to."""
        if operation == "UploadLayerPart" and self._processing_time:
            self.stopped.wait(self._processing_time)
        with self.lock:
            reply = answer(
                self.registry,
                operation,
                parameters,
                planned,
                public=public,
                endpoint_url=endpoint_url,
                error_namespace=self.unknowns.error_namespace,
            )
            first, last = parameters.get("partFirstByte"), parameters.get("partLastByte")
            self.calls.append(
                Call(
                    operation,
                    first if isinstance(first, int) else None,
                    last if isinstance(last, int) else None,
                    reply.outcome,
                )
            )
        if reply.delivery == "slow":
            self.stopped.wait(self._slow)
        return reply

    def pull(self, request: PullRequest) -> PullAnswer:
        """Answer a request to the registry's API."""
        with self.lock:
            return pull(self.registry.repositories, request)
