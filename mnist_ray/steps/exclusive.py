"""Folders for one driver at a time, and what happens to them when a job ends early."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mnist_ray.cluster.connect import preflight
from mnist_ray.config import RunConfig, TrainConfig
from mnist_ray.console import Console
from mnist_ray.errors import InputError, UserError
from mnist_ray.models.build import Recipe
from mnist_ray.predictions import replace
from mnist_ray.predictions.plan import sweep
from mnist_ray.runs.crash import explaining
from mnist_ray.runs.diary import Diary
from mnist_ray.runs.driver import hold
from mnist_ray.runs.folder import RunFolder
from mnist_ray.runs.progress import ProgressRecord, owner
from mnist_ray.sources.input import is_dataset_name
from mnist_ray.storage.lease import Guard
from mnist_ray.storage.location import Location
from mnist_ray.tracking.mlflow_place import mlflow_place
from mnist_ray.training.users import try_training

_KINDS = {"config.json": "is the folder of a run", "dataset.json": "holds shards", "_plan.json": "holds predictions"}


@contextmanager
def hold_run(
    folder: RunFolder, config: RunConfig | TrainConfig, fingerprint: dict[str, Any], recipe: Recipe, console: Console
) -> Iterator[tuple[ProgressRecord, Guard | None]]:
    """Hold a run's folder for this driver and this configuration. A permanent failure leaves a mark in it.

    Yields the progress record, and what keeps workers from writing once this driver holds the folder no more. A run
    that is not finished needs a cluster, so that is looked for first, and a model that can be trained.
    """
    mlflow_place(config)
    note = None
    if config.fresh or not folder.is_finished(fingerprint):
        preflight(config, workers=config.worker_range()[0], cpus_per_worker=config.cpus_per_worker)
        config.require_shards(fingerprint["num_shards"])
        note = try_training(config, recipe)
    with folder.hold() as guard, explaining(folder.root):
        for warning in folder.prepare(config, fingerprint, fresh=config.fresh):
            console.warn(warning)
        record = ProgressRecord(folder.progress, owner())
        try:
            is_shown = folder.metrics.exists()
            with _logged(folder.root, record, console, None if is_shown else Diary(folder.root)):
                if note:
                    console.print(note)
                yield record, guard
        except BaseException as error:
            _tidy(folder.predictions)
            if isinstance(error, UserError):
                folder.mark_failed(error, fingerprint)
            raise
        finally:
            record.leave()


@contextmanager
def _logged(folder: Location, record: ProgressRecord, console: Console, diary: Diary | None) -> Iterator[None]:
    """Keep in the folder what is printed, done and raised in the block. diary: None, where the folder's result is only
    shown."""
    if diary:
        diary.begin()
        record.at_each_phase(lambda phase: diary.event("phase", phase=phase))
    try:
        with console.about(str(folder), lambda: record.phase, diary):
            yield
    except BaseException as error:
        if diary:
            if isinstance(error, Exception):  # whoever interrupts it knows why
                record.fail(error)
            diary.end(error)
        raise
    else:
        if diary:
            diary.end()


@contextmanager
def hold_output(
    folder: Location, remedy: str, console: Console, job: dict[str, Any] | None = None
) -> Iterator[tuple[Location, ProgressRecord]]:
    """Hold an output's folder for this driver. Yields the folder to write to, and the progress record.

    job: what `--overwrite` is to write. An output of another job is then replaced, once the block is done, by what was
    written to a folder beside it.
    """
    with hold(folder, remedy):
        place = folder if job is None else replace.target(folder, job)
        record = ProgressRecord(place / "progress.json", owner())
        with explaining(place):
            try:
                with _logged(place, record, console, Diary(place)):
                    record.update(phase="start")
                    record.write()
                    yield place, record
            except BaseException:
                _tidy(place)
                raise
            finally:
                record.leave()
        if place != folder:
            replace.replace(folder, place)


def check_destination(folder: Location, option: str, inputs: Iterable[str], *, marker: str, alone: bool) -> None:
    """Raise InputError where writing to a folder would destroy what is there: an input, a run, somebody's files.

    option: by which the user gave the folder. marker: the file by which a folder of this kind is known.
    alone: whether files of others may not lie beside what is written.
    """
    for name, kind in _KINDS.items():
        if name != marker and (folder / name).is_file():
            raise InputError(f"{folder} {kind}; choose another {option}")
    for spec in inputs:
        if not is_dataset_name(spec) and not any(letter in spec for letter in "*?["):
            source = Location.parse(spec)
            if source.is_dir() and _are_nested(source, folder):
                raise InputError(f"{option} {folder} and the input {source} overlap; choose a folder apart from it")
    if alone and not any((folder / name).is_file() for name in (marker, "progress.json")):
        others = [file.name for file in folder.list() if not file.name.startswith(".")]
        if others:
            raise InputError(
                f"{folder} holds files that mnist-ray did not write, such as {others[0]}; choose another {option}"
            )


def _are_nested(one: Location, other: Location) -> bool:
    paths = [f"{each.scheme}{each.path.rstrip('/')}/" for each in (one, other)]
    return paths[0].startswith(paths[1]) or paths[1].startswith(paths[0])


def _tidy(output: Location) -> None:
    """Remove what actors were writing when they were ended. If storage fails, the next start does it."""
    with suppress(UserError):
        sweep(output)
