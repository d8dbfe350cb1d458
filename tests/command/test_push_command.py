"""``ecr-parts push``."""

from __future__ import annotations

import gzip
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest
from command_line import MIB, RunInProcess, run, start
from helpers import limited_file_size, random_bytes, read_terminal
from image_makers import Layout, docker_archive, two_platforms
from image_makers import archive as oci_archive
from pytest_mock import MockerFixture

from ecr_parts._command.pipe import Pipe
from ecr_parts.testing import EcrError, LocalECR


@pytest.mark.parametrize("public", [True, False])
def test_pushes_image(
    public: bool, image: Path, tmp_path: Path, run_in_process: RunInProcess
) -> None:
    with LocalECR(["team/app"]) as ecr:
        options: tuple[str, ...] = ("--public",) if public else ("--region", "us-east-1")
        options += ("--tag", "latest", "--checkpoint-dir", str(tmp_path / "saved"))
        status, digest, stderr = run_in_process(
            ecr, image, "team/app:v2", *options, subcommand="push"
        )
        repository = ecr.registry.repositories["team/app"]
        assert (status, repository.tags) == (0, dict.fromkeys(("v2", "latest"), digest.strip()))
        assert "pushed team/app:v2, team/app:latest in " in stderr.splitlines()[-1]
        status, digest, stderr = run_in_process(ecr, image, "team/app", subcommand="push")
        assert set(repository.tags) == {"v1", "v2", "latest"}
        assert "team/app:v1: 3 layers, 265 bytes, all of which ECR has already\n" in stderr


@pytest.mark.parametrize(
    "uri",
    [
        "https://012345678910.dkr-ecr-fips.us-west-2.on.aws/demo:v1",
        "012345678910.dkr.ecr.us-iso-east-1.c2s.ic.gov/demo:v1",
        "public.ecr.aws/alias/demo:v1",
        "{}/demo:v1",
    ],
)
def test_pushes_to_uri_of_every_kind(
    uri: str, small_image: Path, run_in_process: RunInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalECR() as ecr:
        if uri.startswith("{}"):  # its URI alone leads to it
            keys = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}
            monkeypatch.setattr(ecr, "environ", lambda: keys)
        uri = uri.format(ecr.endpoint_url.partition("://")[2])
        status, digest, stderr = run_in_process(ecr, small_image, uri, subcommand="push")
        assert ecr.registry.repositories["demo"].tags == {"v1": digest.strip()}
        assert status == 0
        assert "\npushed demo:v1 in " in stderr


def test_alias_of_another_registry_is_an_error(
    small_image: Path, run_in_process: RunInProcess
) -> None:
    with LocalECR() as ecr:
        found = {"repositoryUri": "public.ecr.aws/mine/demo"}
        ecr.respond("DescribeRepositories", {"repositories": [found]}, times=9)
        status, _, stderr = run_in_process(
            ecr, small_image, "public.ecr.aws/theirs/demo:v1", subcommand="push"
        )
    assert status == 1
    assert stderr == (
        "error: the repository demo of these credentials has the URI 'public.ecr.aws/mine/demo', "
        "not public.ecr.aws/theirs/demo: pass that, or check the credentials\n"
    )


def test_pushes_one_platform_without_tag(small_image: Path, run_in_process: RunInProcess) -> None:
    with LocalECR() as ecr:
        options = ("--platform", "linux/amd64", "--max-workers", "1")
        status, _, stderr = run_in_process(ecr, small_image, "demo", *options, subcommand="push")
        assert status == 0
        assert stderr.startswith("demo: 1 layer, 75 bytes, which ECR lacks\npushed demo in ")


