"""What the answers of a cluster's nodes mean: one finding a check, with what to do where it is not sound."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from mnist_ray.cluster.capacity import no_room
from mnist_ray.cluster.nodes import Answer, Node, room
from mnist_ray.errors import first_line

CLOCK_SECONDS, CLOCK_LIMIT_SECONDS = 5.0, 600.0
"""Difference of two clocks that is worth a word, and that is near the 15 minutes at which S3 refuses requests."""

FULL = 0.95
"""Share of its disk from which Ray stores no more objects (RAY_local_fs_capacity_threshold)."""

WORKER_BYTES = 1 << 30
"""Memory of a train worker, with TensorFlow. Measured: 946 MB for the tutorial's model."""


class Finding(NamedTuple):
    """One line of `doctor`."""

    level: str
    """ok; warn, where a job may work; or FAIL, where it will not."""
    line: str


def resources(workers: int, cpus: float, nodes: Sequence[Node], most: dict[str, int] | None) -> Finding:
    """Whether the train workers fit, on the nodes there are or on those that an autoscaler may add.

    most: the resources to which the cluster may grow; None where Ray does not know.
    """
    sizes = " + ".join(f"{node.cpus:g}" for node in nodes)
    if room(nodes, cpus) >= workers:
        return Finding("ok", f"resources: {workers} train workers x {cpus:g} CPUs fit on nodes with {sizes} CPUs")
    message = f"resources: {no_room(workers, cpus, nodes)}"
    if most is None:
        return Finding("FAIL", f"{message}. Ray does not know whether an autoscaler may add nodes; if one may, give"
                       " --wait-for-resources SECONDS")  # fmt: skip
    if (limit := most.get("CPU", 0)) >= workers * cpus:
        return Finding("warn", f"{message}. The autoscaler may add nodes, up to {limit:g} CPUs: give"
                       " --wait-for-resources SECONDS")  # fmt: skip
    return Finding("FAIL", f"{message}. The autoscaler may grow to {limit:g} CPUs only: raise its maxReplicas")


def of_nodes(answers: Sequence[Answer], here: dict[str, str | None], storage: str, seconds: float) -> Iterator[Finding]:
    """The findings from what the nodes tell of themselves.

    here: versions of this process. storage: as the user gave it. seconds: that the nodes had to answer.
    """
    silent = [each for each in answers if each.value is None]
    for answer in silent:
        what = f"raised {first_line(answer.error)}" if answer.error else f"has not run a task within {seconds:g} s"
        yield Finding("FAIL", f"nodes: {answer.node} {what}; look at it with `ray status`, and at its logs")
    answered = [each for each in answers if each.value is not None]
    yield from _grouped(answered, _package)
    yield from _versions(answered, here)
    looked = [each for each in answered if not each.value["missing"]]
    if looked:
        yield from _or_sound(_grouped(looked, lambda each: _storage(each, storage)), "storage",
                             f"written, read, renamed and removed from {_count(looked)}")  # fmt: skip
        yield from _or_sound(
            _grouped(looked, _quota), "quota", f"the cgroups of {_count(looked)} allow what Ray counts"
        )
        yield from _or_sound(_grouped(looked, _disk), "Ray's folder", f"there is room on {_count(looked)}")
    if answered:
        sound = f"within {CLOCK_SECONDS:g} s of this machine's on {_count(answered)}"
        yield from _or_sound(_grouped(answered, _clock), "clock", sound)


def _count(answers: Sequence[Answer]) -> str:
    return f"{len(answers)} node{'' if len(answers) == 1 else 's'}"


def _or_sound(findings: Iterable[Finding], what: str, sound: str) -> Iterator[Finding]:
    """The findings, or where there are none that all is well."""
    found = [*findings]
    yield from found or [Finding("ok", f"{what}: {sound}")]


