"""Bytes that are counted while they leave."""

from __future__ import annotations

from botocore.config import Config
from command_line import MIB
from helpers import random_bytes

from ecr_parts import LayerUploader
from ecr_parts._command.in_flight import count_parts
from ecr_parts.testing import LocalECR


class Recorder:
    def __init__(self) -> None:
        self.sent: dict[object, list[int]] = {}
        self.ended = 0

    def begin_part(self, request: object) -> None:
        self.sent.setdefault(request, [])

    def send(self, request: object, size: int) -> None:
        self.sent[request].append(size)

    def end_part(self, request: object) -> None:
        assert request in self.sent
        self.ended += 1

    @property
    def total(self) -> int:
        return sum(sum(sizes) for sizes in self.sent.values())


def test_counts_the_bytes_of_parts_only(ecr: LocalECR) -> None:
    client, recorder = ecr.client(), Recorder()
    uploader = LayerUploader(client, "demo")
    count_parts(client, recorder)
    uploader.upload(random_bytes(6 * MIB))
    assert 6 * MIB <= recorder.total < 6 * MIB + 1_000  # bytes of the parameters
    assert recorder.ended == 2
    assert max(max(sizes) for sizes in recorder.sent.values()) < MIB / 2


def test_calls_that_are_not_of_the_library_are_not_counted(ecr: LocalECR) -> None:
    client, recorder = ecr.client(), Recorder()
    session = LayerUploader(client, "demo").initiate()
    count_parts(client, recorder)
    client.upload_layer_part(
        repositoryName="demo", uploadId=session.upload_id, partFirstByte=0, partLastByte=0,
        layerPartBlob=b"a",
    )  # fmt: skip
    assert recorder.sent == {}


def test_part_that_botocore_sends_again_is_counted_again(ecr: LocalECR) -> None:
    client = ecr.client(config=Config(retries={"mode": "standard", "total_max_attempts": 2}))
    recorder = Recorder()
    uploader = LayerUploader(client, "demo")
    count_parts(client, recorder)
    ecr.fail("UploadLayerPart", "request_lost")
    uploader.upload(random_bytes(5 * MIB))
    assert 10 * MIB <= recorder.total < 10 * MIB + 1_000
