"""The progress record and its heartbeat."""

from __future__ import annotations

import time

from mnist_ray.runs.folder import RunFolder
from mnist_ray.runs.progress import ProgressRecord, owner
from tests.support.run_folders import beat, claim


def test_the_record_beats_until_the_workers_keep_it(folder: RunFolder) -> None:
    claim(folder)
    record = ProgressRecord(folder.progress, owner(), interval=0.01, until="train")
    record.update(phase="shard", done=3, total=9)
    deadline = time.monotonic() + 5
    while folder.progress.read_json()["phase"] != "shard":
        assert time.monotonic() < deadline
    first = folder.progress.read_json()["heartbeat"]
    while folder.progress.read_json()["heartbeat"] == first:
        assert time.monotonic() < deadline
    while record._thread.is_alive():
        beat(folder, phase="train", host="worker", pid=1)
        assert time.monotonic() < deadline
    assert folder.progress.read_json()["owner"] == {"host": "worker", "pid": 1}
    record.leave()