def _grouped(answers: Iterable[Answer], check: Callable[[Answer], Finding | None]) -> Iterator[Finding]:
    """Each finding once, with all nodes that it is true of."""
    nodes = dict[Finding, list[Node]]()
    for answer in answers:
        if found := check(answer):
            nodes.setdefault(found, []).append(answer.node)
    for found, where in nodes.items():
        what, _, problem = found.line.partition(": ")
        yield Finding(found.level, f"{what}: {', '.join(map(str, where))}: {problem}")


def _package(answer: Answer) -> Finding | None:
    if missing := answer.value["missing"]:
        return Finding("FAIL", f"package: cannot import mnist_ray ({missing}); give all nodes an image that has it, or"
                       " send it by `submit --working-dir`")  # fmt: skip
    return None


def _versions(answered: Sequence[Answer], here: dict[str, str | None]) -> Iterator[Finding]:
    """Versions that are not those of this process; mnist_ray has none where it was sent and not installed."""
    differing = dict[str, list[str]]()
    for answer in answered:
        for package, found in answer.value["versions"].items():
            if found != here.get(package) and not (package == "mnist-ray" and found is None):
                difference = f"{package} {here.get(package) or 'is missing'} here, {found or 'missing'} there"
                differing.setdefault(difference, []).append(str(answer.node))
    for difference, nodes in differing.items():
        yield Finding("FAIL", f"versions: {', '.join(nodes)}: {difference}; use one image, or one lock, for all")
    if answered and not differing:
        shown = ("python", "ray", "keras", "mnist-ray")
        equal = ", ".join(f"{package} {here[package]}" for package in shown if here.get(package))
        yield Finding("ok", f"versions: the same here and on {_count(answered)}: {equal}")


def _storage(answer: Answer, storage: str) -> Finding | None:
    if answer.value["sees_marker"] is False:
        return Finding("FAIL", f"storage: does not see in {storage} what this process wrote there; give a path that all"
                       " nodes share, or a URI such as s3://BUCKET/FOLDER")  # fmt: skip
    if problem := answer.value["storage"]:
        return Finding("FAIL", f"storage: {problem}")
    return None


def _quota(answer: Answer) -> Finding | None:
    counted, allowed, limit = answer.node.cpus, answer.value["cpus"], answer.value["memory"]
    if counted > allowed:
        return Finding("warn", f"quota: Ray counts {counted:g} CPUs, but the cgroup allows {allowed}; start the node"
                       f" with --num-cpus={allowed}")  # fmt: skip
    if limit is not None and limit < WORKER_BYTES:
        return Finding("FAIL", f"quota: the cgroup allows {limit >> 20} MiB of memory, and a train worker needs about"
                       f" {WORKER_BYTES >> 20}; raise the container's memory limit")  # fmt: skip
    return None


def _disk(answer: Answer) -> Finding | None:
    folder, used = answer.value["ray_folder"], answer.value["ray_disk_used"]
    if used <= FULL:
        return None
    return Finding("FAIL", f"Ray's folder: the disk of {folder} is {used:.0%} full, and Ray stores no objects above"
                   f" {FULL:.0%}; make room, or start the node with --temp-dir elsewhere")  # fmt: skip


def _clock(answer: Answer) -> Finding | None:
    skew: float = answer.value["time"] - answer.received
    if abs(skew) <= CLOCK_SECONDS:
        return None
    level = "FAIL" if abs(skew) > CLOCK_LIMIT_SECONDS else "warn"
    return Finding(level, f"clock: {abs(skew):,.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's; run NTP on"
                   " all hosts: stores such as S3 refuse requests that are 15 minutes off")  # fmt: skip


def authentication(where: str, is_open: bool | None) -> Finding:
    """is_open: None where it cannot be answered."""
    if is_open is None:
        return Finding("warn", f"token: {where} does not say whether it requires a token")
    if is_open:
        return Finding("warn", f"token: {where} requires none, so whoever reaches it runs code there; start it with"
                       " RAY_AUTH_MODE=token")  # fmt: skip
    return Finding("ok", f"token: {where} requires a token, and takes ours")
