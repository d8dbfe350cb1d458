"""LocalECR stores images, and answers what ECR answers about them and about repositories."""

from __future__ import annotations

import base64
import json
import time
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any, cast

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ParamValidationError
from botocore.loaders import create_loader
from botocore.model import ListShape, ServiceModel, Shape, StructureShape
from ecr_calls import Caller
from helpers import digest_of
from hypothesis import given, settings
from hypothesis import strategies as st

from ecr_parts import LayerUploader
from ecr_parts.testing import EcrError, LocalECR, Registry, Unknowns
from ecr_parts.testing._registry import OPERATIONS
from ecr_parts.testing._service_model import has_operation

CONFIG, LAYER = b"{}", b"a layer"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"


def manifest(number: int = 0) -> str:
    """The manifest of an image with one layer; each number makes another one."""
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"digest": digest_of(CONFIG), "size": len(CONFIG), "mediaType": "config"},
            "layers": [{"digest": digest_of(LAYER), "size": len(LAYER), "mediaType": "layer"}],
            "annotations": {"number": str(number)},
        }
    )


def index(*manifests: str) -> str:
    """An index of the images with ``manifests``."""
    descriptors = [
        {"mediaType": MANIFEST_TYPE, "digest": image_digest(text), "size": len(text)}
        for text in manifests
    ]
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": descriptors})


UPLOADS = (
    "BatchCheckLayerAvailability",
    "CompleteLayerUpload",
    "InitiateLayerUpload",
    "PutImage",
    "UploadLayerPart",
)
NOT_JSON = ("NaN", "Infinity", "-Infinity")
"""What Python's parser of JSON accepts beyond JSON."""


def image_digest(text: str) -> str:
    return digest_of(text.encode())


def store_layers(registry: Registry) -> None:
    """Without HTTP, which takes longer than most of these tests."""
    for blob in (CONFIG, LAYER):
        upload_id = registry.call("InitiateLayerUpload", {"repositoryName": "demo"})["uploadId"]
        upload = {"repositoryName": "demo", "uploadId": upload_id}
        part = {"partFirstByte": 0, "partLastByte": len(blob) - 1, "layerPartBlob": blob}
        registry.call("UploadLayerPart", upload | part)
        registry.call("CompleteLayerUpload", upload | {"layerDigests": [digest_of(blob)]})


@pytest.fixture(autouse=True)
def _layers(ecr: LocalECR) -> None:
    store_layers(ecr.registry)


@pytest.fixture
def ecr_call(ecr: LocalECR) -> Caller:
    return Caller(ecr.client())


# Storing


def test_stores_images(call: Caller) -> None:
    put = call("put_image", imageManifest=manifest(), imageTag="v1")
    image_id = {"imageDigest": image_digest(manifest()), "imageTag": "v1"}
    assert put["image"]["imageId"] == image_id
    assert put["image"]["imageManifestMediaType"] == MANIFEST_TYPE

    def code(**parameters: Any) -> Any:
        return call("put_image", **{"imageManifest": manifest(), **parameters}).get("code")

    assert code(imageTag="v1") == "ImageAlreadyExistsException"
    assert code() == "ImageAlreadyExistsException"
    assert code(imageTag="v2") is None
    assert code(imageManifest=manifest(1)) is None
    other_layer = manifest().replace(digest_of(LAYER), digest_of(b"x"))
    assert code(imageManifest=other_layer) == "LayersNotFoundException"
    assert code(imageDigest=digest_of(b"x")) == "ImageDigestDoesNotMatchException"
    assert code(imageDigest=image_digest(manifest()), imageTag="v3") is None

    assert code(imageManifest=index(manifest(2))) == "ReferencedImagesNotFoundException"
    assert code(imageManifest=index(manifest(1)), imageTag="all") is None


