"""The long drills: lose any process, and the training goes on to the bits that it would have reached undisturbed.

Real processes, the real command line. `make drill` runs them; `make test` does not.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_ray.sources.open import open_source
from mnist_ray.storage.location import Location
from tests.support.command import BIN, ROOT, environment, free_port, metrics_of, mnist_ray

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


def session_of(pid: int) -> int | None:
    """The session that a process belongs to; None where it is gone or a zombie."""
    with suppress(OSError, IndexError):
        state, _, _, session = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
        return int(session) if state != "Z" else None
    return None


def steps_told(progress: dict[str, Any]) -> int:
    """Of the whole training; between two epochs `done` still is that of the one before."""
    return int(progress["epoch"] * STEPS + progress["done"] % ROWS // BATCH)


class Process:
    """A command in a session of its own, with all that it starts."""

    def __init__(self, *command: str, env: dict[str, str], log: Path) -> None:
        self.out, self.err = log.with_suffix(".out"), log.with_suffix(".err")
        self.began = time.monotonic()
        with self.out.open("w") as out, self.err.open("w") as err:
            self._popen = subprocess.Popen(
                [str(BIN / command[0]), *command[1:]], env=env, cwd=ROOT, stdout=out, stderr=err, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def processes(self, name: str = "") -> list[int]:
        """Those of its session whose title begins with `name`."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and session_of(int(entry.name)) == self.pid:
                with suppress(OSError):
                    if (entry / "cmdline").read_bytes().startswith(name.encode()):
                        found.append(int(entry.name))
        return sorted(found)

    def until_nobody_trains(self) -> None:
        """The driver has ended; within 30 s so has what it started (but two idle agents of Ray's own)."""
        deadline = time.monotonic() + 30
        while self.processes(WORKER) or self.processes(CONTROLLER):
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def strike(self, kind: signal.Signals, *pids: int) -> float:
        """Send a signal; when."""
        for pid in pids:
            os.kill(pid, kind)
        return time.monotonic()

    def said(self) -> str:
        return f"{self.out.read_text()}\n{self.err.read_text()}"

    def ended(self) -> int | None:
        return self._popen.poll()

    def end(self, seconds: float = 150) -> int:
        """Its exit code, and what it said on stderr."""
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still runs after {seconds} s: {self.said()}")

    def remove(self) -> None:
        """Whatever is left of it."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._popen.wait()


class Drill:
    """A run's folder under a user of its own, and the processes that were started in it."""

    def __init__(self, folder: Path) -> None:
        self.run, self._home = folder / "run", folder
        self._processes: list[Process] = []

    def start(self, *command: str, **env: str) -> Process:
        log = self._home / f"{len(self._processes)}-{command[0]}"
        self._processes.append(Process(*command, env=environment(self._home, **env), log=log))
        return self._processes[-1]

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

    def until(self, driver: Process, what: str, holds: Callable[[], Any], seconds: float = 180) -> float:
        """When something holds; the driver must live until then."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert driver.ended() is None, f"ended with {driver.ended()} before {what}: {driver.said()}"
            assert time.monotonic() < deadline, f"{what}: not in {seconds} s; {self.progress()} {driver.said()}"
            time.sleep(0.02)
        return time.monotonic()

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

    def remove(self) -> None:
        for process in reversed(self._processes):
            process.remove()


def result(run: Path) -> tuple[list[np.ndarray], list[dict[str, Any]], int]:
    """(weights, epochs, num_correct of the 10,000 test images) of a trained model."""
    from mnist_ray.models.files import load

    model: Any = load(Location.parse(run / "model")).classifier
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
    mnist = open_source("embedded")
    train, test = mnist.read("train", 0, ROWS), mnist.read("test", 0, 10_000)
    np.savez(folder / "mnist.npz", x_train=train.images, y_train=train.labels, x_test=test.images, y_test=test.labels)
    command = ("shard", str(folder / "mnist.npz"), str(folder / "shards"), "--num-shards", "12")
    done = mnist_ray(*command, env=environment(folder))
    assert done.returncode == 0, done.stderr
    return folder / "shards"


@pytest.fixture
def drill(tmp_path: Path) -> Iterator[Drill]:
    made = Drill(tmp_path)
    yield made
    made.remove()


def calmly(folder: Path, shards: Path, *settings: str) -> Any:
    """What `result` says of a run that nothing happened to."""
    folder.mkdir()
    calm = Drill(folder)
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


def assert_as_undisturbed(drill: Drill, undisturbed: Any, *, restarts: int, resumed_from: int | None = None) -> None:
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
def test_a_process_of_the_training_is_killed(drill: Drill, shards: Path, undisturbed: Any, who: str) -> None:
    driver = drill.train(shards, *SETTINGS)
    drill.until_mid_epoch(driver)
    pids = driver.processes(CONTROLLER if who == "the controller" else WORKER)
    assert len(pids) == (1 if who == "the controller" else 2)
    struck = driver.strike(signal.SIGKILL, *pids[: 1 if who == "one worker" else None])
    assert drill.until_it_goes_on(driver, struck) <= EVERY + BLOCK
    resumed_from = drill.progress()["resumed_from_epoch"]
    assert driver.end() == 0, driver.said()
    assert "going on from the last checkpoint" in driver.said()
    assert_as_undisturbed(drill, undisturbed, restarts=1, resumed_from=resumed_from)


def test_the_driver_is_killed_and_the_same_command_goes_on(drill: Drill, shards: Path, undisturbed: Any) -> None:
    driver = drill.train(shards, *SETTINGS)
    drill.until_mid_epoch(driver)
    struck = driver.strike(signal.SIGKILL, driver.pid)
    assert driver.end() == -signal.SIGKILL
    driver.until_nobody_trains()
    print(f"\n  the local Ray was gone {time.monotonic() - struck:.1f} s after its driver")
    (newest, _), *_ = drill.checkpoints()
    again = drill.train(shards, *SETTINGS)
    assert again.end() == 0, again.said()
    assert_as_undisturbed(drill, undisturbed, restarts=1, resumed_from=newest // STEPS)


def test_a_worker_that_hangs_is_noticed_within_a_minute(drill: Drill, shards: Path, undisturbed: Any) -> None:
    driver = drill.train(shards, *SETTINGS)
    drill.until_mid_epoch(driver)
    struck = driver.strike(signal.SIGSTOP, driver.processes(WORKER)[-1])
    assert drill.until_it_goes_on(driver, struck, seconds=60) <= EVERY + BLOCK
    assert driver.end() == 0, driver.said()
    assert_as_undisturbed(drill, undisturbed, restarts=1)


def test_a_loss_that_is_no_number_ends_the_run_at_once(drill: Drill, shards: Path) -> None:
    driver = drill.train(shards, *SETTINGS, "--learning-rate", "1e30")
    assert driver.end() == 1
    (line,) = driver.err.read_text().splitlines()
    assert re.search(r"no longer finite in epoch \d+ by step \d+, at learning rate 1e\+30", line), line
    assert json.loads((drill.run / "checkpoints" / "starts.json").read_text()) == {"starts": 0}, "it was retried"
    assert not (drill.run / "model").exists()


def test_interrupted_twice_and_then_the_newest_checkpoint_is_damaged(
    drill: Drill, shards: Path, undisturbed: Any
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
        driver.until_nobody_trains()
    (_, newest), (before, _), *_ = drill.checkpoints()
    newest.write_bytes(newest.read_bytes()[:-1])
    driver = drill.train(shards, *SETTINGS)
    assert driver.end() == 0, driver.said()
    assert f"{newest} is damaged" in driver.said()
    assert_as_undisturbed(drill, undisturbed, restarts=2, resumed_from=before // STEPS)


class Nodes:
    """A Ray cluster of hosts: each a `ray start` in a session of its own, with its own CPUs."""

    def __init__(self, drill: Drill) -> None:
        self._drill = drill
        self._env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self._address = f"127.0.0.1:{free_port()}"
        self.env = {**self._env, "RAY_ADDRESS": self._address}
        port = self._address.partition(":")[2]
        self.head = self._start("--head", f"--port={port}", "--include-dashboard=false")

    def add(self, num_cpus: int = 1, **env: str) -> Process:
        return self._start("--address", self._address, num_cpus=num_cpus, **env)

    def _start(self, *args: str, num_cpus: int = 1, **env: str) -> Process:
        """Until it is up: on one machine, hosts that start at once take each other's files."""
        common = ("--block", "--node-ip-address=127.0.0.1", "--object-store-memory=100000000", f"--num-cpus={num_cpus}")
        node = self._drill.start("ray", "start", *args, *common, **self._env, **env)
        deadline = time.monotonic() + 90
        while "will now block" not in node.said():
            assert node.ended() is None, node.said()
            assert time.monotonic() < deadline, node.said()
            time.sleep(0.2)
        return node


