"""An uploader against LocalECR's model in process: no socket, no clock, a seed decides all."""

from __future__ import annotations

import contextlib
import json
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError
from botocore.parsers import ResponseParserError
from helpers import OPERATIONS, PATIENT, REPLAYABLE, SMALL, SOURCES, bytes_of, digest_of

from ecr_parts import EcrPartsError, LayerSource, LayerUploader, UploadedLayer, UploadSession
from ecr_parts._client import Answer
from ecr_parts.testing import Fault, LocalECR, Registry, Unknowns
from ecr_parts.testing._faults import Faults, answer

URL = "http://model"


class Cut(BaseException):
    """The process ends here, as by SIGKILL: nothing of it may run on."""


@dataclass
class ModelClient:
    """A client for the model: raises what botocore raises, for the same reasons."""

    registry: Registry
    faults: Faults = field(default_factory=Faults)
    calls: list[tuple[str, str]] = field(default_factory=list)
    cut_before: int = 0
    """The number of the call before which the process ends; 0 for none."""
    cut_after: int = 0

    def _call(self, operation: str, parameters: dict[str, object]) -> Answer:
        if len(self.calls) + 1 == self.cut_before:
            self.calls.append((operation, "cut before"))
            raise Cut
        try:
            return self._send(operation, parameters)
        finally:
            if len(self.calls) == self.cut_after:
                raise Cut

    def _send(self, operation: str, parameters: dict[str, object]) -> Answer:
        reply = answer(self.registry, operation, parameters, self.faults.next(operation))
        self.calls.append((operation, reply.outcome))
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
        raise ClientError(response, operation)  # type: ignore[arg-type]  # made by hand

    def batch_check_layer_availability(self, **parameters: object) -> Answer:
        return self._call("BatchCheckLayerAvailability", parameters)

    def initiate_layer_upload(self, **parameters: object) -> Answer:
        return self._call("InitiateLayerUpload", parameters)

    def upload_layer_part(self, **parameters: object) -> Answer:
        return self._call("UploadLayerPart", parameters)

    def complete_layer_upload(self, **parameters: object) -> Answer:
        return self._call("CompleteLayerUpload", parameters)


@dataclass
class HttpClient(ModelClient):
    """The same over real HTTP, with a real botocore client."""

    ecr: LocalECR = field(default_factory=LocalECR)
    real: Any = None

    def _send(self, operation: str, parameters: dict[str, object]) -> Answer:
        try:
            answered: Answer = getattr(self.real, OPERATIONS[operation])(**parameters)
            return answered
        finally:
            self.calls.append((operation, self.ecr.calls[-1].outcome))


def random_unknowns(rng: random.Random) -> Unknowns:
    return Unknowns(
        nothing_stored=rng.choice((-1, 0, "absent")),
        completed_again=rng.choice(("UploadNotFoundException", "LayerAlreadyExistsException")),
        missing_layers=rng.choice(("failures", "layers", "failures alone")),
        availability_lag=rng.choice((0, 0, 1, 2)),
        last_byte_received=rng.choice(("in the layer", "in the layer", "in the part")),
    )


def random_faults(rng: random.Random, faults: Faults) -> list[tuple[str, Fault, int, int]]:
    """Up to six faults; none of those that no retry gets over, or that have no end."""
    left_out = ("access_denied", "expired_token", "answer_drips")
    possible = [fault for fault in get_args(Fault) if fault not in left_out]
    planned = []
    for _ in range(rng.randint(0, 6)):
        operation = rng.choice((*OPERATIONS, "UploadLayerPart", "UploadLayerPart"))
        fault = rng.choice(possible)
        if fault == "stored_in_part":
            operation = "UploadLayerPart"
        plan = (operation, fault, rng.randint(1, 12), rng.randint(1, 3))
        faults.plan(plan[0], plan[1], call=plan[2], times=plan[3])
        planned.append(plan)
    return planned


@dataclass
class Outcome:
    """How a simulated upload ended."""

    kind: str
    story: str
    layer: UploadedLayer | None = None
    error: EcrPartsError | None = None
    struck: int = 0
    """How many calls were hit by a fault."""


