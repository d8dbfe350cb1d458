"""An uploader against LocalECR's model in process: no socket, no clock, a seed decides all."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError
from helpers import PATIENT, SMALL, SOURCES, bytes_of, digest_of

from ecr_parts import EcrPartsError, LayerUploader, UploadedLayer
from ecr_parts.service import Answer
from ecr_parts.testing import Fault, Registry, Unknowns
from ecr_parts.testing.faults import Faults, answer

OPERATIONS = {
    "BatchCheckLayerAvailability": "batch_check_layer_availability",
    "InitiateLayerUpload": "initiate_layer_upload",
    "UploadLayerPart": "upload_layer_part",
    "CompleteLayerUpload": "complete_layer_upload",
}
URL = "http://model"


@dataclass
class ModelClient:
    """A client for the model: raises what botocore raises, for the same reasons."""

    registry: Registry
    faults: Faults = field(default_factory=Faults)
    calls: list[tuple[str, str]] = field(default_factory=list)

    def _call(self, operation: str, parameters: dict[str, object]) -> Answer:
        fault = self.faults.next(operation)
        reply = answer(self.registry, operation, parameters, fault)
        self.calls.append((operation, reply.outcome))
        if reply.delivery in ("lost", "reset", "request_lost"):
            raise ConnectionClosedError(endpoint_url=URL)
        if reply.delivery == "slow":
            raise ReadTimeoutError(endpoint_url=URL)
        if reply.delivery == "garbled":
            bytes(range(128, 256)).decode()
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


def random_unknowns(rng: random.Random) -> Unknowns:
    return Unknowns(
        nothing_stored=rng.choice((-1, 0, "absent")),
        completed_again=rng.choice(("UploadNotFoundException", "LayerAlreadyExistsException")),
        missing_layers=rng.choice(("failures", "layers")),
        availability_lag=rng.choice((0, 0, 1, 2)),
    )


def random_faults(rng: random.Random, faults: Faults) -> list[tuple[str, Fault, int, int]]:
    """Up to six faults; none of those that nobody can get over."""
    possible = [f for f in get_args(Fault) if f not in ("access_denied", "expired_token")]
    planned = []
    for _ in range(rng.randint(0, 6)):
        operation = rng.choice((*OPERATIONS, "UploadLayerPart", "UploadLayerPart"))
        fault = rng.choice(possible)
        if fault == "stored_in_part":
            operation = "UploadLayerPart"
        plan = (operation, fault, rng.randint(1, 12), rng.randint(1, 3))
        faults.fail(plan[0], plan[1], call=plan[2], times=plan[3])
        planned.append(plan)
    return planned


@dataclass
class Outcome:
    """How a simulated upload ended."""

    seed: int
    kind: str
    story: str
    layer: UploadedLayer | None
    error: EcrPartsError | None


def simulate(seed: int, directory: Path) -> Outcome:
    """One upload of random bytes, from a random source, through random faults.

    Raises ``AssertionError`` for a wrong layer, a wrong sum of progress, an error that is none
    of the library's, or more calls than any upload may make.
    """
    rng = random.Random(seed)
    blob = bytes_of(rng.choice((1, 3, 4, 8, 9, 16, 17, rng.randint(1, 200))), seed)
    kind = rng.choice(list(SOURCES))
    unknowns = random_unknowns(rng)
    client = ModelClient(Registry(["demo"], limits=SMALL, part_size=8, unknowns=unknowns))
    planned = random_faults(rng, client.faults)
    options = {
        "digest": digest_of(blob) if rng.random() < 0.5 else None,
        "size": len(blob) if rng.random() < 0.5 else None,
        "check_existing": rng.random() < 0.5,
    }
    story = f"seed {seed}: {len(blob)} bytes, {kind}, {options}, {unknowns}, {planned}"
    heard: list[int] = []
    uploader = LayerUploader(client, "demo", limits=SMALL, retrying=PATIENT)
    try:
        layer = uploader.upload(
            SOURCES[kind](blob, directory, rng),
            progress=heard.append,
            **options,  # type: ignore[arg-type]  # a dict of the three of them
        )
    except EcrPartsError as error:
        check_store(client, blob, story)
        return Outcome(seed, kind, story, None, error)
    except Exception as error:
        raise AssertionError(f"{story}: an error of nobody's: {error!r}") from error
    check_store(client, blob, story)
    assert (layer.digest, layer.size) == (digest_of(blob), len(blob)), story
    assert digest_of(blob) in client.registry.repositories["demo"].layers, story
    assert sum(heard) == len(blob), f"{story}: progress {heard}"
    return Outcome(seed, kind, story, layer, None)


def check_store(client: ModelClient, blob: bytes, story: str) -> None:
    layers = client.registry.repositories["demo"].layers
    assert all(b"".join(layer.blobs) == blob for layer in layers.values()), story
    assert len(client.calls) < 400, f"{story}: {len(client.calls)} calls"
