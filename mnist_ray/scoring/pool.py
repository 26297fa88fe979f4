"""The pool of scoring actors: it scores a split into an output, each image exactly once.

A unit's part in storage is the record that the unit is done (predictions/parts.py). So a resume lists what is there,
and an actor that died, or did a unit a second time, changes nothing.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.cluster.failures import loss, raised_remotely
from mnist_ray.errors import InputError, RetryableError, one_line, require
from mnist_ray.models import conversion, files
from mnist_ray.models.build import Recipe
from mnist_ray.models.conversion import NotConverted
from mnist_ray.models.engines.openvino import ConvertedClassifier
from mnist_ray.models.view import CLASSES, EMBEDDINGS, LABELS
from mnist_ray.predictions import parts
from mnist_ray.predictions.plan import CONVERTED, MANIFEST, Plan, kept_bytes, limited, plan_units
from mnist_ray.predictions.tally import Tally, TallySum
from mnist_ray.scoring.dispatch import UNITS_IN_FLIGHT, ActorLostError, Actors, Dispatch
from mnist_ray.scoring.ledger import Ledger
from mnist_ray.scoring.process import ScoringActor, SharedTask
from mnist_ray.scoring.task import DEFAULTS, Facts, Scored, Settings, Task
from mnist_ray.sources.base import Source
from mnist_ray.storage.attempt import Attempt
from mnist_ray.storage.location import Location

_MOST_RESTARTS = 4
"""Times that Ray restarts an actor. So a unit that kills its actor is tried five times by each."""


class ActorPool:
    """Scoring actors, which import an engine in the background from the start. End them by `close` or `with`."""

    def __init__(
        self,
        num_actors: int,
        *,
        most: int = 0,
        num_cpus: float = 0,
        threads: int = 1,
        engine: str = "auto",
        place: Location | None = None,
        notify: Callable[[str], None] = lambda _: None,
        changed: Callable[[int], None] = lambda alive: None,
    ) -> None:
        """most: the number of actors up to which more are started where the first units show that it is worth it.
        num_cpus: reserved for each actor; with 0 they can wait beside a training. threads: of TensorFlow in each.
        engine: as in `Settings`. place: the folder of the run or the output, where the actors keep their logs.
        notify: called with a line on units that fail, and on actors that do not answer. changed: called with the number
        of actors when some were started, or one was lost.

        Ray must be up.
        """
        require(num_actors >= 1, "a pool without actors")
        self._notify = notify
        self._actors = RayActors(
            ScoringActor, threads, engine, place, num_actors=num_actors, most=most, num_cpus=num_cpus,
            is_numbered=True, changed=changed,
        )  # fmt: skip

    def __enter__(self) -> ActorPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the actors, whatever they do. What is committed stays."""
        for actor in self._actors.alive:
            self._actors.end(actor)

    def infer_one(
        self, model: Recipe | ConvertedClassifier, image: NDArray[np.uint8]
    ) -> tuple[list[float], list[float]]:
        """(logits, probabilities) of one image (h, w[, 3])."""
        found: tuple[list[float], list[float]] = self._ask_one(lambda actor: actor.infer_one.remote(model, image))
        return found

    def evaluate(
        self, model: Recipe | ConvertedClassifier, source: Source, split: str, *, limit: int | None = None
    ) -> Tally:
        """The tally of the first `limit` images of a split. Writes nothing. Raises InputError for a bad image."""
        units = _units(source, split, limit)
        shared = SharedTask.put(_task(model, source, split, units))
        dispatch = self._dispatch(shared, units, lambda actor, unit: actor.evaluate.remote(shared, *unit))
        first = next(results := dispatch.results())
        return TallySum(first.confusion.num_classes, first, *results).total()

    def score(
        self,
        model: Location,
        source: Source,
        split: str,
        output: Location,
        *,
        max_bad: float,
        settings: Settings = DEFAULTS,
        digest: str | None = None,
        on_progress: Callable[[int, int, int], None] | None = None,
    ) -> Scored:
        """Score a split into `output`; continue with what is there already.

        max_bad: the share of all images that may be quarantined. digest: of the model's archive, where it is known.
        on_progress(images done, images, of them in quarantine) is called in this thread, first for what is there.

        Raises InputError if `output` holds another job or the model does not fit, TooManyBadImagesError, RetryableError
        if actors were lost too often.
        """
        stored = Plan.load(output)  # an output that cannot be used is refused before a model is loaded
        if settings.retry_quarantined:
            _require_same_images(stored, output, source, split, settings.limit)
        units = stored.units if stored else _units(source, split, settings.limit)
        task = replace(
            _task(model, source, split, units), settings=settings.resuming(stored), plan=stored,
            digest=digest or files.digest(model),
        )  # fmt: skip
        task, reason = self._with_engine(task, output, may_keep=stored is None or stored.model_sha256 == task.digest)
        plan, facts = self._freeze_plan(task, stored, output, reason)
        again: dict[int, str] = {}
        done = _resume(output, plan, settings, again)
        ledger = Ledger(plan, output, done, max_bad=max_bad, on_progress=on_progress)
        if finished := ledger.finished():
            return finished
        _require_version(plan, facts, output)
        _remove_results(output)
        settings = task.settings.following(plan)
        with Attempt.begun(output) as attempt:
            task = replace(
                task, output=output, attempt=attempt, plan=plan, settings=settings, vetted=True, again=again
            )  # fmt: skip
            num_actors, seconds = self._score_units(task, ledger)
        scored = ledger.result(num_actors, seconds, ledger.images - ledger.resumed_images)
        more = {"label_classes": list(source.classes)} if plan.kind == EMBEDDINGS else {}
        parts.write_manifest(
            output, plan, ledger.committed, ids=source.id_kind, num_actors=scored.num_actors, seconds=scored.seconds,
            passed_over=dict(source.passed_over), **more,
        )  # fmt: skip
        return replace(scored, notes=tuple(_notes(plan, facts)))

    def _with_engine(self, task: Task, output: Location, *, may_keep: bool) -> tuple[Task, str | None]:
        """The task with the converted model, where there is one, and why TensorFlow computes it instead.

        may_keep: whether a model that is converted now may be kept beside the output's plan. Raises InputError where
        `--engine openvino` was asked for, and the model cannot be converted.
        """
        assert isinstance(task.model, Location)
        assert task.digest is not None
        settings = task.settings
        if settings.engine == "tensorflow" or settings.jit or settings.precision == "float64":
            return task, None
        found = files.load_converted(
            task.model, architecture=settings.architecture, view=task.view, total_rows=task.rows_to_choose_by
        )
        if found is None:
            found = conversion.read_beside(output, CONVERTED, task.digest, task.view)
        if found is None or (isinstance(found, NotConverted) and settings.engine == "openvino"):  # it may be the slower
            shared = SharedTask.put(task)
            found = self._ask_one(lambda actor: actor.convert.remote(shared))
            if may_keep:
                conversion.keep_beside(found, output, CONVERTED)
        if isinstance(found, ConvertedClassifier):
            return replace(task, model=found), None
        if settings.engine == "openvino":
            raise InputError(f"OpenVINO cannot compute {task.model}: {found.reason}; leave out --engine")
        return task, found.reason

    def _freeze_plan(self, task: Task, stored: Plan | None, output: Location, reason: str | None) -> tuple[Plan, Facts]:
        """The plan to follow, stored from here on, and the model's facts that it was made with. reason: for the
        engine."""
        settings = task.settings
        input_digest = task.source.identity()  # while the actors import an engine
        shared = SharedTask.put(task)
        facts: Facts = self._ask_one(lambda actor: actor.examine.remote(shared))
        settings.require(facts.num_classes, facts.kind)
        kept = kept_bytes(facts.num_classes, settings.top_k)
        if task.source.several:  # a byte for each label that an image may have
            kept += len(task.source.classes) if facts.kind == EMBEDDINGS else facts.num_classes
        units = stored.units if stored else _units(task.source, task.split, settings.limit, kept)
        plan = Plan(
            model_sha256=facts.digest, input_digest=input_digest, split=task.split, limit=settings.limit,
            pixels=facts.pixels, num_classes=facts.num_classes, units=tuple(units), top_k=settings.top_k,
            classes=facts.classes, precision=facts.precision, engine=facts.engine, engine_version=facts.engine_version,
            converted_sha256=facts.converted_sha256, jit=facts.execution.jit,
            batch_size=facts.execution.batch_size, changed=facts.changed,
            kind=None if facts.kind == CLASSES else facts.kind, output_name=settings.output_name,
            output_layer=settings.output_layer, thresholds=settings.thresholds_of(facts.kind, facts.num_classes),
            pixels_reason=facts.pixels_reason, pixels_assumed=facts.pixels_assumed or None,
            decoded_by=task.source.decoded_by, engine_reason=reason,
        )  # fmt: skip
        return plan.freeze(output, is_retry=settings.retry_quarantined), facts

    def _score_units(self, task: Task, ledger: Ledger) -> tuple[int, float]:
        """Score the units that are left. Returns the number of actors when the last was committed, and the seconds from
        the first begun."""
        shared = SharedTask.put(task)
        dispatch = self._dispatch(shared, ledger.units_left, lambda actor, unit: actor.score.remote(shared, unit))
        num_actors = len(self._actors.alive)
        for committed in dispatch.results():
            ledger.add(committed)
            num_actors = len(self._actors.alive)  # then those are ended that are late
        return num_actors, dispatch.seconds

    def _dispatch(self, shared: SharedTask, units: Sequence[Any], work: Callable[[Any, Any], Any]) -> Dispatch[Any]:
        return Dispatch(
            self._some_actors(), units, load=lambda actor: actor.load.remote(shared), work=work, notify=self._notify
        )

    def _ask_one(self, work: Callable[[Any], Any]) -> Any:
        """The answer of the first actor whose process is up."""
        dispatch = Dispatch(
            self._some_actors(), [0], load=lambda actor: actor.ping.remote(), work=lambda actor, _: work(actor),
            notify=self._notify, only_once=True,
        )  # fmt: skip
        (found,) = dispatch.results()
        return found

    def _some_actors(self) -> RayActors:
        """The actors; a new one where all were ended at the end of the task before, as each was late with something."""
        if not self._actors.alive:
            self._actors.alive = [self._actors.start()]
        return self._actors


