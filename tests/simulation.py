"""Deterministic simulation of uploads through faults: the seed determines everything.

The uploader runs against LocalECR's model in this process, without sockets and without a clock, or
against LocalECR over HTTP.
"""

from __future__ import annotations

import contextlib
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, cast, get_args
from unittest.mock import patch

from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError
from botocore.parsers import ResponseParserError
from helpers import (
    NO_WAIT,
    OPERATIONS,
    REPLAYABLE,
    SMALL_LIMITS,
    SOURCES,
    digest_of,
    random_bytes,
    wait_for_threads,
)
from order_proxy import OrderProxy
from typing_extensions import override

from ecr_parts import (
    CLIENT_CONFIG,
    EcrClient,
    EcrPartsError,
    LayerSource,
    LayerUploader,
    UploadedLayer,
    UploadSession,
)
from ecr_parts._wire.answers import Answer
from ecr_parts.testing import EcrError, Fault, LocalECR, Registry, Unknowns
from ecr_parts.testing._faults import Faults, answer

URL = "http://model"
EXPIRED = EcrError("InvalidSignatureException", "Signature expired")


class Cut(BaseException):
    """Ends the simulated process, as SIGKILL does: none of its code may run afterwards."""


@dataclass
class SimulatedClient(ABC):
    """A client that records its calls, and that can end its process before or after one of them."""

    registry: Registry
    cut_before: int = field(default=0, kw_only=True)
    """The number of the call before which the process ends; 0 for none."""
    cut_after: int = field(default=0, kw_only=True)
    """The number of the call after which the process ends; 0 for none."""

    @property
    @abstractmethod
    def client(self) -> EcrClient:
        """The client for ``LayerUploader``."""

    @property
    @abstractmethod
    def calls(self) -> list[tuple[str, str]]:
        """The operation and the outcome of each call so far, in order."""

    @abstractmethod
    def fail(
        self, operation: str, fault: Fault | EcrError, *, call: int = 1, times: int = 1
    ) -> None:
        """Plan a fault or an error, as ``LocalECR.fail`` and ``respond`` do."""


@dataclass
class ModelClient(SimulatedClient):
    """A client of the model in this process. It raises what botocore raises for each fault."""

    faults: Faults = field(default_factory=Faults, kw_only=True)
    recorded: list[tuple[str, str]] = field(default_factory=list, kw_only=True)

    @property
    @override
    def client(self) -> EcrClient:
        return self

    @property
    @override
    def calls(self) -> list[tuple[str, str]]:
        return self.recorded

    @override
    def fail(
        self, operation: str, fault: Fault | EcrError, *, call: int = 1, times: int = 1
    ) -> None:
        self.faults.plan(operation, fault, call=call, times=times)

    def batch_check_layer_availability(self, **parameters: object) -> Answer:
        return self._call("BatchCheckLayerAvailability", parameters)

    def initiate_layer_upload(self, **parameters: object) -> Answer:
        return self._call("InitiateLayerUpload", parameters)

    def upload_layer_part(self, **parameters: object) -> Answer:
        return self._call("UploadLayerPart", parameters)

    def complete_layer_upload(self, **parameters: object) -> Answer:
        return self._call("CompleteLayerUpload", parameters)

    def _call(self, operation: str, parameters: dict[str, object]) -> Answer:
        if len(self.calls) + 1 == self.cut_before:
            self.recorded.append((operation, "cut before"))
            raise Cut
        try:
            return self._send(operation, parameters)
        finally:
            if len(self.calls) == self.cut_after:
                raise Cut

    def _send(self, operation: str, parameters: dict[str, object]) -> Answer:
        reply = answer(self.registry, operation, parameters, self.faults.next(operation))
        self.recorded.append((operation, reply.outcome))
        if reply.delivery in ("lost", "reset", "request_lost"):
            raise ConnectionClosedError(endpoint_url=URL)
        if reply.delivery == "slow":
            raise ReadTimeoutError(endpoint_url=URL)
        if reply.delivery == "garbled":
            raise ResponseParserError("no text")
        if reply.delivery == "cut" and reply.status == 200:
            return {}
        if reply.status == 200:
            body: dict[str, object] = json.loads(reply.body)
            return body
        response: dict[str, Any] = {"Error": {"Code": str(reply.status), "Message": ""}}
        if reply.delivery != "cut" and reply.body.startswith(b"{"):
            response = json.loads(reply.body)
            response["Error"] = {"Code": response["__type"], "Message": response["message"]}
        response["ResponseMetadata"] = {"HTTPStatusCode": reply.status}
        raise ClientError(response, operation)  # type: ignore[arg-type]  # a plain dict


