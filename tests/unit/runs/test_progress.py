"""The progress record: written while it changes hands, by one process at a time."""

from __future__ import annotations

import time
from pathlib import Path

from mnist_ray.runs.folder import RunFolder
from mnist_ray.runs.progress import LOCAL_SECONDS, REMOTE_SECONDS, ProgressRecord, owner
from tests.support.run_folders import non_local, prepare


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
