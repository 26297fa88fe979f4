"""Checkpoints: one checksummed object each, written in the background, the newest kept.

A checkpoint is an `.npz` (no pickle) whose name ends in the sha256 of its bytes, so damage is noticed from the file
alone, and the checkpoint before is used.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mnist_ray.errors import RetryableError
from mnist_ray.storage.location import Location, sha256
from mnist_ray.storage.records import Count, Real, Seconds, parse_checked

_EXTRA = "extra-"
_NAME = re.compile(r"step-(\d{10})-([0-9a-f]{64})\.npz")


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """A finished epoch. What else the callbacks have logged is numbers, too."""

    epoch: Count
    seconds: Seconds
    val_accuracy: float | None = None
    val_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class MetaRecord:
    """What is needed of a checkpoint's meta."""

    epochs: list[EpochRecord]
    tallies: list[Real]
    seconds: Seconds


@dataclass(frozen=True, kw_only=True)
class StartsRecord:
    """starts.json."""

    starts: Count
    """How often the training has been started again."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after a number of steps.

    Attributes:
        step: global steps done.
        arrays: the model's variables, then the optimizer's, in Keras' order.
        meta: what else is needed to go on: the finished epochs, and the metrics of an unfinished one.
        extra: further arrays by name, which a checkpoint may lack.
    """

    step: int
    arrays: Sequence[np.ndarray]
    meta: dict[str, Any]
    extra: dict[str, np.ndarray] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        buffer = io.BytesIO()
        named = {f"a{index:05d}": array for index, array in enumerate(self.arrays)}
        named |= {_EXTRA + name: array for name, array in self.extra.items()}
        np.savez(buffer, allow_pickle=False, meta=np.frombuffer(json.dumps(self.meta).encode(), np.uint8), **named)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, step: int, data: bytes) -> Checkpoint:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            extra = {name.removeprefix(_EXTRA): file[name] for name in file.files if name.startswith(_EXTRA)}
            names = sorted(set(file.files) - {"meta"} - {_EXTRA + name for name in extra})
            meta = parse_checked(file["meta"].tobytes(), MetaRecord, "its meta", "train again with --fresh")
            return cls(step, [file[name] for name in names], meta, extra)


def newest_first(folder: Location) -> list[tuple[int, Location]]:
    """(step, file) of every file that is named as a checkpoint."""
    found = [(_NAME.fullmatch(file.name), file) for file in folder.list()]
    return sorted(((int(match[1]), file) for match, file in found if match), key=lambda pair: -pair[0])


def load_newest(folder: Location, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is not damaged, or None; a warning for each damaged one."""
    for step, file in newest_first(folder):
        if checkpoint := _read(step, file):
            return checkpoint
        warn(f"the checkpoint {file} is damaged; using the one before")
    return None


def load(folder: Location, step: int) -> Checkpoint:
    """The checkpoint of a step. Raises RetryableError where it is gone or damaged."""
    for found_step, file in newest_first(folder):
        if found_step == step and (checkpoint := _read(step, file)):
            return checkpoint
    raise RetryableError(f"the checkpoint of step {step} in {folder} is gone or damaged; train again with --fresh")


def _read(step: int, file: Location) -> Checkpoint | None:
    """The checkpoint; None where it is damaged."""
    data = file.read_bytes()
    if not file.name.endswith(f"-{sha256(data)}.npz"):
        return None
    try:
        return Checkpoint.from_bytes(step, data)
    except (ValueError, KeyError, OSError, EOFError, MemoryError, zipfile.BadZipFile):  # not of our writing
        return None


class Writer:
    """Writes checkpoints in the background, one after the other, and keeps the newest `keep`."""

    def __init__(self, folder: Location, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._pool = ThreadPoolExecutor(1, "checkpoints")
        self._last: Future[None] | None = None

    def write(self, checkpoint: Checkpoint, *, also_keep: int | None = None) -> None:
        """Begin to write, and return at once; the checkpoint of step `also_keep` stays, too. None of a later step does.

        Raises the error of the write before.
        """
        self.wait()
        self._last = self._pool.submit(self._write, checkpoint, also_keep)

    def wait(self) -> None:
        """Wait until the last checkpoint is in storage. Raises the error of writing it."""
        if self._last is not None:
            self._last.result()

    def _write(self, checkpoint: Checkpoint, also_keep: int | None) -> None:
        data = checkpoint.to_bytes()
        (self._folder / f"step-{checkpoint.step:010d}-{sha256(data)}.npz").write_bytes(data)
        found = newest_first(self._folder)
        newer = [pair for pair in found if pair[0] > checkpoint.step]  # damaged, or of an attempt that is over
        for step, file in [*newer, *found[len(newer) :][self._keep :]]:
            if step != also_keep:
                file.delete()
