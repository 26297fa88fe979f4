"""Showing a run elsewhere: from its folder alone, and whatever a tracker does, the run ends as it would have."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mnist_ray.config import RunConfig, ScoreConfig
from mnist_ray.console import Console
from mnist_ray.errors import Interrupted, RetryableError
from mnist_ray.runs.folder import RunFolder
from mnist_ray.steps import track
from mnist_ray.storage.location import Location
from mnist_ray.tracking.scalars import Snapshot
from tests.support.report_maker import make_run


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Finished, after five epochs."""
    return RunFolder(Location.parse(make_run(tmp_path / "mnist", test=30)))


def events(folder: RunFolder) -> dict[str, list[str]]:
    return {
        split.name: [file.name.removesuffix(".tfevents") for file in split.list()]
        for split in folder.tensorboard.list()
    }


def test_a_finished_run_is_shown_from_its_folder(folder: RunFolder) -> None:
    out = io.StringIO()
    with track.tracked(RunConfig(tensorboard=True), folder, Console(out)):
        pass
    assert events(folder) == {
        "test": ["epoch-000000", "epoch-000005"],
        "train": [f"epoch-{number:06d}" for number in range(1, 6)],
    }
    assert out.getvalue() == f"  scalars  {folder.tensorboard}\n"


def test_without_a_tracker_nothing_is_read_or_written(tmp_path: Path) -> None:
    with track.tracked(RunConfig(), RunFolder.at(str(tmp_path), "m"), Console(io.StringIO())) as show:
        show([{"epoch": 1}])
    assert not list(tmp_path.iterdir())


def test_epochs_are_shown_as_they_end_and_stay_where_the_run_fails(tmp_path: Path) -> None:
    folder, out = RunFolder.at(str(tmp_path), "m"), io.StringIO()
    epochs = [{"epoch": number, "loss": 1.0, "unix_time": 1.0} for number in (1, 2)]

    def make() -> None:
        with track.tracked(RunConfig(tensorboard=True), folder, Console(out)) as show:
            show(epochs[:1])
            show(epochs)
            raise RetryableError("a node is gone")

    with pytest.raises(RetryableError, match="a node is gone"):
        make()
    assert events(folder) == {"train": ["epoch-000001", "epoch-000002"]}
    assert out.getvalue() == ""


class Broken:
    label, place = "a tracker", None
    status = ""

    def sync(self, snapshot: Snapshot) -> None:
        if snapshot.metrics:
            raise ValueError("down")

    def end(self, status: str) -> None:
        self.status = status

    def lacking(self, snapshot: Snapshot) -> str:
        return "all of it is lacking"


def test_a_tracker_that_fails_is_a_warning(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(track, "TensorBoard", lambda *_: Broken())
    with track.tracked(RunConfig(tensorboard=True), folder, Console(out)):
        pass
    assert out.getvalue() == (
        "warning: a tracker: all of it is lacking (ValueError: down); the same command adds what is missing\n"
    )


@pytest.mark.parametrize(
    ("error", "status"),
    [(Interrupted, "KILLED"), (KeyboardInterrupt, "KILLED"), (lambda: RetryableError("x"), "FAILED")],
)
def test_how_an_attempt_has_ended_is_noted(
    error: Callable[[], BaseException], status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Broken()
    monkeypatch.setattr(track, "TensorBoard", lambda *_: tracker)
    with (
        suppress(Interrupted, KeyboardInterrupt, RetryableError),
        track.tracked(RunConfig(tensorboard=True), RunFolder.at(str(tmp_path), "m"), Console(io.StringIO())),
    ):
        raise error()
    assert tracker.status == status


class Recorder:
    """Stands in for MLflow's run of an output."""

    label = "MLflow"
    place = "mlflow", "http://h/1"

    def __init__(self, *made_with: object, **also: object) -> None:
        self.made_with, self.also, self.seen = made_with, also, list[Snapshot]()

    def sync(self, snapshot: Snapshot) -> None:
        self.seen.append(snapshot)

    def end(self, status: str) -> None:
        self.status = status

    def lacking(self, snapshot: Snapshot) -> str:
        return "all"


def test_a_scoring_is_shown_with_what_was_chosen_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Recorder] = []
    monkeypatch.setattr(track, "MLflowRun", lambda *args, **named: made.append(Recorder(*args, **named)) or made[0])
    config = ScoreConfig(
        ["a", "b"], model="m", output=str(tmp_path / "out"), mlflow="http://h", mlflow_experiment="e", top_k=3,
        limit=9, num_actors=2, quiet=True, split="test",
    )  # fmt: skip
    place, out = Location.parse(tmp_path / ".out.new"), io.StringIO()
    with track.tracked_output(config, place, Console(out)) as show:
        show({"score": {"images": 9}})
    (tracker,) = made
    chosen = {"input": ("a", "b"), "model": "m", "output": str(tmp_path / "out"), "limit": 9}
    assert tracker.made_with == (RunFolder(place), "http://h", "e", chosen)
    assert tracker.also == {"shown_as": Location.parse(tmp_path / "out")}
    assert (tracker.seen[-1].metrics, tracker.status) == ({"score": {"images": 9}}, "FINISHED")
    assert out.getvalue() == "mlflow       http://h/1\n"


def test_a_scoring_that_is_interrupted_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, out = Recorder(), io.StringIO()
    monkeypatch.setattr(track, "MLflowRun", lambda *_, **__: tracker)
    config = ScoreConfig("a", model="m", output="o", mlflow="http://h")
    with suppress(Interrupted), track.tracked_output(config, Location.parse(tmp_path), Console(out)):
        raise Interrupted
    assert (tracker.status, out.getvalue()) == ("KILLED", "")


def test_a_scoring_without_a_tracker(tmp_path: Path) -> None:
    config, out = ScoreConfig("a", model="m", output="o"), io.StringIO()
    with track.tracked_output(config, Location.parse(tmp_path), Console(out)) as show:
        show({"score": {}})
    assert out.getvalue() == ""
    assert not list(tmp_path.iterdir())