class RayActors(Actors):
    """Ray actors of one class, which must have a method `ping`."""

    def __init__(
        self, actor_class: type, *arguments: Any, num_actors: int, most: int, num_cpus: float,
        is_numbered: bool = False, changed: Callable[[int], None] = lambda alive: None,
    ) -> None:  # fmt: skip
        """num_cpus: reserved for each actor. is_numbered: whether each is given its number after the arguments."""
        super().__init__(most, changed)
        import ray

        self._class: Any = ray.remote(num_cpus=num_cpus, max_restarts=_MOST_RESTARTS, max_task_retries=-1)(actor_class)
        self._arguments, self._numbers = arguments, itertools.count() if is_numbered else None
        self._places = itertools.repeat("DEFAULT") if num_cpus else itertools.cycle(_nodes_with_cpus())
        self.alive = [self.start() for _ in range(num_actors)]
        changed(num_actors)

    def start(self) -> Any:
        where = {"scheduling_strategy": next(self._places), "max_concurrency": UNITS_IN_FLIGHT}
        number = () if self._numbers is None else (next(self._numbers),)
        return self._class.options(**where).remote(*self._arguments, *number)

    def kill(self, actor: Any) -> None:
        import ray

        ray.kill(actor)

    def wait(self, calls: Sequence[Any], timeout: float) -> Any | None:
        import ray

        if not calls:
            time.sleep(timeout)
            return None
        ready, _ = ray.wait(list(calls), num_returns=1, timeout=timeout)
        return ready[0] if ready else None

    def result(self, call: Any) -> Any:
        return answer(call)


