"""`keras:NAME`, a dataset of keras.datasets: from Keras' cache, into which Keras downloads it if need be.

Importing Keras imports TensorFlow, which takes seconds. So the cache is read without Keras, and a download is done by
a Python process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from mnist_ray.errors import InputError, RetryableError
from mnist_ray.sources.base import Reading
from mnist_ray.sources.formats.arrays import ArraySource, ArraySplits, open_arrays
from mnist_ray.sources.formats.idx import FILES, load_idx
from mnist_ray.sources.formats.npz import load_npz
from mnist_ray.storage.location import Location

_CACHED_AS = {"mnist": "mnist.npz", "fashion_mnist": "fashion-mnist"}  # below Keras' home and datasets/
_FALLBACK_HOME = "/tmp/.keras"  # noqa: S108 - where Keras' get_file writes if it may not write to its home
_TIMEOUT = 20  # seconds without an answer; Keras sets none, and a silent firewall would block for ever
_DOWNLOAD = "import socket, keras; socket.setdefaulttimeout({timeout}); keras.datasets.{name}.load_data()"


def open_keras(spec: str, reading: Reading) -> ArraySource:
    """Raises InputError for an unknown name or a damaged cache, RetryableError where the download fails."""
    name = spec.removeprefix("keras:")
    if name not in _CACHED_AS:
        known = ", ".join(f"keras:{each}" for each in _CACHED_AS)
        raise InputError(f"keras:{name} is not known; there are {known}")
    return open_arrays(spec, partial(_load, name), reading)


def _load(name: str) -> ArraySplits:
    home = os.environ.get("KERAS_HOME") or "~/.keras"
    splits = _load_cached(name, home)
    if splits is None:
        _download(name)
        splits = _load_cached(name, home) or _load_cached(name, _FALLBACK_HOME)
    if splits is None:
        raise RetryableError(
            f"Keras has downloaded keras:{name}, but not into {home}; set KERAS_HOME to a writable folder"
        )
    return splits


def _load_cached(name: str, home: str) -> ArraySplits | None:
    cached = Location.parse(Path(home)) / "datasets" / _CACHED_AS[name]
    if cached.is_file():
        return load_npz(cached)
    if cached.is_dir() and all((cached / f"{file}.gz").is_file() for file in FILES):
        return load_idx(cached)
    return None


def _download(name: str) -> None:
    """Let Keras download a dataset into its cache, with its progress bar on stderr."""
    code = _DOWNLOAD.format(timeout=_TIMEOUT, name=name)
    done = subprocess.run(  # noqa: S603 - a known name in our own code
        [sys.executable, "-P", "-c", code],  # -P: a keras.py in the working directory is not Keras
        stdin=subprocess.DEVNULL,
        stdout=2,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        reason = lines[-1].removeprefix("Exception: ")  # Keras raises a bare Exception
        raise RetryableError(
            f"keras:{name} is not in Keras' cache and cannot be downloaded ({reason}); "
            "try again with a network, or use --data embedded"
        )
