"""Dispatch of actors that live in the test, on a clock that only the test moves; and of Ray actors without Keras."""

from __future__ import annotations

import itertools
import math
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.errors import LeaseLostError, NoSpaceError, RetryableError
from mnist_ray.scoring.dispatch import (
    HOPELESS_SECONDS,
    NOTICE_SECONDS,
    PATIENCE,
    PAUSES,
    UNITS_IN_FLIGHT,
    WORTH_SECONDS,
    ActorLostError,
    Actors,
    Dispatch,
)
from mnist_ray.scoring.pool import RayActors, answer

LOADING = 3.0
"""Seconds that an actor takes to load the model."""


class FakeActors(Actors):
    """Actors as numbers. Each does one call after another; a call is its number, and ends at a known time."""

    def __init__(self, num_actors: int, most: int = 0, seconds: Callable[[int, Any], float] = lambda *_: 1.0) -> None:
        """seconds(actor, unit): what a unit costs; infinity where the actor is stuck."""
        self.crews: list[int] = []
        super().__init__(most, self.crews.append)
        self.now = 0.0
        self.started, self.killed, self.loaded = itertools.count(), [], []  # type: ignore[var-annotated]
        self.given: list[tuple[int, Any]] = []
        self.dies_at: dict[int, float] = {}
        self.fails: Callable[[int, Any], Exception | None] = lambda actor, unit: None
        """fails(actor, unit): what a call raises; the unit is None while the model is loaded."""
        self.told: list[str] = []
        self._seconds, self._free_at, self._calls = seconds, dict[int, float](), dict[int, tuple[int, Any, float]]()
        self.alive = [self.start() for _ in range(num_actors)]

    def start(self) -> int:
        actor = next(self.started)
        self._free_at[actor] = self.now
        return actor

    def kill(self, actor: int) -> None:
        self.killed.append(actor)
        self.dies_at[actor] = self.now

    def load(self, actor: int) -> int:
        self.loaded.append(actor)
        return self._call(actor, None, LOADING)

    def work(self, actor: int, unit: Any) -> int:
        self.given.append((actor, unit))
        return self._call(actor, unit, self._seconds(actor, unit))

    def _call(self, actor: int, unit: Any, seconds: float) -> int:
        self._free_at[actor] = max(self.now, self._free_at[actor]) + seconds
        self._calls[len(self._calls)] = actor, unit, self._free_at[actor]
        return len(self._calls) - 1

    def _ends(self, call: int) -> float:
        actor, _, end = self._calls[call]
        return max(self.now, min(end, self.dies_at.get(actor, math.inf)))

    def wait(self, calls: Sequence[int], timeout: float) -> int | None:
        assert timeout > 0
        first = min(calls, key=self._ends, default=None)
        if first is None or self._ends(first) > self.now + timeout:
            assert timeout < math.inf
            self.now += timeout
            return None
        self.now = self._ends(first)
        return first

    def result(self, call: int) -> Any:
        actor, unit, end = self._calls[call]
        if self.dies_at.get(actor, math.inf) < end:
            raise ActorLostError(f"actor {actor} is gone")
        if error := self.fails(actor, unit):
            raise error
        return unit

    def dispatch(self, num_units: int, **more: Any) -> Dispatch[int]:
        return Dispatch(
            self, range(num_units), load=self.load, work=self.work, clock=lambda: self.now, notify=self.told.append,
            **more,
        )  # fmt: skip


def stuck_is(*stuck: int) -> Callable[[int, Any], float]:
    return lambda actor, _: math.inf if actor in stuck else 1.0


@pytest.mark.parametrize("num_actors", [1, 2, 5])
@pytest.mark.parametrize("num_units", [0, 1, 4, 5, 6, 26])
def test_each_unit_is_done_once_and_given_once(num_actors: int, num_units: int) -> None:
    actors = FakeActors(num_actors)
    assert sorted(actors.dispatch(num_units).results()) == list(range(num_units))
    assert sorted(unit for _, unit in actors.given) == list(range(num_units))
    assert actors.killed == []


def test_few_units_load_few_models() -> None:
    actors = FakeActors(8)
    assert sorted(actors.dispatch(3).results()) == [0, 1, 2]
    assert actors.loaded == [0, 1, 2]


