"""The README is true: each of its blocks is run, each of its tables looked at."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import botocore.session
import pytest
from botocore.exceptions import ConnectionClosedError
from helpers import OPERATIONS, bytes_of, digest_of, shown_on_a_terminal
from test_live import UNKNOWN

import ecr_parts
from ecr_parts import CLIENT_CONFIG, EcrPartsError, LayerUploader, ServiceError, default_retrying
from ecr_parts.testing import Fault, LocalECR

MIB = 1024 * 1024
ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
LAYER = bytes_of(12 * MIB)  # of two parts
DIGEST = digest_of(LAYER)


class Block(NamedTuple):
    """What is fenced in the README."""

    heading: str
    language: str
    number: int
    """Of its heading and language, from 0."""


def blocks() -> dict[Block, str]:
    found: dict[Block, str] = {}
    numbers: Counter[tuple[str, str]] = Counter()
    heading = ""
    for line, fence, text in re.findall(
        r"^#+ ([^\n]*)$|^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL
    ):
        heading = line or heading
        if fence:
            found[Block(heading, fence, numbers[heading, fence])] = text
            numbers[heading, fence] += 1
    return found


BLOCKS = blocks()


class Desk:
    """Where a reader tries a block: a directory with files, a local ECR, what was made before."""

    def __init__(self, ecr: LocalECR, path: Path) -> None:
        self.ecr = ecr
        self.path = path
        client = botocore.session.get_session().create_client("ecr", config=CLIENT_CONFIG)
        self.names: dict[str, Any] = {
            "client": client,
            "uploader": LayerUploader(client, "team/app"),
        }

    def run(self, text: str) -> None:
        """A Python block; what it defines is in ``names``."""
        exec(compile(text, "README.md", "exec"), self.names)

    def arrived(self, digest: str = DIGEST) -> bytes:
        return self.ecr.layer("team/app", digest)

    def shell(self, text: str) -> str:
        """Standard output of a shell block, where ``python`` is this one."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            cwd=self.path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    with LocalECR(["demo", "team/app", "team/scratch"]) as ecr:
        for name, value in ecr.environ().items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        for folder in ("examples", "tests", "pyproject.toml"):
            (tmp_path / folder).symlink_to(ROOT / folder)
        (tmp_path / "layer.tar.gz").write_bytes(LAYER)
        yield Desk(ecr, tmp_path)


def last_command(text: str) -> list[str]:
    """Of a block that sets everything up: what it runs in the end, with this Python."""
    command = shlex.split(text.rpartition("&&")[2])
    assert command[0] == ".venv/bin/python"
    return [sys.executable, *command[1:]]


def quickstart(text: str, desk: Desk) -> None:
    """As on a terminal: and that is what the README shows of it."""
    environ = {**os.environ, "NO_COLOR": "1"}
    command = partial(subprocess.Popen, last_command(text), cwd=ROOT, env=environ)
    shown = shown_on_a_terminal(partial(command, stdin=subprocess.DEVNULL))
    screen = [line.rpartition("\r\x1b[K")[2] for line in shown.split("\r\n")]
    said = BLOCKS[Block("ecr-parts", "text", 0)].split("\n")
    for line, promised in zip(map(what_stays, screen), map(what_stays, said), strict=True):
        beginning, cut, _ = promised.partition("…")
        assert line[: len(beginning) if cut else None] == beginning


def what_stays(line: str) -> str:
    """Without what differs from run to run."""
    for changing in (r"[0-9a-f]{64}", r"(?<=127\.0\.0\.1:)\d+", r"47,\d{3},\d{3}", r"\d+(?= s$)"):
        line = re.sub(changing, "*", line)
    return line


