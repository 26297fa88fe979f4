"""Checkpoints: what goes in comes out, damage is noticed, the newest are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mnist_ray.storage.location import Location
from mnist_ray.training import checkpoints
from mnist_ray.training.checkpoints import Checkpoint, Writer


def some(step: int) -> Checkpoint:
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3) * step, np.array(step, np.int64), np.zeros((0, 4))]
    return Checkpoint(
        step, arrays, {"epochs": [{"epoch": 1, "loss": 0.1, "seconds": 2.0}], "tallies": [], "seconds": 0.0}
    )


def test_what_goes_in_comes_out_and_the_newest_are_kept(tmp_path: Path) -> None:
    writer = Writer(Location.parse(tmp_path), keep=2)
    for step in (5, 10, 15):
        writer.write(some(step))
    writer.wait()
    assert [step for step, _ in checkpoints.newest_first(Location.parse(tmp_path))] == [15, 10]
    found = checkpoints.load_newest(Location.parse(tmp_path), pytest.fail)
    assert found is not None
    assert (found.step, found.meta) == (15, some(15).meta)
    for array, expected in zip(found.arrays, some(15).arrays, strict=True):
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"", lambda data: data[:99] + b"x" + data[100:]]
)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    writer = Writer(Location.parse(tmp_path), keep=3)
    writer.write(some(1))
    writer.write(some(2))
    writer.wait()
    newest = max(tmp_path.iterdir())
    newest.write_bytes(damage(newest.read_bytes()))
    warnings: list[str] = []
    found = checkpoints.load_newest(Location.parse(tmp_path), warnings.append)
    assert found is not None
    assert found.step == 1
    assert len(warnings) == 1
    assert newest.name in warnings[0]


def test_none_in_an_empty_or_missing_folder(tmp_path: Path) -> None:
    assert checkpoints.load_newest(Location.parse(tmp_path / "none"), pytest.fail) is None


def test_an_error_of_the_background_is_raised(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    writer = Writer(Location.parse(tmp_path / "file"), keep=1)
    writer.write(some(1))
    with pytest.raises(Exception, match="cannot make the folder"):
        writer.wait()


def test_a_damaged_checkpoint_does_not_take_the_place_of_a_new_one(tmp_path: Path) -> None:
    """The training goes on from the one before, and is not to lose what it then writes."""
    folder = Location.parse(tmp_path)
    writer = Writer(folder, keep=2)
    for step in (10, 20, 30):
        writer.write(some(step))
    writer.wait()
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    assert checkpoints.load_newest(folder, lambda _: None) is None
    writer = Writer(folder, keep=2)
    for step in (5, 10, 15):
        writer.write(some(step))
        writer.wait()
        found = checkpoints.load_newest(folder, lambda _: None)
        assert found is not None
        assert found.step == step
    assert len(list(tmp_path.iterdir())) == 2
