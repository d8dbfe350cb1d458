"""The uploader against servers and stubs that somebody else wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.config import Config
from botocore.stub import Stubber
from helpers import PATIENT, bytes_of, digest_of, path_to
from moto import mock_aws
from moto.server import ThreadedMotoServer

from ecr_parts import LayerUploader, UploadedLayer, UploadSession

MIB = 1024 * 1024
BLOB = bytes_of(21 * MIB + 1)  # moto answers parts of 20 MiB
DIGEST = digest_of(BLOB)
NAMES = {"registryId": "012345678910", "repositoryName": "demo", "uploadId": "u-1"}


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def credentials() -> dict[str, Any]:
    return {
        "region_name": "us-east-1",
        "aws_access_key_id": "testing",
        "aws_secret_access_key": "testing",
    }


@pytest.mark.parametrize("retries", [{"total_max_attempts": 1}, None], ids=["off", "on"])
def test_motos_server(retries: Any, moto_url: str, tmp_path: Path) -> None:
    config = Config(proxies={}, retries=retries)
    client: Any = botocore.session.Session().create_client(
        "ecr", endpoint_url=moto_url, config=config, **credentials()
    )
    repository = f"demo-{bool(retries)}".lower()
    client.create_repository(repositoryName=repository)
    uploader = LayerUploader(client, repository, retrying=PATIENT)
    heard: list[int] = []

    for source in (path_to(BLOB, tmp_path), iter([BLOB[:-5], BLOB[-5:]])):
        layer = uploader.upload(source, check_existing=False, progress=heard.append)
        assert layer == UploadedLayer(DIGEST, len(BLOB), existed=False)
    assert sum(heard) == 2 * len(BLOB)
    assert uploader.upload(BLOB).existed
    assert uploader.missing([DIGEST, digest_of(b"other")]) == {digest_of(b"other")}

    # An older copy of a session: moto has refused the part, and tells where it stands.
    session = uploader.initiate()
    old = session.to_json()
    uploader.upload_part(session, BLOB[: 10 * MIB])
    resumed = UploadSession.from_json(old)
    uploader.upload_part(resumed, BLOB[: 5 * MIB])
    assert resumed.next_byte == 10 * MIB


@mock_aws
def test_moto_in_process_with_a_boto3_client() -> None:
    import boto3

    client = boto3.client("ecr", **credentials())
    client.create_repository(repositoryName="demo")

    layer = LayerUploader(client, "demo").upload(BLOB)

    assert layer == UploadedLayer(DIGEST, len(BLOB), existed=False)
    assert LayerUploader(client, "demo").upload(BLOB).existed


def test_a_stubber() -> None:
    client = botocore.session.Session().create_client("ecr", **credentials())
    blob = bytes_of(20)
    digest = digest_of(blob)
    asked = {"repositoryName": "demo"}
    with Stubber(client) as stub:
        stub.add_response(
            "batch_check_layer_availability",
            {"layers": [], "failures": []},
            {**asked, "layerDigests": [digest]},
        )
        stub.add_response("initiate_layer_upload", {"uploadId": "u-1", "partSize": 10 * MIB}, asked)
        part = {"partFirstByte": 0, "partLastByte": 19, "layerPartBlob": blob}
        stub.add_response(
            "upload_layer_part",
            {**NAMES, "lastByteReceived": 19},
            {**asked, "uploadId": "u-1", **part},
        )
        stub.add_response(
            "complete_layer_upload",
            {**NAMES, "layerDigest": digest},
            {**asked, "uploadId": "u-1", "layerDigests": [digest]},
        )

        assert LayerUploader(client, "demo").upload(blob).digest == digest
        stub.assert_no_pending_responses()


def test_a_stubbers_error() -> None:
    client = botocore.session.Session().create_client("ecr", **credentials())
    blob = bytes_of(20)
    with Stubber(client) as stub:
        stub.add_response("initiate_layer_upload", {"uploadId": "u-1", "partSize": 10 * MIB})
        stub.add_client_error(
            "upload_layer_part",
            "InvalidLayerPartException",
            modeled_fields={**NAMES, "lastValidByteReceived": 19},
        )
        stub.add_response("complete_layer_upload", {**NAMES, "layerDigest": digest_of(blob)})

        uploader = LayerUploader(client, "demo")
        assert uploader.upload(blob, check_existing=False).digest == digest_of(blob)
