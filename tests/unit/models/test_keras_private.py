"""After an upgrade of Keras: what `models/keras_private.py` reaches for must still be there, or is named here."""

from __future__ import annotations

from typing import Any

import pytest

from mnist_ray.models import keras_private, runtime

pytestmark = pytest.mark.tensorflow

ROOM = "models/keras_private.py"

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def keras() -> Any:
    return runtime.import_keras()


@pytest.fixture(scope="module")
def model(keras: Any) -> Any:
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    return keras.Sequential([keras.Input((3,)), inner, keras.layers.Softmax()])


def test_what_we_reach_for_is_there(keras: Any, model: Any) -> None:
    last, tensor = model.layers[-1], model.outputs[0]
    version = f"keras {keras.__version__} has no"
    assert hasattr(last, "_flatten_layers"), f"{version} Layer._flatten_layers: see {ROOM}"
    assert hasattr(tensor, "_keras_history"), f"{version} KerasTensor._keras_history: see {ROOM}"
    assert len(tensor._keras_history) == 3, (
        f"{version} (operation, node, tensor) in KerasTensor._keras_history: see {ROOM}"
    )
    assert hasattr(last, "_inbound_nodes"), f"{version} Operation._inbound_nodes: see {ROOM}"
    assert hasattr(last._inbound_nodes[0], "input_tensors"), f"{version} Node.input_tensors: see {ROOM}"


def test_it_does_what_we_need_it_for(keras: Any, model: Any) -> None:
    inner, softmax = model.layers
    assert {id(layer) for layer in keras_private.all_layers(model)} >= {id(inner), id(softmax), id(inner.layers[0])}
    operation, node = keras_private.producer(model.outputs[0])
    assert operation is softmax
    operation, _ = keras_private.producer(keras_private.first_input(operation, node))
    assert operation in (inner, inner.layers[0])
