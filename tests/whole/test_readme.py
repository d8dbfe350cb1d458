"""The README and the guides: every code block is executed, and tables and figures are checked.

A block is recognized by its code and a table by its content, so headings, order and prose are free.
"""

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
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, get_args

import botocore.session
import pytest
from botocore.exceptions import ConnectionClosedError
from command_line import BLOB, DIGEST
from helpers import OPERATIONS, digest_of, run_on_terminal
from image_makers import docker_archive
from whole.test_live import UNKNOWN

import ecr_parts
from ecr_parts import CLIENT_CONFIG, EcrPartsError, LayerUploader, ServiceError, default_retrying
from ecr_parts.testing import Fault, LocalECR, Unknowns

MIB = 1024 * 1024
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
CI_SCRIPT = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
LAYER = BLOB  # two parts: 10 MiB and 2 MiB


class Block(NamedTuple):
    """A fenced code block."""

    language: str
    text: str


def parse_blocks(markdown: str) -> list[Block]:
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", markdown, re.MULTILINE | re.DOTALL)
    return [Block(*block) for block in blocks]


BLOCKS = parse_blocks(README) + parse_blocks(GUIDES)

Table: TypeAlias = list[list[str]]
"""The cells of a table's rows. The first row is the header."""


def parse_tables(markdown: str) -> list[Table]:
    tables = []
    for text in re.findall(r"(?:^\|.*\|\n)+", markdown, re.MULTILINE):
        header, _separator, *rows = text.splitlines()
        cells = [[cell.strip() for cell in row[1:-1].split("|")] for row in (header, *rows)]
        tables.append(cells)
    return tables


TABLES = parse_tables(README) + parse_tables(GUIDES)


def names_in_first_column(table: Table) -> list[str]:
    """The code spans in the first column, without the header."""
    return [name for row in table[1:] for name in re.findall(r"`([^`]+)`", row[0])]


ALL_NAMES = {name for table in TABLES for name in names_in_first_column(table)}


# Blocks


class Workspace:
    """Where the blocks run: a directory with a layer, a LocalECR, and the README's variables."""

    def __init__(self, ecr: LocalECR, path: Path) -> None:
        self.ecr = ecr
        self.path = path
        client = botocore.session.get_session().create_client("ecr", config=CLIENT_CONFIG)
        self.variables: dict[str, Any] = {
            "client": client,
            "uploader": LayerUploader(client, "team/app"),
        }

    def run_python(self, text: str) -> None:
        exec(compile(text, "README.md", "exec"), self.variables)

    def run_shell(self, text: str) -> str:
        """Run a shell block, with the Python of this test as ``python``. Returns its output."""
        completed = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            cwd=self.path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert completed.returncode == 0, completed.stderr
        return completed.stdout

    def stored_layer(self, digest: str = DIGEST) -> bytes:
        return self.ecr.layer("team/app", digest)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    unknowns = Unknowns(longest_silence=1)  # or else the live test would wait for 20 seconds
    with LocalECR(["demo", "team/app", "team/scratch"], unknowns=unknowns) as ecr:
        for name, value in ecr.environ().items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        for name in ("examples", "tests", "pyproject.toml"):
            (tmp_path / name).symlink_to(ROOT / name)
        (tmp_path / "layer.tar.gz").write_bytes(LAYER)
        yield Workspace(ecr, tmp_path)


def last_command(text: str) -> list[str]:
    """The last command of a block that first installs something, with this Python."""
    command = shlex.split(text.rpartition("&&")[2])
    assert command[0] == ".venv/bin/python"
    return [sys.executable, *command[1:]]


def is_run_by_ci(text: str) -> bool:
    """Whether ``.ci/run``, which takes shell blocks of the README by number, runs this one."""
    shell_blocks = [block.text for block in parse_blocks(README) if block.language == "sh"]
    return f'readme_command {shell_blocks.index(text) + 1})"' in CI_SCRIPT


def quickstart(text: str, workspace: Workspace) -> None:
    assert is_run_by_ci(text)
    environ = {**os.environ, "NO_COLOR": "1"}
    start = partial(subprocess.Popen, last_command(text), cwd=ROOT, env=environ)
    output = run_on_terminal(partial(start, stdin=subprocess.DEVNULL))
    shown = "\n".join(line.rpartition("\r\x1b[K")[2] for line in output.split("\r\n"))
    # An ellipsis stands for the rest of a line, or for whole lines.
    pattern = "".join(
        "(.*\n)+?" if line == "…" else re.escape(line).replace("…", ".*") + "\n"
        for line in text_of(quickstart_output).splitlines()
    )
    assert re.search(f"^{pattern}", shown, re.MULTILINE), shown


