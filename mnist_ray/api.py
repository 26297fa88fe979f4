"""The job from Python: `mnist_ray.run` and the others are the commands, with the same options, defaults and errors.

Each takes the fields of its configuration (`config.py`) as arguments, so type checkers, editors and `help` know them
from there, and there is no second list. What computes is imported when a function is called.
"""

from __future__ import annotations

import inspect
import logging
import os
import time
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from mnist_ray.config import RunConfig, ScoreConfig, ShardConfig, Talk, TrainConfig
from mnist_ray.errors import InputError
from mnist_ray.options import Options
from mnist_ray.results import Epoch, Evaluation, RunResult, ScoreResult, ShardResult, TrainResult
from mnist_ray.shadows import PACKAGES, shadow

if TYPE_CHECKING:
    import pyarrow.dataset

    from mnist_ray.console import Console
    from mnist_ray.predictions.verify import Verified

P = ParamSpec("P")
C = TypeVar("C", bound=Talk)
R = TypeVar("R")


def _takes(kind: Callable[P, C]) -> Callable[[Callable[[C, Console, float], R]], Callable[P, R]]:
    """Decorate a function of (a configuration, where to print, when it began) as one of the configuration's fields."""

    def decorate(function: Callable[[C, Console, float], R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **options: P.kwargs) -> R:
            began = time.time()
            config = kind(*args, **options)
            refuse_shadows()
            check_relative_paths(config)
            logging.getLogger("ray.widgets").setLevel(logging.WARNING)  # `import ray` in a notebook asks for ipywidgets
            from mnist_ray.cluster.connect import is_in_a_task
            from mnist_ray.cluster.ray_private import tell_job_id
            from mnist_ray.console import Console

            tell_job_id()
            is_quiet = config.quiet or ("quiet" not in options and is_in_a_task())
            return function(config, Console(quiet=is_quiet, as_json=config.log_format == "json"), began)

        made: Any = call
        returned = function.__annotations__["return"]
        made.__signature__ = inspect.signature(kind, eval_str=True).replace(return_annotation=returned)
        made.__doc__ = f"{function.__doc__}\n\nOptions:\n{_listed(kind)}"
        return call

    return decorate


def _listed(kind: Any) -> str:
    """The options of a configuration, with their help and what happens without a value, as on the command line."""
    lines = []
    for option in kind.options():
        unset = f" [default: {option.rules.unset}]" if option.rules.unset else ""
        lines.append(f"    {option.name}: {option.rules.help}{unset}")
    return "\n".join(lines)


def refuse_shadows(folder: str = ".") -> None:
    """Raise InputError where a file in the folder takes the place of a package that every process imports."""
    if message := shadow(folder, PACKAGES):
        raise InputError(message, see="errors.md#the-cluster")


def check_relative_paths(options: Options) -> None:
    """Raise InputError where a relative path would be written in the folder of a Ray job, which goes with it."""
    if "/_ray_pkg_" in os.getcwd() and (there := options.written_to()):  # noqa: PTH109 - a job's own folder
        from mnist_ray.cluster.jobs import require_absolute

        require_absolute(*there)


@_takes(RunConfig)
def run(config: RunConfig, console: Console, began: float) -> RunResult:
    """Shard, train, score and report, as `mnist-ray run`. An unfinished run of this name continues, and of a finished
    one the result is returned."""
    from mnist_ray import pipeline

    metrics = pipeline.run(config, console, began)
    if "after" not in metrics:
        raise InputError(f"{config.written_to()[1]} holds what `train` made, without scores; use another name")
    before, after = (Evaluation.of(metrics[name]) for name in ("before", "after"))
    return RunResult(**_trained(config, metrics), before=before, after=after)


@_takes(ShardConfig)
def shard(config: ShardConfig, console: Console, began: float) -> ShardResult:
    """Write labelled images as Parquet shards, as `mnist-ray shard`."""
    from mnist_ray import pipeline
    from mnist_ray.storage.location import Location

    manifest = pipeline.shard(config, console, began)
    return ShardResult(
        folder=str(Location.parse(config.destination)),
        images=manifest.counts,
        shards={split: len(shards) for split, shards in manifest.shards.items()},
        image_shape=tuple(manifest.image_shape),
        classes=manifest.classes,
    )


@_takes(TrainConfig)
def train(config: TrainConfig, console: Console, began: float) -> TrainResult:
    """Train a model on what `shard` wrote, as `mnist-ray train`."""
    from mnist_ray import pipeline

    return TrainResult(**_trained(config, pipeline.train(config, console, began)))


def _trained(config: RunConfig | TrainConfig, metrics: dict[str, Any]) -> dict[str, Any]:
    """The fields that a run and a training have in common."""
    from mnist_ray.runs.folder import RunFolder

    return {
        "folder": str(RunFolder.at(config.storage, config.name).root),
        "epochs": tuple(map(Epoch.of, metrics["train"]["epochs"])),
        "seconds": metrics["seconds"]["total"],
        "metrics": metrics,
    }


@_takes(ScoreConfig)
def score(config: ScoreConfig, console: Console, began: float) -> ScoreResult:
    """Score images with a model, each exactly once, as `mnist-ray score`. An unfinished output continues."""
    from mnist_ray import pipeline
    from mnist_ray.storage.location import Location

    metrics = pipeline.score(config, console, began)
    after = metrics.get("after", {})
    return ScoreResult(
        output=str(Location.parse(config.output)),
        images=metrics["score"]["images"],
        quarantined=metrics["score"]["quarantined"],
        after=Evaluation.of(after) if "num_correct" in after else None,
        seconds=metrics["seconds"]["total"],
        metrics=metrics,
    )


def verify(output: str | os.PathLike[str], *, processes: int = 1) -> Verified:
    """Recount and re-hash an output or a run, offline, as `mnist-ray verify`.

    processes: to share the work of more than 1,000 parts. With more than one, a script needs
    `if __name__ == "__main__":` around what it does, as multiprocessing does.

    Raises InputError where there is no output, RetryableError where it is unfinished or anything differs.
    """
    from mnist_ray.predictions.verify import verify
    from mnist_ray.storage.location import Location

    return verify(Location.parse(output), processes=processes)


def load_predictions(output: str | os.PathLike[str]) -> pyarrow.dataset.Dataset:
    """The predictions of a finished output or run as a pyarrow dataset, in the order of the input.

    Nothing is read before you ask for it: `.to_table()`, `.to_batches()`, `.count_rows()`. docs/predictions.md has the
    columns. What is in quarantine is not among the rows.

    Raises InputError where there is no output, RetryableError where it is unfinished.
    """
    from mnist_ray.predictions.dataset import open_predictions
    from mnist_ray.storage.location import Location

    return open_predictions(Location.parse(output))
