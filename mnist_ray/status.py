"""The progress of a run, an output or a job. For folders, storage alone is read: it works when the cluster is gone."""

from __future__ import annotations

import time
from typing import TypeVar

from mnist_ray.console import figure
from mnist_ray.errors import InputError, RetryableError
from mnist_ray.runs.driver import has_driver
from mnist_ray.runs.records import FailureRecord, Figures, MetricsRecord, ProgressRecord
from mnist_ray.storage.location import Location
from mnist_ray.storage.records import read_record

T = TypeVar("T")


def status(run: str, address: str | None = None) -> str:
    """One line about the folder of a run or an output, or about a Ray job where `run` is the id of a job.

    Raises InputError where `run` is neither.
    """
    folder = Location.parse(run)
    if (line := _of_folder(folder)) is not None:
        return line
    if folder.exists() or "/" in run or address is None:
        raise InputError(f"{folder} is not a run's folder (no progress.json); for the id of a job, give --address too")
    return _job(run, address)


def _of_folder(folder: Location) -> str | None:
    if metrics := _read(folder / "metrics.json", MetricsRecord):
        return f"{folder}: finished. {_result(metrics.after)}".rstrip()
    if mark := _read(folder / "failure.json", FailureRecord):
        return f"{folder}: failed for good (exit code {mark.exit_code}): {mark.message}"
    if record := _read(folder / "progress.json", ProgressRecord):
        return f"{folder}: {_progress(record, has_driver(folder))}"
    return None


def _read(file: Location, kind: type[T]) -> T | None:
    """The record in a file, or None where there is no file."""
    try:
        return read_record(file, kind, "is this the folder of a run?")
    except FileNotFoundError:
        return None


def _result(after: Figures | None) -> str:
    if after is None or not after.num_seen:  # only trained, or no label is known
        return ""
    return f"accuracy {figure(after.accuracy)}, {after.num_correct} of {after.num_seen}"


def _progress(record: ProgressRecord, has_driver: bool | None) -> str:
    """has_driver: None where it cannot be told; then only the age of the record is shown."""
    parts = [record.phase]
    if record.total:
        parts.append(f"{record.done:,} of {record.total:,}")
    if record.phase == "train":
        parts.append(f"{record.epoch} {'epoch' if record.epoch == 1 else 'epochs'} finished")
        figures = {"loss": record.loss, "accuracy": record.accuracy}
        parts += [f"{name} {value:.4f}" for name, value in figures.items() if value is not None]
    if record.per_second:
        parts.append(f"{record.per_second:,.0f} images/s")
    age = time.time() - record.heartbeat
    ended = record.phase != "done" and has_driver is False
    parts.append(f"last update {age:.0f} s ago" + (": its driver has ended; run it again to continue" if ended else ""))
    return ", ".join(parts)


def _job(job: str, address: str) -> str:
    from mnist_ray.cluster.jobs import job_client

    try:
        info = job_client(address).get_job_info(job)
    except RuntimeError as error:
        raise RetryableError(f"{address} does not know a job {job}: {str(error).splitlines()[0]}") from error
    return f"{job}: {info.status.value}. {info.message or ''}".rstrip()