def answer(call: Any) -> Any:
    """The result of a remote call. Raises an actor's UserError as itself, RetryableError where storage failed it, and
    ActorLostError where its actor was lost."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(call)
    except RayError as error:
        cause = getattr(error, "cause", None)
        is_known = type(cause) is not RayError  # which stands for an exception that could not be pickled
        if isinstance(error, RayTaskError) and isinstance(cause, OSError | RayError) and is_known:
            raise RetryableError(f"a scoring actor could not read or write ({one_line(cause)})") from error
        if raised := raised_remotely(error):
            raise raised from None  # a UserError: one line, without the actor's traceback
        raise ActorLostError(
            f"{loss('scoring actors were lost too often', error)}; the same command continues from what is committed",
            see="runs.md#failures",
        ) from error


def _nodes_with_cpus() -> list[Any]:
    """Scheduling strategies: each node as often as it has CPUs. Without them, actors that reserve no CPU could be put
    on a head that must be kept free (`num-cpus: "0"`)."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    cpus = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]}
    rounds = range(max(cpus.values(), default=0))
    nodes = [node for turn in rounds for node, count in cpus.items() if turn < count]
    return [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes] or ["DEFAULT"]


# The steps of a scoring.


def _units(source: Source, split: str, limit: int | None, kept: int = 0) -> list[tuple[int, int]]:
    """kept: bytes of what is kept of each image's probabilities."""
    return plan_units(limited(source.units(split), limit), row_bytes=max(kept, int(np.prod(source.image_shape))))


