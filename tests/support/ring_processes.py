"""Run a function in W plain processes that stand in a ring: no Ray, so that a test of the ring tests nothing else.

They are forked from one that has imported TensorFlow, which takes longer than most of what they do, but has not
computed with it: `python -m tests.support.ring_processes` reads a JSON line for each ring that it starts.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

SECRET = b"a secret of the tests"


def run_in_ring(function: str, folder: Path, world: int, *, timeout: float = 200) -> None:
    """Call MODULE:FUNCTION(ring, folder) in every process; raises with the first one's stderr if any fails."""
    folder.mkdir(parents=True, exist_ok=True)
    mother = _mother()
    mother.stdin.write(json.dumps([function, str(folder), world]) + "\n")
    mother.stdin.flush()
    if not select.select([mother.stdout], [], [], timeout)[0]:
        _mother.cache_clear()
        os.killpg(mother.pid, 9)
        raise TimeoutError(f"{function} in {world} processes: not in {timeout} s")
    codes = json.loads(mother.stdout.readline())
    said = [(folder / f"stderr-{rank}.txt").read_text() for rank in range(world)]
    failed = [stderr for stderr, code in zip(said, codes, strict=True) if code]
    assert not failed, f"{len(failed)} of {world} failed; the first said: {failed[0][-3000:]}"


@functools.cache
def _mother() -> Any:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1"}
    return subprocess.Popen(
        [sys.executable, "-m", __name__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def end() -> None:
    """At the end of its input it ends."""
    if _mother.cache_info().currsize:
        _mother().communicate()
        _mother.cache_clear()


def bear() -> None:
    """The mother's life."""
    from mnist_ray.models.runtime import import_keras

    import_keras()
    for line in sys.stdin:
        function, folder, world = json.loads(line)
        children = [_fork(function, Path(folder), rank, world) for rank in range(world)]
        print(json.dumps([os.waitpid(child, 0)[1] for child in children]), flush=True)


def _fork(function: str, folder: Path, rank: int, world: int) -> int:
    if child := os.fork():
        return child
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(os.open(folder / f"stderr-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(2, 1)
        tempfile.tempdir = str(folder)  # TensorFlow's own files go when a process ends, but not by os._exit
        main(function, folder, rank, world)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main(function: str, folder: Path, rank: int, world: int) -> None:
    from mnist_ray.collective.forming import Listener, connect

    module, _, name = function.partition(":")
    work = getattr(importlib.import_module(module), name)
    listener = Listener("127.0.0.1")
    mine = folder / f"address-{rank}.json"
    mine.with_suffix(".new").write_text(json.dumps(listener.address))
    mine.with_suffix(".new").replace(mine)
    others = [folder / f"address-{other}.json" for other in range(world)]
    deadline = time.monotonic() + 60
    while not all(other.exists() for other in others):
        assert time.monotonic() < deadline, "the others did not come"
        time.sleep(0.02)
    addresses = [(host, port) for host, port in (json.loads(other.read_text()) for other in others)]
    with connect(listener, rank=rank, addresses=addresses, secret=SECRET) as ring:
        ring.barrier()
        mine.unlink()
        work(ring, folder)


if __name__ == "__main__":
    bear()
