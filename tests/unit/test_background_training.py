"""The driver's view of a training: what it says of the workers that it waits for, and of what they publish."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from mnist_ray.console import Bar, Console
from mnist_ray.steps import train
from mnist_ray.steps.train import BackgroundTraining


def test_a_restart_ends_the_wait_for_the_start() -> None:
    """Else the line about it would come every 30 s, until the command ends."""
    training = BackgroundTraining.__new__(BackgroundTraining)
    training._console, training._restarts, training._noted = Console(io.StringIO()), 0, {}
    before = training._waiting = training._console.waiting("train workers start")
    assert training._show_restart({"restarts": 1, "warnings": [], "resumed_from_epoch": 2}, 0) == 2
    assert before._over.is_set()
    assert not training._waiting._over.is_set()
    training._waiting.end()


def test_what_cannot_be_imported_ends_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the driver would wait for it for ever."""
    monkeypatch.setitem(sys.modules, "mnist_ray.training.trainer", None)
    config = SimpleNamespace(worker_range=lambda: (1, 1), cpus_per_worker=1.0)
    job: Any = SimpleNamespace(config=config, is_local=True, patience=1.0, channel="c")
    with BackgroundTraining(job, Console(io.StringIO()), lambda epochs: None) as training:
        assert isinstance(training._done.exception(timeout=10), ImportError)


def test_a_bar_shows_nothing_of_the_epoch_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the first block of an epoch is done, the record is that of the end of the epoch before."""
    first = {"epoch": 1, "loss": 0.5, "accuracy": 0.75, "images_per_second": 10.0}
    block = {"loss": 0.25, "accuracy": 0.875, "per_second": 5}
    published: list[dict[str, Any]] = [
        {**block, "done": 8, "epochs": [first]},
        {**block, "done": 4, "epochs": [first]},
        {**block, "done": 8, "epochs": [first, {**first, "epoch": 2}]},
    ]
    monkeypatch.setattr(train, "published", lambda channel: published.pop(0))
    monkeypatch.setattr(train, "last_loss", lambda channel: None)
    training = BackgroundTraining.__new__(BackgroundTraining)
    training._console, training._restarts, training._noted, training._loss = Console(io.StringIO()), 0, {}, None
    training._waiting, training._show = training._console.waiting("train workers start"), lambda epochs: None
    training._job, training._is_over = SimpleNamespace(channel="c"), lambda: False  # type: ignore[assignment,method-assign]
    shown: list[tuple[int, str]] = []

    class Recorder(Bar):
        def update(self, done: int, text: str = "", seconds_left: float | None = None) -> None:
            shown.append((done, text))

    assert training._follow(Recorder(training._console, "epoch 2/2", 8), 1) == 2
    assert shown == [(4, "loss 0.2500  accuracy 0.8750  5 images/s")]
    assert training._waiting._over.is_set()