def test_an_actor_holds_one_unit_more_than_it_works_on() -> None:
    actors = FakeActors(1)
    results = actors.dispatch(9).results()
    for done in range(1, 8):
        next(results)
        assert len(actors.given) == done + UNITS_IN_FLIGHT


def test_an_actor_goes_on_with_the_unit_after_the_one_that_it_has_done() -> None:
    actors = FakeActors(2, seconds=lambda actor, unit: 1.0 + actor / 10 + unit % 3 / 50)
    list(actors.dispatch(64).results())
    who = {unit: actor for actor, unit in actors.given}
    assert sum(who[unit] == who[unit - 1] for unit in range(1, 64)) >= 56


def test_a_slow_actor_delays_nobody() -> None:
    actors = FakeActors(2, seconds=lambda actor, _: 5.0 if actor == 0 else 1.0)
    assert sorted(actors.dispatch(24).results()) == list(range(24))
    assert Counter(actor for actor, _ in actors.given) == {0: 5, 1: 19}


def test_the_seconds_are_those_after_loading() -> None:
    dispatch = FakeActors(2).dispatch(10)
    assert dispatch.seconds == 0.0
    list(dispatch.results())
    assert dispatch.seconds == 5.0


# Actors that are lost.


@pytest.mark.parametrize("dies_at", [0.0, 1.0, LOADING, LOADING + 0.5, LOADING + 2.5])
def test_units_of_a_lost_actor_are_done_by_another(dies_at: float) -> None:
    actors = FakeActors(3)
    actors.dies_at[1] = dies_at
    assert sorted(actors.dispatch(12).results()) == list(range(12))
    assert actors.alive == [0, 2]


def test_the_unit_of_the_last_moment_goes_to_an_idle_actor() -> None:
    """Nothing else would ever wake it."""
    actors = FakeActors(2, seconds=lambda actor, _: 9.0 if actor == 0 else 1.0)
    actors.dies_at[0] = LOADING + 8.0
    assert sorted(actors.dispatch(4).results()) == [0, 1, 2, 3]
    assert actors.now < LOADING + 8.0 + PATIENCE


def test_an_actor_that_never_loads_is_replaced_by_one_that_had_nothing_to_do() -> None:
    actors = FakeActors(3)
    actors.dies_at[0] = 1.0
    assert list(actors.dispatch(1).results()) == [0]
    assert actors.given == [(1, 0)]


def test_no_actor_left() -> None:
    actors = FakeActors(2)
    actors.dies_at = {0: LOADING + 2.5, 1: LOADING + 4.5}
    results = actors.dispatch(99).results()
    done = list(itertools.islice(results, 6))
    with pytest.raises(RetryableError, match="actor 1 is gone"):
        next(results)
    assert len(set(done)) == 6


def test_a_unit_that_kills_its_actors_ends_the_job() -> None:
    """Lost actors are not replaced by the growth, or it would go on for ever."""
    actors = FakeActors(2, most=4, seconds=lambda _, unit: 100.0 if unit == 5 else 20.0)
    work = actors.work

    def deadly(actor: int, unit: int) -> int:
        call = work(actor, unit)
        if unit == 5:
            actors.dies_at[actor] = actors._calls[call][2] - 50.0
        return call

    dispatch = Dispatch(actors, range(40), load=actors.load, work=deadly, clock=lambda: actors.now)
    done: list[int] = []
    with pytest.raises(RetryableError):
        done.extend(dispatch.results())
    assert len(set(done)) == len(done)
    assert next(actors.started) == 4


# Actors that are stuck.


def test_units_of_a_stuck_actor_are_taken_over_and_it_is_ended() -> None:
    actors = FakeActors(2, seconds=stuck_is(0))
    assert sorted(actors.dispatch(8).results()) == list(range(8))
    assert actors.killed == [0]
    assert actors.alive == [1]
    held = [unit for actor, unit in actors.given if actor == 0]
    assert len(held) == UNITS_IN_FLIGHT
    assert [unit for _, unit in actors.given[-len(held) :]] == held  # the one that it has held longest comes first


def test_nothing_is_taken_over_before_three_times_the_longest_unit() -> None:
    actors = FakeActors(2, seconds=lambda actor, unit: 50.0 if unit == 1 else 20.0)
    assert sorted(actors.dispatch(4).results()) == [0, 1, 2, 3]
    assert len(actors.given) == 4


