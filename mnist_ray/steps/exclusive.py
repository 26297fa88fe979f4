"""Folders for one driver at a time, and what happens to them when a job ends early."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mnist_ray.cluster.connect import preflight
from mnist_ray.config import RunConfig, TrainConfig
from mnist_ray.console import Console
from mnist_ray.errors import InputError, TooManyBadImagesError, UserError
from mnist_ray.predictions import replace
from mnist_ray.predictions.plan import sweep
from mnist_ray.runs.crash import explaining
from mnist_ray.runs.driver import sole_driver
from mnist_ray.runs.folder import RunFolder
from mnist_ray.runs.progress import ProgressRecord, owner
from mnist_ray.storage.location import Location


@contextmanager
def claimed_run(
    folder: RunFolder, config: RunConfig | TrainConfig, fingerprint: dict[str, Any], console: Console
) -> Iterator[ProgressRecord]:
    """Hold a run's folder for this driver and this configuration. A permanent failure leaves a marker in it.

    Yields the progress record, which this process leaves to rank 0 while the workers train.
    """
    if config.fresh or not folder.is_finished(fingerprint):
        preflight(config, workers=config.worker_range()[0], cpus_per_worker=config.cpus_per_worker)
        config.require_shards(fingerprint["num_shards"])
    with folder.lock(), explaining(folder.root):
        for warning in folder.claim(config, fingerprint, fresh=config.fresh):
            console.print(f"warning: {warning}")
        record = ProgressRecord(folder.progress, owner())
        try:
            yield record
        except BaseException as error:
            _tidy(folder.predictions)
            if isinstance(error, InputError | TooManyBadImagesError):
                folder.mark_failed(error, fingerprint)
            raise
        finally:
            record.leave()


@contextmanager
def exclusive_output(
    folder: Location, remedy: str, job: dict[str, Any] | None = None
) -> Iterator[tuple[Location, ProgressRecord]]:
    """Hold an output's folder for this driver. Yields the folder to write to, and the progress record.

    job: what `--overwrite` is to write; an output of another job is then replaced by a folder beside it.
    """
    with sole_driver(folder, remedy):
        place = folder if job is None else replace.target(folder, job)
        record = ProgressRecord(place / "progress.json", owner())
        with explaining(place):
            try:
                yield place, record
            except BaseException:
                _tidy(place)
                raise
            finally:
                record.leave()


def _tidy(output: Location) -> None:
    """Remove what actors were writing when they were ended. If storage fails, the next start does it."""
    with suppress(UserError):
        sweep(output)
