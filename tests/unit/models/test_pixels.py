"""Which pixels a model takes, whatever its first layers are."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_ray.errors import InputError
from mnist_ray.models import build, files
from mnist_ray.models.inference import Inference
from mnist_ray.models.pixels import find_pixels
from mnist_ray.storage.location import Location
from tests.support.models import CLASSES, IMAGES, RECIPE

pytestmark = pytest.mark.tensorflow

SHAPE = (8, 9, 3)


def made(keras: Any, *begin: Any) -> Any:
    return keras.Sequential([keras.Input(SHAPE), *begin, keras.layers.Flatten(), keras.layers.Dense(3)])


def functional(keras: Any, begin: Callable[[Any], Any]) -> Any:
    images = keras.Input(SHAPE)
    return keras.Model(images, keras.layers.Dense(3)(keras.layers.Flatten()(begin(images))))


def test_layers_that_scale_pixels(keras: Any) -> None:
    layers = keras.layers
    augmentation = [layers.RandomFlip(), layers.RandomRotation(0.1), layers.RandomZoom(0.1)]
    adapted = layers.Normalization(mean=[125.0, 120.0, 110.0], variance=[3900.0, 3800.0, 4300.0])
    of_halves = layers.Normalization(mean=[0.5, 0.47, 0.44], variance=[0.06, 0.06, 0.07])
    cases = {
        "first": ([layers.Rescaling(1 / 255)], "0-255"),
        "to -1..1": ([layers.Rescaling(1 / 127.5, offset=-1)], "0-255"),
        "after augmentation": ([*augmentation, layers.Rescaling(1 / 255)], "0-255"),
        "after augmentation in a model": ([keras.Sequential(augmentation), layers.Rescaling(1 / 255)], "0-255"),
        "in a model after augmentation": ([*augmentation, made_inner(keras)], "0-255"),
        "after crops and noise": (
            [layers.CenterCrop(6, 6), layers.Resizing(12, 12), layers.GaussianNoise(0.1), layers.Rescaling(1 / 255)],
            "0-255",
        ),
        "statistics of raw pixels": ([adapted], "0-255"),
        "statistics after scaling": ([layers.Rescaling(1 / 255), of_halves], "0-255"),
        "statistics of 0-1": ([of_halves], "0-1"),
        "0-1 to -1..1": ([layers.Rescaling(2.0, offset=-1)], "0-1"),
        "none": ([layers.Reshape((9, 8, 3))], "0-1"),
        "after the first weights": ([layers.Conv2D(2, 3), layers.Rescaling(1 / 255)], "0-1"),
        "neither": ([layers.Rescaling(0.2)], None),
    }
    for name, (begin, expected) in cases.items():
        assert find_pixels(made(keras, *begin)).range == expected, name


def made_inner(keras: Any) -> Any:
    return keras.Sequential([keras.Input(SHAPE), keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(2, 3)])


def test_operations_that_scale_pixels(keras: Any) -> None:
    ops = keras.ops
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    cases: dict[str, tuple[Callable[[Any], Any], str | None]] = {
        "to -1..1": (lambda x: x / 127.5 - 1, "0-255"),
        "multiplied": (lambda x: ops.multiply(x, 1 / 255), "0-255"),
        "by channel": (lambda x: (x / 255 - mean) / deviation, "0-255"),
        "by channel, of 0-1": (lambda x: (x - mean) / deviation, "0-1"),
        "mean subtracted, channels turned": (lambda x: x[..., ::-1] - np.array([103.9, 116.8, 123.7]), "0-255"),
        "inverted": (lambda x: 255 - x, "0-255"),
        "inverted, of 0-1": (lambda x: 1 - x, "0-1"),
        "0-1 to -1..1": (lambda x: (x - 0.5) * 2, "0-1"),
        "each image by its own": (lambda x: (x - ops.mean(x, (1, 2, 3), keepdims=True)) / 2, "0-1"),
        "each image by its largest": (lambda x: x / ops.max(x, (1, 2, 3), keepdims=True), "0-1"),
        "two branches": (lambda x: ops.concatenate([x / 255, (x - 127.5) / 127.5]), "0-255"),
        "channels moved": (lambda x: ops.transpose(x, (0, 2, 1, 3)), "0-1"),
        "neither": (lambda x: x / 4, None),
    }
    for name, (begin, expected) in cases.items():
        model = functional(keras, begin)
        assert find_pixels(model).range == expected, name
        assert find_pixels(keras.Sequential([keras.Input(SHAPE), model])).range == expected, f"within a model: {name}"
    assert (
        find_pixels(functional(keras, cases["to -1..1"][0])).reason == "its first layers turn 0 and 255 into -1 and 1"
    )


def test_a_model_that_only_its_call_knows(keras: Any) -> None:
    class Own(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.head, self.scale = keras.layers.Dense(3), keras.layers.Rescaling(1 / 255)
            self.flatten = keras.layers.Flatten()

        def call(self, images: Any) -> Any:
            return self.head(self.flatten(self.scale(images)))

    model = keras.Sequential([keras.Input(SHAPE), Own()])
    before = np.asarray(model(np.ones((1, *SHAPE))))
    assert find_pixels(model).range == "0-255"
    np.testing.assert_array_equal(np.asarray(model(np.ones((1, *SHAPE)))), before)


def test_a_batch_normalization_tells_by_what_it_has_seen(keras: Any) -> None:
    def seen(scale: float, *begin: Any) -> Any:
        norm = keras.layers.BatchNormalization(momentum=0.9)
        model = made(keras, *begin, norm)
        images = np.random.default_rng(0).integers(0, 256, (64, *SHAPE)) * scale
        for _ in range(40):
            model(images.astype(np.float32), training=True)
        return find_pixels(model)

    assert seen(1).range == "0-255"
    assert seen(1 / 255).range == "0-1"
    assert seen(1, keras.layers.Rescaling(2.0)).range == "0-255"
    assert "BatchNormalization has seen means up to 12" in seen(1).reason
    untrained = find_pixels(made(keras, keras.layers.BatchNormalization()))
    assert untrained.range == "0-1"
    assert "not been trained" in untrained.reason


def test_the_answer_stays_in_training(keras: Any) -> None:
    model = made(keras, keras.layers.BatchNormalization(momentum=0.1))
    assert find_pixels(model).range == "0-1"
    model(np.full((4, *SHAPE), 200, np.float32), training=True)
    assert find_pixels(model).range == "0-1"


def test_augmentation_tells_by_its_range(keras: Any) -> None:
    layers = keras.layers
    assert find_pixels(made(keras, layers.RandomBrightness(0.2))).range == "0-255"
    assert find_pixels(made(keras, layers.RandomBrightness(0.2, value_range=(0, 1)))).range == "0-1"
    both = made(keras, layers.Rescaling(1 / 255), layers.RandomBrightness(0.2, value_range=(0, 1)))
    assert find_pixels(both).range == "0-255"


def test_a_file_is_given_what_plain_keras_is_given(keras: Any, tmp_path: Path) -> None:
    raw = np.random.default_rng(2).integers(0, 256, (5, *SHAPE), np.uint8)
    model = made(keras, keras.Sequential([keras.layers.RandomFlip()]), keras.layers.Rescaling(1 / 255))
    model.save(tmp_path / "made.keras")
    location = Location.parse(tmp_path / "made.keras")
    loaded = files.load(location, vetted=files.digest(location))
    outputs, _ = Inference(loaded, SHAPE, most_rows=8)(raw)
    np.testing.assert_allclose(outputs, model.predict(raw, verbose=0), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_known_is_asked_for(keras: Any, tmp_path: Path) -> None:
    made(keras, keras.layers.Rescaling(0.2)).save(tmp_path / "made.keras")
    location = Location.parse(tmp_path / "made.keras")
    loaded = files.load(location, vetted=files.digest(location))
    with pytest.raises(InputError, match=r"turn 0 and 255 into 0 and 51, 0 and 1 into 0 and 0\.2; say which by --pix"):
        Inference(loaded, SHAPE, most_rows=8)
    assert Inference(loaded, SHAPE, most_rows=8, pixels="0-1").pixels == "0-1"


OWN = """
import keras
from keras import layers

