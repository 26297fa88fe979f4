"""keras:NAME, from Keras' cache."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mnist_ray.sources import open_source
from tests.support import data_makers as make
from tests.support.reading import assert_said

# --- keras:NAME


def test_keras_cache_is_read_without_importing_keras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "datasets").mkdir()
    make.write_npz(tmp_path / "datasets" / "mnist.npz")
    make.write_idx(tmp_path / "datasets" / "fashion-mnist", 6, 4)
    assert dict(open_source("keras:mnist").splits) == {"train": 7, "test": 5}
    fashion = open_source("keras:fashion_mnist")
    assert (fashion.name, dict(fashion.splits)) == ("keras:fashion_mnist", {"train": 6, "test": 4})
    assert_said("keras:imagenet", "keras:imagenet is not known; there are keras:mnist, keras:fashion_mnist")


@pytest.mark.tensorflow
def test_keras_without_network_says_so(tmp_path: Path) -> None:
    """In a process of its own: an address that nothing answers stands for a machine without network."""
    code = (
        "import keras.src.datasets.mnist as module\n"
        "real = module.get_file\n"
        "module.get_file = lambda fname, origin, **rest: real(fname, origin='http://127.0.0.1:9/mnist.npz', **rest)\n"
        "from mnist_ray.sources import open_source\n"
        "from mnist_ray.errors import RetryableError\n"
        "try:\n    open_source('keras:mnist')\n"
        "except RetryableError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60,
        env={"KERAS_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout.count("\n") == 1
    assert "keras:mnist is not in Keras' cache and cannot be downloaded" in done.stdout
    assert "use --data embedded" in done.stdout
