"""The fan-out: a pool of Ray actors that score units of work, each image exactly once.

A unit's part in storage is the record that it is done (`predictions.py`): a resume lists what is there, and an actor
that died, or did a unit twice, changes nothing.
"""

from __future__ import annotations

import functools
import itertools
import operator
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import InputError, RetryableError, TooManyBadImagesError, UserError
from mnist_ray.models import files
from mnist_ray.models.build import Recipe
from mnist_ray.predictions import parts
from mnist_ray.predictions.parts import Committed
from mnist_ray.predictions.plan import MANIFEST, QUARANTINE, Plan, limited, plan_units
from mnist_ray.predictions.tally import Tally
from mnist_ray.scoring.actor import ScoringActor, SharedTask
from mnist_ray.scoring.task import DEFAULTS, Facts, Settings, Task
from mnist_ray.sources.base import Source
from mnist_ray.storage.location import Location

UNITS_IN_FLIGHT = 2
"""An actor has its next unit waiting when it finishes one; more would only be lost work when it dies."""

_MOST_RESTARTS = 4  # of an actor: a unit that kills its actor is tried so often by each

_WORTH_SECONDS = 8.0  # of work: what starting another actor costs, about twice

_PATIENCE = 10.0  # seconds without a result until idle actors take over what others have, three times a unit's at least


@dataclass(frozen=True)
class Scored:
    """What a scoring gave."""

    tally: Tally
    images: int
    scored: int
    quarantined: int
    num_actors: int
    seconds: float
    """From the first unit begun to the last committed, of this start; where nothing was left to do, of the last one."""
    images_per_second: float
    plan: Plan
    """What was followed."""
    notes: tuple[str, ...] = ()
    """What the user should know of how it was done."""


