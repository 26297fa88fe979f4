"""Classifiers: the same from the same seed; a user's own function."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mnist_ray.errors import InputError, SetupError
from mnist_ray.models import anatomy, build, files
from mnist_ray.models.build import Recipe
from mnist_ray.models.pixels import pixels_of
from mnist_ray.storage.location import Location
from mnist_ray.storage.records import parse_record
from tests.support.models import CLASSES, RECIPE, same

pytestmark = pytest.mark.tensorflow


def test_importing_keras_says_nothing() -> None:
    code = "from mnist_ray.models.runtime import import_keras; import_keras(threads=1)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")


# Building.


@pytest.mark.parametrize("architecture", ["mlp", "cnn"])
@pytest.mark.parametrize("shape", [(3, 2), (16, 17, 3)])
@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
def test_weights_follow_from_the_seed(architecture: str, shape: tuple[int, ...], precision: str) -> None:
    recipe = replace(RECIPE, architecture=architecture, image_shape=shape, precision=precision)
    made = build.build(recipe)
    assert same(made, build.build(recipe))
    assert not same(made, build.build(replace(recipe, seed=8)))
    assert made.input_shape == (None, *shape)
    assert made.output_shape == (None, 3)
    assert made.outputs[0].dtype == ("float64" if precision == "float64" else "float32")
    assert {weight.dtype.name for weight in made.get_weights()} == {"float64" if precision == "float64" else "float32"}
    assert pixels_of(made) == "0-255"
    assert not anatomy.ends_in_softmax(made)


def test_the_mlp_is_the_tutorials() -> None:
    made = build.build(replace(RECIPE, image_shape=(28, 28), num_classes=10))
    assert made.count_params() == 101_770
    assert [type(layer).__name__ for layer in made.layers] == ["Rescaling", "Flatten", "Dense", "Dropout", "Dense"]


def test_the_cnn_is_small() -> None:
    made = build.build(replace(RECIPE, architecture="cnn", image_shape=(28, 28), num_classes=10))
    assert made.count_params() == 197_482


def test_a_recipe_survives_json() -> None:
    assert parse_record(json.dumps(asdict(RECIPE)).encode(), Recipe, "a recipe", "train again") == RECIPE


USER_MODULE = """
import keras
from keras import layers

def plain(shape, classes):
    return keras.Sequential([keras.Input(shape), layers.Flatten(), layers.Dense(classes)])

def unbuilt(shape, classes):
    return keras.Sequential([layers.Flatten(), layers.Dense(classes)])

class Own(keras.Model):
    def __init__(self, classes):
        super().__init__()
        self.flatten, self.dense = layers.Flatten(), layers.Dense(classes)
    def call(self, inputs):
        return self.dense(self.flatten(inputs))

class Saved(Own):
    def get_config(self):
        return {"classes": self.dense.units}

def saved(shape, classes):
    return Saved(classes)

def subclassed(shape, classes):
    return Own(classes)

def channel(shape, classes):
    return keras.Sequential([keras.Input((*shape, 1)), layers.Flatten(), layers.Dense(classes)])

def softmax(shape, classes):
    return keras.Sequential([keras.Input(shape), layers.Flatten(), layers.Dense(classes, activation="softmax")])

def too_many(shape, classes):
    return plain(shape, classes + 1)

def transposed(shape, classes):
    return plain(shape[::-1], classes)

def flat(shape, classes):
    return keras.Sequential([keras.Input((20,)), layers.Dense(classes)])

def layer(shape, classes):
    return layers.Dense(classes)

def broken(shape, classes):
    raise RuntimeError("no such thing\\nsecond line")

two = 2
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the working directory, which is how users start."""
    (tmp_path / "users_models.py").write_text(USER_MODULE)
    (tmp_path / "users_broken.py").write_text("import no_such_package_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "users_models", raising=False)
    importlib.invalidate_caches()


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize("function", ["plain", "unbuilt", "saved", "channel"])
def test_a_users_function(function: str, tmp_path: Path) -> None:
    recipe = replace(RECIPE, architecture=f"users_models:{function}")
    made = build.build(recipe)
    assert made.output_shape == (None, 3)
    assert same(made, build.build(recipe))
    folder = Location.parse(tmp_path / "model")
    told = files.save(made, folder, recipe, CLASSES, {})
    assert told["pixels"] == "0-1"  # none of them rescales by itself
    loaded = files.load(folder, architecture=recipe.architecture)
    assert same(loaded.model, made)
    assert loaded.pixels == "0-1"


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("users_models:softmax", "ends in softmax; it must give logits"),
        ("users_models:too_many", "gives 4 values per image, but the dataset has 3 classes"),
        ("users_models:transposed", r"takes images \(4, 5\), but the dataset has \(5, 4\)"),
        ("users_models:flat", r"takes \(20,\); it must take images"),
        ("users_models:subclassed", r"cannot be saved \(NotImplementedError"),
        ("users_models:layer", "returned a Dense; it must return a keras.Model"),
        ("users_models:broken", r"failed for images \(5, 4\) and 3 classes \(RuntimeError: no such thing\)"),
        ("users_models:two", "has no function two"),
        ("users_models:none", "has no function none"),
        ("resnet", "--architecture must be mlp, cnn or MODULE:FUNCTION, not 'resnet'"),
    ],
)
def test_a_users_function_is_refused(architecture: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as refusal:
        build.build(replace(RECIPE, architecture=architecture))
    assert "\n" not in str(refusal.value)


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("users_broken:plain", "cannot be imported .*no_such_package_anywhere"),
        ("users_missing:plain", "there is no module users_missing"),
    ],
)
def test_what_is_missing_here_is_of_the_setup(architecture: str, said: str) -> None:
    with pytest.raises(SetupError, match=said) as refusal:
        build.build(replace(RECIPE, architecture=architecture))
    assert "\n" not in str(refusal.value)
