"""Event files: TensorBoard itself reads them, and finds each step once, whatever happened to the run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mnist_ray.runs.folder import RunFolder
from mnist_ray.storage.location import Location
from mnist_ray.tracking.scalars import Scalar, Snapshot
from mnist_ray.tracking.tensorboard import TensorBoard, event_file
from tests.support.s3_server import ROOT

Steps = Mapping[tuple[str, str], list[tuple[int, float, float]]]


@pytest.fixture(autouse=True)
def without_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard uses TensorFlow where it is installed, unless there is this module."""
    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", ModuleType("notf"))


def read(folder: Path) -> Steps:
    """By TensorBoard's own reader: (split, tag) to (step, value, time) in the order of the files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for split in sorted(folder.iterdir()):
        reader = EventAccumulator(str(split))
        reader.Reload()
        for tag in reader.Tags()["scalars"]:
            found[split.name, tag] = [(each.step, each.value, each.wall_time) for each in reader.Scalars(tag)]
    return found


def test_the_bytes_are_those_of_tensorboards_own_messages() -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    scalars = [
        Scalar("train", name, epoch, value, 1.5e9 + epoch)
        for name, epoch, value in (("loss", 1, 0.1), ("x" * 200, 127, -0.0), ("ü", 128, 3.4e38), ("a", 1 << 40, 1e300))
    ]
    events = [Event(wall_time=1.5e9 + 1, file_version="brain.Event:2")]
    for each in scalars:
        value = Summary.Value(tag=f"epoch_{each.name}", simple_value=min(each.value, 3.4028234663852886e38))
        events.append(Event(wall_time=each.unix_time, step=each.epoch, summary=Summary(value=[value])))
    data = event_file(scalars)
    for event in events:
        record = event.SerializeToString()
        assert data[:8] == len(record).to_bytes(8, "little")
        assert data[12 : 12 + len(record)] == record
        data = data[16 + len(record) :]
    assert data == b""


def test_each_split_is_a_run_and_each_epoch_a_step(folder: RunFolder, finished: Snapshot) -> None:
    TensorBoard(folder.tensorboard).sync(finished)
    found = read(Path(folder.tensorboard.path))
    assert set(found) == {
        ("train", "epoch_loss"), ("train", "epoch_accuracy"), ("train", "epoch_seconds"),
        ("train", "epoch_images_per_second"), ("test", "epoch_loss"), ("test", "epoch_accuracy"),
    }  # fmt: skip
    assert found["train", "epoch_loss"] == [
        (each["epoch"], pytest.approx(each["loss"]), 1000.0 + each["epoch"]) for each in finished.epochs
    ]
    before, after = finished.metrics["before"], finished.metrics["after"]
    assert found["test", "epoch_accuracy"] == [
        (0, pytest.approx(before["accuracy"]), 998.5),
        (5, pytest.approx(after["accuracy"]), 1005.0),
    ]


def epochs(*losses: float) -> list[dict[str, Any]]:
    return [{"epoch": n, "loss": loss, "val_loss": loss, "unix_time": 10.0 * n} for n, loss in enumerate(losses, 1)]


def test_an_attempt_that_was_cut_off_leaves_no_step_twice(tmp_path: Path) -> None:
    """Its last epoch was never committed, so it is trained again, with another loss; fewer follow than before."""
    place = Location.parse(tmp_path)
    TensorBoard(place).sync(Snapshot(epochs(8, 4, 2, 1)))
    again = TensorBoard(place)
    again.sync(Snapshot())
    again.sync(Snapshot(epochs(8, 4)))
    again.sync(Snapshot(epochs(8, 4, 3)))
    assert [value for _, value, _ in read(tmp_path)["train", "epoch_loss"]] == [8, 4, 3, 1]
    (tmp_path / "train" / "notes.txt").touch()
    again.sync(Snapshot(epochs(8, 4, 3), {"train": {}}))
    for split in ("train", "validation"):
        assert read(tmp_path)[split, "epoch_loss"] == [(1, 8, 10), (2, 4, 20), (3, 3, 30)]
    assert (tmp_path / "train" / "notes.txt").exists()


def test_what_is_written_is_not_written_again(tmp_path: Path) -> None:
    board = TensorBoard(Location.parse(tmp_path))
    board.sync(Snapshot(epochs(8, 4)))
    first, second = sorted((tmp_path / "train").iterdir())
    first.unlink()
    board.sync(Snapshot(epochs(8, 4, 2)))
    assert not first.exists()
    assert second.exists()
    assert sorted(file.name for file in (tmp_path / "train").iterdir()) == [
        "epoch-000002.tfevents", "epoch-000003.tfevents",
    ]  # fmt: skip


@pytest.mark.usefixtures("here")
def test_in_an_object_store(tmp_path: Path) -> None:
    place = Location.parse(f"{ROOT}/boards/mnist/tensorboard")
    board = TensorBoard(place)
    board.sync(Snapshot(epochs(8, 4, 2)))
    board.sync(Snapshot(epochs(8, 3), {"after": {"loss": 2.0}}))
    for split in place.list():
        (tmp_path / split.name).mkdir()
        for file in split.list():
            (tmp_path / split.name / file.name).write_bytes(file.read_bytes())
    assert read(tmp_path) == {
        ("train", "epoch_loss"): [(1, 8, 10), (2, 3, 20)],
        ("validation", "epoch_loss"): [(1, 8, 10), (2, 3, 20)],
        ("test", "epoch_loss"): [(2, 2, 20)],
    }
