"""After an upgrade of Keras: what `collective/keras_private.py` reaches for must still be there, or is named here."""

from __future__ import annotations

import pytest

from mnist_ray.models.runtime import import_keras

pytestmark = pytest.mark.tensorflow


@pytest.mark.tensorflow
def test_an_optimizer_counts_its_steps() -> None:
    keras = import_keras()
    optimizer = keras.optimizers.SGD(gradient_accumulation_steps=2)
    assert hasattr(optimizer, "_iterations"), (
        f"keras {keras.__version__} has no Optimizer._iterations: see collective/keras_private.py"
    )
    weight = keras.Variable(1.0)
    optimizer.build([weight])
    for _ in range(3):
        optimizer.apply([keras.ops.ones(())], [weight])
    assert (int(optimizer._iterations), int(optimizer.iterations)) == (3, 1)  # why the public one does not do
