"""Whether the nodes of a cluster have room for the workers of a job: before it starts, and while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from mnist_ray.cluster.nodes import Death, Node, alive, deaths, room
from mnist_ray.errors import RetryableError, counted

_LEAST_SHARE = 0.25  # of a CPU: workers that share one with more than three others only wait for each other

LOST_SECONDS = 600.0
"""How long a running job waits for room that it has lost, unless --wait-for-resources says otherwise. A node that is
replaced takes minutes."""

_LOOK_SECONDS = 5.0


def too_few(workers: int, cpus_per_worker: float, cpus: float, where: str) -> str:
    """The message for a request that is too large, with the values that fit."""
    fitting, share = int(cpus / cpus_per_worker), int(100 * cpus / workers) / 100
    remedies = [f"--num-workers {fitting}"] if fitting else []
    if share >= _LEAST_SHARE or not fitting:
        remedies.append(f"--cpus-per-worker {share:g}")
    return (
        f"{workers} train workers x {cpus_per_worker:g} CPU = {workers * cpus_per_worker:g} CPUs are needed, but"
        f" {where} {cpus:g}; use {' or '.join(remedies)}"
    )


def wait_for_room(workers: int, cpus_per_worker: float, seconds: float, *, held: float = 0.0) -> None:
    """Return once the nodes have room for the workers. Raises RetryableError with the numbers if they do not.

    held: CPUs that the calling task reserves on its node.
    """
    deadline = time.monotonic() + seconds
    while room(found := _without_ours(alive(), held), cpus_per_worker) < workers:
        if seconds and time.monotonic() < deadline:
            from ray.autoscaler.sdk import request_resources

            request_resources(bundles=[{"CPU": cpus_per_worker}] * workers)
            time.sleep(1)
            continue
        waited = f" after {seconds:g} s" if seconds else ""
        ours = f"; the calling task holds {counted(held, 'CPU')}, which num_cpus=0 frees" if held else ""
        raise RetryableError(
            no_room(workers, cpus_per_worker, found, waited)
            + f"{ours}; --wait-for-resources SECONDS gives an autoscaling cluster time to grow",
            see="runs.md#workers-and-cpus",
        )


def _without_ours(nodes: list[Node], held: float) -> list[Node]:
    """The nodes, without the CPUs that the calling task holds on its own."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    return [replace(node, cpus=node.cpus - held) if node.id == own else node for node in nodes]


def no_room(workers: int, cpus_per_worker: float, nodes: Sequence[Node], waited: str = "") -> str:
    """The message for workers that do not fit on the nodes of a cluster."""
    cpus = sum(node.cpus for node in nodes)
    if workers * cpus_per_worker > cpus:
        return too_few(workers, cpus_per_worker, cpus, f"{waited.lstrip()} the cluster has".lstrip())
    sizes = ", ".join(f"{node.cpus:g}" for node in nodes)
    return (
        f"{workers} train workers x {cpus_per_worker:g} CPUs do not fit on nodes with {sizes} CPUs{waited}: each worker"
        " needs a node with all of its CPUs; use fewer --cpus-per-worker"
    )


class Shortage:
    """The time for which a running job has had no room for its workers. Ray Train alone would wait for ever."""

    def __init__(
        self, workers: int, cpus_per_worker: float, seconds: float, notify: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """workers: the fewest that the job runs with. notify: called with a line when room is lost."""
        self._workers, self._cpus, self._seconds = workers, cpus_per_worker, seconds
        self._notify, self._clock = notify, clock
        self._nodes: list[Node] = []
        self._since: float | None = None
        self._next = clock()

    def check(self) -> None:
        """Look at the nodes, at most every few seconds. Raises RetryableError where there has been no room for too
        long."""
        if (now := self._clock()) < self._next:
            return
        self._next = now + _LOOK_SECONDS
        if room(found := alive(), self._cpus) >= self._workers:
            self._nodes, self._since = found, None
            return
        lost = _lost(self._nodes, found)
        if self._since is None:
            self._since = now
            self._notify(f"{lost}waiting for room for {self._workers} train workers, for up to {self._seconds:g} s")
        elif now - self._since >= self._seconds:
            raise RetryableError(
                lost + no_room(self._workers, self._cpus, found, f" after {self._seconds:g} s")
                + ", or a larger --wait-for-resources; the same command continues from the last checkpoint",
                see="runs.md#failures",
            )  # fmt: skip


def _lost(before: Sequence[Node], now: Sequence[Node]) -> str:
    """Which nodes are no more, and why."""
    there, found = {node.id for node in now}, deaths()
    words = ""
    for node in before:
        if node.id not in there:
            death = found.get(node.id, Death("Ray does not say why", True))
            hint = "" if death.is_expected else f"; its {node.memory / 2**30:.1f} GiB of memory may be too little"
            words += f"{node} was lost ({death.reason}{hint}); "
    return words
