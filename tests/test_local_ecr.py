"""LocalECR keeps ECR's rules: asked with a plain botocore client, none of ours in between."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from helpers import bytes_of, digest_of

from ecr_parts import LayerUploader, ServiceError
from ecr_parts.testing import LocalECR, Unknowns

BLOB = bytes_of(20)
DIGEST = digest_of(BLOB)


@pytest.fixture(params=["ecr", "ecr-public"])
def service(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Caller:
    """A plain client for repository ``demo``; a refusal is the error's response."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        try:
            answer = getattr(self.client, method)(**{"repositoryName": "demo", **parameters})
        except ClientError as error:
            answer = {"code": error.response["Error"]["Code"], **error.response}
        del answer["ResponseMetadata"]
        answer.pop("Error", None)
        return dict(answer)

    def initiate(self) -> str:
        return str(self("initiate_layer_upload")["uploadId"])

    def part(self, upload_id: str, first: int, blob: bytes, last: int | None = None) -> Any:
        return self(
            "upload_layer_part",
            uploadId=upload_id,
            partFirstByte=first,
            partLastByte=first + len(blob) - 1 if last is None else last,
            layerPartBlob=blob,
        )

    def complete(self, upload_id: str, *digests: str) -> Any:
        return self("complete_layer_upload", uploadId=upload_id, layerDigests=digests)


@pytest.fixture
def call(ecr: LocalECR, service: str) -> Caller:
    return Caller(ecr.client(service))


def test_a_layer_in_parts(call: Caller, ecr: LocalECR) -> None:
    answer = call("initiate_layer_upload")
    upload_id = answer.pop("uploadId")
    assert answer == {"partSize": 8}
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", upload_id)

    expected = {
        "registryId": "012345678910",
        "repositoryName": "demo",
        "uploadId": upload_id,
    }
    assert call.part(upload_id, 0, BLOB[:16]) == {**expected, "lastByteReceived": 15}
    assert call.part(upload_id, 16, BLOB[16:]) == {**expected, "lastByteReceived": 19}
    assert call.complete(upload_id, DIGEST) == {**expected, "layerDigest": DIGEST}

    assert ecr.layer("demo", DIGEST) == BLOB
    assert call("batch_check_layer_availability", layerDigests=[DIGEST]) == {
        "layers": [
            {
                "layerDigest": DIGEST,
                "layerAvailability": "AVAILABLE",
                "layerSize": 20,
                "mediaType": "application/vnd.docker.image.rootfs.diff.tar",
            }
        ],
        "failures": [],
    }


@pytest.mark.parametrize("first", [0, 7, 9, 16])
def test_a_part_that_does_not_follow_is_refused(first: int, call: Caller) -> None:
    upload_id = call.initiate()
    call.part(upload_id, 0, BLOB[:8])

    assert call.part(upload_id, first, BLOB[:8]) == {
        "code": "InvalidLayerPartException",
        "message": f"First byte of the layer part is {first} instead of 8",
        "registryId": "012345678910",
        "repositoryName": "demo",
        "uploadId": upload_id,
        "lastValidByteReceived": 7,
    }


@pytest.mark.parametrize("nothing", [-1, 0, "absent"])
def test_where_nothing_is_stored(nothing: Any) -> None:
    with LocalECR(unknowns=Unknowns(nothing_stored=nothing)) as ecr:
        call = Caller(ecr.client())
        refusal = call.part(call.initiate(), 8, BLOB)
        assert refusal["message"] == "First byte of the layer part is 8 instead of 0"
        assert refusal.get("lastValidByteReceived", "absent") == nothing


def test_the_largest_part() -> None:
    with LocalECR(unknowns=Unknowns(largest_part=8)) as ecr:
        call = Caller(ecr.client())
        upload_id = call.initiate()
        assert call.part(upload_id, 0, BLOB[:9])["code"] == "InvalidParameterException"
        assert call.part(upload_id, 0, BLOB[:8])["lastByteReceived"] == 7


def test_sizes(call: Caller) -> None:
    upload_id = call.initiate()
    for blob, last in ((b"", 0), (bytes(17), None), (BLOB[:8], 8), (BLOB[:8], 6)):
        assert call.part(upload_id, 0, blob, last)["code"] == "InvalidParameterException"
    assert call.part(upload_id, 0, BLOB[:1])["lastByteReceived"] == 0
    assert call.part(upload_id, 1, BLOB[1:])["code"] == "InvalidParameterException"
    call.part(upload_id, 1, BLOB[1:17])
    assert call.complete(upload_id, digest_of(BLOB[:17])) == {
        "code": "LayerPartTooSmallException",
        "message": "All layer parts except the last part should be at least 5MB",
    }


