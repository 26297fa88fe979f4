"""What identifies a scoring to --overwrite: an output of other labels or of another part of a model is another job."""

from __future__ import annotations

from typing import Any

import pytest

from mnist_ray.models.outline import Outline
from mnist_ray.predictions.plan import Plan
from mnist_ray.predictions.replace import _is_of
from mnist_ray.scoring.task import Settings
from mnist_ray.storage.location import Location

LABELS = Outline(sha256="ab" * 32, kind="labels", num_classes=3)
CLASSES = Outline(sha256="ab" * 32, kind="classes", num_classes=3)
EMBEDDINGS = Outline(sha256="ab" * 32, kind="embeddings")


def stored(folder: Any, **changed: Any) -> Location:
    Plan(**{"model_sha256": "ab" * 32, "input_digest": "cd" * 32, "split": "all", "limit": None, "pixels": "0-1",
            "num_classes": 3, "units": ((0, 5),), **changed}).freeze(Location.parse(folder))  # fmt: skip
    return Location.parse(folder)


@pytest.mark.parametrize(
    ("plan", "outline", "settings", "is_same"),
    [
        ({}, CLASSES, {}, True),
        ({}, CLASSES, {"output_layer": "a"}, False),
        ({"output_name": "a"}, CLASSES, {"output_name": "a"}, True),
        ({"output_name": "a"}, CLASSES, {}, False),
        ({"kind": "embeddings", "output_layer": "a"}, EMBEDDINGS, {"output_layer": "a"}, True),
        ({"kind": "embeddings", "output_layer": "a"}, EMBEDDINGS, {"output_layer": "b"}, False),
        ({"kind": "embeddings", "output_layer": "a"}, CLASSES, {}, False),
        ({"kind": "labels", "thresholds": (0.5,) * 3}, LABELS, {}, True),
        ({"kind": "labels", "thresholds": (0.5,) * 3}, LABELS, {"thresholds": (0.5,)}, True),
        ({"kind": "labels", "thresholds": (0.5,) * 3}, LABELS, {"thresholds": (0.4,)}, False),
        ({"kind": "labels", "thresholds": (0.4,) * 3}, LABELS, {}, False),
        ({"kind": "labels", "thresholds": (0.1, 0.2, 0.3)}, LABELS, {"thresholds": (0.1, 0.2, 0.3)}, True),
        ({"classes": ("a", "b", "c")}, CLASSES, {}, False),
    ],
)
def test_the_same_job(
    plan: dict[str, Any], outline: Outline, settings: dict[str, Any], is_same: bool, tmp_path: Any
) -> None:
    assert _is_of(stored(tmp_path, **plan), Settings(**settings).known(outline)) == is_same


@pytest.mark.parametrize(
    ("settings", "kind", "gives_logits", "reason"),
    [
        ({"is_unsaid": True}, "classes", True, "gives logits, and its file does not tell of what"),
        ({"is_unsaid": True}, "classes", False, None),
        ({"is_unsaid": True}, "embeddings", True, None),
        ({"by_loss": "classes"}, "classes", True, None),
        ({"kind": "classes"}, "classes", True, None),
        ({}, "labels", False, "ends in sigmoid"),
        ({"by_loss": "labels"}, "labels", False, "was trained with binary cross-entropy"),
        ({"kind": "labels"}, "labels", False, "is said to give labels (--kind)"),
    ],
)
def test_why_a_model_gives_what_it_gives(
    settings: dict[str, Any], kind: str, gives_logits: bool, reason: str | None
) -> None:
    assert Settings(**settings).kind_reason(kind, gives_logits) == reason


def test_of_a_runs_model_nothing_is_left_to_say() -> None:
    of_run = Outline(sha256="ab" * 32, by_loss="classes", is_of_run=True)
    assert Settings(kind="classes").knowing(of_run) == Settings(by_loss="classes")
    assert Settings(kind="classes").knowing(CLASSES) == Settings(kind="classes")
    assert Settings().knowing(CLASSES) == Settings(is_unsaid=True)