def run_by_ci(text: str, _desk: Desk) -> None:
    """``.ci/run`` takes it from the README; here it would run itself."""
    assert last_command(text)[1:] == ["-m", "pytest"]
    assert 'readme_command 2)"' in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def benchmark(text: str, _desk: Desk) -> None:
    command = [*last_command(text), "--mib", "4", "--rounds", "1", "--huge-mib", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    shown = re.findall(r"^\| ([a-z]\S.*?) \| (\d+ ms) ", done.stdout, re.MULTILINE)
    promised = re.findall(r"^\| ([a-z]\S.*?) \| (\d+ ms) ", README, re.MULTILINE)
    assert [line for line in promised if line in shown or line[0] != "skopeo"] == shown


def first_program(text: str, desk: Desk) -> None:
    desk.run(text)
    assert desk.names["layer"].digest == DIGEST
    assert desk.arrived() == LAYER


def command_line(text: str, desk: Desk) -> None:
    (desk.path / "layer.tar").write_bytes(b"a layer that is not compressed")
    digest, of_stream = desk.shell(text).splitlines()
    assert desk.arrived(digest) == LAYER
    assert gzip.decompress(desk.arrived(of_stream)) == b"a layer that is not compressed"


def quickstart_of_ones_own(text: str, desk: Desk) -> None:
    assert desk.shell(text).endswith(f"arrived {DIGEST}\nthe layer arrived whole\n")


def served(text: str, desk: Desk) -> None:
    """In one terminal; and in another, what it printed and a command of the block before."""
    (desk.path / "layer.tar").touch()
    environ = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with subprocess.Popen(
        [sys.executable, *shlex.split(text)[1:]], stdout=subprocess.PIPE, text=True, env=environ
    ) as server:
        assert server.stdout is not None
        printed = [server.stdout.readline() for _ in range(len(desk.ecr.environ()) + 1)]
        assert printed[0].startswith("http://127.0.0.1:")
        command = BLOCKS[Block("From the command line", "sh", 0)].splitlines()[0]
        assert desk.shell("".join([*printed[1:], command])) == f"{DIGEST}\n"
        server.terminate()
    assert desk.ecr.calls == []


def any_stream(text: str, desk: Desk) -> None:
    desk.names.update(body=iter([LAYER[:5], LAYER[5:]]), size=len(LAYER), digest=DIGEST)
    desk.run(text)
    assert desk.arrived() == LAYER


def broken_off(text: str, desk: Desk) -> None:
    desk.ecr.fail("UploadLayerPart", "expired_token", call=2)
    with pytest.raises(ServiceError):
        desk.run(text)


def resumed(text: str, desk: Desk) -> None:
    broken_off(BLOCKS[Block("Resuming", "python", 0)], desk)
    desk.run(text)
    assert desk.arrived() == LAYER
    sent = [call.first_byte for call in desk.ecr.calls if call.first_byte is not None]
    assert sent == [0, 10 * MIB, 10 * MIB]


def lambda_function(text: str, desk: Desk) -> None:
    desk.run(text)

    class Context:
        """Of an invocation whose time is up after its first part."""

        def get_remaining_time_in_millis(self) -> int:
            sent = sum(call.operation == "UploadLayerPart" for call in desk.ecr.calls)
            return 900_000 if sent == before else 120_000

    event = {"repository": "team/app", "path": "layer.tar.gz", "digest": DIGEST}
    invocations = 0
    while "repository" in event:
        event = json.loads(json.dumps(event))  # as it comes to the next invocation
        before = sum(call.operation == "UploadLayerPart" for call in desk.ecr.calls)
        event = desk.names["handler"](event, Context())
        invocations += 1
    assert event == {"digest": DIGEST}
    assert invocations == 3
    assert desk.arrived() == LAYER


def stream(text: str, desk: Desk) -> None:
    (desk.path / "rootfs").mkdir()
    (desk.path / "rootfs" / "hello").write_text("a file of the layer")
    desk.run(text)
    tar = gzip.decompress(desk.arrived(desk.names["layer"].digest))
    assert desk.names["diff_id"].hexdigest() == digest_of(tar).partition(":")[2]
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        hello = opened.extractfile("./hello")
        assert hello is not None
        assert hello.read() == b"a file of the layer"

    completed = len(desk.ecr.registry.repositories["team/app"].layers)
    (desk.path / "rootfs" / "hello").unlink()
    (desk.path / "rootfs").rmdir()
    with pytest.raises(subprocess.CalledProcessError):
        desk.run(text)
    assert len(desk.ecr.registry.repositories["team/app"].layers) == completed


def progress(text: str, desk: Desk) -> None:
    desk.run(text)
    assert desk.arrived() == LAYER
    bar = desk.names["bar"]
    done = bar.n if "tqdm" in text else desk.names["bars"].tasks[bar].completed
    assert done == len(LAYER)


def asyncio_(text: str, desk: Desk) -> None:
    desk.run(text)
    upload = desk.names["upload"]
    assert asyncio.run(upload("layer.tar.gz")).digest == DIGEST

    async def cancelled() -> None:
        """While it waits, for half a minute maybe, for ECR to be itself again."""
        task = asyncio.create_task(upload("layer.tar.gz"))
        while len(desk.ecr.calls) < 2:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    desk.ecr.calls.clear()
    desk.ecr.fail("BatchCheckLayerAvailability", "throttled", times=1000)
    asyncio.run(cancelled())
    assert not [x for x in threading.enumerate() if x.name.startswith("asyncio")]


def many_layers(text: str, desk: Desk) -> None:
    for name in ("config.json", "base.tar.gz", "app.tar.gz"):
        (desk.path / name).write_text(name)
    desk.run(text)
    uploaded = [desk.names["config"], *desk.names["layers"]]
    assert [desk.arrived(layer.digest) for layer in uploaded] == [
        b"config.json", b"base.tar.gz", b"app.tar.gz",
    ]  # fmt: skip


def step_by_step(text: str, desk: Desk) -> None:
    desk.ecr.fail("UploadLayerPart", "stored_in_part")
    desk.run(text)
    assert desk.arrived() == LAYER


def own_tests(text: str, desk: Desk) -> None:
    (desk.path / "pytest.ini").write_text("[pytest]")  # not the project's own settings
    (desk.path / "test_mine.py").write_text(text)
    assert "1 passed" in desk.shell("python -m pytest -W error test_mine.py")


def policy(text: str, desk: Desk) -> None:
    desk.run(text)
    desk.names["uploader"].upload(LAYER)
    assert desk.arrived() == LAYER


def permissions(text: str, _desk: Desk) -> None:
    (statement,) = json.loads(text)["Statement"]
    assert statement["Action"] == [f"ecr:{operation}" for operation in OPERATIONS]


def settled(text: str, desk: Desk) -> None:
    said = desk.shell(text)
    for switch, (question, _) in UNKNOWN.items():
        assert re.search(rf"^settled: {switch}=.* \({re.escape(question)}\)$", said, re.MULTILINE)


def looked_at_with_the_quickstart(_text: str, _desk: Desk) -> None:
    """Its output."""


CHECKS: dict[Block, Callable[[str, Desk], None]] = {
    Block("ecr-parts", "sh", 0): quickstart,
    Block("ecr-parts", "text", 0): looked_at_with_the_quickstart,
    Block("ecr-parts", "python", 0): first_program,
    Block("ecr-parts", "sh", 1): run_by_ci,
    Block("From the command line", "sh", 0): command_line,
    Block("From the command line", "sh", 1): served,
    Block("From the command line", "sh", 2): quickstart_of_ones_own,
    Block("What is uploaded", "python", 0): any_stream,
    Block("Resuming", "python", 0): broken_off,
    Block("Resuming", "python", 1): resumed,
    Block("A Lambda function", "python", 0): lambda_function,
    Block("A stream", "python", 0): stream,
    Block("Progress", "python", 0): progress,
    Block("Progress", "python", 1): progress,
    Block("Cancelling, and asyncio", "python", 0): asyncio_,
    Block("Many layers", "python", 0): many_layers,
    Block("Step by step", "python", 0): step_by_step,
    Block("Testing your own tool", "python", 0): own_tests,
    Block("Clients, retries, and the longest a call can take", "python", 0): policy,
    Block("Permissions", "json", 0): permissions,
    Block("Speed", "sh", 0): benchmark,
    Block("What is unknown of ECR", "sh", 0): settled,
}


def test_every_block_is_run() -> None:
    assert list(BLOCKS) == list(CHECKS)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.heading}: {block.language}")