def test_counts(call: Caller) -> None:
    many = call.initiate()
    for i in range(60):
        call.part(many, i, b"x")
    assert call.part(many, 60, b"x")["code"] == "LimitExceededException"
    large = call.initiate()
    for i in range(31):
        call.part(large, i * 16, bytes(16))
    assert call.part(large, 496, bytes(5))["code"] == "LimitExceededException"
    assert call.part(large, 496, bytes(4))["lastByteReceived"] == 499


def test_an_empty_upload(call: Caller) -> None:
    upload_id = call.initiate()
    refusal = call.complete(upload_id, DIGEST)
    assert refusal["code"] == "EmptyUploadException"
    assert "cannot be completed because it does not have any parts" in refusal["message"]


def test_another_digest(call: Caller) -> None:
    upload_id = call.initiate()
    call.part(upload_id, 0, BLOB[:16])
    assert call.complete(upload_id, DIGEST) == {
        "code": "InvalidLayerException",
        "message": "None of the provided layer digests match the calculated layer digest",
    }
    several = call.complete(upload_id, DIGEST, digest_of(BLOB[:16]))
    assert several["layerDigest"] == digest_of(BLOB[:16])


@pytest.mark.parametrize("again", ["UploadNotFoundException", "LayerAlreadyExistsException"])
def test_a_layer_that_exists_and_an_upload_completed_twice(again: Any) -> None:
    with LocalECR(unknowns=Unknowns(completed_again=again)) as ecr:
        call = Caller(ecr.client())
        first, second = call.initiate(), call.initiate()
        for upload_id in (first, second):
            call.part(upload_id, 0, BLOB)
        assert call.complete(first, DIGEST)["layerDigest"] == DIGEST
        assert call.complete(second, DIGEST)["code"] == "LayerAlreadyExistsException"
        assert call.complete(first, DIGEST)["code"] == again


def test_what_does_not_exist(call: Caller) -> None:
    unknown = "00000000-0000-0000-0000-000000000009"
    assert call.part(unknown, 0, BLOB)["code"] == "UploadNotFoundException"
    assert call.complete(unknown, DIGEST)["code"] == "UploadNotFoundException"
    upload_id = call.initiate()
    for method, parameters in (
        ("initiate_layer_upload", {}),
        ("batch_check_layer_availability", {"layerDigests": [DIGEST]}),
        ("complete_layer_upload", {"uploadId": upload_id, "layerDigests": [DIGEST]}),
    ):
        refusal = call(method, repositoryName="none", **parameters)
        assert refusal["code"] == "RepositoryNotFoundException"
        assert "'none' does not exist in the registry with id '012345678910'" in refusal["message"]


@pytest.mark.parametrize("where", ["failures", "layers", "failures alone"])
def test_availability(where: Any) -> None:
    missing = digest_of(b"missing")
    with LocalECR(unknowns=Unknowns(missing_layers=where, availability_lag=2)) as ecr:
        call = Caller(ecr.client())
        LayerUploader(ecr.client(), "demo").upload(BLOB, check_existing=False)

        def ask(*digests: str) -> Any:
            return call("batch_check_layer_availability", layerDigests=digests)

        for _ in range(2):
            layers = ask(DIGEST).get("layers", [])
            assert [layer["layerAvailability"] for layer in layers] != ["AVAILABLE"]
        assert ask(DIGEST)["layers"][0]["layerAvailability"] == "AVAILABLE"
        assert ("layers" in ask(missing)) == (where != "failures alone")
        if where != "layers":
            assert ask(missing)["failures"][0]["failureCode"] == "MissingLayerDigest"
        else:
            assert ask(missing)["layers"] == [
                {"layerDigest": missing, "layerAvailability": "UNAVAILABLE"}
            ]
        assert ask("sha256:00")["failures"][0]["failureCode"] == "InvalidLayerDigest"
        assert ask(*[DIGEST] * 101)["code"] == "InvalidParameterException"


def test_repositories_are_created(call: Caller, service: str) -> None:
    created = call("create_repository", repositoryName="team/new")["repository"]
    assert created["repositoryName"] == "team/new"
    assert call("initiate_layer_upload", repositoryName="team/new")["uploadId"]
    again = call("create_repository", repositoryName="team/new")
    assert again["code"] == "RepositoryAlreadyExistsException"
    assert call("create_repository", repositoryName="No")["code"] == "InvalidParameterException"


