"""The progress record: written while it changes hands, by one process at a time."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_ray.errors import RetryableError
from mnist_ray.runs.folder import RunFolder
from mnist_ray.runs.history import History, history_of
from mnist_ray.runs.progress import LOCAL_SECONDS, REMOTE_SECONDS, ProgressRecord, owner
from mnist_ray.storage.location import Location
from tests.support.run_folders import non_local, prepare
from tests.support.slow_store import slow_first_write


def test_the_record_is_written_until_it_is_left_to_another(folder: RunFolder) -> None:
    prepare(folder)
    record = ProgressRecord(folder.progress, owner(), interval=0.01)
    assert record.update(phase="shard", done=3) == {"phase": "shard", "done": 3}
    assert record.update(done=4, total=9) == {"phase": "shard", "done": 4, "total": 9}
    deadline = time.monotonic() + 5
    while folder.progress.read_json().get("done") != 4:
        assert time.monotonic() < deadline
    first = folder.progress.read_json()["heartbeat"]
    while folder.progress.read_json()["heartbeat"] == first:
        assert time.monotonic() < deadline
    record.leave()
    folder.progress.write_json({"phase": "train"})
    time.sleep(0.05)
    assert folder.progress.read_json() == {"phase": "train"}
    record.leave()  # once more does nothing


def test_object_storage_is_written_to_seldom(folder: RunFolder, tmp_path: Path) -> None:
    remote = ProgressRecord(non_local(tmp_path).progress, owner())
    assert remote._interval == REMOTE_SECONDS == 5.0
    remote.leave()
    local = ProgressRecord(folder.progress, owner())
    assert local._interval == LOCAL_SECONDS == 1.0
    local.leave()


def test_why_it_ended_is_not_written_over_by_how_far_it_was(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread writes to a store that is slow, as an error ends the job."""
    prepare(folder)
    began, may_go_on = slow_first_write(monkeypatch)
    record = ProgressRecord(folder.progress, owner(), interval=0.01)
    record.update(phase="score", done=3)
    assert began.wait(5)
    threading.Timer(0.2, may_go_on.set).start()
    record.fail(RetryableError("the cluster is gone"))
    record.leave()
    assert folder.progress.read_json()["phase"] == "failed"


def moments(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in history_of(folder.root).read_bytes().splitlines()]


def test_the_history_has_how_far_each_phase_came(folder: RunFolder) -> None:
    prepare(folder)
    record = ProgressRecord(folder.progress, owner(), interval=60)
    record.update(phase="start")
    assert record.update(phase="score", done=100, total=900, work=(100, 900))["seconds_left"] is None
    record.update(done=400, work=(400, 900), quarantined=2)
    with record.lent():  # as to rank 0, which is another process
        other = ProgressRecord(folder.progress, owner(), interval=60)
        other.update(phase="train", done=7, total=9, epoch=1, epochs=["left", "out"], work=(7, 9))
        other.update(done=9, work=(9, 9))
        other.close()
    record.update(phase="done")
    record.close()
    assert [{key: value for key, value in each.items() if key != "time"} for each in moments(folder)] == [
        {"phase": "start", "images": 0},
        {"phase": "score", "done": 400, "total": 900, "quarantined": 2, "images": 300},
        {"phase": "train", "done": 9, "total": 9, "epoch": 1, "images": 2},
        {"phase": "done", "images": 0},
    ]


def test_the_history_is_bounded_even_and_survives_its_damage(tmp_path: Path) -> None:
    file = history_of(Location.parse(tmp_path))
    history = History(file, most=10)
    for second in range(1000):
        history.add({"phase": "score", "done": second}, second, second)
    history.add({"phase": "done"}, 0, 1000)
    history.write()
    times = [json.loads(line)["time"] for line in file.read_bytes().splitlines()]
    assert (len(times), times[0], times[-1]) == (10, 0, 1000)
    assert np.diff(times).max() <= 2 * 1000 / 9

    file.write_bytes(file.read_bytes() + b'{"time": "noon"}\n{"time": 1001.0, "phase"')
    later = History(file, most=10)
    later.add({"phase": "start"}, 0, 2000)
    later.write()
    assert [json.loads(line)["time"] for line in file.read_bytes().splitlines()][-2:] == [1000, 2000]


def test_a_history_that_cannot_be_written_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "logs").write_bytes(b"a file where a folder should be")
    history = History(history_of(Location.parse(tmp_path)))
    history.add({"phase": "score"}, 0, 1.0)
    history.write()
