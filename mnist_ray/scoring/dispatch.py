"""Dispatch of units of work to actors: who has which unit, who takes over, and when more actors are started.

Knows nothing of Ray, models or images. `Actors` is all that it asks of the actors; the pool implements it with Ray.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mnist_ray.errors import RetryableError

UNITS_IN_FLIGHT = 2
"""Units that an actor holds: one that it works on and one that waits. More would only be lost when it dies."""

PATIENCE = 10.0
"""Seconds without any result after which idle actors take over units of others. At least three times a unit's."""

WORTH_SECONDS = 8.0
"""Seconds of work that justify one more actor: about twice what starting it costs."""

Unit = TypeVar("Unit")


class Actors(ABC):
    """The actors of a pool. `actor` below is a handle, `call` a pending request to one (hashable)."""

    def __init__(self, most: int) -> None:
        """most: the number of actors up to which `grow` starts new ones."""
        self.alive: list[Any] = []
        self._most = most

    def grow(self, num_actors: int) -> list[Any]:
        """Start actors until there are `num_actors`, or as many as allowed. Returns the new ones."""
        missing = min(num_actors, self._most) - len(self.alive)
        started = [self.start() for _ in range(missing)]
        self.alive += started
        return started

    def lose(self, actor: Any) -> None:
        """Forget an actor that failed for good. It is not replaced: a unit that kills its actor must not go on
        for ever."""
        if any(actor is each for each in self.alive):
            self.alive = [each for each in self.alive if each is not actor]
            self._most -= 1

    def end(self, actor: Any) -> None:
        """Stop an actor whatever it does, and forget it."""
        self.kill(actor)
        self.alive = [each for each in self.alive if each is not actor]

    @abstractmethod
    def start(self) -> Any:
        """Start an actor and return its handle."""

    @abstractmethod
    def kill(self, actor: Any) -> None:
        """Stop an actor whatever it does."""

    @abstractmethod
    def wait(self, calls: Sequence[Any], timeout: float) -> Any | None:
        """Return one of the calls that has ended, or None after `timeout` seconds."""

    @abstractmethod
    def result(self, call: Any) -> Any:
        """Return the result of a call that has ended. Raises RetryableError where its actor has failed for good."""


@dataclass(frozen=True)
class _Assignment(Generic[Unit]):
    """What an actor was asked to do."""

    actor: Any
    unit: Unit | None
    """None while the actor loads the model."""
    began: float
    """On the dispatch's clock. The time that the unit waits in the actor's queue counts."""


class Dispatch(Generic[Unit]):
    """One job: give every unit to an actor, and each unit's result once to the caller.

    An actor is given units once it has loaded the model, so a slow one delays nobody. Units of an actor that is lost,
    or that has not answered for long, are done by another; whichever result comes first counts.
    """

    def __init__(
        self,
        actors: Actors,
        units: Sequence[Unit],
        *,
        load: Callable[[Any], Any],
        work: Callable[[Any, Unit], Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """load(actor) and work(actor, unit) start a call and return it. units: distinct, hashable, not None."""
        self._actors, self._load, self._work, self._clock = actors, load, work, clock
        self._num_units = len(units)
        self._waiting = deque(units)
        self._done: set[Unit] = set()
        self._calls: dict[Any, _Assignment[Unit]] = {}
        self._began: float | None = None
        self._longest = 0.0
        self.seconds = 0.0
        """From the first actor's model being loaded to the latest result."""

    def results(self) -> Iterator[Any]:
        """Yield each unit's result once, as it comes. Raises RetryableError when no actor is left."""
        self._load_on(self._actors.alive[: self._num_units])  # few units are not worth loading the model everywhere
        while len(self._done) < self._num_units:
            call = self._actors.wait(list(self._calls), timeout=max(PATIENCE, 3 * self._longest))
            if call is None:
                self._take_over()
                continue
            assignment = self._calls.pop(call)
            try:
                result = self._actors.result(call)
            except RetryableError:
                self._lose(assignment)
                if not self._actors.alive:
                    raise
                continue
            if self._began is None:
                self._began = self._clock()
            for _ in range(UNITS_IN_FLIGHT if assignment.unit is None else 1):
                self._give_next(assignment.actor)
            if assignment.unit is not None:
                if self._record(assignment.unit, assignment.began):
                    yield result
                self._grow()
        self._end_late_actors()

    def _load_on(self, actors: Iterable[Any]) -> None:
        for actor in actors:
            self._calls[self._load(actor)] = _Assignment(actor, None, self._clock())

    def _give_next(self, actor: Any) -> None:
        if self._waiting:
            self._give(actor, self._waiting.popleft())

    def _give(self, actor: Any, unit: Unit) -> None:
        self._calls[self._work(actor, unit)] = _Assignment(actor, unit, self._clock())

    def _idle(self) -> list[Any]:
        busy = {id(assignment.actor) for assignment in self._calls.values()}
        return [actor for actor in self._actors.alive if id(actor) not in busy]

    def _take_over(self) -> None:
        """Give idle actors a copy of what other actors hold, the oldest first. Their node may be gone, and Ray may have
        no place to restart them."""
        held = dict.fromkeys(each.unit for each in self._calls.values() if each.unit is not None)
        not_done = [unit for unit in held if unit not in self._done]
        for actor, unit in zip(self._idle(), not_done, strict=False):
            self._give(actor, unit)

    def _lose(self, lost: _Assignment[Unit]) -> None:
        """Forget the actor, and give its unit to another."""
        self._actors.lose(lost.actor)
        if lost.unit is not None and lost.unit not in self._done:
            self._waiting.append(lost.unit)
        for actor in self._idle():
            self._give_next(actor)

    def _record(self, unit: Unit, began: float) -> bool:
        """Record that a unit is done. Returns False if it was done before, by another actor."""
        assert self._began is not None
        now = self._clock()
        self.seconds = now - self._began
        self._longest = max(self._longest, now - began)
        is_first = unit not in self._done
        self._done.add(unit)
        return is_first

    def _grow(self) -> None:
        """Start actors where the units so far have shown that enough work is left for them."""
        actors, done = len(self._actors.alive), len(self._done)
        work_left = self.seconds * actors / done * (self._num_units - done)  # seconds of one actor
        wanted = min(int(work_left / WORTH_SECONDS), actors + len(self._waiting))
        self._load_on(self._actors.grow(wanted))

    def _end_late_actors(self) -> None:
        """End actors that still work on a copy of what another has done: they must not write any more."""
        late = {id(each.actor): each.actor for each in self._calls.values() if each.unit is not None}
        for actor in late.values():
            self._actors.end(actor)
