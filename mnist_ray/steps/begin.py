"""The beginning of a job: what identifies it, and what of it is there already."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from mnist_ray.cluster.connect import Connection, connect
from mnist_ray.cluster.gauges import Gauges
from mnist_ray.config import Cluster, RunConfig, TrainConfig
from mnist_ray.console import Console
from mnist_ray.errors import InputError
from mnist_ray.models.user_code import code_digest
from mnist_ray.predictions.plan import MANIFEST, Plan, is_part
from mnist_ray.runs.folder import RunFolder
from mnist_ray.runs.progress import ProgressRecord
from mnist_ray.sources.base import Source
from mnist_ray.sources.formats.shards import Manifest
from mnist_ray.steps.metrics import Clock
from mnist_ray.storage.location import Location
from mnist_ray.training.checkpoints import newest_first
from mnist_ray.training.order import Order, split_off


def digest_of(source: Source, console: Console) -> str:
    """The fingerprint of a source. Where it takes long, as all files are read, a line says so."""
    images = sum(source.splits.values())
    with console.waiting(f"reading the {images:,} images of {source.name} for their checksum"):
        return source.fingerprint()


def fingerprint_of(config: RunConfig | TrainConfig, **data: Any) -> dict[str, Any]:
    """What changes the result of a run. data: the digest of its images, and their shards where they are given."""
    module, colon, _ = config.architecture.partition(":")
    return {**data, **config.fingerprint(), **({"code": code_digest(module)} if colon else {})}


@contextmanager
def connected(
    config: Cluster, console: Console, clock: Clock, record: ProgressRecord, run: Location, **needs: Any
) -> Iterator[Connection]:
    """`connect`, which says what it waits for and how long the start took. From then on, Ray's metrics have the
    progress of the run."""
    with ExitStack() as stack:
        wanted = f"joining Ray at {config.address}" if config.address else "starting Ray on this machine"
        with console.waiting(wanted):
            ray = stack.enter_context(connect(config, **needs))
        seconds = clock.lap("start")
        console.print(f"{ray.label}, up after {seconds:.1f} s")
        console.event("ray", address=ray.address, cpus=ray.cpus, nodes=ray.nodes, seconds=seconds)
        record.also(Gauges(str(run)).show)
        stack.callback(record.also, lambda fields: None)
        yield ray


def print_what_is_there(folder: RunFolder, config: RunConfig | TrainConfig, console: Console) -> None:
    """Say that an unfinished run is continued, and from where; nothing for a new one."""
    shards = folder.shards if isinstance(config, RunConfig) else Location.parse(config.shards)
    found: list[str] = []
    with suppress(InputError):  # damaged shards are written again
        manifest = Manifest.load(shards)
        if isinstance(config, RunConfig):
            found.append(f"{sum(map(len, manifest.shards.values()))} shards are there")
        if (folder.model / "model.json").exists():
            found.append("the model is trained")
        elif checkpoints := newest_first(folder.root / "checkpoints"):
            _, kept = split_off([shard.rows for shard in manifest.shards["train"]], config.validation_fraction)
            epoch, step = divmod(checkpoints[0][0], Order(tuple(kept), config.batch_size, config.seed).steps)
            place = f"epoch {epoch + 1} of {config.epochs}" + (f", step {step + 1:,}" if step else "")
            found.append(f"training goes on from {place}" if epoch < config.epochs else "all epochs are trained")
    if parts := parts_there(folder.predictions):
        found.append(parts)
    if found:
        console.print(f"continuing {folder.root.name}: {'; '.join(found)}")


def parts_there(output: Location) -> str | None:
    """ "12 of 20 parts are there" of an unfinished output; None where there are none."""
    plan = None if (output / MANIFEST).exists() else Plan.load(output)
    num_parts = sum(is_part(file.name) for file in output.list()) if plan else 0
    return f"{num_parts:,} of {len(plan.units):,} parts of the predictions are there" if plan and num_parts else None
