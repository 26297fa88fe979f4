"""Actors of an attempt that is over: whatever they still do, the output stays as the others have written it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mnist_ray.errors import LeaseLostError
from mnist_ray.predictions import parts
from mnist_ray.predictions.parts import ScoredRows
from mnist_ray.predictions.plan import Plan
from mnist_ray.predictions.tally import Tally
from mnist_ray.predictions.verify import verify
from mnist_ray.sources.base import Bad
from mnist_ray.storage import fence
from mnist_ray.storage.attempt import Attempt
from mnist_ray.storage.location import Location
from tests.support.output_maker import make_output, rows_of


def other_rows(plan: Plan, unit: int) -> ScoredRows:
    """What a late actor has of a unit: all images of it bad but one, unlike in the output."""
    start, stop = plan.units[unit]
    return ScoredRows(
        ids=np.array([start]), labels=np.array([1]), predictions=np.array([0]), sources=None, input_name="images",
        probabilities=np.full((1, 4), 0.25, np.float32), tally=Tally.zero(4),
        bad=[Bad(row, None, "is an empty file") for row in range(start + 1, stop)],
    )  # fmt: skip


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def next_driver(output: Location, plan: Plan) -> None:
    list(parts.resume(output, plan))


def after_the_manifest(output: Location, plan: Plan) -> None:
    parts.write_manifest(output, plan, list(parts.resume(output, plan)))


@pytest.mark.parametrize("what_happens", [next_driver, after_the_manifest])
def test_an_actor_whose_attempt_is_over_writes_nothing(
    tmp_path: Path, what_happens: Callable[[Location, Plan], None]
) -> None:
    make_output(tmp_path / "out")
    output = Location.parse(tmp_path / "out")
    plan = Plan.load(output)
    assert plan is not None
    with Attempt.begun(output) as attempt:
        what_happens(output, plan)
        before = files_of(tmp_path)
        with attempt.fenced(), pytest.raises(LeaseLostError, match=r"another mnist-ray has begun to write .*out; this"):
            parts.commit(output, plan, 1, other_rows(plan, 1))
    assert files_of(tmp_path) == before
    assert verify(output).quarantined == 3


def test_an_attempt_leaves_nothing_and_its_own_actors_write(tmp_path: Path) -> None:
    make_output(tmp_path / "out")
    output = Location.parse(tmp_path / "out")
    plan = Plan.load(output)
    assert plan is not None
    (output / "part-00001.parquet").delete()
    with Attempt.begun(output) as attempt, attempt.fenced():
        assert parts.commit(output, plan, 1, other_rows(plan, 1)).quarantined == 4
    with pytest.raises(ZeroDivisionError), Attempt.begun(output):
        _ = 1 / 0
    assert not [file for file in (tmp_path / "out").iterdir() if file.name.startswith(".")]
    (output / "metrics.json").write_json({})  # this process is not fenced any more


@pytest.mark.parametrize("step", range(8))
def test_an_actor_that_is_stopped_at_any_moment_and_goes_on_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The next driver begins while a write of the actor waits for the disk: the old file keeps its name."""
    make_output(tmp_path / "out")
    output = Location.parse(tmp_path / "out")
    plan = Plan.load(output)
    assert plan is not None
    (output / "part-00001.parquet").delete()
    fsync, steps, done = os.fsync, itertools.count(), list[parts.Committed]()

    def stopped(descriptor: int) -> None:
        fsync(descriptor)
        if next(steps) == step:
            with fence.exempt():  # another process
                done.extend(parts.resume(output, plan))

    with Attempt.begun(output) as attempt, attempt.fenced():
        monkeypatch.setattr(os, "fsync", stopped)
        try:
            parts.commit(output, plan, 1, other_rows(plan, 1))
        except LeaseLostError:
            assert step < 4  # two quarantine files, the folder of the second, part; then that of the part's folder
        else:
            assert step >= 4
            return
        finally:
            monkeypatch.undo()
    assert [each.unit for each in done] == [0, 2]
    assert not (output / "part-00001.parquet").exists()
    done.append(parts.commit(output, plan, 1, rows_of((7, 8), 1)))
    (output / "metrics.json").delete()
    parts.write_manifest(output, plan, done)
    assert verify(output).images == 18
