"""The examples: each script runs, and another client can pull the image that was pushed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers import operations, random_bytes, run_on_terminal, write_layer

from ecr_parts import DigestMismatchError, ServiceError
from ecr_parts.testing import LocalECR

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> Any:
    """Import an example, which is not in a package."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


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


def test_lambda_resume() -> None:
    completed = run("lambda_resume")
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.endswith("the layer arrived whole\n")


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
    assert " at byte 0\r\n" in output
    assert "ECR refused the part and has the layer up to byte 999" in output


def test_copied_tests_pass(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "test_your_tool.py", tmp_path)
    command = [sys.executable, "-m", "pytest", "-W", "error", "-p", "no:cacheprovider"]
    completed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stdout
    assert "6 passed" in completed.stdout


# push_oci_image.py


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    path = tmp_path / "layout"
    push_oci_image.make_layout(path)
    return path


@pytest.fixture(params=["ecr", "ecr-public"])
def client(local_ecr: LocalECR, request: pytest.FixtureRequest) -> Iterator[Any]:
    client: Any = local_ecr.client(request.param)
    yield client
    client.close()


def read_blobs(layout: Path) -> dict[str, bytes]:
    """The blobs of a layout by digest, without ``sha256:``."""
    return {path.name: path.read_bytes() for path in (layout / "blobs" / "sha256").iterdir()}


def test_push_uploads_whole_image_once(layout: Path, client: Any, local_ecr: LocalECR) -> None:
    digest = push_oci_image.push(client, layout, "demo", "v1")

    repository = local_ecr.registry.repositories["demo"]
    assert repository.tags == {"v1": digest}
    manifests = {digest: image.manifest.encode() for digest, image in repository.images.items()}
    layers = {digest: local_ecr.layer("demo", digest) for digest in repository.layers}
    stored = {digest.removeprefix("sha256:"): blob for digest, blob in (manifests | layers).items()}
    assert stored == read_blobs(layout)

    local_ecr.calls.clear()
    push_oci_image.push(client, layout, "demo", "v1")
    assert set(operations(local_ecr)) == {"BatchCheckLayerAvailability", "PutImage"}


def test_push_uploads_layer_again_that_ecr_deleted(
    layout: Path, client: Any, local_ecr: LocalECR, mocker: Any
) -> None:
    repository = local_ecr.registry.repositories["demo"]
    put = push_oci_image.put

    def delete_layer_and_put(*arguments: Any) -> None:
        mocker.stop(patch)  # only before the first manifest
        repository.layers.popitem()
        put(*arguments)

    patch = mocker.patch.object(push_oci_image, "put", delete_layer_and_put)
    push_oci_image.push(client, layout, "demo")
    assert len(repository.images) == 3
    assert len(repository.layers) == 5  # two configs, two layers of one platform, one of both


def test_push_rejects_invalid_layout(layout: Path, client: Any, local_ecr: LocalECR) -> None:
    index = layout / "index.json"
    document = json.loads(index.read_text())
    blobs = sorted((layout / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    layer = next(path for path in blobs if path.read_bytes()[:2] == b"\x1f\x8b")

    content = layer.read_bytes()
    layer.write_bytes(content[:-1] + b"!")
    with pytest.raises(DigestMismatchError, match=layer.name):
        push_oci_image.push(client, layout, "demo")
    layer.write_bytes(content[:-1])
    with pytest.raises(push_oci_image.LayoutError, match=f"{layer.name} has .* bytes"):
        push_oci_image.push(client, layout, "demo")
    layer.unlink()
    with pytest.raises(push_oci_image.LayoutError, match=f"{layer.name} is missing"):
        push_oci_image.push(client, layout, "demo")
    layer.write_bytes(content)

    digest = document["manifests"][0]["digest"].partition(":")[2]
    manifest = layout / "blobs" / "sha256" / digest
    text = manifest.read_bytes()
    manifest.write_bytes(text[:-1] + b" ")
    with pytest.raises(push_oci_image.LayoutError, match=f"{digest} does not match its digest"):
        push_oci_image.push(client, layout, "demo")
    manifest.write_bytes(text)

    document["manifests"][0]["mediaType"] = "text/plain"
    index.write_text(json.dumps(document))
    with pytest.raises(push_oci_image.LayoutError, match="unknown media type text/plain"):
        push_oci_image.push(client, layout, "demo")
    document["manifests"] *= 2
    index.write_text(json.dumps(document))
    with pytest.raises(push_oci_image.LayoutError, match=r"--tag .* one image"):
        push_oci_image.push(client, layout, "demo", "v1")
    (layout / "oci-layout").unlink()
    with pytest.raises(push_oci_image.LayoutError, match="not an OCI image layout"):
        push_oci_image.push(client, layout, "demo")

    assert local_ecr.registry.repositories["demo"].images == {}


def test_push_reports_missing_repository_and_immutable_tag(
    layout: Path, local_ecr: LocalECR
) -> None:
    client: Any = local_ecr.client()
    with pytest.raises(ServiceError, match="'none'"):
        push_oci_image.push(client, layout, "none")
    client.create_repository(repositoryName="fixed", imageTagMutability="IMMUTABLE")
    client.put_image(
        repositoryName="fixed",
        imageManifest="{}",
        imageManifestMediaType="application/vnd.oci.image.manifest.v1+json",
        imageTag="v1",
    )
    with pytest.raises(push_oci_image.LayoutError, match=r"tag v1 .*immutable"):
        push_oci_image.push(client, layout, "fixed", "v1")


def test_push_oci_image_as_command(layout: Path, local_ecr: LocalECR) -> None:
    completed = run("push_oci_image", str(layout), "demo", "--tag", "v1", **local_ecr.environ())
    assert completed.returncode == 0, completed.stderr
    assert "as v1" in completed.stdout
    failed = run("push_oci_image", str(layout), "none", **local_ecr.environ())
    assert failed.returncode == 1
    assert "BatchCheckLayerAvailability in repository 'none'" in failed.stderr.splitlines()[0]
    assert run("push_oci_image").returncode == 0
    assert run("push_oci_image", str(layout)).returncode == 2


@pytest.mark.skipif(not shutil.which("skopeo"), reason="skopeo is not installed")
def test_skopeo_pulls_pushed_image(layout: Path, local_ecr: LocalECR, tmp_path: Path) -> None:
    push_oci_image.push(local_ecr.client(), layout, "demo", "v1")
    copy = tmp_path / "copy"
    image = f"docker://{local_ecr.endpoint_url.removeprefix('http://')}/demo:v1"
    command = ["skopeo", "copy", "--all", "--insecure-policy", "--src-tls-verify=false"]
    subprocess.run([*command, image, f"oci:{copy}:v1"], check=True, capture_output=True)
    assert read_blobs(copy) == read_blobs(layout)
