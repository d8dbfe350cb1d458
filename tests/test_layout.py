"""The structure of the package: what may import what, and what is public."""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest

import ecr_parts
import ecr_parts.testing

PACKAGE = Path(ecr_parts.__file__).parent
# Each module imports only from modules listed before it.
MODULES = [
    "_version", "_validation", "_threads", "_frames", "_workers", "_gate", "_bandwidth",
    "_notebook", "_chunker", "_session", "_machine", "_models", "_limits", "errors", "_plan",
    "_chunks", "_source", "_sources", "_digest", "_checkpoint", "_retry", "_failures", "_answers",
    "_api", "_request", "_call", "_repository", "_pipeline", "_steps", "_layer_upload", "_batch",
    "_tar", "_image_files", "_image_layout", "_docker_archive", "_images", "_uploader", "__init__",
    "testing._unknowns", "testing._parameters", "testing._content", "testing._uploads",
    "testing._repositories", "testing._images", "testing._registry", "testing._faults",
    "testing._pull", "testing._service", "testing._http", "testing._local_ecr",
    "testing.__init__", "testing.pytest_plugin", "testing.__main__", "_state_directory",
    "_progress", "_terminal", "_pipe", "_options", "_command", "_upload_command", "_push_command",
    "_cli", "__main__",
]  # fmt: skip


def imports_of(module: str) -> set[str]:
    """The modules of the package that ``module`` imports, also for type checking."""
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    imported = {
        f"ecr_parts.{node.names[0].name}" if node.module == "ecr_parts" else node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
    }
    ours = {name.removeprefix("ecr_parts.") for name in imported if "ecr_parts" in name}
    return {"testing.__init__" if name == "testing" else name for name in ours}


def public_classes() -> list[type[Any]]:
    return [
        value
        for package in (ecr_parts, ecr_parts.testing)
        for name in package.__all__
        if isinstance(value := getattr(package, name), type)
    ]


def test_every_module_is_listed() -> None:
    found = {
        str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".")
        for path in PACKAGE.rglob("*.py")
    }
    assert found == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    assert imports_of(module) <= set(MODULES[: MODULES.index(module)])


def test_the_library_does_not_import_its_testing_kit() -> None:
    code = "import sys; from ecr_parts import *; print([m for m in sys.modules if 'testing' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", [module for module in MODULES if module != "_limits"])
def test_limits_are_defined_in_one_module(module: str) -> None:
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    literals = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and type(node.value) is int
    }
    limits = {5 * 1024**2, 20 * 1024**2, 4_200, 52_000, 1_000, 10_000}
    assert not literals & limits


@pytest.mark.parametrize("package", [ecr_parts, ecr_parts.testing])
def test_dir_lists_the_public_names(package: Any) -> None:
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert {name for name in dir(package) if not name.startswith("__")} == set(package.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package.nothing  # noqa: B018  (the point of the test)


@pytest.mark.parametrize("cls", public_classes(), ids=lambda cls: cls.__qualname__)
def test_public_classes_report_the_public_module(cls: type[Any]) -> None:
    assert cls.__module__ in ("ecr_parts", "ecr_parts.testing")
    assert pickle.loads(pickle.dumps(cls)) is cls
    typing.get_type_hints(cls)  # resolves the names of its annotations
