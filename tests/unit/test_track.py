"""Showing a run elsewhere: from its folder alone, and whatever a tracker does, the run ends as it would have."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mnist_ray.config import RunConfig
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
    monkeypatch.setattr(track, "_trackers", lambda *_: [Broken()])
    with track.tracked(RunConfig(), folder, Console(out)):
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
    monkeypatch.setattr(track, "_trackers", lambda *_: [tracker])
    with (
        suppress(Interrupted, KeyboardInterrupt, RetryableError),
        track.tracked(RunConfig(), RunFolder.at(str(tmp_path), "m"), Console(io.StringIO())),
    ):
        raise error()
    assert tracker.status == status
