"""What happened in a run, for the time when its cluster is gone."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.config import RunConfig
from mnist_ray.console import Console
from mnist_ray.errors import RetryableError
from mnist_ray.runs.events import Events
from mnist_ray.runs.folder import RunFolder
from mnist_ray.steps.exclusive import hold_run
from mnist_ray.storage.location import Location
from tests.support.models import RECIPE
from tests.support.run_folders import PRINT


def events(folder: Location) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "logs" / "events.jsonl").read_bytes().splitlines()]


def test_two_attempts_of_a_run(tmp_path: Path) -> None:
    folder, console = RunFolder.at(str(tmp_path), "m"), Console(io.StringIO())
    config = RunConfig(storage=str(tmp_path), name="m", num_workers="1")

    def attempt(end: Exception | None) -> None:
        with hold_run(folder, config, PRINT, RECIPE, console) as (record, _):
            record.update(phase="train", epoch=0)
            record.update(phase="train", epoch=1)
            console.event("epoch", epoch=1, loss=0.5)
            if end:
                raise end

    with pytest.raises(RetryableError):
        attempt(RetryableError("a node is gone"))
    attempt(None)
    found = events(folder.root)
    assert {len(each.pop("time")) for each in found} == {20}
    start, *rest = found[:4]
    assert (start["event"], start["job"]) == ("start", None)
    assert rest == [
        {"event": "phase", "phase": "train"},
        {"event": "epoch", "epoch": 1, "loss": 0.5},
        {"event": "end", "exit_code": 1, "message": "a node is gone"},
    ]
    assert [each["event"] for each in found[4:]] == ["start", "phase", "epoch", "end"]
    assert found[-1] == {"event": "end", "exit_code": 0}


def test_what_is_too_long_is_still_json(tmp_path: Path) -> None:
    log = Events(Location.parse(tmp_path))
    for number in range(12_000):
        log.happened("epoch", epoch=number, padding="x" * 60)
    log.close()
    found = events(Location.parse(tmp_path))
    assert found[0] == {"event": "earlier events are left out"}
    assert found[-1]["epoch"] == 11_999
    assert (tmp_path / "logs" / "events.jsonl").stat().st_size <= 1_000_000
