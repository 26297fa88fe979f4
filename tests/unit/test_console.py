"""The closing table, whatever metrics can hold."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mnist_ray.console import Console, epoch_line, print_result
from mnist_ray.runs.diary import Diary
from mnist_ray.runs.folder import RunFolder
from mnist_ray.runs.log import driver_log
from mnist_ray.runs.progress import ProgressRecord
from mnist_ray.sources.open import open_source
from mnist_ray.status import status
from mnist_ray.steps import shard
from mnist_ray.steps.shard import shard_images
from mnist_ray.storage.location import Location
from tests.support import data_makers as make

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
    assert any(line.startswith(f"  train    loss {shown}   accuracy {shown}   1 epoch, 2 workers, ") for line in lines)


@pytest.mark.parametrize(("value", "shown"), [(None, "loss unknown"), (0.25, "loss 0.2500")])
def test_an_epoch_is_shown(value: float | None, shown: str) -> None:
    assert epoch_line(metrics(value)["train"]["epochs"][0], value).startswith(shown)


def test_the_status_of_a_run_without_an_accuracy(tmp_path: Path) -> None:
    Location.parse(tmp_path / "metrics.json").write_json(metrics(None))
    assert status(str(tmp_path)).endswith("finished. accuracy unknown, 10 of 100")


# What is said, and how.


def test_json_has_an_object_in_each_line_with_the_run_and_its_phase() -> None:
    stream, phases = io.StringIO(), iter(["shard", "train", "train", "done"])
    console = Console(stream, as_json=True, every=0)
    with console.about("/runs/m", lambda: next(phases)):
        console.print("  two\nlines")
        with console.bar("epoch 1/2", 10) as bar:
            bar.update(4, "loss 0.1", 12.345)
        console.warn("few images")
        console.print()
        console.result("after")
    told = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [each.pop("time")[-1] for each in told] == ["Z"] * 4
    assert told == [
        {"level": "info", "run": "/runs/m", "phase": "shard", "message": "two\nlines"},
        {"level": "info", "run": "/runs/m", "phase": "train", "message": "epoch 1/2  4/10  loss 0.1  12 s left",
         "done": 4, "total": 10, "seconds_left": 12.3},
        {"level": "warning", "run": "/runs/m", "phase": "train", "message": "few images"},
        {"level": "result", "run": "/runs/m", "phase": "done", "message": "after"},
    ]  # fmt: skip


def test_the_first_line_of_sharding_names_its_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*args: Any, on_progress: Callable[[int, int], None], **options: Any) -> Any:
        on_progress(1, 6)
        return SimpleNamespace(shards={"train": "abc", "test": "abc"})

    monkeypatch.setattr(shard, "write_shards", write)
    stream, record = io.StringIO(), ProgressRecord(Location.parse(str(tmp_path)) / "progress.json", {})
    console, source = Console(stream, as_json=True, every=0), open_source(str(make.write_npz(tmp_path / "a.npz")))
    with console.about("/runs/m", lambda: record.phase):
        shard_images(
            source, Location.parse(str(tmp_path)), 3, SimpleNamespace(cpus=1), console, record, require_labels=True
        )
    record.close()
    assert [json.loads(line)["phase"] for line in stream.getvalue().splitlines()] == ["shard", "shard"]


def test_quiet_leaves_warnings_and_the_result_and_the_log_has_all(tmp_path: Path) -> None:
    stream, diary = io.StringIO(), Diary(folder := Location.parse(tmp_path))
    console = Console(stream, quiet=True, every=0)
    with console.about("/runs/m", lambda: None, diary):
        console.print("a detail")
        with console.bar("scoring", 10) as bar:
            bar.update(5)
            bar.finish("10 images")
        console.warn("few images")
        console.result("after")
        console.save()
        log = driver_log(folder).read_bytes().decode().splitlines()
    assert stream.getvalue().splitlines() == ["warning: few images", "after"]
    assert log == ["a detail", "scoring  5/10", "scoring  10 images", "warning: few images", "after"]
    diary.end()


def test_a_long_wait_says_what_it_is_for_and_a_short_one_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mnist_ray.console._PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr("mnist_ray.console._REMINDER_SECONDS", 0.2)
    stream = io.StringIO()
    with Console(stream).waiting("asking nobody"):
        pass
    time.sleep(0.3)
    assert stream.getvalue() == ""
    with Console(stream).waiting("starting Ray"):
        end = time.monotonic() + 30
        while stream.getvalue().count("\n") < 2:
            assert time.monotonic() < end
            time.sleep(0.01)
    first, second = stream.getvalue().splitlines()[:2]
    assert first == "starting Ray ..."
    assert re.fullmatch(r"starting Ray \.\.\. \(\d+ s so far\)", second)
