"""A run, an output or a job from outside: how far it is, what it printed, and its end.

For a folder, storage alone is read: it works when the cluster is gone. For the id of a job, Ray is asked.
"""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mnist_ray.console import figure
from mnist_ray.errors import InputError, RetryableError, UserError
from mnist_ray.predictions.label_tally import f1_line
from mnist_ray.runs.driver import has_driver
from mnist_ray.runs.log import driver_log
from mnist_ray.runs.pace import duration
from mnist_ray.runs.process_log import worker_logs
from mnist_ray.runs.progress import REMOTE_SECONDS
from mnist_ray.runs.records import FailureRecord, Figures, MetricsRecord, Owner, ProgressRecord
from mnist_ray.storage.location import Location
from mnist_ray.storage.records import read_record

if TYPE_CHECKING:
    from mnist_ray.cluster.dashboard import Dashboard

T = TypeVar("T")

_FILES = ("metrics.json", "failure.json", "progress.json")  # one of them is in each folder of a run or an output
_AGE = "last update "
_STOPPING_SECONDS = 30.0
WATCH_SECONDS = 1.0


def status(run: str, address: str | None = None) -> str:
    """A line about the folder of a run or an output, or about a Ray job, where `run` is the id of a job.

    Raises InputError where `run` is neither.
    """
    folder = Location.parse(run)
    if (line := _of_folder(folder)) is not None:
        return line
    dashboard = _dashboard_for(run, folder, address)
    from mnist_ray.cluster.jobs import ask, first_sentence

    info = ask(dashboard, run)
    lines = [f"{run}: {info.status.value}. {first_sentence(info.message)}".rstrip()]
    if place := (info.metadata or {}).get("run"):
        with suppress(UserError):  # it may lie where only the cluster's nodes can read
            lines += filter(None, [_of_folder(Location.parse(place))])
    return "\n".join(lines)


def watch(run: str, address: str | None, show: Callable[[str], None]) -> bool:
    """Show the status of a run, an output or a job whenever it changes, until there is nothing more to come. Returns
    whether that is a result. Raises as `status` does."""
    folder, shown = Location.parse(run), ""
    pause = WATCH_SECONDS if folder.is_local else REMOTE_SECONDS
    while True:
        line = status(run, address)
        if (news := line.partition(_AGE)[0]) != shown:
            shown = news
            show(line)
        if (is_good := _end(run, folder, address)) is not None:
            return is_good
        time.sleep(pause)


def _end(run: str, folder: Location, address: str | None) -> bool | None:
    """Whether a run or a job has ended well; None while it goes on."""
    if _is_folder(folder):
        if (folder / "metrics.json").is_file():
            return True
        record = _read(folder / "progress.json", ProgressRecord)
        if record is not None and record.phase == "failed":
            return False
        if record is not None and record.phase == "done" and not has_driver(folder):  # which may write the result yet
            return True
        return False if (folder / "failure.json").is_file() or has_driver(folder) is False else None
    from mnist_ray.cluster.jobs import ask

    state = ask(_dashboard_for(run, folder, address), run).status
    return state.value == "SUCCEEDED" if state.is_terminal() else None


def log(run: str, address: str | None = None, *, workers: bool = False) -> str:
    """What the drivers of a run or an output printed, as far as its folder keeps it; of a job all that Ray has.

    workers: what its workers printed, too. Raises InputError where `run` is neither, or its folder keeps no log.
    """
    folder = Location.parse(run)
    if _is_folder(folder):
        logs = [driver_log(folder), *(worker_logs(folder) if workers else [])]
        if not logs[0].is_file():
            raise InputError(
                f"{folder} keeps no log ({logs[0]}); if a Ray job made it, give the job's id", see="runs.md"
            )
        texts = [file.read_bytes().decode(errors="replace").rstrip("\n") for file in logs]
        titles = ["", *(f"\n=== {file.name.removesuffix('.log')}\n" for file in logs[1:])]
        return "\n".join(f"{title}{text}" for title, text in zip(titles, texts, strict=True))
    if workers:
        raise InputError("--workers takes the folder of a run or an output, not a job")
    dashboard = _dashboard_for(run, folder, address)
    from mnist_ray.cluster.jobs import log_of

    return log_of(dashboard, run).rstrip("\n")


