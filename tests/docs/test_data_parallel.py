"""The samples of docs/data-parallel.md, with a copy of the folder alone, as the page says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Page
from tests.support.command import environment

PAGE = Page(ROOT / "docs" / "data-parallel.md")

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_the_sample_trains_with_a_copy_of_the_folder_alone(tmp_path: Path) -> None:
    sample, installed = [block for block in PAGE.blocks if block.is_python]
    project = tmp_path / "project"
    shutil.copytree(ROOT / "mnist_ray" / "collective", project / "collective")
    (project / "train.py").write_text(sample.text)
    # Nothing of mnist_ray can be imported, although it is installed here.
    (project / "mnist_ray.py").write_text("raise ImportError('the folder is to do without it')")
    (tmp_path / "home").mkdir()
    env = environment(tmp_path / "home", RAY_ADDRESS="local", PYTHONPATH=str(project))
    (line,) = PAGE.commands
    done = subprocess.run(["bash", "-c", line], cwd=project, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    accuracies = [float(found) for found in re.findall(r"accuracy: (\d\.\d+)", done.stdout + done.stderr)]
    assert len(accuracies) == 3  # one an epoch: only rank 0 prints
    assert accuracies[-1] > accuracies[0]

    names = [line for line in sample.text.splitlines() if line.startswith("from collective import")]
    assert installed.text.splitlines() == [line.replace("collective", "mnist_ray.collective") for line in names]
    subprocess.run([sys.executable, "-c", installed.text], cwd=ROOT, check=True)
