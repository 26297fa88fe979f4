"""Many files read at once: each is a round trip to an object store, and may be work for a core of its own."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_BATCH = 128  # items that a process is given at a time
_PR_SET_PDEATHSIG = 1


def in_parallel(function: Callable[[Item], Result], items: Iterable[Item], *, at_once: int) -> Generator[Result]:
    """function(item) of each item, in their order, by `at_once` threads. Raises the first error, in this order.

    Unlike `Executor.map`, it holds only a few items and results at a time. Close it where not all are taken.
    """
    with ThreadPoolExecutor(at_once) as pool:
        yield from _in_order(pool, function, items, at_once)


def in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], *, processes: int, threads: int
) -> Generator[Result]:
    """The same by `processes` processes of `threads` threads each, where the work is mostly Python's own.

    The function, the items and the results are pickled.
    """
    batches = (items[first : first + _BATCH] for first in range(0, len(items), _BATCH))
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _end_with_parent) as pool:
        for results in _in_order(pool, partial(_all, function, threads), batches, 2 * processes):
            yield from results


def _in_order(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Generator[Result]:
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for each in pending:
            each.cancel()


def _all(function: Callable[[Item], Result], threads: int, items: Sequence[Item]) -> list[Result]:
    return list(in_parallel(function, items, at_once=threads))


def _end_with_parent() -> None:
    """Called in each process: only the parent is interrupted, and a process whose parent was killed ends, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
