"""Whole jobs, made once: on little of MNIST, in an object store and on a terminal; and a cluster."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.storage.location import Location
from tests.support import data_makers as make
from tests.support.cluster import Cluster
from tests.support.command import (
    environment,
    on_a_terminal,
)
from tests.support.s3_server import ROOT as STORE
from tests.support.s3_server import begin, put, settings

LITTLE = ("--num-workers", "1", "--num-shards", "2", "--epochs", "1", "--batch-size", "64")
"""For the images of `little`."""


@pytest.fixture(scope="session")
def little(folder: Path) -> Path:
    return make.write_mnist(folder / "little.npz", 2000, 500)


@pytest.fixture(scope="session")
def stored_run(port: int, client: Any, little: Path) -> tuple[Location, str]:
    """A run whose data, and everything else, lies in the store; and what the terminal showed.

    Other programs have Ray's usual ports. It finds uploads that an attempt before did not finish, wherever an object
    can be so large.
    """
    large = ("shards/train/part-00001.parquet", "checkpoints/step-1.npz", "model/classifier.keras",
             "predictions/part-00000.parquet", "predictions/quarantine/part-00000.parquet")  # fmt: skip
    begin(client, *(f"runs/mnist/{name}" for name in large))
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as taken:
        for name, value in settings(port).items():
            patch.setenv(name, value)
        for usual in (6379, 8265, 10001):
            with contextlib.suppress(OSError):  # somebody has it, which does as well
                taken.enter_context(socket.create_server(("", usual)))
        command = ("run", "--data", put(little, "little.npz"), "--storage", f"{STORE}/runs", "--tensorboard", *LITTLE)
        code, shown, err = on_a_terminal(*command, env=environment(little.parent))
        assert (code, err) == (0, "")
        return Location.parse(f"{STORE}/runs/mnist"), shown


@pytest.fixture(scope="session")
def cluster(folder: Path) -> Iterator[Cluster]:
    made = Cluster(folder, num_cpus=2, dashboard=True)
    yield made
    made.remove()
