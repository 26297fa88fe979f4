"""jobs/*.py: the commands, from the code beside them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import ROOT, environment, one_line

SCRIPTS = ["run", "shard", "train", "score"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_run_the_code_beside_them(script: str, tmp_path: Path) -> None:
    """As on a cluster that was sent the working directory. The package that is installed here must not win."""
    shutil.copytree(ROOT / "jobs", tmp_path / "jobs")
    (tmp_path / "mnist_ray").mkdir()
    (tmp_path / "mnist_ray" / "__init__.py").touch()
    (tmp_path / "mnist_ray" / "cli.py").write_text("def main(args): print(__file__, args)")
    command = [sys.executable, f"{tmp_path}/jobs/{script}.py", "--seed", "1"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == f"{tmp_path}/mnist_ray/cli.py ['{script}', '--seed', '1']\n"


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_answer(script: str) -> None:
    done = subprocess.run([sys.executable, f"jobs/{script}.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--address" in done.stdout


def test_a_scripts_exit_code_is_the_commands(tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    command = [ROOT / "jobs" / "score.py", missing, "--model", missing, "--output", tmp_path / "made"]
    done = subprocess.run(
        [sys.executable, *command], env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert missing in one_line(done.stderr)
    assert list(tmp_path.iterdir()) == []
