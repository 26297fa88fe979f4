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
