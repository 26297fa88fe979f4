"""The closing table, whatever metrics can hold."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.console import Console, epoch_line, print_result
from mnist_ray.runs.folder import RunFolder
from mnist_ray.status import status
from mnist_ray.storage.location import Location

SECONDS = {"start": 1.0, "shard": 2.0, "train": 3.0, "score": 0.0, "report": 0.1, "total": 6.1}


def metrics(value: float | None) -> dict[str, Any]:
    """All figures that can be undefined, infinite or NaN have this value."""
    tally = {"num_correct": 10, "num_seen": 100, "accuracy": value, "loss": value}
    epoch = {
        "epoch": 1,
        "loss": value,
        "accuracy": value,
        "val_loss": value,
        "seconds": 1.0,
        "images_per_second": value,
    }
    train = {"num_workers": 2, "batch_size": 64, "epochs": [epoch], "milliseconds_per_step": value}
    return {"before": tally, "after": tally, "train": train, "seconds": SECONDS}


@pytest.mark.parametrize(("value", "shown"), [(None, "unknown"), (float("nan"), "nan"), (0.25, "0.2500")])
def test_the_closing_table_is_shown(tmp_path: Path, value: float | None, shown: str) -> None:
    stream = io.StringIO()
    print_result(RunFolder(Location.parse(tmp_path)), metrics(value), Console(stream))
    lines = stream.getvalue().splitlines()
    assert f"  before   loss {shown}   accuracy {shown}   10 of 100 correct" in lines
    assert any(line.startswith(f"  train    loss {shown}   accuracy {shown}   1 epochs, 2 workers, ") for line in lines)


@pytest.mark.parametrize(("value", "shown"), [(None, "loss unknown"), (0.25, "loss 0.2500")])
def test_an_epoch_is_shown(value: float | None, shown: str) -> None:
    assert epoch_line(metrics(value)["train"]["epochs"][0], value).startswith(shown)


def test_the_status_of_a_run_without_an_accuracy(tmp_path: Path) -> None:
    Location.parse(tmp_path / "metrics.json").write_json(metrics(None))
    assert status(str(tmp_path)).endswith("finished. accuracy unknown, 10 of 100")
