"""A tracker that fails, or stands still, neither ends a run nor holds it up; what it lacks is told once."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from itertools import pairwise

import pytest

from mnist_ray.errors import LeaseLostError
from mnist_ray.tracking.follower import Follower
from mnist_ray.tracking.scalars import Snapshot


class Recorder:
    """A tracker that fails as it is told to, each time by the next of `problems`."""

    label = "the recorder"

    def __init__(self, *problems: BaseException | None) -> None:
        self._problems = [*problems]
        self.told: list[int] = []
        self.status = ""
        self.synced = threading.Semaphore(0)

    def sync(self, snapshot: Snapshot) -> None:
        self.told.append(len(snapshot.epochs))
        try:
            if self._problems and (problem := self._problems.pop(0)):
                raise problem
        finally:
            self.synced.release()

    def end(self, status: str) -> None:
        self.status = status

    def lacking(self, snapshot: Snapshot) -> str:
        return f"{len(snapshot.epochs)} epochs are not there"


def follow(tracker: Recorder, *snapshots: Snapshot) -> tuple[Follower, list[str]]:
    """The follower, once the tracker has heard each; and what it warned of."""
    warnings: list[str] = []
    follower = Follower(tracker, Snapshot(), warnings.append)
    assert tracker.synced.acquire(timeout=10)
    for snapshot in snapshots:
        follower.show(snapshot)
        assert tracker.synced.acquire(timeout=10)
    return follower, warnings


def epochs(count: int) -> Snapshot:
    return Snapshot([{"epoch": n + 1} for n in range(count)])


def test_it_hears_of_each_change_once_and_of_the_end() -> None:
    tracker = Recorder()
    follower, warnings = follow(tracker, epochs(1), epochs(2))
    follower.show(epochs(2))
    assert follower.end("FINISHED", 10) is None
    assert (tracker.told, tracker.status, warnings) == ([0, 1, 2, 2], "FINISHED", [])


def test_a_failure_is_told_once_and_forgotten_where_a_later_try_succeeds() -> None:
    tracker = Recorder(ValueError("down"), ValueError("down"))
    follower, warnings = follow(tracker, epochs(1), epochs(2))
    assert follower.end("FAILED", 10) is None
    assert tracker.status == "FAILED"
    assert warnings == ["the recorder: ValueError: down; the run goes on and will try again"]


def test_what_is_lacking_in_the_end_is_told() -> None:
    tracker = Recorder(None, *[ValueError("no space") for _ in range(9)])
    follower, warnings = follow(tracker, epochs(1), epochs(2))
    assert follower.end("FINISHED", 10) == (
        "the recorder: 2 epochs are not there (ValueError: no space); the same command adds what is missing"
    )
    assert tracker.status == ""
    assert len(warnings) == 1


def test_one_that_stands_still_is_left_behind() -> None:
    go_on = threading.Event()

    class Standing(Recorder):
        def sync(self, snapshot: Snapshot) -> None:
            super().sync(snapshot)
            go_on.wait()

    began = time.monotonic()
    follower, warnings = follow(Standing())
    for count in range(1000):
        follower.show(epochs(count))
    assert follower.end("KILLED", 0.5) == (
        "the recorder: 999 epochs are not there (no answer within 0 s); the same command adds what is missing"
    )
    assert time.monotonic() - began < 5
    assert warnings == []
    go_on.set()


def chain(*errors: Exception) -> Exception:
    """Each raised while the one before it was handled."""
    for inner, outer in pairwise(errors):
        outer.__context__ = inner
    return errors[-1]


@pytest.mark.parametrize(
    ("errors", "reason"),
    [
        ([ConnectionRefusedError(111, "Connection refused"), OSError("HTTP"), ValueError("API")], "Connection refused"),
        ([TimeoutError("timed out"), ValueError("API")], "timed out"),
        ([KeyError("x"), ValueError("what it was")], "ValueError: what it was"),
        ([ValueError("to http://me:secret@host/api?token=1")], "ValueError: to http://…@host/api?…"),
        ([OSError(1, "x"), LeaseLostError("another has taken over")], "another has taken over"),
    ],
)
def test_the_reason_is_short_and_has_no_secrets(errors: Sequence[Exception], reason: str) -> None:
    _, warnings = follow(Recorder(chain(*errors)), epochs(1))
    assert warnings == [f"the recorder: {reason}; the run goes on and will try again"]