@pytest.mark.parametrize(
    "text",
    [
        "text",
        "[]",
        "{}",  # without a media type
        '{"mediaType": 1}',
        json.dumps({"mediaType": "a/b", "layers": 1}),
        json.dumps({"mediaType": "a/b", "layers": [1]}),
        json.dumps({"mediaType": "a/b", "config": {"digest": 1}}),
        json.dumps({"mediaType": MANIFEST_TYPE, "layers": 1}),
        json.dumps({"mediaType": MANIFEST_TYPE, "layers": [1]}),
        json.dumps({"mediaType": MANIFEST_TYPE, "config": {"digest": 1}}),
        json.dumps({"mediaType": MANIFEST_TYPE, "config": [{"digest": digest_of(CONFIG)}]}),
        json.dumps({"mediaType": MANIFEST_TYPE, "layers": {"digest": digest_of(LAYER)}}),
        json.dumps({"mediaType": "a/b\r\nX-Header: 1"}),
        json.dumps({"mediaType": "a/b\n"}),
        json.dumps({"mediaType": "application/\u2603"}),
        json.dumps({"mediaType": "a/b\ud800"}),
        json.dumps({"mediaType": "a/" + "b" * 128}),
        *(manifest().replace('"number": "0"', f'"number": {value}') for value in NOT_JSON),
    ],
)
def test_rejects_invalid_manifest(text: str, call: Caller) -> None:
    assert call("put_image", imageManifest=text)["code"] == "InvalidParameterException"


@pytest.mark.parametrize("tag", ["a/b", "a b", "a\n", ".", "", "a" * 301, digest_of(CONFIG)])
def test_rejects_invalid_tag(tag: str, ecr: LocalECR) -> None:
    call = Caller(ecr.client(config=Config(parameter_validation=False)))
    answer = call("put_image", imageManifest=manifest(), imageTag=tag)
    assert answer["code"] == "InvalidParameterException"


def test_rejects_huge_manifest(call: Caller) -> None:
    text = manifest() + " " * 4_194_304
    client = call.client
    client.meta.config.parameter_validation = False
    with pytest.raises((ClientError, ParamValidationError)):
        client.put_image(repositoryName="demo", imageManifest=text)


def test_does_not_overwrite_immutable_tag(call: Caller, ecr: LocalECR) -> None:
    ecr.registry.repositories["demo"].immutable_tags = True
    assert "image" in call("put_image", imageManifest=manifest(1), imageTag="v1")
    error = call("put_image", imageManifest=manifest(2), imageTag="v1")
    assert error["code"] == "ImageTagAlreadyExistsException"


def test_put_image_lags_behind_completed_layers() -> None:
    with LocalECR(unknowns=Unknowns(image_lag=2)) as ecr:
        LayerUploader(ecr.client(), "demo").upload_many([CONFIG, LAYER])
        call = Caller(ecr.client())
        for _ in range(2):
            error = call("put_image", imageManifest=manifest())
            assert error["code"] == "LayersNotFoundException"
        assert "image" in call("put_image", imageManifest=manifest())


# Reading


def test_returns_images_by_tag_and_digest(ecr_call: Caller) -> None:
    put_all(ecr_call, {"v1": manifest(), None: index(manifest())})
    answer = ecr_call(
        "batch_get_image",
        imageIds=[{"imageTag": "v1"}, {"imageDigest": image_digest(index(manifest()))}],
    )
    assert [image["imageManifest"] for image in answer["images"]] == [manifest(), index(manifest())]
    assert answer["failures"] == []


FAILURES = [
    ({"imageTag": "none"}, "ImageNotFound"),
    ({"imageDigest": digest_of(b"none")}, "ImageNotFound"),
    ({"imageDigest": image_digest(manifest(1)), "imageTag": "none"}, "ImageNotFound"),
    ({"imageDigest": image_digest(manifest(1)), "imageTag": "v2"}, "ImageTagDoesNotMatchDigest"),
    ({"imageDigest": "sha256:none"}, "InvalidImageDigest"),
    ({}, "MissingDigestAndTag"),
]


