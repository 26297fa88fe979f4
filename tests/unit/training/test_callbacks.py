"""Callbacks as people write them: each works data-parallel, or is refused by name before training."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_ray.config import RunConfig
from mnist_ray.errors import InputError, SetupError
from mnist_ray.models.runtime import import_keras
from mnist_ray.training.callbacks import CallbackState, load, of_rank

pytestmark = pytest.mark.tensorflow

Made = Callable[[Any], Any]


def loaded(make: Made, validation_fraction: float = 0.0) -> list[Any]:
    config = RunConfig(architecture="mine:model", validation_fraction=validation_fraction)
    return load(import_keras(), config, lambda: make(import_keras().callbacks))


def adding(c: Any) -> Any:
    class Adding(c.Callback):  # type: ignore[misc]
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs["f1"] = 0.5

    return Adding()


def with_test_hook(c: Any) -> Any:
    class Testing(c.Callback):  # type: ignore[misc]
        def on_test_end(self, logs: Any = None) -> None:
            self.ended = True

    return Testing()


def needs_a_package(c: Any) -> Any:
    import there_is_no_such_package

    return [there_is_no_such_package]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda c: [c.BackupAndRestore("backup")], "callbacks() of mine: BackupAndRestore cannot be used"),
        (lambda c: [c.SwapEMAWeights()], "SwapEMAWeights cannot be used"),
        (lambda c: [c.EarlyStopping("val_loss")], "EarlyStopping uses 'val_loss'"),
        (lambda c: [c.EarlyStopping("val_accuracy")], "has only accuracy, loss; use --validation-fraction"),
        (lambda c: [c.ReduceLROnPlateau("acc")], "ReduceLROnPlateau uses 'acc'"),
        (lambda c: [c.ModelCheckpoint("best.keras", "val_loss", save_best_only=True)], "uses 'val_loss'"),
        (lambda c: [c.ModelCheckpoint("{epoch}-{val_loss:.2f}.keras")], "ModelCheckpoint uses 'val_loss'"),
        (lambda c: [with_test_hook(c)], "Testing has on_test_end, which is never called"),
        (lambda c: c.EarlyStopping("loss"), "must return a list of Keras callbacks"),
        (lambda c: ["EarlyStopping"], "must return a list of Keras callbacks"),
        (lambda c: 1 / 0, "callbacks() of mine failed (ZeroDivisionError"),
    ],
)
def test_what_cannot_work_is_refused_by_name(make: Made, told: str) -> None:
    with pytest.raises(InputError) as raised:
        loaded(make)
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("kind", "package"), [("TensorBoard", "tensorboard"), ("RemoteMonitor", "requests")])
def test_a_package_that_is_missing_is_named(kind: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))
    with pytest.raises(SetupError, match=f"{kind} needs the package {package}, which is not installed"):
        loaded(lambda c: [getattr(c, kind)()])
    with pytest.raises(SetupError, match="needs the package there_is_no_such_package, which is not installed"):
        loaded(needs_a_package)


@pytest.mark.parametrize(
    ("make", "validation_fraction"),
    [
        (lambda c: [c.EarlyStopping("val_loss"), c.ModelCheckpoint("{val_accuracy}.keras")], 0.1),
        (lambda c: [c.ReduceLROnPlateau("loss"), c.EarlyStopping("learning_rate", mode="min")], 0.0),
        (lambda c: [adding(c), c.EarlyStopping("f1", mode="max")], 0.0),
        (lambda c: [c.ModelCheckpoint("{epoch:02d}.keras"), c.TerminateOnNaN(), c.CSVLogger("log.csv")], 0.0),
        (lambda c: (), 0.0),
    ],
)
def test_what_works_is_taken(make: Made, validation_fraction: float) -> None:
    assert len(loaded(make, validation_fraction)) == len(make(import_keras().callbacks))


def test_callbacks_that_only_write_run_on_rank_0_alone() -> None:
    keras = import_keras()
    made = loaded(lambda c: [c.CSVLogger("a.csv"), c.EarlyStopping("loss"), c.ModelCheckpoint("a.keras"), adding(c)])
    assert of_rank(keras, made, 0) == made
    assert of_rank(keras, made, 1) == [made[1], made[3]]


class Remembers:
    """Attributes of all kinds, as a callback may have them."""

    def __init__(self, patience: int = 3) -> None:
        self.patience = patience
        self.best: float | None = None
        self.weights: list[Any] | None = None
        self.seen: dict[str, Any] = {}
        self.place = (0, np.float32(1))
        self.function = len
        self.file: Any = None


def test_what_changed_is_kept_and_settings_are_those_of_the_code(tmp_path: Path) -> None:
    keras = import_keras()
    before, after = Remembers(patience=3), Remembers(patience=5)
    state = CallbackState(keras, [before])
    state.remember_start()
    before.best, before.place = float("-inf"), (2, np.float32(0.1))
    before.weights = [np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros(0, np.int64)]
    before.seen = {"losses": [1, 2.5, None, "x", True], "deep": {"a": np.array(3)}}
    with (tmp_path / "log").open("w") as before.file:
        data = state.to_bytes()
    other = CallbackState(keras, [after])
    other.remember_start()
    other.restore(data, "x")
    assert (after.patience, after.best, after.function, after.file) == (5, float("-inf"), len, None)
    assert after.place == before.place
    assert isinstance(after.place[1], np.float32)
    assert after.seen == before.seen
    for one, expected in zip(after.weights or [], before.weights, strict=True):
        assert one.dtype == expected.dtype
        np.testing.assert_array_equal(one, expected)
    assert other.to_bytes() == data  # what was restored is kept again


def test_other_callbacks_than_before_begin_anew() -> None:
    keras = import_keras()
    state = CallbackState(keras, [Remembers()])
    state.remember_start()
    state._callbacks[0][0].best = 1.0
    new = keras.callbacks.EarlyStopping("loss")
    other = CallbackState(keras, [new])
    other.remember_start()
    other.restore(state.to_bytes(), "x")
    assert new.best is None


def test_a_log_file_is_continued(tmp_path: Path) -> None:
    keras = import_keras()
    path = tmp_path / "log.csv"
    for epoch in (0, 1):
        logger = keras.callbacks.CSVLogger(str(path))
        state = CallbackState(keras, [logger])
        if epoch:
            state.append_to_logs()
        logger.on_train_begin()
        logger.on_epoch_end(epoch, {"loss": 0.5})
        logger.on_train_end()
    assert path.read_text().split() == ["epoch,loss,val_loss", "0,0.5,NA", "1,0.5,NA"]
