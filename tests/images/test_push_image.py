"""Whole images: read from layouts and archives, checked, and pushed."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from ecr_calls import PushingClient
from helpers import (
    NO_WAIT,
    SMALL_LIMITS,
    digest_of,
    limited_file_size,
    operations,
    random_bytes,
)
from image_makers import (
    INDEX_TYPE,
    LAYER_TYPE,
    LAYERS,
    MANIFEST_TYPE,
    Descriptor,
    Layout,
    archive,
    docker_archive,
    named,
    two_platforms,
)
from pytest_mock import MockerFixture

from ecr_parts import (
    CheckpointError,
    DigestMismatchError,
    EcrClient,
    InvalidImageError,
    LayerUploader,
    ServiceError,
    SourceChangedError,
    UnexpectedResponseError,
)
from ecr_parts._model.layers import UnnamedFile
from ecr_parts.testing import EcrError, LocalECR, Unknowns

FAILED = EcrError("AccessDeniedException", "no")


def stored(ecr: LocalECR) -> dict[str, bytes]:
    """What the repository has, by digest."""
    repository = ecr.registry.repositories["demo"]
    layers = {digest: ecr.layer("demo", digest) for digest in repository.layers}
    return layers | {digest: image.manifest.encode() for digest, image in repository.images.items()}


def tags_of(ecr: LocalECR) -> dict[str, str]:
    return ecr.registry.repositories["demo"].tags


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return two_platforms(tmp_path / "layout")


@pytest.fixture(params=["layout", "archive"])
def image(request: pytest.FixtureRequest, layout: Layout, tmp_path: Path) -> Path:
    if request.param == "layout":
        return layout.path
    return archive(layout.path, tmp_path / "image.tar")


@pytest.fixture
def small(tmp_path: Path) -> Layout:
    """A layout without an index, to be finished by the test."""
    return Layout(tmp_path / "small")


# OCI image layouts


@pytest.mark.parametrize("service", ["ecr", "ecr-public"])
@pytest.mark.parametrize("checkpoints", [True, False])
def test_pushes_whole_image_once(
    service: Any, checkpoints: bool, image: Path, layout: Layout, ecr: LocalECR, tmp_path: Path
) -> None:
    uploader = LayerUploader(ecr.client(service), "demo", limits=SMALL_LIMITS)
    directory = tmp_path / "a" / "b" if checkpoints else None
    pushed = uploader.push_image(image, checkpoint_dir=directory)
    assert stored(ecr) == layout.content()
    assert tags_of(ecr) == {"v1": pushed.digest}
    assert (pushed.media_type, pushed.tags) == (INDEX_TYPE, ("v1",))
    assert pushed.size == len(stored(ecr)[pushed.digest])
    digests = {layer.digest for layer in pushed.layers}
    assert digests == set(ecr.registry.repositories["demo"].layers)
    assert not any(layer.existed for layer in pushed.layers)
    puts = ecr.calls_of("PutImage")
    assert len(puts) == 3
    first_put = ecr.calls.index(puts[0])
    assert {call.operation for call in ecr.calls[first_put:]} == {"PutImage"}

    ecr.calls.clear()
    again = uploader.push_image(str(image), checkpoint_dir=directory)
    assert (again.digest, again.tags) == (pushed.digest, pushed.tags)
    assert all(layer.existed for layer in again.layers)
    asked = ["BatchCheckLayerAvailability", "DescribeRepositories"]
    assert operations(ecr) == [*asked, *["PutImage"] * 3]
    assert directory is None or list(directory.iterdir()) == []


@pytest.mark.parametrize(
    ("tags", "stored_tags"),
    [(None, ["v1"]), (["v2", "latest", "v2"], ["v2", "latest"]), ([], []), (iter(["v3"]), ["v3"])],
)
def test_puts_image_under_each_tag(
    tags: Any, stored_tags: list[str], layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    pushed = uploader.push_image(layout.path, tags=tags)
    assert pushed.tags == tuple(stored_tags)
    assert tags_of(ecr) == dict.fromkeys(stored_tags, pushed.digest)
    assert len(ecr.calls_of("PutImage")) == 2 + max(1, len(stored_tags))


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("v1", "v1"),
        ("app:v1", "v1"),
        ("localhost:5000/team/app:v1", "v1"),
        ("localhost:5000/team/app", None),
        ("docker.io/library/app@sha256:00", None),
        ("app:", None),
        ("app:v 1", None),
        ("", None),
        (1, None),
    ],
)
def test_takes_tag_from_name_of_image(
    name: Any, tag: str | None, small: Layout, uploader: LayerUploader
) -> None:
    small.finish(*named(small.add_image("amd64", LAYERS[:1]), name))
    assert uploader.push_image(small.path).tags == (() if tag is None else (tag,))


def test_image_with_several_names_gets_all_their_tags(
    small: Layout, uploader: LayerUploader
) -> None:
    small.finish(*named(small.add_image("amd64", LAYERS[:1]), "app:v1", "app:v2", "other:v1"))
    assert uploader.push_image(small.path).tags == ("v1", "v2")


def test_pushes_nested_index_and_artifacts(
    small: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    image = small.add_image("amd64", LAYERS[:1])
    signature = small.add_image("unknown", LAYERS[1:2], subject=image, artifactType="a/signature")
    small.finish(small.add_index(small.add_index(image, signature), image))
    uploader.push_image(small.path)
    assert stored(ecr) == small.content()


def test_leaves_out_layer_that_is_downloaded_from_elsewhere(
    small: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    image = small.add_image("amd64", LAYERS[:2])
    manifest = json.loads(small.blob_path(image).read_text())
    missing = manifest["layers"][1]
    small.blob_path(missing).unlink()
    missing["urls"] = ["https://example.com/layer"]
    small.finish(small.add_json(manifest, MANIFEST_TYPE))
    ecr.respond("PutImage", EcrError("ImageAlreadyExistsException", ""))  # LocalECR wants all
    pushed = uploader.push_image(small.path)
    assert missing["digest"] not in {layer.digest for layer in pushed.layers}


def test_config_may_be_larger_than_a_manifest(small: Layout, local_ecr: LocalECR) -> None:
    config = small.add(bytes(4_194_305), "application/octet-stream")
    layers = [small.add(LAYERS[0], LAYER_TYPE)]
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers}
    small.finish(small.add_json(manifest, MANIFEST_TYPE))
    LayerUploader(local_ecr.client(), "demo").push_image(small.path)
    assert stored(local_ecr) == small.content()


# Platforms


def test_one_platform_gives_its_image_alone(
    image: Path, layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    pushed = uploader.push_image(image, platforms=["linux/arm64"])
    assert pushed.media_type == MANIFEST_TYPE
    assert tags_of(ecr) == {"v1": pushed.digest}
    assert len(stored(ecr)) == 4  # a manifest, a config and two layers
    assert stored(ecr).items() <= layout.content().items()


def test_all_platforms_give_the_index_itself(layout: Layout, uploader: LayerUploader) -> None:
    platforms = ["linux/arm64", "linux/amd64"]
    pushed = uploader.push_image(layout.path, platforms=platforms)
    assert pushed.digest == uploader.push_image(layout.path).digest


def test_some_platforms_give_an_index_of_them_and_their_attestations(
    small: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    names = ["amd64", "arm64", "arm"]
    images = [small.add_image(name, LAYERS[i : i + 1]) for i, name in enumerate(names)]
    images[2]["platform"]["variant"] = "v7"
    attestations = [small.add_image(f"unknown{i}", LAYERS[:1]) for i in range(3)]
    for one, attestation in zip(images, attestations, strict=True):
        attestation["annotations"] = {"vnd.docker.reference.digest": one["digest"]}
    images[0]["annotations"] = {"vnd.docker.reference.digest": {}}
    small.finish(small.add_index(*images, *attestations))
    pushed = uploader.push_image(small.path, platforms=["linux/arm64", "linux/arm"])
    index = json.loads(stored(ecr)[pushed.digest])
    assert index["mediaType"] == INDEX_TYPE
    assert index["manifests"] == [*images[1:], *attestations[1:]]


def test_platform_of_an_image_without_index_is_that_of_its_config(
    small: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    descriptor = small.add_image("amd64", LAYERS[:1])
    del descriptor["platform"]
    small.finish(descriptor)
    assert uploader.push_image(small.path, platforms=["linux/amd64"]).digest == descriptor["digest"]
    with pytest.raises(InvalidImageError, match=r"'linux/arm64'. Available: linux/amd64"):
        uploader.push_image(small.path, platforms=["linux/amd64", "linux/arm64"])


@pytest.mark.parametrize("platform", ["linux/s390x", "linux/arm64/v9", "windows/amd64"])
def test_reports_which_platforms_there_are(
    platform: str, layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    with pytest.raises(InvalidImageError, match="Available: linux/amd64, linux/arm64"):
        uploader.push_image(layout.path, platforms=["linux/amd64", platform])
    assert ecr.calls == []


# Docker archives


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("checkpoints", [True, False])
def test_pushes_docker_archive(
    linked: bool,
    compressed: bool,
    checkpoints: bool,
    ecr: LocalECR,
    uploader: LayerUploader,
    tmp_path: Path,
) -> None:
    layers = [*LAYERS, LAYERS[0]]  # the same one twice
    path = docker_archive(tmp_path / "image.tar", layers, linked=linked, compressed=compressed)
    directory = tmp_path / "checkpoints" if checkpoints else None
    pushed = uploader.push_image(path, checkpoint_dir=directory)
    assert tags_of(ecr) == {"v1": pushed.digest}
    content = stored(ecr)
    manifest = json.loads(content[pushed.digest])
    assert manifest["mediaType"] == pushed.media_type
    assert [gzip.decompress(content[layer["digest"]]) for layer in manifest["layers"]] == layers
    for descriptor in (manifest["config"], *manifest["layers"]):
        assert len(content[descriptor["digest"]]) == descriptor["size"]
    config = json.loads(content[manifest["config"]["digest"]])
    assert config["rootfs"]["diff_ids"] == [digest_of(layer) for layer in layers]

    ecr.calls.clear()
    assert uploader.push_image(path, checkpoint_dir=directory).digest == pushed.digest
    assert ecr.calls_of("UploadLayerPart") == []
    assert directory is None or list(directory.iterdir()) == []


def test_repeated_push_of_docker_archive_sends_nothing(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    """It compresses again, because nothing on the disk is believed about content."""
    path = docker_archive(tmp_path / "image.tar", LAYERS)
    sizes: list[int] = []
    pushed = uploader.push_image(
        path, checkpoint_dir=tmp_path / "checkpoints", progress=sizes.append
    )
    ecr.calls.clear()
    again: list[int] = []
    assert uploader.push_image(path, progress=again.append).digest == pushed.digest
    assert sum(sizes) == sum(again) == sum(layer.size for layer in pushed.layers)
    assert ecr.calls_of("UploadLayerPart") == []


def test_record_of_an_earlier_release_is_not_believed(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    """A cache that branches share could make a layer of another content part of the image."""
    foreign = uploader.upload(b"another layer, which ECR has")
    table = {digest_of(layer): [foreign.digest, foreign.size] for layer in LAYERS}
    (tmp_path / "compressed-layers.json").write_text(json.dumps({"version": 1, "layers": table}))
    path = docker_archive(tmp_path / "image.tar", LAYERS)
    pushed = uploader.push_image(path, checkpoint_dir=tmp_path)
    assert foreign.digest not in [layer.digest for layer in pushed.layers]


@pytest.mark.parametrize("damage", ["cut", "flipped", "other content", "trailing bytes"])
def test_compressed_layer_must_match_its_diff_id(
    damage: str, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    good, bad = gzip.compress(LAYERS[0]), bytearray(gzip.compress(LAYERS[0]))
    if damage == "cut":
        del bad[-9:]
    elif damage == "flipped":
        bad[50] ^= 1
    elif damage == "other content":
        bad[:] = gzip.compress(LAYERS[1])
    else:
        bad += b"trailing bytes"
    layout = docker_archive(tmp_path / "good.tar", [good])
    rootfs = {"diff_ids": [digest_of(LAYERS[0])]}
    path = docker_archive(tmp_path / "image.tar", [bytes(bad)], config={"rootfs": rootfs})
    with pytest.raises(InvalidImageError, match=r"is damaged|does not match") as raised:
        uploader.push_image(path, checkpoint_dir=tmp_path / "checkpoints")
    assert "image.tar" in str(raised.value)
    assert ecr.calls_of("PutImage") == []
    assert layout.exists()


@pytest.mark.parametrize("members", [2, 3])
def test_compressed_layer_may_have_several_gzip_members(
    members: int, uploader: LayerUploader, tmp_path: Path
) -> None:
    size = len(LAYERS[0]) // members
    parts = [LAYERS[0][i * size : (i + 1) * size] for i in range(members)]
    layer = b"".join(map(gzip.compress, parts))
    config = {"rootfs": {"diff_ids": [digest_of(b"".join(parts))]}}
    path = docker_archive(tmp_path / "image.tar", [layer], config=config)
    pushed = uploader.push_image(path)
    assert pushed.layers[1].digest == digest_of(layer)


def test_temporary_file_that_cannot_be_written(local_ecr: LocalECR, tmp_path: Path) -> None:
    path = docker_archive(tmp_path / "image.tar", [random_bytes(2_000_000)])
    uploader = LayerUploader(local_ecr.client(), "demo")
    with limited_file_size(1_000_000), pytest.raises(OSError, match=r"large\. Set TMPDIR"):
        uploader.push_image(path)
    assert local_ecr.calls_of("PutImage") == []


def test_unusable_checkpoint_dir(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path, mocker: MockerFixture
) -> None:
    compress = mocker.spy(zlib, "compressobj")
    directory = tmp_path / "checkpoints"
    directory.write_bytes(b"")
    with pytest.raises(CheckpointError, match="Pass another"):
        uploader.push_image(
            docker_archive(tmp_path / "image.tar", LAYERS), checkpoint_dir=directory
        )
    assert ecr.calls == []
    compress.assert_not_called()  # which would be for nothing


def test_docker_archive_without_tags(uploader: LayerUploader, tmp_path: Path) -> None:
    path = docker_archive(tmp_path / "image.tar", LAYERS, tags=None)
    assert uploader.push_image(path, platforms=["linux/amd64"]).tags == ()
    with pytest.raises(InvalidImageError, match=r"'linux/arm64'. Available: linux/amd64"):
        uploader.push_image(path, platforms=["linux/arm64"])


def test_layers_that_fill_the_disk_are_not_compressed(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path, mocker: MockerFixture
) -> None:
    mocker.patch("shutil.disk_usage", return_value=(1_000, 900, 100))
    with pytest.raises(OSError, match=r"may need 125 bytes more, and .* has 100: set TMPDIR"):
        uploader.push_image(docker_archive(tmp_path / "image.tar", LAYERS))
    assert ecr.calls_of("InitiateLayerUpload") == []


def test_layer_that_does_not_match_its_diff_id_is_not_sent(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    path = docker_archive(tmp_path / "image.tar", LAYERS)
    path.write_bytes(path.read_bytes().replace(LAYERS[1], bytes(len(LAYERS[1]))))
    with pytest.raises(InvalidImageError, match=f"does not match {digest_of(LAYERS[1])}"):
        uploader.push_image(path)
    contents = [ecr.layer("demo", one) for one in ecr.registry.repositories["demo"].layers]
    assert bytes(len(LAYERS[1])) not in [
        gzip.decompress(one) for one in contents if one[:1] != b"{"
    ]
    assert ecr.calls_of("PutImage") == []


def test_first_error_ends_the_compression(local_ecr: LocalECR, tmp_path: Path) -> None:
    layers = [LAYERS[1], random_bytes(30_000_000)]
    path = docker_archive(tmp_path / "image.tar", layers)
    path.write_bytes(path.read_bytes().replace(LAYERS[1], bytes(len(LAYERS[1]))))
    with pytest.raises(InvalidImageError, match=f"does not match {digest_of(LAYERS[1])}"):
        LayerUploader(local_ecr.client(), "demo").push_image(path)
    assert local_ecr.calls_of("PutImage") == []


def test_archive_that_changes_while_it_is_compressed(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path, mocker: MockerFixture
) -> None:
    path = docker_archive(tmp_path / "image.tar", LAYERS[:1])

    def truncate(*_: object) -> int:
        os.truncate(path, 600)
        return 0

    mocker.patch("zlib.crc32", truncate)
    with pytest.raises(SourceChangedError, match=r"image\.tar' changed its size .* to 600 bytes"):
        uploader.push_image(path)
    assert ecr.calls_of("PutImage") == []


@pytest.mark.parametrize(
    "kind", [KeyboardInterrupt, StopIteration, GeneratorExit, TimeoutError, InvalidImageError]
)
def test_progress_can_end_the_compression(
    kind: type[BaseException], local_ecr: LocalECR, tmp_path: Path, mocker: MockerFixture
) -> None:
    """With any exception, which comes out as it is."""
    mocker.patch("ecr_parts._base.threads._WAKE_INTERVAL", 0.01)  # seconds, for a faster test
    temporary_files = mocker.spy(tempfile, "TemporaryFile")
    path = docker_archive(tmp_path / "image.tar", [random_bytes(30_000_000)])

    own = kind("mine")

    def raise_own(_confirmed: int) -> None:
        if temporary_files.called and threading.current_thread() is threading.main_thread():
            raise own  # while it waits for the layer, not in the worker that sends the config

    with pytest.raises(kind) as raised:
        LayerUploader(local_ecr.client(), "demo").push_image(path, progress=raise_own)
    assert raised.value is own
    assert local_ecr.calls_of("PutImage") == []
    assert temporary_files.spy_return.closed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"manifest": []}, "has no image"),
        ({"manifest": 1}, "is not an image"),
        ({"manifest": [{}, {}]}, "has several images: pass name to choose one"),
        ({"manifest": [[]]}, "Config is None"),
        ({"manifest": [{}]}, "Config is None"),
        ({"manifest": [{"Config": "none", "Layers": []}]}, "has no 'none'"),
        ({"manifest": [{"Config": "../x", "Layers": []}]}, r"has no '\.\./x'"),
        ({"manifest": [{"Config": "manifest.json"}]}, "Layers is None"),
        ({"config": {}}, "rootfs is None"),
        ({"config": []}, "rootfs is None"),
        ({"config": {"rootfs": {"diff_ids": []}}}, "has 0 layers, and manifest.json 1"),
        ({"config": {"rootfs": {"diff_ids": ["x"]}}}, "names the layer 'x'"),
        ({"config": {"rootfs": {"diff_ids": [1]}}}, "names the layer 1"),
    ],
)
def test_rejects_invalid_docker_archive(
    changes: dict[str, Any], message: str, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    path = docker_archive(tmp_path / "image.tar", LAYERS[:1], **changes)
    with pytest.raises(InvalidImageError, match=message):
        uploader.push_image(path)
    assert ecr.calls == []


def test_rejects_docker_archive_with_other_content(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    path = docker_archive(tmp_path / "image.tar", LAYERS)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"amd64"', b'"arm64"'))
    with pytest.raises(InvalidImageError, match="has other content than its name says"):
        uploader.push_image(path)
    text = f'{digest_of(LAYERS[0])[7:]}.tar"'.encode()
    path.write_bytes(content.replace(text, text.replace(b"tar", b"gar")))
    with pytest.raises(InvalidImageError, match=r"has no layer '.*\.gar'"):
        uploader.push_image(path)
    assert ecr.calls == []


# What is checked before the first call


def cut_blob(layout: Layout, image: Descriptor) -> None:
    layer = json.loads(layout.blob_path(image).read_text())["layers"][0]
    layout.blob_path(layer).write_bytes(LAYERS[0][:-1])


def delete_blob(layout: Layout, image: Descriptor) -> None:
    layer = json.loads(layout.blob_path(image).read_text())["layers"][0]
    layout.blob_path(layer).unlink()


def blob_is_directory(layout: Layout, image: Descriptor) -> None:
    delete_blob(layout, image)
    layer = json.loads(layout.blob_path(image).read_text())["layers"][0]
    layout.blob_path(layer).mkdir()


def change_manifest(layout: Layout, image: Descriptor) -> None:
    path = layout.blob_path(image)
    path.write_bytes(path.read_bytes()[:-1] + b" ")


def change_config(layout: Layout, image: Descriptor) -> None:
    path = layout.blob_path(json.loads(layout.blob_path(image).read_text())["config"])
    path.write_bytes(path.read_bytes()[:-1] + b" ")


def empty_blob(layout: Layout, image: Descriptor) -> None:
    put_manifest(layout, image, layers=[layout.add(b"", LAYER_TYPE)])


def delete_config(layout: Layout, image: Descriptor) -> None:
    """URLs of a config do not help."""
    config = layout.add(b"config", "config", urls=["https://example.com"])
    put_manifest(layout, image, config=config)
    layout.blob_path(config).unlink()


def make_too_much_manifest(layout: Layout, image: Descriptor) -> None:
    manifest = json.loads(layout.blob_path(image).read_text())
    padded = [{**manifest, "annotations": {"n": str(n), "x": "x" * 4_000_000}} for n in range(13)]
    layout.finish(layout.add_index(*(layout.add_json(one, MANIFEST_TYPE) for one in padded)))


def delete_manifest(layout: Layout, image: Descriptor) -> None:
    layout.blob_path(image).unlink()


def make_too_many_layers(layout: Layout, image: Descriptor) -> None:
    layer = {"mediaType": "", "digest": image["digest"], "size": 1}
    put_manifest(layout, image, layers=[layer] * 501)


def put_manifest(layout: Layout, image: Descriptor, **members: object) -> None:
    manifest = json.loads(layout.blob_path(image).read_text())
    layout.finish(layout.add_json({**manifest, **members}, MANIFEST_TYPE))


def broken(**members: object) -> Callable[[Layout, Descriptor], None]:
    return lambda layout, image: put_manifest(layout, image, **members)


def with_descriptor(**members: object) -> Callable[[Layout, Descriptor], None]:
    def change(layout: Layout, image: Descriptor) -> None:
        layout.finish({name: value for name, value in {**image, **members}.items() if value != ""})

    return change


def make_deep(layout: Layout, image: Descriptor) -> None:
    for _ in range(8):
        image = layout.add_index(image)
    layout.finish(image)


def make_bomb(layout: Layout, image: Descriptor) -> None:
    layout.finish(layout.add(b"[" * 100_000, MANIFEST_TYPE))


def make_huge(layout: Layout, image: Descriptor) -> None:
    layout.finish(layout.add(bytes(5_000_000), MANIFEST_TYPE))


def make_huge_index_json(layout: Layout, image: Descriptor) -> None:
    (layout.path / "index.json").write_bytes(bytes(9_000_000))


def write_index_json(text: str) -> Callable[[Layout, Descriptor], None]:
    def write(layout: Layout, _image: Descriptor) -> None:
        (layout.path / "index.json").write_text(text)

    return write


def add_second_image(layout: Layout, image: Descriptor) -> None:
    second = layout.add_image("arm64", LAYERS[:1])
    layout.finish(*named(image, "app:v1"), second)


@pytest.mark.parametrize("source", ["layout", "archive"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut_blob, "has 59 bytes instead of 60"),
        (delete_blob, f"has no blob {digest_of(LAYERS[0])}"),
        (blob_is_directory, f"has no blob {digest_of(LAYERS[0])}"),
        (change_manifest, "blob sha256:.* has other content"),
        (change_config, "blob sha256:.* has other content"),
        (delete_manifest, "has no blob sha256:"),
        (make_too_many_layers, "has 501 layers, and ECR accepts 500"),
        (broken(config=None), "config is None"),
        (broken(layers={}), r"layers is \{\}"),
        (broken(layers=[1]), "mediaType is None"),
        (broken(layers=[{"mediaType": "x"}]), "digest is None"),
        (with_descriptor(size=True), "size is True"),
        (with_descriptor(size=-1), "with -1 bytes"),
        (with_descriptor(digest="sha256:../../etc/passwd"), r"refers to 'sha256:\.\./"),
        (with_descriptor(digest="sha512:00"), "refers to 'sha512:00'"),
        (with_descriptor(digest=digest_of(b""), urls=["https://example.com"]), "has no blob"),
        (empty_blob, "is empty, and ECR rejects empty layers"),
        (delete_config, "has no blob"),
        (make_too_much_manifest, "manifests take more than 50,331,648 bytes"),
        (with_descriptor(mediaType="text/plain"), "has the media type 'text/plain'"),
        (with_descriptor(mediaType=""), "mediaType is None"),
        (make_deep, "indexes in indexes, more than 5 deep"),
        (make_bomb, "is not JSON"),
        (make_huge, "has 5,000,000 bytes, more than 4,194,304"),
        (make_huge_index_json, "has 9,000,000 bytes, more than 8,388,608"),
        (write_index_json("{"), "is not JSON"),
        (write_index_json("[]"), "index.json is not a JSON object"),
        (write_index_json('{"manifests": []}'), "has no image"),
        (write_index_json('{"manifests": {}}'), r"manifests is \{\}"),
        (write_index_json('{"manifests": 1.50}'), r"manifests is 1\.50"),
        (add_second_image, r"They are app:v1 \(sha256:.*\); linux/arm64 \(sha256:.*\)"),
    ],
)
def test_checks_image_before_the_first_call(
    change: Callable[[Layout, Descriptor], None],
    message: str,
    source: str,
    small: Layout,
    ecr: LocalECR,
    uploader: LayerUploader,
    tmp_path: Path,
) -> None:
    image = small.add_image("amd64", LAYERS[:1])
    small.finish(image)
    change(small, image)
    path = archive(small.path, tmp_path / "image.tar") if source == "archive" else small.path
    with pytest.raises(InvalidImageError, match=message) as raised:
        uploader.push_image(path)
    assert repr(str(path)) in str(raised.value)
    assert set(operations(ecr)) <= {"BatchCheckLayerAvailability"}  # about blobs that are absent


def write_tar(path: Path, *members: tuple[str, bytes, str | bytes]) -> Path:
    """An archive of members with a name, a type, and a target or a content."""
    with tarfile.open(path, "w") as tar:
        for name, kind, target in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            if isinstance(target, str):
                member.linkname, target = target, b""
            member.size = len(target)
            tar.addfile(member, io.BytesIO(target))
    return path


@pytest.mark.parametrize(
    "members",
    [
        [("index.json", tarfile.SYMTYPE, "index.json")],
        [("index.json", tarfile.SYMTYPE, "a"), ("a", tarfile.LNKTYPE, "index.json")],
        [("index.json", tarfile.SYMTYPE, str(Path(__file__)))],
        [("index.json", tarfile.SYMTYPE, "../../../../../etc/passwd")],
        [("a/../../index.json", tarfile.REGTYPE, b"{}")],
        [("/index.json", tarfile.REGTYPE, b"{}")],
        [("index.json", tarfile.FIFOTYPE, b"")],
    ],
)
def test_names_in_an_archive_never_leave_it(
    members: list[Any], ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "image.tar", *members)
    with pytest.raises(InvalidImageError, match=r"is not an image|leads nowhere"):
        uploader.push_image(path)
    assert ecr.calls == []


@pytest.mark.parametrize("content", [b"", b"text", bytes(100), b"text" * 200])
def test_refuses_what_is_no_archive(
    content: bytes, uploader: LayerUploader, tmp_path: Path
) -> None:
    path = tmp_path / "image.tar"
    path.write_bytes(content)
    with pytest.raises(InvalidImageError, match=r"is not a tar archive|is not an image"):
        uploader.push_image(path)


def test_archive_that_is_cut_off(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    path = archive(layout.path, tmp_path / "image.tar")
    content = path.read_bytes()
    for size in range(0, len(content.rstrip(b"\0")), 400):
        path.write_bytes(content[:size])
        try:
            uploader.push_image(path)
        except (InvalidImageError, SourceChangedError):
            assert ecr.calls == []
        else:
            assert stored(ecr) == layout.content()  # nothing of the image was cut off
            return
    pytest.fail("no cut was harmless")


@pytest.mark.parametrize("kind", ["none", "fifo", "directory"])
def test_path_that_is_no_image(kind: str, uploader: LayerUploader, tmp_path: Path) -> None:
    path = tmp_path / kind
    if kind == "none":
        with pytest.raises(FileNotFoundError):
            uploader.push_image(path)
        return
    os.mkfifo(path) if kind == "fifo" else path.mkdir()
    with pytest.raises(InvalidImageError, match=r"save the image to a file|has neither index.json"):
        uploader.push_image(path)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"image": b"bytes"}, TypeError, "image must be a path"),
        ({"image": None}, TypeError, "image must be a path"),
        ({"tags": "v1"}, TypeError, "tags must be an iterable"),
        ({"tags": 1}, TypeError, "tags must be an iterable"),
        ({"tags": [1]}, TypeError, "tags must be an iterable of str, not of 1"),
        ({"tags": ["v 1"]}, ValueError, "tags: 'v 1'"),
        ({"tags": ["a" * 301]}, ValueError, "tags: 'aaa"),
        ({"platforms": "linux/amd64"}, TypeError, "platforms must be an iterable"),
        ({"platforms": []}, ValueError, "platforms must not be empty"),
        ({"platforms": ["amd64"]}, ValueError, "platforms: 'amd64'"),
        ({"max_workers": 0}, ValueError, "max_workers must be at least 1"),
        ({"checkpoint_dir": 1}, TypeError, "checkpoint_dir must be a path"),
        ({"progress": 1}, TypeError, "progress must be callable"),
    ],
)
def test_rejects_invalid_arguments(
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
    layout: Layout,
    ecr: LocalECR,
    uploader: LayerUploader,
) -> None:
    with pytest.raises(error, match=message):
        uploader.push_image(**{"image": layout.path, **arguments})
    assert ecr.calls == []


def test_client_must_be_able_to_put_images(layout: Layout, ecr: LocalECR) -> None:
    class LayerClient:
        def __init__(self, client: Any) -> None:
            for method in (
                "batch_check_layer_availability",
                "initiate_layer_upload",
                "upload_layer_part",
                "complete_layer_upload",
            ):
                setattr(self, method, getattr(client, method))

    client: Any = LayerClient(ecr.client())
    uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS)
    with pytest.raises(TypeError, match="which has no put_image"):
        uploader.push_image(layout.path)
    assert ecr.calls == []


# Blobs


def test_blob_with_other_bytes_is_named_and_no_manifest_is_put(
    image: Path, ecr: LocalECR, uploader: LayerUploader
) -> None:
    for path in [image] if image.is_file() else list((image / "blobs" / "sha256").iterdir()):
        path.write_bytes(path.read_bytes().replace(LAYERS[1], bytes(len(LAYERS[1]))))
    with pytest.raises(DigestMismatchError, match=digest_of(LAYERS[1])) as raised:
        uploader.push_image(image)
    assert raised.value.layer is not None
    assert raised.value.layer.digest == digest_of(LAYERS[1])
    assert ecr.calls_of("PutImage") == []


def test_error_can_be_pickled(layout: Layout, uploader: LayerUploader, tmp_path: Path) -> None:
    path = archive(layout.path, tmp_path / "image.tar")
    path.write_bytes(path.read_bytes().replace(LAYERS[1], bytes(len(LAYERS[1]))))
    with pytest.raises(DigestMismatchError) as raised:
        uploader.push_image(path)
    layer = pickle.loads(pickle.dumps(raised.value)).layer
    assert layer == raised.value.layer
    with pytest.raises(DigestMismatchError):
        uploader.upload(layer.source, digest=layer.digest)


@pytest.mark.parametrize("size", [0, 1024])
def test_archive_that_is_cut_during_the_push(
    size: int, layout: Layout, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    path = archive(layout.path, tmp_path / "image.tar")

    def truncate(_confirmed: int) -> None:
        if ecr.calls:
            os.truncate(path, size)

    with pytest.raises(SourceChangedError, match="cut off, or was replaced"):
        uploader.push_image(path, progress=truncate)
    assert ecr.calls_of("PutImage") == []


def test_error_of_another_push_keeps_its_manifests(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    other = ServiceError("raised by progress")
    other.manifests = ("another",)

    def raise_once_manifests_are_put(_confirmed: int) -> None:
        if ecr.calls_of("PutImage"):
            raise other

    with pytest.raises(ServiceError, match="raised by progress") as raised:
        uploader.push_image(layout.path, progress=raise_once_manifests_are_put)
    assert raised.value is other
    assert other.manifests == ("another",)


def test_progress_adds_up_to_the_sizes_of_the_blobs(image: Path, uploader: LayerUploader) -> None:
    for _ in range(2):
        sizes: list[int] = []
        pushed = uploader.push_image(image, progress=sizes.append)
        assert sum(sizes) == sum(layer.size for layer in pushed.layers)


@pytest.mark.parametrize("failing_call", range(1, 20))  # of 19 calls
def test_resumes_each_blob_where_ecr_stands(
    failing_call: int, image: Path, layout: Layout, ecr: LocalECR, tmp_path: Path
) -> None:
    uploader = LayerUploader(
        ecr.client(), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT, overlap=False
    )
    directory = tmp_path / "checkpoints"
    ecr.respond("UploadLayerPart", FAILED, call=failing_call)
    with pytest.raises(ServiceError, match="AccessDenied"):
        uploader.push_image(image, checkpoint_dir=directory, max_workers=2)
    assert list(directory.iterdir())
    uploader.push_image(image, checkpoint_dir=directory, max_workers=2)
    assert stored(ecr) == layout.content()
    assert list(directory.iterdir()) == []
    sent = [
        (call.first_byte or 0, call.last_byte or 0)
        for call in ecr.calls_of("UploadLayerPart")
        if call.outcome == "ok"
    ]
    total = sum(layer.size for layer in ecr.registry.repositories["demo"].layers.values())
    assert sum(last - first + 1 for first, last in sent) == total  # no byte twice


PUSHING_PROCESS = """
import sys
from ecr_parts import LayerUploader, Limits
from ecr_parts.testing import LocalECR