@pytest.mark.parametrize(("image_id", "code"), FAILURES)
def test_reports_images_that_do_not_exist(
    image_id: dict[str, str], code: str, ecr_call: Caller
) -> None:
    put_all(ecr_call, {"v1": manifest(1), "v2": manifest(2)})
    for method in ("batch_get_image", "batch_delete_image"):
        answer = ecr_call(method, imageIds=[image_id, {"imageTag": "v1"}])
        (failure,) = answer.pop("failures")
        assert failure["imageId"] == image_id
        assert failure["failureCode"] == code
        assert failure["failureReason"]
        (done,) = answer.values()
        assert len(done) == 1
    error = ecr_call("describe_images", imageIds=[image_id])
    assert error["code"] == "ImageNotFoundException"
    assert "in the registry with id '012345678910'" in error["message"]


def put_all(call: Caller, images: Mapping[str | None, str]) -> None:
    """Put images by tag; the key ``None`` is for one without a tag."""
    for tag, text in images.items():
        assert "image" in call(
            "put_image", imageManifest=text, **({} if tag is None else {"imageTag": tag})
        )


def test_describes_images(call: Caller) -> None:
    before = time.time()
    everything = index(manifest(1), manifest(2))
    put_all(call, {"v1": manifest(1), "latest": manifest(1), None: manifest(2), "all": everything})
    described = {image["imageDigest"]: image for image in call("describe_images")["imageDetails"]}
    assert described.keys() == set(map(image_digest, (manifest(1), manifest(2), everything)))
    for image in described.values():
        assert image["registryId"], image["repositoryName"] == ("012345678910", "demo")
        assert image["imageSizeInBytes"] == len(CONFIG) + len(LAYER)
        assert before - 1 < image["imagePushedAt"].timestamp() < time.time() + 1
    one = described[image_digest(manifest(1))]
    assert one["imageTags"] == ["v1", "latest"]
    assert one["imageManifestMediaType"] == MANIFEST_TYPE
    assert one["artifactMediaType"] == "config"
    assert "imageTags" not in described[image_digest(manifest(2))]
    assert "artifactMediaType" not in described[image_digest(everything)]

    asked = [{"imageTag": "all"}, {"imageDigest": image_digest(manifest(2))}]
    answer = call("describe_images", imageIds=asked)["imageDetails"]
    assert [image["imageDigest"] for image in answer] == [
        image_digest(everything),
        image_digest(manifest(2)),
    ]


def test_describes_deep_and_wide_indexes(ecr_call: Caller) -> None:
    texts = [manifest(1), manifest(2)]
    for _ in range(60):  # each level has two indexes of both images of the level below
        for text in texts:
            put_all(ecr_call, {None: text})
        texts = [index(*texts), index(*texts) + " "]
    put_all(ecr_call, {None: texts[0]})
    (image,) = ecr_call("describe_images", imageIds=[{"imageDigest": image_digest(texts[0])}])[
        "imageDetails"
    ]
    assert image["imageSizeInBytes"] == len(CONFIG) + len(LAYER)


def test_describes_subject_of_image(call: Caller, ecr: LocalECR, service: str) -> None:
    put_all(call, {None: manifest()})
    about = {"digest": image_digest(manifest()), "size": 1, "mediaType": MANIFEST_TYPE}
    artifact = json.dumps({**json.loads(manifest(1)), "subject": about, "artifactType": "a/b"})
    put_all(call, {"signature": artifact})
    parameters = {"repositoryName": "demo", "imageIds": [{"imageTag": "signature"}]}
    public = service == "ecr-public"
    # Not by the client: that of an old botocore does not know all members of the answer.
    (image,) = cast(
        "list[dict[str, object]]",
        ecr.registry.call("DescribeImages", parameters, public=public)["imageDetails"],
    )
    assert image["artifactMediaType"] == "a/b"
    subject = None if public else image_digest(manifest())
    assert image.get("subjectManifestDigest") == subject


