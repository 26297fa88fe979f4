"""Files in the working directory that are called like packages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_ray.shadows import shadow
from tests.support.command import ROOT, called, one_line
from tests.support.output_maker import make_output


def test_only_what_python_would_import_is_named(tmp_path: Path) -> None:
    for harmless in ("train.py", "utils.py", "datasets.py", "keras.txt", "mnist_ray.py"):
        (tmp_path / harmless).touch()
    (tmp_path / "numpy").mkdir()  # without __init__.py, the installed package wins
    assert shadow(str(tmp_path)) is None
    (tmp_path / "random.py").touch()
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").touch()
    assert shadow(str(tmp_path)) == (
        f"Python would import random.py, ray/__init__.py in {tmp_path} in place of its own package of that name;"
        " rename them, or start in another folder"
    )


def test_a_job_is_not_started_where_it_must_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keras.py").touch()
    for command in (["run"], ["submit", "--working-dir", ".", "--", "run", "--storage", "/storage"]):
        code, out, err = called(capsys, *command)
        assert (code, out) == (2, "")
        assert "Python would import keras.py in " in one_line(err)
    assert [file.name for file in tmp_path.iterdir()] == ["keras.py"]


def test_others_are_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mnist_ray.pipeline.run", lambda config, console: None)
    (tmp_path / "code.py").touch()
    code, _, err = called(capsys, "run")
    assert code == 0
    assert one_line(err).startswith(f"mnist-ray: warning: Python would import code.py in {tmp_path} in place of")


@pytest.mark.parametrize("name", ["logging", "random", "pathlib", "click", "re"])
def test_where_the_command_itself_fails(name: str, tmp_path: Path) -> None:
    """`python -m` looks in the working directory first."""
    make_output(tmp_path / "out")
    (tmp_path / f"{name}.py").write_text("x = 1")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "mnist_ray", "verify", "out"], cwd=tmp_path, env=env, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert f"Python would import {name}.py in {tmp_path} in place of its own" in one_line(done.stderr)
