"""Errors of remote code: what was raised there, and what a lost process is, by real tasks and actors."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.errors import InputError, RetryableError, UnexpectedError, last_line
from mnist_ray.runs.crash import explaining
from mnist_ray.scoring.pool import RayActors, answer
from mnist_ray.sharding import write_shards
from mnist_ray.sources.base import Batch
from mnist_ray.sources.formats.arrays import ArraySource
from mnist_ray.sources.open import open_source
from mnist_ray.storage.location import Location
from mnist_ray.training.trainer import failure_of
from tests.support import data_makers as make

pytestmark = pytest.mark.ray


class TwoArgumentsError(Exception):
    """It can be pickled, but not rebuilt."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what}\nin {where}")


class LockedError(Exception):
    """It cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("it has a lock")
        self.lock = threading.Lock()


def fail(kind: str) -> None:
    if kind == "key":
        raise KeyError("no such key")
    if kind == "lines":
        raise ValueError("many\nlines")
    if kind == "rebuilt":
        raise TwoArgumentsError("lost", "the attic")
    if kind == "pickled":
        raise LockedError
    if kind == "input":
        raise InputError("row 3 is broken")
    if kind == "exit":
        os._exit(3)


LINES = {
    "key": "KeyError: 'no such key'",
    "lines": "ValueError: lines",
    "rebuilt": "TwoArgumentsError: in the attic",
    "pickled": "LockedError: it has a lock",
}


class Actor:
    def __init__(self, kind: str = "") -> None:
        fail(kind)

    def ping(self) -> None:
        pass

    def work(self, kind: str) -> None:
        fail(kind)


@pytest.fixture(scope="module")
def actor(ray_local: None) -> Any:
    return RayActors(Actor, num_actors=1, most=1, num_cpus=0).alive[0]


@pytest.mark.parametrize("kind", LINES)
def test_an_error_in_an_actor_is_its_last_line(kind: str, actor: Any, tmp_path: Path) -> None:
    with pytest.raises(UnexpectedError) as raised, explaining(Location.parse(tmp_path)):
        answer(actor.work.remote(kind))
    assert str(raised.value) == f"unexpected {LINES[kind]}; the full log is {tmp_path}/error.log"
    assert "in fail\n" in (tmp_path / "error.log").read_text()


def test_a_user_error_in_an_actor_is_itself(actor: Any) -> None:
    with pytest.raises(InputError, match=r"^row 3 is broken$"):
        answer(actor.work.remote("input"))


@pytest.mark.parametrize("kind", ["key", "exit"])
def test_an_actor_that_cannot_start(kind: str, ray_local: None) -> None:
    import ray

    call = ray.remote(num_cpus=0)(Actor).remote(kind).ping.remote()
    if kind == "exit":
        with pytest.raises(RetryableError, match=r"scoring actors were lost too often \(ActorDiedError\)"):
            answer(call)
    else:
        with pytest.raises(Exception) as raised:  # noqa: PT011 - of Ray's
            answer(call)
        assert last_line(raised.value) == LINES[kind]


@dataclass(frozen=True)
class Broken(ArraySource):
    """Images whose reading fails."""

    kind: str = ""

    def read(self, split: str, start: int, stop: int, *, strict: bool = True) -> Batch:
        fail(self.kind)
        raise AssertionError


@pytest.mark.parametrize(
    "kind", ["lines", *(pytest.param(kind, marks=pytest.mark.drill) for kind in ("rebuilt", "input", "exit"))]
)
def test_an_error_in_a_sharding_task(kind: str, ray_local: None, tmp_path: Path) -> None:
    whole = open_source(str(make.write_npz(tmp_path / "data.npz", 5, 3)))
    source = Broken(**vars(whole), kind=kind)
    folder = Location.parse(tmp_path / "shards")
    expected = {
        "input": (InputError, "row 3 is broken"),
        "exit": (RetryableError, "a sharding task was lost (WorkerCrashedError); start the command again"),
    }.get(kind, (UnexpectedError, f"unexpected {LINES.get(kind)}; the full log is {folder}/error.log"))
    with pytest.raises(expected[0]) as raised, explaining(folder):
        write_shards(source, folder, 2, num_tasks=1)
    assert str(raised.value) == expected[1]


def test_what_a_train_worker_raised() -> None:
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    def of(*raised: Exception) -> Exception:
        failures = {rank: UserExceptionWithTraceback(each, traceback_str="") for rank, each in enumerate(raised)}
        return WorkerGroupError("", dict(failures))

    assert str(failure_of(of(ValueError("many\nlines")))) == "training failed: ValueError: lines"
    assert str(failure_of(of(RuntimeError("ring"), InputError("row 3 is broken")))) == "row 3 is broken"
    assert isinstance(failure_of(of(KeyError())), UnexpectedError)
