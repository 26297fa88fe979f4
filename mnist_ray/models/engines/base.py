"""What an engine is asked for: a classifier whose traits are known, compiled for batches of one shape."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mnist_ray.models.view import CLASSES

Compiled = Callable[[NDArray[np.uint8]], tuple[NDArray[Any], NDArray[Any]]]
"""images (batch_size, *input_shape) → (outputs, probabilities), (batch_size, num_classes) each; where the outputs
are no logits, one array twice. What it returns may be overwritten by the next call."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a classifier is computed. The same execution gives the same bytes on the same type of CPU."""

    jit: bool
    """Whether XLA compiles it, with TensorFlow; that is faster for one model and slower for another."""
    batch_size: int
    """Rows of a call; the last is padded, so that there is one shape."""


@dataclass(frozen=True, kw_only=True)
class Classifier(ABC):
    """A classifier that is ready to be compiled."""

    sha256: str
    """Of its archive, or of its recipe where it is untrained."""
    input_shape: tuple[int, ...]
    """(h, w), (h, w, 1) or (h, w, 3); (n,) where images are fed flat."""
    num_classes: int
    """Of an embedding, the number of its values."""
    classes: tuple[str, ...] | None
    """Their names; None where the model is not one of ours."""
    pixels: str | None
    """What the model takes: 0-255, 0-1 or -1-1; None where that cannot be known."""
    pixels_reason: str | None = None
    """Why, where it was found and not stored."""
    pixels_are_usual: bool = False
    """Whether nothing in the model tells, so that labelled images may tell otherwise."""
    kind: str = CLASSES
    """classes, labels or embeddings: what it gives for an image (`models/view.py`)."""
    gives_logits: bool
    """Whether a softmax is put behind its outputs. Else they are taken as they are."""
    view: str = ""
    """What is used of its archive, as `View.key`."""

    engine: ClassVar[str]
    """As `--engine` names it."""
    jits: ClassVar[tuple[bool, ...]]
    """The values of `Execution.jit` that the engine knows."""

    @property
    @abstractmethod
    def version(self) -> str:
        """Of the engine: another one may give other last bits."""

    @property
    @abstractmethod
    def precision(self) -> str:
        """The narrowest that it computes in: float64, float32, bfloat16 or float16."""

    @abstractmethod
    def in_precision(self, precision: str) -> Classifier:
        """The same classifier in another precision; it may be this one, changed."""

    @abstractmethod
    def largest_layer(self) -> int:
        """The number of values of an image in the layer that has the most."""

    @abstractmethod
    def compile(self, pixels: str, execution: Execution) -> Compiled:
        """pixels: 0-255, 0-1 or -1-1. Takes up to seconds."""
