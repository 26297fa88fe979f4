"""Room for the workers that is lost while a job runs: waited for, told, and given up for in the end."""

from __future__ import annotations

import pytest

from mnist_ray.cluster import capacity
from mnist_ray.cluster.capacity import Shortage
from mnist_ray.cluster.nodes import Death, Node
from mnist_ray.errors import RetryableError

HEAD = Node("h", "10.0.0.1", True, 0)
FIRST, SECOND = (Node(str(number), f"10.0.0.{number}", False, 1, memory=600 << 20) for number in (2, 3))


class Cluster:
    """Nodes and a clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes, self.deaths, self.now, self.lines = [HEAD, FIRST, SECOND], dict[str, Death](), 0.0, list[str]()
        monkeypatch.setattr(capacity, "alive", lambda: self.nodes)
        monkeypatch.setattr(capacity, "deaths", lambda: self.deaths)
        self.shortage = Shortage(2, 1.0, 300.0, self.lines.append, clock=lambda: self.now)

    def check(self, now: float) -> None:
        self.now = now
        self.shortage.check()

    def lose(self, node: Node, reason: str = "health check failed", *, is_expected: bool = False) -> None:
        self.nodes = [each for each in self.nodes if each is not node]
        self.deaths[node.id] = Death(reason, is_expected)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


LOST = "node 10.0.0.3 was lost (health check failed; its 0.6 GiB of memory may be too little); "


def test_room_that_does_not_come_back_ends_the_job(cluster: Cluster) -> None:
    cluster.check(0)
    cluster.lose(SECOND)
    cluster.check(10)
    cluster.check(309)
    assert cluster.lines == [f"{LOST}waiting for room for 2 train workers, for up to 300 s"]
    with pytest.raises(RetryableError) as raised:
        cluster.check(315)
    assert str(raised.value) == (
        f"{LOST}2 train workers x 1 CPU = 2 CPUs are needed, but after 300 s the cluster has 1; use --num-workers 1 or"
        " --cpus-per-worker 0.5, or a larger --wait-for-resources; the same command continues from the last checkpoint"
    )


def test_room_that_comes_back_begins_anew(cluster: Cluster) -> None:
    cluster.check(0)
    for now in (100, 500, 900):
        cluster.lose(SECOND, "Node received SIGTERM", is_expected=True)
        cluster.check(now)
        cluster.nodes = [HEAD, FIRST, SECOND]
        cluster.check(now + 250)
    told = "node 10.0.0.3 was lost (Node received SIGTERM); waiting for room for 2 train workers, for up to 300 s"
    assert cluster.lines == [told] * 3


def test_the_nodes_are_looked_at_every_few_seconds(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    monkeypatch.setattr(capacity, "alive", lambda: looks.append(cluster.now) or cluster.nodes)
    for tenth in range(120):
        cluster.check(tenth / 10)
    assert looks == [0.0, 5.0, 10.0]


def test_a_node_too_many_may_go(cluster: Cluster) -> None:
    cluster.nodes.append(Node("4", "10.0.0.4", False, 1))
    cluster.check(0)
    cluster.lose(SECOND)
    cluster.check(10)
    cluster.check(1000)
    assert cluster.lines == []