def working(nodes: Sequence[Process]) -> list[Process]:
    """The nodes that train."""
    return [node for node in nodes if node.processes(WORKER)]


DRAIN = 12  # seconds of notice
WAIT = ("--wait-for-resources", "90")


def test_a_node_is_lost_and_another_takes_over(drill: Drill, shards: Path, long_undisturbed: Any) -> None:
    cluster = Nodes(drill)
    nodes = [cluster.add() for _ in range(2)]
    driver = drill.train(shards, *LONG, *WAIT, "--checkpoint-every", str(EVERY), **cluster.env)
    drill.until(driver, "mid-epoch", lambda: drill.steps_done() > STEPS + EVERY)
    lost = working(nodes)[-1]
    struck = driver.strike(signal.SIGKILL, *lost.processes())
    assert drill.until_it_goes_on(driver, struck) <= EVERY + BLOCK
    assert len(working([cluster.head, *nodes])) == 2
    assert driver.end(200) == 0, driver.said()
    assert_as_undisturbed(drill, long_undisturbed, restarts=1, resumed_from=1)


def test_a_node_is_drained_and_at_most_a_second_is_repeated(drill: Drill, shards: Path, long_undisturbed: Any) -> None:
    cluster = Nodes(drill)
    nodes = [cluster.add(RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=str(DRAIN)) for _ in range(2)]
    driver = drill.train(shards, *LONG, *WAIT, **cluster.env)
    drill.until(driver, "mid-epoch", lambda: drill.steps_done() > EVERY)
    leaving = working(nodes)[-1]
    struck = driver.strike(signal.SIGTERM, leaving.pid)
    saved = drill.until(driver, "a checkpoint", lambda: any(step % STEPS for step, _ in drill.checkpoints()), DRAIN)
    print(f"\n  noticed and saved within {saved - struck:.1f} s")
    assert drill.until_it_goes_on(driver, struck) <= BLOCK
    assert leaving.pid not in [node.pid for node in working(nodes)]
    assert driver.end(200) == 0, driver.said()
    assert_as_undisturbed(drill, long_undisturbed, restarts=1)


def test_with_fewer_workers_and_with_more(drill: Drill, shards: Path, long_undisturbed: Any) -> None:
    cluster = Nodes(drill)
    nodes = [cluster.head, cluster.add()]
    elastic = ("--num-workers", "1:3", "--checkpoint-every", str(EVERY))
    driver = drill.train(shards, *LONG, *WAIT, *elastic, **cluster.env)
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
