"""The ring's speed, two processes on this host: `python -m tests.benchmarks.ring`.

Everything is measured in one run, round after round, since absolute times drift from machine to machine: an
all-reduce of 100 MB beside two plain sockets that move the same bytes and add nothing; the tutorial's 101,770 gradients
and 10 floats beside torch's gloo, where torch can be imported. Prints medians and ratios, and one line of JSON.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import platform
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from mnist_ray.collective.forming import Listener, connect

LARGE, GRADIENTS, SMALL = 25_000_000, 101_770, 10  # float32 each
ROUNDS = 7


def main() -> None:
    """Start two processes, introduce them to each other, and print what rank 0 has measured."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for rank in range(2):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=rank_main, args=(rank, theirs)))
        processes[-1].start()
        pipes.append(ours)
    addresses = [pipe.recv() for pipe in pipes]
    for pipe in pipes:
        pipe.send(addresses)
    seconds: dict[str, float] = pipes[0].recv()
    for process in processes:
        process.join()
    show(seconds)


def show(seconds: dict[str, float]) -> None:
    versions = f"numpy {np.__version__}, Python {platform.python_version()}, {platform.machine()}"
    print(f"two processes on {os.cpu_count()} cores (load {os.getloadavg()[0]:.1f}), {versions}")
    for name, value in seconds.items():
        print(f"  {name:<42} {value * 1e3:9.3f} ms")
    ratios = {"ring's share of two plain sockets, 100 MB": seconds["plain sockets, 100 MB"] / seconds["ring, 100 MB"]}
    if "gloo, 101,770 float32" in seconds:
        for what in ("101,770 float32", "10 float32"):
            ratios[f"ring faster than gloo, {what}"] = seconds[f"gloo, {what}"] / seconds[f"ring, {what}"]
    else:
        print("  torch is not installed: no comparison with gloo")
    for name, value in ratios.items():
        print(f"  {name:<42} {value:9.2f} ×")
    print(json.dumps({"milliseconds": {name: value * 1e3 for name, value in seconds.items()}, "ratios": ratios}))


def rank_main(rank: int, pipe: Connection) -> None:
    """One process: a ring, and a plain socket each way, to the other."""
    listener, plain = Listener("127.0.0.1"), socket.create_server(("127.0.0.1", 0))
    gloo_port = free_port() if rank == 0 else 0
    pipe.send((listener.address, plain.getsockname(), gloo_port))
    others = pipe.recv()
    out = socket.create_connection(others[1 - rank][1])
    into, _ = plain.accept()
    large, room = np.zeros(LARGE, np.float32), np.zeros(LARGE, np.float32)
    with connect(listener, rank=rank, addresses=[other[0] for other in others], secret=b"of the benchmark") as ring:
        calls: dict[str, tuple[Callable[[], Any], int]] = {
            "plain sockets, 100 MB": (lambda: exchange(out, into, large, room), 1),
            "ring, 100 MB": (lambda: ring.all_reduce(large), 1),
        }
        for what, count in (("101,770 float32", GRADIENTS), ("10 float32", SMALL)):
            vector = np.zeros(count, np.float32)
            calls[f"ring, {what}"] = (lambda vector=vector: ring.all_reduce(vector), 300)  # type: ignore[misc]
        if importlib.util.find_spec("torch"):
            calls |= gloo_calls(rank, others[0][2])
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(ROUNDS):
            for name, (call, repeats) in calls.items():
                for _ in range(repeats):
                    call()  # to warm up, and to get into step
                ring.barrier()
                start = time.perf_counter()
                for _ in range(repeats):
                    call()
                times[name].append((time.perf_counter() - start) / repeats)
        if rank == 0:
            pipe.send({name: statistics.median(values) for name, values in times.items()})
        ring.barrier()
    if importlib.util.find_spec("torch"):
        from torch import distributed

        distributed.destroy_process_group()


def exchange(out: socket.socket, into: socket.socket, vector: np.ndarray, room: np.ndarray) -> None:
    """Send one vector and receive another at once: what an all-reduce of two ranks moves, without the adding."""
    sender = threading.Thread(target=out.sendall, args=(vector.view(np.uint8).data,))
    sender.start()
    view = room.view(np.uint8).data
    while view:
        view = view[into.recv_into(view) :]
    sender.join()


def gloo_calls(rank: int, port: int) -> dict[str, tuple[Callable[[], Any], int]]:
    """The same vectors through torch.distributed."""
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    vectors = {"101,770 float32": torch.zeros(GRADIENTS), "10 float32": torch.zeros(SMALL)}
    return {
        f"gloo, {what}": (lambda vector=vector: distributed.all_reduce(vector), 100)  # type: ignore[misc]
        for what, vector in vectors.items()
    }


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
