"""Order: every row exactly once an epoch, and the same global batches for any number of workers."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest

from mnist_ray.errors import InputError
from mnist_ray.training.order import Order, split_off


def sizes_of(rows: int, shards: int) -> tuple[int, ...]:
    return tuple(rows // shards + (index < rows % shards) for index in range(shards))


def global_rows(order: Order, epoch: int, world: int) -> list[list[tuple[int, int]]]:
    """Each batch as the (shard, row) pairs of all ranks, sorted: the trivial way to say what a batch holds."""
    batches: list[list[tuple[int, int]]] = [[] for _ in range(order.steps)]
    for rank in range(world):
        names = [(shard, row) for shard in order.owned(rank, world) for row in range(order.sizes[shard])]
        counts = order.batch_rows(rank, world)
        indices = order.indices(epoch, rank, world)
        assert len(counts) == order.steps
        assert counts.sum() == len(indices) == len(names)
        for batch, part in enumerate(np.split(indices, np.cumsum(counts)[:-1])):
            batches[batch] += [names[index] for index in part]
    return [sorted(batch) for batch in batches]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("rows", "shards", "batch"),
    [(1, 1, 1), (7, 3, 2), (48, 48, 64), (64, 7, 64), (65, 7, 64), (321, 6, 13), (5, 9, 2)],
)
def test_batches_are_those_of_the_definition(rows: int, shards: int, batch: int, world: int) -> None:
    order = Order(sizes_of(rows, shards), batch, seed=3)
    for epoch in (0, 1):
        shuffled = [np.random.default_rng([3, epoch, s]).permutation(n) for s, n in enumerate(order.sizes)]
        path = [(p % shards, int(shuffled[p % shards][p // shards])) for p in range(rows)]
        expected = [sorted(path[k : k + batch]) for k in range(0, rows, batch)]
        assert global_rows(order, epoch, world) == expected


def test_every_row_once_an_epoch_and_another_order_each_epoch() -> None:
    order = Order(sizes_of(1000, 48), 64, seed=0)
    first, second = global_rows(order, 0, 3), global_rows(order, 1, 3)
    every = sorted((shard, row) for shard, size in enumerate(order.sizes) for row in range(size))
    assert sorted(chain(*first)) == sorted(chain(*second)) == every
    assert first != second


def test_a_worker_may_own_nothing_of_a_batch() -> None:
    order = Order((1, 1, 1, 0, 0), 2, seed=0)
    assert [order.batch_rows(rank, 3).tolist() for rank in range(3)] == [[1, 0], [1, 0], [0, 1]]


def test_uneven_shards_are_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="more than one row"):
        Order((5, 3), 2, seed=0)


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.25, 0.5, 0.97])
@pytest.mark.parametrize(("rows", "shards"), [(1000, 48), (48, 48), (49, 48), (100, 1), (40, 48)])
def test_what_is_held_out_is_that_share_and_the_rest_is_even(rows: int, shards: int, fraction: float) -> None:
    sizes = sizes_of(rows, shards)
    held_out, kept = split_off(sizes, fraction)
    assert [one + other for one, other in zip(held_out, kept, strict=True)] == list(sizes)
    assert sum(held_out) == round(rows * fraction)
    assert min(held_out) >= 0
    assert max(kept) - min(kept) <= 1


def test_something_must_be_left_to_train_on() -> None:
    with pytest.raises(InputError, match=r"--validation-fraction 0\.9 leaves none of 2 images"):
        split_off([1, 1], 0.9)


@pytest.mark.parametrize(("world", "shards"), [(w, s) for s in (1, 2, 5, 7, 12, 48) for w in range(1, 13) if w <= s])
@pytest.mark.parametrize("batch", [1, 16, 64, 96, 5000])
def test_most_rows_is_the_most_that_any_rank_has(world: int, shards: int, batch: int) -> None:
    """By the definition: position p belongs to rank (p mod S) mod W and to batch p div B."""
    rows = 1003
    order = Order(sizes_of(rows, shards), batch, seed=0)
    counts = np.zeros((order.steps, world), int)
    for position in range(rows):
        counts[position // batch, position % shards % world] += 1
    assert order.most_rows(world) == counts.max()
