"""The fan-out: a pool of Ray actors that score units of work, each image exactly once.

A unit's part in storage is the record that it is done (`predictions.py`), so a resume lists what is there and an
actor that died, or answered twice, changes nothing.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray import inference, model, predictions
from mnist_ray.errors import InputError, RetryableError, TooManyBadImagesError, UserError
from mnist_ray.inference import Inference, label_table
from mnist_ray.metrics import Tally
from mnist_ray.model import Loaded, Recipe
from mnist_ray.predictions import Committed, Plan, limited, plan_units
from mnist_ray.predictions import Verified as Verified
from mnist_ray.predictions import verify as verify
from mnist_ray.sources import Bad, Batch, Source
from mnist_ray.storage import Location

UNITS_IN_FLIGHT = 2
"""An actor has its next unit waiting when it finishes one; more would only be memory and waste on a failure."""
_MOST_RESTARTS = 4  # of an actor, and so of a unit that kills it


@dataclass(frozen=True)
class Scored:
    """What a scoring gave."""

    tally: Tally
    images: int
    scored: int
    quarantined: int
    num_actors: int
    seconds: float
    """From the first unit's begin to the last one's commit, of this start (of the one that finished, if none is left)."""
    images_per_second: float
    pixels: str
    """0-255 or 0-1: what the model was given."""


class Scorers:
    """The pool. Its actors import TensorFlow in the background from the start; end it by `close` or `with`."""

    def __init__(self, num_actors: int, *, num_cpus: float = 0, threads: int = 1) -> None:
        """num_cpus: reserved for each actor. threads: of TensorFlow in each. Ray must be up."""
        assert num_actors >= 1
        import ray

        actor = ray.remote(num_cpus=num_cpus, max_restarts=_MOST_RESTARTS, max_task_retries=_MOST_RESTARTS)(_Actor)
        self._actors: list[Any] = [actor.remote(threads) for _ in range(num_actors)]

    def __enter__(self) -> Scorers:
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
        actor = self._first_ready()
        result: tuple[list[float], list[float]] = _answer(lambda: actor.look.remote(of, image))
        return result

    def evaluate(self, of: Recipe | Location, source: Source, split: str, *, limit: int | None = None) -> Tally:
        """The tally of a split's first `limit` images. Nothing is written; a row that cannot be read is an InputError."""
        units = _units(source, split, limit)
        task = _Task(model=of, source=source, split=split, most_rows=_longest(units))
        tallies = self._spread("evaluate", _Shared.put(task), units)
        first = next(tallies)
        return sum(tallies, first)

    def score(
        self,
        of: Location,
        source: Source,
        split: str,
        output: Location,
        *,
        max_bad: float,
        limit: int | None = None,
        pixels: str | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Scored:
        """Predictions of a split's first `limit` images into `output`; what is there already is gone on with.

        max_bad: share of all images that may be quarantined. pixels: 0-255 or 0-1, asked of the model when None.
        on_progress(images done, images) is called in this thread. Raises InputError where `output` is of something
        else or the model does not fit; TooManyBadImagesError.
        """
        digest = model.digest(of)
        units = _units(source, split, limit)
        task = _Task(model=of, source=source, split=split, pixels=pixels, output=output, most_rows=_longest(units))
        facts = self._facts(task)
        plan = Plan(
            model_sha256=digest, input_digest=source.digest(), split=split, limit=limit, pixels=facts.pixels,
            num_classes=facts.num_classes, units=tuple(units),
        ).freeze(output)  # fmt: skip
        task = replace(task, plan=plan, pixels=plan.pixels, vetted=digest, most_rows=_longest(plan.units))
        progress = _Progress(plan, output, max_bad, predictions.resume(output, plan), on_progress)
        if not progress.left and (told := _finished(output)):
            return progress.scored(told["seconds"], told["num_actors"], plan.images)
        (output / predictions.MANIFEST).delete()  # until the end the output is unfinished, and shows it
        began, before = None, progress.images
        clock = _Stopwatch()
        for committed in self._spread("score", _Shared.put(task), progress.left, on_begin=clock.start):
            progress.add(committed)
        clock.stop()
        del began
        scored = progress.scored(clock.seconds, len(self._actors), progress.images - before)
        predictions.write_manifest(
            output, plan, progress.done, pixels=plan.pixels, num_actors=scored.num_actors, seconds=scored.seconds
        )
        return scored