def manifest_of(*layers: str, **extra: Any) -> str:
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"digest": DIGEST, "size": 20, "mediaType": "c"},
            "layers": [{"digest": layer, "size": 20, "mediaType": "l"} for layer in layers],
            **extra,
        }
    )


def test_images(call: Caller, ecr: LocalECR, service: str) -> None:
    LayerUploader(ecr.client(), "demo").upload(BLOB)
    text = manifest_of(DIGEST)
    put = call("put_image", imageManifest=text, imageTag="v1", imageDigest=digest_of(text.encode()))
    image_id = {"imageDigest": digest_of(text.encode()), "imageTag": "v1"}
    assert put["image"]["imageId"] == image_id

    def code(**parameters: Any) -> Any:
        return call("put_image", **{"imageManifest": text, **parameters}).get("code")

    assert code(imageTag="v1") == "ImageAlreadyExistsException"
    assert code() == "ImageAlreadyExistsException"
    assert code(imageTag="v2") is None
    assert code(imageManifest=manifest_of(DIGEST, DIGEST)) is None
    assert code(imageManifest=manifest_of(digest_of(b"x"))) == "LayersNotFoundException"
    assert code(imageDigest=digest_of(b"x")) == "ImageDigestDoesNotMatchException"
    for no_manifest in ("text", "[]"):
        assert code(imageManifest=no_manifest) == "InvalidParameterException"

    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json"}
    known = json.dumps({**index, "manifests": [{"digest": digest_of(text.encode())}]})
    unknown = json.dumps({**index, "manifests": [{"digest": DIGEST}]})
    assert code(imageManifest=unknown) == "ReferencedImagesNotFoundException"
    assert code(imageManifest=known, imageTag="all") is None
    if service == "ecr-public":
        return

    got = call(
        "batch_get_image",
        imageIds=[
            {"imageTag": "v1"},
            {"imageDigest": digest_of(known.encode())},
            {"imageTag": "-"},
        ],
    )
    assert [image["imageManifest"] for image in got["images"]] == [text, known]
    assert [failure["failureCode"] for failure in got["failures"]] == ["ImageNotFound"]


def test_an_immutable_tag(ecr: LocalECR) -> None:
    call = Caller(ecr.client())
    call("create_repository", repositoryName="fixed", imageTagMutability="IMMUTABLE")
    put = {"repositoryName": "fixed", "imageTag": "v1"}
    assert "image" in call("put_image", imageManifest='{"a": 1}', **put)
    refusal = call("put_image", imageManifest='{"a": 2}', **put)
    assert refusal["code"] == "ImageTagAlreadyExistsException"