def test_lists_images_by_tag_status(ecr_call: Caller) -> None:
    put_all(ecr_call, {"v1": manifest(1), "v2": manifest(1), None: manifest(2)})
    tagged = [{"imageDigest": image_digest(manifest(1)), "imageTag": tag} for tag in ("v1", "v2")]
    untagged = [{"imageDigest": image_digest(manifest(2))}]

    def listed(**parameters: Any) -> Any:
        ids = ecr_call("list_images", **parameters)["imageIds"]
        return sorted(ids, key=lambda image_id: str(image_id.get("imageTag")))

    assert listed() == listed(filter={}) == listed(filter={"tagStatus": "ANY"}) == untagged + tagged
    assert listed(filter={"tagStatus": "TAGGED"}) == tagged
    assert listed(filter={"tagStatus": "UNTAGGED"}) == untagged
    error = ecr_call("list_images", filter={"tagStatus": "NONE"})
    assert error["code"] == "InvalidParameterException"
    details = ecr_call("describe_images", filter={"tagStatus": "UNTAGGED"})["imageDetails"]
    assert [image["imageDigest"] for image in details] == [image_digest(manifest(2))]


def test_describes_image_tags(ecr: LocalECR) -> None:
    call = Caller(ecr.client("ecr-public"))
    put_all(call, {"v1": manifest(1), "latest": manifest(1), None: manifest(2)})
    page = call("describe_image_tags", maxResults=1)
    rest = call("describe_image_tags", nextToken=page["nextToken"])
    assert "nextToken" not in rest
    details = page["imageTagDetails"] + rest["imageTagDetails"]
    assert [detail["imageTag"] for detail in details] == ["latest", "v1"]
    for detail in details:
        image = detail["imageDetail"]
        assert image["imageDigest"] == image_digest(manifest(1))
        assert image["imageSizeInBytes"] == len(CONFIG) + len(LAYER)
        assert detail["createdAt"] == image["imagePushedAt"]


def artifact(number: int, **members: object) -> str:
    """The manifest of an artifact about the image ``manifest()``."""
    subject = {"digest": image_digest(manifest()), "size": 1, "mediaType": MANIFEST_TYPE}
    return json.dumps({**json.loads(manifest(number)), "subject": subject, **members})


@pytest.mark.skipif(
    not has_operation("ListImageReferrers", public=False), reason="botocore does not know it"
)
def test_lists_referrers(ecr_call: Caller) -> None:
    signature = artifact(1, artifactType="a/signature", annotations={"by": "me"})
    sbom = artifact(2, annotations=None)
    put_all(ecr_call, {None: manifest()})
    put_all(ecr_call, {None: signature})
    put_all(ecr_call, {"sbom": sbom})

    def referrers(digest: str = image_digest(manifest()), **parameters: Any) -> Any:
        subject = {"imageDigest": digest}
        return ecr_call("list_image_referrers", subjectId=subject, **parameters)

    found = {one.pop("digest"): one for one in referrers()["referrers"]}
    assert found == {
        image_digest(signature): {
            "mediaType": MANIFEST_TYPE,
            "artifactType": "a/signature",
            "size": len(signature),
            "annotations": {"by": "me"},
            "artifactStatus": "ACTIVE",
        },
        image_digest(sbom): {
            "mediaType": MANIFEST_TYPE,
            "artifactType": "config",
            "size": len(sbom),
            "artifactStatus": "ACTIVE",
        },
    }
    (one,) = referrers(filter={"artifactTypes": ["config"]})["referrers"]
    assert one["digest"] == image_digest(sbom)
    archived = {"artifactStatus": "ARCHIVED"}
    assert referrers(filter=archived)["referrers"] == []
    ecr_call(
        "update_image_storage_class", imageId={"imageTag": "sbom"}, targetStorageClass="ARCHIVE"
    )
    assert [one["digest"] for one in referrers()["referrers"]] == [image_digest(signature)]
    (one,) = referrers(filter=archived)["referrers"]
    assert (one["digest"], one["artifactStatus"]) == (image_digest(sbom), "ARCHIVED")
    assert len(referrers(filter={"artifactStatus": "ANY"})["referrers"]) == 2
    assert referrers(digest_of(b"none"))["referrers"] == []


