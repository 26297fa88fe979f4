"""Many files read at once: each is a round trip to an object store, and may be work for a core of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(function: Callable[[Item], Result], items: Iterable[Item], *, at_once: int) -> Generator[Result]:
    """function(item) of each item, in their order, by `at_once` threads. Raises the first error, in this order.

    Unlike `Executor.map`, it holds only a few items and results at a time. Close it where not all are taken.
    """
    with ThreadPoolExecutor(at_once) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > at_once:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for each in pending:
                each.cancel()
