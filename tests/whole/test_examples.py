"""The examples: each script runs, and another client can pull the image that was pushed."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers import digest_of, random_bytes, run_on_terminal, write_layer
from image_makers import docker_archive, two_platforms

from ecr_parts import DigestMismatchError, LayerUploader, SourceChangedError
from ecr_parts.testing import LocalECR

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> Any:
    """Import an example, which is not in a package."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


append_layer = load("append_layer")
copy_image = load("copy_image")
push_oci_image = load("push_oci_image")


def run(name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run an example. Standard output and standard error are pipes."""
    return subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


# Scripts. ``test_readme`` runs the quickstart without arguments.


@pytest.mark.parametrize("name", ["lambda_resume", "s3_to_ecr", "ci_job"])
def test_prints_what_the_index_shows(name: str) -> None:
    completed = run(name)
    assert completed.returncode == 0, completed.stderr
    index = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(rf"^\| \[`{name}\.py`\].*\| `(.*)` \|$", index, re.MULTILINE)
    assert shown in completed.stdout


def test_build_image_sends_no_layer_twice() -> None:
    completed = run("build_image")
    assert completed.returncode == 0, completed.stderr
    sent = re.findall(r"^(v\d): ([\d,]+) bytes of layers sent$", completed.stdout, re.MULTILINE)
    assert [tag for tag, _ in sent] == ["v1", "v2"]
    assert int(sent[0][1].replace(",", "")) > 1_000 > int(sent[1][1])


def test_web_upload() -> None:
    completed = run("web_upload")
    assert completed.returncode == 0, completed.stderr
    first, second = completed.stdout.splitlines()
    assert first == "a client left: its layer is abandoned"
    assert second.startswith("HTTP/1.1 201 Created sha256:")


def test_quickstart_with_path(tmp_path: Path) -> None:
    layer = write_layer(random_bytes(1000), tmp_path)
    missing = run("quickstart", str(tmp_path / "missing"))
    assert missing.returncode == 2
    assert f"{tmp_path / 'missing'} is not a regular file" in missing.stderr
    completed = run("quickstart", str(layer), AWS_PROFILE="does-not-exist")
    assert completed.returncode == 0, completed.stderr
    assert "\x1b" not in completed.stdout + completed.stderr


@pytest.mark.parametrize("colour", [True, False])
def test_quickstart_on_terminal(colour: bool, tmp_path: Path) -> None:
    layer = write_layer(random_bytes(1000), tmp_path)
    command = [sys.executable, EXAMPLES / "quickstart.py", layer]
    environ = {**os.environ, **({} if colour else {"NO_COLOR": "1"})}
    output = run_on_terminal(
        partial(subprocess.Popen, command, env=environ, stdin=subprocess.DEVNULL)
    )
    assert "[##############################] 100%" in output
    assert ("\x1b[32mthe layer arrived whole\x1b[0m" in output) == colour
    assert "killed while the part at byte 0 was in flight" in output
    assert ": continuing at 0 of 1,000 bytes\r\n" in output
    assert "ECR already has this part; continuing at byte 1,000" in output


def test_copied_tests_pass(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "test_your_tool.py", tmp_path)
    command = [sys.executable, "-m", "pytest", "-W", "error", "-p", "no:cacheprovider"]
    completed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stdout
    assert "6 passed" in completed.stdout


# push_oci_image.py


def test_push_oci_image_as_command(local_ecr: LocalECR, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    push_oci_image.make_layout(layout)
    command = [str(layout), "demo", "--tag", "v2", "--tag", "latest"]
    completed = run("push_oci_image", *command, **local_ecr.environ())
    assert completed.returncode == 0, completed.stderr
    assert set(local_ecr.registry.repositories["demo"].tags) == {"v2", "latest"}
    failed = run("push_oci_image", str(layout), "none", **local_ecr.environ())
    assert failed.returncode == 1
    assert "push failed: BatchCheckLayerAvailability in repository 'none'" in failed.stderr
    missing = run("push_oci_image", str(tmp_path / "none"), "demo", **local_ecr.environ())
    assert missing.stderr.startswith("push failed: ")
    assert run("push_oci_image", str(layout)).returncode == 2


def test_push_oci_image_sends_no_blob_twice() -> None:
    completed = run("push_oci_image")
    assert completed.returncode == 0, completed.stderr
    assert re.findall(r"^(\d) of (\d) blobs sent", completed.stdout, re.MULTILINE) == [
        ("2", "2"),
        ("0", "2"),
    ]


# append_layer.py and copy_image.py


@pytest.fixture
def base(local_ecr: LocalECR, tmp_path: Path) -> LayerUploader:
    """The uploader of a repository that has the images ``index``, ``arm64`` and ``amd64``."""
    uploader = LayerUploader(local_ecr.client(), "demo")
    layout = two_platforms(tmp_path / "layout").path
    uploader.push_image(layout, tags=["index"])
    for architecture in ("amd64", "arm64"):
        uploader.push_image(layout, tags=[architecture], platforms=[f"linux/{architecture}"])
    return uploader


def url_of_another(base: LayerUploader) -> str:
    """The URL of a blob that is not in the image ``amd64``."""
    manifest = json.loads(copy_image.read_manifest(base, {"imageTag": "arm64"})[0])
    digest = manifest["config"]["digest"]
    answer = base.client.get_download_url_for_layer(repositoryName="demo", layerDigest=digest)
    return str(answer["downloadUrl"])


def files_of(local_ecr: LocalECR, digest: str) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(local_ecr.layer("demo", digest))) as tar:
        return tar.getnames()


def test_append_layer_without_arguments() -> None:
    completed = run("append_layer")
    assert completed.returncode == 0, completed.stderr
    assert re.fullmatch(r"sha256:[0-9a-f]{64} has 2 layers, \d+ bytes\n", completed.stdout)


def test_append_layer(local_ecr: LocalECR, tmp_path: Path) -> None:
    directory = tmp_path / "files"
    directory.mkdir()
    (directory / "hello").write_text("hello")
    uploader = LayerUploader(local_ecr.client(), "demo")
    docker_archive(tmp_path / "image.tar", [b"base"])
    base = uploader.push_image(tmp_path / "image.tar", tags=["base"])
    pushed = append_layer.append(uploader, "base", directory, "app")
    manifest, media_type = append_layer.read_manifest(uploader, "app")
    assert media_type == pushed.media_type == base.media_type
    assert len(manifest["layers"]) == 2
    assert files_of(local_ecr, manifest["layers"][1]["digest"]) == [".", "./hello"]
    config = json.loads(local_ecr.layer("demo", manifest["config"]["digest"]))
    layers = [gzip.decompress(local_ecr.layer("demo", one["digest"])) for one in manifest["layers"]]
    assert config["rootfs"]["diff_ids"] == list(map(digest_of, layers))
    assert config["history"][-1] == {"created_by": "append_layer.py files"}


def test_append_layer_refuses_missing_and_damaged_manifest(
    local_ecr: LocalECR, base: LayerUploader, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="none: Requested image not found"):
        append_layer.append(base, "none", tmp_path, "new")
    manifest = {"imageId": {"imageDigest": digest_of(b"")}, "imageManifest": "{}"}
    local_ecr.respond("BatchGetImage", {"images": [manifest], "failures": []})
    with pytest.raises(ValueError, match="what was downloaded is not sha256:"):
        append_layer.append(base, "amd64", tmp_path, "new")


def test_append_layer_refuses_index_and_damaged_config(
    local_ecr: LocalECR, base: LayerUploader, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="index is not an image for one platform, but application"):
        append_layer.append(base, "index", tmp_path, "new")
    local_ecr.respond("GetDownloadUrlForLayer", {"downloadUrl": url_of_another(base)})
    with pytest.raises(ValueError, match="what was downloaded is not sha256:"):
        append_layer.append(base, "amd64", tmp_path, "new")
    assert "new" not in local_ecr.registry.repositories["demo"].tags


def test_copy_image_without_arguments_sends_each_blob_once() -> None:
    completed = run("copy_image")
    assert completed.returncode == 0, completed.stderr
    lines = completed.stdout.splitlines()
    assert [line.partition(" ")[0] for line in lines[:4]] == ["copied"] * 4
    assert len(set(lines[:4])) == 4
    assert lines[4] == lines[5]
    assert lines[4].endswith(" is in both repositories")


def test_copy_image(local_ecr: LocalECR, base: LayerUploader) -> None:
    local_ecr.client().create_repository(repositoryName="mirror")
    target = LayerUploader(local_ecr.client(), "mirror")
    copied = copy_image.copy(base, target, "index")
    repositories = local_ecr.registry.repositories
    digest = repositories["demo"].tags["index"]
    assert copied.digest == digest
    assert repositories["mirror"].tags == {"index": digest}
    assert {one: image.manifest for one, image in repositories["mirror"].images.items()} == {
        one: image.manifest for one, image in repositories["demo"].images.items()
    }
    with pytest.raises(ValueError, match="none: Requested image not found"):
        copy_image.copy(base, target, "none")


def test_copy_image_notices_changed_bytes(local_ecr: LocalECR, base: LayerUploader) -> None:
    local_ecr.client().create_repository(repositoryName="mirror")
    target = LayerUploader(local_ecr.client(), "mirror")
    manifest = {"imageId": {"imageDigest": digest_of(b"")}, "imageManifest": "{}"}
    local_ecr.respond("BatchGetImage", {"images": [manifest], "failures": []})
    with pytest.raises(ValueError, match="what was downloaded is not sha256:"):
        copy_image.copy(base, target, "amd64")
    local_ecr.respond("GetDownloadUrlForLayer", {"downloadUrl": url_of_another(base)}, times=9)
    with pytest.raises((DigestMismatchError, SourceChangedError)):
        copy_image.copy(base, target, "amd64")
    assert local_ecr.registry.repositories["mirror"].tags == {}
