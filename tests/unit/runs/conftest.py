"""A run's folder that nobody has made."""

from __future__ import annotations

from pathlib import Path

import pytest

from mnist_ray.runs.folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.at(str(tmp_path), "mnist")
