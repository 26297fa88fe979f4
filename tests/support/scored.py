"""A small model that scorings are tested with."""

from __future__ import annotations

from mnist_ray.models.build import Recipe

SHAPE = (6, 5)

CLASSES = ("0", "1", "2")

RECIPE = Recipe(architecture="mlp", image_shape=SHAPE, num_classes=3, dropout=0.2, seed=5, precision="float32")
