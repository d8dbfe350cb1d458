"""Image files as tools write them: pushed as docker or skopeo would, or refused with advice."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import digest_of, limited_file_size, random_bytes, wait_for_threads
from image_makers import (
    DOCKER_MANIFEST_TYPE,
    INDEX_TYPE,
    LAYERS,
    MANIFEST_TYPE,
    Layout,
    Zstd,
    archive,
    attested,
    directory_format,
    docker_archive,
    named,
    saved,
    several_in_docker_archive,
    two_platforms,
)
from pytest_mock import MockerFixture

from ecr_parts import InvalidImageError, LayerUploader, PushedImage, ServiceError
from ecr_parts._images.observer import PushObserver
from ecr_parts._images.push import PushOptions
from ecr_parts._uploader import push_observed
from ecr_parts.testing import LocalECR

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


def manifest_of(ecr: LocalECR, digest: str) -> Any:
    return json.loads(ecr.registry.repositories["demo"].images[digest].manifest)


def diff_ids_of(ecr: LocalECR, digest: str) -> list[str]:
    """The digests of an image's layers, decompressed. All must be compressed."""
    layers = manifest_of(ecr, digest)["layers"]
    assert all(layer["mediaType"].endswith("gzip") for layer in layers)
    return [digest_of(gzip.decompress(ecr.layer("demo", layer["digest"]))) for layer in layers]


def tags_of(ecr: LocalECR) -> dict[str, str]:
    return ecr.registry.repositories["demo"].tags


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


# docker save, podman save, buildx