def test_other_operations_are_refused(ecr: LocalECR, call: Caller) -> None:
    refused = call("describe_images")
    assert refused["code"] == "UnknownOperationException"


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("Other.UploadLayerPart", b"{}"),
        ("AmazonEC2ContainerRegistry_V20150921.UploadLayerPart", b"no json"),
        ("AmazonEC2ContainerRegistry_V20150921.UploadLayerPart", b"[]"),
        ("AmazonEC2ContainerRegistry_V20150921.UploadLayerPart", b'{"layerPartBlob": "%%%%"}'),
        ("AmazonEC2ContainerRegistry_V20150921.InitiateLayerUpload", b'{"repositoryName": 5}'),
        ("AmazonEC2ContainerRegistry_V20150921.InitiateLayerUpload", b'{"a": ' + b"[" * 100_000),
        (
            "AmazonEC2ContainerRegistry_V20150921.InitiateLayerUpload",
            b'{"repositoryName": "\\ud800"}',
        ),
        (
            "AmazonEC2ContainerRegistry_V20150921.BatchCheckLayerAvailability",
            b'{"repositoryName": "demo", "layerDigests": [["a"]]}',
        ),
        (
            "AmazonEC2ContainerRegistry_V20150921.BatchGetImage",
            b'{"repositoryName": "demo", "imageIds": ["a"]}',
        ),
        (
            "AmazonEC2ContainerRegistry_V20150921.BatchGetImage",
            b'{"repositoryName": "demo", "imageIds": [{"imageTag": ["a"]}]}',
        ),
        *(
            (
                "AmazonEC2ContainerRegistry_V20150921.PutImage",
                json.dumps({"repositoryName": "demo", "imageManifest": manifest}).encode(),
            )
            for manifest in (
                "[" * 100_000, "\ud800", '{"config": 5}', '{"layers": {}}', '{"layers": [7]}',
                '{"layers": [{"digest": []}]}',
                '{"mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [{}]}',
            )
        ),
        ("AmazonEC2ContainerRegistry_V20150921.PutImage", b'{"repositoryName": "Demo"}'),
        ("", b""),
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused(target: str, body: bytes, ecr: LocalECR) -> None:
    request = urllib.request.Request(
        ecr.endpoint_url, body, {"X-Amz-Target": target}, method="POST"
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.request.HTTPError) as raised, opener.open(request):
        pass
    assert raised.value.code == 400
    assert "__type" in json.loads(raised.value.read())
    raised.value.close()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("Content-Length: many", 400),
        ("Content-Length: -1", 400),
        ("Content-Length: 99999999999999999", 400),
        ("Content-Length: 9999999999", 400),
        ("Transfer-Encoding: chunked", 411),
        ("X-None: 1", 411),
        ("Content-Length: 2\r\nHost: registry.example", 400),
        ("Content-Length: 2\r\nHost: 127.0.0.1.example", 400),
    ],
)
def test_a_request_that_no_sdk_sends_is_answered(head: str, status: int, ecr: LocalECR) -> None:
    port = int(ecr.endpoint_url.rpartition(":")[2])
    host = "" if "Host" in head else "Host: localhost\r\n"
    request = f"POST / HTTP/1.1\r\n{host}{head}\r\n\r\n{{}}"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request.encode())
        with connection.makefile("rb") as answered:
            first, _, rest = answered.read().partition(b"\r\n")
    assert first.split()[1] == b"%d" % status
    assert json.loads(rest.partition(b"\r\n\r\n")[2])["__type"] == "InvalidParameterException"
    assert ecr.calls == []


def test_a_repository_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="'Demo' is not a valid repository name"):
        LocalECR(["Demo"])


@pytest.mark.parametrize("name", ["Demo", "012345678910.dkr.ecr.us-east-1.amazonaws.com/x:v1"])
@pytest.mark.parametrize("client", ["ecr", "ecr-public"])
def test_the_hint_about_a_repositorys_name(name: str, client: str, ecr: LocalECR) -> None:
    uploader = LayerUploader(ecr.client(client), name)
    for call in (uploader.initiate, lambda: uploader.missing([DIGEST])):
        with pytest.raises(ServiceError, match="without registry prefix and tag") as raised:
            call()
        assert raised.value.code == "InvalidParameterException"
    with pytest.raises(ServiceError, match="without registry prefix and tag"):
        LayerUploader(ecr.client(client), "none").initiate()


