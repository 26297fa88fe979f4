"""The end of a job: the metrics are written, the report is made, and the result is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from threading import Thread
from typing import Any

from mnist_ray.cluster.connect import Connection
from mnist_ray.console import Console, print_result
from mnist_ray.errors import last_line
from mnist_ray.report.images import keep, read_images
from mnist_ray.report.page import compile_templates, write_report
from mnist_ray.report.sample import Shown
from mnist_ray.runs.folder import RunFolder
from mnist_ray.runs.records import FinishedRecord
from mnist_ray.sources.base import Source
from mnist_ray.steps.metrics import Clock, environment
from mnist_ray.storage.location import Location
from mnist_ray.storage.records import read_checked


def prepare_in_background(*, trains: bool) -> None:
    """Import what is needed later, and compile the report's templates, while Ray starts and this process only waits.

    trains: whether Ray Train is needed. pandas is always among it because pyarrow imports it where it is installed.
    """
    steps: list[Callable[[], Any]] = [
        partial(import_module, "pandas"), partial(import_module, "PIL.Image"), compile_templates,
    ]  # fmt: skip
    if trains:
        import ray  # noqa: F401  # whole, as `is_connected` looks for it, before the thread imports more of it

        steps.insert(0, partial(import_module, "mnist_ray.training.trainer"))

    def work() -> None:
        for step in steps:
            with suppress(Exception):  # whoever needs it tries again, and learns why it cannot be
                step()

    Thread(target=work, daemon=True).start()


def conclude(
    folder: RunFolder, metrics: dict[str, Any], clock: Clock, ray: Connection, console: Console
) -> dict[str, Any]:
    """Write the metrics and the report, and show the result. A run that has metrics.json is finished."""
    metrics["environment"] = environment(ray, clock)
    metrics["seconds"] = clock.seconds | {"total": clock.total()}
    folder.metrics.write_json(metrics)
    console.save()  # which the report reads
    write_report(folder.root)
    clock.lap("report")
    metrics["seconds"] = clock.seconds | {"total": clock.total()}
    folder.metrics.write_json(metrics)
    print_result(folder, metrics, console)
    return metrics


def report_output(output: Location, name: str, source: Source, split: str, console: Console) -> None:
    """Write the report of a finished output, with images of its input. Nothing that fails here ends the scoring."""

    def fetch(shown: Sequence[Shown]) -> dict[int, bytes]:
        images = read_images(source, split, shown)
        keep(output, images)
        return images

    console.save()  # which the report reads
    try:
        write_report(output, name=name, fetch=fetch)
    except Exception as error:
        console.warn(f"the report could not be written ({last_line(error)}); try again: mnist-ray report {output}")


def show_finished(folder: RunFolder, console: Console) -> dict[str, Any]:
    console.print(f"run {folder.root.name!r} is finished; use --fresh or another --name to run again. Its result:")
    metrics = read_checked(folder.metrics, FinishedRecord, "restore it, or use --fresh or another --name")
    if not folder.report.exists():
        write_report(folder.root)
    print_result(folder, metrics, console)
    return metrics