url, path, directory = sys.argv[1:]
limits = Limits(min_part=4, max_part=16, max_parts=60, max_layer=500)
uploader = LayerUploader(LocalECR().client(endpoint_url=url), "demo", limits=limits)
uploader.push_image(path, checkpoint_dir=directory, progress=lambda n: print(n, flush=True))
"""


@pytest.mark.skipif(os.name != "posix", reason="requires SIGKILL")
def test_resumes_after_kills(
    image: Path, layout: Layout, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    directory = tmp_path / "checkpoints"
    for lines in (2, 16, 30):  # of 58
        arguments = [ecr.endpoint_url, str(image), str(directory)]
        command = [sys.executable, "-c", PUSHING_PROCESS, *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(lines):
                process.stdout.readline()
            process.kill()
    uploader.push_image(image, checkpoint_dir=directory)
    assert stored(ecr) == layout.content()
    assert list(directory.glob("*.checkpoint")) == []
    refused = [call for call in ecr.calls_of("UploadLayerPart") if call.outcome != "ok"]
    assert len(refused) <= 3 * 4 * 2  # those of each worker that were in flight


# Manifests


@pytest.mark.parametrize("lag", [1, 4])
def test_waits_while_put_image_lags(lag: int, layout: Layout) -> None:
    with LocalECR(unknowns=Unknowns(image_lag=lag)) as ecr:
        uploader = LayerUploader(ecr.client(), "demo", retrying=NO_WAIT)
        uploader.push_image(layout.path)
        assert stored(ecr) == layout.content()
        assert len(ecr.calls_of("CompleteLayerUpload")) == 5


def test_uploads_layers_again_that_ecr_deleted(
    image: Path, layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    client: Any = ecr.client()
    uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
    layers = ecr.registry.repositories["demo"].layers

    def delete_layer(**_event: object) -> None:
        client.meta.events.unregister("before-call.ecr.PutImage", delete_layer)
        del layers[digest_of(LAYERS[0])]

    client.meta.events.register("before-call.ecr.PutImage", delete_layer)
    sizes: list[int] = []
    pushed = uploader.push_image(image, progress=sizes.append)
    assert stored(ecr) == layout.content()
    assert len(ecr.calls_of("CompleteLayerUpload")) == 6
    assert sum(sizes) == sum(layer.size for layer in pushed.layers)


def test_error_of_second_upload_tells_what_was_put(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    ecr.respond("PutImage", EcrError("LayersNotFoundException", "no"), call=2, times=5)
    ecr.respond("BatchCheckLayerAvailability", FAILED, call=2)
    with pytest.raises(ServiceError, match="BatchCheckLayerAvailability") as raised:
        uploader.push_image(layout.path)
    assert list(raised.value.manifests) == list(ecr.registry.repositories["demo"].images)
    assert len(raised.value.manifests) == 1


def test_gives_up_if_layers_are_missing_after_they_were_uploaded_again(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    missing = EcrError("LayersNotFoundException", "not there")
    ecr.respond("PutImage", missing, call=3, times=100)
    with pytest.raises(ServiceError, match="Push the image again") as raised:
        uploader.push_image(layout.path)
    assert raised.value.operation == "PutImage"
    assert len(raised.value.manifests) == 2
    assert set(raised.value.manifests) == set(ecr.registry.repositories["demo"].images)


def test_uploads_again_what_was_not_compressed(ecr: LocalECR, tmp_path: Path) -> None:
    path = docker_archive(tmp_path / "image.tar", LAYERS)
    client: Any = ecr.client()
    uploader = LayerUploader(client, "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
    pushed = uploader.push_image(path, checkpoint_dir=tmp_path)
    repository = ecr.registry.repositories["demo"]
    repository.images.clear()

    def delete_layers(**_event: object) -> None:
        client.meta.events.unregister("before-call.ecr.PutImage", delete_layers)
        repository.layers.clear()

    client.meta.events.register("before-call.ecr.PutImage", delete_layers)
    assert uploader.push_image(path, checkpoint_dir=tmp_path).digest == pushed.digest
    assert len(repository.layers) == 4


@pytest.mark.parametrize("fault", ["answer_lost", "throttled", "html_503", "answer_cut"])
def test_put_image_is_retried(
    fault: Any, layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    for call in (1, 3, 5):
        ecr.fail("PutImage", fault, call=call)
    uploader.push_image(layout.path)
    assert stored(ecr) == layout.content()
    assert list(tags_of(ecr)) == ["v1"]


def test_repository_that_does_not_exist(layout: Layout, ecr: LocalECR) -> None:
    uploader = LayerUploader(ecr.client(), "none")
    with pytest.raises(ServiceError, match="Create the repository"):
        uploader.push_image(layout.path)
    path, directory = docker_archive(layout.path.parent / "image.tar", LAYERS), layout.path.parent
    LayerUploader(ecr.client(), "demo").push_image(path, checkpoint_dir=directory)
    for checkpoint_dir in (None, directory):  # ECR is asked for what was compressed before
        with pytest.raises(ServiceError, match="Create the repository"):
            uploader.push_image(path, checkpoint_dir=checkpoint_dir)


@pytest.mark.parametrize(
    "answer", [{}, {"image": {}}, {"image": {"imageId": {"imageDigest": digest_of(b"")}}}]
)
def test_rejects_unexpected_answer_to_put_image(
    answer: dict[str, Any], layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    ecr.respond("PutImage", answer, times=100)
    with pytest.raises(UnexpectedResponseError, match=r"PutImage .* ECR's answer is malformed"):
        uploader.push_image(layout.path)


# Other people's tools

needs_skopeo = pytest.mark.skipif(not shutil.which("skopeo"), reason="skopeo is not installed")


def skopeo(*arguments: str) -> None:
    subprocess.run(["skopeo", "--insecure-policy", *arguments], check=True, capture_output=True)


def make_real_image(path: Path) -> Layout:
    """An image whose layers are archives, and whose configs have diff IDs, as skopeo requires."""
    layout = Layout(path)
    images = []
    for architecture in ("amd64", "arm64"):
        layers, diff_ids = [], []
        for name in ("shared", architecture):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as tar:
                member = tarfile.TarInfo(f"etc/{name}")
                member.size = 100_000
                tar.addfile(member, io.BytesIO(random_bytes(100_000)))
            diff_ids.append(digest_of(buffer.getvalue()))
            layers.append(layout.add(gzip.compress(buffer.getvalue(), mtime=0), LAYER_TYPE))
        platform = {"architecture": architecture, "os": "linux"}
        config = layout.add_json(
            {**platform, "rootfs": {"type": "layers", "diff_ids": diff_ids}},
            "application/vnd.oci.image.config.v1+json",
        )
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": config,
            "layers": layers,
        }
        images.append(layout.add_json(manifest, MANIFEST_TYPE, platform=platform))
    layout.finish(*named(layout.add_index(*images), "v1"))
    return layout


@pytest.fixture(scope="module")
def real_image(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return make_real_image(tmp_path_factory.mktemp("real") / "layout")


def diff_ids(layout: Path) -> list[str]:
    """The diff IDs of the only image in a layout."""

    def read(descriptor: Descriptor) -> Any:
        digest = descriptor["digest"].partition(":")[2]
        return json.loads((layout / "blobs" / "sha256" / digest).read_text())

    (image,) = json.loads((layout / "index.json").read_text())["manifests"]
    found: list[str] = read(read(image)["config"])["rootfs"]["diff_ids"]
    return found


@needs_skopeo
@pytest.mark.parametrize("service", ["ecr", "ecr-public"])
@pytest.mark.parametrize("transport", ["oci", "oci-archive", "docker-archive"])
@pytest.mark.parametrize("platforms", [["amd64"], ["amd64", "arm64"]])
def test_skopeo_pulls_what_skopeo_wrote(
    service: Any,
    transport: str,
    platforms: list[str],
    real_image: Layout,
    local_ecr: LocalECR,
    tmp_path: Path,
) -> None:
    written, pulled = tmp_path / "written", tmp_path / "pulled"
    whole = len(platforms) > 1 and transport != "docker-archive"
    options = ["copy", "--all"] if whole else ["copy"]
    overrides = [] if whole else [f"--override-arch={platforms[-1]}", "--override-os=linux"]
    skopeo(*overrides, *options, f"oci:{real_image.path}:v1", f"{transport}:{written}:app:v1")

    pushed = LayerUploader(local_ecr.client(service), "demo").push_image(written)
    assert pushed.tags == ("v1",)
    registry = f"docker://{local_ecr.endpoint_url.removeprefix('http://')}/demo:v1"
    skopeo(*overrides, *options, "--src-tls-verify=false", registry, f"oci:{pulled}:v1")
    if transport == "docker-archive":
        source = tmp_path / "source"
        skopeo(*overrides, *options, f"oci:{real_image.path}:v1", f"oci:{source}:v1")
        assert diff_ids(pulled) == diff_ids(source)
        return
    blobs = {path.name: path.read_bytes() for path in (pulled / "blobs" / "sha256").iterdir()}
    expected = {digest[7:]: blob for digest, blob in real_image.content().items()}
    assert blobs.items() <= expected.items()
    assert len(blobs) == (8 if whole else 4)  # the layers, configs, manifests and the index


# Descriptors, numbers and links


def test_all_descriptors_of_a_digest_must_agree(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    """In different manifests, or twice in one."""
    for name, change in (("one", 1), ("two", -1)):
        layout = Layout(tmp_path / name)
        layer = layout.add(LAYERS[0], LAYER_TYPE)
        images = [layout.add_image("amd64", [LAYERS[0]]), layout.add_image("arm64", [LAYERS[1]])]
        wrong = {**layer, "size": layer["size"] + change, "urls": ["https://example.com"]}
        document = json.loads(layout.blob_path(images[1]).read_bytes())
        document["layers"].append(wrong)
        images[1] = layout.add_json(document, MANIFEST_TYPE, platform=images[1]["platform"])
        image = layout.finish(*named(layout.add_index(*images), "app:v1"))
        with pytest.raises(InvalidImageError, match=r"60 bytes|another descriptor"):
            uploader.push_image(image)
    assert ecr.calls == []


def test_rewritten_index_keeps_numbers(
    uploader: LayerUploader, tmp_path: Path, ecr: LocalECR
) -> None:
    layout = Layout(tmp_path / "image")
    images = [layout.add_image(name, LAYERS[:1]) for name in ("amd64", "arm64", "s390x")]
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": images}
    numbers = "[1e999, 0.10, 12345678901234567890.5, 1E+2, -0.0, 10000000000000000000001]"
    text = json.dumps(index)[:-1] + f', "annotations": {{"numbers": {numbers}}}}}'
    layout.finish(layout.add(text.encode(), INDEX_TYPE))
    pushed = uploader.push_image(layout.path, platforms=["linux/amd64", "linux/arm64"])
    content = ecr.registry.repositories["demo"].images[pushed.digest].manifest
    assert f'"annotations":{{"numbers":{numbers.replace(" ", "")}}}' in content
    assert "s390x" not in content


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_refuses_constants_that_are_not_json(
    constant: str, uploader: LayerUploader, tmp_path: Path
) -> None:
    layout = Layout(tmp_path / "image")
    image = layout.add(f'{{"schemaVersion": 2, "a": {constant}}}'.encode(), MANIFEST_TYPE)
    layout.finish(image)
    with pytest.raises(InvalidImageError, match=f"{constant} is not a number in JSON"):
        uploader.push_image(layout.path)


def test_link_that_leads_to_itself_is_an_error(uploader: LayerUploader, tmp_path: Path) -> None:
    layout = two_platforms(tmp_path / "image")
    for blob in layout.blobs.iterdir():
        blob.unlink()
        blob.symlink_to(blob)
    with pytest.raises(InvalidImageError, match="symbolic links"):
        uploader.push_image(layout.path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="requires FIFOs")
@pytest.mark.parametrize("name", ["index.json", "a blob"])
def test_fifo_in_a_layout_is_not_waited_for(
    name: str, uploader: LayerUploader, tmp_path: Path
) -> None:
    layout = two_platforms(tmp_path / "image")
    path = layout.path / name if name == "index.json" else next(layout.blobs.iterdir())
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InvalidImageError):
        uploader.push_image(layout.path)


def test_paths_of_an_image_are_those_of_the_working_directory_at_the_call(
    uploader: LayerUploader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_platforms(tmp_path / "image")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    pushed = uploader.push_image(
        "image", checkpoint_dir="checkpoints", progress=lambda _: os.chdir(tmp_path / "elsewhere")
    )
    assert pushed.tags == ("v1",)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="requires FIFOs")
def test_file_that_becomes_a_fifo_while_it_is_looked_at_is_an_error(
    uploader: LayerUploader, tmp_path: Path, mocker: MockerFixture
) -> None:
    layout = two_platforms(tmp_path / "image")
    index = layout.path / "index.json"
    open_file = os.open

    def replace_and_open(path: Any, *arguments: Any) -> int:
        if os.fspath(path) == str(index):
            index.unlink()
            os.mkfifo(index)
        return open_file(path, *arguments)

    mocker.patch("os.open", replace_and_open)
    with pytest.raises(InvalidImageError, match="is not a regular file any more"):
        uploader.push_image(layout.path)


def test_error_of_the_disk_is_passed_on(
    uploader: LayerUploader, tmp_path: Path, mocker: MockerFixture
) -> None:
    layout = two_platforms(tmp_path / "image")
    get_status = os.stat

    def fail(path: Any, **options: Any) -> os.stat_result:
        if "blobs" in str(path):
            raise OSError(5, "Input/output error")
        return get_status(path, **options)

    mocker.patch("os.stat", fail)
    with pytest.raises(OSError, match="Input/output error"):
        uploader.push_image(layout.path)


def test_error_of_a_compressed_layer_describes_it(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    """It has no path, so nothing can be opened by its name."""
    ecr.fail("UploadLayerPart", "access_denied", times=100)
    with pytest.raises(ServiceError) as raised:
        uploader.push_image(docker_archive(tmp_path / "image.tar", LAYERS))
    error = pickle.loads(pickle.dumps(raised.value))
    for layer in (raised.value.layer, error.layer):
        assert layer is not None
        assert "the compressed layer sha256:" in repr(layer.source) or "Region" in repr(layer)
    with open(tmp_path / "image.tar", "rb", buffering=0) as file:
        assert repr(UnnamedFile(file, 3, "a file")) == "<a file>"
        assert UnnamedFile(file, 3, "a file").read(3) == (tmp_path / "image.tar").read_bytes()[:3]


# Tags that are immutable, and repositories that do not exist


def single(layout: Layout, name: str = "v1", layers: int = 1) -> Descriptor:
    image = layout.add_image("amd64", LAYERS[:layers])
    layout.finish(*named(image, name))
    return image


@pytest.mark.parametrize("plain", [True, False])
def test_immutable_tag_of_the_same_image(
    plain: bool, small: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    """ECR may refuse the very image that has the tag: a CI job that runs again."""
    ecr.registry.repositories["demo"].immutable_tags = True
    small.finish(
        *named((small.add_plain_image if plain else small.add_image)("amd64", LAYERS), "v1")
    )
    first = uploader.push_image(small.path)
    refusal = EcrError("ImageTagAlreadyExistsException", "immutable")
    ecr.respond("PutImage", refusal)
    again = uploader.push_image(small.path)
    assert (again.digest, again.tags) == (first.digest, ("v1",))


@pytest.mark.parametrize(
    "denied", [(), ("BatchGetImage",), ("DescribeRepositories",)], ids=lambda denied: str(denied)
)
def test_immutable_tag_of_another_image(
    denied: tuple[str, ...], small: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    ecr.registry.repositories["demo"].immutable_tags = True
    single(small)
    first = uploader.push_image(small.path)
    second = single(small, layers=2)
    ecr.calls.clear()
    for operation in denied:
        ecr.respond(operation, FAILED, times=9)
    asked = "DescribeRepositories" not in denied
    with pytest.raises(InvalidImageError if asked else ServiceError) as raised:
        uploader.push_image(small.path)
    assert first.digest in str(raised.value)
    assert second["digest"] in str(raised.value)
    assert bool(ecr.calls_of("UploadLayerPart")) != asked  # else, PutImage decides
    assert uploader.push_image(small.path, tags=["v2"]).tags == ("v2",)


def test_question_that_need_not_be_answered_is_asked_twice_at_most(
    small: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    """A service that answers everything else should not delay a push by minutes."""
    single(small)
    ecr.respond("DescribeRepositories", EcrError("ServerException", "no", status=500), times=99)
    assert uploader.push_image(small.path).tags == ("v1",)
    assert len(ecr.calls_of("DescribeRepositories")) == 2


def test_immutable_tag_that_nobody_may_look_up(
    small: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    """Nothing is claimed about the image that has the tag."""
    ecr.registry.repositories["demo"].immutable_tags = True
    single(small)
    uploader.push_image(small.path)
    single(small, layers=2)
    for operation in ("BatchGetImage", "DescribeImages"):
        ecr.respond(operation, FAILED, times=9)
    with pytest.raises(ServiceError, match="The tag is immutable: push with another tag") as raised:
        uploader.push_image(small.path)
    assert "The tag is that of" not in str(raised.value)


@pytest.mark.parametrize("service", ["ecr", "ecr-public"])
@pytest.mark.parametrize("exists", [True, False])
def test_creates_repository(service: Any, exists: bool, small: Layout, ecr: LocalECR) -> None:
    image, name = single(small), "demo" if exists else "team/new"
    (described,) = ecr.client().describe_repositories()["repositories"]
    registry_id = described["registryId"]
    uploader = LayerUploader(ecr.client(service), name, registry_id=registry_id)
    if not exists:
        with pytest.raises(ServiceError, match="RepositoryNotFoundException"):
            uploader.push_image(small.path)
    ecr.calls.clear()
    assert uploader.push_image(small.path, create_repository=True).digest == image["digest"]
    assert ("CreateRepository" in operations(ecr)) != exists


def test_repository_that_another_job_creates_meanwhile(
    small: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    single(small)
    missing = EcrError("RepositoryNotFoundException", "no")
    ecr.respond("BatchCheckLayerAvailability", missing)
    assert uploader.push_image(small.path, create_repository=True).tags == ("v1",)
    assert "CreateRepository" in operations(ecr)  # which was refused, because it exists


@pytest.mark.parametrize("operation", ["BatchCheckLayerAvailability", "CreateRepository"])
def test_repository_that_cannot_be_created(operation: str, small: Layout, ecr: LocalECR) -> None:
    single(small)
    uploader = LayerUploader(ecr.client(), "team/new", retrying=NO_WAIT)
    ecr.respond(operation, FAILED)
    with pytest.raises(ServiceError, match=f"^{operation} .* Allow ecr:{operation} on"):
        uploader.push_image(small.path, create_repository=True)


def test_nothing_is_created_for_an_image_that_is_refused(small: Layout, ecr: LocalECR) -> None:
    small.finish()
    uploader = LayerUploader(ecr.client(), "team/new")
    with pytest.raises(InvalidImageError):
        uploader.push_image(small.path, create_repository=True)
    assert ecr.calls == []


def test_client_that_cannot_create_repositories(ecr: LocalECR, small: Layout) -> None:
    single(small)
    client = PushingClient(ecr.client())
    uploader = LayerUploader(cast("EcrClient", client), "demo", limits=SMALL_LIMITS)
    assert uploader.push_image(small.path).tags == ("v1",)
    ecr.respond("PutImage", EcrError("ImageTagAlreadyExistsException", "no"), times=9)
    with pytest.raises(ServiceError, match="The tag is immutable"):
        uploader.push_image(small.path)
    with pytest.raises(TypeError, match="which has no create_repository"):
        uploader.push_image(small.path, create_repository=True)