def stop(run: str, address: str | None = None) -> str:
    """End the driver of a run, or a job, in order. Returns a line about what it was.

    Raises InputError where `run` is neither, or its driver cannot be reached from here.
    """
    folder = Location.parse(run)
    if not _is_folder(folder):
        return _stop_job(run, _dashboard_for(run, folder, address))
    if _read(folder / "metrics.json", MetricsRecord):
        return f"{folder}: finished; nothing runs"
    record = _read(folder / "progress.json", ProgressRecord)
    if record is None or record.owner is None or has_driver(folder) is False:
        return f"{folder}: nothing runs; the same command continues from what is committed"
    if record.owner.job:
        from mnist_ray.cluster.dashboard import reach

        return _stop_job(record.owner.job, reach(address), str(folder))
    return _stop_process(folder, record.owner)


def _stop_job(job: str, dashboard: Dashboard, folder: str | None = None) -> str:
    """folder: whose driver the job is to be, as somebody may have written another job's id into it."""
    from mnist_ray.cluster.jobs import ask, stop

    place = (ask(dashboard, job).metadata or {}).get("run", folder)
    if folder and place != folder:
        raise InputError(f"the job {job} that {folder} names works on {place}; give the id of the job to stop")
    state = stop(dashboard, job)
    return f"{job}: {state}" + ("; the same command continues from what is committed" if state == "STOPPED" else "")


def _stop_process(folder: Location, owner: Owner) -> str:
    """End a driver that is no job, if it is a process of this machine."""
    process = Path(f"/proc/{owner.pid}")
    with suppress(OSError):
        if owner.host == platform.node() and b"mnist" in (process / "cmdline").read_bytes():
            os.kill(owner.pid, signal.SIGTERM)
            deadline = time.monotonic() + _STOPPING_SECONDS
            while process.exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            if process.exists():
                raise RetryableError(f"process {owner.pid} has not ended within {_STOPPING_SECONDS:g} s; try again")
            return f"{folder}: stopped; the same command continues from what is committed"
    raise InputError(
        f"the driver of {folder} is process {owner.pid} on {owner.host}, which cannot be reached from here; end it"
        f" there: kill {owner.pid}",
        see="clusters.md#look-at-a-job",
    )


def _is_folder(folder: Location) -> bool:
    return any((folder / name).is_file() for name in _FILES)


def _dashboard_for(run: str, folder: Location, address: str | None) -> Dashboard:
    """Ray's dashboard, to ask about what is no folder of ours. Raises InputError where that is no job's id either."""
    if folder.exists() or "/" in run:
        raise InputError(f"{folder} is not a run's folder (no progress.json)")
    from mnist_ray.cluster.dashboard import reach

    try:
        return reach(address)
    except RetryableError as error:
        if address:
            raise
        raise InputError(
            f"{run} is not a run's folder here, and Ray cannot be asked for a job of this name: {error}", see=error.see
        ) from error


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
    if after.f1_micro is not None:  # an image may have several labels
        return f1_line(after.f1_micro, after.f1_macro, after.num_seen)
    return f"accuracy {figure(after.accuracy)}, {after.num_correct} of {after.num_seen}"


def _progress(record: ProgressRecord, has_driver: bool | None) -> str:
    """has_driver: None where it cannot be told; then only the age of the record is shown."""
    if record.phase == "failed":
        return f"failed (exit code {record.exit_code}): {record.message}"
    parts = [record.phase]
    if record.total:
        parts.append(f"{record.done:,} of {record.total:,}")
    if record.phase == "train":
        parts.append(f"{record.epoch} {'epoch' if record.epoch == 1 else 'epochs'} finished")
        figures = {"loss": record.loss, "accuracy": record.accuracy}
        parts += [f"{name} {value:.4f}" for name, value in figures.items() if value is not None]
    if record.per_second:
        parts.append(f"{record.per_second:,.0f} images/s")
    if record.quarantined:
        parts.append(f"{record.quarantined:,} quarantined")
    if record.seconds_left is not None and has_driver is not False:
        parts.append(f"{duration(record.seconds_left)} left")
    age = time.time() - record.heartbeat
    ended = record.phase != "done" and has_driver is False
    parts.append(f"{_AGE}{age:.0f} s ago" + (": its driver has ended; run it again to continue" if ended else ""))
    return ", ".join(parts)