@pytest.fixture
def small_image(tmp_path: Path) -> Path:
    layout = Layout(tmp_path / "small")
    return layout.finish(layout.add_image("amd64", [b"layer"]))


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (("--no-checkpoint",), "Run the command again to start over: its progress was not saved"),
        ((), "Run the same command again to resume"),
        (("--checkpoint-dir", "saved"), "Run the same command again to resume"),
    ],
)
def test_tells_how_to_resume_push(
    options: tuple[str, ...],
    advice: str,
    image: Path,
    run_in_process: RunInProcess,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    with LocalECR() as ecr:
        for operation, calls in (("CompleteLayerUpload", 0), ("PutImage", 3)):
            ecr.fail(operation, "access_denied")
            status, digest, stderr = run_in_process(ecr, image, "demo", *options, subcommand="push")
            assert (status, digest) == (1, "")
            assert stderr.endswith(f"in the caller's IAM policy (--profile). {advice}\n")
            assert len(ecr.calls_of("PutImage")) <= calls
        ecr.fail("BatchCheckLayerAvailability", "access_denied")
        _, _, stderr = run_in_process(ecr, image, "demo", *options, subcommand="push")
        assert stderr.endswith("in the caller's IAM policy (--profile)\n")


def test_reports_invalid_image(run_in_process: RunInProcess, tmp_path: Path) -> None:
    with LocalECR() as ecr:
        status, _, stderr = run_in_process(ecr, tmp_path, "demo", subcommand="push")
        assert (status, stderr.startswith("error: ")) == (1, True)
        assert "is not an image" in stderr
        assert ecr.calls == []


# From standard input


@pytest.mark.parametrize("kind", ["OCI", "docker"])
def test_pushes_image_from_standard_input(kind: str, ecr: LocalECR, tmp_path: Path) -> None:
    layers = [random_bytes(6 * MIB), random_bytes(MIB, seed=1)]
    archive = docker_archive(tmp_path / "image.tar", layers, compressed=kind == "OCI")
    if kind == "OCI":
        archive = oci_archive(two_platforms(tmp_path / "image").path, tmp_path / "oci.tar")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with start(
        ecr,
        "-",
        "demo:v2",
        "--progress",
        "bar",
        subcommand="push",
        stdin=subprocess.PIPE,
        environ={"TMPDIR": str(temporary)},
    ) as process:
        stdout, stderr = process.communicate(archive.read_bytes())
    assert process.returncode == 0, stderr
    assert b"] 100%  " in stderr
    assert b"reading standard input" in stderr
    assert ecr.registry.repositories["demo"].tags == {"v2": stdout.decode().strip()}
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("has_proc", [True, False])
def test_killed_push_from_standard_input_leaves_no_file_on_linux(
    has_proc: bool, ecr: LocalECR, tmp_path: Path, run_in_process: RunInProcess,
    mocker: MockerFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    archive = docker_archive(tmp_path / "image.tar", [b"a layer"]).read_bytes()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    blocks = [archive, b""]
    mocker.patch("ecr_parts._command.pipe.os.read", side_effect=lambda *_: blocks.pop(0))
    if not has_proc:
        mocker.patch("os.path.exists", return_value=False)
    seen: list[list[Path]] = []

    def interrupt(*_: object) -> None:
        seen.append(list(temporary.iterdir()))
        raise KeyboardInterrupt

    mocker.patch("ecr_parts._images.push.read_image", interrupt)
    assert run_in_process(ecr, "-", "demo", subcommand="push")[0] == 130
    assert [len(files) for files in seen] == [0 if has_proc else 1]
    assert list(temporary.iterdir()) == []


def test_push_from_standard_input_is_resumed(ecr: LocalECR, image: Path, tmp_path: Path) -> None:
    archive = oci_archive(image, tmp_path / "oci.tar").read_bytes()
    ecr.fail("PutImage", "access_denied")
    status, _, stderr = run(ecr, "-", "demo", subcommand="push", stdin=archive)
    assert (status, stderr.splitlines()[-1][-36:]) == (1, "Run the same command again to resume")
    ecr.calls.clear()
    assert run(ecr, "-", "demo", subcommand="push", stdin=archive)[0] == 0
    assert ecr.calls_of("UploadLayerPart") == []


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        (b"", "error: standard input or the pipe is empty: check the program that should"),
        (
            b"\x1f\x8b123",
            "error: standard input: it is compressed with gzip, and damaged: ",
        ),
        (b"x" * 1000, "error: standard input is not a tar archive of an image: "),
    ],
)
def test_reports_that_standard_input_is_no_image(stdin: bytes, message: str, ecr: LocalECR) -> None:
    status, stdout, stderr = run(ecr, "-", "demo", subcommand="push", stdin=stdin)
    assert (status, stdout) == (1, "")
    assert message in stderr
    assert ecr.calls_of("PutImage") == []


def test_reports_that_standard_input_cannot_be_saved(
    ecr: LocalECR, run_in_process: RunInProcess, mocker: MockerFixture
) -> None:
    mocker.patch("ecr_parts._command.pipe.os.read", return_value=bytes(2_000_000))
    with limited_file_size(1_000_000):
        status, _, stderr = run_in_process(ecr, "-", "demo", subcommand="push")
    assert status == 1
    assert stderr.startswith("error: copying standard input into a temporary file in ")
    assert stderr.endswith(" failed: File too large. Set TMPDIR to a directory with more space\n")


def test_ctrl_c_while_standard_input_is_read(ecr: LocalECR, tmp_path: Path) -> None:
    terminal, other_end = pty.openpty()
    with start(
        ecr, "-", "demo", subcommand="push", stdin=subprocess.PIPE, stderr=other_end,
        environ={"TMPDIR": str(tmp_path)},
    ) as process:  # fmt: skip
        os.close(other_end)
        read_terminal(terminal, until="reading standard input")
        process.send_signal(signal.SIGINT)
        output = read_terminal(terminal)
        process.communicate()
    os.close(terminal)
    assert process.returncode == 130
    assert output.endswith("interrupted. ECR has confirmed nothing yet: run it again\r\n")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_just_before_a_pipe_is_read_is_noticed(mocker: MockerFixture) -> None:
    """Python would notice it when ``os.read`` returns, which may be never."""
    reader, writer = os.pipe()
    os.write(writer, b"text")
    mocker.patch("select.select", side_effect=[([], [], []), KeyboardInterrupt])
    with pytest.raises(KeyboardInterrupt):
        Pipe(reader, None).read(10)
    mocker.stopall()
    assert Pipe(reader, None).read(10) == b"text"
    os.close(reader)
    os.close(writer)


