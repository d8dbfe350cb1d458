"""Images in ECR's archive cannot be pulled, and count as missing."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from ecr_calls import Caller
from helpers import NO_WAIT, SMALL_LIMITS, digest_of
from image_makers import Layout, named

from ecr_parts import LayerUploader, ServiceError
from ecr_parts.testing import LocalECR
from ecr_parts.testing._service_model import has_operation

pytestmark = pytest.mark.skipif(
    not has_operation("UpdateImageStorageClass", public=False), reason="botocore does not know it"
)
CONFIG, SHARED, OWN = b"{}", b"a shared layer", b"a layer of one image"
RESTORE = "UpdateImageStorageClass"
RESTORE_IMAGE, RESTORE_LAYER = f"restore it with {RESTORE}", f"restore its image with {RESTORE}"


def manifest(*layers: bytes) -> str:
    descriptors = [
        {
            "digest": digest_of(blob),
            "size": len(blob),
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
        }
        for blob in layers
    ]
    config = {"digest": digest_of(CONFIG), "size": len(CONFIG), "mediaType": "a/b"}
    media_type = "application/vnd.oci.image.manifest.v1+json"
    document = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": config,
        "layers": descriptors,
    }
    return json.dumps(document)


ARCHIVED, ACTIVE = manifest(SHARED, OWN), manifest(SHARED)
ARCHIVED_DIGEST = digest_of(ARCHIVED.encode())


@pytest.fixture
def call(ecr: LocalECR) -> Caller:
    """Calls an ECR that has an archived image, ``old``, and an active one, ``new``."""
    LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS).upload_many([CONFIG, SHARED, OWN])
    call = Caller(ecr.client())
    for tag, text in (("old", ARCHIVED), ("new", ACTIVE)):
        call("put_image", imageManifest=text, imageTag=tag)
    answer = move(call, "ARCHIVE")
    assert answer["imageStatus"] == "ARCHIVED"
    assert answer["imageId"] == {"imageTag": "old"}
    return call


def move(call: Caller, storage_class: str, tag: str = "old") -> dict[str, Any]:
    image_id = {"imageTag": tag}
    return call("update_image_storage_class", imageId=image_id, targetStorageClass=storage_class)


def availability(call: Caller) -> list[str]:
    digests = [digest_of(blob) for blob in (CONFIG, SHARED, OWN)]
    layers = call("batch_check_layer_availability", layerDigests=digests)["layers"]
    return [layer["layerAvailability"] for layer in layers]


def test_layers_of_archived_image_are_archived_unless_an_active_image_has_them(
    call: Caller,
) -> None:
    assert availability(call) == ["AVAILABLE", "AVAILABLE", "ARCHIVED"]
    move(call, "ARCHIVE", "new")
    assert availability(call) == ["ARCHIVED"] * 3
    assert move(call, "STANDARD", "new")["imageStatus"] == "ACTIVE"
    assert availability(call) == ["AVAILABLE", "AVAILABLE", "ARCHIVED"]
    move(call, "STANDARD")
    assert availability(call) == ["AVAILABLE"] * 3


def test_archived_image_cannot_be_pulled(call: Caller, ecr: LocalECR) -> None:
    (failure,) = call("batch_get_image", imageIds=[{"imageTag": "old"}])["failures"]
    assert failure["failureCode"] == "ImageInaccessible"
    assert RESTORE_IMAGE in failure["failureReason"]
    error = call("get_download_url_for_layer", layerDigest=digest_of(OWN))
    assert error["code"] == "LayerInaccessibleException"
    assert RESTORE_LAYER in error["message"]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    remedies = {
        "manifests/old": RESTORE_IMAGE,
        f"manifests/{ARCHIVED_DIGEST}": RESTORE_IMAGE,
        f"blobs/{digest_of(OWN)}": RESTORE_LAYER,
    }
    for path, remedy in remedies.items():
        with pytest.raises(urllib.request.HTTPError) as raised:
            opener.open(f"{ecr.endpoint_url}/v2/demo/{path}")
        with raised.value as response:
            assert response.status == 404
            assert remedy.encode() in response.read()


def test_archived_image_is_listed_on_request_only(call: Caller) -> None:
    def tags(**parameters: Any) -> list[str]:
        images = call("list_images", **parameters)["imageIds"]
        details = call("describe_images", **parameters)["imageDetails"]
        assert [one["imageTag"] for one in images] == [one["imageTags"][0] for one in details]
        return [one["imageTag"] for one in images]

    assert tags() == tags(filter={"imageStatus": "ACTIVE"}) == ["new"]
    assert tags(filter={"imageStatus": "ARCHIVED"}) == ["old"]
    assert sorted(tags(filter={"imageStatus": "ANY"})) == ["new", "old"]
    ids = [{"imageTag": "old"}, {"imageTag": "new"}]
    details = call("describe_images", imageIds=ids)["imageDetails"]
    assert [one["imageStatus"] for one in details] == ["ARCHIVED", "ACTIVE"]


def test_archived_image_is_restored_when_it_is_put_again(call: Caller) -> None:
    """As AWS's user guide says, although its manifest and tag have not changed."""
    assert "image" in call("put_image", imageManifest=ARCHIVED, imageTag="old")
    assert availability(call) == ["AVAILABLE"] * 3
    answer = call("put_image", imageManifest=ARCHIVED, imageTag="old")
    assert answer["code"] == "ImageAlreadyExistsException"


def test_refused_put_does_not_restore_the_image(call: Caller, ecr: LocalECR) -> None:
    call("put_image_tag_mutability", imageTagMutability="IMMUTABLE")
    answer = call("put_image", imageManifest=ARCHIVED, imageTag="new")
    assert answer["code"] == "ImageTagAlreadyExistsException"
    assert availability(call)[-1] == "ARCHIVED"


