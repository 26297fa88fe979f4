"""What `status` says of a run's folder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnist_ray.errors import InputError
from mnist_ray.runs.folder import RunFolder
from mnist_ray.status import status, watch
from tests.support.run_folders import PRINT, prepare


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.at(str(tmp_path), "mnist")


# What `status` and `doctor` say.


def test_status_of_each_state(folder: RunFolder) -> None:
    path = str(folder.root)
    with pytest.raises(InputError, match="is not a run's folder"):
        status(path)
    prepare(folder)
    assert status(path).startswith(f"{path}: start, last update ")
    now = {"owner": {"host": "elsewhere", "pid": 1}, "heartbeat": time.time()}
    folder.progress.write_json({"phase": "shard", "done": 1200, "total": 96000, **now})
    assert status(path) == f"{path}: shard, 1,200 of 96,000, last update 0 s ago"
    told = {"phase": "train", "done": 640, "total": 2000, "per_second": 1234, "epoch": 1, "loss": 0.5, "accuracy": 0.75}
    folder.progress.write_json({**told, **now})
    line = "train, 640 of 2,000, 1 epoch finished, loss 0.5000, accuracy 0.7500, 1,234 images/s, last update 0 s ago"
    assert status(path) == f"{path}: {line}"
    with folder.hold():  # whatever the clock of the driver's host says
        folder.progress.write_json({**told, **now, "heartbeat": time.time() - 100})
        assert status(path).endswith(", last update 100 s ago")
    assert status(path).endswith("last update 100 s ago: its driver has ended; run it again to continue")
    folder.progress.write_json({**told, **now, "seconds_left": 75.2})
    assert "left" not in status(path)
    with folder.hold():
        assert status(path).endswith(", 1,234 images/s, 1 min 15 s left, last update 0 s ago")
    folder.progress.write_json({**told, **now})
    assert status(path) == f"{path}: {line}: its driver has ended; run it again to continue"
    folder.progress.write_json({**told, **now, "phase": "failed", "message": "the disk is full"})
    assert status(path) == f"{path}: failed (exit code 1): the disk is full"
    folder.mark_failed(InputError("row 3 is broken"), PRINT)
    assert status(path) == f"{path}: failed for good (exit code 2): row 3 is broken"
    folder.metrics.write_json({"after": {"accuracy": 0.98, "num_correct": 98, "num_seen": 100}})
    assert status(path) == f"{path}: finished. accuracy 0.9800, 98 of 100"
    folder.metrics.write_json({"after": {"num_seen": 100, "loss": 0.1, "f1_micro": 0.5, "f1_macro": 0.25}})
    assert status(path) == f"{path}: finished. F1 0.5000 micro, 0.2500 macro (100 labelled images)"


def test_watching_shows_what_changes_and_ends_as_the_run_does(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look is answered from the next state of the folder."""
    path, now = str(folder.root), {"owner": {"host": "elsewhere", "pid": 1}, "heartbeat": time.time()}
    prepare(folder)

    def states() -> Iterator[None]:
        for phase, done in (("score", 10), ("score", 10), ("score", 20), ("done", 30)):
            folder.progress.write_json({"phase": phase, "done": done, "total": 30, **now, "heartbeat": time.time()})
            yield
        folder.metrics.write_json({"after": {"accuracy": 0.98, "num_correct": 98, "num_seen": 100}})
        yield

    steps, shown = states(), list[str]()
    monkeypatch.setattr("mnist_ray.status.time.sleep", lambda seconds: next(steps))
    with folder.hold():
        assert watch(path, None, shown.append)
    parts = [line.removeprefix(f"{path}: ").partition(", last")[0] for line in shown]
    assert parts == [
        "start", "score, 10 of 30", "score, 20 of 30", "done, 30 of 30", "finished. accuracy 0.9800, 98 of 100",
    ]  # fmt: skip


def test_watching_ends_where_nothing_follows_what_is_done(folder: RunFolder) -> None:
    """As of `shard`, which has no metrics."""
    prepare(folder)
    with folder.hold():
        pass
    folder.progress.write_json({"phase": "done", "done": 3, "total": 3, "heartbeat": time.time()})
    assert watch(str(folder.root), None, lambda line: None)


def test_watching_what_has_ended(folder: RunFolder) -> None:
    path, shown = str(folder.root), list[str]()
    prepare(folder)
    with folder.hold():
        pass
    assert not watch(path, None, shown.append)
    folder.mark_failed(InputError("row 3 is broken"), PRINT)
    assert not watch(path, None, shown.append)
    assert [line.partition(": ")[2].partition(" (")[0] for line in shown][1] == "failed for good"


@pytest.mark.parametrize("file", ["metrics.json", "failure.json", "progress.json"])
@pytest.mark.parametrize("content", ["[]", '{"after": 1}', "{", "null", '"x"', ""])
def test_status_of_what_somebody_else_wrote(folder: RunFolder, file: str, content: str) -> None:
    (folder.root / file).write_bytes(content.encode())
    with pytest.raises(InputError, match=rf"{file} is (damaged|not JSON)"):
        status(str(folder.root))
