"""Keras on TensorFlow as an engine: what cannot be converted, in any precision, with or without XLA."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from mnist_ray.models.anatomy import precision_of, recast
from mnist_ray.models.engines.base import Classifier, Compiled, Execution
from mnist_ray.models.pixels import feed

_MAX_CONSTANT = 1 << 16  # weights of a variable that becomes a constant


@dataclass(frozen=True, kw_only=True)
class KerasClassifier(Classifier):
    """A keras.Model, not compiled."""

    model: Any

    engine = "tensorflow"
    jits = (False, True)

    @property
    def version(self) -> str:
        return version("tensorflow")

    @property
    def precision(self) -> str:
        return precision_of(self.model)

    def in_precision(self, precision: str) -> KerasClassifier:
        recast(self.model, precision)
        return self

    def largest_layer(self) -> int:
        return max(int(math.prod(side or 1 for side in layer.output.shape[1:])) for layer in _leaves(self.model))

    def compile(self, pixels: str, execution: Execution) -> Compiled:
        import tensorflow as tf

        traced = self._trace(pixels, execution)

        def compute(batch: Any) -> tuple[Any, Any]:
            outputs, probabilities = traced(tf.constant(batch))
            return outputs.numpy(), probabilities.numpy()

        return compute

    def _trace(self, pixels: str, execution: Execution) -> Any:
        """The compiled function of a batch.

        Small weights are constants in it, so that TensorFlow folds a batch normalization into the convolution before
        it. As constants, large ones would gain little and take ten times their memory.
        """
        import tensorflow as tf

        model = self.model
        # Read here: variables have no values within a graph.
        small = {id(each): each.numpy() for each in model.variables if math.prod(each.shape) <= _MAX_CONSTANT}

        def values(variables: list[Any]) -> list[Any]:
            return [tf.constant(small[id(each)]) if id(each) in small else each.value for each in variables]

        def forward(images: Any) -> tuple[Any, Any]:
            weights = values(model.trainable_variables), values(model.non_trainable_variables)
            outputs = model.stateless_call(*weights, feed(images, pixels), training=False)[0]
            return with_probabilities(outputs, self.gives_logits)

        compiled = tf.function(forward, autograph=False, jit_compile=True if execution.jit else None)
        return compiled.get_concrete_function(tf.TensorSpec((execution.batch_size, *self.input_shape), tf.uint8))


def with_probabilities(outputs: Any, gives_logits: bool) -> tuple[Any, Any]:
    """Tensors (outputs, probabilities), both in the model's precision, at least float32."""
    import tensorflow as tf

    if outputs.dtype not in (tf.float32, tf.float64):
        outputs = tf.cast(outputs, tf.float32)
    return outputs, tf.nn.softmax(outputs) if gives_logits else outputs


def _leaves(model: Any) -> list[Any]:
    """The layers with an output that are not models themselves, those of models within the model included."""
    found: list[Any] = []
    for layer in model.layers:
        if hasattr(layer, "layers"):
            found += _leaves(layer)
        elif hasattr(getattr(layer, "output", None), "shape"):
            found.append(layer)
    return found
