"""Dispatch of units of work to actors: who has which unit, who takes over, and when more actors are started.

Knows nothing of Ray, models or images. `Actors` is all that it asks of the actors; the pool implements it with Ray.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mnist_ray.errors import LeaseLostError, NoSpaceError, RetryableError
from mnist_ray.runs.pace import duration
from mnist_ray.scoring.stretches import Stretches

UNITS_IN_FLIGHT = 2
"""Units that an actor holds: while one waits for the storage, it computes the other. More would only be lost when it
dies."""

PATIENCE = 10.0
"""Seconds without any result after which idle actors take over units of others. At least three times a unit's."""

WORTH_SECONDS = 8.0
"""Seconds of work that justify one more actor: about twice what starting it costs."""

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds before a unit that failed is tried again. A store that says "slow down" means it for seconds to a minute."""

NOTICE_SECONDS = 60.0
"""Seconds without an answer from any actor after which the user is told; then again after twice as long. At least three
times a unit's."""

HOPELESS_SECONDS = 2 * 3600.0
"""Seconds without an answer from any actor after which the job ends. At least twenty times a unit's."""

_MENTION_SECONDS = 10.0  # between two lines on units that failed

Unit = TypeVar("Unit")


class ActorLostError(RetryableError):
    """An actor has failed for good. What a unit fails with on an actor that lives is another RetryableError."""


class Actors(ABC):
    """The actors of a pool. `actor` below is a handle, `call` a pending request to one (hashable)."""

    def __init__(self, most: int, changed: Callable[[int], None] = lambda alive: None) -> None:
        """most: the number of actors up to which `grow` starts new ones. changed: called with the number of actors when
        some were started, or one was lost."""
        self.alive: list[Any] = []
        self._most, self._changed = most, changed

    def grow(self, num_actors: int) -> list[Any]:
        """Start actors until there are `num_actors`, or as many as allowed. Returns the new ones."""
        missing = min(num_actors, self._most) - len(self.alive)
        started = [self.start() for _ in range(missing)]
        self.alive += started
        if started:
            self._changed(len(self.alive))
        return started

    def lose(self, actor: Any) -> None:
        """Forget an actor that failed for good. It is not replaced: a unit that kills its actor must not go on
        for ever."""
        if any(actor is each for each in self.alive):
            self.alive = [each for each in self.alive if each is not actor]
            self._most -= 1
            self._changed(len(self.alive))

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
        """Return one of the calls that has ended, or None after `timeout` seconds. There may be no calls."""

    @abstractmethod
    def result(self, call: Any) -> Any:
        """Return the result of a call that has ended. Raises what it raised; ActorLostError where its actor has failed
        for good."""


@dataclass(frozen=True)
class _Assignment(Generic[Unit]):
    """What an actor was asked to do."""

    actor: Any
    unit: Unit | None
    """None while the actor loads the model."""
    began: float
    """On the dispatch's clock. The time that the unit waits in the actor's queue counts."""


@dataclass
class _Silence:
    """A time without an answer from any actor."""

    since: float
    acted: float
    """When units were last taken over."""
    notices: int = 0
    """Times that the user was told."""


