"""Which rows make which batch: the same global batches for any number of workers.

Position p of epoch e is row `perm(seed, e, s)[p // S]` of shard `s = p mod S`, the longer shards first; batch k is the
positions [kB, (k+1)B). Shard s belongs to rank s mod W. So every row is used exactly once an epoch, and the path does
not depend on W (elastic determinism, as in MosaicML Streaming). Pure arithmetic, nothing is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mnist_ray.errors import InputError


@dataclass(frozen=True)
class Order:
    """The order of one dataset.

    Args:
        sizes: rows of each shard, in the manifest's order.
        batch_size: rows of a global batch.
        seed: of the permutations.
    """

    sizes: tuple[int, ...]
    batch_size: int
    seed: int

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        return sum(self.sizes)

    @property
    def steps(self) -> int:
        """Batches of an epoch, the smaller tail batch included."""
        return -(-self.rows // self.batch_size)

    @cached_property
    def shards(self) -> tuple[int, ...]:
        """Manifest indices of the shards, the longer first: place s of this tuple is shard s of the order."""
        return tuple(sorted(range(len(self.sizes)), key=lambda index: -self.sizes[index]))

    def owned(self, rank: int, world: int) -> list[int]:
        """Manifest indices of the shards that a rank reads, in the order that `indices` counts their rows in."""
        return list(self.shards[rank::world])

    def batch_rows(self, rank: int, world: int) -> np.ndarray:
        """(steps,) int64: rows of each batch that the rank has."""
        return np.bincount(self._positions(rank, world) // self.batch_size, minlength=self.steps)

    def indices(self, epoch: int, rank: int, world: int) -> np.ndarray:
        """(rows of the rank,) int64 into its shards' concatenated rows, in the order of the epoch's batches."""
        rows, start = [], 0
        for index in self.owned(rank, world):
            generator = np.random.default_rng([self.seed, epoch, index])
            rows.append(start + generator.permutation(self.sizes[index]))
            start += self.sizes[index]
        positions = self._unsorted_positions(rank, world)
        return np.concatenate([np.zeros(0, np.int64), *rows])[np.argsort(positions, kind="stable")]

    def _positions(self, rank: int, world: int) -> np.ndarray:
        return np.sort(self._unsorted_positions(rank, world))

    def _unsorted_positions(self, rank: int, world: int) -> np.ndarray:
        """Shard by shard, the positions p of its rows: s, s + S, s + 2S, …"""
        places = [
            place + len(self.sizes) * np.arange(self.sizes[index], dtype=np.int64)
            for place, index in enumerate(self.shards)
            if place % world == rank
        ]
        return np.concatenate([np.zeros(0, np.int64), *places])


def order(sizes: Sequence[int], batch_size: int, seed: int) -> Order:
    """The order over shards of these sizes, which must differ by at most one row: else positions would have gaps."""
    assert max(sizes) - min(sizes) <= 1, "shards differ by more than one row"
    return Order(tuple(sizes), batch_size, seed)


def split_off(sizes: Sequence[int], fraction: float) -> tuple[list[int], list[int]]:
    """(rows of each shard to hold out, rows that stay): together that share of all rows, and what stays is even."""
    total = sum(sizes)
    stays = total - round(total * fraction)
    if not stays:
        raise InputError(f"--validation-fraction {fraction:g} leaves none of {total} images to train on")
    places = sorted(range(len(sizes)), key=lambda index: -sizes[index])
    kept = [0] * len(sizes)
    for place, index in enumerate(places):
        kept[index] = stays // len(sizes) + (place < stays % len(sizes))
    return [size - keep for size, keep in zip(sizes, kept, strict=True)], kept
