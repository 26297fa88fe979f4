"""Several hosts: the same result over 2 and 4 of them as on one machine, on a network that loses packets, also with a
host that is cut off and comes back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import environment, metrics_of, mnist_ray
from tests.support.data_makers import write_mnist
from tests.support.hosts import DELAY, LOSS, Hosts, require_namespaces
from tests.support.process import Process

pytestmark = [pytest.mark.drill, pytest.mark.ray, pytest.mark.timeout(900)]

EPOCHS = 6

# Any number of workers walks the same path: in float64, and without dropout.
SETTINGS = (
    "--epochs",
    str(EPOCHS),
    "--batch-size",
    "32",
    "--dropout",
    "0",
    "--precision",
    "float64",
    "--num-shards",
    "4",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mnist(tmp_path_factory.mktemp("hosts") / "mnist.npz", 3000, 2000)


@pytest.fixture(scope="module")
def expected(data: Path) -> dict[str, Any]:
    """What one worker on this machine gives."""
    home = data.parent
    command = ("run", "--data", data, "--storage", home, "--name", "alone", "--num-workers", "1", *SETTINGS)
    done = mnist_ray(*command, env=environment(home), timeout=400)
    assert done.returncode == 0, done.stderr
    return metrics_of(home / "alone")


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., Hosts]]:
    require_namespaces()
    all_hosts: list[Hosts] = []

    def make(num_hosts: int, *, own: str | None = None) -> Hosts:
        all_hosts.append(Hosts(tmp_path, num_hosts, own=own))
        hosts = all_hosts[-1]
        print(f"\n  {num_hosts} hosts, loss {LOSS if hosts.is_lossy else 0:.1%}, delay"
              f" {DELAY if hosts.is_delayed else 'none: this kernel has no netem'}")  # fmt: skip
        return hosts

    yield make
    for hosts in all_hosts:
        hosts.remove()


def start(hosts: Hosts, data: Path, storage: Path, num_workers: int) -> Process:
    where = ("--address", hosts.address, "--storage", storage, "--name", "run", "--num-workers", str(num_workers))
    return hosts.command(0, "run", "--data", data, *where, *SETTINGS)


def assert_same(run: Path, expected: dict[str, Any], *, restarts: int | None = 0) -> None:
    told = metrics_of(run)
    assert told["after"]["num_correct"] == expected["after"]["num_correct"]
    losses = [epoch["loss"] for epoch in told["train"]["epochs"]]
    assert losses == pytest.approx([epoch["loss"] for epoch in expected["train"]["epochs"]], abs=1e-9)
    if restarts is not None:
        assert told["train"]["restarts"] == restarts


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_the_result_is_that_of_one_machine(
    num_hosts: int, made: Callable[..., Hosts], data: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    hosts = made(num_hosts)
    driver = start(hosts, data, tmp_path, num_hosts)
    seen: set[int] = set()

    def each_trains() -> bool:
        seen.update(each for each in range(num_hosts) if hosts.processes(each, "ray::RayTrainWorker"))
        return len(seen) == num_hosts

    driver.until("a worker trains on each host", each_trains, 300)
    assert driver.end(400) == 0, driver.said()
    assert_same(tmp_path / "run", expected)
    score = ("score", data, "--model", tmp_path / "run", "--output", tmp_path / "out", "--num-actors", num_hosts)
    scored = hosts.command(0, *score, "--address", hosts.address)
    assert scored.end(300) == 0, scored.said()
    assert metrics_of(tmp_path / "out")["after"]["num_correct"] == expected["after"]["num_correct"]


def progress(run: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((run / "progress.json").read_text())
    except FileNotFoundError:
        return {}
    return record if record["phase"] == "train" else {}


@pytest.mark.parametrize(("seconds", "restarts"), [(8, 0), (90, 1)])
def test_a_host_is_cut_off_and_comes_back(
    seconds: int, restarts: int, made: Callable[..., Hosts], data: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    """A short cut is waited for. After a long one, Ray has given the host up; it starts anew there, as a supervisor
    does, and the training goes on from its last checkpoint."""
    hosts = made(2)
    driver = start(hosts, data, tmp_path, 2)
    driver.until("the second epoch", lambda: progress(tmp_path / "run").get("epoch", 0) >= 1, 300)
    hosts.cut_off(1)
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        assert driver.ended() is None, driver.said()
        time.sleep(0.5)
    hosts.connect(1)
    if restarts:
        assert hosts.node(1).end(60) != 0  # it learns that it was given up
        hosts.start(1)
    assert driver.end(400) == 0, driver.said()
    print(f"\n  cut for {seconds} s; done {time.monotonic() - began:.0f} s after the cut")
    assert_same(tmp_path / "run", expected, restarts=restarts)


def test_a_path_that_each_host_has_for_itself(made: Callable[..., Hosts], data: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    hosts = made(2, own=str(own))
    told = "give a path that all nodes share, or a URI such as s3://BUCKET/FOLDER"
    doctor = hosts.command(0, "doctor", "--address", hosts.address, "--storage", own / "runs")
    assert doctor.end(120) == 1
    assert f"FAIL  storage: node {hosts.addresses[1]}: does not see in {own}/runs what this" in doctor.out.read_text()
    assert told in doctor.out.read_text()
    run = start(hosts, data, own, 2)
    assert run.end(120) == 2
    assert f"{own}/run is not the same folder on node {hosts.addresses[1]} as here; {told}" in run.err.read_text()