def test_all_actors_may_be_late_at_the_end() -> None:
    """Each holds what the other has done: of the units that an actor works on at a time, the second may come first."""

    class AtOnce(FakeActors):
        def _call(self, actor: int, unit: Any, seconds: float) -> int:
            self._calls[len(self._calls)] = actor, unit, self.now + seconds
            return len(self._calls) - 1

    seconds = {(0, 0): math.inf, (0, 1): 60.0, (1, 0): 1.0, (1, 1): math.inf}
    actors = AtOnce(2, seconds=lambda actor, unit: seconds[actor, unit])
    assert list(actors.dispatch(2).results()) == [0, 1]
    assert (actors.killed, actors.alive) == ([0, 1], [])


def test_of_two_copies_the_first_result_counts() -> None:
    """A slow unit is taken over; then its first actor answers after all."""
    actors = FakeActors(2, seconds=lambda actor, unit: 30.0 if (actor, unit) == (0, 0) else 1.0)
    assert sorted(actors.dispatch(6).results()) == list(range(6))
    assert Counter(unit for _, unit in actors.given)[0] == 2
    assert actors.killed == [0]


def test_an_actor_stuck_in_loading_is_left_alone() -> None:
    actors = FakeActors(2)
    actors._free_at[0] = math.inf
    assert sorted(actors.dispatch(5).results()) == list(range(5))
    assert actors.killed == []


@pytest.mark.parametrize("in_loading", [False, True])
@pytest.mark.parametrize("num_actors", [1, 3])
def test_where_no_actor_answers_the_user_is_told_and_the_job_ends(num_actors: int, in_loading: bool) -> None:
    actors = FakeActors(num_actors, seconds=lambda *_: math.inf if len(actors.given) > 4 else 1.0)
    if in_loading:
        actors._free_at = dict.fromkeys(actors.alive, math.inf)
    done: list[int] = []
    with pytest.raises(RetryableError, match=r"no scoring actor has answered for 2 h; the same command continues"):
        done.extend(actors.dispatch(40).results())
    assert len(done) == (0 if in_loading else 4)
    assert HOPELESS_SECONDS <= actors.now < HOPELESS_SECONDS + 60
    assert 5 <= len(actors.told) <= 10
    held = min(36, 2 * num_actors)
    what = "none has loaded the model" if in_loading else f"{held} units are with them"
    assert actors.told[0] == f"no scoring actor has answered for 1 min ({what}); still waiting"


def test_who_is_slow_is_not_taken_for_stuck() -> None:
    actors = FakeActors(2, seconds=lambda *_: HOPELESS_SECONDS / 3)
    assert sorted(actors.dispatch(12).results()) == list(range(12))
    assert len(actors.given) == 12


def test_actors_that_were_not_needed_replace_those_that_never_load() -> None:
    actors = FakeActors(3)
    actors._free_at[0] = math.inf
    assert list(actors.dispatch(1).results()) == [0]
    assert actors.given == [(1, 0)]
    assert actors.now < NOTICE_SECONDS + 2


def test_whoever_is_up_first_is_asked_once() -> None:
    """As the model is examined: however long that takes, nobody else begins it as well."""
    actors = FakeActors(3, seconds=lambda *_: 1000.0)
    actors._free_at[0] = actors._free_at[1] = 2.0
    actors.dies_at[2] = 1.0
    assert list(actors.dispatch(1, only_once=True).results()) == [0]
    assert actors.given == [(0, 0)]
    assert actors.alive == [0, 1]


# Units that fail.


def failing(times: int, *units: Any, error: type[Exception] = RetryableError) -> Callable[[int, Any], Exception | None]:
    """Each of the units fails so many times, whoever tries it."""
    left = dict.fromkeys(units, times)

    def fails(actor: int, unit: Any) -> Exception | None:
        if not left.get(unit):
            return None
        left[unit] -= 1
        return error("AWS Error SLOW_DOWN")

    return fails


