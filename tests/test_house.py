"""The shape of the house: who may import whom, and what may stand where."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ecr_parts
import ecr_parts.testing

HOUSE = Path(ecr_parts.__file__).parent
# Each room imports only from rooms above it.
ROOMS = [
    "_validation", "errors", "_threads", "limits", "notebook", "chunker", "_session", "source",
    "checkpoint", "retry", "_failures", "_request", "_client", "_calls", "_pipeline",
    "_layer_upload", "_batch", "uploader", "__init__", "command", "__main__",
    "testing.model", "testing.faults", "testing.server", "testing.__init__",
    "testing.pytest_plugin", "testing.__main__",
]  # fmt: skip


def imports_of(room: str) -> set[str]:
    """The rooms that ``room`` imports at run time."""
    tree = ast.parse((HOUSE / f"{room.replace('.', '/')}.py").read_text(encoding="utf-8"))
    for_types = {
        id(node)
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and ast.unparse(guard.test) == "TYPE_CHECKING"
        for node in ast.walk(guard)
    }
    modules = {
        f"ecr_parts.{node.names[0].name}" if node.module == "ecr_parts" else node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in for_types
    }
    ours = {module.removeprefix("ecr_parts.") for module in modules if "ecr_parts" in module}
    return {"testing.__init__" if module == "testing" else module for module in ours}


def test_every_room_is_known() -> None:
    found = {
        str(path.relative_to(HOUSE).with_suffix("")).replace("/", ".")
        for path in HOUSE.rglob("*.py")
    }
    assert found == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(room: str) -> None:
    above = ROOMS[: ROOMS.index(room)]
    assert imports_of(room) <= set(above)


def test_the_library_does_not_import_its_testing_kit() -> None:
    code = "import sys; from ecr_parts import *; print([m for m in sys.modules if 'testing' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "limits"])
def test_no_limit_is_a_literal_anywhere_else(room: str) -> None:
    tree = ast.parse((HOUSE / f"{room.replace('.', '/')}.py").read_text(encoding="utf-8"))
    literals = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and type(node.value) is int
    }
    limits = {5 * 1024**2, 20 * 1024**2, 4_200, 52_000, 1_000, 10_000}
    assert not literals & limits


def test_what_is_promised_is_exported() -> None:
    for package in (ecr_parts, ecr_parts.testing):
        for name in package.__all__:
            assert getattr(package, name) is not None
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            package.nothing  # noqa: B018  (the point of the test)
    assert set(ecr_parts.__all__) <= set(dir(ecr_parts))
