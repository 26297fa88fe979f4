"""What the answers of nodes mean, with nodes that are not there: two that are sound, but for one thing."""

from __future__ import annotations

from typing import Any

import pytest

from mnist_ray.cluster.findings import Finding, authentication, of_nodes, resources
from mnist_ray.cluster.nodes import Answer, Node, room

HERE = {"python": "3.11.7", "mnist-ray": "0.1.0", "ray": "2.60.0", "keras": "3.15.1"}
HEAD, WORKER = Node("a", "10.0.0.1", True, 2.0), Node("b", "10.0.0.2", False, 4.0)
SOUND = {
    "versions": HERE, "missing": None, "cpus": 4, "memory": 4 << 30, "ray_folder": "/tmp/ray/session",
    "ray_disk_used": 0.5, "storage": None, "sees_marker": True, "time": 1000.4,
}  # fmt: skip


def findings(head: dict[str, Any] | None = None, worker: dict[str, Any] | None = None) -> list[Finding]:
    """What is found where the two nodes differ so from sound ones."""
    answers = [
        Answer(node, {**SOUND, **(changed or {})}, received=1000.0)
        for node, changed in ((HEAD, head), (WORKER, worker))
    ]
    return list(of_nodes(answers, HERE, "/mnt/runs", 20.0))


def test_sound_nodes() -> None:
    assert findings() == [
        Finding("ok", "versions: the same here and on 2 nodes: python 3.11.7, ray 2.60.0, keras 3.15.1,"
                " mnist-ray 0.1.0"),
        Finding("ok", "storage: written, read, renamed and removed from 2 nodes"),
        Finding("ok", "quota: the cgroups of 2 nodes allow what Ray counts"),
        Finding("ok", "Ray's folder: there is room on 2 nodes"),
        Finding("ok", "clock: within 5 s of this machine's on 2 nodes"),
    ]  # fmt: skip


NOT_SHARED = "does not see in /mnt/runs what this process wrote there; give a path that all nodes share, or a URI"


@pytest.mark.parametrize(
    ("worker", "level", "line"),
    [
        ({"missing": "No module named 'mnist_ray'"}, "FAIL",
         "package: node 10.0.0.2: cannot import mnist_ray (No module named 'mnist_ray'); give all nodes an image"),
        ({"versions": {**HERE, "keras": "3.14.0"}}, "FAIL",
         "versions: node 10.0.0.2: keras 3.15.1 here, 3.14.0 there; use one image, or one lock, for all"),
        ({"versions": {**HERE, "ray": None}}, "FAIL", "versions: node 10.0.0.2: ray 2.60.0 here, missing there"),
        ({"versions": {**HERE, "python": "3.12.1"}}, "FAIL", "versions: node 10.0.0.2: python 3.11.7 here, 3.12.1"),
        ({"sees_marker": False}, "FAIL", f"storage: node 10.0.0.2: {NOT_SHARED} such as s3://BUCKET/FOLDER"),
        ({"storage": "cannot write /mnt/runs: Permission denied"}, "FAIL",
         "storage: node 10.0.0.2: cannot write /mnt/runs: Permission denied"),
        ({"cpus": 2}, "warn", "quota: node 10.0.0.2: Ray counts 4 CPUs, but the cgroup allows 2; start the node with"
         " --num-cpus=2"),
        ({"memory": 512 << 20}, "FAIL", "quota: node 10.0.0.2: the cgroup allows 512 MiB of memory, and a train worker"
         " needs about 1024; raise"),
        ({"ray_disk_used": 0.96}, "FAIL", "Ray's folder: node 10.0.0.2: the disk of /tmp/ray/session is 96% full"),
        ({"time": 1006.0}, "warn", "clock: node 10.0.0.2: 6 s ahead of this machine's; run NTP on all hosts"),
        ({"time": 399.0}, "FAIL", "clock: node 10.0.0.2: 601 s behind this machine's; run NTP on all hosts"),
    ],
)  # fmt: skip
def test_a_node_that_is_not_sound(worker: dict[str, Any], level: str, line: str) -> None:
    found = [each for each in findings(worker=worker) if each.level != "ok"]
    assert [each.level for each in found] == [level]
    assert found[0].line.startswith(line)


def test_a_package_that_was_sent_has_no_version() -> None:
    assert not [each for each in findings(worker={"versions": {**HERE, "mnist-ray": None}}) if each.level != "ok"]


def test_what_is_true_of_several_nodes_is_told_once() -> None:
    same = {"sees_marker": False}
    found = [each for each in findings(same, same) if each.level != "ok"]
    assert [each.line.partition(": does")[0] for each in found] == ["storage: head 10.0.0.1, node 10.0.0.2"]


def test_nodes_that_do_not_answer() -> None:
    answers = [Answer(HEAD, error=RuntimeError("it is\nlost")), Answer(WORKER)]
    assert [each.line.partition(";")[0] for each in of_nodes(answers, HERE, "/mnt/runs", 20.0)] == [
        "nodes: head 10.0.0.1 raised it is", "nodes: node 10.0.0.2 has not run a task within 20 s",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("workers", "cpus", "most", "level", "words"),
    [
        (2, 2.0, None, "ok", "2 train workers x 2 CPUs fit on nodes with 2 + 4 CPUs"),
        (6, 1.0, None, "ok", "fit on nodes"),
        (7, 1.0, None, "FAIL", "= 7 CPUs are needed, but the cluster has 6; use --num-workers 6 or"),
        (7, 1.0, None, "FAIL", "Ray does not know whether an autoscaler may add nodes"),
        (7, 1.0, {"CPU": 8}, "warn", "The autoscaler may add nodes, up to 8 CPUs: give --wait-for-resources SECONDS"),
        (7, 1.0, {"CPU": 6}, "FAIL", "The autoscaler may grow to 6 CPUs only"),
        (2, 3.0, None, "FAIL", "2 train workers x 3 CPUs do not fit on nodes with 2, 4 CPUs: each worker needs a node"),
    ],
)
def test_workers_and_room_for_them(
    workers: int, cpus: float, most: dict[str, int] | None, level: str, words: str
) -> None:
    found = resources(workers, cpus, [HEAD, WORKER], most)
    assert found.level == level
    assert words in found.line


def test_room_for_fractions() -> None:
    assert [room([HEAD, WORKER], cpus) for cpus in (0.1, 0.5, 1.5, 2.0, 3.0, 5.0)] == [60, 12, 3, 3, 1, 0]
    assert room([Node("c", "10.0.0.3", False, 0.3)], 0.1) == 3  # 0.3 / 0.1 is 2.9999999999999996


@pytest.mark.parametrize(("is_open", "level"), [(True, "warn"), (False, "ok"), (None, "warn")])
def test_a_cluster_that_anybody_may_use(is_open: bool | None, level: str) -> None:
    assert authentication("the head at h:6379", is_open).level == level