def quickstart_output(_text: str, _workspace: Workspace) -> None:
    """Compared by ``quickstart``."""


def project_tests(text: str, _workspace: Workspace) -> None:
    """Not executed here, where it would run itself."""
    assert last_command(text)[1:3] == ["-m", "pytest"]
    assert is_run_by_ci(text)


def first_program(text: str, workspace: Workspace) -> None:
    docker_archive(workspace.path / "image.tar", [LAYER])
    workspace.run_python(text)
    assert workspace.variables["layer"].digest == DIGEST
    assert workspace.stored_layer() == LAYER
    assert workspace.variables["image"].tags == ("v1",)


def own_client(text: str, workspace: Workspace) -> None:
    workspace.run_python(f"from ecr_parts import LayerUploader\n{text}")
    assert workspace.variables["uploader"].upload("layer.tar.gz").digest == DIGEST


def written_layer(text: str, workspace: Workspace) -> None:
    (workspace.path / "rootfs").mkdir()
    (workspace.path / "rootfs" / "hello").write_text("hello")
    workspace.run_python(text)
    tar = gzip.decompress(workspace.stored_layer(workspace.variables["file"].layer.digest))
    assert workspace.variables["file"].diff_id == digest_of(tar)


def first_commands(text: str, workspace: Workspace) -> None:
    docker_archive(workspace.path / "image.tar", [LAYER])
    layer, image = workspace.run_shell(text).splitlines()
    assert layer == DIGEST
    assert workspace.ecr.registry.repositories["team/app"].tags == {"v1": image}


def put_manifest(text: str, workspace: Workspace) -> None:
    written_layer(text_of(written_layer), workspace)
    workspace.run_python(text)
    digest = workspace.variables["image"].descriptor()["digest"]
    assert workspace.ecr.registry.repositories["team/app"].tags == {"v1": digest}


def command_line(text: str, workspace: Workspace) -> None:
    tar = b"a layer that is not compressed"
    (workspace.path / "layer.tar").write_bytes(tar)
    docker_archive(workspace.path / "image.tar", [LAYER])
    docker_archive(workspace.path / "images.tar", [LAYER], tags=["app:v1"])
    for name in ("base.tar.gz", "app.tar.gz"):
        (workspace.path / name).write_text(name)
    image, named, base, app, stream = workspace.run_shell(text).splitlines()
    assert workspace.ecr.registry.repositories["team/app"].tags == {"v1": image, "v2": named}
    assert workspace.stored_layer(json.loads(base)["digest"]) == b"base.tar.gz"
    assert workspace.stored_layer(json.loads(app)["digest"]) == b"app.tar.gz"
    assert gzip.decompress(workspace.stored_layer(stream)) == tar


