"""The nodes of a cluster that has been joined: what they have, and a function run on each of them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from mnist_ray.errors import SetupError
from mnist_ray.storage.location import Location

ANSWER_SECONDS = 20.0
"""How long nodes have to answer. A process that starts on a busy one takes several."""


@dataclass(frozen=True)
class Node:
    """A node that is alive, with the resources that Ray counts on it."""

    id: str
    address: str
    is_head: bool
    cpus: float
    memory: int = 0
    """Bytes."""

    def __str__(self) -> str:
        return f"{'head' if self.is_head else 'node'} {self.address}"


@dataclass(frozen=True)
class Answer:
    """What a function returned on a node, or what it raised there; neither where it has not run in time."""

    node: Node
    value: Any = None
    error: Exception | None = None
    received: float = 0.0
    """Of this process's clock, when the value came."""


def alive() -> list[Node]:
    """The nodes, the head first."""
    import ray

    found = [_node(each) for each in ray.nodes() if each["Alive"]]
    return sorted(found, key=lambda node: (not node.is_head, node.address, node.id))


class Death(NamedTuple):
    """The end of a node, as Ray has it."""

    reason: str
    is_expected: bool
    """Whether it said goodbye; the end of a process that was killed, or of a machine, is not."""


def deaths() -> dict[str, Death]:
    """How the nodes that are no more have ended, by id."""
    import ray

    unexpected = 2  # NodeDeathInfo.Reason in src/ray/protobuf/gcs.proto
    return {
        each["NodeID"]: Death(each.get("DeathReasonMessage", "").rstrip("."), each.get("DeathReason") != unexpected)
        for each in ray.nodes()
        if not each["Alive"]
    }


def _node(record: dict[str, Any]) -> Node:
    resources = record["Resources"]
    return Node(
        id=record["NodeID"],
        address=record["NodeManagerAddress"],
        is_head="node:__internal_head__" in resources,
        cpus=float(resources.get("CPU", 0)),
        memory=int(resources.get("memory", 0)),
    )


def room(nodes: Iterable[Node], cpus: float) -> int:
    """How many workers of so many CPUs fit; a worker lies on one node."""
    return sum(int(node.cpus / cpus + 1e-9) for node in nodes)


def require_shared(folder: Location) -> None:
    """Raise SetupError where a folder on a disk is not the same one on all nodes, which each job needs."""
    nodes = alive()
    if not folder.is_local or len(nodes) < 2:
        return

    def sees(path: str) -> bool:
        import os
        import time

        for _ in range(20):  # a network disk may be late
            if os.path.exists(path):  # noqa: PTH110 - sent as it stands
                return True
            time.sleep(0.1)
        return False

    marker = folder / f".probe-{uuid.uuid4().hex[:8]}"
    marker.write_bytes(b"mnist-ray")
    try:
        answers = on_each(nodes, sees, marker.path, seconds=ANSWER_SECONDS)
    finally:
        marker.delete()
    if blind := [str(answer.node) for answer in answers if answer.value is False]:
        raise SetupError(
            f"{folder} is not the same folder on {', '.join(blind)} as here; give a path that all nodes share, or a URI"
            " such as s3://BUCKET/FOLDER",
            see="clusters.md#ways-to-start",
        )


def on_each(nodes: Iterable[Node], function: Callable[..., Any], *args: Any, seconds: float) -> list[Answer]:
    """Run a function once on each node at the same time, for at most so many seconds, whatever else they do.

    A function that is not at the top level of a module is sent with its code, and runs on nodes without this package.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=0)(function)
    waiting = {
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(*args): node
        for node in nodes
    }
    answers, deadline = dict[str, Answer](), time.monotonic() + seconds
    for node in waiting.values():
        answers[node.id] = Answer(node)
    while waiting and (left := deadline - time.monotonic()) > 0:
        for done in ray.wait([*waiting], timeout=left)[0]:
            node = waiting.pop(done)
            try:
                answers[node.id] = Answer(node, ray.get(done), received=time.time())
            except Exception as error:  # what it raised, or a node that was lost
                answers[node.id] = Answer(node, error=error)
    for late in waiting:
        ray.cancel(late, force=True)
    return [*answers.values()]
