"""A finished run's folder, and a snapshot of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.runs.folder import RunFolder
from mnist_ray.storage.location import Location, sha256
from mnist_ray.tracking.scalars import Snapshot
from tests.support.report_maker import make_run

ARCHIVE = b"of a model, which nobody opens here"


def write_model(folder: Path, archive: bytes = ARCHIVE, **changed: Any) -> None:
    """What logging a model reads of it."""
    recipe = {"architecture": "mlp", "image_shape": [28, 28], "num_classes": 10, "dropout": 0.2, "seed": 0,
              "precision": "float32"}  # fmt: skip
    classes = [str(digit) for digit in range(10)]
    meta = {"sha256": sha256(archive), "recipe": recipe, "classes": classes, "pixels": "0-255", "num_classes": 10,
            "input_shape": [28, 28]}  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "classifier.keras").write_bytes(archive)
    (folder / "model.json").write_text(json.dumps(meta | changed))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Of five epochs, with a model and a report."""
    made = make_run(tmp_path / "mnist", test=30)
    (made / "report.html").write_text("<h1>A report</h1>")
    write_model(made / "model")
    return RunFolder(Location.parse(made))


@pytest.fixture
def finished(folder: RunFolder) -> Snapshot:
    metrics = folder.metrics.read_json()
    for epoch in metrics["train"]["epochs"]:
        epoch["unix_time"] = 1000.0 + epoch["epoch"]
    return Snapshot(metrics["train"]["epochs"], metrics)
