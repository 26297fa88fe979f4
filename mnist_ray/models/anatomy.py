"""What a Keras model takes and outputs, read from its layers: images, logits or probabilities, precision."""

from __future__ import annotations

import math
from typing import Any

from mnist_ray.models.keras_private import all_layers, first_input, producer
from mnist_ray.models.runtime import POLICIES


def is_functional(model: Any) -> bool:
    """Whether a model's inputs and outputs are known without calling it."""
    return getattr(model, "outputs", None) is not None and hasattr(model, "input_shape")


def shape_problem(model: Any) -> str | None:
    """Why a model cannot take images and output one row of values for each, as the end of a sentence; else None."""
    if getattr(model, "inputs", None) is None or getattr(model, "outputs", None) is None:
        return "is not built; call it with images before it is saved"
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        return f"has {len(model.inputs)} inputs and {len(model.outputs)} outputs; it must have one each"
    image, output = tuple(model.inputs[0].shape[1:]), tuple(model.outputs[0].shape[1:])
    if None in image or len(image) not in (2, 3) or (len(image) == 3 and image[2] not in (1, 3)):
        return f"takes {image}; it must take images: (h, w), (h, w, 1) or (h, w, 3)"
    if len(output) != 1 or output[0] is None:
        return f"gives {output} per image; it must give one value per class"
    return None


def fits(image_shape: tuple[int, ...], input_shape: tuple[int, ...]) -> bool:
    """Whether a model takes images of this shape; gray images are given a channel where it needs one, and all images
    are fed flat, row by row, where it takes so many numbers."""
    return input_shape in (image_shape, (math.prod(image_shape),)) or (*image_shape, 1) == input_shape


# The end of a model.


def ends_in_softmax(operation: Any) -> bool:
    """Whether the outputs of a model (or layer) are probabilities already; models within models are followed."""
    import keras

    if isinstance(operation, keras.Model):
        outputs = getattr(operation, "outputs", None)
        if outputs:
            return _comes_from_softmax(outputs[0])
        return bool(operation.layers) and ends_in_softmax(operation.layers[-1])
    # keras.ops.softmax is an operation of the same name as the layer.
    return type(operation).__name__ == "Softmax" or getattr(operation, "activation", None) is keras.activations.softmax


def _comes_from_softmax(tensor: Any) -> bool:
    operation, call = producer(tensor)
    if ends_in_softmax(operation):
        return True
    return _keeps_values(operation) and _comes_from_softmax(first_input(operation, call))


def _keeps_values(operation: Any) -> bool:
    """Whether a layer outputs the values that it is given."""
    import keras

    return isinstance(operation, (keras.layers.Identity, keras.layers.Reshape, keras.layers.Flatten)) or (
        isinstance(operation, keras.layers.Activation) and operation.activation is keras.activations.linear
    )


_SUITABLE = {"linear", "softmax", "log_softmax"}  # the softmax of log_softmax is that softmax
_OPERATIONS = {"softmax", "sigmoid", "hardsigmoid", "tanh", "relu", "softplus"}  # as layers or operations of their own


def ending(model: Any) -> str:
    """The name of the activation that a model ends in, such as linear or sigmoid. "" where its last operation has none,
    such as an Average of other outputs."""
    import keras

    tensor = model.outputs[0]
    while True:
        operation, call = producer(tensor)
        if isinstance(operation, keras.Model) and getattr(operation, "outputs", None):
            tensor = operation.outputs[0]
        elif _keeps_values(operation):
            tensor = first_input(operation, call)
        else:
            break
    activation = getattr(operation, "activation", None)
    if activation is not None:
        return str(getattr(activation, "__name__", type(activation).__name__))
    kind = type(operation).__name__.lower()
    return kind if kind in _OPERATIONS else ""


def unsuitable_ending(model: Any) -> str | None:
    """The activation that a model ends in, where its outputs are neither logits nor a softmax."""
    name = ending(model)
    return name if name and name not in _SUITABLE else None


# Precision.


def recast(classifier: Any, precision: str) -> Any:
    """Make a model compute in another precision, in place, and return it. The weights stay.

    bfloat16 has three digits, too few for 1/255 and for the outputs: layers that scale the pixels, and the last layer,
    stay in float32.
    """
    import keras

    last = classifier
    while hasattr(last, "layers"):
        last, _ = producer(last.outputs[0])
    for layer in all_layers(classifier):
        exact = layer is last or isinstance(layer, (keras.layers.Rescaling, keras.layers.Normalization))
        policy = keras.dtype_policies.get("float32" if exact and precision == "bfloat16" else POLICIES[precision])
        layer.dtype_policy = _with_weights_as_they_are(policy, layer)
    return classifier


def _with_weights_as_they_are(policy: Any, layer: Any) -> Any:
    """The policy with the dtype that the layer's weights have: Keras casts weights only where that is another than the
    layer computes in, and TensorFlow convolves no float32 with float64."""
    import keras

    dtypes = {each.dtype for each in layer.variables if keras.backend.is_float_dtype(each.dtype)}
    if not dtypes or policy.variable_dtype in dtypes:
        return policy

    class OfWeights(keras.dtype_policies.DTypePolicy):  # type: ignore[misc]
        variable_dtype = dtypes.pop()

    return OfWeights(policy.name)


def precision_of(classifier: Any) -> str:
    """The narrowest dtype that a model's layers compute in; they may differ on purpose."""
    kinds = {layer.compute_dtype for layer in all_layers(classifier)}
    return next(kind for kind in ("float16", "bfloat16", "float64", "float32") if kind in kinds)


def probability_model(classifier: Any) -> Any:
    """The classifier with Softmax on top; itself where its outputs are probabilities already."""
    import keras

    if ends_in_softmax(classifier):
        return classifier
    return keras.Sequential([classifier, keras.layers.Softmax()], name="probabilities")
