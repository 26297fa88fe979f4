"""A process that scores: `Scorer` as a Ray actor, with its log."""

from __future__ import annotations

import functools
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mnist_ray.cluster.gauges import BytesRead
from mnist_ray.errors import UserError
from mnist_ray.models import files, inference, runtime
from mnist_ray.models.build import Recipe
from mnist_ray.models.conversion import MOST_IMAGES, NotConverted
from mnist_ray.models.engines.openvino import ConvertedClassifier, import_openvino
from mnist_ray.predictions.parts import Committed
from mnist_ray.predictions.tally import Tally
from mnist_ray.runs.process_log import MOST_WORKERS, ProcessLog, worker_log
from mnist_ray.scoring.actor import Scorer, ready
from mnist_ray.scoring.task import Facts, Task
from mnist_ray.storage.location import Location

R = TypeVar("R")


@dataclass(frozen=True)
class SharedTask:
    """A task in Ray's object store. Ray passes a reference that is in a list on as it is, instead of the object, so an
    actor that restarts can get the task again."""

    key: str
    reference: list[Any]

    @classmethod
    def put(cls, task: Task) -> SharedTask:
        import ray

        return cls(uuid.uuid4().hex, [ray.put(task)])


def _logged(method: Callable[..., R]) -> Callable[..., R]:
    """A method of an actor that keeps the traceback of what it raises, as Ray passes on the error alone."""

    @functools.wraps(method)
    def call(actor: ScoringActor, *arguments: Any) -> R:
        try:
            return method(actor, *arguments)
        except Exception:
            if actor._log:
                actor._log.failed()
            raise

    return call


class ScoringActor:
    """A process that scores: `Scorer` as a Ray actor. It keeps the model of the last task.

    It works on two units at a time, each in a thread: while one waits for the storage, the other computes.
    """

    def __init__(self, threads: int, engine: str, place: Location | None = None, number: int = 0) -> None:
        """threads: of TensorFlow, once a task needs it. engine: tensorflow, where that is known; it takes seconds.
        place: the folder of the run or the output: for its log, which the number names, and for Ray's metrics."""
        self._threads = threads
        keeps = place is not None and number < MOST_WORKERS
        self._log = ProcessLog(worker_log(place, f"score-{number}")) if place and keeps else None
        self._counter = BytesRead(str(place)) if place else None
        self._failure: UserError | None = None
        try:
            if engine == "tensorflow":
                self._import_tensorflow()
            else:
                import_openvino()
        except UserError as error:  # raised here, it would end the process, and Ray would start another
            self._failure = error
        self._key = ""
        self._scorer: Scorer | None = None
        self._lock = threading.Lock()

    def _import_tensorflow(self) -> None:
        runtime.import_keras(threads=self._threads)

    def ping(self) -> None:
        """Answers once the process has imported an engine. Raises InputError where that is impossible."""
        if self._failure:
            raise self._failure

    def infer_one(
        self, model: Recipe | ConvertedClassifier, image: NDArray[np.uint8]
    ) -> tuple[list[float], list[float]]:
        """(logits, probabilities) of one image (h, w[, 3])."""
        if isinstance(model, Recipe):
            self._import_tensorflow()
        return inference.compute_one(ready(model), image)

    @_logged
    def convert(self, shared: SharedTask) -> ConvertedClassifier | NotConverted:
        """Convert a task's model, whose file is loaded in another process alone."""
        import ray

        task: Task = ray.get(shared.reference[0])
        assert isinstance(task.model, Location)
        settings = task.settings
        images = task.source.read(task.split, 0, min(MOST_IMAGES, task.total_rows), strict=False).images
        return files.convert(
            task.model, images, architecture=settings.architecture, view=task.view,
            total_rows=task.rows_to_choose_by,
        )  # fmt: skip

    @_logged
    def examine(self, shared: SharedTask) -> Facts:
        return self._scorer_for(shared).examine()

    @_logged
    def load(self, shared: SharedTask) -> None:
        """Load and compile the model, so that the first unit takes no longer than the others."""
        self._scorer_for(shared).inference.warm_up()

    @_logged
    def evaluate(self, shared: SharedTask, start: int, stop: int) -> Tally:
        return self._scorer_for(shared).evaluate(start, stop)

    @_logged
    def score(self, shared: SharedTask, unit: int) -> Committed:
        scorer = self._scorer_for(shared)
        assert scorer.task.attempt is not None
        with scorer.task.attempt.fenced():
            committed = scorer.score(unit)
            if self._counter:
                self._counter.show()
            if self._log:  # now, as its process is killed when all is done
                self._log.flush()
            return committed

    def _scorer_for(self, shared: SharedTask) -> Scorer:
        with self._lock:
            if self._scorer is None or self._key != shared.key:
                import ray

                task: Task = ray.get(shared.reference[0])
                if not isinstance(task.model, ConvertedClassifier):
                    self._import_tensorflow()
                self._scorer = Scorer(task, self._scorer)
                self._key = shared.key
            return self._scorer
