"""The number of workers never changes the result: real MNIST, plain processes over the ring, against a plain loop."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from mnist_ray.config import RunConfig
from mnist_ray.sharding import Manifest, write_shards
from mnist_ray.sources import open_source
from mnist_ray.storage import Location
from mnist_ray.training import Job, recipe
from tests.ring_processes import run_in_ring


@pytest.fixture(scope="module")
def shards(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Location:
    folder = Location.parse(tmp_path_factory.mktemp("shards"))
    write_shards(open_source("embedded"), folder, 48, num_tasks=2)
    return folder


def train(shards: Location, folder: Path, world: int, config: RunConfig, function: str = "fit") -> None:
    folder.mkdir()
    manifest = Manifest.load(shards)
    job = Job(config=config, recipe=recipe(config, manifest), manifest=manifest, shards=shards,
              run=Location.parse(folder), owner={})  # fmt: skip
    (folder / "job.pkl").write_bytes(pickle.dumps(job))
    run_in_ring(f"tests.training_work:{function}", folder, world)


def weights(folder: Path) -> list[np.ndarray]:
    """Of the saved model, read without Keras; layers come in their order here."""
    archive = zipfile.ZipFile(folder / "model" / "classifier.keras")
    with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
        found: list[np.ndarray] = []
        file.visititems(lambda _, node: found.append(node[()]) if isinstance(node, h5py.Dataset) else None)
    return sorted(found, key=lambda array: -array.size)


def losses(folder: Path) -> list[float]:
    trained = json.loads((folder / "model" / "model.json").read_text())["trained"]
    return [epoch["loss"] for epoch in trained["epochs"]]


@pytest.mark.ray
@pytest.mark.slow
def test_in_float64_any_number_of_workers_is_one_process(shards: Location, tmp_path: Path) -> None:
    config = RunConfig(precision="float64", dropout=0, epochs=1)
    train(shards, tmp_path / "plain", 1, config, "plain")
    reference = np.load(tmp_path / "plain" / "plain.npz")
    expected = sorted((reference[f"arr_{index}"] for index in range(4)), key=lambda array: -array.size)
    for world in (1, 2, 3, 4):
        folder = tmp_path / str(world)
        train(shards, folder, world, config)
        np.testing.assert_allclose(losses(folder), reference["losses"], rtol=0, atol=1e-9)
        for ours, plain in zip(weights(folder), expected, strict=True):
            assert ours.dtype == np.float64
            np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-9)


@pytest.mark.ray
@pytest.mark.slow
def test_with_dropout_the_same_seed_is_the_same_bits(shards: Location, tmp_path: Path) -> None:
    config = RunConfig(epochs=2)
    for attempt in ("first", "second"):
        train(shards, tmp_path / attempt, 2, config)
    assert losses(tmp_path / "first") == losses(tmp_path / "second")
    for one, other in zip(weights(tmp_path / "first"), weights(tmp_path / "second"), strict=True):
        np.testing.assert_array_equal(one, other)
