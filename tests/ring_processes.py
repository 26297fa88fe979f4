"""Run a function in W plain processes that stand in a ring: no Ray, so that a test of the ring tests nothing else.

`python tests/ring_processes.py MODULE:FUNCTION FOLDER RANK WORLD` is one of them; `run_in_ring` starts them all.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
SECRET = b"a secret of the tests"


def run_in_ring(function: str, folder: Path, world: int, *, timeout: float = 200) -> None:
    """Call MODULE:FUNCTION(ring, folder) in every process; raises with the first one's stderr if any fails."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, function, str(folder), str(rank), str(world)],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        ends = [(process.communicate(timeout=timeout)[1], process.returncode) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    failed = [stderr for stderr, code in ends if code]
    assert not failed, f"{len(failed)} of {world} failed; the first said: {failed[0][-3000:]}"


def main(function: str, folder: Path, rank: int, world: int) -> None:
    from mnist_ray.ring import Listener, connect

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
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
