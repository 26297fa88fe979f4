"""Which pixels a model takes: by what its first weights get to see of two plain images, else by labelled images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from mnist_ray.models.keras_private import all_layers

RAW, UNIT, SIGNED = "0-255", "0-1", "-1-1"
"""What a model takes: raw pixels, pixels / 255, or pixels / 127.5 - 1."""
RANGES = (RAW, UNIT, SIGNED)

_MOST_RAW = 0.1  # of a step of the pixels, as the first weights see it: 255 steps make 25
_LEAST_UNIT = 0.5
_SIDE = 32  # of an image for a model that takes any size
_SURE = 3.0  # standard deviations
_MOST_SHIFT = 2.0  # what is subtracted from pixels of 0-1 is about one half


@dataclass(frozen=True)
class Pixels:
    """What a model takes, and why."""

    range: str | None
    """One of RANGES; None where it cannot be known."""
    reason: str
    """A clause, such as "its first layers turn 0 and 255 into -1 and 1"."""
    is_usual: bool = False
    """Whether nothing in the model tells, so that it is only what most models take."""


_found: WeakKeyDictionary[Any, Pixels] = WeakKeyDictionary()


def find_pixels(model: Any) -> Pixels:
    """What a functional or Sequential model takes. The first answer stays: training may change what it follows from."""
    if model not in _found:
        _found[model] = _find(model)
    return _found[model]


def pixels_of(model: Any) -> str:
    """0-255 or 0-1, for a model of which it is known."""
    found = find_pixels(model)
    if found.range is None:
        raise AssertionError(found.reason)
    return found.range


def feed(images: Any, pixels: str) -> Any:
    """A uint8 tensor of images as a model takes it: unchanged for 0-255, else a float tensor."""
    import keras
    import tensorflow as tf

    if pixels == RAW:
        return images
    values = tf.cast(images, keras.config.floatx())
    return values / 255 if pixels == UNIT else values / 127.5 - 1


def judged_by_labels(right: Mapping[str, NDArray[np.bool_]], usual: str | None) -> Pixels | None:
    """What a model takes, by which labelled images it is right about when it is given each range. None where the images
    do not tell.

    right: by range, (n,). usual: what it is given otherwise. Another range must beat that; a range must beat all others
    where it is the usual one itself, or there is none.
    McNemar's test: of the images that only one of two ranges is right about, the better one has far more than half.
    """
    best = max(right, key=lambda each: int(right[each].sum()))
    for other in [usual] if usual not in (None, best) else [each for each in right if each != best]:
        gained, lost = (np.count_nonzero(right[one] & ~right[two]) for one, two in ((best, other), (other, best)))
        if gained - lost <= _SURE * math.sqrt(gained + lost):
            return None
    counts = {each: int(found.sum()) for each, found in right.items()}
    others = " and ".join(f"{count:,} with {each}" for each, count in counts.items() if each != best)
    return Pixels(best, f"{counts[best]:,} of {len(right[best]):,} labelled images are right so, and {others}")


def _find(model: Any) -> Pixels:
    """Layers and operations before the first weights, of any kind and however nested, are only ever computed: if they
    make a small number of a pixel's step, the model takes raw pixels."""
    for (layer, low), (_, high) in zip(_seen(model, 1), _seen(model, 255), strict=True):
        steps = np.abs(high - low) / 254
        steps = steps[np.isfinite(steps) & (steps > 0)]
        if len(steps):  # else it is the same for both, such as the position of a patch
            step, first, white = float(np.quantile(steps, 0.25)), float(np.median(low)), float(np.median(high))
            return _by_statistics(layer, step) or _judged(step, first, white) or _by_default(model, layer)
    return Pixels(UNIT, "it makes no difference to its first weights")


def _judged(step: float, first: float, white: float) -> Pixels | None:
    """By a step of the pixels, and what 1 and 255 become; None where the pixels stay as they are."""
    black = round(first - (white - first) / 254, 4) + 0.0  # not -0
    raw = f"its first layers turn 0 and 255 into {black:.3g} and {white:.3g}"
    unit = f"its first layers turn 0 and 1 into {black:.3g} and {first:.3g}"
    if step <= _MOST_RAW or abs(first) > _MOST_SHIFT * step:
        return Pixels(RAW, raw)
    if step < _LEAST_UNIT:
        return Pixels(None, f"{raw}, 0 and 1 into {black:.3g} and {first:.3g}")
    return None if abs(step - 1) < 0.01 and abs(black) < 0.01 else Pixels(UNIT, unit)


def _by_statistics(layer: Any, step: float) -> Pixels | None:
    """By what a BatchNormalization, if the model begins with one, has seen in training. None without training."""
    import keras

    if not isinstance(layer, keras.layers.BatchNormalization) or _is_untrained(layer):
        return None
    mean = float(np.max(np.abs(np.asarray(layer.moving_mean)))) / step
    spread = float(np.sqrt(np.max(np.asarray(layer.moving_variance)))) / step
    found = RAW if mean > 2 or spread > 2 else UNIT
    return Pixels(found, f"its BatchNormalization has seen means up to {mean:.3g}, deviations up to {spread:.3g}")


def _is_untrained(layer: Any) -> bool:
    return bool(np.all(np.asarray(layer.moving_mean) == 0) and np.all(np.asarray(layer.moving_variance) == 1))


def _by_default(model: Any, first: Any) -> Pixels:
    """By the `value_range` that some layers for augmentation have; else 0-1."""
    import keras

    for layer in all_layers(model):
        limits = getattr(layer, "value_range", None)
        if limits is not None:
            name = type(layer).__name__
            found = RAW if max(limits) > 2 else SIGNED if min(limits) < 0 else UNIT
            return Pixels(found, f"its {name} has the value_range {tuple(limits)}")
    if isinstance(first, keras.layers.BatchNormalization):
        return Pixels(UNIT, "it begins with a BatchNormalization that has not been trained", is_usual=True)
    return Pixels(UNIT, "it does not scale them itself", is_usual=True)


def _seen(model: Any, pixel: int) -> list[tuple[Any, NDArray[np.float64]]]:
    """(layer, its input) of every layer with weights, in the order in which they see an image of one gray."""
    rows, *sides = model.inputs[0].shape
    seen: list[tuple[Any, NDArray[np.float64]]] = []
    with _recording([layer for layer in all_layers(model) if _has_weights(layer)], seen):
        model(np.full((rows or 1, *(side or _SIDE for side in sides)), pixel, np.float32), training=False)
    return seen


def _has_weights(layer: Any) -> bool:
    """Whether a layer, not those within it, has weights. A Normalization's are constants that scale pixels."""
    import keras

    if isinstance(layer, (keras.Model, keras.layers.Normalization)) or not layer.weights:
        return False
    return type(layer).__module__.startswith("keras.") or not all_layers(layer)


@contextmanager
def _recording(layers: list[Any], seen: list[tuple[Any, NDArray[np.float64]]]) -> Iterator[None]:
    """Let layers append what they are called with to `seen`. Nothing else of them changes."""
    import keras

    def recorder(layer: Any) -> Any:
        call = layer.call

        def recorded(*args: Any, **kwargs: Any) -> Any:
            first = keras.tree.flatten((args, kwargs))[0]
            seen.append((layer, np.asarray(keras.ops.convert_to_numpy(first), np.float64)))
            return call(*args, **kwargs)

        return recorded

    for layer in layers:
        vars(layer)["call"] = recorder(layer)  # not by setattr: Keras tracks what is set
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["call"]
