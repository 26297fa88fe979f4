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
from mnist_ray.models.view import (
    CLASSES,
    EMBEDDINGS,
    LABELS,
    WHOLE,
    UnsuitableError,
    View,
    chosen_layer,
    chosen_output,
)
from mnist_ray.storage.location import Location

_KEEP_SHAPE = ("Activation", "Identity", "Softmax")  # layers behind the one that has a unit for each class


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A model as far as it is known without loading it."""

    sha256: str
    """Of its archive."""
    input_shape: tuple[int | None, ...] | None = None
    """None for a side that is open."""
    kind: str | None = None
    """classes, labels or embeddings."""
    num_classes: int | None = None
    classes: tuple[str, ...] | None = None
    """Their names; None where the model has none."""


def outline(location: Location, view: View = WHOLE, architecture: str | None = None) -> Outline:
    """Of a run's folder, a model's folder or a file. Raises InputError where it can already be seen that it is not a
    sound model, that it would run code, or that it has no such part.

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
        if not view.is_whole:
            return Outline(sha256=found, input_shape=shape)
        return Outline(
            sha256=found, input_shape=shape, kind=CLASSES, num_classes=recipe.num_classes, classes=record.classes
        )
    model = legacy.vetted_config(archive, data) if legacy.is_hdf5(data) else vetted_config(archive, data)
    image = _input_shape(model)
    if image is not None and len(image) not in (1, 2, 3):
        raise InputError(f"the model in {archive} takes {image}; it must take images: (h, w), (h, w, 1) or (h, w, 3)")
    try:
        kind, num_classes = _given(model, view)
    except UnsuitableError as error:
        raise InputError(f"the model in {archive} {error}") from error
    return Outline(sha256=found, input_shape=image, kind=kind, num_classes=num_classes)


def _input_shape(model: Mapping[str, Any]) -> tuple[int | None, ...] | None:
    """Of the only input. None where there are several."""
    try:
        inputs = [layer["config"] for layer in model["config"]["layers"] if layer["class_name"] == "InputLayer"]
        (shape,) = [tuple(each["batch_shape"])[1:] for each in inputs]
    except (KeyError, TypeError, ValueError):
        return None
    return shape if all(side is None or isinstance(side, int) for side in shape) else None


def _given(model: Mapping[str, Any], view: View) -> tuple[str | None, int | None]:
    """(kind, number of classes) of a view of a model, each None where it is not clear. Raises UnsuitableError."""
    try:
        if view.output_layer is not None:
            chosen_layer(_names(model), view.output_layer)
            return EMBEDDINGS, None
        outputs = _outputs(model)
        return _end(model, outputs[chosen_output(list(outputs), view.output_name)])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UnsuitableError):
            raise
        return None, None


def _names(model: Mapping[str, Any]) -> list[str]:
    """Of all layers, those of models within the model included."""
    found: list[str] = []
    for layer in model["config"].get("layers", ()):
        found += _names(layer)
        found += [layer["config"]["name"]] if layer["class_name"] != "InputLayer" else []
    return found


def _outputs(model: Mapping[str, Any]) -> dict[str, str]:
    """The layer that each output comes from, by the output's name."""
    if model["class_name"] != "Functional":
        name = model["config"]["layers"][-1]["config"]["name"]
        return {name: name}
    given = model["config"]["output_layers"]
    if isinstance(given, dict):
        return {name: layer for name, (layer, _, _) in given.items()}
    return {layer: layer for layer, _, _ in ([given] if isinstance(given[0], str) else given)}


def _end(model: Mapping[str, Any], name: str) -> tuple[str | None, int | None]:
    """By the Dense that an output comes from. In a row of layers, one that keeps the shape may follow it."""
    layers = model["config"]["layers"]
    if model["class_name"] == "Functional":
        layers = [layer for layer in layers if layer["config"]["name"] == name]
    last = next(layer for layer in reversed(layers) if layer["class_name"] not in _KEEP_SHAPE)
    units = last["config"]["units"] if last["class_name"] == "Dense" else None
    if not isinstance(units, int):
        return None, None
    is_sigmoid = last["config"].get("activation") == "sigmoid"
    if units == 1:
        return (CLASSES, 2) if is_sigmoid else (None, None)
    return (None if last is not layers[-1] else LABELS if is_sigmoid else CLASSES), units
