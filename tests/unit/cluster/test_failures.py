"""Errors of remote code: what was raised there, and what a lost process is, by real tasks and actors."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.cluster.failures import loss, why_lost
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
        with pytest.raises(RetryableError, match=r"lost too often: a process on node \S+ ended suddenly; if"):
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


FULL = """2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.244.0.3, ID: \
8a20728b) was 0.56GB used / 0.59GB limit (0.961204)
OOM kill reason: Memory usage 604741632B exceeded threshold of 597688320B (95.0% of 629145600B limit)
Top 10 memory users: PID\tMEM(GB)\tCOMMAND"""

DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: A
\tpid: 27676
\tip: 10.244.0.4
"""

KILLED = (
    f"{DIED}The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail"
)

GONE = f"""{DIED}The actor died because its node has died. Node Id: d6cd85e6
\tthe actor's node was terminated unexpectedly: dashboard_agent failed and raylet fate-shares with it."""

DRAINED = f"""{DIED}The actor died because its node has died. Node Id: d6cd85e6
\tthe actor's node was terminated expectedly: Node received SIGTERM."""

REMEDY = "give it more memory (a pod: its limit), or start fewer workers or actors on it"

REASONS = [
    (FULL, f"the memory of node 10.244.0.3 was full (0.56 of 0.59 GiB); {REMEDY}"),
    (KILLED, f"a process on node 10.244.0.4 ended suddenly; if the node's memory was full, {REMEDY}"),
    (
        GONE,
        "node 10.244.0.4 has ended (dashboard_agent failed and raylet fate-shares with it); if its memory was full,"
        f" {REMEDY}",
    ),
    (DRAINED, "node 10.244.0.4 has ended (Node received SIGTERM)"),
]


@pytest.mark.parametrize(("text", "reason"), REASONS)
def test_why_a_process_was_lost(text: str, reason: str) -> None:
    from ray.exceptions import OutOfMemoryError

    assert why_lost(OutOfMemoryError(text)) == reason
    assert loss("an actor was lost", OutOfMemoryError(text)) == f"an actor was lost: {reason}"


def test_no_reason_is_made_up() -> None:
    assert why_lost(ValueError("out of memory")) is None
    assert loss("an actor was lost", ValueError("out of memory")) == "an actor was lost (ValueError)"


@pytest.mark.parametrize("first", [True, False])
def test_a_train_worker_that_was_lost_for_want_of_memory(first: bool) -> None:
    """Ray Train wraps it, and the other rank's loss may be told before it."""
    from ray.exceptions import OutOfMemoryError
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    lost = [
        WorkerHealthCheckFailedError("A worker health check failed.", OutOfMemoryError(text)) for text in (FULL, GONE)
    ]
    failure = failure_of(WorkerGroupError("", dict(enumerate(lost if first else lost[::-1]))))
    assert isinstance(failure, RetryableError)
    assert str(failure) == f"training failed: train workers were lost too often: {REASONS[0][1]}"
