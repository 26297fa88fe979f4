"""What importing a module does not import: seconds, and hundreds of megabytes."""

from __future__ import annotations

import subprocess
import sys

import pytest

FRAMEWORKS = ("tensorflow", "keras", "ray")


@pytest.mark.parametrize(
    ("module", "not_imported"),
    [
        ("mnist_ray.sources.specs", (*FRAMEWORKS, "PIL")),
        ("mnist_ray.sources.formats.shards", FRAMEWORKS),
        ("mnist_ray.models.files", FRAMEWORKS),
        ("mnist_ray.scoring.pool", FRAMEWORKS),
        ("mnist_ray.pipeline", (*FRAMEWORKS, "pandas")),
        ("mnist_ray.cli", (*FRAMEWORKS, "pydantic", "pydantic_core")),
    ],
)
def test_a_module_imports_no_framework(module: str, not_imported: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {not_imported} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
