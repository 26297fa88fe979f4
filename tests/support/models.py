"""A small recipe, its images, and models compared."""

from __future__ import annotations

from typing import Any

import numpy as np

from mnist_ray.models.build import Recipe

RECIPE = Recipe(
    architecture="mlp", image_shape=(5, 4), num_classes=3, dropout=0.2, seed=7, precision="float32"
)  # fmt: skip

CLASSES = ("a", "b", "c")

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)


def same(left: Any, right: Any) -> bool:
    pairs = list(zip(left.get_weights(), right.get_weights(), strict=True))
    return bool(pairs) and all(np.array_equal(a, b) for a, b in pairs)