class Simulation:
    """Uploads of the same random bytes, from a random source, through random faults.

    Resumable ones are cut by their process's end now and then, and resumed from any copy of what
    was kept; and another process may come in between that has the same checkpoint.

    ``run`` raises ``AssertionError`` for a wrong layer, a wrong sum of progress, an error that is
    none of the library's, more calls than any upload may make, or bytes sent in vain.
    """

    def __init__(self, seed: int, directory: Path, over: HttpClient | None = None) -> None:
        self.rng = rng = random.Random(seed)
        self.directory = directory
        self.blob = bytes_of(rng.choice((1, 3, 4, 8, 9, 16, 17, rng.randint(1, 200))), seed)
        self.kind = rng.choice(list(SOURCES))
        unknowns = random_unknowns(rng)
        registry = Registry(["demo"], limits=SMALL, part_size=8, unknowns=unknowns)
        self.client = ModelClient(registry)
        if over is not None:
            over.ecr.registry = registry
            over.ecr._faults = self.client.faults
            self.client = replace(over, registry=registry, faults=self.client.faults, calls=[])
        planned = random_faults(rng, self.client.faults)
        self.options: dict[str, Any] = {
            "digest": digest_of(self.blob) if rng.random() < 0.5 else None,
            "size": len(self.blob) if rng.random() < 0.5 else None,
            "check_existing": rng.random() < 0.5,
        }
        ways = ("none", "checkpoint", "session") if self.kind in REPLAYABLE else ("none",)
        self.way = rng.choice(ways)
        self.cuts = rng.randint(0, 6) if self.way != "none" else 0
        self.strangers = rng.randint(0, 2) if self.way == "checkpoint" else 0
        self.kept: list[str] = []
        self.checkpoint = directory / "checkpoint"
        self.checkpoint.unlink(missing_ok=True)
        self.story = (
            f"seed {seed}: {len(self.blob)} bytes, {self.kind}, {self.options}, {unknowns}, "
            f"{planned}, {self.way}, {self.cuts} cuts, {self.strangers} strangers"
        )

    def run(self) -> Outcome:
        """Upload until nothing cuts it any more."""
        runs = 0
        while True:
            runs += 1
            calls = len(self.client.calls)
            self.client.cut_before = self.client.cut_after = 0
            if self.cuts:
                self.cuts -= 1
                cut = calls + self.rng.randint(1, 12)
                if self.rng.random() < 0.5:
                    self.client.cut_before = cut
                else:
                    self.client.cut_after = cut
            try:
                outcome = self.upload()
            except Cut:
                self.check()
                continue
            except Exception as error:
                raise AssertionError(f"{self.story}: an error of nobody's: {error!r}") from error
            self.check()
            refused = [c[1] for c in self.client.calls].count("InvalidLayerPartException")
            doubts = sum(
                outcome not in ("ok", "InvalidLayerPartException")
                for _, outcome in self.client.calls
            )
            assert refused <= doubts + runs + 2 * self.strangers, self.story
            outcome.struck = doubts
            return outcome

    def upload(self) -> Outcome:
        """One process's upload."""
        heard: list[int] = []
        stranger_comes = self.rng.randint(1, 20) if self.strangers else 0
        arguments = dict(self.options)
        session: UploadSession | None = None
        if self.way == "checkpoint":
            self.tamper()
            arguments["checkpoint"] = self.checkpoint
        elif self.way == "session":
            uploader = self.uploader()
            kept = self.rng.choice(self.kept) if self.kept else None
            try:
                session = UploadSession.from_json(kept) if kept else uploader.initiate()
            except EcrPartsError as error:
                return Outcome(self.kind, self.story, error=error)
            arguments["session"] = session

        def progress(n: int) -> None:
            nonlocal stranger_comes
            heard.append(n)
            if session is not None and n:
                self.kept.append(session.to_json())
            if self.way == "checkpoint" and self.checkpoint.exists():
                self.kept.append(self.checkpoint.read_text())
            stranger_comes -= 1
            if stranger_comes == 0:
                with contextlib.suppress(EcrPartsError):
                    self.uploader().upload(self.source(), **arguments)

        try:
            layer = self.uploader().upload(self.source(), progress=progress, **arguments)
        except EcrPartsError as error:
            return Outcome(self.kind, self.story, error=error)
        assert (layer.digest, layer.size) == (digest_of(self.blob), len(self.blob)), self.story
        assert digest_of(self.blob) in self.client.registry.repositories["demo"].layers, self.story
        assert sum(heard) == len(self.blob), f"{self.story}: progress {heard}"
        if self.checkpoint.exists():  # somebody else's is left alone
            assert digest_of(b"other") in self.checkpoint.read_text(), self.story
        return Outcome(self.kind, self.story, layer=layer)

    def tamper(self) -> None:
        """Sometimes the checkpoint is an older copy, or gone, or of another layer."""
        chance = self.rng.random()
        if chance < 0.3 and self.kept:
            self.checkpoint.write_text(self.rng.choice(self.kept))
        elif chance < 0.35:
            self.checkpoint.unlink(missing_ok=True)
        elif chance < 0.4 and self.kept:
            self.checkpoint.write_text(
                self.rng.choice(self.kept).replace(digest_of(self.blob), digest_of(b"other"))
            )

    def uploader(self) -> LayerUploader:
        return LayerUploader(self.client, "demo", limits=SMALL, retrying=PATIENT)

    def source(self) -> LayerSource:
        return SOURCES[self.kind](self.blob, self.directory, self.rng)

    def check(self) -> None:
        layers = self.client.registry.repositories["demo"].layers
        assert all(b"".join(layer.blobs) == self.blob for layer in layers.values()), self.story
        assert len(self.client.calls) < 1_000, f"{self.story}: {len(self.client.calls)} calls"


def simulate(seed: int, directory: Path, over: HttpClient | None = None) -> Outcome:
    """The simulation that ``seed`` stands for, in process or over HTTP."""
    return Simulation(seed, directory, over).run()
