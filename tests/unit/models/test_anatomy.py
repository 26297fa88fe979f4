"""What a model ends in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_ray.errors import InputError
from mnist_ray.models import anatomy, build, files
from mnist_ray.storage.location import Location
from tests.support.models import IMAGES, RECIPE

pytestmark = pytest.mark.tensorflow


# Looking at models.


def test_softmax_is_found_wherever_it_is(keras: Any) -> None:
    layers = keras.layers
    inputs = keras.Input((5, 4))
    dense = layers.Dense(3)(layers.Flatten()(inputs))
    ends: dict[str, tuple[Any, bool]] = {
        "logits": (keras.Model(inputs, dense), False),
        "layer": (keras.Model(inputs, layers.Softmax()(dense)), True),
        "activation": (keras.Model(inputs, layers.Activation("softmax", dtype="float32")(dense)), True),
        "operation": (keras.Model(inputs, keras.ops.softmax(dense)), True),
        "passed on": (keras.Model(inputs, layers.Identity()(layers.Softmax()(dense))), True),
        "before the end": (keras.Model(inputs, layers.Dense(3)(layers.Softmax()(dense))), False),
        "sigmoid": (keras.Model(inputs, layers.Dense(3, activation="sigmoid")(layers.Flatten()(inputs))), False),
    }
    for name, (made, found) in ends.items():
        nested = keras.Sequential([keras.Input((5, 4)), made])
        assert anatomy.ends_in_softmax(made) == found, name
        assert anatomy.ends_in_softmax(nested) == found, f"nested {name}"
        assert (anatomy.probability_model(made) is made) == found, name
        assert anatomy.ends_in_softmax(anatomy.probability_model(nested)), name


def test_what_a_model_must_not_end_in(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    inputs = keras.Input((5, 4))
    dense = layers.Dense(3)(layers.Flatten()(inputs))
    ends: dict[str, tuple[Any, str | None]] = {
        "logits": (dense, None),
        "softmax": (layers.Dense(3, activation="softmax")(dense), None),
        "log_softmax": (layers.Activation("log_softmax")(dense), None),
        "hard_sigmoid": (layers.Dense(3, activation="hard_sigmoid")(dense), "hard_sigmoid"),
        "passed on": (layers.Identity()(layers.Activation("tanh")(dense)), "tanh"),
        "layer": (layers.ReLU()(dense), "relu"),
        "operation": (keras.ops.softplus(dense), "softplus"),
        "one": (layers.Dense(1)(dense), "1 value per image"),
    }
    for name, (outputs, found) in ends.items():
        for made in (
            keras.Model(inputs, outputs),
            keras.Sequential([keras.Input((5, 4)), keras.Model(inputs, outputs)]),
        ):
            if name != "one":
                assert anatomy.unsuitable_ending(made) == found, name
            made.save(tmp_path / "made.keras")
            location = Location.parse(tmp_path / "made.keras")
            if found is None:
                files.load(location, vetted=files.digest(location))
                continue
            said = (
                "gives 1 value per image"
                if name == "one"
                else f"ends in {found}; it must give logits, or end in softmax or sigmoid"
            )
            with pytest.raises(InputError, match=said):
                files.load(location, vetted=files.digest(location))


def test_probabilities_are_probabilities(keras: Any) -> None:
    made = build.build(RECIPE)
    logits = np.asarray(made(IMAGES), np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.asarray(anatomy.probability_model(made)(IMAGES)), expected, rtol=1e-5)
