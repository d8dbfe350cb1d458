from __future__ import annotations

import ctypes
import gc
import os
import platform
import signal
import sys
from collections.abc import Iterator
from functools import cache
from itertools import count
from pathlib import Path

import hypothesis
import pytest
from botocore.loaders import create_loader
from ecr_calls import Caller
from helpers import NO_WAIT, SMALL_LIMITS

from ecr_parts import LayerUploader
from ecr_parts.testing import LocalECR

pytest_plugins = ["ecr_parts.testing.pytest_plugin"]

# Every run draws the same examples, so that only a change can make a test fail.
hypothesis.settings.register_profile("default", deadline=None, derandomize=True)
hypothesis.settings.load_profile("default")

GLIBC = ctypes.CDLL(None) if sys.platform == "linux" and platform.libc_ver()[0] == "glibc" else None
if GLIBC:
    # Otherwise, each thread that uploads takes memory from one of many heaps, none of which can be
    # given back: a process had 360 MB after tests that leave 160 MB with a single one.
    GLIBC.mallopt(-8, 1)  # M_ARENA_MAX
    # And parts are given back at once, which glibc would change when the first one is released.
    GLIBC.mallopt(-3, 8 * 1024**2)  # M_MMAP_THRESHOLD
    GLIBC.mallopt(-1, 32 * 1024**2)  # M_TRIM_THRESHOLD


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help="simulate only the upload with this seed")
    parser.addoption(
        "--simulations", type=int, default=500, help="the number of uploads to simulate"
    )


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers() -> int:
    """More workers than cores, because many tests wait for a deadline or another process.

    On two cores, 4,030 tests take 150 s with three workers, 179 with two, and 151 with four.
    """
    return max(1, (os.cpu_count() or 1) * 3 // 2)


@pytest.fixture(scope="session", autouse=True)
def _no_inherited_pytest_options() -> Iterator[None]:
    """A pytest started by a test must not inherit options of this one, such as ``--cov``.

    Nor does it need plugins, which take a second to import.
    """
    with pytest.MonkeyPatch.context() as environ:
        environ.delenv("PYTEST_ADDOPTS", raising=False)
        environ.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        yield


@pytest.fixture(scope="session", autouse=True)
def _models_are_loaded_once() -> Iterator[None]:
    """Sessions of botocore share what they load: loading it takes longer than most tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("botocore.session.create_loader", cache(create_loader))
        yield


@pytest.fixture(scope="session", autouse=True)
def _imported_objects_are_not_searched_for_garbage() -> None:
    """What is imported and collected stays to the end: 210,000 objects.

    A collection takes 0.12 s with them, and nothing to speak of without.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _memory_is_given_back() -> Iterator[None]:
    """What large layers leave in the heap of a process would add up from module to module."""
    yield
    gc.collect()
    if GLIBC:
        GLIBC.malloc_trim(0)


@pytest.fixture(scope="session", autouse=True)
def _no_ignored_signals() -> None:
    """What is ignored here, as SIGINT is in background jobs, would be ignored by commands, too."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            is_ctrl_c = number is signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_ctrl_c else signal.SIG_DFL)


@pytest.fixture(scope="session")
def state_directories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Paths of new directories. ``mktemp`` would read the names of all others for each."""
    parent = tmp_path_factory.mktemp("state")
    return (parent / str(number) for number in count())


@pytest.fixture(autouse=True)
def _own_state_directory(state_directories: Iterator[Path]) -> Iterator[None]:
    """The command saves no checkpoint in the home directory of the tester."""
    directory = next(state_directories)
    directory.mkdir()
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("XDG_STATE_HOME", str(directory))
        yield


@pytest.fixture
def ecr() -> Iterator[LocalECR]:
    """A LocalECR with small limits: a layer of 45 bytes has six parts of up to 8 bytes."""
    with LocalECR(limits=SMALL_LIMITS, part_size=8) as ecr:
        yield ecr


@pytest.fixture(params=["ecr", "ecr-public"])
def service(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def call(ecr: LocalECR, service: str) -> Caller:
    return Caller(ecr.client(service))


@pytest.fixture
def uploader(ecr: LocalECR) -> LayerUploader:
    return LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)


@pytest.fixture
def sequential_uploader(ecr: LocalECR) -> LayerUploader:
    """An uploader that has sent nothing of the next part when it learns that a part is stored."""
    return LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT, overlap=False)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The path of a checkpoint that does not exist, in an empty directory of its own."""
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    return directory / "layer.checkpoint"


@pytest.fixture
def seeds(request: pytest.FixtureRequest) -> range:
    seed: int | None = request.config.getoption("--seed")
    if seed is not None:
        return range(seed, seed + 1)
    return range(request.config.getoption("--simulations"))