def serve(text: str, workspace: Workspace) -> None:
    """Run this block, then the lines that it printed and the first command of another block."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    command, *options = shlex.split(text)
    assert command == "ecr-parts"
    with subprocess.Popen(
        [sys.executable, "-m", "ecr_parts", *options],
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
    ) as server:
        try:
            assert server.stdout is not None
            variables = len(workspace.ecr.environ())
            url, *exports = [server.stdout.readline() for _ in range(1 + variables)]
            assert url.startswith("http://127.0.0.1:")
            command = text_of(first_commands).splitlines()[0]
            assert workspace.run_shell("".join([*exports, command])) == f"{DIGEST}\n"
        finally:
            server.terminate()
    assert workspace.ecr.calls == []


def interrupted_session(text: str, workspace: Workspace) -> None:
    workspace.ecr.fail("UploadLayerPart", "expired_token", call=2)
    with pytest.raises(ServiceError):
        workspace.run_python(text)


def resumed_session(text: str, workspace: Workspace) -> None:
    interrupted_session(text_of(interrupted_session), workspace)
    workspace.run_python(text)
    assert workspace.stored_layer() == LAYER
    first_bytes = [call.first_byte for call in workspace.ecr.calls_of("UploadLayerPart")]
    assert first_bytes == [0, 10 * MIB, 10 * MIB]


def compressed_stream(text: str, workspace: Workspace) -> None:
    directory, content = workspace.path / "rootfs", b"a file of the layer"
    directory.mkdir()
    (directory / "hello").write_bytes(content)
    workspace.run_python(text)
    tar = gzip.decompress(workspace.stored_layer(workspace.variables["layer"].digest))
    assert f"sha256:{workspace.variables['diff_id'].hexdigest()}" == digest_of(tar)
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        member = archive.extractfile("./hello")
        assert member is not None
        assert member.read() == content

    layers = workspace.ecr.registry.repositories["team/app"].layers
    completed = len(layers)
    (directory / "hello").unlink()
    directory.rmdir()
    with pytest.raises(subprocess.CalledProcessError):
        workspace.run_python(text)
    assert len(layers) == completed


def progress_with_tqdm(text: str, workspace: Workspace) -> None:
    workspace.run_python(text)
    assert workspace.stored_layer() == LAYER
    assert workspace.variables["bar"].n == len(LAYER)


def asyncio_task(text: str, workspace: Workspace) -> None:
    workspace.run_python(text)
    upload = workspace.variables["upload"]
    assert asyncio.run(upload("layer.tar.gz")).digest == DIGEST

    async def cancel_while_throttled() -> None:
        task = asyncio.create_task(upload("layer.tar.gz"))
        while len(workspace.ecr.calls) < 2:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    workspace.ecr.calls.clear()
    workspace.ecr.fail("BatchCheckLayerAvailability", "throttled", times=1_000)
    asyncio.run(cancel_while_throttled())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("asyncio")]


def many_layers(text: str, workspace: Workspace) -> None:
    names = ["config.json", "base.tar.gz", "app.tar.gz"]
    for name in names:
        (workspace.path / name).write_text(name)
    workspace.run_python(text)
    uploaded = [workspace.variables["config"], *workspace.variables["layers"]]
    assert [workspace.stored_layer(layer.digest).decode() for layer in uploaded] == names


def single_calls(text: str, workspace: Workspace) -> None:
    workspace.ecr.fail("UploadLayerPart", "stored_in_part")
    workspace.run_python(text)
    assert workspace.stored_layer() == LAYER


def own_tests(text: str, workspace: Workspace) -> None:
    (workspace.path / "pytest.ini").write_text("[pytest]")  # instead of the project's settings
    (workspace.path / "test_mine.py").write_text(text)
    assert "1 passed" in workspace.run_shell("python -m pytest -W error test_mine.py")


def retry_policy(text: str, workspace: Workspace) -> None:
    workspace.run_python(text)
    workspace.variables["uploader"].upload(LAYER)
    assert workspace.stored_layer() == LAYER


def permissions(text: str, _workspace: Workspace) -> None:
    (statement,) = json.loads(text)["Statement"]
    assert statement["Action"] == [f"ecr:{operation}" for operation in (*OPERATIONS, "PutImage")]


def benchmark(text: str, _workspace: Workspace) -> None:
    """Check that it measures what the README's tables list."""
    command = [*last_command(text), "--mib", "1", "--rounds", "1"]
    command += ["--small-mib", "1", "--huge-mib", "1", "--image-mib", "1"]
    environ = {**os.environ, "ECR_PARTS_BENCHMARK_TEST": "1"}
    completed = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True
    )
    variants, links, _, images = parse_tables(completed.stdout)
    assert {row[0] for row in images[1:]} == {"docker archive", "OCI layout"}
    assert variants[0] == ["variant", "loopback", "office", "peak MiB"]
    (documented,) = [table for table in TABLES if table[0] == links[0]]
    assert [row[:2] for row in documented] == [row[:2] for row in links]
    measured = {row[0] for row in variants}
    assert {"botocore loop", "ecr parts", "ecr parts without pybase64"} <= measured


def live_test(text: str, workspace: Workspace) -> None:
    output = workspace.run_shell(text)
    for switch, (question, _) in UNKNOWN.items():
        assert re.search(rf"^settled: {switch}=.* \({re.escape(question)}\)$", output, re.MULTILINE)


class Check(NamedTuple):
    """What to do with the block in ``language`` that contains ``pattern``."""

    run: Callable[[str, Workspace], None]
    language: str
    pattern: str

    def applies_to(self, block: Block) -> bool:
        found = re.search(self.pattern, block.text, re.MULTILINE)
        return self.language == block.language and found is not None


CHECKS = [
    Check(quickstart, "sh", r"venv .*quickstart\.py$"),
    Check(quickstart_output, "text", r"^\$ ecr-parts upload"),
    Check(first_commands, "text", r"^ecr-parts upload"),
    Check(first_program, "python", r"for_repository\("),
    Check(own_client, "python", r"botocore\.session\.get_session"),
    Check(written_layer, "python", r"open_layer\("),
    Check(put_manifest, "python", r"uploader\.put_manifest"),
    Check(project_tests, "sh", r"venv .*-m pytest"),
    Check(command_line, "bash", r"\| ecr-parts upload -"),
    Check(serve, "bash", r"^ecr-parts local"),
    Check(interrupted_session, "python", r"^finally:\n.* = session\.to_json\(\)"),
    Check(resumed_session, "python", r"^layer = uploader\.upload\(.*UploadSession\.from_json"),
    Check(compressed_stream, "python", r"zlib\.compressobj"),
    Check(progress_with_tqdm, "python", r"^from tqdm"),
    Check(asyncio_task, "python", r"asyncio\.to_thread"),
    Check(many_layers, "python", r"upload_many\("),
    Check(single_calls, "python", r"upload_part\("),
    Check(own_tests, "python", r"^pytest_plugins"),
    Check(retry_policy, "python", r"default_retrying\(\)\.copy"),
    Check(permissions, "json", r'"Statement"'),
    Check(benchmark, "sh", r"tests/benchmark\.py"),
    Check(live_test, "sh", r"tests/whole/test_live\.py"),
]


