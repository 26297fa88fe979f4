"""What a model's file says of it without Keras, so that what cannot work is refused before Ray is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mnist_ray.errors import InputError
from mnist_ray.models import legacy
from mnist_ray.models.files import check_named, locate, read
from mnist_ray.models.trial import try_architecture
from mnist_ray.models.vetting import vetted_config
from mnist_ray.storage.location import Location

_KEEP_SHAPE = ("Activation", "Identity", "Softmax")  # layers behind the one that has a unit for each class


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A model as far as it is known without loading it."""

    sha256: str
    """Of its archive."""
    input_shape: tuple[int, ...] | None = None
    num_classes: int | None = None
    classes: tuple[str, ...] | None = None
    """Their names; None where the model has none."""


def outline(location: Location, architecture: str | None = None) -> Outline:
    """Of a run's folder, a model's folder or a file. Raises InputError where it can already be seen that it is not a
    sound model, or that it would run code.

    architecture: what the user says that a run's model was trained with; it is tried in another process.
    """
    archive, meta = locate(location)
    data, found, record = read(archive, meta)
    check_named(location, archive, record, architecture)
    if record is not None:
        if architecture is not None:
            try_architecture(record.recipe)
        recipe = record.recipe
        shape = recipe.image_shape if recipe.is_ours else None  # a user's model may take gray images with a channel
        return Outline(sha256=found, input_shape=shape, num_classes=recipe.num_classes, classes=record.classes)
    model = legacy.vetted_config(archive, data) if legacy.is_hdf5(data) else vetted_config(archive, data)
    image = _input_shape(model)
    if image is not None and len(image) not in (2, 3):
        raise InputError(f"the model in {archive} takes {image}; it must take images: (h, w), (h, w, 1) or (h, w, 3)")
    return Outline(sha256=found, input_shape=image, num_classes=_num_outputs(model))


def _input_shape(model: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Of the only input. None where there are several, or a side of it is open."""
    try:
        inputs = [layer["config"] for layer in model["config"]["layers"] if layer["class_name"] == "InputLayer"]
        (shape,) = [tuple(each["batch_shape"])[1:] for each in inputs]
    except (KeyError, TypeError, ValueError):
        return None
    return shape if all(isinstance(side, int) for side in shape) else None


def _num_outputs(model: Mapping[str, Any]) -> int | None:
    """Of a model of layers in a row that ends in Dense, perhaps with an activation behind. None for any other."""
    try:
        layers = [layer for layer in model["config"]["layers"] if layer["class_name"] not in _KEEP_SHAPE]
        if model["class_name"] == "Functional":
            name, _, _ = model["config"]["output_layers"]
            layers = [layer for layer in layers if layer["config"]["name"] == name]
        units = layers[-1]["config"]["units"] if layers[-1]["class_name"] == "Dense" else None
    except (IndexError, KeyError, TypeError, ValueError):
        return None
    return units if isinstance(units, int) else None
