"""Run folders: prepared, finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyarrow import fs

from mnist_ray.config import RunConfig
from mnist_ray.runs.folder import RunFolder
from mnist_ray.runs.progress import owner
from mnist_ray.storage.location import Location

CONFIG = RunConfig()

PRINT = {"data": "d" * 64, **CONFIG.fingerprint()}

HERE = owner()["host"]


def non_local(tmp_path: Path) -> RunFolder:
    (tmp_path / "bucket" / "mnist").mkdir(parents=True)  # an object store needs no folders, this stand-in does
    return RunFolder(Location(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "bucket/mnist", "s3://"))


def prepare(folder: RunFolder, *, fresh: bool = False, **changed: Any) -> list[str]:
    return folder.prepare(CONFIG, {**PRINT, **changed}, fresh=fresh)


def finish(folder: RunFolder) -> None:
    """As a finished run leaves it."""
    for file in (folder.shards / "dataset.json", folder.model / "model.json", folder.predictions / "_manifest.json",
                 folder.root / "checkpoints" / "step-1.npz", folder.metrics, folder.report, folder.mlflow,
                 folder.tensorboard / "train" / "epoch-000001.tfevents"):  # fmt: skip
        file.write_json({})


def names(folder: RunFolder) -> set[str]:
    return {each.name for each in folder.root.list()}
