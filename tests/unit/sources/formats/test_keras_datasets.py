"""keras:NAME, from Keras' cache."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from mnist_ray.errors import RetryableError
from mnist_ray.sources.formats import keras_datasets
from mnist_ray.sources.open import open_source
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
def test_keras_without_network_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that nothing answers at stands for a machine without network."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(RetryableError) as raised:
        open_source("keras:mnist")
    assert re.fullmatch(
        r"keras:mnist is not in Keras' cache and cannot be downloaded \(URL fetch failure on https://.*"
        r"Connection refused.*\); try again with a network, or use --data embedded",
        str(raised.value),
    )


@pytest.mark.tensorflow
def test_keras_downloads_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "datasets").mkdir()
    made, cached = make.write_npz(tmp_path / "made.npz"), tmp_path / "datasets" / "mnist.npz"
    download = f"import os, shutil; assert os.getpid() != {os.getpid()}; shutil.copy({str(made)!r}, {str(cached)!r})"
    monkeypatch.setattr(keras_datasets, "_DOWNLOAD", download)
    assert dict(open_source("keras:mnist").splits) == {"train": 7, "test": 5}
    cached.unlink()
    monkeypatch.setattr(keras_datasets, "_DOWNLOAD", "")
    monkeypatch.setattr(keras_datasets, "_FALLBACK_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(RetryableError, match=f"not into {tmp_path}; set KERAS_HOME to a writable folder"):
        open_source("keras:mnist")