def test_waiting_for_a_pipe_is_not_silent(mocker: MockerFixture) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"text")
    mocker.patch("select.select", side_effect=[([], [], []), ([], [], []), ([reader], [], [])])
    waiting = mocker.Mock()
    assert Pipe(reader, None, waiting).read(10) == b"text"
    assert waiting.call_count == 2
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("subcommand", ["push", "upload"])
def test_refuses_to_read_from_a_terminal(subcommand: str, ecr: LocalECR) -> None:
    terminal, other_end = pty.openpty()
    with start(ecr, "-", "demo", subcommand=subcommand, stdin=other_end) as process:
        _, stderr = process.communicate()
    os.close(terminal)
    os.close(other_end)
    assert process.returncode == 1
    assert stderr == b"error: standard input is a terminal: pass a file, or pipe the data in\n"


def test_error_in_a_piped_layer_names_standard_input(ecr: LocalECR, tmp_path: Path) -> None:
    archive = docker_archive(tmp_path / "image.tar", [b"a layer"], compressed=True).read_bytes()
    damaged = archive.replace(gzip.compress(b"a layer")[-8:], bytes(8))
    assert damaged != archive
    status, _, stderr = run(ecr, "-", "demo", subcommand="push", stdin=damaged)
    assert status == 1
    assert "\nerror: standard input: the layer at byte " in stderr


def test_error_of_ecr_does_not_name_the_temporary_file(
    ecr: LocalECR, image: Path, tmp_path: Path
) -> None:
    archive = oci_archive(image, tmp_path / "oci.tar").read_bytes()
    ecr.fail("CompleteLayerUpload", "access_denied")
    _, _, stderr = run(ecr, "-", "demo", subcommand="push", stdin=archive)
    assert stderr.splitlines()[-1].startswith("error: CompleteLayerUpload in repository 'demo'")


def test_no_advice_to_repeat_a_push_that_fails_again(
    ecr: LocalECR, image: Path, run_in_process: RunInProcess
) -> None:
    ecr.respond("PutImage", EcrError("ImageTagAlreadyExistsException", "no"), times=99)
    _, _, stderr = run_in_process(ecr, image, "demo", subcommand="push")
    assert stderr.endswith("or delete the image that has it (REPOSITORY:TAG, --tag)\n")


# Progress


@pytest.mark.parametrize("kind", ["layout", "compressed", "uncompressed"])
def test_bar_has_total(
    kind: str, ecr: LocalECR, image: Path, tmp_path: Path, run_in_process: RunInProcess
) -> None:
    if kind != "layout":
        image = docker_archive(
            tmp_path / "image.tar", [random_bytes(MIB)], compressed=kind == "compressed"
        )
    options = ("--progress", "bar", "--platform", "linux/amd64")
    _, _, stderr = run_in_process(ecr, image, "demo", *options, subcommand="push")
    assert "] 100%  " in stderr
    assert "101%" not in stderr


def test_decompressing_has_progress(
    ecr: LocalECR, tmp_path: Path, run_in_process: RunInProcess, mocker: MockerFixture
) -> None:
    mocker.patch("ecr_parts._command.terminal._REDRAW_INTERVAL", -1)  # draw each time
    archive = docker_archive(tmp_path / "image.tar", [random_bytes(MIB)])
    (tmp_path / "image.tar.gz").write_bytes(gzip.compress(archive.read_bytes()))
    _, _, stderr = run_in_process(
        ecr, tmp_path / "image.tar.gz", "demo", "--progress", "bar", subcommand="push"
    )
    assert "decompressing the image  0.0 of 1.0 MiB  " in stderr
    assert "decompressing the image  1.0 of 1.0 MiB  " in stderr


def test_notices_are_lines(ecr: LocalECR, tmp_path: Path, run_in_process: RunInProcess) -> None:
    layout = Layout(tmp_path / "layout")
    layout.finish(layout.add_plain_image("amd64", [b"layer"]))
    _, digest, stderr = run_in_process(ecr, layout.path, "demo", subcommand="push")
    (note,) = [line for line in stderr.splitlines() if line.startswith("note: ")]
    assert note.startswith("note: its layers are compressed: sha256:")
    assert note.endswith(f" in the file is {digest.strip()}")
