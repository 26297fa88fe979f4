"""Many reads at once: in order, few at a time, and nothing goes on once nobody takes the results."""

from __future__ import annotations

import random
import threading
import time

import pytest

from mnist_ray.storage.parallel import in_parallel


@pytest.mark.parametrize("at_once", [1, 2, 7])
@pytest.mark.parametrize("items", [0, 1, 6, 7, 8, 50])
def test_results_come_in_the_order_of_the_items(at_once: int, items: int) -> None:
    def square(number: int) -> int:
        time.sleep(random.random() / 1000)
        return number**2

    assert list(in_parallel(square, range(items), at_once=at_once)) == [number**2 for number in range(items)]


def test_many_are_under_way_at_once() -> None:
    together = threading.Barrier(4)

    def wait(number: int) -> int:
        together.wait(timeout=30)
        return number

    assert list(in_parallel(wait, range(8), at_once=4)) == list(range(8))


def test_only_a_few_items_are_taken_ahead() -> None:
    taken: list[int] = []
    results = in_parallel(lambda number: number, (taken.append(number) or number for number in range(99)), at_once=4)
    assert next(results) == 0
    assert len(taken) <= 6
    results.close()


def test_the_first_error_in_the_order_is_raised() -> None:
    def fail(number: int) -> int:
        time.sleep(0.1 if number == 2 else 0)
        if number in (2, 3):
            raise ValueError(number)
        return number

    results = in_parallel(fail, range(9), at_once=4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="2"):
        next(results)
