"""keras:NAME, a dataset of keras.datasets: from Keras' cache, else downloaded."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

from mnist_ray.errors import InputError, RetryableError
from mnist_ray.sources.base import Reading
from mnist_ray.sources.formats.arrays import ArraySource, ArraySplits, numeric_split, open_arrays
from mnist_ray.sources.formats.idx import IDX_NAMES, load_embedded, load_idx
from mnist_ray.sources.formats.npz import load_npz
from mnist_ray.storage.location import Location

_KERAS = {"mnist": "mnist.npz", "fashion_mnist": "fashion-mnist"}  # name: where keras.datasets caches it
_DOWNLOAD_SECONDS = 20.0  # without an answer


def open_named(spec: str, reading: Reading) -> ArraySource:
    """`embedded`, the original MNIST from the package's own four files, or `keras:NAME`, a dataset of keras.datasets:
    from its cache, else downloaded.

    Raises InputError where one is damaged or unknown, RetryableError where it is neither there nor reachable.
    """
    if spec == "embedded":
        return open_arrays("mnist", load_embedded, reading)
    name = spec.removeprefix("keras:")
    if name not in _KERAS:
        raise InputError(f"keras:{name} is not known; there are {', '.join(f'keras:{known}' for known in _KERAS)}")
    return open_arrays(spec, partial(_load_keras, name), reading)


def _load_keras(name: str) -> ArraySplits:
    """From Keras' cache without importing Keras, which takes seconds; else Keras downloads it."""
    home = os.environ.get("KERAS_HOME")
    cache = Location.parse(Path(home) if home else Path("~/.keras")) / "datasets" / _KERAS[name]
    if cache.is_file():
        return load_npz(cache)
    if cache.is_dir() and all((cache / f"{file}.gz").is_file() for file in IDX_NAMES):
        return load_idx(cache)
    return _downloaded(name)


def _downloaded(name: str) -> ArraySplits:
    import socket

    import keras

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_SECONDS)  # Keras sets none, and a silent firewall would hold us for ever
    try:
        with redirect_stdout(sys.stderr):  # its progress bar
            train, test = getattr(keras.datasets, name).load_data()
    except Exception as error:  # Keras raises a bare Exception here
        reason = str(error).split("\n")[0]
        raise RetryableError(
            f"keras:{name} is not in Keras' cache and cannot be downloaded ({reason}); "
            "try again with a network, or use --data embedded"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return {
        split: numeric_split(images, labels, split, False, f"keras:{name}")
        for split, (images, labels) in (("train", train), ("test", test))
    }