def begun(shape, classes, *first):
    return keras.Sequential([keras.Input(shape), layers.Reshape((*shape, 1)), *first, layers.Flatten(),
                             layers.Dense(classes)])

def augmented(shape, classes):
    return begun(shape, classes, layers.RandomTranslation(0.1, 0.1), layers.Rescaling(1 / 255))

def normalized(shape, classes):
    return begun(shape, classes, layers.BatchNormalization())

def unknown(shape, classes):
    return begun(shape, classes, layers.Rescaling(0.2))
"""


def test_the_same_rule_in_training(keras: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_pixels.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    for name, expected in (("augmented", "0-255"), ("normalized", "0-1")):
        recipe = replace(RECIPE, architecture=f"own_pixels:{name}")
        model = build.build(recipe)
        assert find_pixels(model).range == expected
        model(IMAGES, training=True)
        model.set_weights([weight * 300 for weight in model.get_weights()])  # as if 0-255 had been seen
        folder = Location.parse(tmp_path / name)
        files.save(model, folder, recipe, CLASSES, {})
        assert json.loads((tmp_path / name / "model.json").read_text())["pixels"] == expected
        assert files.load(folder, architecture=recipe.architecture).pixels == expected
        assert files.load(folder, vetted=files.digest(folder)).pixels == expected
    with pytest.raises(InputError, match=r"may take pixels 0-255 or 0-1: .*; let it begin with Rescaling\(1 / 255\)"):
        build.build(replace(RECIPE, architecture="own_pixels:unknown"))