class Dispatch(Generic[Unit]):
    """One job: give every unit to an actor, and each unit's result once to the caller.

    An actor is given units once it has loaded the model, so a slow one delays nobody. Units of an actor that is lost,
    or that has not answered for long, are done by another; whichever result comes first counts. A unit that fails with
    a RetryableError is tried again after a pause, for which its actor rests, too; the actor stays.
    """

    def __init__(
        self,
        actors: Actors,
        units: Sequence[Unit],
        *,
        load: Callable[[Any], Any],
        work: Callable[[Any, Unit], Any],
        notify: Callable[[str], None] = lambda _: None,
        only_once: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """load(actor) and work(actor, unit) start a call and return it. units: distinct, hashable, not None.

        notify: called with a line on units that fail, and on actors that do not answer. only_once: the units go to
        whichever actors have loaded first, and no copies are made of them, however long they take.
        """
        self._actors, self._load, self._work = actors, load, work
        self._notify, self._only_once, self._clock = notify, only_once, clock
        self._num_units = len(units)
        self._waiting = Stretches(units)
        self._resting: list[tuple[float, _Assignment[Unit]]] = []
        """What has failed, and when it is tried again."""
        self._failures: Counter[Any] = Counter()
        self._done: set[Unit] = set()
        self._calls: dict[Any, _Assignment[Unit]] = {}
        self._began: float | None = None
        self._longest = 0.0
        self._mentioned = -_MENTION_SECONDS
        self.seconds = 0.0
        """From the first actor's model being loaded to the latest result."""

    def results(self) -> Iterator[Any]:
        """Yield each unit's result once, as it comes. Raises RetryableError when no actor is left, when a unit has
        failed too often, and when no actor answers any more."""
        silence = self._silence()
        # Few units are not worth loading the model everywhere.
        self._load_on(self._actors.alive if self._only_once else self._actors.alive[: self._num_units])
        while len(self._done) < self._num_units:
            call = self._actors.wait(list(self._calls), self._timeout(silence))
            self._try_again()
            if call is None:
                self._act_on(silence)
                continue
            silence = self._silence()
            assignment = self._calls.pop(call)
            try:
                result = self._actors.result(call)
            except (ActorLostError, LeaseLostError) as error:
                self._lose(assignment)
                if not self._actors.alive or isinstance(error, LeaseLostError):
                    raise
                continue
            except RetryableError as error:
                self._rest(assignment, error)
                continue
            if self._began is None:
                self._began = self._clock()
            for _ in range(UNITS_IN_FLIGHT if assignment.unit is None else 1):
                self._give_next(assignment.actor, assignment.unit)
            if assignment.unit is not None:
                if self._record(assignment.unit, assignment.began):
                    yield result
                self._grow()
        self._end_late_actors()

    def _silence(self) -> _Silence:
        return _Silence(self._clock(), self._clock())

    def _load_on(self, actors: Iterable[Any]) -> None:
        for actor in actors:
            self._calls[self._load(actor)] = _Assignment(actor, None, self._clock())

    def _give_next(self, actor: Any, after: Unit | None = None) -> None:
        """Give the actor a unit: the one after what it has done, if that waits."""
        unit = None if after is None else self._waiting.take_next(after)
        while unit is None or unit in self._done:
            unit = self._waiting.take_any({each.unit for each in self._calls.values() if each.unit is not None})
            if unit is None:
                return
        self._give(actor, unit)

    def _give(self, actor: Any, unit: Unit) -> None:
        self._calls[self._work(actor, unit)] = _Assignment(actor, unit, self._clock())

    def _idle(self) -> list[Any]:
        busy = {id(assignment.actor) for assignment in self._calls.values()}
        busy |= {id(assignment.actor) for _, assignment in self._resting}
        return [actor for actor in self._actors.alive if id(actor) not in busy]

    # Units that fail, and actors that are lost.

    def _rest(self, failed: _Assignment[Unit], error: RetryableError) -> None:
        """Try again later what has failed. A unit that has failed too often raises `error`, and so does a full disk; an
        actor that could not load the model as often is lost."""
        if failed.unit in self._done:
            self._give_next(failed.actor, failed.unit)
            return
        if isinstance(error, NoSpaceError):  # each part that still fits would begin all pauses anew
            raise error
        key = id(failed.actor) if failed.unit is None else (failed.unit,)
        self._failures[key] += 1
        if self._failures[key] > len(PAUSES):
            if failed.unit is not None:
                raise error
            self._actors.kill(failed.actor)
            self._lose(failed)
            if not self._actors.alive:
                raise error
            return
        now, pause = self._clock(), PAUSES[self._failures[key] - 1]
        self._resting.append((now + pause, failed))
        if now - self._mentioned >= _MENTION_SECONDS:
            self._mentioned = now
            self._notify(f"trying again in {pause:g} s: {error}")

    def _try_again(self) -> None:
        """Give out what has rested. A unit goes to another actor, if one has nothing to do."""
        now = self._clock()
        due = [failed for when, failed in self._resting if when <= now]
        self._resting = [(when, failed) for when, failed in self._resting if when > now]
        for failed in due:
            itself = [actor for actor in self._actors.alive if actor is failed.actor]
            if failed.unit is None:
                self._load_on(itself)
                continue
            self._waiting.put_back(failed.unit)
            for actor in [*(each for each in self._idle() if each is not failed.actor), *itself]:
                self._give_next(actor)

    def _lose(self, lost: _Assignment[Unit]) -> None:
        """Forget the actor, and give its unit to another."""
        self._actors.lose(lost.actor)
        if lost.unit is not None and lost.unit not in self._done:
            self._waiting.put_back(lost.unit)
        for actor in self._idle():
            self._give_next(actor)

    # Actors that do not answer.

    def _timeout(self, silence: _Silence) -> float:
        """Seconds until something is to be done if no actor answers meanwhile."""
        times = [silence.acted + self._patience(), silence.since + self._bearable(silence.notices)]
        return max(min(*times, *(when for when, _ in self._resting)) - self._clock(), 0.01)

    def _patience(self) -> float:
        return max(PATIENCE, 3 * self._longest)

    def _bearable(self, notices: int) -> float:
        """Seconds of silence that are borne before the user is told once more."""
        return max(NOTICE_SECONDS, 3 * self._longest) * 2.0**notices

    def _act_on(self, silence: _Silence) -> None:
        """Have others take over what does not come, tell the user, and give up in the end."""
        now = self._clock()
        if now - silence.since >= max(HOPELESS_SECONDS, 20 * self._longest):
            raise RetryableError(
                f"no scoring actor has answered for {duration(now - silence.since)}; the same command continues from"
                " what is committed",
                see="runs.md#failures",
            )
        if now >= silence.acted + self._patience():
            silence.acted = now
            if not self._only_once:
                self._take_over()
        if now >= silence.since + self._bearable(silence.notices):
            silence.notices += 1
            held = sum(each.unit is not None for each in self._calls.values())
            what = f"{held} units are with them" if held else "none has loaded the model"
            self._notify(f"no scoring actor has answered for {duration(now - silence.since)} ({what}); still waiting")
            for actor in self._idle():  # which were not worth loading the model on
                self._give_next(actor)

    def _take_over(self) -> None:
        """Give idle actors a copy of what other actors hold, the oldest first. Their node may be gone, and Ray may have
        no place to restart them."""
        held = dict.fromkeys(each.unit for each in self._calls.values() if each.unit is not None)
        not_done = [unit for unit in held if unit not in self._done]
        for actor, unit in zip(self._idle(), not_done, strict=False):
            self._give(actor, unit)

    # Units that are done.

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
