"""The examples as a user runs them, and the pushed image as somebody else's client sees it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers import bytes_of, path_to, shown_on_a_terminal
from registry_front import front

from ecr_parts import DigestMismatchError, ServiceError
from ecr_parts.testing import LocalECR

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


oci = load("push_oci_image")


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    path = tmp_path / "layout"
    oci.make_layout(path)
    return path


@pytest.fixture(params=["ecr", "ecr-public"])
def service(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(local_ecr: LocalECR, service: str) -> Iterator[Any]:
    client: Any = local_ecr.client(service)
    yield client
    client.close()


def sent(ecr: LocalECR) -> list[str]:
    quiet = ("BatchCheckLayerAvailability", "PutImage")
    return [call.operation for call in ecr.calls if call.operation not in quiet]


def run(name: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **more}
    )


@pytest.mark.parametrize("name", ["quickstart", "lambda_resume"])
def test_an_example_runs_with_no_arguments(name: str) -> None:
    done = run(name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("the layer arrived whole\n")


def test_the_quickstart_on_a_terminal_and_elsewhere(tmp_path: Path) -> None:
    layer = path_to(bytes_of(1000), tmp_path)
    refused = run("quickstart", str(tmp_path / "missing"))
    assert refused.returncode == 2
    assert refused.stderr.endswith("missing is no file, or an empty one\n")
    elsewhere = run("quickstart", str(layer), AWS_PROFILE="of somebody else")
    assert elsewhere.returncode == 0
    assert "\x1b" not in elsewhere.stdout + elsewhere.stderr

    for colour in (True, False):
        command = [sys.executable, EXAMPLES / "quickstart.py", layer]
        environ = {**os.environ, **({} if colour else {"NO_COLOR": "1"})}
        shown = shown_on_a_terminal(
            partial(subprocess.Popen, command, env=environ, stdin=subprocess.DEVNULL)
        )
        assert "[##############################] 100%" in shown
        assert ("\x1b[32mthe layer arrived whole\x1b[0m" in shown) == colour
        assert "killed, with byte 0 on the way" in shown
        assert " at byte 0\r\n" in shown
        assert "ECR refused the part and has the layer up to byte 999" in shown


def test_the_tests_to_copy_pass_where_they_are_copied_to(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "test_your_tool.py", tmp_path)
    command = [sys.executable, "-m", "pytest", "-W", "error", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "6 passed" in done.stdout


def test_an_image_is_pushed_whole_and_pushed_again_without_a_byte(
    layout: Path, client: Any, local_ecr: LocalECR
) -> None:
    digest = oci.push(client, layout, "demo", "v1")

    repository = local_ecr.registry.repositories["demo"]
    assert repository.tags == {"v1": digest}
    blobs = {path.name: path.read_bytes() for path in (layout / "blobs" / "sha256").iterdir()}
    for digest, (text, _) in repository.manifests.items():
        assert blobs.pop(digest.removeprefix("sha256:")) == text.encode()
    for digest in repository.layers:
        assert blobs.pop(digest.removeprefix("sha256:")) == local_ecr.layer("demo", digest)
    assert blobs == {}

    local_ecr.calls.clear()
    oci.push(client, layout, "demo", "v1")
    assert sent(local_ecr) == []


def test_a_layer_cleaned_up_in_between_is_sent_again(
    layout: Path, client: Any, local_ecr: LocalECR, mocker: Any
) -> None:
    repository = local_ecr.registry.repositories["demo"]
    clean_up: Iterator[Callable[[], object]] = iter([repository.layers.popitem])
    put = oci.put

    def put_after_a_clean_up(*arguments: Any) -> None:
        for clean in clean_up:
            clean()
        put(*arguments)

    mocker.patch.object(oci, "put", put_after_a_clean_up)
    oci.push(client, layout, "demo")
    assert len(repository.manifests) == 3
    assert len(repository.layers) == 5  # two configs, two layers of one's own, one of both


def test_a_layout_that_is_none_puts_nothing(layout: Path, client: Any, local_ecr: LocalECR) -> None:
    index = layout / "index.json"
    top = json.loads(index.read_text())
    blobs = sorted((layout / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    layers = [path for path in blobs if path.read_bytes()[:2] == b"\x1f\x8b"]

    whole = layers[0].read_bytes()
    layers[0].write_bytes(whole[:-1] + b"!")
    with pytest.raises(DigestMismatchError, match=layers[0].name):
        oci.push(client, layout, "demo")
    layers[0].write_bytes(whole[:-1])
    with pytest.raises(oci.LayoutError, match=f"{layers[0].name} has not the"):
        oci.push(client, layout, "demo")
    layers[0].unlink()
    with pytest.raises(oci.LayoutError, match=f"{layers[0].name} is missing"):
        oci.push(client, layout, "demo")
    layers[0].write_bytes(whole)

    manifest = layout / "blobs" / "sha256" / top["manifests"][0]["digest"].partition(":")[2]
    text = manifest.read_bytes()
    manifest.write_bytes(text[:-1] + b" ")
    with pytest.raises(oci.LayoutError, match="another content than its digest"):
        oci.push(client, layout, "demo")
    manifest.write_bytes(text)

    top["manifests"][0]["mediaType"] = "text/plain"
    index.write_text(json.dumps(top))
    with pytest.raises(oci.LayoutError, match="unknown media type text/plain"):
        oci.push(client, layout, "demo")
    top["manifests"] *= 2
    index.write_text(json.dumps(top))
    with pytest.raises(oci.LayoutError, match="--tag can name one"):
        oci.push(client, layout, "demo", "v1")
    (layout / "oci-layout").unlink()
    with pytest.raises(oci.LayoutError, match="no OCI image layout"):
        oci.push(client, layout, "demo")

    assert local_ecr.registry.repositories["demo"].manifests == {}


def test_a_repository_that_is_not_there_and_a_tag_that_is_fixed(
    layout: Path, local_ecr: LocalECR
) -> None:
    client: Any = local_ecr.client()
    with pytest.raises(ServiceError, match="'none'"):
        oci.push(client, layout, "none")
    client.create_repository(repositoryName="fixed", imageTagMutability="IMMUTABLE")
    client.put_image(repositoryName="fixed", imageManifest="{}", imageTag="v1")
    with pytest.raises(oci.LayoutError, match="tag v1 names another image, and is immutable"):
        oci.push(client, layout, "fixed", "v1")


def test_the_command_line(layout: Path, local_ecr: LocalECR) -> None:
    done = run("push_oci_image", str(layout), "demo", "--tag", "v1", **local_ecr.environ())
    assert done.returncode == 0, done.stderr
    assert "as v1" in done.stdout
    refused = run("push_oci_image", str(layout), "none", **local_ecr.environ())
    assert refused.returncode == 1
    assert refused.stderr.startswith("not pushed: BatchCheckLayerAvailability in repository 'none'")
    assert run("push_oci_image").returncode == 0
    assert run("push_oci_image", str(layout)).returncode == 2


@pytest.mark.skipif(not shutil.which("skopeo"), reason="skopeo is not installed")
def test_skopeo_pulls_what_was_pushed(layout: Path, local_ecr: LocalECR, tmp_path: Path) -> None:
    oci.push(local_ecr.client(), layout, "demo", "v1")
    copy = tmp_path / "copy"
    with front(local_ecr) as host:
        command = ["skopeo", "copy", "--all", "--insecure-policy", "--src-tls-verify=false"]
        subprocess.run(
            [*command, f"docker://{host}/demo:v1", f"oci:{copy}:v1"],
            check=True,
            capture_output=True,
        )
    pushed = {path.name: path.read_bytes() for path in (layout / "blobs" / "sha256").iterdir()}
    pulled = {path.name: path.read_bytes() for path in (copy / "blobs" / "sha256").iterdir()}
    assert pulled == pushed
