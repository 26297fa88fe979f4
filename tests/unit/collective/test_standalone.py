"""collective/ stands alone: it imports nothing of ours. tests/docs/test_data_parallel.py trains with a copy of it."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from tests.support.command import ROOT

FOLDER = ROOT / "mnist_ray" / "collective"
ALLOWED = {*sys.stdlib_module_names, "numpy", "ray", "keras", "tensorflow"}


def imports_of(file: Path) -> set[str]:
    """The top-level packages that a module imports, other than relatively."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).split(".")[0])
    return found


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda file: file.name)
def test_it_imports_nothing_of_ours(file: Path) -> None:
    assert imports_of(file) <= ALLOWED
