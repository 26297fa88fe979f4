"""Take a Keras model and a pile of images to a Ray cluster: shard, train data-parallel, score exactly once."""

import time

__version__ = "0.1.0"

STARTED = time.time()
"""When this process imported mnist_ray, in seconds since the epoch. `seconds.total` counts from here."""
