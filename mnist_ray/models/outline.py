"""What a model's file says of it without Keras, so that what cannot work is refused before Ray is started."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mnist_ray.errors import InputError
from mnist_ray.models import legacy, users
from mnist_ray.models.files import ModelRecord, check_named, locate, read
from mnist_ray.models.trial import try_architecture
from mnist_ray.models.vetting import CONFIG, open_archive, read_member, vetted_config
from mnist_ray.models.view import (
    CLASSES,
    EMBEDDINGS,
    LABELS,
    WHOLE,
    UnsuitableError,
    View,
    chosen_layer,
    chosen_output,
    kind_of,
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
    by_loss: str | None = None
    """What the loss of its training tells of its outputs: classes or labels."""
    is_of_run: bool = False
    """Whether we have trained it."""


def outline(
    location: Location, view: View = WHOLE, architecture: str | None = None, *, counts: bool = False
) -> Outline:
    """Of a run's folder, a model's folder or a file. Raises InputError where it can already be seen that it is not a
    sound model, that it would run code, or that it has no such part.

    architecture: what the user says that a run's model was trained with; it is tried in another process. counts: the
    number of classes is needed: where the layers do not tell it, a file is loaded in another process.
    """
    archive, meta = locate(location)
    data, found, record = read(archive, meta)
    check_named(location, archive, record, architecture)
    if record is not None:
        if architecture is not None:
            try_architecture(record.recipe)
        return _of_run(archive, data, record, view)
    model, loss = legacy.vetted_config(archive, data) if legacy.is_hdf5(data) else vetted_config(archive, data)
    image = _input_shape(model)
    if image is not None and len(image) not in (1, 2, 3):
        raise InputError(f"the model in {archive} takes {image}; it must take images: (h, w), (h, w, 1) or (h, w, 3)")
    with users.naming(archive):
        view = replace(view, by_loss=_by_loss(model, loss, view))
        kind, num_classes = _given(model, view)
    if counts and num_classes is None:
        kind, num_classes = users.look(archive, data, view)
    return Outline(sha256=found, input_shape=image, kind=kind, num_classes=num_classes, by_loss=view.by_loss)


def _of_run(archive: Location, data: bytes, record: ModelRecord, view: View) -> Outline:
    recipe = record.recipe
    known = Outline(
        sha256=record.sha256,
        input_shape=recipe.image_shape if recipe.is_ours else None,  # others may take gray images with a channel
        by_loss=CLASSES,
        is_of_run=True,
    )
    with users.naming(archive):
        if view.kind == LABELS:
            raise UnsuitableError("was trained to tell one class of several; leave out --kind")
        if view.is_whole:
            return replace(known, kind=CLASSES, num_classes=recipe.num_classes, classes=record.classes)
        kind, _ = _given(json.loads(read_member(archive, open_archive(archive, data), CONFIG)), view)
        return replace(known, kind=kind)


def _input_shape(model: Mapping[str, Any]) -> tuple[int | None, ...] | None:
    """Of the only input. None where there are several."""
    try:
        inputs = [layer["config"] for layer in model["config"]["layers"] if layer["class_name"] == "InputLayer"]
        (shape,) = [tuple(each.get("batch_shape") or each["batch_input_shape"])[1:] for each in inputs]
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return shape if all(side is None or isinstance(side, int) for side in shape) else None


def _given(model: Mapping[str, Any], view: View) -> tuple[str | None, int | None]:
    """(kind, number of classes) of a view of a model, each None where it is not clear. Raises UnsuitableError."""
    try:
        if view.output_layer is not None:
            chosen_layer(_names(model), view.output_layer)
            return EMBEDDINGS, None
        outputs = _outputs(model)
        return _end(model, outputs[chosen_output(list(outputs), view.output_name)], view)
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


def _end(model: Mapping[str, Any], name: str, view: View) -> tuple[str | None, int | None]:
    """By the Dense that an output comes from. In a row of layers, one that keeps the shape may follow it."""
    layers = model["config"]["layers"]
    if model["class_name"] == "Functional":
        layers = [layer for layer in layers if layer["config"]["name"] == name]
    last = next(layer for layer in reversed(layers) if layer["class_name"] not in _KEEP_SHAPE)
    is_last = last is layers[-1]
    if "layers" in last["config"]:  # a model within the model
        (inner,) = _outputs(last).values()
        kind, num_classes = _end(last, inner, view)
        return kind if is_last else None, num_classes
    units = last["config"]["units"] if last["class_name"] == "Dense" else None
    activation = last["config"].get("activation") or "linear"
    if not isinstance(units, int) or not isinstance(activation, str):
        return None, None
    if not is_last:
        return None, units if units > 1 else None
    kind = kind_of(view, units, activation)
    return kind, 2 if kind == CLASSES and units == 1 else units


def _by_loss(model: Mapping[str, Any], loss: Any, view: View) -> str | None:
    """What the loss of a training tells of the output that it was of: labels, where it was the binary cross-entropy of
    logits. Raises UnsuitableError where there is no such output."""
    if view.output_layer is not None:
        return None
    try:
        names = list(_outputs(model))
        chosen = _of_output(loss, names, chosen_output(names, view.output_name))
        kind, config = (chosen["class_name"], chosen["config"]) if isinstance(chosen, dict) else (chosen, {})
        kind = str(config if kind == "function" else kind).replace("_", "").lower()
        is_of_logits = isinstance(config, dict) and config.get("from_logits") is True
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UnsuitableError):
            raise
        return None
    if kind.endswith(("categoricalcrossentropy", "categoricalfocalcrossentropy")):
        return CLASSES
    return LABELS if kind in ("binarycrossentropy", "binaryfocalcrossentropy") and is_of_logits else None


def _of_output(loss: Any, names: list[str], name: str) -> Any:
    """The loss of an output, of one for all, of a list in the order of the outputs, or by their names."""
    if isinstance(loss, list):
        return loss[names.index(name)]
    return loss[name] if isinstance(loss, dict) and set(loss) & set(names) else loss
