"""Data-parallel Keras 3 for any Ray Train project: plain `fit`, with the gradients summed over a ring of the workers.

It takes a Keras optimizer and the workers of Ray Train, and makes the optimizer apply the mean gradient of the global
batch. It imports numpy, Ray, Keras and TensorFlow, and nothing else of mnist_ray: copy the folder into your own
project.
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