@pytest.mark.skipif(
    not has_operation("ListImageReferrers", public=False), reason="botocore does not know it"
)
def test_a_page_has_20_referrers(ecr_call: Caller) -> None:
    for number in range(21):
        put_all(ecr_call, {None: artifact(number)})
    subject = {"imageDigest": image_digest(manifest())}
    first = ecr_call("list_image_referrers", subjectId=subject)
    second = ecr_call("list_image_referrers", subjectId=subject, nextToken=first["nextToken"])
    assert (len(first["referrers"]), len(second["referrers"])) == (20, 1)


# Pages


def many_images(images: int) -> Registry:
    """``images`` images, and as many repositories beside theirs."""
    registry = Registry(["demo"])
    store_layers(registry)
    for number in range(images):
        put = {"imageManifest": manifest(number), "imageTag": f"v{number}"}
        registry.call("PutImage", {"repositoryName": "demo", **put})
        registry.call("CreateRepository", {"repositoryName": f"team/app{number}"})
    return registry


@pytest.mark.parametrize(
    ("images", "page_size"),
    [(250, None), (30, 1), *((250, size) for size in (7, 100, 249, 250, 1000))],
)
def test_paginators_return_each_item_once(
    images: int, page_size: int | None, ecr: LocalECR
) -> None:
    ecr.registry = many_images(images)
    client = ecr.client()
    sizes = {} if page_size is None else {"PageSize": page_size}

    def read(method: str, result: str, **parameters: Any) -> Iterator[list[Any]]:
        paginator: Any = client.get_paginator(method)  # type: ignore[call-overload]  # any of them
        for page in paginator.paginate(**parameters, PaginationConfig=sizes):
            yield page[result]

    for method, result, name in (
        ("list_images", "imageIds", "demo"),
        ("describe_images", "imageDetails", "demo"),
        ("describe_repositories", "repositories", None),
    ):
        pages = list(read(method, result, **({"repositoryName": name} if name else {})))
        items = [item for page in pages for item in page]
        count = images if name else images + 1
        assert len({json.dumps(item, default=str) for item in items}) == len(items) == count
        assert {len(page) for page in pages[:-1]} <= {page_size or 100}


def test_page_continues_after_items_that_were_deleted(ecr_call: Caller) -> None:
    put_all(ecr_call, {f"v{number}": manifest(number) for number in range(4)})
    first = ecr_call("list_images", maxResults=2)
    ecr_call("batch_delete_image", imageIds=first["imageIds"])
    second = ecr_call("list_images", maxResults=2, nextToken=first["nextToken"])
    assert len(second["imageIds"]) == 2
    assert "nextToken" not in second


@pytest.mark.parametrize(
    "page", [{"maxResults": 0}, {"maxResults": 1001}, {"nextToken": "!"}, {"nextToken": "/w=="}]
)
@pytest.mark.parametrize("method", ["list_images", "describe_images", "describe_repositories"])
def test_rejects_invalid_page(method: str, page: dict[str, Any], ecr: LocalECR) -> None:
    call = Caller(ecr.client(config=Config(parameter_validation=False)))
    assert call(method, **page)["code"] == "InvalidParameterException"


def test_rejects_page_of_named_items(call: Caller) -> None:
    put_all(call, {"v1": manifest()})
    named: dict[str, dict[str, Any]] = {
        "describe_images": {"imageIds": [{"imageTag": "v1"}]},
        "describe_repositories": {"repositoryNames": ["demo"]},
    }
    for method, parameters in named.items():
        error = call(method, **parameters, maxResults=5)
        assert error["code"] == "InvalidParameterException"