@pytest.mark.parametrize("is_archive", [True, False])
def test_docker_save_since_25(
    is_archive: bool, layout: Layout, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    """An OCI layout whose layers are plain, and one of them empty: a file of 0 bytes."""
    layers = [bytes(1_024), b"", LAYERS[0]]
    image = layout.add_plain_image("amd64", layers)
    del image["platform"]
    path = layout.finish(saved(image, "docker.io/library/app:v1"))
    path = archive(path, tmp_path / "image.tar") if is_archive else path
    pushed = uploader.push_image(path)
    assert tags_of(ecr) == {"v1": pushed.digest}
    assert diff_ids_of(ecr, pushed.digest) == [digest_of(layer) for layer in layers]
    before, after = json.loads(layout.blob_path(image).read_text()), manifest_of(ecr, pushed.digest)
    sizes = [layer.pop("size") for layer in after["layers"]]
    assert max(sizes[:2]) < 50
    for layer in (*before["layers"], *after["layers"]):
        del layer["digest"]
        layer.pop("size", None)
        layer["mediaType"] = layer["mediaType"].removesuffix("+gzip")
    assert after == before  # nothing else was changed


def test_docker_save_of_the_containerd_store(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader, caplog: pytest.LogCaptureFixture
) -> None:
    """An index of all platforms, of which only the one that was pulled is there."""
    here, absent = (layout.add_image(name, LAYERS[i:]) for i, name in enumerate(["amd64", "arm64"]))
    statement = attested(here, layout.add_image("unknown", LAYERS[2:]))
    index = layout.add_index(here, statement, absent)
    layout.blob_path(absent).unlink()
    path = layout.finish(saved(index, "docker.io/library/app:v1"))
    (path / "manifest.json").write_text('[{"Config": "blobs/sha256/x", "Layers": []}]')
    pushed = uploader.push_image(path)
    assert pushed.digest == here["digest"]
    assert tags_of(ecr) == {"v1": pushed.digest}
    assert f"only the image for linux/amd64, {here['digest']}, is pushed" in caplog.text
    with pytest.raises(InvalidImageError, match=f"has no blob {absent['digest']} of the image for"):
        uploader.push_image(path, platforms=["linux/arm64"])


def test_docker_save_of_several_images(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    images = {("app:v1",): LAYERS[:2], ("app:v2", "other:v9"): LAYERS}
    path = several_in_docker_archive(tmp_path / "image.tar", images)
    with pytest.raises(InvalidImageError, match=r"app:v1 \(sha256:.*app:v2, other:v9 \(sha256:"):
        uploader.push_image(path)
    pushed = uploader.push_image(path, tags=["v9"])
    assert diff_ids_of(ecr, pushed.digest) == [digest_of(layer) for layer in LAYERS]
    config = manifest_of(ecr, pushed.digest)["config"]["digest"]
    assert uploader.push_image(path, name=config).digest == pushed.digest
    assert uploader.push_image(path, name="other").tags == ("v9",)


@pytest.mark.parametrize("is_archive", [True, False])
def test_unpacked_docker_archive(
    is_archive: bool, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    path = docker_archive(tmp_path / "image.tar", LAYERS, linked=True)
    with tarfile.open(path) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    pushed = uploader.push_image(path if is_archive else tmp_path / "unpacked")
    assert diff_ids_of(ecr, pushed.digest) == [digest_of(layer) for layer in LAYERS]


@pytest.mark.parametrize("is_archive", [True, False])
@pytest.mark.parametrize("with_index", [True, False])
def test_directory_format(
    is_archive: bool, with_index: bool, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    """What skopeo, buildah and podman write as dir:."""
    layout = two_platforms(tmp_path / "layout")
    (root,) = json.loads((layout.path / "index.json").read_text())["manifests"]
    index = json.loads(layout.blob_path(root).read_text())
    if not with_index:
        root = index["manifests"][0]
    path = directory_format(layout, root, tmp_path / "directory")
    path = archive(path, tmp_path / "image.tar") if is_archive else path
    pushed = uploader.push_image(path, tags=["v1"])
    assert tags_of(ecr) == {"v1": root["digest"]}
    assert pushed.media_type == (INDEX_TYPE if with_index else MANIFEST_TYPE)


def test_directory_format_with_signatures(
    layout: Layout, uploader: LayerUploader, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = directory_format(layout, layout.add_image("amd64", LAYERS[:1]), tmp_path / "directory")
    (path / "signature-1").write_bytes(b"a signature")
    uploader.push_image(path)
    assert "signature-1 and others like it are not pushed" in caplog.text


@pytest.mark.parametrize("is_index", [True, False])
def test_directory_format_without_media_type(
    is_index: bool, layout: Layout, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    image = layout.add_image("amd64", LAYERS[:1])
    document = {"schemaVersion": 2, "manifests": [image]}
    if not is_index:
        document = json.loads(layout.blob_path(image).read_text())
        del document["mediaType"]
    root = layout.add_json(document, INDEX_TYPE if is_index else MANIFEST_TYPE)
    path = directory_format(layout, root, tmp_path / "directory")
    assert uploader.push_image(path).media_type == root["mediaType"]


# Archives


@pytest.mark.parametrize("name", COMPRESS)
def test_compressed_archive(
    name: str, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Told by its content, not by its name; in several streams, with padding and something else."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    content = archive(two_platforms(tmp_path / "layout").path, tmp_path / "x.tar").read_bytes()
    path = tmp_path / "image"
    path.write_bytes(
        COMPRESS[name](content[:100]) + COMPRESS[name](content[100:]) + bytes(512) + b"rest"
    )
    assert uploader.push_image(path).tags == ("v1",)
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize("name", COMPRESS)
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (gzip.compress(bytes(1_000), mtime=0), "its content is compressed with gzip again"),
        (bytes(1_000), "its content is no tar archive"),
        (b"x" * 1_000, "its content is no tar archive"),
        (b"", "its content is no tar archive"),
    ],
)
def test_compressed_archive_of_something_else(
    name: str, content: bytes, problem: str, uploader: LayerUploader, tmp_path: Path
) -> None:
    path = tmp_path / "image.tar"
    path.write_bytes(COMPRESS[name](content))
    with pytest.raises(InvalidImageError, match=f"is compressed with {name}, and {problem}"):
        uploader.push_image(path)


@pytest.mark.parametrize("name", COMPRESS)
def test_damaged_compressed_archive(name: str, uploader: LayerUploader, tmp_path: Path) -> None:
    content = docker_archive(tmp_path / "x.tar", [random_bytes(2_000_000)]).read_bytes()
    path = tmp_path / "image.tar"
    path.write_bytes(COMPRESS[name](content)[:-50])
    with pytest.raises(InvalidImageError, match=f"with {name}, and damaged: it is cut off"):
        uploader.push_image(path)


@pytest.mark.parametrize(
    ("start", "advice"),
    [
        (b"\x04\x22\x4d\x18", "compressed with lz4, which .* decompress it with lz4 -d"),
        (b"\x5d\0\0\x80", "compressed with lzma, which .* decompress it with xz -d"),
        (b"LZIP", "compressed with lzip, which .* decompress it with lzip -d"),
        (b"\x28\xb5\x2f\xfd", "compressed with zstd, .* zstd -d, or install backports.zstd"),
    ],
)
def test_archive_that_cannot_be_decompressed(
    start: bytes, advice: str, uploader: LayerUploader, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("ecr_parts._sources.compression._zstd", None)
    path = tmp_path / "image.tar"
    path.write_bytes(start + bytes(1_000))
    with pytest.raises(InvalidImageError, match=advice):
        uploader.push_image(path)


def test_archive_that_is_decompressed_onto_a_full_disk(
    local_ecr: LocalECR, tmp_path: Path, mocker: MockerFixture
) -> None:
    path = tmp_path / "image.tar"
    docker_archive(tmp_path / "x.tar", [bytes(40_000_000)])
    path.write_bytes(gzip.compress((tmp_path / "x.tar").read_bytes()))
    uploader = LayerUploader(local_ecr.client(), "demo")
    with limited_file_size(1_500_000), pytest.raises(OSError, match=r"decompressing .* TMPDIR"):
        uploader.push_image(path)
    mocker.patch("shutil.disk_usage", return_value=(10**9, 10**9 - 1_000, 1_000))
    with pytest.raises(OSError, match=r"decompressing the image .* has 1,000: set TMPDIR"):
        uploader.push_image(path)
    assert local_ecr.calls == []


def test_progress_can_end_the_decompression(
    local_ecr: LocalECR, tmp_path: Path, mocker: MockerFixture
) -> None:
    mocker.patch("ecr_parts._base.threads._WAKE_INTERVAL", 0.01)  # seconds, for a faster test
    path = tmp_path / "image.tar"
    docker_archive(tmp_path / "x.tar", [bytes(60_000_000)])
    path.write_bytes(gzip.compress((tmp_path / "x.tar").read_bytes(), 1))

    def raise_interrupt(_confirmed: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LayerUploader(local_ecr.client(), "demo").push_image(path, progress=raise_interrupt)
    assert local_ecr.calls == []


@pytest.mark.parametrize("prefix", ["layout/", "./layout/", "a directory/layout/", "mac/"])
def test_archive_with_a_directory_at_the_top(
    prefix: str, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    layout, path = two_platforms(tmp_path / "layout"), tmp_path / "image.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(layout.path, prefix)
        link = tarfile.TarInfo(f"{prefix}link")
        link.type, link.linkname = tarfile.LNKTYPE, f"{prefix}index.json"
        tar.addfile(link)
        if prefix == "mac/":
            tar.addfile(tarfile.TarInfo("._mac"))
            tar.addfile(tarfile.TarInfo("mac/._index.json"))
    assert uploader.push_image(path).tags == ("v1",)
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("another"))  # so that it is no directory of an image
    with pytest.raises(InvalidImageError, match="it has neither"):
        uploader.push_image(path)


def test_last_entry_of_a_name_counts(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    """As tar extracts it: "tar -r" appends new content of a file."""
    layout.finish(*named(layout.add_image("amd64", LAYERS[:1]), "v1"))
    path = archive(layout.path, tmp_path / "image.tar")
    second = layout.add_image("arm64", LAYERS[1:2])
    layout.finish(*named(second, "v2"))
    with tarfile.open(path, "a") as tar:
        tar.add(layout.path, ".")
    assert uploader.push_image(path).digest == second["digest"]


@pytest.mark.skipif(shutil.which("tar") is None, reason="requires GNU tar")
def test_sparse_layers(local_ecr: LocalECR, layout: Layout, tmp_path: Path) -> None:
    layer = b"start" + bytes(3_000_000) + b"middle" + bytes(3_000_000)
    image = layout.add_plain_image("amd64", [layer, LAYERS[0]])
    with layout.blob_path({"digest": digest_of(layer)}).open("wb") as file:
        file.write(b"start")
        file.seek(3_000_005)
        file.write(b"middle")
        file.truncate(len(layer))
    layout.finish(*named(image, "v1"))
    path = tmp_path / "image.tar"
    subprocess.run(["tar", "-C", str(layout.path), "--sparse", "-cf", str(path), "."], check=True)
    pushed = LayerUploader(local_ecr.client(), "demo").push_image(path)
    assert diff_ids_of(local_ecr, pushed.digest) == [digest_of(layer), digest_of(LAYERS[0])]


def test_sparse_layer_that_no_disk_can_have(
    layout: Layout, uploader: LayerUploader, tmp_path: Path
) -> None:
    digest = digest_of(LAYERS[0])
    layout.finish(layout.add_plain_image("amd64", LAYERS[:1]))
    layout.blob_path({"digest": digest}).unlink()
    path = archive(layout.path, tmp_path / "image.tar")
    with tarfile.open(path, "a", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo(f"./blobs/sha256/{digest[7:]}")
        member.pax_headers = {"GNU.sparse.size": str(10**17), "GNU.sparse.map": "0,0"}
        tar.addfile(member)
    with pytest.raises(OSError, match=r"copying a sparse file .* Set TMPDIR"):
        uploader.push_image(path)


# Layers in docker archives that are compressed otherwise


def compressed_docker_archive(path: Path, stored: bytes, layer: bytes = LAYERS[0]) -> Path:
    """A docker archive whose layer is ``stored`` in this way."""
    rootfs = {"type": "layers", "diff_ids": [digest_of(layer)]}
    config = {"architecture": "amd64", "os": "linux", "rootfs": rootfs}
    return docker_archive(path, [stored], config=config)


def test_docker_archive_with_zstd_becomes_oci(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker's media types have no zstd. Without a module for it, nothing would be verified."""
    layer = LAYERS[0].replace(b".", b":").replace(b"!", b":")
    stored = b"\x28\xb5\x2f\xfd" + layer + b"."
    monkeypatch.setattr("ecr_parts._sources.compression._zstd", Zstd("zstd"))
    path = compressed_docker_archive(tmp_path / "image.tar", stored, layer)
    pushed = uploader.push_image(path)
    manifest = manifest_of(ecr, pushed.digest)
    assert manifest["mediaType"] == pushed.media_type == MANIFEST_TYPE
    assert manifest["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    (layer,) = manifest["layers"]
    assert layer["mediaType"] == "application/vnd.oci.image.layer.v1.tar+zstd"
    assert ecr.layer("demo", layer["digest"]) == stored
    ecr.calls.clear()
    monkeypatch.setattr("ecr_parts._sources.compression._zstd", None)
    with pytest.raises(InvalidImageError, match=r"with zstd, which .* install backports\.zstd"):
        uploader.push_image(path)
    assert ecr.calls == []


@pytest.mark.parametrize("name", ["bzip2", "xz"])
def test_docker_archive_with_another_compression(
    name: str, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    path = compressed_docker_archive(tmp_path / "image.tar", COMPRESS[name](LAYERS[0]))
    with pytest.raises(InvalidImageError, match=f"compressed with {name}, which registries do not"):
        uploader.push_image(path)
    assert ecr.calls == []


def test_docker_archive_keeps_what_is_compressed(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    stored = gzip.compress(LAYERS[0])
    pushed = uploader.push_image(compressed_docker_archive(tmp_path / "image.tar", stored))
    assert pushed.media_type == DOCKER_MANIFEST_TYPE
    assert manifest_of(ecr, pushed.digest)["layers"][0]["digest"] == digest_of(stored)


# What is none of these


def files_of(path: Path, **files: str) -> Path:
    path.mkdir()
    for name, content in files.items():
        file = path / name.replace("__", "/").replace("_", ".")
        file.parent.mkdir(exist_ok=True)
        file.write_text(content)
    return path


@pytest.mark.parametrize("is_archive", [True, False])
@pytest.mark.parametrize(
    ("files", "advice"),
    [
        ({"etc__passwd": ""}, "a file system, such as docker export writes: .* docker save"),
        ({"_dockerenv": ""}, "a file system, such as docker export writes: .* docker save"),
        ({"Dockerfile": "FROM scratch"}, "what one is built from: build it with docker build"),
        ({"Containerfile": "FROM scratch"}, "what one is built from: build it"),
        ({"repositories": "{}"}, "docker before version 1.10: load it with docker load"),
        ({"manifest_json": '{"schemaVersion": 1}'}, "schema version 1, .* convert it, .*skopeo"),
        ({"manifest_json": '{"schemaVersion": 2}'}, "config is None"),
        ({"manifest_json": "[]"}, "it has no image"),
        ({"something": ""}, "neither index.json, .* nor manifest.json"),
    ],
)
def test_recognizes_what_is_no_image(
    is_archive: bool, files: dict[str, str], advice: str, ecr: LocalECR, uploader: LayerUploader,
    tmp_path: Path,
) -> None:  # fmt: skip
    path = files_of(tmp_path / "directory", **files)
    path = archive(path, tmp_path / "image.tar") if is_archive else path
    with pytest.raises(InvalidImageError, match=advice):
        uploader.push_image(path)
    assert ecr.calls == []


@pytest.mark.parametrize("kind", ["json", "prettyjws", "in the document"])
def test_manifest_of_schema_1(
    kind: str, layout: Layout, ecr: LocalECR, uploader: LayerUploader
) -> None:
    image = layout.add_json({"schemaVersion": 1, "fsLayers": []}, MANIFEST_TYPE)
    if kind != "in the document":
        image["mediaType"] = f"application/vnd.docker.distribution.manifest.v1+{kind}"
    layout.finish(image)
    with pytest.raises(InvalidImageError, match="schema version 1, which ECR does not accept"):
        uploader.push_image(layout.path)


# Links


def test_blob_may_be_a_link_to_a_file_elsewhere(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    """As Bazel's rules write them. Only what has the blob's digest is taken."""
    image = layout.add_image("amd64", LAYERS[:1])
    layout.finish(image)
    blob, elsewhere = layout.blob_path({"digest": digest_of(LAYERS[0])}), tmp_path / "layer"
    blob.rename(elsewhere)
    blob.symlink_to(elsewhere)
    assert uploader.push_image(layout.path).digest == image["digest"]
    ecr.calls.clear()
    elsewhere.write_bytes(bytes(len(LAYERS[0])))
    with pytest.raises(InvalidImageError, match="is a link to a file with other content"):
        uploader.push_image(layout.path)
    assert ecr.calls == []


@pytest.mark.parametrize("name", ["index.json", "manifest.json"])
def test_index_is_no_link_to_a_file_elsewhere(
    name: str, layout: Layout, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere.json"
    layout.finish(layout.add_image("amd64", LAYERS[:1]))
    (layout.path / "index.json").rename(elsewhere)
    (layout.path / name).symlink_to(elsewhere)
    with pytest.raises(InvalidImageError, match=f"'{name}' is a link to a file elsewhere"):
        uploader.push_image(layout.path)


def test_names_in_a_directory_never_leave_it(
    ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(LAYERS[0])
    with tarfile.open(docker_archive(tmp_path / "image.tar", LAYERS[:1])) as tar:
        tar.extractall(tmp_path / "image", filter="data")
    manifest = tmp_path / "image" / "manifest.json"
    (tmp_path / "image" / "link").symlink_to(tmp_path / "secret")
    for name in ("../secret", str(tmp_path / "secret"), "x/../../secret", "link", "\0", "\ud800"):
        document = json.loads(manifest.read_text())
        document[0]["Layers"] = [name]
        manifest.write_text(json.dumps(document))
        with pytest.raises(InvalidImageError, match=r"it has no layer|is a link to a file"):
            uploader.push_image(tmp_path / "image")


# Large ones


def test_index_of_many_manifests(layout: Layout, ecr: LocalECR, uploader: LayerUploader) -> None:
    document = json.loads(layout.blob_path(layout.add_image("amd64", LAYERS[:1])).read_text())
    images = [
        layout.add_json({**document, "annotations": {"n": str(n)}}, MANIFEST_TYPE)
        for n in range(1_000)
    ]
    images[7]["platform"] = {"os": "linux", "architecture": "riscv64"}
    layout.finish(layout.add_index(*images))
    pushed = uploader.push_image(layout.path, platforms=["linux/riscv64"])
    assert pushed.digest == images[7]["digest"]


def test_archive_of_many_entries(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    layout.finish(*named(layout.add_image("amd64", LAYERS[:1]), "v1"))
    path = archive(layout.path, tmp_path / "image.tar")
    header = tarfile.TarInfo("another").tobuf()
    content = path.read_bytes().rstrip(b"\0")
    content += bytes(-len(content) % 512)
    path.write_bytes(content + header * 100_000 + bytes(1_024))
    assert uploader.push_image(path).tags == ("v1",)


def test_result_is_that_of_any_way_to_write_it(
    layout: Layout, ecr: LocalECR, uploader: LayerUploader, tmp_path: Path
) -> None:
    """The same layers give the same digests, in whatever file they are."""
    layers = [b"text" * 20_000, b"another"]
    layout.finish(layout.add_plain_image("amd64", layers))
    paths = [layout.path, docker_archive(tmp_path / "image.tar", layers)]
    pushes: list[PushedImage] = [uploader.push_image(path) for path in paths]
    first, second = ({layer.digest for layer in pushed.layers[1:]} for pushed in pushes)
    assert len(first & second) == 2


# Compression beside the uploads


def test_layers_are_compressed_while_others_are_sent(
    local_ecr: LocalECR, tmp_path: Path, mocker: MockerFixture
) -> None:
    """The largest first, and no more files are kept than are sent at a time, and one."""
    layers = [bytes([number]) * size for number, size in enumerate((1_000, 5_000, 3_000, 4_000))]
    created = mocker.spy(tempfile, "TemporaryFile")
    kept: list[int] = []
    completed: list[int] = []
    reads: list[int] = []
    files: list[Any] = []

    class Observer(PushObserver):
        def read(self, size: int) -> None:
            if created.spy_return is not None and created.spy_return not in files:
                files.append(created.spy_return)
                kept.append(sum(not file.closed for file in files))
                completed.append(len(local_ecr.calls_of("CompleteLayerUpload")))
            if size:
                reads.append(size)

    uploader = LayerUploader(local_ecr.client(), "demo")
    path = docker_archive(tmp_path / "image.tar", layers)
    options = PushOptions(max_workers=1, observer=Observer())
    pushed = push_observed(uploader, path, options)
    assert reads == [5_000, 4_000, 3_000, 1_000]
    assert max(kept) <= 2
    assert completed[-1] >= 2  # the config and the first layer, when the last one is compressed
    assert all(file.closed for file in files)
    assert diff_ids_of(local_ecr, pushed.digest) == [digest_of(layer) for layer in layers]


def test_error_of_an_upload_ends_the_compression(
    local_ecr: LocalECR, tmp_path: Path, mocker: MockerFixture
) -> None:
    """Within about a second: the largest layer is compressed while a smaller one fails."""
    mocker.patch("ecr_parts._base.threads._WAKE_INTERVAL", 0.01)  # seconds, for a faster test
    local_ecr.fail("InitiateLayerUpload", "access_denied", times=9)
    path = docker_archive(tmp_path / "image.tar", [bytes(300_000_000)])
    read: list[int] = []

    class Observer(PushObserver):
        def read(self, size: int) -> None:
            read.append(size)

    uploader = LayerUploader(local_ecr.client(), "demo")
    with pytest.raises(ServiceError, match="AccessDenied"):
        push_observed(uploader, path, PushOptions(observer=Observer()))
    wait_for_threads(30)
    assert sum(read) < 300_000_000  # nor is the rest read afterwards