@pytest.mark.parametrize("num_actors", [1, 2, 5])
@pytest.mark.parametrize("units", [(0,), (7,), tuple(range(12))])
def test_a_unit_that_fails_is_tried_again_and_no_actor_is_lost(num_actors: int, units: tuple[int, ...]) -> None:
    actors = FakeActors(num_actors)
    actors.fails = failing(len(PAUSES), *units)
    assert sorted(actors.dispatch(12).results()) == list(range(12))
    assert len(actors.alive) == num_actors
    assert actors.killed == []
    assert len(actors.given) == 12 + len(units) * len(PAUSES)
    assert actors.now > sum(PAUSES)
    assert actors.told[0] == "trying again in 1 s: AWS Error SLOW_DOWN"
    assert len(actors.told) <= actors.now / 10 + 1


def test_a_unit_that_always_fails_ends_the_job_with_its_error() -> None:
    actors = FakeActors(3)
    actors.fails = failing(99, 5)
    done: list[int] = []
    with pytest.raises(RetryableError, match="SLOW_DOWN"):
        done.extend(actors.dispatch(40).results())
    assert sorted(done) == [unit for unit in range(40) if unit != 5]
    assert sum(unit == 5 for _, unit in actors.given) == len(PAUSES) + 1
    assert actors.alive == [0, 1, 2]


def test_a_full_disk_ends_the_job_at_once() -> None:
    """Each part that still fits would otherwise begin all pauses anew."""
    actors = FakeActors(2)
    actors.fails = failing(99, *range(3, 40), error=NoSpaceError)
    done: list[int] = []
    with pytest.raises(NoSpaceError):
        done.extend(actors.dispatch(40).results())
    assert set(done) <= {0, 1, 2}
    assert actors.told == []


def test_a_unit_that_fails_is_tried_elsewhere_if_somebody_is_free() -> None:
    """The network of one node may be broken."""
    actors = FakeActors(2)
    actors.fails = lambda actor, unit: RetryableError("no route") if actor == 0 and unit is not None else None
    assert sorted(actors.dispatch(30).results()) == list(range(30))
    assert actors.now < 60


def test_an_actor_that_cannot_load_for_a_while_is_kept() -> None:
    actors = FakeActors(1)
    actors.fails = failing(3, None)
    assert sorted(actors.dispatch(5).results()) == list(range(5))
    assert actors.alive == [0]
    assert len(actors.loaded) == 4


def test_an_actor_that_can_never_load_delays_nobody() -> None:
    actors = FakeActors(2, seconds=lambda *_: 20.0)
    actors.fails = lambda actor, unit: RetryableError("no route") if actor == 0 and unit is None else None
    assert sorted(actors.dispatch(30).results()) == list(range(30))
    assert actors.alive == [1]
    actors = FakeActors(1)
    actors.fails = failing(99, None)
    with pytest.raises(RetryableError, match="SLOW_DOWN"):
        list(actors.dispatch(3).results())


def test_a_driver_that_was_replaced_ends_at_once() -> None:
    actors = FakeActors(2)
    actors.fails = failing(1, 3, error=LeaseLostError)
    with pytest.raises(LeaseLostError):
        list(actors.dispatch(9).results())
    assert actors.now < LOADING + 5


# More actors.


def test_the_pool_grows_where_the_work_is_worth_it() -> None:
    actors = FakeActors(1, most=4, seconds=lambda *_: 2 * WORTH_SECONDS)
    assert sorted(actors.dispatch(20).results()) == list(range(20))
    assert actors.alive == actors.loaded == [0, 1, 2, 3]


@pytest.mark.parametrize(("most", "seconds"), [(0, 100.0), (1, 100.0), (4, WORTH_SECONDS / 20)])
def test_the_pool_does_not_grow(most: int, seconds: float) -> None:
    actors = FakeActors(1, most=most, seconds=lambda *_: seconds)
    assert sorted(actors.dispatch(20).results()) == list(range(20))
    assert actors.alive == [0]


def test_no_more_actors_than_units_are_left() -> None:
    actors = FakeActors(1, most=99, seconds=lambda *_: 1000.0)
    assert sorted(actors.dispatch(5).results()) == list(range(5))
    assert len(actors.alive) == 1 + 5 - 3  # after the first result two are held


# Anything.


