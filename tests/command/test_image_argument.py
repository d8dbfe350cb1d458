"""``IMAGE`` as other tools write it."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import RunInProcess
from image_makers import Layout, docker_archive

from ecr_parts._command.image_argument import parse_image
from ecr_parts.testing import LocalECR

FILES = {"image.tar", "layout", "a:b", "dir:image", "oci:odd"}


@pytest.mark.parametrize(
    ("text", "path", "name"),
    [
        ("-", "-", None),
        ("image.tar", "image.tar", None),
        ("missing.tar", "missing.tar", None),
        ("image.tar:v1", "image.tar", "v1"),
        ("image.tar:docker.io/library/app:v1", "image.tar", "docker.io/library/app:v1"),
        ("image.tar:", "image.tar", None),
        ("a:b", "a:b", None),
        ("a:b:v1", "a:b", "v1"),
        ("dir:image", "dir:image", None),  # there is such a file
        ("dir:other", "other", None),
        ("dir:other:v1", "other:v1", None),  # no image of dir: has a name
        ("oci:odd", "oci:odd", None),
        ("oci:layout", "layout", None),
        ("oci:layout:v1", "layout", "v1"),
        ("oci:a:b", "a:b", None),
        ("oci:a:b:v1", "a:b", "v1"),
        ("oci:missing", "missing", None),
        ("oci:missing:v1", "missing", "v1"),
        ("oci-archive:image.tar:v1", "image.tar", "v1"),
        ("docker-archive:image.tar:app:v1", "image.tar", "app:v1"),
    ],
)
def test_is_split_into_path_and_name(text: str, path: str, name: str | None) -> None:
    assert parse_image(text, "team/app:v1", FILES.__contains__) == (path, name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("docker-daemon:app:v1", "docker save app:v1 | ecr-parts push - team/app:v1"),
        ("containers-storage:app:v1", "podman save app:v1 | ecr-parts push - team/app:v1"),
        (
            "docker://redis:7",
            "skopeo copy docker://redis:7 oci:image && ecr-parts push image team/app:v1",
        ),
        ("app:v1", "docker save app:v1 | ecr-parts push - team/app:v1"),
        ("oci:", "there is no path after oci:"),
    ],
)
def test_image_that_is_not_in_a_file_is_refused_with_the_command_that_helps(
    text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=r"there is no|is not a file") as raised:
        parse_image(text, "team/app:v1", FILES.__contains__)
    assert str(raised.value).endswith(message)


@pytest.mark.parametrize("form", ["docker-archive:{}:b:v1", "{}:b:v1", "{}"])
def test_pushes_the_image_that_is_named(
    form: str, ecr: LocalECR, tmp_path: Path, run_in_process: RunInProcess
) -> None:
    path = docker_archive(tmp_path / "image.tar", [b"a layer"], tags=["a:v1", "b:v1"])
    options = ("--image", "b:v1") if form == "{}" else ()
    status, _, stderr = run_in_process(ecr, form.format(path), "demo", *options, subcommand="push")
    assert (status, stderr.splitlines()[0][:8]) == (0, "demo:v1:")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("v1", ("--image", "v2"), "IMAGE names the image 'v1', and --image names 'v2': pass one"),
        ("\x1b", (), "an image's name has printable characters, unlike '\\x1b'"),
    ],
)
def test_name_is_checked(
    name: str,
    options: tuple[str, ...],
    message: str,
    ecr: LocalECR,
    tmp_path: Path,
    run_in_process: RunInProcess,
) -> None:
    layout = Layout(tmp_path / "layout")
    layout.finish(layout.add_image("amd64", [b"layer"]))
    image = f"oci:{layout.path}:{name}"
    status, _, stderr = run_in_process(ecr, image, "demo", *options, subcommand="push")
    assert (status, ecr.calls) == (1, [])
    assert message in stderr
    assert stderr.count("\x1b") == 0