class ActorPool:
    """The pool. Its actors import TensorFlow in the background from the start; end them by `close` or `with`."""

    def __init__(self, num_actors: int, *, most: int = 0, num_cpus: float = 0, threads: int = 1) -> None:
        """most: actors that there may be in the end, where the first units show that the model takes its time.
        num_cpus: reserved for each actor; with 0 they wait beside a training. threads: of TensorFlow in each.

        Ray must be up.
        """
        assert num_actors >= 1
        import ray

        actor = ray.remote(num_cpus=num_cpus, max_restarts=_MOST_RESTARTS, max_task_retries=-1)(ScoringActor)
        places = itertools.repeat("DEFAULT") if num_cpus else itertools.cycle(_nodes_with_cpus())
        self._more = (actor.options(scheduling_strategy=place).remote(threads) for place in places)
        self._most = most
        self._actors: list[Any] = list(itertools.islice(self._more, num_actors))

    def __enter__(self) -> ActorPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the actors, whatever they do. What is committed stays."""
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def look(self, of: Recipe | Location, image: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
        """(logits, probabilities) of one image (h, w[, 3])."""
        looked: tuple[list[float], list[float]] = answer(self._first_ready().look.remote(of, image))
        return looked

    def evaluate(self, of: Recipe | Location, source: Source, split: str, *, limit: int | None = None) -> Tally:
        """The tally of a split's first `limit` images. Nothing is written; InputError for a row that cannot be read."""
        units = _units(source, split, limit)
        task = Task(model=of, source=source, split=split, most_rows=_most_rows(units), total_rows=_rows(units))
        tally: Tally = functools.reduce(operator.add, self._spread("evaluate", task, units))
        return tally

    def score(
        self,
        of: Location,
        source: Source,
        split: str,
        output: Location,
        *,
        max_bad: float,
        settings: Settings = DEFAULTS,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Scored:
        """Predictions of a split into `output`. What is there already is gone on with.

        max_bad: share of all images that may be quarantined. on_progress(images done, images) is called in this thread.
        Raises InputError where `output` holds something else or the model does not fit, TooManyBadImagesError,
        RetryableError where actors were lost too often.
        """
        plan = Plan.load(output)  # a folder that cannot be used is refused before anything is loaded
        units = plan.units if plan else _units(source, split, settings.limit)
        if settings.retry_quarantined:
            _check_mended(plan, output, source, split, settings.limit)
        if plan:  # the way that it has chosen, unless another is asked for, which is then refused
            settings = replace(
                settings,
                jit=plan.jit if settings.jit is None else settings.jit,
                batch_size=settings.batch_size or plan.batch_size,
            )
        task = Task(
            model=of, source=source, split=split, most_rows=_most_rows(units), total_rows=_rows(units),
            settings=settings, digest=files.digest(of), plan=plan,
        )  # fmt: skip
        input_digest = source.identity()  # while the actors import TensorFlow
        facts: Facts = answer(self._first_ready().facts.remote(SharedTask.put(task)))
        if settings.top_k is not None and settings.top_k > facts.num_classes:
            raise InputError(
                f"--top-k {settings.top_k} is more than the model's {facts.num_classes} classes; give fewer"
            )
        plan = Plan(
            model_sha256=facts.digest, input_digest=input_digest, split=split, limit=settings.limit,
            pixels=facts.pixels, num_classes=facts.num_classes, units=tuple(units), top_k=settings.top_k,
            classes=facts.classes, precision=facts.precision, jit=facts.execution.jit,
            batch_size=facts.execution.batch_size, changed=facts.changed,
        ).freeze(output, is_mended=settings.retry_quarantined)  # fmt: skip
        settings = replace(settings, pixels=plan.pixels, precision=plan.precision, jit=plan.jit,
                           batch_size=plan.batch_size)  # fmt: skip
        done = parts.resume(output, plan)
        if settings.retry_quarantined:
            done = [each for each in done if not each.quarantine]
        progress = _Progress(plan, output, max_bad, done, on_progress)
        if not progress.left and (told := progress.finished()):
            return progress.scored(told["num_actors"], told["seconds"], plan.images)
        for result in (MANIFEST, "metrics.json", "report.html"):
            (output / result).delete()  # until the end the output is unfinished, and shows it
        task = replace(task, output=output, plan=plan, settings=settings, vetted=True)
        done_before = progress.images
        for committed in self._spread("score", task, [(unit,) for unit in progress.left], on_begin=progress.begin):
            progress.add(committed)
        scored = progress.scored(len(self._actors), progress.seconds, progress.images - done_before)
        parts.write_manifest(
            output, plan, progress.done, pixels=plan.pixels, num_actors=scored.num_actors, seconds=scored.seconds
        )
        return replace(scored, notes=tuple(_notes(plan, facts)))

    def _grow(self, num_actors: int) -> list[Any]:
        """Start actors until there are so many, `most` at most; those that are new."""
        started = list(itertools.islice(self._more, max(min(num_actors, self._most) - len(self._actors), 0)))
        self._actors += started
        return started

    def _first_ready(self) -> Any:
        """An actor that has imported TensorFlow."""
        import ray

        calls = {actor.ping.remote(): actor for actor in self._actors}
        ready = ray.wait(list(calls), num_returns=1)[0][0]
        answer(ready)
        return calls[ready]

    def _spread(
        self,
        method: str,
        task: Task,
        units: Sequence[tuple[int, ...]],
        on_begin: Callable[[], None] | None = None,
    ) -> Iterator[Any]:
        """Call a method of the actors for each unit; the results as they come.

        An actor gets units once it has loaded the model: a slow one holds nobody up. on_begin is called before the
        first unit. What was given to an actor that is gone, or is not heard of for long, is done by another.
        """
        import ray

        shared, left, done = SharedTask.put(task), deque(units), set[tuple[int, ...]]()
        # A few units are not worth loading the model everywhere.
        calls: dict[Any, tuple[Any, tuple[int, ...] | None, float]] = {
            actor.prepare.remote(shared): (actor, None, 0.0) for actor in self._actors[: len(units)]
        }

        def give(actor: Any, unit: tuple[int, ...]) -> None:
            calls[getattr(actor, method).remote(shared, *unit)] = actor, unit, time.monotonic()

        def idle() -> list[Any]:
            return [actor for actor in self._actors if all(actor is not busy for busy, *_ in calls.values())]

        first_given = 0.0  # when
        longest = 0.0  # that a unit has taken, with its time in the queue
        while len(done) < len(units):
            ready, _ = ray.wait(list(calls), num_returns=1, timeout=max(_PATIENCE, 3 * longest))
            if not ready:  # its node may be gone, and Ray without a place to start it again
                stuck = [unit for unit in units if unit not in done and unit not in left]
                for other, again in zip(idle(), stuck, strict=False):
                    give(other, again)
                continue
            actor, unit, began = calls.pop(ready[0])
            try:
                result = answer(ready[0])
            except RetryableError:  # lost for good
                self._actors = [other for other in self._actors if other is not actor]
                self._most -= 1  # or a unit that kills its actor would go on for ever
                if not self._actors:
                    raise
                if unit is not None and unit not in done:
                    left.append(unit)
                for other in idle():
                    if left:
                        give(other, left.popleft())
                continue
            if on_begin:
                on_begin()
                on_begin = None
            first_given = first_given or time.monotonic()
            for _ in range(min(UNITS_IN_FLIGHT if unit is None else 1, len(left))):
                give(actor, left.popleft())
            if unit is not None:
                longest = max(longest, time.monotonic() - began)
                if unit not in done:
                    done.add(unit)
                    yield result
                to_come = (time.monotonic() - first_given) * (len(units) - len(done)) / len(done) * len(self._actors)
                for another in self._grow(min(int(to_come / _WORTH_SECONDS), len(self._actors) + len(left))):
                    calls[another.prepare.remote(shared)] = another, None, 0.0
        late = [actor for actor, unit, _ in calls.values() if unit is not None]
        for actor in late:  # with a copy of what another has done: it is not to write any more
            ray.kill(actor)
        self._actors = [actor for actor in self._actors if all(actor is not other for other in late)]


def _nodes_with_cpus() -> list[Any]:
    """Scheduling strategies, a node each as often as it has CPUs: an actor that reserves none could land on a head
    that is kept free (`num-cpus: "0"`)."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    cpus = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]}
    rounds = range(max(cpus.values(), default=0))
    nodes = [node for turn in rounds for node, count in cpus.items() if turn < count]
    return [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes] or ["DEFAULT"]


def _units(source: Source, split: str, limit: int | None) -> list[tuple[int, int]]:
    return plan_units(limited(source.units(split), limit), row_bytes=int(np.prod(source.image_shape)))


def _check_mended(plan: Plan | None, output: Location, source: Source, split: str, limit: int | None) -> None:
    """Raises InputError where an input cannot be that of an output, with some images mended."""
    if plan is None:
        raise InputError(f"{output} holds no predictions yet; leave --retry-quarantined out")
    images = min(source.splits[split], limit or source.splits[split])
    if images != plan.images:
        raise InputError(
            f"{source.name} gives {images:,} images now, but {output} is of {plan.images:,}; score it into another"
            " --output",
            see="predictions.md#quarantine",
        )


def _notes(plan: Plan, facts: Facts) -> Iterator[str]:
    if plan.changed:
        yield "{:,} of the first {:,} predictions are others than in float32".format(*plan.changed)
    if facts.is_emulated:
        yield "this CPU has no instructions for bfloat16 (AVX512_BF16, AMX): float32 is likely faster"


def _rows(units: Sequence[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in units)


def _most_rows(units: Sequence[tuple[int, int]]) -> int:
    return max(stop - start for start, stop in units)


def answer(call: Any) -> Any:
    """The result of a remote call; what the user can act on is raised as itself."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(call)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None  # the user's one line, not the actor's traceback
        raise
    except RayError as error:
        raise RetryableError(
            f"scoring actors were lost too often ({type(error).__name__}); the same command continues from what is"
            " committed",
            see="runs.md#failures",
        ) from error


class _Progress:
    """What is committed, and whether too much of it is bad."""

    def __init__(
        self,
        plan: Plan,
        output: Location,
        max_bad: float,
        done: Sequence[Committed],
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        self.done: list[Committed] = []
        self.images = self.quarantined = 0
        self.seconds = 0.0
        self._began = 0.0
        self._plan, self._output, self._max_bad, self._on_progress = plan, output, max_bad, on_progress
        finished = {each.unit for each in done}
        self.left = [unit for unit in range(len(plan.units)) if unit not in finished]
        for committed in done:
            self.add(committed)

    def begin(self) -> None:
        self._began = time.perf_counter()

    def add(self, committed: Committed) -> None:
        self.done.append(committed)
        self.images += committed.part.rows + committed.quarantined
        self.quarantined += committed.quarantined
        if self._began:
            self.seconds = time.perf_counter() - self._began
        if self.quarantined > self._max_bad * self._plan.images:
            raise TooManyBadImagesError(
                f"{self.quarantined:,} of {self._plan.images:,} images cannot be scored, more than --max-bad"
                f" {self._max_bad:g}; why is in {self._output / QUARANTINE}",
                see="predictions.md#quarantine",
            )
        if self._on_progress:
            self._on_progress(self.images, self._plan.images)

    def finished(self) -> dict[str, Any] | None:
        """The manifest that is there, where it is of exactly these parts."""
        try:
            manifest: dict[str, Any] = (self._output / MANIFEST).read_json()
        except (FileNotFoundError, InputError):
            return None
        parts = [asdict(each.part) for each in sorted(self.done, key=lambda each: each.unit)]
        return manifest if manifest.get("parts") == parts else None

    def scored(self, num_actors: int, seconds: float, images: int) -> Scored:
        """images: that were scored within the seconds."""
        assert self.images == self._plan.images
        in_order = (each.tally for each in sorted(self.done, key=lambda each: each.unit))
        return Scored(
            # Losses are floats: added in the order of the units they give the same sum, whoever was first.
            tally=functools.reduce(operator.add, in_order, Tally.zero(self._plan.num_classes)),
            images=self.images,
            scored=self.images - self.quarantined,
            quarantined=self.quarantined,
            num_actors=num_actors,
            seconds=seconds,
            images_per_second=images / seconds if seconds else 0.0,
            plan=self._plan,
        )
