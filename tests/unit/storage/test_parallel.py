"""Many reads at once: in order, few at a time, and nothing goes on once nobody takes the results."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mnist_ray.storage.parallel import in_parallel, in_processes


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


def test_processes_give_the_results_in_order_and_the_first_error() -> None:
    """More than a batch for each, so that they take turns."""
    roots = list(in_processes(math.isqrt, range(1_000), processes=2, threads=2))
    assert roots == [math.isqrt(number) for number in range(1_000)]
    results = in_processes(math.isqrt, [4, 9, -1, 16], processes=2, threads=1)
    with pytest.raises(ValueError, match="negative"):
        next(results)


def test_the_processes_of_a_killed_parent_end(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from mnist_ray.storage.parallel import in_processes\n"
        "from tests.unit.storage.test_parallel import say_and_wait\n"
        "if __name__ == '__main__':\n"
        f"    list(in_processes(say_and_wait, [{str(tmp_path)!r}] * 256, processes=2, threads=1))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen([sys.executable, script], env=environment) as parent:
        until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
        parent.kill()
    until(lambda: not any(Path("/proc", file.stem).exists() for file in tmp_path.glob("*.pid")))


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def say_and_wait(folder: str) -> None:
    Path(folder, f"{os.getpid()}.pid").touch()
    time.sleep(600)
