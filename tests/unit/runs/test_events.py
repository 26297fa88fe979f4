"""What happened in a run, for the time when its cluster is gone."""

from __future__ import annotations

import io
import json
import platform
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.config import RunConfig
from mnist_ray.console import Console
from mnist_ray.errors import Interrupted, RetryableError, TooManyBadImagesError
from mnist_ray.runs.events import Events
from mnist_ray.runs.folder import RunFolder
from mnist_ray.runs.log import driver_log
from mnist_ray.status import status, watch
from mnist_ray.steps.exclusive import hold_output, hold_run
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
    assert {len(each.pop("time")) for each in found} == {24}
    start, *rest = found[:4]
    assert (start["event"], start["job"], start["python"]) == ("start", None, platform.python_version())
    assert {"host", "pid", "platform", "ray", "keras", "pyarrow"} <= start.keys()
    assert rest == [
        {"event": "phase", "phase": "train"},
        {"event": "epoch", "epoch": 1, "loss": 0.5},
        {"event": "end", "exit_code": 1, "message": "a node is gone"},
    ]
    assert [each["event"] for each in found[4:]] == ["start", "phase", "epoch", "end"]
    assert found[-1] == {"event": "end", "exit_code": 0}


def score(output: Location, console: Console, end: BaseException) -> None:
    with hold_output(output, "", console) as (_, record):
        record.update(phase="score", done=7, total=9)
        record.write()
        console.print("a line")
        raise end


def test_an_output_keeps_the_same_and_why_it_failed(tmp_path: Path) -> None:
    output, console = Location.parse(tmp_path / "out"), Console(io.StringIO())
    with pytest.raises(TooManyBadImagesError):
        score(output, console, TooManyBadImagesError("3 of 9 images cannot be scored"))
    assert [each["event"] for each in events(output)] == ["start", "phase", "phase", "end"]
    assert driver_log(output).read_bytes().decode().splitlines()[1:] == [
        "a line", "mnist-ray: 3 of 9 images cannot be scored",
    ]  # fmt: skip
    told = (output / "progress.json").read_json()
    assert (told["phase"], told["done"], told["exit_code"]) == ("failed", 7, 3)
    assert status(str(output)) == f"{output}: failed (exit code 3): 3 of 9 images cannot be scored"
    assert not watch(str(output), None, lambda line: None)


def test_an_interrupted_output_is_continued_not_failed(tmp_path: Path) -> None:
    output = Location.parse(tmp_path / "out")
    with pytest.raises(Interrupted):
        score(output, Console(io.StringIO()), Interrupted("interrupted"))
    assert status(str(output)).endswith("its driver has ended; run it again to continue")
    assert events(output)[-1]["exit_code"] == 130


def test_what_is_too_long_is_still_json(tmp_path: Path) -> None:
    log = Events(Location.parse(tmp_path))
    for number in range(12_000):
        log.happened("epoch", epoch=number, padding="x" * 60)
    log.close()
    found = events(Location.parse(tmp_path))
    assert found[0] == {"event": "earlier events are left out"}
    assert found[-1]["epoch"] == 11_999
    assert (tmp_path / "logs" / "events.jsonl").stat().st_size <= 1_000_000
