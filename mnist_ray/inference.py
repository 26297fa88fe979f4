"""Asking a loaded classifier: logits and probabilities of uint8 images, in blocks of one shape; and what they cost."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import InputError
from mnist_ray.model import Loaded, ends_in_softmax, feed, fits

_MOST_ROWS = 4096
_ACTIVATION_BYTES = 32 << 20  # of a block's layers: what is larger falls out of the caches
_KERAS_EPSILON = 1e-7


class Inference:
    """The compiled function of one classifier, for images of one shape."""

    def __init__(self, loaded: Loaded, image_shape: tuple[int, ...], *, most_rows: int, pixels: str | None = None):
        """most_rows: of one call. pixels: 0-255 or 0-1; what the model says when None.

        Raises InputError where the model takes other images.
        """
        check_images(loaded, image_shape)
        import tensorflow as tf

        self.loaded = loaded
        self.pixels = pixels or loaded.pixels
        self.gives_probabilities = ends_in_softmax(loaded.classifier)
        self.block_rows = block_rows(loaded.classifier, most_rows)
        # One shape, one trace: tails are padded.
        shape = tf.TensorSpec((self.block_rows, *loaded.input_shape), tf.uint8)
        self._forward = tf.function(self._model, input_signature=[shape], autograph=False)

    def _model(self, images: Any) -> tuple[Any, Any]:
        """Outputs in the model's precision, and probabilities in float32."""
        import tensorflow as tf

        outputs = self.loaded.classifier(feed(images, self.pixels), training=False)
        if outputs.dtype not in (tf.float32, tf.float64):
            outputs = tf.cast(outputs, tf.float32)
        probabilities = outputs if self.gives_probabilities else tf.nn.softmax(outputs)
        return outputs, tf.cast(probabilities, tf.float32)

    def __call__(self, images: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """(n, h, w[, 3]) → outputs (n, num_classes), logits unless the model ends in softmax; probabilities alike."""
        import tensorflow as tf

        rows, size = len(images), self.block_rows
        images = images.reshape(rows, *self.loaded.input_shape)
        is_wide = self.loaded.classifier.outputs[0].dtype == "float64"
        outputs: NDArray[Any] = np.empty((rows, self.loaded.num_classes), np.float64 if is_wide else np.float32)
        probabilities = np.empty((rows, self.loaded.num_classes), np.float32)
        for start in range(0, rows, size):
            block = images[start : start + size]
            held = len(block)
            if held < size:
                block = np.concatenate([block, np.zeros((size - held, *block.shape[1:]), np.uint8)])
            given, chances = self._forward(tf.constant(block))
            outputs[start : start + held] = given.numpy()[:held]
            probabilities[start : start + held] = chances.numpy()[:held]
        return outputs, probabilities

    def warm_up(self) -> None:
        """Trace, so that the first block is as quick as the others."""
        self(np.zeros((1, *self.loaded.input_shape), np.uint8))

    def losses(self, outputs: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n,) cross-entropy of each row in float64, as Keras defines it; 0 where the label is unknown (-1)."""
        wide = outputs.astype(np.float64)
        if self.gives_probabilities:
            wide = np.log(np.clip(wide, _KERAS_EPSILON, 1 - _KERAS_EPSILON))
        highest = wide.max(axis=1)
        total = np.log(np.exp(wide - highest[:, None]).sum(axis=1)) + highest
        losses: NDArray[np.float64] = total - wide[np.arange(len(wide)), np.maximum(labels, 0)]
        losses[labels < 0] = 0
        return losses


def look(loaded: Loaded, image: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Outputs and probabilities of a single image (h, w[, 3])."""
    outputs, probabilities = Inference(loaded, image.shape, most_rows=1)._model(image.reshape(1, *loaded.input_shape))
    return outputs[0].numpy().tolist(), probabilities[0].numpy().tolist()


def check_images(loaded: Loaded, image_shape: tuple[int, ...]) -> None:
    """Raises InputError where the model takes other images."""
    if not fits(image_shape, loaded.input_shape):
        raise InputError(f"the images are {image_shape}, but the model takes {loaded.input_shape}; give it such images")


def block_rows(model: Any, most_rows: int) -> int:
    """Rows of a block: a power of two, no more than needed, whose layers' outputs stay in the caches."""
    values = sum(math.prod(side or 1 for side in layer.output.shape[1:]) for layer in _leaves(model))
    fitting = max(1, min(_MOST_ROWS, _ACTIVATION_BYTES // (4 * values)))
    needed = 1 << (max(most_rows, 1) - 1).bit_length()
    return min(1 << (fitting.bit_length() - 1), needed)


def _leaves(model: Any) -> list[Any]:
    """Layers that are no models, with an output of their own."""
    found: list[Any] = []
    for layer in model.layers:
        if hasattr(layer, "layers"):
            found += _leaves(layer)
        elif hasattr(getattr(layer, "output", None), "shape"):
            found.append(layer)
    return found


def label_table(
    source_classes: tuple[str, ...], model_classes: tuple[str, ...] | None, num_classes: int
) -> NDArray[np.int64]:
    """(len(source_classes),): the model's class of each label of the input, -1 where the model has none such.

    By name where the model knows names; else by number. Raises InputError where neither can be right.
    """
    numbered = source_classes == tuple(map(str, range(len(source_classes))))
    shared = set(source_classes) & set(model_classes or ())
    if model_classes and shared:
        numbers = {name: number for number, name in enumerate(model_classes)}
        return np.array([numbers.get(name, -1) for name in source_classes], np.int64)
    if model_classes and source_classes and not numbered:
        raise InputError(
            f"the input's classes ({_some(source_classes)}) are none of the model's ({_some(model_classes)}); name its"
            " folders so, or put the images into no class folder to score them without labels"
        )
    if numbered or len(source_classes) == num_classes:
        return np.array([number if number < num_classes else -1 for number in range(len(source_classes))], np.int64)
    if all(name.isdecimal() for name in source_classes):
        return np.array([int(name) if int(name) < num_classes else -1 for name in source_classes], np.int64)
    raise InputError(
        f"the input has {len(source_classes)} classes ({_some(source_classes)}), but the model {num_classes} without"
        " names; give it folders of all classes, or put the images into no class folder to score them without labels"
    )


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