def test_half_of_a_part_that_is_none(ecr: LocalECR) -> None:
    ecr.fail("UploadLayerPart", "stored_in_part")
    call = Caller(ecr.client())
    refused = urllib.request.Request(
        ecr.endpoint_url,
        json.dumps({"repositoryName": "demo", "uploadId": call.initiate()}).encode(),
        {"X-Amz-Target": "AmazonEC2ContainerRegistry_V20150921.UploadLayerPart"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.request.HTTPError) as raised, opener.open(refused):
        pass
    raised.value.close()


def test_the_calls_are_told(ecr: LocalECR) -> None:
    ecr.fail("UploadLayerPart", "throttled", call=2, times=1)
    call = Caller(ecr.client())
    upload_id = call.initiate()
    for _ in range(2):
        call.part(upload_id, 0, BLOB[:8])
    told = [(c.operation, c.first_byte, c.last_byte, c.outcome) for c in ecr.calls]
    assert told == [
        ("InitiateLayerUpload", None, None, "ok"),
        ("UploadLayerPart", 0, 7, "ok"),
        ("UploadLayerPart", 0, 7, "throttled"),
    ]


def test_faults_are_counted_from_now_on(ecr: LocalECR) -> None:
    call = Caller(ecr.client())
    call.initiate()
    ecr.fail("InitiateLayerUpload", "throttled", call=2, times=2)
    codes = [call("initiate_layer_upload").get("code") for _ in range(4)]
    assert codes == [None, "ThrottlingException", "ThrottlingException", None]


def test_an_upload_can_be_forgotten_where_there_is_none(ecr: LocalECR) -> None:
    ecr.fail("InitiateLayerUpload", "upload_forgotten")
    refused = Caller(ecr.client())("initiate_layer_upload", repositoryName="none")
    assert refused["code"] == "RepositoryNotFoundException"


def test_faults_that_are_none(ecr: LocalECR) -> None:
    for arguments, message in (
        (("UploadLayerPart", "tired"), "must be one of"),
        (("InitiateLayerUpload", "stored_in_part"), "of UploadLayerPart only"),
        (("Upload", "throttled"), "operation must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            ecr.fail(*arguments)  # type: ignore[arg-type]  # the point of the test
    for counted in ({"call": 0}, {"times": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            ecr.fail("UploadLayerPart", "throttled", **counted)


def test_it_starts_and_stops_and_leaves_no_thread() -> None:
    before = threading.active_count()
    ecr = LocalECR(slow=60)
    for use in (lambda: ecr.endpoint_url, ecr.client):
        with pytest.raises(RuntimeError, match="not running"):
            use()
    ecr.stop()
    ecr.start()
    with pytest.raises(RuntimeError, match="already running"):
        ecr.start()
    assert ecr.endpoint_url.startswith("http://127.0.0.1:")
    layer = LayerUploader(ecr.client(), "demo").upload(BLOB)
    ecr.stop()
    assert threading.active_count() == before
    assert ecr.layer("demo", layer.digest) == BLOB
    with ecr:
        assert LayerUploader(ecr.client(), "demo").upload(BLOB).existed
    with pytest.raises(KeyError):
        ecr.layer("demo", digest_of(b"missing"))


def test_its_environment_is_enough_for_somebody_elses_client(
    local_ecr: LocalECR, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    for name, value in local_ecr.environ().items():
        monkeypatch.setenv(name, value)
    client = boto3.session.Session().client(service)  # type: ignore[call-overload]  # a str
    assert LayerUploader(client, "demo").upload(BLOB).digest == DIGEST
    assert local_ecr.layer("demo", DIGEST) == BLOB


@pytest.fixture
def served() -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "ecr_parts.testing", "--repository", "layer-test"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        yield process, process.stdout.readline().strip()
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
    assert process.returncode == 0


def test_the_command(served: tuple[subprocess.Popen[str], str]) -> None:
    _, url = served
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
    with LocalECR() as other:
        client = other.client(endpoint_url=url)
    assert LayerUploader(client, "layer-test").upload(BLOB).digest == DIGEST


@pytest.mark.skipif(not shutil.which("aws"), reason="the AWS CLI is not installed")
def test_the_aws_cli(served: tuple[subprocess.Popen[str], str], tmp_path: Path) -> None:
    """The examples of the CLI's manual pages, with the answers that stand there."""
    _, url = served
    blob = tmp_path / "layer"
    blob.write_bytes(BLOB)
    names = {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }

    def aws(*arguments: str) -> Any:
        command = ["aws", "ecr", *arguments, "--repository-name", "layer-test", "--output", "json"]
        done = subprocess.run(
            [*command, "--endpoint-url", url],
            env={**os.environ, **names},
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)

    version = subprocess.run(["aws", "--version"], capture_output=True, text=True, check=True)
    initiated = aws("initiate-layer-upload")
    upload_id = initiated["uploadId"]
    assert initiated == {"partSize": 10_485_760, "uploadId": upload_id}
    if version.stdout.startswith("aws-cli/1"):
        blob_argument = blob.as_uri().replace("file://", "fileb://")
    else:
        blob_argument = base64.b64encode(BLOB).decode()
    assert aws(
        *("upload-layer-part", "--upload-id", upload_id, "--part-first-byte", "0"),
        *("--part-last-byte", "19", "--layer-part-blob", blob_argument),
    ) == {
        "uploadId": upload_id,
        "registryId": "012345678910",
        "lastByteReceived": 19,
        "repositoryName": "layer-test",
    }
    assert aws("complete-layer-upload", "--upload-id", upload_id, "--layer-digests", DIGEST) == {
        "uploadId": upload_id,
        "layerDigest": DIGEST,
        "repositoryName": "layer-test",
        "registryId": "012345678910",
    }
    available = aws("batch-check-layer-availability", "--layer-digests", DIGEST)
    assert available["failures"] == []
    assert available["layers"][0] == {
        "layerDigest": DIGEST,
        "layerAvailability": "AVAILABLE",
        "layerSize": 20,
        "mediaType": "application/vnd.docker.image.rootfs.diff.tar",
    }