def test_a_block(block: Block, desk: Desk) -> None:
    CHECKS[block](BLOCKS[block], desk)


def section(heading: str) -> str:
    return README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def first_column(heading: str) -> list[str]:
    """What stands in backticks in the first column of the tables."""
    rows = re.findall(r"^\| (?!---)([^|]*) \|", section(heading), re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def test_the_errors() -> None:
    named = set(first_column("Errors"))
    ours = {name for name in ecr_parts.__all__ if name.endswith("Error")}
    assert ours - {EcrPartsError.__name__} <= named


def test_the_faults() -> None:
    assert re.findall(r'`"(\w+)"`', section("Testing your own tool")) == list(get_args(Fault))


def test_what_is_unknown() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", section("What is unknown of ECR"), re.MULTILINE)
    assert [(switch, unknown.replace("\\", "")) for switch, unknown in rows] == [
        (switch, question) for switch, (question, _) in UNKNOWN.items()
    ]


def test_every_parameter_exception_and_option_of_upload_layer_part() -> None:
    client = botocore.session.Session().create_client("ecr", region_name="us-east-1")
    operation: Any = client.meta.service_model.operation_model("UploadLayerPart")
    named = first_column("From `upload_layer_part` to here")
    members = {*operation.input_shape.members, *operation.output_shape.members}
    assert members <= set(named)
    assert {shape.name for shape in operation.error_shapes} <= set(named)
    options = """
    registry-id repository-name upload-id part-first-byte part-last-byte layer-part-blob
    cli-input-json cli-input-yaml generate-cli-skeleton debug endpoint-url no-verify-ssl no-paginate
    output query profile region version color no-sign-request ca-bundle cli-read-timeout
    cli-connect-timeout cli-binary-format no-cli-pager cli-auto-prompt no-cli-auto-prompt"""
    assert {f"--{name}" for name in options.split()} <= set(named)


def test_the_first_tables_figures_are_the_benchmarks() -> None:
    measured = dict(re.findall(r"^\| ([\w ]+) \| 0 ms \| (\d+) \|", section("Speed"), re.MULTILINE))
    front = dict(
        re.findall(r"^\| (.+?) \| .* \| (\d+) \|$", README.partition("## Why")[0], re.MULTILINE)
    )
    assert front == {
        "a loop over botocore's `upload_layer_part`": measured["botocore loop"],
        "skopeo": measured["skopeo"],
        "ecr-parts": measured["ecr parts"],
    }


def test_the_longest_a_call_can_take() -> None:
    config: Any = CLIENT_CONFIG
    attempt = config.connect_timeout + config.read_timeout
    assert attempt == 120
    calls, waits = 0, list[float]()

    def fail() -> None:
        nonlocal calls
        calls += 1
        raise ConnectionClosedError(endpoint_url="")

    policy = default_retrying().copy(sleep=waits.append)
    for _ in range(300):
        with pytest.raises(ConnectionClosedError):
            policy(fail)
    assert calls == 300 * 10
    longest = sum(max(waits[i::9]) for i in range(9))  # they are drawn at random
    assert 110 < longest < 122
    assert 10 * attempt + longest < 22.1 * 60


def test_headings_that_are_linked_to_exist() -> None:
    anchors = {
        re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-")
        for h in re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors
    for path in re.findall(r"\]\(((?!http|#)[^)]+)\)", README):
        assert (ROOT / path).exists()
