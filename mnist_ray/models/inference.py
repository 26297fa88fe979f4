"""Compute with a loaded classifier: logits and probabilities of uint8 images, in batches of one shape, and losses."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import InputError
from mnist_ray.models.anatomy import fits
from mnist_ray.models.engines.base import Classifier, Compiled, Execution
from mnist_ray.models.pixels import RANGES
from mnist_ray.sources.pixels import NO_CONVERSION, Conversion, options

_MAX_ROWS = 1024  # of a batch; with more, the layers' outputs do not fit the second-level cache
_MAX_LAYER_BYTES = 32 << 20  # of a layer's input or output: larger ones do not fit the caches
_KERAS_EPSILON = 1e-7
_TRIAL_SECONDS = 0.15  # for each execution that is tried
MIN_JOB_SECONDS = 20.0
"""Of one core for the whole job; below, two or three seconds of trials are not worth it."""


class Inference:
    """The compiled function of one classifier, for images of one shape. Either engine's.

    Threads may share it; one computes at a time.
    """

    def __init__(
        self,
        classifier: Classifier,
        image_shape: tuple[int, ...],
        *,
        most_rows: int,
        pixels: str | None = None,
        execution: Execution | None = None,
    ) -> None:
        """most_rows: of one call. pixels: 0-255 or 0-1; None for the model's. execution: None for the default.

        Raises InputError where the model takes other images, or its pixels are unknown.
        """
        check_images(classifier, image_shape)
        self.classifier, self._image_shape = classifier, image_shape
        self.pixels = _known(pixels or classifier.pixels, classifier)
        self.execution = execution or Execution(jit=False, batch_size=default_batch_size(classifier, most_rows))
        self._compiled: Compiled | None = None  # by the first call: it takes up to seconds
        self._lock = threading.Lock()

    def recompiled(self, execution: Execution | None = None, precision: str | None = None) -> Inference:
        """Another function of the same model, compiled anew, by the same execution and in the same precision, or
        others."""
        classifier = self.classifier.in_precision(precision) if precision else self.classifier
        execution = execution or self.execution
        return Inference(classifier, self._image_shape, most_rows=1, pixels=self.pixels, execution=execution)

    def __call__(self, images: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
        """images (n, h, w[, 3]) → (outputs, probabilities), (n, num_classes) each; the outputs are logits, unless the
        model ends in softmax."""
        with self._lock:
            return self._compute(images)

    def _compute(self, images: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
        self._compiled = self._compiled or self.classifier.compile(self.pixels, self.execution)
        rows, size = len(images), self.execution.batch_size
        images = images.reshape(rows, *self.classifier.input_shape)
        results: tuple[NDArray[Any], NDArray[Any]] | None = None
        for start in range(0, max(rows, 1), size):  # once without rows, too: the first batch tells the dtype
            batch = images[start : start + size]
            count = len(batch)
            if count < size:
                batch = np.concatenate([batch, np.zeros((size - count, *batch.shape[1:]), np.uint8)])
            outputs, probabilities = self._compiled(batch)
            if results is None:
                shape = rows, self.classifier.num_classes
                results = np.empty(shape, outputs.dtype), np.empty(shape, probabilities.dtype)
            results[0][start : start + count] = outputs[:count]
            results[1][start : start + count] = probabilities[:count]
        assert results is not None
        return results

    def warm_up(self) -> None:
        """Compile, so that the first batch is as fast as the others."""
        self(np.zeros((1, *self.classifier.input_shape), np.uint8))

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
        if not self.classifier.gives_logits:
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
    fitting = default_batch_size(default.classifier, most_rows)
    around = dict.fromkeys((fitting, max(1, fitting // 2), min(2 * fitting, _power_of_two(most_rows))))
    sizes = [batch_size] if batch_size else list(around)
    jits = default.classifier.jits if jit is None else (jit,)
    executions = [Execution(jit=each, batch_size=size) for each in jits for size in sizes]
    first = default.recompiled(executions[0])
    if len(executions) == 1 or not len(images):
        return first
    sample = np.resize(images, (max(sizes), *images.shape[1:]))
    first.warm_up()
    if min(_seconds(first, sample), _seconds(first, sample)) * total_rows / len(sample) < MIN_JOB_SECONDS:
        return first
    candidates = [first, *(default.recompiled(execution) for execution in executions[1:])]
    seconds = _measured(candidates, sample)
    return candidates[seconds.index(min(seconds))]


def seconds_of_an_image(
    one: Inference, other: Inference, images: NDArray[np.uint8], total_rows: float = math.inf
) -> tuple[float, float] | None:
    """What an image takes by each, measured for a moment. None where measuring would take longer than it could save.

    images: (n, ...), a sample of the input. total_rows: of the job.
    """
    sample = np.resize(images, (one.execution.batch_size, *images.shape[1:]))
    one.warm_up()
    if min(_seconds(one, sample), _seconds(one, sample)) * total_rows / len(sample) < MIN_JOB_SECONDS:
        return None
    mine, its = _measured([one, other], sample)
    return mine / len(sample), its / len(sample)


def _measured(candidates: list[Inference], sample: NDArray[np.uint8]) -> list[float]:
    """The least seconds of each. They take turns, so that whatever slows one down slows them all down."""
    for candidate in candidates:
        candidate.warm_up()
    best = [math.inf] * len(candidates)
    deadline = time.perf_counter() + _TRIAL_SECONDS * len(candidates)
    while math.inf in best or time.perf_counter() < deadline:
        best = [min(before, _seconds(each, sample)) for before, each in zip(best, candidates, strict=True)]
    return best


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


def compute_one(classifier: Classifier, image: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """(outputs, probabilities), num_classes each, of a single image (h, w[, 3])."""
    outputs, probabilities = Inference(classifier, image.shape, most_rows=1)(image[None])
    return outputs[0].tolist(), probabilities[0].tolist()


def _known(pixels: str | None, classifier: Classifier) -> str:
    if pixels is None:
        raise InputError(
            f"the model may take pixels {', '.join(RANGES[:-1])} or {RANGES[-1]}: {classifier.pixels_reason}; say which"
            " by --pixels, or score labelled images, which tell",
            see="models.md#pixels",
        )
    return pixels


def check_images(classifier: Classifier, image_shape: tuple[int, ...]) -> None:
    """Raise InputError where the model takes other images."""
    fitting_shape(classifier.input_shape, (image_shape,))


def fitting_shape(
    input_shape: tuple[int, ...], shapes: Sequence[tuple[int, ...]], convert: Conversion = NO_CONVERSION
) -> tuple[int, ...]:
    """The first of an input's image shapes that the model takes; images of other shapes are then quarantined.

    convert: how the images got these shapes. Raises InputError, with the options that would convert them, where the
    model takes none of them.
    """
    for shape in shapes:
        if fits(shape, input_shape):
            return shape
    found, wanted = shapes[0], _as_image(input_shape)
    wrong = "--rgb" if convert.rgb else "--gray" if convert.gray else ""
    remedies = []
    if wrong and len(found) != len(wanted):  # rather than give the opposite, too
        found, remedies = (*found[:2], *wanted[2:]), [f"leave out {wrong}"]
    given = options(found, wanted) if len(wanted) in (2, 3) else ""
    if given or not remedies:
        remedies.insert(0, f"give {given or 'it such images'}")
    raise InputError(f"the images are {shapes[0]}, but the model takes {input_shape}; {' and '.join(remedies)}")


def _as_image(input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The images that a model's input is made of. Flat ones are taken for square."""
    if len(input_shape) > 1:
        return input_shape[:-1] if input_shape[-1] == 1 else input_shape
    for channels in ((), (3,)):
        side = math.isqrt(input_shape[0] // math.prod(channels))
        if math.prod((side, side, *channels)) == input_shape[0]:
            return (side, side, *channels)
    return input_shape


def default_batch_size(classifier: Classifier, most_rows: int) -> int:
    """The batch size: a power of two, no more than needed, for which a layer's input and output fit the caches."""
    fitting = max(1, min(_MAX_ROWS, _MAX_LAYER_BYTES // (2 * 4 * classifier.largest_layer())))
    return min(1 << (fitting.bit_length() - 1), _power_of_two(most_rows))


def _power_of_two(rows: int) -> int:
    """The smallest power of two that is not below it."""
    return 1 << (max(rows, 1) - 1).bit_length()
