"""What is used of a model: which of its outputs, or a layer's output as an embedding; for images of which size."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import one_line
from mnist_ray.models.anatomy import ending, unsuitable_ending
from mnist_ray.models.keras_private import calls, producer

CLASSES, LABELS, EMBEDDINGS = "classes", "labels", "embeddings"
"""What a model gives for an image: one class of several, each with a probability; any number of labels, each with a
score of its own; or a vector."""

_MOST_NAMES = 12
_PROBES = 8  # images of noise


class UnsuitableError(ValueError):
    """A model cannot be used so. The message is the end of a sentence about the model."""


@dataclass(frozen=True, kw_only=True)
class View:
    """The options of a scoring that choose a part of a model."""

    output_name: str | None = None
    """One of several outputs."""
    output_layer: str | None = None
    """A layer, also within models within the model, whose output is an embedding."""
    size: tuple[int, int] | None = None
    """(h, w) of the images, for a model that takes any."""
    kind: str | None = None
    """What the user says that the outputs are: classes or labels."""
    by_loss: str | None = None
    """What the loss of its training tells of them; None where the file has no such loss."""

    @property
    def is_whole(self) -> bool:
        """Whether the model is used as it is."""
        return self.output_name is None and self.output_layer is None

    @property
    def key(self) -> str:
        """What distinguishes it from other views of the same model; "" for the whole."""
        chosen = {"output": self.output_name, "layer": self.output_layer, "kind": self.kind}
        return " ".join(f"{kind} {name}" for kind, name in chosen.items() if name is not None)

    def of(self, model: Any) -> Any:
        """A model of one input, of a fixed size, and one output. Raises UnsuitableError."""
        if getattr(model, "inputs", None) is None or getattr(model, "outputs", None) is None:
            raise UnsuitableError("is not built; call it with images before it is saved")
        if len(model.inputs) != 1:
            raise UnsuitableError(f"has {len(model.inputs)} inputs; it must have one")
        if self.output_layer is not None:
            return self._fixed(_cut(model, self.output_layer))
        outputs = _named_outputs(model)
        name = chosen_output(list(outputs), self.output_name)
        return self._fixed(model if len(model.outputs) == 1 else _model(model, outputs[name]))

    def _fixed(self, model: Any) -> Any:
        """The model for images of one size."""
        import keras

        shape = tuple(model.inputs[0].shape[1:])
        if None not in (sized := self.sized(shape)) and sized != shape:
            image = keras.Input(sized, dtype=model.inputs[0].dtype)
            try:
                return keras.Model(image, model(image))
            except Exception as error:
                raise UnsuitableError(f"cannot take images of {sized} ({one_line(error)}); choose another") from error
        return model

    def sized(self, shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """The shape with the size in place of open sides."""
        if None not in shape[:2] or len(shape) < 2:
            return shape
        if self.size is None:
            raise UnsuitableError("takes images of any size; choose one by --resize HxW, such as --resize 224x224")
        return (*(given if side is None else side for side, given in zip(shape, self.size, strict=False)), *shape[2:])


def chosen_output(names: list[str], name: str | None) -> str:
    """The one that is meant. Raises UnsuitableError, with the names."""
    if name is None and len(names) > 1:
        raise UnsuitableError(f"has {len(names)} outputs; choose one by --output-name: {_listed(names)}")
    if name is not None and name not in names:
        raise UnsuitableError(f"has no output {name}; --output-name takes {_listed(names)}")
    return name or names[0]


def chosen_layer(names: Iterable[str], name: str) -> str:
    """Raises UnsuitableError, with similar names, where no layer is called so."""
    names = list(dict.fromkeys(names))
    if name not in names:
        near = difflib.get_close_matches(name, names, _MOST_NAMES, 0.4) or names[::-1]  # those near the end
        raise UnsuitableError(f"has no layer {name}; --output-layer takes one of its layers, such as {_listed(near)}")
    return name


def _listed(names: list[str]) -> str:
    """A file may call its layers anything."""
    more = f", ... ({len(names)})" if len(names) > _MOST_NAMES else ""
    return ", ".join(name[:80] if name.isprintable() else ascii(name)[:80] for name in names[:_MOST_NAMES]) + more


def _named_outputs(model: Any) -> dict[str, Any]:
    """By the keys of a dictionary, or by the names of the layers that they come from."""
    if len(model.outputs) > 1 and isinstance(model.output, dict):
        return dict(model.output)
    return {producer(tensor)[0].name: tensor for tensor in model.outputs}


def _model(model: Any, output: Any) -> Any:
    import keras

    return keras.Model(model.inputs[0], output)


def _cut(model: Any, name: str) -> Any:
    """The model up to a layer. Raises UnsuitableError where its output is not a vector."""
    found = _output_of(model, name)
    if found is None:
        raise UnsuitableError(_no_layer(model, name))
    shape = tuple(found.shape[1:])
    if len(shape) != 1 or shape[0] is None:
        vectors = [layer for layer, gives in _layers(model) if len(gives) == 1 and gives[0] is not None]
        raise UnsuitableError(
            f"gives {shape} per image at its layer {name}; --output-layer takes one that gives a vector, such as"
            f" {_listed(vectors[::-1])}"
        )
    return _model(model, found)


def _no_layer(model: Any, name: str) -> str:
    try:
        chosen_layer([layer for layer, _ in _layers(model)], name)
    except UnsuitableError as error:
        return str(error)
    raise AssertionError(name)


def _layers(model: Any) -> list[tuple[str, tuple[Any, ...]]]:
    """(name, shape of its output for an image) of every layer, those within models included."""
    import keras

    found: list[tuple[str, tuple[Any, ...]]] = []
    for operation, given, made in calls(model):
        if isinstance(operation, keras.Model):
            found += _layers(operation)
        if given:  # not the input itself
            found.append((operation.name, tuple(made[0].shape[1:])))
    return found


def _output_of(model: Any, name: str) -> Any | None:
    """The output of a layer as a tensor of this model; a model within it is cut off there."""
    import keras

    held = list(calls(model))
    for operation, given, made in held:
        if operation.name == name and given:
            return made[0]
    for operation, given, _ in held:
        if isinstance(operation, keras.Model) and len(given) == 1:
            inner = _output_of(operation, name)
            if inner is not None:
                return _model(operation, inner)(given[0])
    return None


WHOLE = View()


def input_shape(model: Any) -> tuple[int, ...]:
    """(h, w), (h, w, 1), (h, w, 3) or, for images fed flat, (n,). Raises UnsuitableError."""
    shape = tuple(model.inputs[0].shape[1:])
    is_image = len(shape) in (1, 2) or (len(shape) == 3 and shape[2] in (1, 3))
    if not is_image or None in shape:
        raise UnsuitableError(f"takes {shape}; it must take images: (h, w), (h, w, 1) or (h, w, 3)")
    return shape


# What a model gives.


@dataclass(frozen=True, kw_only=True)
class Head:
    """The end of a model, as it is used."""

    kind: str
    """classes, labels or embeddings."""
    num_outputs: int
    """Classes, labels or values of a vector."""
    gives_logits: bool = False


def head_of(model: Any, view: View) -> tuple[Any, Head]:
    """A model of one output, perhaps changed, and what it gives. Raises UnsuitableError where that is neither.

    One sigmoid is the probability of the second of two classes.
    """
    import keras

    shape = tuple(model.outputs[0].shape[1:])
    if len(shape) != 1 or shape[0] is None:
        raise UnsuitableError(f"gives {shape} per image; it must give one value per class")
    size, name = int(shape[0]), ending(model)
    if view.output_layer is not None:
        return model, Head(kind=EMBEDDINGS, num_outputs=size)
    kind = kind_of(view, size, name)
    if name != "sigmoid" and (other := unsuitable_ending(model)) is not None:
        raise UnsuitableError(f"ends in {other}; it must give logits, or end in softmax or sigmoid")
    if kind == CLASSES and size > 1:
        return model, Head(kind=CLASSES, num_outputs=size, gives_logits=not _gives_probabilities(model, name))
    scores = model.outputs[0]
    if name == "linear" or (not name and not _are_shares(_of_noise(model))):
        scores = keras.ops.sigmoid(scores)
    if kind == LABELS:
        return _model(model, scores), Head(kind=LABELS, num_outputs=size)
    return _model(model, keras.ops.concatenate([1 - scores, scores], axis=-1)), Head(kind=CLASSES, num_outputs=2)


def kind_of(view: View, size: int, name: str) -> str:
    """Whether a model that ends in the activation `name` gives classes or labels. Raises UnsuitableError where it is
    neither, or not what the user says."""
    if name == "sigmoid":
        if size > 1 and view.kind == CLASSES:
            raise UnsuitableError("ends in sigmoid: its scores are no probabilities of classes; leave out --kind")
        return LABELS if size > 1 else view.kind or CLASSES
    if name not in ("", "linear"):
        if size == 1:
            raise UnsuitableError("gives 1 value per image; it must give one value per class, or end in sigmoid")
        if view.kind == LABELS:
            raise UnsuitableError(f"ends in {name}, which does not give labels their scores; leave out --kind")
        return CLASSES
    if size == 1 and view.kind is None and view.by_loss != LABELS:
        raise UnsuitableError(
            "gives 1 value per image; it must give one value per class, or end in sigmoid (if it is the logit of the"
            " second of two classes, add --kind classes)"
        )
    return view.kind or (view.by_loss if size > 1 else None) or CLASSES


def _gives_probabilities(model: Any, name: str) -> bool:
    """Where the last operation has no activation, such as the Average of an ensemble, its outputs for noise tell."""
    if name:
        return name == "softmax"
    outputs = _of_noise(model)
    if not _are_shares(outputs):
        return False
    if not np.allclose(outputs.sum(axis=1), 1, atol=1e-3):
        raise UnsuitableError(
            "gives values from 0 to 1 that do not add up to 1: neither logits nor probabilities (if they are scores of"
            " labels, add --kind labels)"
        )
    return True


def _of_noise(model: Any) -> NDArray[np.float64]:
    shape = (_PROBES, *model.inputs[0].shape[1:])
    noise = np.random.default_rng(0).uniform(0, 1, (2, *shape)) * np.array([1, 255]).reshape(2, *[1] * len(shape))
    return np.asarray(model(noise.reshape(-1, *shape[1:]).astype(np.float32), training=False), np.float64)


def _are_shares(outputs: NDArray[np.float64]) -> bool:
    return bool(((outputs >= 0) & (outputs <= 1)).all())
