"""Which rows are in which batch: the same global batches for any number of workers.

Position p of epoch e is row `perm(seed, e, s)[p // S]` of shard `s = p mod S`, the longer shards first; batch k is the
positions [kB, (k+1)B). Shard s belongs to rank s mod W. So every row is used exactly once an epoch, and the batches
do not depend on W (elastic determinism, as in MosaicML Streaming). Pure arithmetic; no data is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mnist_ray.errors import InputError, require


@dataclass(frozen=True)
class Order:
    """The order of one dataset.

    Args:
        sizes: rows of each shard, in the manifest's order; they differ by at most one, else positions would have gaps.
        batch_size: rows of a global batch.
        seed: of the permutations.
    """

    sizes: tuple[int, ...]
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        require(max(self.sizes) - min(self.sizes) <= 1, "shards differ by more than one row")

    @property
    def rows(self) -> int:
        """The number of rows in an epoch."""
        return sum(self.sizes)

    @property
    def steps(self) -> int:
        """The number of batches in an epoch, the smaller last one included."""
        return -(-self.rows // self.batch_size)

    @cached_property
    def shards(self) -> tuple[int, ...]:
        """Indices into the manifest, the longer shards first: element s of this tuple is shard s of the order."""
        return tuple(sorted(range(len(self.sizes)), key=lambda index: -self.sizes[index]))

    def owned(self, rank: int, world: int) -> list[int]:
        """Indices into the manifest of the shards that a rank reads, in the order in which `indices` counts rows."""
        return list(self.shards[rank::world])

    def batch_rows(self, rank: int, world: int) -> np.ndarray:
        """(steps,) int64: how many rows of each batch the rank has."""
        return np.bincount(self._positions(rank, world) // self.batch_size, minlength=self.steps)

    def most_rows(self, world: int) -> int:
        """The largest number of rows that any rank has in any batch: the same number on every rank."""
        return max(int(self.batch_rows(rank, world).max()) for rank in range(world))

    def indices(self, epoch: int, rank: int, world: int) -> np.ndarray:
        """(rows of the rank,) int64: indices into its shards' concatenated rows, in the order of the batches."""
        rows, start = [], 0
        for index in self.owned(rank, world):
            generator = np.random.default_rng([self.seed, epoch, index])
            rows.append(start + generator.permutation(self.sizes[index]))
            start += self.sizes[index]
        positions = self._positions(rank, world)
        return np.concatenate([np.zeros(0, np.int64), *rows])[np.argsort(positions, kind="stable")]

    def _positions(self, rank: int, world: int) -> np.ndarray:
        """The positions p of the rank's rows, shard by shard: s, s + S, s + 2S, …"""
        places = [
            place + len(self.sizes) * np.arange(self.sizes[index], dtype=np.int64)
            for place, index in enumerate(self.shards)
            if place % world == rank
        ]
        return np.concatenate([np.zeros(0, np.int64), *places])


def split_off(sizes: Sequence[int], fraction: float) -> tuple[list[int], list[int]]:
    """(rows to hold out of each shard, rows to train on): the fraction of all rows is held out, and the number of rows
    to train on differs by at most one between shards.

    Raises InputError where nothing is left to train on.
    """
    total = sum(sizes)
    num_train = total - round(total * fraction)
    if not num_train:
        raise InputError(f"--validation-fraction {fraction:g} leaves none of {total} images to train on")
    longest_first = sorted(range(len(sizes)), key=lambda index: -sizes[index])
    train = [0] * len(sizes)
    for place, index in enumerate(longest_first):
        train[index] = num_train // len(sizes) + (place < num_train % len(sizes))
    return [size - rows for size, rows in zip(sizes, train, strict=True)], train
