"""The number of workers never changes the result: real MNIST, plain processes over the ring, against a plain loop."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pytest

from mnist_ray.config import RunConfig
from mnist_ray.sharding import write_shards
from mnist_ray.sources.formats.shards import Manifest
from mnist_ray.sources.open import open_source
from mnist_ray.sources.preparation import Preparation
from mnist_ray.storage.location import Location
from mnist_ray.training.checkpoints import Checkpoint, newest_first
from mnist_ray.training.job import Job, recipe_of
from tests.support import own_model
from tests.support.data_makers import write_mnist
from tests.support.ring_processes import run_in_ring

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def shards(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Location:
    folder = Location.parse(tmp_path_factory.mktemp("shards"))
    write_shards(open_source("embedded"), folder, 48, num_tasks=2)
    return folder


def train(shards: Location, folder: Path, world: int, config: RunConfig, function: str = "fit") -> None:
    folder.mkdir()
    manifest = Manifest.load(shards)
    job = Job(config=config, recipe=recipe_of(config, manifest), manifest=manifest, shards=shards,
              run=Location.parse(folder), owner={}, channel="test")  # fmt: skip
    (folder / "job.pkl").write_bytes(pickle.dumps(job))
    run_in_ring(f"tests.support.training_work:{function}", folder, world)


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
    config = RunConfig(precision="float64", dropout=0, epochs=1, batch_size=500)  # 4 workers share it unevenly
    train(shards, tmp_path / "plain", 1, config, "plain")
    reference = np.load(tmp_path / "plain" / "plain.npz")
    expected = sorted((reference[f"arr_{index}"] for index in range(4)), key=lambda array: -array.size)
    for world in (1, 2, 3, 4):
        folder = tmp_path / str(world)
        train(shards, folder, world, config)
        assert json.loads((folder / "model" / "model.json").read_text())["preparation"] == asdict(Preparation())
        np.testing.assert_allclose(losses(folder), reference["losses"], rtol=0, atol=1e-9)
        for ours, plain in zip(weights(folder), expected, strict=True):
            assert ours.dtype == np.float64
            np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-9)


@pytest.mark.ray
@pytest.mark.drill
def test_in_float32_other_numbers_of_workers_differ_by_rounding_alone(shards: Location, tmp_path: Path) -> None:
    """bfloat16 computes in three digits, but keeps weights and adds gradients up in float32."""
    test = open_source("embedded").read("test", 0, 10_000)
    found = {}
    for world, precision in ((1, "float32"), (2, "float32"), (3, "float32"), (4, "float32"), (2, "bfloat16")):
        folder = tmp_path / f"{world}-{precision}"
        train(shards, folder, world, RunConfig(precision=precision, dropout=0, epochs=1))
        layers = weights(folder)
        assert {array.dtype for array in layers} == {np.dtype(np.float32)}
        hidden, output, hidden_bias, output_bias = layers
        activations = np.maximum(test.images.reshape(-1, 784) / np.float32(255) @ hidden + hidden_bias, 0)
        accuracy = ((activations @ output + output_bias).argmax(1) == test.labels).mean()
        found[world, precision] = losses(folder)[0], accuracy
    print(found)
    (loss, accuracy), *others = found.values()
    for other_loss, other_accuracy in others[:-1]:
        assert abs(other_loss - loss) <= 1e-3
        assert abs(other_accuracy - accuracy) <= 0.003
    assert abs(others[-1][0] - loss) <= 0.02


@pytest.fixture(scope="module")
def few(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Location:
    """4,001 rows in 7 shards: neither a multiple of the other, nor of the batch."""
    file = write_mnist(tmp_path_factory.mktemp("few") / "few.npz", 4001, 100)
    write_shards(open_source(str(file)), Location.parse(file.parent / "shards"), 7, num_tasks=1)
    return Location.parse(file.parent / "shards")


@pytest.mark.ray
@pytest.mark.slow
def test_a_training_that_is_cut_off_ends_with_the_same_bits(few: Location, tmp_path: Path) -> None:
    """Dropout, two workers with 4 and 3 shards, and checkpoints within epochs: whichever the cut leaves.

    So the same seed and number of workers give the same bits, too.
    """
    config = RunConfig(epochs=2, batch_size=20, checkpoint_every=60, keep=99)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(few, whole, 2, config)
    steps = sorted(int(file.name[5:15]) for file in (whole / "checkpoints").glob("step-*"))
    assert steps == [64, 128, 192, 201, 265, 329, 393, 402]  # 201 steps an epoch, in blocks of 64
    for resumed, last in ((0, 64), (1, 201), (1, 329)):
        shutil.copytree(whole, cut)
        shutil.rmtree(cut / "model")
        for file in (cut / "checkpoints").glob("step-*"):
            if int(file.name[5:15]) > last:
                file.unlink()
        (cut / "checkpoints" / ".step.npz.0123abcd.tmp").write_bytes(b"of one that was killed")
        run_in_ring("tests.support.training_work:fit_again", cut, 2)
        assert not [*(cut / "checkpoints").glob(".*")]
        for one, other in zip(weights(cut), weights(whole), strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(losses(cut), losses(whole), rtol=1e-5)
        told = json.loads((cut / "model" / "model.json").read_text())["trained"]
        assert (told["restarts"], told["resumed_from_epoch"]) == (1, resumed)
        shutil.rmtree(cut)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "epochs", "finished"), [("stateful", 6, 4), pytest.param("averaged", 2, 2, marks=pytest.mark.drill)]
)
def test_what_a_training_remembers_is_in_its_checkpoints(
    few: Location, tmp_path: Path, module: str, epochs: int, finished: int
) -> None:
    """Cut at some checkpoints, the last included, when a callback has ended the training and nothing is left to do but
    to end it: the same bits in every later checkpoint and in the model."""
    config = RunConfig(
        architecture=f"tests.support.{module}:classifier", epochs=epochs, batch_size=8, checkpoint_every=60, keep=99,
        validation_fraction=0.8, learning_rate=0.01,
    )  # fmt: skip
    whole = tmp_path / "whole"
    train(few, whole, 2, config, "fit_and_cut")
    steps = sorted(checkpoint_arrays(whole))
    assert steps == [step for epoch in range(finished) for step in (100 * epoch + 64, 100 * epoch + 100)]
    for cut in (whole / "cuts").iterdir():
        later = checkpoint_arrays(cut)
        assert sorted(later) == [step for step in steps if step >= int(cut.name)]
        for step, arrays in later.items():
            for one, other in zip(arrays, checkpoint_arrays(whole)[step], strict=True):
                np.testing.assert_array_equal(one, other, err_msg=f"step {step} after a cut at {cut.name}")
        for one, other in zip(weights(cut), weights(whole), strict=True):
            np.testing.assert_array_equal(one, other, err_msg=f"the model after a cut at {cut.name}")


def checkpoint_arrays(folder: Path) -> dict[int, Sequence[np.ndarray]]:
    files = newest_first(Location.parse(folder / "checkpoints"))
    return {step: Checkpoint.from_bytes(step, file.read_bytes()).arrays for step, file in files}


@pytest.mark.ray
@pytest.mark.slow
def test_one_worker_writes_files_and_what_stops_one_stops_all(few: Location, tmp_path: Path) -> None:
    """Whose model any program can load."""
    import keras

    config = RunConfig(architecture="tests.support.writing:classifier", epochs=5, batch_size=500)
    folder = tmp_path / "two"
    train(few, folder, 2, config, "fit_there")
    header, *lines = (folder / "log.csv").read_text().splitlines()
    assert header.startswith("epoch,accuracy,loss")
    np.testing.assert_allclose([float(line.split(",")[2]) for line in lines], losses(folder), rtol=0, atol=1e-12)
    assert len(lines) == 2
    model = keras.models.load_model(folder / "best.keras")
    for one, other in zip(sorted(model.get_weights(), key=lambda array: -array.size), weights(folder), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.ray
@pytest.mark.slow
def test_validation_rows_are_held_out_and_the_best_epoch_is_kept(few: Location, tmp_path: Path) -> None:
    config = RunConfig(epochs=4, validation_fraction=0.25, keep_best=True, keep=1, learning_rate=0.02)
    train(few, tmp_path / "two", 2, config)
    trained = json.loads((tmp_path / "two" / "model" / "model.json").read_text())["trained"]
    accuracies = [epoch["val_accuracy"] for epoch in trained["epochs"]]
    assert all(round(accuracy * 1000, 3).is_integer() for accuracy in accuracies)  # 1,000 rows are held out
    assert accuracies[trained["best_epoch"] - 1] == max(accuracies)
    run_in_ring("tests.support.training_work:validate", tmp_path / "two", 1)
    checked = json.loads((tmp_path / "two" / "validation.json").read_text())
    assert checked["accuracy"] == pytest.approx(max(accuracies), abs=1e-6)


@pytest.mark.ray
def test_ranks_with_unlike_numbers_of_shards_take_the_same_blocks(few: Location, tmp_path: Path) -> None:
    """Batches of 16 from 4 and 3 shards: 10 rows of a batch on one rank, 8 on the other, either side of a limit."""
    train(few, tmp_path / "two", 2, RunConfig(architecture="cnn", epochs=1, batch_size=16, validation_fraction=0.9))
    assert len(losses(tmp_path / "two")) == 1


@pytest.mark.ray
def test_a_model_an_optimizer_and_a_callback_of_ones_own(few: Location, tmp_path: Path) -> None:
    config = RunConfig(architecture="tests.support.own_model:classifier", learning_rate=0.5, epochs=9, batch_size=4001,
                       precision="float64")  # fmt: skip
    train(few, tmp_path / "two", 2, config)
    images = open_source("embedded").read("train", 0, 4001)
    expected, steps = own_model.by_hand(images.images, images.labels, 0.5)
    np.testing.assert_allclose(losses(tmp_path / "two"), steps, rtol=0, atol=1e-9)
    kernel, bias = weights(tmp_path / "two")
    np.testing.assert_allclose(np.vstack([kernel, bias]), expected, rtol=0, atol=1e-9)


@pytest.mark.ray
@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_all_and_keeps_the_checkpoint(few: Location, tmp_path: Path) -> None:
    config = RunConfig(epochs=2, learning_rate=1e30, dropout=0)
    with pytest.raises(
        AssertionError, match=r"(?s)2 of 2 failed.*no longer finite in epoch 1 by step .* learning rate 1e\+30"
    ):
        train(few, tmp_path / "two", 2, config)
    assert not (tmp_path / "two" / "model").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_weights_that_are_no_numbers_are_never_committed(few: Location, tmp_path: Path) -> None:
    """The only step of the only epoch: its loss is that of the weights before, which are good."""
    config = RunConfig(epochs=1, learning_rate=1e39, batch_size=4001, dropout=0)
    with pytest.raises(AssertionError, match=r"(?s)2 of 2 failed.*DivergedError: weights \(.*\) are no longer finite"):
        train(few, tmp_path / "two", 2, config)
    assert not (tmp_path / "two" / "model").exists()
    assert not list((tmp_path / "two" / "checkpoints").glob("step-*"))


def test_workers_that_start_again_after_the_model_was_saved_leave_it_alone(shards: Location, tmp_path: Path) -> None:
    """As where a cluster grows at the end of an elastic training, before Ray Train has noticed that it has ended."""
    folder = tmp_path / "run"
    train(shards, folder, 1, RunConfig(epochs=1, batch_size=6000))
    before = (folder / "model" / "model.json").stat().st_ino, (folder / "model" / "model.json").read_bytes()
    run_in_ring("tests.support.training_work:fit", folder, 1)
    assert before == ((folder / "model" / "model.json").stat().st_ino, (folder / "model" / "model.json").read_bytes())
