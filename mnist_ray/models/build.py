"""Classifiers built from code and a seed: mlp, cnn, or the user's MODULE:FUNCTION."""

from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist_ray.errors import InputError, SetupError, one_line, users_code_failed
from mnist_ray.models.anatomy import ends_in_softmax, fits, is_functional, shape_problem, unsuitable_ending
from mnist_ray.models.pixels import find_pixels
from mnist_ray.models.runtime import import_keras
from mnist_ray.sources.pixels import ImageShape
from mnist_ray.storage.records import Count, NumClasses, Precision, Share

_HIDDEN = 128  # units of the layer before the last


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What determines an untrained classifier, weights included."""

    architecture: str
    """mlp, cnn, or MODULE:FUNCTION."""
    image_shape: ImageShape
    """(h, w) or (h, w, 3)."""
    num_classes: NumClasses
    dropout: Share
    seed: Count
    precision: Precision

    @property
    def is_ours(self) -> bool:
        """Whether the architecture is in this package, so that building it runs no code of anyone else."""
        return self.architecture in _BUILDERS

    def fewest_weights(self) -> int:
        """A lower bound of the weights of mlp and cnn, known without building them: there may be too many."""
        height, width, *_ = self.image_shape
        if self.architecture == "mlp":
            return math.prod(self.image_shape) * _HIDDEN
        return max(height // 4 - 3, 0) * max(width // 4 - 3, 0) * 64 * _HIDDEN + _HIDDEN * self.num_classes


# Building.


def check_architecture(architecture: str) -> None:
    """Raise InputError where there is no such architecture. Imports MODULE's parent packages, not MODULE or Keras."""
    if architecture in _BUILDERS:
        return
    module, colon, function = architecture.partition(":")
    if not (colon and module and function.isidentifier()):
        raise InputError(f"--architecture must be {', '.join(_BUILDERS)} or MODULE:FUNCTION, not {architecture!r}")
    _import_from_working_directory()
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise SetupError(
            f"--architecture {architecture}: there is no module {module}; run this in the folder that holds it"
        )


def build(recipe: Recipe) -> Any:
    """A keras.Model from raw pixels (n, *image_shape) to logits (n, num_classes), its weights drawn from the seed.

    A user's model may take (n, *image_shape, 1), and pixels / 255. Raises InputError where MODULE:FUNCTION fails or
    returns something else.
    """
    keras = import_keras(recipe.precision)
    keras.utils.set_random_seed(recipe.seed)
    if recipe.architecture in _BUILDERS:
        return keras.Sequential(
            [keras.Input(recipe.image_shape), *_BUILDERS[recipe.architecture](keras, recipe)], name="classifier"
        )
    check_architecture(recipe.architecture)
    return _checked(keras, _call_users_function(recipe), recipe)


def _mlp(keras: Any, recipe: Recipe) -> list[Any]:
    return [keras.layers.Rescaling(1 / 255), *_head(keras, recipe)]


def _cnn(keras: Any, recipe: Recipe) -> list[Any]:
    """197,482 weights for MNIST; 0.99 of the test images are right after three or four epochs."""
    layers = keras.layers
    # Without padding there is half as much to compute; images of fewer than 16 pixels a side would vanish.
    padding = "valid" if min(recipe.image_shape[:2]) >= 16 else "same"

    def block(filters: int) -> list[Any]:
        return [
            layers.Conv2D(filters, 3, activation="relu", padding=padding),
            layers.Conv2D(filters, 3, activation="relu", padding=padding),
            layers.MaxPooling2D(padding=padding),
            layers.Dropout(recipe.dropout),
        ]

    is_gray = len(recipe.image_shape) == 2
    return [
        layers.Rescaling(1 / 255),
        *([layers.Reshape((*recipe.image_shape, 1))] if is_gray else []),
        *block(32),
        *block(64),
        *_head(keras, recipe),
    ]


def _head(keras: Any, recipe: Recipe) -> list[Any]:
    layers = keras.layers
    return [
        layers.Flatten(),
        layers.Dense(_HIDDEN, activation="relu"),
        layers.Dropout(recipe.dropout),
        # bfloat16 has three digits: too few for a loss.
        layers.Dense(recipe.num_classes, dtype="float32" if recipe.precision == "bfloat16" else None),
    ]


_BUILDERS = {"mlp": _mlp, "cnn": _cnn}


def _import_from_working_directory() -> None:
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.insert(0, str(Path.cwd()))


def _call_users_function(recipe: Recipe) -> Any:
    name, _, attribute = recipe.architecture.partition(":")
    try:
        function = getattr(importlib.import_module(name), attribute, None)
    except Exception as error:
        raise users_code_failed(f"{name} cannot be imported", error) from error
    if not callable(function):
        raise InputError(f"{name} has no function {attribute}")
    try:
        return function(recipe.image_shape, recipe.num_classes)
    except Exception as error:
        problem = f"{recipe.architecture} failed for images {recipe.image_shape} and {recipe.num_classes} classes"
        raise users_code_failed(problem, error) from error


def _checked(keras: Any, model: Any, recipe: Recipe) -> Any:
    """The user's model, with known inputs and outputs. Raises InputError where it is not suitable."""
    name = recipe.architecture
    if not isinstance(model, keras.Model):
        raise InputError(f"{name} returned a {type(model).__name__}; it must return a keras.Model")
    if problem := _compiled_problem(model):
        raise InputError(f"{name} returned a model that {problem}")
    if not (isinstance(model, keras.Sequential) and model.built) and not is_functional(model):
        # A subclassed model has shapes only when it is called, and so has an unbuilt Sequential.
        try:
            model = keras.Sequential([keras.Input(recipe.image_shape), model])
        except Exception as error:
            raise InputError(
                f"{name} returned a model that fails for images {recipe.image_shape} ({one_line(error)})"
            ) from error
    problem = (
        shape_problem(model)
        or _mismatch(model, recipe)
        or _ending_problem(model)
        or _saving_problem(keras, model)
        or _pixels_problem(model)
    )
    if problem:
        raise InputError(f"{name} returned a model that {problem}")
    return model


def _compiled_problem(model: Any) -> str | None:
    if not getattr(model, "compiled", False):
        return None
    return (
        "is compiled, but its optimizer, loss and metrics would not be used; leave compile() out, and define a function"
        " optimizer(learning_rate) beside it"
    )


def _mismatch(model: Any, recipe: Recipe) -> str | None:
    """Why a model's shapes do not fit the dataset."""
    takes, num_outputs = tuple(model.input_shape[1:]), model.output_shape[1]
    if not fits(recipe.image_shape, takes):
        return f"takes images {takes}, but the dataset has {recipe.image_shape}"
    if num_outputs != recipe.num_classes:
        return f"gives {num_outputs} values per image, but the dataset has {recipe.num_classes} classes"
    return None


def _ending_problem(model: Any) -> str | None:
    ending = "softmax" if ends_in_softmax(model) else unsuitable_ending(model)
    return f"ends in {ending}; it must give logits (leave its last activation out)" if ending else None


def _pixels_problem(model: Any) -> str | None:
    pixels = find_pixels(model)
    if pixels.range:
        return None
    return f"may take pixels 0-255 or 0-1: {pixels.reason}; let it begin with Rescaling(1 / 255)"


def _saving_problem(keras: Any, model: Any) -> str | None:
    """Found now, not when the model has been trained."""
    try:
        keras.saving.serialize_keras_object(model)
    except Exception as error:
        return f"cannot be saved ({one_line(error)})"
    return None