# Deleting


def test_deletes_tag_before_image(call: Caller) -> None:
    put_all(call, {"v1": manifest(), "v2": manifest()})
    digest = image_digest(manifest())

    def delete(**image_id: str) -> Any:
        return call("batch_delete_image", imageIds=[image_id])["imageIds"]

    assert delete(imageTag="v1") == [{"imageDigest": digest, "imageTag": "v1"}]
    assert call("describe_images")["imageDetails"][0]["imageTags"] == ["v2"]
    assert delete(imageTag="v2") == [{"imageDigest": digest, "imageTag": "v2"}]
    assert call("describe_images")["imageDetails"] == []

    put_all(call, {"v1": manifest(), "v2": manifest(), None: manifest(1)})
    assert [image_id["imageTag"] for image_id in delete(imageDigest=digest)] == ["v1", "v2"]
    digest = image_digest(manifest(1))
    assert delete(imageDigest=digest) == [{"imageDigest": digest}]
    assert call("describe_images")["imageDetails"] == []


def test_does_not_delete_image_of_index(call: Caller) -> None:
    everything = index(manifest())
    put_all(call, {"v1": manifest(), "all": everything})
    image_id = {"imageTag": "v1"}
    (failure,) = call("batch_delete_image", imageIds=[image_id])["failures"]
    assert failure["failureCode"] == "ImageReferencedByManifestList"
    assert image_digest(everything) in failure["failureReason"]
    answer = call("batch_delete_image", imageIds=[{"imageTag": "all"}, image_id])
    assert answer["failures"] == []


def test_deletes_repository(call: Caller, ecr: LocalECR) -> None:
    put_all(call, {"v1": manifest()})
    assert call("delete_repository")["code"] == "RepositoryNotEmptyException"
    assert call("delete_repository", force=True)["repository"]["repositoryName"] == "demo"
    assert call("delete_repository")["code"] == "RepositoryNotFoundException"
    assert ecr.registry.repositories == {}


# Repositories, and where to pull from


def test_describes_repositories(ecr: LocalECR, service: str) -> None:
    client: Any = ecr.client(service)
    client.create_repository(repositoryName="team/app")
    for answer in (
        client.describe_repositories(),
        client.describe_repositories(repositoryNames=["demo", "team/app"]),
    ):
        assert [one["repositoryName"] for one in answer["repositories"]] == ["demo", "team/app"]
        app = answer["repositories"][1]
        assert app["repositoryUri"] == f"{ecr.endpoint_url.removeprefix('http://')}/team/app"
        assert isinstance(app["createdAt"], datetime)
    with pytest.raises(client.exceptions.RepositoryNotFoundException, match="'none'"):
        client.describe_repositories(repositoryNames=["none"])
    with pytest.raises(client.exceptions.InvalidParameterException, match="regular expression"):
        client.describe_repositories(repositoryNames=["None"])


def test_other_registry_has_no_repositories(ecr: LocalECR) -> None:
    assert ecr.client().describe_repositories(registryId="210987654321")["repositories"] == []


def test_each_registry_has_its_authorization_token(ecr: LocalECR) -> None:
    answer = ecr.client().get_authorization_token(registryIds=["111111111111", "222222222222"])
    assert len(answer["authorizationData"]) == 2


def test_null_counts_as_absent(ecr: LocalECR) -> None:
    registry = ecr.registry
    put = {"repositoryName": "demo", "imageManifest": manifest(), "imageTag": "v1"}
    registry.call("PutImage", put)
    image_id = {"imageTag": "v1", "imageDigest": None}
    parameters = {"repositoryName": "demo", "imageIds": [image_id], "maxResults": None}
    assert registry.call("DescribeImages", parameters)["imageDetails"]


