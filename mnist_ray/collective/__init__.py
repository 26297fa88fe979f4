"""Data-parallel Keras 3 for any Ray Train project: plain `fit`, with the gradients summed over a ring of the workers.

In come a Keras optimizer and a Ray Train worker group; out comes the same optimizer, applying the mean gradient of the
global batch. Copy this folder into your own project: it needs numpy, Ray and Keras, and nothing else of this one.
"""

from .backend import RingBackend, RingConfig, get_ring
from .callback import synchronize
from .forming import Listener, connect
from .optimizer import data_parallel
from .ring import Ring, RingError
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
