"""Data-parallel Keras 3 for any Ray Train project: plain `fit`, with the gradients summed over a ring of the workers.

In come a Keras optimizer and the workers of Ray Train; out comes the same optimizer, which applies the mean gradient of
the global batch. Knows nothing else of mnist_ray, so you can copy the folder into your own project: it imports numpy,
Ray, Keras and TensorFlow alone.
"""

from .backend import RingBackend, RingConfig, get_ring
from .callback import synchronize
from .forming import Listener, connect
from .neighbour import RingError
from .optimizer import data_parallel
from .ring import Ring
from .variables import all_reduce_variables, broadcast_variables

__all__ = [
    "Listener",
    "Ring",
    "RingBackend",
    "RingConfig",
    "RingError",
    "all_reduce_variables",
    "broadcast_variables",
    "connect",
    "data_parallel",
    "get_ring",
    "synchronize",
]
