"""What a Keras model takes and gives, read from its layers: images, pixels, logits or probabilities, precision."""

from __future__ import annotations

from typing import Any

from mnist_ray.models.runtime import POLICIES

RAW, UNIT = "0-255", "0-1"
"""What a model takes: raw pixels, or pixels / 255."""


def is_functional(model: Any) -> bool:
    return getattr(model, "outputs", None) is not None and hasattr(model, "input_shape")


def shape_problem(model: Any) -> str | None:
    """What keeps a model from taking images and giving one row of values each."""
    if getattr(model, "inputs", None) is None or getattr(model, "outputs", None) is None:
        return "is not built; call it with images before it is saved"
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        return f"has {len(model.inputs)} inputs and {len(model.outputs)} outputs; it must have one each"
    takes, gives = tuple(model.inputs[0].shape[1:]), tuple(model.outputs[0].shape[1:])
    if None in takes or len(takes) not in (2, 3) or (len(takes) == 3 and takes[2] not in (1, 3)):
        return f"takes {takes}; it must take images: (h, w), (h, w, 1) or (h, w, 3)"
    if len(gives) != 1 or gives[0] is None:
        return f"gives {gives} an image; it must give one value a class"
    return None


def fits(image_shape: tuple[int, ...], input_shape: tuple[int, ...]) -> bool:
    """Whether a model takes such images; gray ones are given a channel where it wants one."""
    return input_shape == image_shape or (len(image_shape) == 2 and input_shape == (*image_shape, 1))


# Looking at a model.


def ends_in_softmax(model: Any) -> bool:
    """Whether a model's outputs are probabilities already; nested models are looked into."""
    return _ends_in_softmax(model, 0)


def _ends_in_softmax(operation: Any, depth: int) -> bool:
    import keras

    if isinstance(operation, keras.Model):
        outputs = getattr(operation, "outputs", None)
        if outputs:
            return _gives_softmax(outputs[0], depth)
        return bool(operation.layers) and _ends_in_softmax(operation.layers[-1], depth)
    # keras.ops.softmax is an operation of the same name as the layer.
    return type(operation).__name__ == "Softmax" or getattr(operation, "activation", None) is keras.activations.softmax


def _gives_softmax(tensor: Any, depth: int) -> bool:

    operation, node_index, _ = tensor._keras_history
    if _ends_in_softmax(operation, depth):
        return True
    return _passes_on(operation) and _gives_softmax(operation._inbound_nodes[node_index].input_tensors[0], depth)


def _passes_on(operation: Any) -> bool:
    """Whether a layer leaves the values as they are."""
    import keras

    return isinstance(operation, (keras.layers.Identity, keras.layers.Reshape, keras.layers.Flatten)) or (
        isinstance(operation, keras.layers.Activation) and operation.activation is keras.activations.linear
    )


_FITTING = {"linear", "softmax", "log_softmax"}  # Softmax on log_softmax is that softmax
_OTHERS = {"sigmoid", "hardsigmoid", "tanh", "relu", "softplus"}  # as layers or operations of their own


def odd_ending(model: Any) -> str | None:
    """The activation that a model ends in, where that gives neither logits nor softmax."""
    import keras

    tensor = model.outputs[0]
    while True:
        operation, node_index, _ = tensor._keras_history
        if isinstance(operation, keras.Model) and getattr(operation, "outputs", None):
            tensor = operation.outputs[0]
        elif _passes_on(operation):
            tensor = operation._inbound_nodes[node_index].input_tensors[0]
        else:
            break
    activation = getattr(operation, "activation", None)
    if activation is not None:
        name = getattr(activation, "__name__", type(activation).__name__)
        return None if name in _FITTING else name
    kind = type(operation).__name__.lower()
    return kind if kind in _OTHERS else None


def takes_raw_pixels(model: Any) -> bool:
    """Whether a model rescales pixels itself: it starts with Rescaling or Normalization."""
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.Model):
            return takes_raw_pixels(layer)
        if not isinstance(layer, (keras.layers.InputLayer, keras.layers.Reshape, keras.layers.Flatten)):
            return isinstance(layer, (keras.layers.Rescaling, keras.layers.Normalization))
    return False


def pixels_of(model: Any) -> str:
    """What a model is trained on and asked with: raw pixels (0-255) if it rescales them itself, else pixels / 255."""
    return RAW if takes_raw_pixels(model) else UNIT


def feed(images: Any, pixels: str) -> Any:
    """A uint8 tensor of images as a model wants it: as it is, or (0-1) divided by 255."""
    import keras
    import tensorflow as tf

    return tf.cast(images, keras.config.floatx()) / 255 if pixels == UNIT else images


def recast(classifier: Any, precision: str) -> Any:
    """The same model and weights, computed in another precision.

    bfloat16 has three digits: neither what scales the pixels (1/255 has more) nor what gives the outputs is in it.
    """
    import keras

    last = classifier
    while hasattr(last, "layers"):
        last = last.outputs[0]._keras_history.operation
    for layer in classifier._flatten_layers(include_self=False, recursive=True):
        exact = layer is last or isinstance(layer, (keras.layers.Rescaling, keras.layers.Normalization))
        policy = "float32" if exact and precision == "bfloat16" else POLICIES[precision]
        layer.dtype_policy = keras.dtype_policies.get(policy)
    return classifier


def precision_of(classifier: Any) -> str:
    """Of what it computes; of the narrowest where layers differ on purpose."""
    kinds = {layer.compute_dtype for layer in classifier._flatten_layers(include_self=False, recursive=True)}
    return next(kind for kind in ("float16", "bfloat16", "float64", "float32") if kind in kinds)


def probability_model(classifier: Any) -> Any:
    """The classifier with Softmax on top; unless its outputs are probabilities already."""
    import keras

    if ends_in_softmax(classifier):
        return classifier
    return keras.Sequential([classifier, keras.layers.Softmax()], name="probabilities")
