"""Which pixels a model takes, asked of labelled images: each model here is right about one range alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_ray.errors import InputError
from mnist_ray.models import files, runtime
from mnist_ray.models.pixels import judged_by_labels
from mnist_ray.scoring.actor import Scorer
from mnist_ray.scoring.task import Settings, Task
from mnist_ray.sources.base import Reading
from mnist_ray.sources.open import open_source
from mnist_ray.storage.location import Location

ROWS = 600  # 512 of them are looked at, in 8 places
BRIGHT = 0.5  # the middle of dark and bright, in pixels / 255


def bright_or_dark(scale: float, offset: float, *begin: Any) -> Any:
    """A model that tells bright images from dark ones, where pixels / 255 are given as scale * x + offset."""
    keras = runtime.import_keras()
    dense = keras.layers.Dense(2)
    model = keras.Sequential([keras.Input((3, 3)), *begin, keras.layers.Flatten(), dense])
    weights = np.zeros((9, 2), np.float32)
    weights[:, 1] = 1 / 9
    dense.set_weights([weights, np.array([0, -(scale * BRIGHT + offset)], np.float32)])
    return model


def task(folder: Path, model: Any, *, labelled: bool = True, several: bool = False, **settings: Any) -> Task:
    """The dark images come first, as in folders of classes."""
    model.save(folder / "m.keras")
    place = Location.parse(folder / "m.keras")
    labels = np.repeat([0, 1], ROWS // 2)
    images = np.random.default_rng(0).integers(0, 80, (ROWS, 3, 3)) + 90 * labels[:, None, None] + 20
    known = {"y": np.eye(2, dtype=int)[labels] if several else labels} if labelled else {}
    np.savez(folder / "data.npz", x=images.astype(np.uint8), **known)
    source = open_source(str(folder / "data.npz"), Reading(takes_several=several))
    return Task(
        model=place, source=source, split="all", most_rows=ROWS, total_rows=ROWS, vetted=True,
        digest=files.digest(place), settings=Settings(engine="tensorflow", **settings),
    )  # fmt: skip


@pytest.mark.tensorflow
@pytest.mark.parametrize(("pixels", "scale", "offset"), [("0-255", 255, 0), ("0-1", 1, 0), ("-1-1", 2, -1)])
def test_labelled_images_tell_which_pixels_a_model_takes(
    tmp_path: Path, pixels: str, scale: float, offset: float
) -> None:
    facts = Scorer(task(tmp_path, bright_or_dark(scale, offset))).examine()
    assert facts.pixels == pixels
    assert facts.pixels_reason == "512 of 512 labelled images are right so, and " + " and ".join(
        f"256 with {each}" for each in ("0-255", "0-1", "-1-1") if each != pixels
    )


@pytest.mark.tensorflow
def test_several_labels_an_image_tell_it_as_well(tmp_path: Path) -> None:
    facts = Scorer(task(tmp_path, bright_or_dark(255, 0), several=True, kind="labels")).examine()
    assert (facts.pixels, facts.kind) == ("0-255", "labels")
    assert facts.pixels_reason == "512 of 512 labelled images are right so, and 256 with 0-1 and 256 with -1-1"


@pytest.mark.tensorflow
def test_where_neither_layers_nor_labels_tell_it_is_asked_for(tmp_path: Path) -> None:
    keras = runtime.import_keras()
    model = bright_or_dark(51, 0, keras.layers.Rescaling(0.2))  # of raw pixels
    assert Scorer(task(tmp_path, model)).examine().pixels == "0-255"
    with pytest.raises(InputError, match=r"may take pixels 0-255, 0-1 or -1-1: .*; say which by --pixels, or score"):
        Scorer(task(tmp_path, model, labelled=False))
    facts = Scorer(task(tmp_path, model, labelled=False, pixels="-1-1")).examine()
    assert (facts.pixels, facts.pixels_reason) == ("-1-1", None)


def test_only_a_clear_difference_counts() -> None:
    def right(*shares: float) -> dict[str, Any]:
        return {name: np.arange(100) < 100 * share for name, share in zip(("a", "b", "c"), shares, strict=True)}

    assert judged_by_labels(right(0.9, 0.5, 0.4), None) is not None
    assert judged_by_labels(right(0.9, 0.85, 0.1), None) is None  # a or b
    assert judged_by_labels(right(0.9, 0.85, 0.1), "b") is None  # b is usual, and a is hardly better
    found = judged_by_labels(right(0.9, 0.85, 0.1), "c")
    assert found is not None
    assert (found.range, found.reason) == ("a", "90 of 100 labelled images are right so, and 85 with b and 10 with c")
    found = judged_by_labels(right(0.5, 0.9, 0.1), "b")
    assert found is not None
    assert found.range == "b"  # as usual, and now it is known
    assert judged_by_labels(right(0.88, 0.9, 0.1), "b") is None
