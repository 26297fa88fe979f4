"""What a run has to show: by split, name and epoch, each once."""

from __future__ import annotations

from mnist_ray import STARTED
from mnist_ray.tracking.scalars import Scalar, Snapshot

EPOCHS = [
    {"epoch": 1, "loss": 0.5, "accuracy": None, "val_loss": 0.6, "seconds": 2.0, "unix_time": 100.0},
    {"epoch": 2, "loss": 0.25, "learning_rate": 0.01, "val_loss": None, "seconds": 1.5, "unix_time": 103.0},
]

OF_EPOCHS = [
    Scalar("train", "loss", 1, 0.5, 100.0),
    Scalar("validation", "loss", 1, 0.6, 100.0),
    Scalar("train", "seconds", 1, 2.0, 100.0),
    Scalar("train", "loss", 2, 0.25, 103.0),
    Scalar("train", "learning_rate", 2, 0.01, 103.0),
    Scalar("train", "seconds", 2, 1.5, 103.0),
]


def test_the_figures_of_epochs_but_those_that_are_not_finite() -> None:
    assert Snapshot(EPOCHS).scalars() == OF_EPOCHS
    assert [each.full_name for each in OF_EPOCHS[:3]] == ["loss", "val_loss", "seconds"]
    assert Snapshot().scalars() == []


def test_the_test_images_are_before_the_first_epoch_and_after_the_last() -> None:
    metrics = {"before": {"loss": 2.5, "accuracy": 0.125, "num_seen": 8}, "after": {"loss": None, "accuracy": 1.0}}
    assert Snapshot(EPOCHS, metrics).scalars() == [
        *OF_EPOCHS,
        Scalar("test", "loss", 0, 2.5, 98.0),
        Scalar("test", "accuracy", 0, 0.125, 98.0),
        Scalar("test", "accuracy", 2, 1.0, 103.0),
    ]
    assert Scalar("test", "loss", 0, 2.5, 98.0).full_name == "test_loss"


def test_epochs_of_an_earlier_version_have_the_time_of_this_process() -> None:
    assert Snapshot([{"epoch": 1, "loss": 1.0}]).scalars() == [Scalar("train", "loss", 1, 1.0, STARTED)]


def test_a_scoring_has_its_figures_and_what_it_settled_on() -> None:
    snapshot = Snapshot(
        metrics={
            "after": {"f1_micro": 0.5, "f1_macro": 0.25, "num_seen": 4},
            "score": {"images": 5, "quarantined": 0, "images_per_second": 2.5, "engine": "openvino", "jit": None},
            "model": {"sha256": "ab"},
            "environment": {"finished": "1970-01-01T00:01:40+00:00"},
        }
    )
    assert snapshot.scalars() == [
        Scalar("test", "f1_micro", 0, 0.5, 100.0),
        Scalar("test", "f1_macro", 0, 0.25, 100.0),
        Scalar("score", "images", 0, 5, 100.0),
        Scalar("score", "quarantined", 0, 0, 100.0),
        Scalar("score", "images_per_second", 0, 2.5, 100.0),
    ]
    assert snapshot.scalars()[-1].full_name == "score_images_per_second"
    assert snapshot.settings() == {"engine": "openvino", "model_sha256": "ab"}
    assert Snapshot().settings() == {}
