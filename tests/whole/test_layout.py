"""The structure of the package: what may import what, and what is public."""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
import typing
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import ecr_parts
import ecr_parts.testing

PACKAGE = Path(ecr_parts.__file__).parent
# A module imports only from packages listed before its own, and from modules listed before it. The
# kit is apart: it must not need the code that it tests.
PACKAGES = {
    "": ["_version"],
    "_base": [
        "validation", "redaction", "fast_base64", "files", "temporary", "threads", "frames",
        "workers", "notebook",
    ],
    "_model": ["parts", "layers", "limits", "manifests", "session", "machine"],
    "errors": [],
    "_sources": ["chunks", "base", "stream", "kinds", "digest", "compression"],
    "_wire": [
        "registries", "gate", "bandwidth", "uplink", "retry", "signature", "failures", "answers",
        "api", "clients", "request", "call", "repository",
    ],
    "_upload": [
        "checkpoint", "plan", "pipeline", "steps", "single_steps", "current", "layer", "item",
        "batch", "handover", "layer_file", "setup",
    ],
    "_images": [
        "tar", "files", "documents", "contents", "choice", "rewrite", "layout", "docker",
        "selection", "observer", "plain", "plan", "put", "push",
    ],
    "_uploader": [],
    "__init__": [],
    "testing": [
        "_unknowns", "_body", "_parameters", "_service_model", "_content", "_uploads",
        "_settings", "_repositories", "_image_ids", "_archive", "_images", "_registry", "_faults",
        "_pull", "_service", "_http", "_local_ecr", "__init__", "pytest_plugin", "__main__",
    ],
    "_command": [
        "state_directory", "progress", "messages", "debug", "terminal", "in_flight", "pipe",
        "image_argument", "values", "options", "common", "upload", "push", "cli",
    ],
    "__main__": [],
}  # fmt: skip
MODULES = [
    f"{package}.{module}".strip(".")
    for package, modules in PACKAGES.items()
    for module in modules or [""]
]
USED_BY_THE_KIT = {"_base", "_model", "errors", "_version", "testing"}


@cache
def source_of(module: str) -> ast.Module:
    path = PACKAGE / f"{module.replace('.', '/')}.py"
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(module: str) -> set[str]:
    """The modules of the package that ``module`` imports, also for type checking."""
    imported = set()
    for node in ast.walk(source_of(module)):
        if isinstance(node, ast.ImportFrom) and node.module:
            packages = (f"ecr_parts.{name}" for name in PACKAGES)
            is_package = node.module == "ecr_parts" or (
                node.module in packages and (PACKAGE / node.module.partition(".")[2]).is_dir()
            )
            name = f"{node.module}.{node.names[0].name}"
            imported.add(name if is_package and node.module != "ecr_parts.testing" else node.module)
    ours = {name.removeprefix("ecr_parts.") for name in imported if "ecr_parts" in name}
    return {"testing.__init__" if name == "testing" else name for name in ours}


@cache
def names_of(module: str) -> set[str]:
    """The names that ``module`` defines, also as attributes of ``self``."""
    nodes = list(ast.walk(source_of(module)))
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    names |= {node.id for node in nodes if isinstance(node, ast.Name)}
    return names | {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("self", "cls")
    }


def private_names_of_others(module: str) -> set[str]:
    """The private names that ``module`` uses and that only other modules define."""
    nodes = list(ast.walk(source_of(module)))
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    used |= {
        alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and "ecr_parts" in (node.module or "")
        for alias in node.names
    }
    others = {name for other in MODULES for name in names_of(other)}
    foreign = used & others - names_of(module)
    return {name for name in foreign if name.startswith("_") and not name.startswith("__")}


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
    private_packages = {f"{name}.__init__" for name in PACKAGES if (PACKAGE / name).is_dir()}
    assert found - set(MODULES) == private_packages - {".__init__", "testing.__init__"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    assert imports_of(module) <= set(MODULES[: MODULES.index(module)])


@pytest.mark.parametrize("module", MODULES)
def test_no_module_uses_private_names_of_others(module: str) -> None:
    assert private_names_of_others(module) == set()


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("testing.")])
def test_the_kit_imports_little_of_the_library(module: str) -> None:
    """Of the calls, only the recommended configuration of the client."""
    assert {name.partition(".")[0] for name in imports_of(module)} - USED_BY_THE_KIT <= {"_wire"}
    assert {name for name in imports_of(module) if name.startswith("_wire")} <= {"_wire.retry"}


def test_one_place_catches_the_failure_of_a_call() -> None:
    handlers = [
        module
        for module in MODULES
        for node in ast.walk(source_of(module))
        if isinstance(node, ast.ExceptHandler) and "CallFailed" in ast.dump(node.type or node)
    ]
    assert handlers == ["_wire.call"]


def test_the_library_does_not_import_its_testing_kit() -> None:
    code = "import sys; from ecr_parts import *; print([m for m in sys.modules if 'testing' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", [module for module in MODULES if module != "_model.limits"])
def test_limits_are_defined_in_one_module(module: str) -> None:
    literals = {
        node.value
        for node in ast.walk(source_of(module))
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