def _task(
    model: Recipe | Location | ConvertedClassifier,
    source: Source,
    split: str,
    units: Sequence[tuple[int, int]],
) -> Task:
    """What the actors are sent at the least."""
    sizes = [stop - start for start, stop in units]
    return Task(model=model, source=source, split=split, most_rows=max(sizes), total_rows=sum(sizes))


def _require_same_images(stored: Plan | None, output: Location, source: Source, split: str, limit: int | None) -> None:
    """Raises InputError where the input cannot be that of the output with some images repaired."""
    if stored is None:
        raise InputError(f"{output} holds no predictions yet; leave out --retry-quarantined")
    images = min(source.splits[split], limit or source.splits[split])
    if images != stored.images:
        raise InputError(
            f"{source.name} now has {images:,} images, but {output} was made of {stored.images:,}; score it into"
            " another --output",
            see="predictions.md#quarantine",
        )


def _resume(output: Location, plan: Plan, settings: Settings, again: dict[int, str]) -> Iterator[parts.Committed]:
    """The units that need not be scored. Those whose quarantine is to be tried again go into `again`, with the sha256
    of their parts."""
    for each in parts.resume(output, plan):
        if settings.retry_quarantined and each.quarantine:
            again[each.unit] = each.part.sha256
        else:
            yield each


def _remove_results(output: Location) -> None:
    """So that until the end the output is visibly unfinished."""
    for result in (MANIFEST, "metrics.json", "report.html"):
        (output / result).delete()


def _require_version(plan: Plan, facts: Facts, output: Location) -> None:
    """Raises InputError where an output was begun with another version of the engine."""
    if plan.engine_version not in (None, facts.engine_version):
        raise InputError(
            f"{output} was begun with {plan.engine} {plan.engine_version}, and this is {facts.engine_version}, which"
            f" may compute other last digits; to continue, install the earlier one on every node (pip install"
            f" {plan.engine}=={plan.engine_version}); to score all images with this one, remove {output} and give the"
            " same command again",
            see="errors.md#the-output",
        )


def _thresholds(plan: Plan) -> str:
    return " or ".join(f"{each:g}" for each in sorted(set(plan.thresholds or ()))[:4])


def _notes(plan: Plan, facts: Facts) -> Iterator[str]:
    if plan.engine_reason:
        yield f"the model was computed by TensorFlow, because {plan.engine_reason}"
    if plan.pixels_reason and not plan.pixels_assumed:  # which is a warning
        yield f"the model was given pixels {plan.pixels}, because {plan.pixels_reason}; --pixels decides otherwise"
    if plan.kind == LABELS:
        yield (
            f"the model {facts.kind_reason}: its scores are one for each label, not probabilities of classes; an image"
            f" is given the labels with a score from {_thresholds(plan)} on (--threshold)"
        )
    elif facts.kind_reason:
        yield (
            f"the model {facts.kind_reason}: they are taken for one class of several (--kind labels takes them for"
            " labels)"
        )
    if facts.label_note:
        yield facts.label_note
    if plan.changed:
        changed, compared = plan.changed
        yield f"{changed:,} of the first {compared:,} predictions differ from those in float32"
    if facts.is_emulated:
        slower = "OpenVINO computes in float32 here" if plan.engine == "openvino" else "float32 is likely faster"
        yield f"this CPU has no instructions for bfloat16 (AVX512_BF16, AMX): {slower}"