@dataclass
class HttpClient(SimulatedClient):
    """A botocore client of a running LocalECR, which sends parts ahead."""

    ecr: LocalECR = field(kw_only=True)
    botocore_client: Any = field(kw_only=True)
    sent: Iterator[int] = field(default_factory=lambda: count(1), init=False)
    answered: Iterator[int] = field(default_factory=lambda: count(1), init=False)

    def __post_init__(self) -> None:
        events = self.botocore_client.meta.events
        events.register("before-send.ecr", self._before_send)
        events.register("response-received.ecr", self._after_answer)

    @property
    @override
    def client(self) -> EcrClient:
        return cast("EcrClient", self.botocore_client)

    @property
    @override
    def calls(self) -> list[tuple[str, str]]:
        return [(call.operation, call.outcome) for call in self.ecr.calls]

    @override
    def fail(
        self, operation: str, fault: Fault | EcrError, *, call: int = 1, times: int = 1
    ) -> None:
        if isinstance(fault, EcrError):
            self.ecr.respond(operation, fault, call=call, times=times)
        else:
            self.ecr.fail(operation, fault, call=call, times=times)

    def _before_send(self, **_event: object) -> None:
        if next(self.sent) == self.cut_before:
            raise Cut

    def _after_answer(self, **_event: object) -> None:
        if next(self.answered) == self.cut_after:
            raise Cut


def random_unknowns(rng: random.Random) -> Unknowns:
    return Unknowns(
        nothing_stored=rng.choice((-1, 0, "absent")),
        completed_again=rng.choice(("UploadNotFoundException", "LayerAlreadyExistsException")),
        missing_layers=rng.choice(("failures", "layers", "failures alone")),
        availability_lag=rng.choice((0, 0, 1, 2)),
        broken_part=rng.choice(("nothing", "nothing", "fragment")),
        last_byte_received=rng.choice(("in the layer", "in the layer", "in the part")),
        signature_age=rng.choice((None, 300)),  # over HTTP only
    )


def random_faults(rng: random.Random) -> list[tuple[str, Fault | EcrError, int, int]]:
    """The operation, fault, first call and number of calls of up to six faults.

    Faults that no retry overcomes, or that have no end, are left out.
    """
    left_out = ("access_denied", "expired_token", "answer_drips")
    possible = [fault for fault in get_args(Fault) if fault not in left_out]
    possible += [EXPIRED] * 3
    faults: list[tuple[str, Fault | EcrError, int, int]] = []
    for _ in range(rng.randint(0, 6)):
        operation = rng.choice((*OPERATIONS, "UploadLayerPart", "UploadLayerPart"))
        fault = rng.choice(possible)
        if fault == "stored_in_part":
            operation = "UploadLayerPart"
        faults.append((operation, fault, rng.randint(1, 12), rng.randint(1, 3)))
    return faults


@dataclass
class Outcome:
    """How a simulated upload ended."""

    source_kind: str
    """The key of the source in ``helpers.SOURCES``."""
    story: str
    """What was simulated, for the message of a failed assertion."""
    layer: UploadedLayer | None = None
    error: EcrPartsError | None = None
    failed_calls: int = 0
    """How many calls failed, not counting parts refused for a wrong offset."""