def checks_of(block: Block) -> list[Check]:
    return [check for check in CHECKS if check.applies_to(block)]


def text_of(run: Callable[[str, Workspace], None]) -> str:
    """The block that is checked by the function ``run``."""
    (text,) = [block.text for block in BLOCKS for check in checks_of(block) if check.run is run]
    return text


def test_each_block_has_one_check_and_each_check_one_block() -> None:
    assert [block for block in BLOCKS if len(checks_of(block)) != 1] == []
    assert [check for check in CHECKS if len(list(filter(check.applies_to, BLOCKS))) != 1] == []


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.run.__name__)
def test_block_works_as_documented(check: Check, workspace: Workspace) -> None:
    check.run(text_of(check.run), workspace)


# Tables


def test_every_public_error_is_documented() -> None:
    public_errors = {name for name in ecr_parts.__all__ if name.endswith("Error")}
    assert public_errors - {EcrPartsError.__name__} <= ALL_NAMES


def test_every_fault_is_documented() -> None:
    faults = list(get_args(Fault))
    paragraphs_and_items = re.split(r"\n\n|\n(?=- )", GUIDES)
    (list_of_faults,) = [text for text in paragraphs_and_items if f'`"{faults[0]}"`' in text]
    assert set(re.findall(r'`"(\w+)"`', list_of_faults)) == set(faults)


def test_every_unknown_is_documented() -> None:
    switches = list(UNKNOWN)
    (table,) = [table for table in TABLES if switches[0] in names_in_first_column(table)]
    assert names_in_first_column(table) == switches
    assert all(question for _switch, question in table)


def test_parameters_errors_and_options_of_upload_layer_part_are_complete() -> None:
    client = botocore.session.Session().create_client("ecr", region_name="us-east-1")
    operation: Any = client.meta.service_model.operation_model("UploadLayerPart")
    assert {*operation.input_shape.members, *operation.output_shape.members} <= ALL_NAMES
    assert {shape.name for shape in operation.error_shapes} <= ALL_NAMES
    options = """
    registry-id repository-name upload-id part-first-byte part-last-byte layer-part-blob
    cli-input-json cli-input-yaml generate-cli-skeleton debug endpoint-url no-verify-ssl no-paginate
    output query profile region version color no-sign-request ca-bundle cli-read-timeout
    cli-connect-timeout cli-binary-format no-cli-pager cli-auto-prompt no-cli-auto-prompt"""
    assert {f"--{name}" for name in options.split()} <= ALL_NAMES


# Figures and links


def test_front_page_is_short() -> None:
    assert README.count("\n") <= 250
    assert len(README.split()) <= 1_800


def test_comparison_has_the_same_figures_in_both_documents() -> None:
    short, full = [
        {row[0]: row[1:3] for row in table[1:]} for table in TABLES if "office" in table[0]
    ]
    assert all(figure.isdigit() for row in full.values() for figure in row)
    assert short.items() <= full.items()


def test_longest_duration_of_a_call_is_22_minutes() -> None:
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
    longest = sum(max(waits[i::9]) for i in range(9))  # the waits are random
    assert 110 < longest < 122
    assert 10 * attempt + longest < 22.1 * 60


def anchors_of(markdown: str) -> set[str]:
    return {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", markdown, re.MULTILINE)
    }


@pytest.mark.parametrize("name", ["README.md", "examples/README.md", ".github/CONTRIBUTING.md"])
def test_links_lead_to_headings_and_files_that_exist(name: str) -> None:
    document = ROOT / name
    links = re.findall(r"\]\(((?!http)[^)]+)\)", document.read_text(encoding="utf-8"))
    assert links
    for path, _, anchor in (link.partition("#") for link in links):
        target = document.parent / path if path else document
        assert target.exists()
        assert not anchor or anchor in anchors_of(target.read_text(encoding="utf-8")), anchor


def test_index_lists_every_example() -> None:
    examples = {
        path.name for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".ipynb")
    }
    (index,) = [table for table in TABLES if table[0][0] == "example"]
    assert set(names_in_first_column(index)) == examples
