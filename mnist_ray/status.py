"""The progress of a run, an output or a job. For folders, storage alone is read: it works when the cluster is gone."""

from __future__ import annotations

import time
from typing import Any

from mnist_ray.console import figure
from mnist_ray.errors import InputError, RetryableError
from mnist_ray.runs.driver import has_driver
from mnist_ray.storage.location import Location


def status(run: str, address: str | None = None) -> str:
    """One line about the folder of a run or an output, or about a Ray job where `run` is the id of a job.

    Raises InputError where `run` is neither.
    """
    folder = Location.parse(run)
    try:
        line = _of_folder(folder)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{folder} contains a record that mnist-ray did not write ({error!r}); is it the folder of a run?"
        ) from error
    if line is not None:
        return line
    if folder.exists() or "/" in run or address is None:
        raise InputError(f"{folder} is not a run's folder (no progress.json); for the id of a job, give --address too")
    return _job(run, address)


def _of_folder(folder: Location) -> str | None:
    if (folder / "metrics.json").exists():
        return f"{folder}: finished. {_result((folder / 'metrics.json').read_json())}".rstrip()
    if (folder / "failure.json").exists():
        mark = (folder / "failure.json").read_json()
        return f"{folder}: failed for good (exit code {mark['exit_code']}): {mark['message']}"
    if (folder / "progress.json").exists():
        return f"{folder}: {_progress((folder / 'progress.json').read_json(), has_driver(folder))}"
    return None


def _result(metrics: dict[str, Any]) -> str:
    after = metrics.get("after")
    return f"accuracy {figure(after['accuracy'])}, {after['num_correct']} of {after['num_seen']}" if after else ""


def _progress(record: dict[str, Any], has_driver: bool | None) -> str:
    """has_driver: None where it cannot be told; then only the age of the record is shown."""
    parts = [record["phase"]]
    if record.get("total"):
        parts.append(f"{record.get('done', 0):,} of {record['total']:,}")
    if record["phase"] == "train":
        parts.append(f"{record['epoch']} {'epoch' if record['epoch'] == 1 else 'epochs'} finished")
        parts += [f"{name} {record[name]:.4f}" for name in ("loss", "accuracy") if record.get(name) is not None]
    if record.get("per_second"):
        parts.append(f"{record['per_second']:,} images/s")
    age = time.time() - record["heartbeat"]
    ended = record["phase"] != "done" and has_driver is False
    parts.append(f"last update {age:.0f} s ago" + (": its driver has ended; run it again to continue" if ended else ""))
    return ", ".join(parts)


def _job(job: str, address: str) -> str:
    from mnist_ray.cluster.jobs import job_client

    try:
        info = job_client(address).get_job_info(job)
    except RuntimeError as error:
        raise RetryableError(f"{address} does not know a job {job}: {str(error).splitlines()[0]}") from error
    return f"{job}: {info.status.value}. {info.message or ''}".rstrip()
