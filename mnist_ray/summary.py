"""What is said at the end of each step, and what metrics.json keeps of it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from mnist_ray import STARTED
from mnist_ray.cluster import Connection
from mnist_ray.metrics import Tally
from mnist_ray.progress import Narrator
from mnist_ray.runs import RunFolder, versions
from mnist_ray.scoring import Scored
from mnist_ray.sharding import Manifest
from mnist_ray.sources import Source


def tell_shapes(source: Source, tell: Narrator) -> None:
    for split, rows in source.splits.items():
        suffix = f"_{split}" if split != "all" else ""
        tell.say(f"x{suffix} {(rows, *source.image_shape)} uint8   y{suffix} {(rows,)}")


def row(values: Sequence[float]) -> str:
    return " ".join(f"{value:7.4f}" for value in values[:20]) + (" ..." if len(values) > 20 else "")


def epoch_line(epoch: dict[str, Any], per_second: float) -> str:
    names = [name for name in ("loss", "accuracy", "val_loss", "val_accuracy") if name in epoch]
    return "  ".join([*(f"{name} {epoch[name]:.4f}" for name in names), f"{per_second:,.0f} images/s"])


def told(tally: Tally) -> str:
    return f"loss {tally.loss:.4f}  accuracy {tally.accuracy:.4f} ({tally.num_correct:,} of {tally.num_seen:,})"


def dataset(manifest: Manifest) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "train_images": manifest.counts.get("train", 0),
        "test_images": manifest.counts.get("test", 0),
        "image_shape": list(manifest.image_shape),
        "classes": list(manifest.classes),
    }


def scoring(scored: Scored) -> dict[str, Any]:
    plan = scored.plan
    return {
        "images": scored.images,
        "quarantined": scored.quarantined,
        "num_actors": scored.num_actors,
        "seconds": round(scored.seconds, 4),
        "images_per_second": round(scored.images_per_second, 1),
        "precision": plan.precision,
        "jit": plan.jit,
        "batch_size": plan.batch_size,
        **(
            {"changed_by_precision": dict(zip(("predictions", "of"), plan.changed, strict=True))}
            if plan.changed
            else {}
        ),
    }


def environment(ray: Connection) -> dict[str, Any]:
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "cpus": ray.cpus,
        "python": platform.python_version(),
        **{package.replace("-", "_"): version for package, version in versions().items()},
        "address": ray.address,
        "started": datetime.fromtimestamp(STARTED, UTC).isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def tell_result(folder: RunFolder, metrics: dict[str, Any], tell: Narrator) -> None:
    """The closing table, and where the files are."""
    tell.say()
    for phase in ("before", "after"):
        if figures := metrics.get(phase):
            tell.say(
                f"  {phase:<9}loss {figures['loss']:.4f}   accuracy {figures['accuracy']:.4f}"
                f"   {figures['num_correct']:,} of {figures['num_seen']:,} correct"
            )
    trained, seconds = metrics["train"], metrics["seconds"]
    last = trained["epochs"][-1]
    tell.say(
        f"  {'train':<9}loss {last['loss']:.4f}   accuracy {last['accuracy']:.4f}   {len(trained['epochs'])} epochs,"
        f" {trained['num_workers']} workers, {trained['milliseconds_per_step']:.2f} ms a step"
    )
    phases = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items() if name != "total" and value)
    tell.say(f"  {'seconds':<9}{seconds['total']:.1f}   ({phases})")
    tell.say()
    for name, place in (("metrics", folder.metrics), ("report", folder.report), ("model", folder.model)):
        if place.exists():
            tell.say(f"  {name:<9}{place}")
    if folder.predictions.exists():
        tell.say(f"  {'scores':<9}{folder.predictions}")
