"""`mnist-ray submit` on a real terminal and a real cluster: what Ctrl-C asks, and what each answer does to the job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.command import mnist_ray
from tests.support.data_makers import write_mnist
from tests.support.terminal import CTRL_C, Terminal

pytestmark = [pytest.mark.drill, pytest.mark.ray, pytest.mark.timeout(900)]

QUESTION = "The job still runs. Detach, stop it, or watch on (detach, stop, watch) [detach]: "


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("c"), num_cpus=2, dashboard=True)
    yield made
    made.remove()


def state(cluster: Cluster, job: str) -> str:
    asked = mnist_ray("status", job, "--address", f"http://{cluster.dashboard}", env=cluster.env)
    assert asked.returncode == 0, asked.stderr
    return asked.stdout.split(": ")[1].split(".")[0].split()[0]


def test_watch_on_then_detach_then_stop(cluster: Cluster, tmp_path: Path) -> None:
    data = write_mnist(tmp_path / "small.npz", 2000, 500)
    address = ("--address", f"http://{cluster.dashboard}")
    run = ("run", "--data", data, "--storage", tmp_path, "--name", "run", "--epochs", "100000")
    with Terminal("submit", *address, "--", *run, env=cluster.env) as terminal:
        terminal.until("submitted ")
        job = terminal.shown.split("submitted ")[1].split()[0]
        terminal.until("epoch 1/100000  ", seconds=200)
        asked = terminal.type(CTRL_C)
        terminal.until(QUESTION, asked)
        answered = terminal.type("perhaps\n")
        terminal.until("'perhaps' is not one of 'detach', 'stop', 'watch'", answered)
        answered = terminal.type("watch\n")
        terminal.until("epoch ", answered)
        asked = terminal.type(CTRL_C)
        terminal.until(QUESTION, asked)
        answered = terminal.type(CTRL_C)  # a second one detaches
        assert terminal.end() == 130, terminal.shown
        told = f"mnist-ray: interrupted; the job continues: mnist-ray submit --follow {job}"
        assert told in terminal.shown[answered:], terminal.shown
        assert "Traceback" not in terminal.shown
    assert state(cluster, job) == "RUNNING"
    with Terminal("submit", *address, "--follow", job, env=cluster.env) as terminal:
        terminal.until("epoch 2/100000  ")
        asked = terminal.type(CTRL_C)
        terminal.until(QUESTION, asked)
        answered = terminal.type("\n")  # the default
        assert terminal.end() == 130, terminal.shown
        assert "the job continues" in terminal.shown[answered:]
    with Terminal("submit", *address, "--follow", job, env=cluster.env) as terminal:
        terminal.until("epoch 2/100000  ")
        asked = terminal.type(CTRL_C)
        terminal.until(QUESTION, asked)
        answered = terminal.type("stop\n")
        assert terminal.end() == 130, terminal.shown
        assert f"stopping {job} ..." in terminal.shown[answered:]
        told = f"mnist-ray: job {job}: STOPPED; the same command continues from what is committed\n"
        assert told in terminal.shown[answered:], terminal.shown
    assert state(cluster, job) == "STOPPED"
