"""Take a Keras model and a pile of images to a Ray cluster: shard, train data-parallel, score exactly once.

The functions are those of `api.py`. They come when they are first used, so `import mnist_ray` costs nothing.
"""

import time

TYPE_CHECKING = False  # `typing` would import a re.py in the working directory before anything can say so
if TYPE_CHECKING:
    from mnist_ray import errors, results
    from mnist_ray.api import load_predictions, run, score, shard, train, verify

__version__ = "0.1.0"

STARTED = time.time()
"""When this process imported mnist_ray, in seconds since the epoch. `seconds.total` of a command counts from here."""

__all__ = ["errors", "load_predictions", "results", "run", "score", "shard", "train", "verify"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if name in ("errors", "results"):
        return import_module(f"mnist_ray.{name}")
    return getattr(import_module("mnist_ray.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
