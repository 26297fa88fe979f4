"""Asking a loaded classifier: logits and probabilities of uint8 images, in blocks of one shape; and what they cost."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import InputError
from mnist_ray.models.anatomy import ends_in_softmax, feed, fits
from mnist_ray.models.files import Loaded
from mnist_ray.sources.pixels import options

_MOST_ROWS = 1024  # of more, the layers' outputs leave the second cache
_LAYER_BYTES = 32 << 20  # of its input and output: what is larger falls out of the caches
_MOST_CONSTANT = 1 << 16  # weights of a variable
_KERAS_EPSILON = 1e-7
_TRY_SECONDS = 0.15  # for each way that is tried
_WORTH_SECONDS = 20.0  # of one core for the whole job: compiling and trying take two or three


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a model is computed. One way gives the same bytes again on the same type of CPU."""

    jit: bool
    """Compiled by XLA. It helps one model and hurts another."""
    batch_size: int
    """Rows of a call; the last is padded, so that there is one shape."""


class Inference:
    """The compiled function of one classifier, for images of one shape."""

    def __init__(
        self,
        loaded: Loaded,
        image_shape: tuple[int, ...],
        *,
        most_rows: int,
        pixels: str | None = None,
        way: Way | None = None,
    ) -> None:
        """most_rows: of one call. pixels: 0-255 or 0-1; what the model says when None. way: the usual one when None.

        Raises InputError where the model takes other images.
        """
        check_images(loaded, image_shape)
        self.loaded, self._image_shape = loaded, image_shape
        self.pixels = pixels or loaded.pixels
        self.gives_probabilities = ends_in_softmax(loaded.classifier)
        self.way = way or Way(jit=False, batch_size=block_rows(loaded.classifier, most_rows))
        self._traced: Any = None  # not sooner than it is asked: the cost belongs to whoever computes

    def again(self, way: Way | None = None) -> Inference:
        """Another function of the same model: traced anew, computed another way."""
        return Inference(self.loaded, self._image_shape, most_rows=1, pixels=self.pixels, way=way or self.way)

    def _trace(self) -> Any:
        """The compiled function of a block. Small weights are constants in it, so that TensorFlow folds a batch
        normalization into the convolution before it. Large ones would gain little and take ten times their memory."""
        import tensorflow as tf

        model = self.loaded.classifier
        # Read here: within a graph nothing has a value.
        small = {id(each): each.numpy() for each in model.variables if math.prod(each.shape) <= _MOST_CONSTANT}

        def values(variables: list[Any]) -> list[Any]:
            return [tf.constant(small[id(each)]) if id(each) in small else each.value for each in variables]

        def forward(images: Any) -> tuple[Any, Any]:
            weights = values(model.trainable_variables), values(model.non_trainable_variables)
            return self._with_probabilities(
                model.stateless_call(*weights, feed(images, self.pixels), training=False)[0]
            )

        compiled = tf.function(forward, autograph=False, jit_compile=True if self.way.jit else None)
        return compiled.get_concrete_function(tf.TensorSpec((self.way.batch_size, *self.loaded.input_shape), tf.uint8))

    def _with_probabilities(self, outputs: Any) -> tuple[Any, Any]:
        """Outputs in the model's precision, at least float32, and probabilities alike."""
        import tensorflow as tf

        if outputs.dtype not in (tf.float32, tf.float64):
            outputs = tf.cast(outputs, tf.float32)
        return outputs, outputs if self.gives_probabilities else tf.nn.softmax(outputs)

    def __call__(self, images: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
        """(n, h, w[, 3]) → outputs (n, num_classes), logits unless the model ends in softmax; probabilities alike."""
        import tensorflow as tf

        self._traced = self._traced or self._trace()
        rows, size = len(images), self.way.batch_size
        images = images.reshape(rows, *self.loaded.input_shape)
        kind = self._traced.output_dtypes[0].as_numpy_dtype
        outputs, probabilities = (np.empty((rows, self.loaded.num_classes), kind) for _ in range(2))
        for start in range(0, rows, size):
            block = images[start : start + size]
            held = len(block)
            if held < size:
                block = np.concatenate([block, np.zeros((size - held, *block.shape[1:]), np.uint8)])
            given, chances = self._traced(tf.constant(block))
            outputs[start : start + held] = given.numpy()[:held]
            probabilities[start : start + held] = chances.numpy()[:held]
        return outputs, probabilities

    def warm_up(self) -> None:
        """Trace and compile, so that the first block is as quick as the others."""
        self(np.zeros((1, *self.loaded.input_shape), np.uint8))

    def losses(
        self,
        outputs: NDArray[Any],
        probabilities: NDArray[Any],
        predictions: NDArray[np.int64],
        labels: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """(n,) cross-entropy of each row, as Keras defines it; 0 where the label is unknown (-1)."""
        rows, labelled = np.arange(len(outputs)), np.maximum(labels, 0)
        losses: NDArray[np.float64]
        if self.gives_probabilities:
            wide = np.log(np.clip(outputs.astype(np.float64), _KERAS_EPSILON, 1 - _KERAS_EPSILON))
            losses = np.log(np.exp(wide).sum(axis=1)) - wide[rows, labelled]
        else:
            # The sum of the exponentials follows from the softmax that is there already: a third of the time.
            gap = outputs[rows, predictions].astype(np.float64) - outputs[rows, labelled]
            losses = gap - np.log(probabilities[rows, predictions].astype(np.float64))
        losses[labels < 0] = 0
        return losses


def fastest(
    usual: Inference,
    images: NDArray[np.uint8],
    *,
    most_rows: int,
    total_rows: int,
    jit: bool | None = None,
    batch_size: int | None = None,
) -> Inference:
    """The same model by the way that is fastest on these images, measured for a moment.

    images (n, h, w[, 3]): a sample of the input. total_rows: of the job. jit, batch_size: what is given is not varied.
    The usual way where measuring would take longer than it could save.
    """
    fitting = block_rows(usual.loaded.classifier, most_rows)
    around = dict.fromkeys((fitting, max(1, fitting // 2), min(2 * fitting, _power(most_rows))))
    sizes = [batch_size] if batch_size else list(around)
    ways = [Way(jit=each, batch_size=size) for each in ((False, True) if jit is None else (jit,)) for size in sizes]
    first = usual.again(ways[0])
    if len(ways) == 1 or not len(images):
        return first
    sample = np.resize(images, (max(sizes), *images.shape[1:]))

    def seconds(each: Inference) -> float:
        began = time.perf_counter()
        each(sample)
        return time.perf_counter() - began

    first.warm_up()
    if min(seconds(first), seconds(first)) * total_rows / len(sample) < _WORTH_SECONDS:
        return first
    tried = [first, *(usual.again(way) for way in ways[1:])]
    for each in tried:
        each.warm_up()
    best = [math.inf] * len(tried)
    deadline = time.perf_counter() + _TRY_SECONDS * len(tried)
    while math.inf in best or time.perf_counter() < deadline:  # in turn: what disturbs one disturbs the others
        best = [min(before, seconds(each)) for before, each in zip(best, tried, strict=True)]
    return tried[best.index(min(best))]


def has_bfloat16() -> bool:
    """Whether this CPU has instructions for it; without them it is slower than float32. True where nobody can tell."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return True
    return not flags or bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))


def look(loaded: Loaded, image: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Outputs and probabilities of a single image (h, w[, 3])."""
    ask = Inference(loaded, image.shape, most_rows=1)
    fed = feed(image.reshape(1, *loaded.input_shape), ask.pixels)
    outputs, probabilities = ask._with_probabilities(loaded.classifier(fed, training=False))
    return outputs[0].numpy().tolist(), probabilities[0].numpy().tolist()


def check_images(loaded: Loaded, image_shape: tuple[int, ...]) -> None:
    """Raises InputError where the model takes other images."""
    fitting_shape(loaded, (image_shape,))


def fitting_shape(loaded: Loaded, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The first of the shapes found in an input that the model takes: images of others are then set aside.

    Raises InputError where it takes none, which names the options that convert them.
    """
    for shape in shapes:
        if fits(shape, loaded.input_shape):
            return shape
    wanted = loaded.input_shape[:-1] if loaded.input_shape[-1:] == (1,) else loaded.input_shape
    remedy = options(shapes[0], wanted) if len(wanted) in (2, 3) else ""
    raise InputError(
        f"the images are {shapes[0]}, but the model takes {loaded.input_shape}; give {remedy or 'it such images'}"
    )


def block_rows(model: Any, most_rows: int) -> int:
    """Rows of a block: a power of two, no more than needed, for which a layer's input and output stay in the caches."""
    largest: int = max(math.prod(side or 1 for side in layer.output.shape[1:]) for layer in _leaves(model))
    fitting = max(1, min(_MOST_ROWS, _LAYER_BYTES // (2 * 4 * largest)))
    return min(1 << (fitting.bit_length() - 1), _power(most_rows))


def _power(rows: int) -> int:
    """The power of two that holds them."""
    return 1 << (max(rows, 1) - 1).bit_length()


def _leaves(model: Any) -> list[Any]:
    """Layers that are no models, with an output of their own."""
    found: list[Any] = []
    for layer in model.layers:
        if hasattr(layer, "layers"):
            found += _leaves(layer)
        elif hasattr(getattr(layer, "output", None), "shape"):
            found.append(layer)
    return found