class Simulation:
    """Uploads of the same random bytes, from a random source, through random faults.

    If the source can be read again, the process may end at any call. The next one resumes from any
    copy of the session or checkpoint that was saved. Meanwhile, other processes may upload with the
    same checkpoint.

    ``connect`` creates the client, for an ECR that behaves as the given ``Unknowns`` say.

    ``run`` raises ``AssertionError`` if a layer is wrong, if ``progress`` does not add up to the
    layer's size, if an error is not one of this library, if more calls are made than any upload
    needs, or if parts are refused although nothing failed before.
    """

    def __init__(
        self, seed: int, directory: Path, connect: Callable[[Unknowns], SimulatedClient]
    ) -> None:
        self.rng = rng = random.Random(seed)
        self.directory = directory
        self.blob = random_bytes(rng.choice((1, 3, 4, 8, 9, 16, 17, rng.randint(1, 200))), seed)
        self.source_kind = rng.choice(list(SOURCES))
        unknowns = random_unknowns(rng)
        self.client = connect(unknowns)
        faults = random_faults(rng)
        for operation, fault, call, times in faults:
            self.client.fail(operation, fault, call=call, times=times)
        self.options: dict[str, Any] = {
            "digest": digest_of(self.blob) if rng.random() < 0.5 else None,
            "size": len(self.blob) if rng.random() < 0.5 else None,
            "check_existing": rng.random() < 0.5,
        }
        replayable = self.source_kind in REPLAYABLE
        self.resume_from = rng.choice(
            ("none", "checkpoint", "session") if replayable else ("none",)
        )
        self.cuts = rng.randint(0, 6) if self.resume_from != "none" else 0
        self.other_processes = rng.randint(0, 2) if self.resume_from == "checkpoint" else 0
        self.saved_sessions: list[str] = []
        """Every session or checkpoint so far, as JSON."""
        self.checkpoint = directory / "checkpoint"
        self.checkpoint.unlink(missing_ok=True)
        self.story = (
            f"seed {seed}: {len(self.blob)} bytes, {self.source_kind}, {self.options}, {unknowns}, "
            f"{faults}, {self.resume_from}, {self.cuts} cuts, "
            f"{self.other_processes} other processes"
        )

    def run(self) -> Outcome:
        """Run processes until one is not killed."""
        runs = 0
        while True:
            runs += 1
            self.plan_cut()
            try:
                outcome = self.upload()
            except Cut:
                wait_for_threads()  # a part that was sent ahead may still arrive
                self.check()
                continue
            except Exception as error:
                raise AssertionError(f"{self.story}: unexpected error: {error!r}") from error
            self.check()
            outcomes = [outcome for _, outcome in self.client.calls]
            refused = outcomes.count("InvalidLayerPartException")
            outcome.failed_calls = len(outcomes) - outcomes.count("ok") - refused
            allowed = outcome.failed_calls + runs + 2 * self.other_processes
            assert refused <= allowed, self.story
            return outcome

    def plan_cut(self) -> None:
        """End the process before or after one of the next calls, if cuts are left."""
        self.client.cut_before = self.client.cut_after = 0
        if self.cuts:
            self.cuts -= 1
            cut = len(self.client.calls) + self.rng.randint(1, 12)
            if self.rng.random() < 0.5:
                self.client.cut_before = cut
            else:
                self.client.cut_after = cut

    def upload(self) -> Outcome:
        """Upload once, as one process."""
        progress_calls: list[int] = []
        calls_until_other_process = self.rng.randint(1, 20) if self.other_processes else 0
        arguments = dict(self.options)
        session: UploadSession | None = None
        if self.resume_from == "checkpoint":
            self.change_checkpoint()
            arguments["checkpoint"] = self.checkpoint
        elif self.resume_from == "session":
            uploader = self.uploader()
            saved = self.rng.choice(self.saved_sessions) if self.saved_sessions else None
            try:
                session = UploadSession.from_json(saved) if saved else uploader.initiate()
            except EcrPartsError as error:
                return Outcome(self.source_kind, self.story, error=error)
            arguments["session"] = session

        def progress(newly_confirmed: int) -> None:
            nonlocal calls_until_other_process
            progress_calls.append(newly_confirmed)
            if session is not None and newly_confirmed:
                self.saved_sessions.append(session.to_json())
            if self.resume_from == "checkpoint" and self.checkpoint.exists():
                self.saved_sessions.append(self.checkpoint.read_text())
            calls_until_other_process -= 1
            if calls_until_other_process == 0:
                with contextlib.suppress(EcrPartsError):
                    self.uploader().upload(self.source(), **arguments)

        try:
            layer = self.uploader().upload(self.source(), progress=progress, **arguments)
        except EcrPartsError as error:
            return Outcome(self.source_kind, self.story, error=error)
        assert (layer.digest, layer.size) == (digest_of(self.blob), len(self.blob)), self.story
        assert digest_of(self.blob) in self.client.registry.repositories["demo"].layers, self.story
        assert sum(progress_calls) == len(self.blob), f"{self.story}: progress {progress_calls}"
        if self.checkpoint.exists():  # only a checkpoint of another layer is left alone
            assert digest_of(b"other") in self.checkpoint.read_text(), self.story
        return Outcome(self.source_kind, self.story, layer=layer)

    def change_checkpoint(self) -> None:
        """Sometimes replace the checkpoint by an older copy or another layer's, or delete it."""
        chance = self.rng.random()
        if chance < 0.3 and self.saved_sessions:
            self.checkpoint.write_text(self.rng.choice(self.saved_sessions))
        elif chance < 0.35:
            self.checkpoint.unlink(missing_ok=True)
        elif chance < 0.4 and self.saved_sessions:
            saved = self.rng.choice(self.saved_sessions)
            self.checkpoint.write_text(saved.replace(digest_of(self.blob), digest_of(b"other")))

    def uploader(self) -> LayerUploader:
        return LayerUploader(self.client.client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)

    def source(self) -> LayerSource:
        return SOURCES[self.source_kind](self.blob, self.directory, self.rng)

    def check(self) -> None:
        """Check that every completed layer is whole, and that the number of calls is bounded."""
        layers = self.client.registry.repositories["demo"].layers
        assert all(b"".join(layer.blobs) == self.blob for layer in layers.values()), self.story
        assert len(self.client.calls) < 1_000, f"{self.story}: {len(self.client.calls)} calls"


