"""MNIST as `tf.keras.datasets.mnist.load_data` gives it, from the files in the package; without TensorFlow."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

DATA = Path(__file__).parents[2] / "mnist_ray" / "data"


def read(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 28, 28) and labels (n,) of `train` or `t10k`."""
    images = np.frombuffer(gzip.decompress((DATA / f"{split}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((DATA / f"{split}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    return images.reshape(-1, 28, 28), labels
