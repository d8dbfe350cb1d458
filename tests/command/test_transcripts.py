"""What a person sees in ten situations, from the first line to the last.

Read each as someone who has never seen the program: is it calm, true and helpful? Digests, times,
ports, directories and the IDs of uploads are replaced by words.
"""

from __future__ import annotations

import gzip
import re
import shlex
import signal
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeAlias

import pytest
from command_line import BLOB, MIB, RunInProcess, start
from helpers import limited_file_size, run_on_terminal, wait_until
from image_makers import Layout, docker_archive
from pytest_mock import MockerFixture

from ecr_parts.testing import LocalECR

Transcript: TypeAlias = Callable[..., str]
LAYERS = [BLOB, BLOB[: 6 * MIB]]
_VOLATILE = [
    (r"sha256:[0-9a-f]{64}", "sha256:DIGEST"),
    (r"sha256:[0-9a-f]{12}…", "sha256:DIGEST…"),
    (r"127\.0\.0\.1:[0-9]+", "127.0.0.1:PORT"),
    (r"\b[0-9]+(\.[0-9]+)? s\b", "N s"),
    (r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID"),
]


def normalized(text: str, directory: Path) -> str:
    for pattern, word in _VOLATILE:
        text = re.sub(pattern, word, text)
    return text.replace(str(directory), "DIR")


@pytest.fixture
def ecr() -> Iterator[LocalECR]:
    with LocalECR(["team/app"], part_size=5 * MIB) as ecr:
        yield ecr


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with an image in two formats, an extended one, and a layer."""
    directory = tmp_path / "files"
    directory.mkdir()
    monkeypatch.chdir(directory)
    docker_archive(directory / "image.tar", LAYERS)
    for name, layers in (("layout", LAYERS), ("newer", [*LAYERS, b"a small layer"])):
        layout = Layout(directory / name)
        layout.finish(layout.add_image("amd64", layers))
    (directory / "layer.tar.gz").write_bytes(LAYERS[0])
    return directory


@pytest.fixture
def transcript(files: Path, run_in_process: RunInProcess) -> Transcript:
    """Runs a command line. What is printed to standard output comes last, then the status."""

    def run(ecr: LocalECR | None, line: str) -> str:
        subcommand, *arguments = shlex.split(line)
        status, stdout, stderr = run_in_process(ecr, *arguments, subcommand=subcommand)
        return normalized(f"{stderr}{stdout}[{status}]", files)

    return run


def test_first_push(ecr: LocalECR, transcript: Transcript) -> None:
    shown = transcript(ecr, "push image.tar team/app:v1")
    assert re.sub("18,88[0-9],[0-9]{3}", "18,88N,NNN", shown) == (  # depends on the compressor
        """\
team/app:v1: 2 layers, 18.0 MiB, which are compressed before being sent
pushed team/app:v1 in N s: 18,88N,NNN bytes sent
sha256:DIGEST
[0]"""
    )
    assert transcript(ecr, "push oci:layout team/app:v2 --quiet") == "sha256:DIGEST\n[0]"


def test_second_push(ecr: LocalECR, transcript: Transcript) -> None:
    assert transcript(ecr, "push layout team/app:v1") == (
        """\
team/app:v1: 2 layers, 18.0 MiB, which ECR lacks
pushed team/app:v1 in N s: 18,874,438 bytes sent
sha256:DIGEST
[0]"""
    )
    assert transcript(ecr, "push layout team/app:v1") == (
        """\
team/app:v1: 2 layers, 18.0 MiB, all of which ECR has already
pushed team/app:v1 in N s: no layer was sent, because ECR had all of them
sha256:DIGEST
[0]"""
    )
    assert transcript(ecr, "push newer team/app:v2") == (
        """\
team/app:v2: 3 layers, 18.0 MiB, of which ECR lacks 1 (13 bytes)
pushed team/app:v2 in N s: 13 bytes sent
sha256:DIGEST
[0]"""
    )
    assert transcript(ecr, "upload layer.tar.gz team/app") == (
        """\
team/app: 1 layer, 12.0 MiB, all of which ECR has already
team/app has the layer already: no layer was sent (N s)
sha256:DIGEST
[0]"""
    )


def test_killed_and_resumed(ecr: LocalECR, transcript: Transcript) -> None:
    ecr.fail("UploadLayerPart", "throttled", call=3, times=99)
    with start(ecr, "layout", "team/app:v1", "--max-workers", "1", subcommand="push") as process:
        wait_until(lambda: len(ecr.calls_of("UploadLayerPart")) >= 5, seconds=60)
        process.kill()
        process.communicate()
    port = int(ecr.endpoint_url.rpartition(":")[2])  # that of the checkpoint
    ecr.stop()
    with LocalECR(port=port) as again:
        again.registry = ecr.registry
        assert transcript(again, "push layout team/app:v1 --max-workers 1") == (
            """\
team/app:v1: 2 layers, 18.0 MiB, which ECR lacks
layer sha256:DIGEST…: continuing at 10,485,760 of 12,582,912 bytes
pushed team/app:v1 in N s: 8,388,678 bytes sent
sha256:DIGEST
[0]"""
        )


def test_interrupted(ecr: LocalECR, files: Path) -> None:
    ecr.fail("UploadLayerPart", "throttled", call=3, times=99)
    with start(ecr, "layer.tar.gz", "team/app") as process:
        wait_until(lambda: len(ecr.calls_of("UploadLayerPart")) >= 5, seconds=60)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
    first, *retries, last = normalized(stderr.decode(), files).splitlines()
    assert first == "team/app: 1 layer, 12.0 MiB, which ECR lacks"
    assert re.fullmatch(
        "layer sha256:DIGEST…: (attempt [0-9]: )?ECR asks for fewer calls a second; trying again "
        "in N s",
        retries[-1],
    )
    assert last == "interrupted. Run the same command again to resume at byte 10,485,760"
    assert process.returncode == 130


def test_wrong_repository(ecr: LocalECR, transcript: Transcript) -> None:
    for line in ("push image.tar team/ap:v1", "push layout team/ap:v1"):
        assert transcript(ecr, line) == (
            """\
error: RepositoryNotFoundException: The repository with name 'team/ap' does not exist in the \
registry with id '012345678910'. Create the repository, or check its name (lower case, without a \
registry prefix or a tag), the registry ID and the region (--create-repository, --region, \
--registry-id, --public)
[1]"""
        )
    assert {call.operation for call in ecr.calls} == {"BatchCheckLayerAvailability"}
    assert transcript(ecr, "push layout team/ap:v1 --create-repository") == (
        """\
created the repository team/ap
team/ap:v1: 2 layers, 18.0 MiB, which ECR lacks
pushed team/ap:v1 in N s: 18,874,438 bytes sent
sha256:DIGEST
[0]"""
    )


@pytest.mark.parametrize(
    "line",
    ["upload layer.tar.gz team/ap", "push - team/ap:v1", "push image.tar.gz team/ap:v1"],
)
def test_wrong_repository_is_noticed_before_anything_is_read(
    line: str,
    ecr: LocalECR,
    files: Path,
    transcript: Transcript,
    mocker: MockerFixture,
) -> None:
    (files / "image.tar.gz").write_bytes(gzip.compress((files / "image.tar").read_bytes(), 0))
    reads = [
        mocker.patch("ecr_parts._command.upload.hash_source"),
        mocker.patch("ecr_parts._command.pipe.os.read"),
        mocker.patch("ecr_parts._images.files.decompress"),
    ]
    assert transcript(ecr, line).startswith("error: RepositoryNotFoundException: The repos")
    assert [call.operation for call in ecr.calls] == ["BatchCheckLayerAvailability"]
    for read in reads:
        read.assert_not_called()


def test_no_credentials(transcript: Transcript, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    assert transcript(None, "push image.tar team/app:v1") == (
        """\
error: there are no AWS credentials: set --profile or AWS_PROFILE, or AWS_ACCESS_KEY_ID and \
AWS_SECRET_ACCESS_KEY
[1]"""
    )


def test_expired_credentials(ecr: LocalECR, transcript: Transcript) -> None:
    ecr.fail("UploadLayerPart", "expired_token", call=3)
    assert transcript(ecr, "push layout team/app:v1 --max-workers 1") == (
        """\
team/app:v1: 2 layers, 18.0 MiB, which ECR lacks
error: ExpiredTokenException: The security token included in the request is expired. Log in again, \
or get new credentials (--profile, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY). Run the same \
command again to resume
[1]"""
    )
    assert transcript(ecr, "push layout team/app:v1 --max-workers 1") == (
        """\
team/app:v1: 2 layers, 18.0 MiB, which ECR lacks
layer sha256:DIGEST…: continuing at 10,485,760 of 12,582,912 bytes
pushed team/app:v1 in N s: 8,388,678 bytes sent
sha256:DIGEST
[0]"""
    )


def test_slow_link(ecr: LocalECR, transcript: Transcript, mocker: MockerFixture) -> None:
    """A line every ten seconds, by a clock that goes on by 3 seconds each time it is read."""
    clock = mocker.patch("ecr_parts._command.terminal.time")
    clock.monotonic.side_effect = count(0, 3)
    lines = transcript(ecr, "upload layer.tar.gz team/app --progress plain").splitlines()
    first = lines.index("team/app: 1 layer, 12.0 MiB, which ECR lacks")
    asking = {"asking ECR for the repository  N s elapsed", "asking ECR what it has  N s elapsed"}
    before, sending = [line for line in lines[:first] if line not in asking], lines[first + 1 : -3]
    assert len(before) >= 2
    for line in before:
        assert re.fullmatch(r"hashing  [0-9.]+ of 12.0 MiB  N s elapsed", line)
    assert len(sending) > 10
    assert sending[0] == "0%  0.0 of 12.0 MiB  N s elapsed"
    for line in sending[1:]:
        assert re.fullmatch(
            r"[0-9]+%  [0-9.]+ of 12\.0 MiB  ([0-9.]+ KiB/s  ([0-9]+ min|N s) left|N s elapsed)",
            line,
        )
    done = [int(line.partition("%")[0]) for line in sending]
    assert done == sorted(done)
    assert re.fullmatch(
        "uploaded the layer to team/app in [0-9]+ min N s: 12,582,912 bytes sent", lines[-3]
    )
    assert lines[-2:] == ["sha256:DIGEST", "[0]"]


def test_unreliable_network(ecr: LocalECR, transcript: Transcript) -> None:
    ecr.fail("UploadLayerPart", "answer_lost", call=2)
    ecr.fail("UploadLayerPart", "server_error", call=4)
    ecr.fail("CompleteLayerUpload", "answer_lost")
    assert transcript(ecr, "push layout team/app:v1 --max-workers 1") == (
        """\
team/app:v1: 2 layers, 18.0 MiB, which ECR lacks
layer sha256:DIGEST…: the connection was lost; trying again in N s
layer sha256:DIGEST…: ECR already has this part; continuing at byte 10,485,760
layer sha256:DIGEST…: ECR had an internal error; trying again in N s
layer sha256:DIGEST…: the whole part is stored; continuing at byte 12,582,912
layer sha256:DIGEST…: the connection was lost; trying again in N s
layer sha256:DIGEST…: ECR has all of it
pushed team/app:v1 in N s: 18,874,438 bytes sent
sha256:DIGEST
[0]"""
    )


def test_upload_that_ecr_has_lost(ecr: LocalECR, transcript: Transcript) -> None:
    ecr.fail("UploadLayerPart", "upload_forgotten", call=3)
    assert transcript(ecr, "upload layer.tar.gz team/app") == (
        """\
team/app: 1 layer, 12.0 MiB, which ECR lacks
layer sha256:DIGEST…: its upload cannot be completed; sending it again (restart 1 of 3)
uploaded the layer to team/app in N s: 12,582,912 bytes sent
sha256:DIGEST
[0]"""
    )


def test_no_network(
    ecr: LocalECR, transcript: Transcript, mocker: MockerFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    mocker.patch("ecr_parts._base.threads.Waiter.sleep")
    for name, value in ecr.environ().items():
        monkeypatch.setenv(name, value)
    ecr.stop()
    assert transcript(None, "push layout team/app:v1 --retry-for 0") == (
        """\
error: EndpointConnectionError: Could not connect to the endpoint URL: "http://127.0.0.1:PORT". \
Check the network, the region and the endpoint; then upload again (--region, --endpoint-url)
[1]"""
    )
    first, second, *_ = transcript(None, "push layout team/app:v1").splitlines()
    assert first == "asking which layers ECR has: ECR cannot be reached; trying again in N s"
    assert second == (
        "asking which layers ECR has: attempt 2: ECR cannot be reached; trying again in N s"
    )


def test_full_disk(ecr: LocalECR, transcript: Transcript) -> None:
    with limited_file_size(1_000_000):
        assert transcript(ecr, "push image.tar team/app:v1") == (
            f"""\
team/app:v1: 2 layers, 18.0 MiB, which are compressed before being sent
error: compressing a layer into a temporary file in {tempfile.gettempdir()} failed: File too \
large. Set TMPDIR to a directory with more space
[1]"""
        )


WRONG_FILES = {
    "missing.tar": "DIR/missing.tar: No such file or directory",
    "empty": (
        "'DIR/empty': it is not an image: it has neither index.json, as an OCI image layout has, "
        "nor manifest.json, as a docker archive and dir: have"
    ),
    "layer.tar.gz": (
        "'DIR/layer.tar.gz' is not a tar archive of an image: it does not begin as one. Pass an "
        "OCI image layout, an archive of one, or what docker save or podman save wrote"
    ),
    "app:v1": (
        "there is no file app:v1. For an image in docker, run: docker save app:v1 | ecr-parts push "
        "- team/app:v2"
    ),
    "docker-daemon:app:v1": (
        "docker-daemon:app:v1 is not a file. Run: docker save app:v1 | ecr-parts push - team/app:v2"
    ),
    "oci:layout:v9": ("'DIR/layout': it has no image 'v9'. It has linux/amd64 (sha256:DIGEST)"),
}


@pytest.mark.parametrize("image", WRONG_FILES)
def test_wrong_file(image: str, files: Path, ecr: LocalECR, transcript: Transcript) -> None:
    (files / "empty").mkdir()
    assert transcript(ecr, f"push {image} team/app:v2") == f"error: {WRONG_FILES[image]}\n[1]"
    assert ecr.calls == []


def test_on_a_terminal(ecr: LocalECR, files: Path) -> None:
    """The bar is replaced by the last line."""
    output = run_on_terminal(partial(start, ecr, "layer.tar.gz", "team/app"))
    lines = normalized(output, files).split("\r\n")
    shown = [line.rpartition("\r\x1b[K")[2] for line in lines]
    assert shown == [
        "team/app: 1 layer, 12.0 MiB, which ECR lacks",
        "uploaded the layer to team/app in N s: 12,582,912 bytes sent",
        "sha256:DIGEST",
        "",
    ]