def simulate(seed: int, directory: Path) -> Outcome:
    """Run the simulation of ``seed`` in this process."""

    def connect(unknowns: Unknowns) -> ModelClient:
        return ModelClient(Registry(["demo"], limits=SMALL_LIMITS, part_size=8, unknowns=unknowns))

    return Simulation(seed, directory, connect).run()


def simulate_over_http(seed: int, directory: Path) -> Outcome:
    """Run the simulation of ``seed`` over HTTP, with a botocore client.

    For some seeds, the uplink is slow: every part that can be cut smaller gives up before its
    second piece. Also checks in which order the parts arrive.
    """
    config = CLIENT_CONFIG.merge(Config(proxies={}, read_timeout=0.1))
    too_long = random.Random(seed).choice((0, 0.8))
    with contextlib.ExitStack() as stack:
        uplink = "ecr_parts._wire.uplink"
        stack.enter_context(
            patch.multiple(uplink, _NOT_MEASURED=0, _WINDOW=1e-9, _TOO_LONG=too_long)
        )
        stack.enter_context(patch("ecr_parts._wire.request.PIECE_SIZE", 64))
        proxies = []

        def connect(unknowns: Unknowns) -> HttpClient:
            ecr = LocalECR(
                limits=SMALL_LIMITS,
                part_size=8,
                unknowns=unknowns,
                slow=60,
                processing_time=random.Random(seed).choice((0, 0.002, 0.005)),
            )
            proxy = OrderProxy(stack.enter_context(ecr).endpoint_url)
            proxies.append(stack.enter_context(proxy))
            client = ecr.client(config=config, endpoint_url=proxy.url)
            return HttpClient(ecr.registry, ecr=ecr, botocore_client=client)

        outcome = Simulation(seed, directory, connect).run()
        assert [proxy.too_early for proxy in proxies] == [[]], outcome.story
        return outcome
