"""The house keeps to its plan where no tool says so: short functions and modules, packages that introduce themselves,
and private parts of other libraries in one room a library. Who may import whom, import-linter checks."""

from __future__ import annotations

import ast
import itertools
import re
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.command import ROOT

MODULES = sorted((ROOT / "mnist_ray").rglob("*.py"))
PACKAGES = [path for path in MODULES if path.name == "__init__.py" and path.parent != ROOT / "mnist_ray"]

PRIVATE = {
    r"\bray\._private\b|\bray\.core\b|\bray\.train\.v2\b|\._base_exc\b|_create_default_callbacks": {
        "cluster/ray_private.py",
        "cluster/ray_train_private.py",
    },
    r"(from|import) keras\.src\b|\._(keras_history|inbound_nodes|flatten_layers|compile_metrics|loss_tracker)\b": {
        "models/keras_private.py",
    },
    r"\._iterations\b": {"collective/keras_private.py"},
    r"__reduce__\(\)\[": {"storage/s3.py"},
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT / "mnist_ray"))


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_is_at_most_400_lines_and_a_function_a_screen(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400
    functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef))
    too_long = {each.name: length for each in functions if (length := each.end_lineno - each.lineno + 1) > 50}  # type: ignore[operator]
    assert not too_long


@pytest.mark.parametrize("path", PACKAGES, ids=name)
def test_a_package_says_what_it_owns_takes_gives_and_may_not_know(path: Path) -> None:
    tree = ast.parse(path.read_text())
    text = ast.get_docstring(tree) or ""
    assert re.search(r"\bIn come", text), "what comes in"
    assert re.search(r"\bout comes?\b", text), "what goes out"
    assert re.search(r"Knows nothing|knows no|nothing else of this", text), "what it may not know"


@pytest.mark.parametrize("pattern", PRIVATE)
def test_private_parts_of_a_library_are_reached_for_in_one_room(pattern: str) -> None:
    code = {name(path): _without_docstrings_and_comments(path.read_text()) for path in MODULES}
    assert {module for module, text in code.items() if re.search(pattern, text)} <= PRIVATE[pattern]


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_an_assert_only_narrows_a_type(path: Path) -> None:
    """`python -O` skips it. What protects results is `errors.require`, or an error of its own."""
    found = [node.test for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)]
    conditions = [ast.unparse(test) for test in found]
    assert [each for each in conditions if not re.fullmatch(r"[\w.]+ is not None|isinstance\(.*\)", each)] == []


def _without_docstrings_and_comments(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            node.body[0] = ast.Pass()
    return ast.unparse(tree)


def test_every_package_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    declared = {re.split(r"[\[><=]", each)[0] for each in itertools.chain(project["dependencies"], *extras)}
    imported = {
        (alias.name if isinstance(node, ast.Import) else str(node.module)).split(".")[0]
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0)
        for alias in node.names
    }
    named = {"PIL": "pillow", "grpc": "grpcio", "google": "protobuf", "google_crc32c": "google-crc32c",
             "mlflow": "mlflow-skinny"}  # fmt: skip
    notebooks = {"IPython"}  # imported only where the process is its kernel
    missing = {named.get(each, each) for each in imported - {*sys.stdlib_module_names, "mnist_ray", *notebooks}}
    missing -= declared
    assert not missing