@pytest.mark.parametrize("seed", range(200))
def test_whatever_happens_each_result_comes_once(seed: int) -> None:
    """Random costs, losses and stuck actors; actor 0 is sound, and there are as many units as actors."""
    generator = random.Random(seed)
    num_actors = generator.randint(1, 6)
    cost = generator.choice([0.1, 1.0, 30.0])
    stuck = {actor for actor in range(1, 20) if generator.random() < 0.2}
    actors = FakeActors(
        num_actors,
        most=generator.choice([0, num_actors, num_actors + 5]),
        seconds=lambda actor, _: math.inf if actor in stuck else generator.expovariate(1 / cost),
    )
    actors.dies_at = {actor: generator.uniform(0, 40 * cost) for actor in range(1, 20) if generator.random() < 0.3}
    tries: Counter[Any] = Counter()

    def fails(actor: int, unit: Any) -> Exception | None:
        tries[unit, actor if unit is None else None] += 1
        is_early = tries[unit, actor if unit is None else None] <= generator.choice([0, 2])
        return RetryableError("SLOW_DOWN") if is_early and generator.random() < 0.3 else None

    actors.fails = fails
    num_units = generator.randint(num_actors, 60)
    assert sorted(actors.dispatch(num_units).results()) == list(range(num_units))
    assert len(actors.alive) == len(set(actors.alive))
    assert not set(actors.alive) & set(actors.killed)


# With Ray.


class Squares:
    """A Ray actor without a model."""

    def ping(self) -> None:
        pass

    def load(self) -> None:
        pass

    def fail(self, file: str, error: Exception) -> str:
        if not Path(file).exists():
            Path(file).touch()
            raise error
        return "done"

    def work(self, unit: int, deadly: str | None) -> int:
        if deadly is not None and not Path(deadly).exists():
            Path(deadly).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        return unit**2


@pytest.mark.ray
def test_with_ray_a_process_that_dies_is_started_again(ray_local: None, tmp_path: Path) -> None:
    actors = RayActors(Squares, num_actors=2, most=2, num_cpus=0)

    def work(actor: Any, unit: int) -> Any:
        return actor.work.remote(unit, str(tmp_path / "died") if unit == 7 else None)

    dispatch = Dispatch(actors, range(20), load=lambda actor: actor.load.remote(), work=work)
    assert sorted(dispatch.results()) == [unit**2 for unit in range(20)]
    assert (tmp_path / "died").exists()
    assert len(actors.alive) == 2
    for actor in actors.alive:
        actors.end(actor)


@pytest.mark.ray
def test_with_ray_the_units_of_an_ended_actor_are_done_by_another(ray_local: None) -> None:
    actors = RayActors(Squares, num_actors=2, most=2, num_cpus=0)
    first, second = actors.alive
    for actor in actors.alive:
        answer(actor.ping.remote())

    def work(actor: Any, unit: int) -> Any:
        if unit == 0:
            actors.kill(second)  # Ray does not start it again
            with suppress(ActorLostError):
                while True:  # until it is known to be lost
                    answer(second.ping.remote())
        return actor.work.remote(unit, None)

    dispatch = Dispatch(actors, range(20), load=lambda actor: actor.load.remote(), work=work)
    assert sorted(dispatch.results()) == [unit**2 for unit in range(20)]
    assert actors.alive == [first]
    actors.end(first)


@pytest.mark.ray
@pytest.mark.parametrize("error", [RetryableError("SLOW_DOWN"), OSError(116, "Stale file handle")])
def test_with_ray_a_storage_error_leaves_the_actor_alone(ray_local: None, tmp_path: Path, error: Exception) -> None:
    actors = RayActors(Squares, num_actors=1, most=1, num_cpus=0)
    (actor,) = actors.alive

    def work(actor: Any, unit: int) -> Any:
        return actor.fail.remote(str(tmp_path / str(unit)), error)

    told: list[str] = []
    dispatch = Dispatch(actors, [1, 2], load=lambda actor: actor.load.remote(), work=work, notify=told.append)
    assert list(dispatch.results()) == ["done", "done"]
    assert actors.alive == [actor]
    assert str(error.args[-1] or error) in told[0]
    actors.end(actor)


def test_who_comes_and_goes_is_told() -> None:
    actors = FakeActors(1, most=3)
    actors.dies_at[0] = 5.0
    assert sorted(actors.dispatch(100).results()) == list(range(100))
    assert actors.crews == [3, 2]
    assert len(actors.alive) == 2