def test_image_of_archived_layers_or_images_is_refused(call: Caller) -> None:
    error = call("put_image", imageManifest=manifest(OWN))
    assert error["code"] == "LayersNotFoundException"
    assert error["message"] == f"Archived: {digest_of(OWN)}: {RESTORE_LAYER}"
    media_type = "application/vnd.oci.image.index.v1+json"
    child = {"digest": ARCHIVED_DIGEST, "size": len(ARCHIVED), "mediaType": media_type}
    index = {"schemaVersion": 2, "mediaType": media_type, "manifests": [child]}
    error = call("put_image", imageManifest=json.dumps(index))
    assert error["code"] == "ReferencedImagesNotFoundException"
    assert error["message"] == f"Archived: {ARCHIVED_DIGEST}: {RESTORE_IMAGE}"
    missing = call("put_image", imageManifest=manifest(OWN, b"none"))
    assert digest_of(b"none") in missing["message"]


def test_cannot_archive_image_that_does_not_exist(call: Caller) -> None:
    assert move(call, "ARCHIVE", "none")["code"] == "ImageNotFoundException"


# The library


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The archived image, as ``skopeo copy dir:`` writes it."""
    files = {"version": b"Directory Transport Version: 1.1\n", "manifest.json": ARCHIVED.encode()}
    for blob in (CONFIG, SHARED, OWN):
        files[digest_of(blob).removeprefix("sha256:")] = blob
    directory = tmp_path / "image"
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


def test_push_of_archived_image_says_how_to_restore_it(
    call: Caller, ecr: LocalECR, image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ecr_parts")
    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
    assert uploader.missing([digest_of(SHARED), digest_of(OWN)]) == {digest_of(OWN)}
    for push in (lambda: uploader.upload(OWN), lambda: uploader.push_image(image, tags=["old"])):
        caplog.clear()
        with pytest.raises(ServiceError, match=RESTORE_LAYER):
            push()
        assert f"{digest_of(OWN)} is archived" in caplog.text
    move(call, "STANDARD")
    assert uploader.push_image(image, tags=["old"]).digest == ARCHIVED_DIGEST


def test_push_restores_archived_image_of_available_layers(
    call: Caller, ecr: LocalECR, image: Path
) -> None:
    move(call, "STANDARD")
    call("put_image", imageManifest=ARCHIVED + " ", imageTag="copy")
    move(call, "ARCHIVE")
    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
    assert uploader.push_image(image, tags=["old"]).digest == ARCHIVED_DIGEST
    (described,) = call("describe_images", imageIds=[{"imageTag": "old"}])["imageDetails"]
    assert described["imageStatus"] == "ACTIVE"


def test_deleted_archived_image_can_be_pushed_again(
    call: Caller, ecr: LocalECR, image: Path
) -> None:
    call("batch_delete_image", imageIds=[{"imageDigest": ARCHIVED_DIGEST}])
    assert availability(call) == ["AVAILABLE", "AVAILABLE"]  # the layer of this image is missing
    error = call("put_image", imageManifest=ARCHIVED, imageTag="old")
    assert error["code"] == "LayersNotFoundException"
    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
    assert uploader.push_image(image, tags=["old"]).digest == ARCHIVED_DIGEST
    (described,) = call("describe_images", imageIds=[{"imageTag": "old"}])["imageDetails"]
    assert described["imageStatus"] == "ACTIVE"


def test_deleting_an_image_keeps_the_layers_of_another_archived_one(call: Caller) -> None:
    move(call, "STANDARD")
    call("put_image", imageManifest=ARCHIVED + " ", imageTag="copy")
    for tag in ("old", "copy"):
        move(call, "ARCHIVE", tag)
    call("batch_delete_image", imageIds=[{"imageDigest": ARCHIVED_DIGEST}])
    assert availability(call) == ["AVAILABLE", "AVAILABLE", "ARCHIVED"]
    move(call, "STANDARD", "copy")
    call("batch_delete_image", imageIds=[{"imageTag": "copy"}])
    assert availability(call) == ["AVAILABLE"] * 3


def test_put_image_error_says_how_to_restore_a_layer(
    call: Caller, ecr: LocalECR, image: Path
) -> None:
    """The layer may be archived after it was found to be there."""
    available = [
        {"layerDigest": digest_of(blob), "layerAvailability": "AVAILABLE", "layerSize": len(blob)}
        for blob in (CONFIG, SHARED, OWN)
    ]
    (image / "manifest.json").write_text(manifest(OWN))
    ecr.respond("BatchCheckLayerAvailability", {"layers": available, "failures": []}, times=9)
    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
    with pytest.raises(ServiceError, match=f"if a layer is archived, .* with {RESTORE}"):
        uploader.push_image(image)


def test_archived_image_that_the_file_lacks_does_not_count_as_there(
    call: Caller, ecr: LocalECR, tmp_path: Path
) -> None:
    """An index with an image that cannot be pulled must not be pushed as if it were whole."""
    layout = Layout(tmp_path / "layout")
    here, absent = layout.add_image("amd64", [b"one"]), layout.add_image("arm64", [b"other"])
    index = layout.add_index(here, absent)
    layout.finish(*named(index, "all"))
    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
    assert uploader.push_image(layout.path).digest == index["digest"]
    layout.blob_path(absent).unlink()
    assert uploader.push_image(layout.path).digest == index["digest"]
    image_id = {"imageDigest": absent["digest"]}
    call("update_image_storage_class", imageId=image_id, targetStorageClass="ARCHIVE")
    assert uploader.push_image(layout.path).digest == here["digest"]
