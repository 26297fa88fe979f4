"""Whatever we need of Keras that is not in its public API: all of it is here (and collective/keras_private.py).

Each function says why there is no public way, with a link to Keras' own code. After an upgrade of Keras,
tests/unit/models/test_keras_private.py names what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def all_layers(model: Any) -> list[Any]:
    """Every layer of a model, also those within models and layers of any depth.

    The public `layers` holds those of the model itself, and a layer that holds others has no public list of them:
    https://github.com/keras-team/keras/blob/v3.15.1/keras/src/layers/layer.py#L1708-L1723
    """
    layers: list[Any] = model._flatten_layers(include_self=False, recursive=True)
    return layers


def producer(tensor: Any) -> tuple[Any, int]:
    """(operation, call) that a symbolic tensor comes from: a layer, model or function, and which of its calls.

    No public attribute of a tensor leads to it, and a function such as `keras.ops.softmax` is in no public list:
    https://github.com/keras-team/keras/blob/v3.15.1/keras/src/ops/node.py#L75-L79
    """
    operation, call, _ = tensor._keras_history
    return operation, call


def first_input(operation: Any, call: int) -> Any:
    """The first symbolic tensor that went into one of an operation's calls.

    The public `input` is that of the first call alone:
    https://github.com/keras-team/keras/blob/v3.15.1/keras/src/ops/operation.py#L368-L377
    """
    return operation._inbound_nodes[call].input_tensors[0]


def calls(model: Any) -> Iterator[tuple[Any, list[Any], list[Any]]]:
    """(operation, what goes into it, what comes out of it) of each call in a built model, from its inputs on.

    The public `operations` are without their tensors, which differ where another model uses the same layer:
    https://github.com/keras-team/keras/blob/v3.15.1/keras/src/ops/function.py#L75-L90
    """
    graph = getattr(model, "_functional", None) or model  # of a Sequential, or the model's own
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for node in graph._nodes_by_depth[depth]:
            yield node.operation, node.input_tensors, node.output_tensors