def test_failure_does_not_repeat_what_was_not_asked_for(ecr: LocalECR) -> None:
    image_id = {"imageTag": "none", "other": [[[]]]}
    parameters = {"repositoryName": "demo", "imageIds": [image_id]}
    failures: Any = ecr.registry.call("BatchGetImage", parameters)["failures"]
    assert [failure["imageId"] for failure in failures] == [{"imageTag": "none"}]


def test_authorization_token_is_that_of_docker_login(ecr: LocalECR) -> None:
    (data,) = ecr.client().get_authorization_token()["authorizationData"]
    public = ecr.client("ecr-public").get_authorization_token()["authorizationData"]
    for one in (data, public):
        assert base64.b64decode(one["authorizationToken"]).startswith(b"AWS:")
        assert one["expiresAt"] > datetime.now(timezone.utc)
    assert data["proxyEndpoint"] == ecr.endpoint_url


def test_download_url_leads_to_layer(ecr_call: Caller, ecr: LocalECR) -> None:
    digest = digest_of(LAYER)

    def code(digest: str) -> Any:
        return ecr_call("get_download_url_for_layer", layerDigest=digest).get("code")

    assert code(digest) == "LayerInaccessibleException"  # not in an image yet
    put_all(ecr_call, {None: manifest()})
    answer = ecr_call("get_download_url_for_layer", layerDigest=digest)
    assert answer["layerDigest"] == digest
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(answer["downloadUrl"]) as response:
        assert response.read() == LAYER
    assert code(digest_of(b"none")) == "LayersNotFoundException"
    assert code("none") == "InvalidParameterException"
    ecr.registry.repositories["demo"].layers[digest].status = "ARCHIVED"
    assert code(digest) == "LayerInaccessibleException"


# All operations


def model_of(service: str) -> ServiceModel:
    return ServiceModel(create_loader().load_service_model(service, "service-2"), service)


def undocumented(shape: Shape, value: Any, path: str = "") -> list[str]:
    """Where ``value`` has members that ``shape`` does not have."""
    if isinstance(shape, ListShape):
        return [name for item in value for name in undocumented(shape.member, item, f"{path}[]")]
    if not isinstance(shape, StructureShape):
        return []
    found = [f"{path}.{name}" for name in value if name not in shape.members]
    for name, member in shape.members.items():
        if name in value:
            found += undocumented(member, value[name], f"{path}.{name}")
    return found


image_ids = st.fixed_dictionaries(
    {},
    optional={
        "imageTag": st.sampled_from(["v1", "v2", "none", "", 1]),
        "imageDigest": st.sampled_from(
            [image_digest(manifest(number)) for number in range(3)] + ["sha256:none", "", 1]
        ),
    },
)
arns = st.sampled_from(
    [f"arn:aws:{service}::012345678910:repository/demo" for service in ("ecr", "ecr-public")]
    + ["arn:aws:ecr:us-east-1:210987654321:repository/demo", "arn:aws:ecr::1:demo", "demo"]
)
policies = st.sampled_from(["{}", "[]", "", json.dumps({"rules": ["x" * 100]}), "x" * 100])
anything: st.SearchStrategy[Any] = st.one_of(st.none(), st.booleans(), st.integers(), st.just({}))
PARAMETERS: dict[str, st.SearchStrategy[Any]] = {
    "repositoryName": st.sampled_from(["demo", "demo", "demo", "none", "None"]),
    "registryId": st.sampled_from(["012345678910", "210987654321"]),
    "repositoryNames": st.lists(st.sampled_from(["demo", "none", "None"]), max_size=2),
    "imageIds": st.lists(image_ids, max_size=3),
    "imageId": image_ids,
    "layerDigest": st.sampled_from([digest_of(LAYER), digest_of(b"none"), "none"]),
    "maxResults": st.integers(-1, 1001),
    "nextToken": st.one_of(st.text(max_size=4), st.just("c2hh")),
    "force": st.booleans(),
    "filter": st.fixed_dictionaries(
        {},
        optional={
            "tagStatus": st.sampled_from(["ANY", "TAGGED", "NONE"]),
            "imageStatus": st.sampled_from(["ANY", "ARCHIVED", "ACTIVE"]),
            "artifactTypes": st.just(["config"]),
        },
    ),
    "subjectId": st.sampled_from([{"imageDigest": image_digest(manifest(1))}, {}]),
    "targetStorageClass": st.sampled_from(["ARCHIVE", "STANDARD", "NONE"]),
    "resourceArn": arns,
    "tags": st.lists(st.fixed_dictionaries({"Key": st.text(), "Value": st.text()}), max_size=60),
    "tagKeys": st.lists(st.text(min_size=1), max_size=2),
    "policyText": policies,
    "lifecyclePolicyText": policies,
    "imageTagMutability": st.sampled_from(
        ["MUTABLE", "IMMUTABLE", "IMMUTABLE_WITH_EXCLUSION", "NONE"]
    ),
    "imageTagMutabilityExclusionFilters": st.lists(
        st.fixed_dictionaries({"filterType": st.just("WILDCARD"), "filter": st.just("v*")}),
        max_size=2,
    ),
    "imageScanningConfiguration": st.sampled_from([{}, {"scanOnPush": True}]),
    "catalogData": st.sampled_from([{}, {"aboutText": "# About", "logoImageBlob": "bG9nbw=="}]),
}
NEWER_MEMBERS = {".imageDetails[].imageStatus", ".imageDetails[].subjectManifestDigest"}
"""Members that the models of older versions of botocore do not have."""


