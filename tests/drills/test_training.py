"""The long drills: lose any process, and the training goes on to the bits that it would have reached undisturbed.

Real processes, the real command line. `make drill` runs them; `make test` does not.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_ray.sources.open import open_source
from mnist_ray.storage.location import Location
from tests.support.command import environment, metrics_of, mnist_ray
from tests.support.data_makers import write_mnist
from tests.support.drilling import Drill
from tests.support.process import Process

pytestmark = [pytest.mark.drill, pytest.mark.timeout(400)]

ROWS, BATCH, EPOCHS = 6000, 16, 12

STEPS = ROWS // BATCH  # of an epoch

EVERY = 100  # steps from checkpoint to checkpoint

BLOCK = 64  # steps that run compiled

SETTINGS = ("--epochs", str(EPOCHS), "--batch-size", str(BATCH), "--checkpoint-every", str(EVERY), "--num-workers", "2")


# A training that outlasts the comings and goings of nodes, slow by sleeping. No checkpoints within its epochs; float64
# and no dropout, so that the number of workers does not matter.
LONG = ("--epochs", "15", "--batch-size", str(BATCH), "--dropout", "0", "--precision", "float64",
        "--architecture", "tests.support.drill_model:mlp")  # fmt: skip

WORKER, CONTROLLER = "ray::RayTrainWorker", "ray::TrainController"


def steps_told(progress: dict[str, Any]) -> int:
    """Of the whole training; between two epochs `done` still is that of the one before."""
    return int(progress["epoch"] * STEPS + progress["done"] % ROWS // BATCH)


class Training(Drill):
    """A run's folder, and the trainings in it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.run = folder / "run"

    def train(self, shards: Path, *settings: str, **env: str) -> Process:
        """`mnist-ray train` into the run's folder."""
        where = ("--storage", str(self._home), "--name", "run")
        return self.start("mnist-ray", "train", str(shards), *where, *settings, **env)

    def progress(self) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads((self.run / "progress.json").read_text())
        except FileNotFoundError:
            return {}
        return record if record["phase"] == "train" else {}

    def steps_done(self) -> int:
        """As progress.json tells: up to a quarter of a second ago."""
        return steps_told(self.progress()) if self.progress().get("loss") else 0

    def until_mid_epoch(self, driver: Process, epochs: int = 3) -> None:
        """Some epochs are finished, and the next is well begun."""
        self.until(driver, "mid-epoch", lambda: self.steps_done() > epochs * STEPS + EVERY)

    def until_it_goes_on(self, driver: Process, struck: float, restarts: int = 1, seconds: float = 120) -> int:
        """The group has been started again, from the newest checkpoint, and steps; how many steps it repeats."""
        reached = 0

        def is_restarted() -> bool:
            nonlocal reached
            if self.progress().get("restarts", 0) == restarts:
                return True
            reached = max(reached, self.steps_done())
            return False

        restarted = self.until(driver, "a restart", is_restarted, seconds)
        resumed = steps_told(self.progress())
        stepped = self.until(driver, "steps", lambda: self.steps_done() > resumed)
        print(
            f"\n  restarted {restarted - struck:.1f} s after, stepped {stepped - struck:.1f} s after,"
            f" repeated {reached - resumed} steps from {resumed} on"
        )
        return reached - resumed

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, file), the newest first."""
        files = sorted((self.run / "checkpoints").glob("step-*.npz"), reverse=True)
        return [(int(file.name.split("-")[1]), file) for file in files]


def until_nobody_trains(driver: Process) -> None:
    """The driver has ended; within 30 s so has what it started (but two idle agents of Ray's own)."""
    deadline = time.monotonic() + 30
    while driver.processes(WORKER) or driver.processes(CONTROLLER):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def result(run: Path) -> tuple[list[np.ndarray], list[dict[str, Any]], int]:
    """(weights, epochs, num_correct of the 10,000 test images) of a trained model."""
    from mnist_ray.models.files import load

    model: Any = load(Location.parse(run / "model")).model
    test = open_source("embedded").read("test", 0, 10_000)
    correct = int((np.asarray(model.predict_on_batch(test.images)).argmax(1) == test.labels).sum())
    trained = json.loads((run / "model" / "model.json").read_text())["trained"]
    epochs = [{name: epoch[name] for name in ("epoch", "loss", "accuracy")} for epoch in trained["epochs"]]
    return model.get_weights(), epochs, correct


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drills")


@pytest.fixture(scope="session")
def shards(folder: Path) -> Path:
    """The first of MNIST's training images, and all of its test images."""
    write_mnist(folder / "mnist.npz", ROWS, 10_000)
    command = ("shard", str(folder / "mnist.npz"), str(folder / "shards"), "--num-shards", "12")
    done = mnist_ray(*command, env=environment(folder))
    assert done.returncode == 0, done.stderr
    return folder / "shards"


@pytest.fixture
def drill(tmp_path: Path) -> Iterator[Training]:
    made = Training(tmp_path)
    yield made
    made.remove()


def calmly(folder: Path, shards: Path, *settings: str) -> Any:
    """What `result` says of a run that nothing happened to."""
    folder.mkdir()
    calm = Training(folder)
    driver = calm.train(shards, *settings)
    try:
        assert driver.end(200) == 0, driver.said()
    finally:
        calm.remove()
    trained = metrics_of(calm.run)["train"]
    print(f"\n  undisturbed: {trained['seconds']:.1f} s of {time.monotonic() - driver.began:.1f} s train")
    assert (trained["restarts"], trained["resumed_from_epoch"]) == (0, None)
    return result(calm.run)


@pytest.fixture(scope="session")
def undisturbed(folder: Path, shards: Path) -> Any:
    return calmly(folder / "calm", shards, *SETTINGS)


@pytest.fixture(scope="session")
def long_undisturbed(folder: Path, shards: Path) -> Any:
    return calmly(folder / "calm-long", shards, *LONG)


def assert_as_undisturbed(drill: Training, undisturbed: Any, *, restarts: int, resumed_from: int | None = None) -> None:
    """Bit for bit, and truthfully told."""
    weights, epochs, correct = result(drill.run)
    expected_weights, expected_epochs, expected_correct = undisturbed
    assert correct == expected_correct
    for name in ("epoch", "accuracy", "loss"):  # a resumed epoch sums its losses in another order
        np.testing.assert_allclose([e[name] for e in epochs], [e[name] for e in expected_epochs], rtol=1e-6)
    for array, expected in zip(weights, expected_weights, strict=True):
        np.testing.assert_array_equal(array, expected)
    trained = metrics_of(drill.run)["train"]
    assert trained["restarts"] == restarts
    if resumed_from is not None:
        assert trained["resumed_from_epoch"] == resumed_from


@pytest.mark.parametrize("who", ["one worker", "every worker", "the controller"])
def test_a_process_of_the_training_is_killed(drill: Training, shards: Path, undisturbed: Any, who: str) -> None:
    driver = drill.train(shards, *SETTINGS)
    drill.until_mid_epoch(driver)
    pids = driver.processes(CONTROLLER if who == "the controller" else WORKER)
    assert len(pids) == (1 if who == "the controller" else 2)
    struck = driver.strike(signal.SIGKILL, *pids[: 1 if who == "one worker" else None])
    assert drill.until_it_goes_on(driver, struck) <= EVERY + BLOCK
    resumed_from = drill.progress()["resumed_from_epoch"]
    assert driver.end() == 0, driver.said()
    assert "continuing from the last checkpoint" in driver.said()
    assert_as_undisturbed(drill, undisturbed, restarts=1, resumed_from=resumed_from)


@pytest.mark.parametrize("seconds", [0.0, 0.5, 1.0, 2.0])
def test_a_worker_is_killed_while_the_workers_start(
    drill: Training, shards: Path, undisturbed: Any, seconds: float
) -> None:
    """Before, while or after the ring forms: the training soon starts again."""
    driver = drill.train(shards, *SETTINGS, "--max-failures", "1")
    drill.until(driver, "workers", lambda: len(driver.processes(WORKER)) == 2)
    time.sleep(seconds)
    driver.strike(signal.SIGKILL, driver.processes(WORKER)[-1])
    drill.until(driver, "steps", drill.steps_done, seconds=60)
    assert driver.end() == 0, driver.said()
    for array, expected in zip(result(drill.run)[0], undisturbed[0], strict=True):
        np.testing.assert_array_equal(array, expected)


def test_the_driver_is_killed_and_the_same_command_goes_on(drill: Training, shards: Path, undisturbed: Any) -> None:
    driver = drill.train(shards, *SETTINGS)
    drill.until_mid_epoch(driver)
    struck = driver.strike(signal.SIGKILL, driver.pid)
    assert driver.end() == -signal.SIGKILL
    until_nobody_trains(driver)
    print(f"\n  the local Ray was gone {time.monotonic() - struck:.1f} s after its driver")
    (newest, _), *_ = drill.checkpoints()
    again = drill.train(shards, *SETTINGS)
    assert again.end() == 0, again.said()
    assert_as_undisturbed(drill, undisturbed, restarts=1, resumed_from=newest // STEPS)


def test_a_worker_that_hangs_is_noticed_within_a_minute(drill: Training, shards: Path, undisturbed: Any) -> None:
    driver = drill.train(shards, *SETTINGS)
    drill.until_mid_epoch(driver)
    struck = driver.strike(signal.SIGSTOP, driver.processes(WORKER)[-1])
    assert drill.until_it_goes_on(driver, struck, seconds=60) <= EVERY + BLOCK
    assert driver.end() == 0, driver.said()
    assert_as_undisturbed(drill, undisturbed, restarts=1)


def test_a_loss_that_is_no_number_ends_the_run_at_once(drill: Training, shards: Path) -> None:
    driver = drill.train(shards, *SETTINGS, "--learning-rate", "1e30")
    assert driver.end() == 1
    (line,) = driver.err.read_text().splitlines()
    assert re.search(r"no longer finite in epoch \d+ by step \d+, at learning rate 1e\+30", line), line
    assert json.loads((drill.run / "checkpoints" / "starts.json").read_text()) == {"starts": 0}, "it was retried"
    assert not (drill.run / "model").exists()


def test_interrupted_twice_and_then_the_newest_checkpoint_is_damaged(
    drill: Training, shards: Path, undisturbed: Any
) -> None:
    for kind, epochs in ((signal.SIGINT, 1), (signal.SIGTERM, 3)):
        driver = drill.train(shards, *SETTINGS)
        drill.until_mid_epoch(driver, epochs)
        struck = driver.strike(kind, driver.pid)
        assert driver.end() == 130, driver.said()
        (line,) = driver.err.read_text().splitlines()
        assert "interrupted" in line
        assert "the same command continues" in line
        print(f"\n  ended {time.monotonic() - struck:.1f} s after {kind.name}")
        until_nobody_trains(driver)
    (_, newest), (before, _), *_ = drill.checkpoints()
    newest.write_bytes(newest.read_bytes()[:-1])
    driver = drill.train(shards, *SETTINGS)
    assert driver.end() == 0, driver.said()
    assert f"{newest} is damaged" in driver.said()
    assert_as_undisturbed(drill, undisturbed, restarts=2, resumed_from=before // STEPS)


def working(nodes: Sequence[Process]) -> list[Process]:
    """The nodes that train."""
    return [node for node in nodes if node.processes(WORKER)]


DRAIN = 12  # seconds of notice

WAIT = ("--wait-for-resources", "90")


def test_a_node_is_lost_and_another_takes_over(drill: Training, shards: Path, long_undisturbed: Any) -> None:
    cluster = drill.cluster()
    nodes = [cluster.add() for _ in range(2)]
    driver = drill.train(shards, *LONG, *WAIT, "--checkpoint-every", str(EVERY), **cluster.joined)
    drill.until(driver, "mid-epoch", lambda: drill.steps_done() > STEPS + EVERY)
    lost = working(nodes)[-1]
    struck = driver.strike(signal.SIGKILL, *lost.processes())
    assert drill.until_it_goes_on(driver, struck) <= EVERY + BLOCK
    assert len(working([cluster.head, *nodes])) == 2
    assert driver.end(200) == 0, driver.said()
    assert_as_undisturbed(drill, long_undisturbed, restarts=1, resumed_from=1)


def test_a_node_is_drained_and_at_most_a_second_is_repeated(
    drill: Training, shards: Path, long_undisturbed: Any
) -> None:
    cluster = drill.cluster()
    nodes = [cluster.add(RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=str(DRAIN)) for _ in range(2)]
    driver = drill.train(shards, *LONG, *WAIT, **cluster.joined)
    drill.until(driver, "mid-epoch", lambda: drill.steps_done() > EVERY)
    leaving = working(nodes)[-1]
    struck = driver.strike(signal.SIGTERM, leaving.pid)
    saved = drill.until(driver, "a checkpoint", lambda: any(step % STEPS for step, _ in drill.checkpoints()), DRAIN)
    print(f"\n  noticed and saved within {saved - struck:.1f} s")
    assert drill.until_it_goes_on(driver, struck) <= BLOCK
    assert leaving.pid not in [node.pid for node in working(nodes)]
    assert driver.end(200) == 0, driver.said()
    assert_as_undisturbed(drill, long_undisturbed, restarts=1)


def test_with_fewer_workers_and_with_more(drill: Training, shards: Path, long_undisturbed: Any) -> None:
    cluster = drill.cluster()
    nodes = [cluster.head, cluster.add()]
    elastic = ("--num-workers", "1:3", "--checkpoint-every", str(EVERY))
    driver = drill.train(shards, *LONG, *WAIT, *elastic, **cluster.joined)
    drill.until(driver, "steps", lambda: drill.steps_done() > EVERY)
    assert len(working(nodes)) == 2
    struck = driver.strike(signal.SIGKILL, *nodes[1].processes())
    assert drill.until_it_goes_on(driver, struck) <= EVERY + BLOCK
    assert working(nodes) == [cluster.head]
    nodes.append(cluster.add(num_cpus=2))
    assert drill.until_it_goes_on(driver, time.monotonic(), restarts=2) <= EVERY + BLOCK
    assert sum(len(node.processes(WORKER)) for node in nodes) == 3
    assert driver.end(200) == 0, driver.said()
    trained = metrics_of(drill.run)["train"]
    assert (trained["restarts"], trained["num_workers"]) == (2, 3)
    weights, epochs, correct = result(drill.run)
    assert abs(correct - long_undisturbed[2]) <= 30
    for epoch, expected in zip(epochs, long_undisturbed[1], strict=True):
        assert epoch["loss"] == pytest.approx(expected["loss"], rel=1e-9)
    for array, expected in zip(weights, long_undisturbed[0], strict=True):
        np.testing.assert_allclose(array, expected, rtol=0, atol=1e-9)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-s", "-v", "-p", "no:cacheprovider", *sys.argv[1:]]))
