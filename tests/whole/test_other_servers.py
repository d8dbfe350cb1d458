"""Uploads to moto, as a server and in process, and with botocore's ``Stubber``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.config import Config
from botocore.stub import Stubber
from helpers import NO_WAIT, digest_of, random_bytes, write_layer
from moto import mock_aws
from moto.server import ThreadedMotoServer

from ecr_parts import LayerUploader, Limits, UploadedLayer, UploadSession

UNIT = 100 * 1024  # bytes; a MiB takes memory, and moto has no minimum
LIMITS = Limits(min_part=5 * UNIT, max_part=20 * UNIT, max_parts=100, max_layer=100 * UNIT)
BLOB = random_bytes(21 * UNIT + 1)  # two parts
DIGEST = digest_of(BLOB)
UPLOAD = {"registryId": "012345678910", "repositoryName": "demo", "uploadId": "u-1"}
SESSION = botocore.session.Session()
CREDENTIALS: dict[str, Any] = {
    "region_name": "us-east-1",
    "aws_access_key_id": "testing",
    "aws_secret_access_key": "testing",
}


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def botocore_client(**kwargs: Any) -> Any:
    return SESSION.create_client("ecr", **CREDENTIALS, **kwargs)


@pytest.mark.parametrize(
    "retries",
    [{"total_max_attempts": 1}, None],
    ids=["without botocore's retries", "with botocore's retries"],
)
def test_uploads_to_moto_server(retries: Any, moto_url: str, tmp_path: Path) -> None:
    config = Config(proxies={}, retries=retries)
    client = botocore_client(endpoint_url=moto_url, config=config)
    repository = f"demo-{bool(retries)}".lower()
    client.create_repository(repositoryName=repository)
    uploader = LayerUploader(client, repository, limits=LIMITS, retrying=NO_WAIT)
    progress_calls: list[int] = []

    for source in (write_layer(BLOB, tmp_path), iter([BLOB[:-5], BLOB[-5:]])):
        layer = uploader.upload(source, check_existing=False, progress=progress_calls.append)
        assert layer == UploadedLayer(DIGEST, len(BLOB), existed=False)
    assert sum(progress_calls) == 2 * len(BLOB)
    assert uploader.upload(BLOB).existed
    assert uploader.missing([DIGEST, digest_of(b"other")]) == {digest_of(b"other")}

    # With an outdated session, moto refuses the part and reports the last byte that it has.
    session = uploader.initiate()
    outdated = session.to_json()
    uploader.upload_part(session, BLOB[: 10 * UNIT])
    resumed = UploadSession.from_json(outdated)
    uploader.upload_part(resumed, BLOB[: 5 * UNIT])
    assert resumed.next_byte == 10 * UNIT


@mock_aws
def test_uploads_to_moto_in_process_with_boto3_client() -> None:
    import boto3

    client = boto3.client("ecr", **CREDENTIALS)
    client.create_repository(repositoryName="demo")

    layer = LayerUploader(client, "demo", limits=LIMITS).upload(BLOB)

    assert layer == UploadedLayer(DIGEST, len(BLOB), existed=False)
    assert LayerUploader(client, "demo", limits=LIMITS).upload(BLOB).existed


def test_uploads_with_botocore_stubber() -> None:
    client = botocore_client()
    blob = random_bytes(20)
    digest = digest_of(blob)
    repository = {"repositoryName": "demo"}
    with Stubber(client) as stub:
        stub.add_response(
            "batch_check_layer_availability",
            {"layers": [], "failures": []},
            {**repository, "layerDigests": [digest]},
        )
        stub.add_response(
            "initiate_layer_upload", {"uploadId": "u-1", "partSize": 10 * UNIT}, repository
        )
        part = {"partFirstByte": 0, "partLastByte": 19, "layerPartBlob": blob}
        stub.add_response(
            "upload_layer_part",
            {**UPLOAD, "lastByteReceived": 19},
            {**repository, "uploadId": "u-1", **part},
        )
        stub.add_response(
            "complete_layer_upload",
            {**UPLOAD, "layerDigest": digest},
            {**repository, "uploadId": "u-1", "layerDigests": [digest]},
        )

        assert LayerUploader(client, "demo").upload(blob).digest == digest
        stub.assert_no_pending_responses()


def test_reads_last_valid_byte_from_stubbed_error() -> None:
    client = botocore_client()
    blob = random_bytes(20)
    with Stubber(client) as stub:
        stub.add_response("initiate_layer_upload", {"uploadId": "u-1", "partSize": 10 * UNIT})
        stub.add_client_error(
            "upload_layer_part",
            "InvalidLayerPartException",
            modeled_fields={**UPLOAD, "lastValidByteReceived": 19},
        )
        stub.add_response("complete_layer_upload", {**UPLOAD, "layerDigest": digest_of(blob)})

        uploader = LayerUploader(client, "demo")
        assert uploader.upload(blob, check_existing=False).digest == digest_of(blob)