@pytest.mark.parametrize(
    ("service", "operation"),
    [
        (service, operation)
        for service in ("ecr", "ecr-public")
        for operation in OPERATIONS
        if operation not in UPLOADS and has_operation(operation, public=service == "ecr-public")
    ],
)
def test_answers_as_in_the_service_model(service: str, operation: str) -> None:
    model = model_of(service).operation_model(operation)
    errors = {shape.name for shape in model.error_shapes}
    output, parameters = model.output_shape, model.input_shape
    assert isinstance(output, StructureShape)
    assert isinstance(parameters, StructureShape)
    members = parameters.members

    @settings(max_examples=40)
    @given(
        parameters=st.fixed_dictionaries(
            {},
            optional={
                name: st.one_of(strategy, strategy, strategy, anything)
                for name, strategy in PARAMETERS.items()
                if name in members
            },
        )
    )
    def check(parameters: dict[str, Any]) -> None:
        registry = Registry(["demo"])
        store_layers(registry)
        for tag, text in (("v1", manifest(1)), ("v2", manifest(2)), ("all", index(manifest(1)))):
            put = {"repositoryName": "demo", "imageManifest": text, "imageTag": tag}
            registry.call("PutImage", put)
        code, answer = None, {}
        try:
            answer = registry.call(operation, parameters, public=service == "ecr-public")
        except EcrError as error:
            code = error.code
        assert code is None or code in errors
        json.dumps(answer)
        assert set(undocumented(output, answer)) <= NEWER_MEMBERS

    check()


@pytest.mark.parametrize("service", ["ecr", "ecr-public"])
def test_says_which_operations_it_does_not_offer(service: str) -> None:
    public = service == "ecr-public"
    for operation in model_of(service).operation_names:
        if operation not in OPERATIONS:
            with pytest.raises(EcrError, match=f"does not offer {operation} of ECR") as raised:
                Registry(["demo"]).call(operation, {"repositoryName": "demo"}, public=public)
            assert (raised.value.code, raised.value.status) == ("UnknownOperationException", 400)


def test_public_has_no_private_operations() -> None:
    for operation in ("BatchGetImage", "GetDownloadUrlForLayer", "ListImages"):
        with pytest.raises(EcrError, match="ECR Public has no operation"):
            Registry(["demo"]).call(operation, {"repositoryName": "demo"}, public=True)
