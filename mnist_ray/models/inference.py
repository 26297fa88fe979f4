"""Compute with a loaded classifier: logits and probabilities of uint8 images, in batches of one shape, and losses."""

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
from mnist_ray.models.anatomy import ends_in_softmax, fits
from mnist_ray.models.files import Loaded
from mnist_ray.models.pixels import RAW, UNIT, feed
from mnist_ray.sources.pixels import options

_MAX_ROWS = 1024  # of a batch; with more, the layers' outputs do not fit the second-level cache
_MAX_LAYER_BYTES = 32 << 20  # of a layer's input or output: larger ones do not fit the caches
_MAX_CONSTANT = 1 << 16  # weights of a variable that becomes a constant
_KERAS_EPSILON = 1e-7
_TRIAL_SECONDS = 0.15  # for each execution that is tried
_MIN_JOB_SECONDS = 20.0  # of one core for the whole job; below, two or three seconds of trials are not worth it


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a model is computed. The same execution gives the same bytes on the same type of CPU."""

    jit: bool
    """Whether XLA compiles it; that is faster for one model and slower for another."""
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
        execution: Execution | None = None,
    ) -> None:
        """most_rows: of one call. pixels: 0-255 or 0-1; None for the model's. execution: None for the default.

        Raises InputError where the model takes other images, or its pixels are unknown.
        """
        check_images(loaded, image_shape)
        self.loaded, self._image_shape = loaded, image_shape
        self.pixels = _known(pixels or loaded.pixels, loaded)
        self.gives_probabilities = ends_in_softmax(loaded.classifier)
        self.execution = execution or Execution(jit=False, batch_size=default_batch_size(loaded.classifier, most_rows))
        self._traced: Any = None  # traced in the first call: it takes seconds

    def retraced(self, execution: Execution | None = None) -> Inference:
        """Another function of the same model, traced anew, with the same execution or another one."""
        execution = execution or self.execution
        return Inference(self.loaded, self._image_shape, most_rows=1, pixels=self.pixels, execution=execution)

    def _trace(self) -> Any:
        """The compiled function of a batch: uint8 images → (outputs, probabilities).

        Small weights are constants in it, so that TensorFlow folds a batch normalization into the convolution before
        it. As constants, large ones would gain little and take ten times their memory.
        """
        import tensorflow as tf

        model = self.loaded.classifier
        # Read here: variables have no values within a graph.
        small = {id(each): each.numpy() for each in model.variables if math.prod(each.shape) <= _MAX_CONSTANT}

        def values(variables: list[Any]) -> list[Any]:
            return [tf.constant(small[id(each)]) if id(each) in small else each.value for each in variables]

        def forward(images: Any) -> tuple[Any, Any]:
            weights = values(model.trainable_variables), values(model.non_trainable_variables)
            return self._with_probabilities(
                model.stateless_call(*weights, feed(images, self.pixels), training=False)[0]
            )

        compiled = tf.function(forward, autograph=False, jit_compile=True if self.execution.jit else None)
        return compiled.get_concrete_function(
            tf.TensorSpec((self.execution.batch_size, *self.loaded.input_shape), tf.uint8)
        )

    def _with_probabilities(self, outputs: Any) -> tuple[Any, Any]:
        """(outputs, probabilities), both in the model's precision, at least float32."""
        import tensorflow as tf

        if outputs.dtype not in (tf.float32, tf.float64):
            outputs = tf.cast(outputs, tf.float32)
        return outputs, outputs if self.gives_probabilities else tf.nn.softmax(outputs)

    def __call__(self, images: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
        """images (n, h, w[, 3]) → (outputs, probabilities), (n, num_classes) each; the outputs are logits, unless the
        model ends in softmax."""
        import tensorflow as tf

        self._traced = self._traced or self._trace()
        rows, size = len(images), self.execution.batch_size
        images = images.reshape(rows, *self.loaded.input_shape)
        dtype = self._traced.output_dtypes[0].as_numpy_dtype
        outputs, probabilities = (np.empty((rows, self.loaded.num_classes), dtype) for _ in range(2))
        for start in range(0, rows, size):
            batch = images[start : start + size]
            count = len(batch)
            if count < size:
                batch = np.concatenate([batch, np.zeros((size - count, *batch.shape[1:]), np.uint8)])
            batch_outputs, batch_probabilities = self._traced(tf.constant(batch))
            outputs[start : start + count] = batch_outputs.numpy()[:count]
            probabilities[start : start + count] = batch_probabilities.numpy()[:count]
        return outputs, probabilities

    def warm_up(self) -> None:
        """Trace and compile, so that the first batch is as fast as the others."""
        self(np.zeros((1, *self.loaded.input_shape), np.uint8))

    def losses(
        self,
        outputs: NDArray[Any],
        probabilities: NDArray[Any],
        predictions: NDArray[np.int64],
        labels: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """(n,): the cross-entropy of each row, as Keras defines it; 0 where the label is unknown (-1).

        outputs, probabilities: (n, num_classes), as a call gives them. predictions, labels: (n,) classes.
        """
        rows, labelled = np.arange(len(outputs)), np.maximum(labels, 0)
        losses: NDArray[np.float64]
        if self.gives_probabilities:
            wide = np.log(np.clip(outputs.astype(np.float64), _KERAS_EPSILON, 1 - _KERAS_EPSILON))
            losses = np.log(np.exp(wide).sum(axis=1)) - wide[rows, labelled]
        else:
            # The sum of the exponentials follows from the softmax, which is known already: a third of the time.
            gap = outputs[rows, predictions].astype(np.float64) - outputs[rows, labelled]
            losses = gap - np.log(probabilities[rows, predictions].astype(np.float64))
        losses[labels < 0] = 0
        return losses


def fastest(
    default: Inference,
    images: NDArray[np.uint8],
    *,
    most_rows: int,
    total_rows: int,
    jit: bool | None = None,
    batch_size: int | None = None,
) -> Inference:
    """The same model in the execution that is fastest on these images, measured for a moment.

    images: (n, h, w[, 3]), a sample of the input. most_rows: of one call. total_rows: of the job. jit, batch_size:
    fixed where they are given. The default execution where measuring would take longer than it could save.
    """
    fitting = default_batch_size(default.loaded.classifier, most_rows)
    around = dict.fromkeys((fitting, max(1, fitting // 2), min(2 * fitting, _power_of_two(most_rows))))
    sizes = [batch_size] if batch_size else list(around)
    jits = (False, True) if jit is None else (jit,)
    executions = [Execution(jit=each, batch_size=size) for each in jits for size in sizes]
    first = default.retraced(executions[0])
    if len(executions) == 1 or not len(images):
        return first
    sample = np.resize(images, (max(sizes), *images.shape[1:]))
    first.warm_up()
    if min(_seconds(first, sample), _seconds(first, sample)) * total_rows / len(sample) < _MIN_JOB_SECONDS:
        return first
    return _fastest_of([first, *(default.retraced(execution) for execution in executions[1:])], sample)


def _fastest_of(candidates: list[Inference], sample: NDArray[np.uint8]) -> Inference:
    """They are measured in turn, so that whatever slows one down slows them all down."""
    for candidate in candidates:
        candidate.warm_up()
    best = [math.inf] * len(candidates)
    deadline = time.perf_counter() + _TRIAL_SECONDS * len(candidates)
    while math.inf in best or time.perf_counter() < deadline:
        best = [min(before, _seconds(each, sample)) for before, each in zip(best, candidates, strict=True)]
    return candidates[best.index(min(best))]


def _seconds(inference: Inference, sample: NDArray[np.uint8]) -> float:
    began = time.perf_counter()
    inference(sample)
    return time.perf_counter() - began


def has_bfloat16() -> bool:
    """Whether this CPU has instructions for it; without them it is slower than float32. True where that is unknown."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return True
    return not flags or bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))


def compute_one(loaded: Loaded, image: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """(outputs, probabilities), num_classes each, of a single image (h, w[, 3]), without compiling anything."""
    inference = Inference(loaded, image.shape, most_rows=1)
    pixels = feed(image.reshape(1, *loaded.input_shape), inference.pixels)
    outputs, probabilities = inference._with_probabilities(loaded.classifier(pixels, training=False))
    return outputs[0].numpy().tolist(), probabilities[0].numpy().tolist()


def _known(pixels: str | None, loaded: Loaded) -> str:
    if pixels is None:
        raise InputError(
            f"the model may take pixels {RAW} or {UNIT}: {loaded.pixels_reason}; say which by --pixels",
            see="models.md#pixels",
        )
    return pixels


def check_images(loaded: Loaded, image_shape: tuple[int, ...]) -> None:
    """Raise InputError where the model takes other images."""
    fitting_shape(loaded.input_shape, (image_shape,))


def fitting_shape(input_shape: tuple[int, ...], shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The first of an input's image shapes that the model takes; images of other shapes are then quarantined.

    Raises InputError, with the options that convert the images, where the model takes none of them.
    """
    for shape in shapes:
        if fits(shape, input_shape):
            return shape
    wanted = input_shape[:-1] if input_shape[-1:] == (1,) else input_shape
    remedy = options(shapes[0], wanted) if len(wanted) in (2, 3) else ""
    raise InputError(
        f"the images are {shapes[0]}, but the model takes {input_shape}; give {remedy or 'it such images'}"
    )


def default_batch_size(model: Any, most_rows: int) -> int:
    """The batch size: a power of two, no more than needed, for which a layer's input and output fit the caches."""
    largest: int = max(math.prod(side or 1 for side in layer.output.shape[1:]) for layer in _leaves(model))
    fitting = max(1, min(_MAX_ROWS, _MAX_LAYER_BYTES // (2 * 4 * largest)))
    return min(1 << (fitting.bit_length() - 1), _power_of_two(most_rows))


def _power_of_two(rows: int) -> int:
    """The smallest power of two that is not below it."""
    return 1 << (max(rows, 1) - 1).bit_length()


def _leaves(model: Any) -> list[Any]:
    """The layers with an output that are not models themselves, those of models within the model included."""
    found: list[Any] = []
    for layer in model.layers:
        if hasattr(layer, "layers"):
            found += _leaves(layer)
        elif hasattr(getattr(layer, "output", None), "shape"):
            found.append(layer)
    return found
