"""Checks of the machine, the packages, the storage and the cluster: what would fail, and how to fix it."""

from __future__ import annotations

import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from mnist_ray import __version__
from mnist_ray.cluster import dashboard, ray_private
from mnist_ray.cluster.capacity import too_few
from mnist_ray.cluster.connect import connect, preflight, target_of
from mnist_ray.cluster.examination import PACKAGES, examiner, try_storage
from mnist_ray.cluster.findings import Finding, authentication, of_nodes, resources
from mnist_ray.cluster.machine import check_temporary_folder, num_cpus
from mnist_ray.cluster.nodes import ANSWER_SECONDS, alive, on_each
from mnist_ray.config import Cluster
from mnist_ray.errors import UserError, counted
from mnist_ray.shadows import shadow
from mnist_ray.storage.location import Location

NEEDED_BYTES = 2**30
"""Free space that a run needs on a local disk. Ray needs a quarter of it in /dev/shm."""


@dataclass(frozen=True)
class Setup:
    """Where jobs are to run and to write, and what they need there."""

    address: str | None = None
    """Of a head, or the URL of a dashboard. None: RAY_ADDRESS; where that is not set, only this machine."""
    storage: str = "./storage"
    num_workers: int = 2
    cpus_per_worker: float = 1.0
    working_dir: str | None = None


def examine(setup: Setup) -> Iterator[Finding]:
    """Yield one finding after the other."""
    address = setup.address or os.environ.get("RAY_ADDRESS")
    yield _python()
    yield _packages()
    if setup.working_dir:
        yield from _checked("upload", lambda: _upload(str(setup.working_dir)))
    if dashboard.is_url(address):  # this machine only sends the job
        yield from _checked("cluster", lambda: _by_a_job(setup, str(address)))
        return
    if not address:
        yield from _checked("machine", lambda: _machine(setup))
    with _folder_for(setup.storage) as marker:
        yield from _checked("storage", lambda: _storage(setup.storage))
        if address:
            yield from _checked("cluster", lambda: _cluster(setup, address, marker))


def _checked(what: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of a check; a UserError is a failed one."""
    try:
        yield from check()
    except UserError as error:
        yield Finding("FAIL", f"{what}: {error}")


def _python() -> Finding:
    fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    found = f"python {sys.version.split()[0]}"
    return Finding("ok", found) if fits else Finding("FAIL", f"{found}; TensorFlow needs 3.11 to 3.13")


def _installed() -> dict[str, str | None]:
    """The versions of this process, None where a package is missing."""
    found: dict[str, str | None] = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = __version__ if package == "mnist-ray" else None  # it was sent, not installed
    return found


def _packages() -> Finding:
    found = _installed()
    if missing := [package for package, number in found.items() if number is None]:
        return Finding(
            "FAIL", f"packages: {', '.join(missing)} not installed; `make setup` installs the locked versions"
        )
    if message := shadow():
        return Finding("FAIL", f"packages: {message}")
    return Finding("ok", "packages: " + ", ".join(f"{name} {found[name]}" for name in PACKAGES))


def _upload(working_dir: str) -> Iterator[Finding]:
    from mnist_ray.cluster.upload import Upload

    yield Finding("ok", f"upload: {Upload.of(working_dir)}")
    if message := shadow(working_dir):
        yield Finding("FAIL", f"upload: {message}")


def _machine(setup: Setup) -> Iterator[Finding]:
    check_temporary_folder()
    cpus, shm = num_cpus(), shutil.disk_usage("/dev/shm").free  # noqa: S108 - read, not used
    if shm < NEEDED_BYTES // 4:
        yield Finding(
            "FAIL", f"machine: /dev/shm has {shm >> 20} MiB free; Ray needs 256 MiB (docker run --shm-size 1g)"
        )
    elif setup.num_workers * setup.cpus_per_worker > cpus:
        yield Finding("FAIL", f"machine: {too_few(setup.num_workers, setup.cpus_per_worker, cpus, 'this machine has')}")
    else:
        yield Finding("ok", f"machine: {counted(cpus, 'CPU')}, /dev/shm {shm >> 20} MiB free")


@contextmanager
def _folder_for(uri: str) -> Iterator[str | None]:
    """Hold a file in the storage, by which others see that they share it. Yields its name; None where it fails.

    Folders that this makes are removed again.
    """
    try:
        location = made = Location.parse(uri)
        existed = location.exists()
        while not made.parent.exists() and made.parent.path != made.path:
            made = made.parent
        marker = location / f".probe-{uuid.uuid4().hex[:8]}"
        marker.write_bytes(b"mnist-ray")
    except UserError:
        yield None
        return
    try:
        yield marker.name
    finally:
        (marker if existed else made).delete()


def _storage(uri: str) -> Iterator[Finding]:
    location = Location.parse(uri)
    if problem := try_storage(uri):
        yield Finding("FAIL", f"storage: {problem}")
    elif location.is_local and (free := shutil.disk_usage(location.path).free) < NEEDED_BYTES:
        yield Finding("FAIL", f"storage: {location} has {free >> 20} MiB free; choose another --storage")
    else:
        yield Finding("ok", f"storage: {location} can be written, read and renamed in")


def _cluster(setup: Setup, address: str, marker: str | None) -> Iterator[Finding]:
    preflight(config := Cluster(address=address), workers=0)
    with connect(config, workers=0) as ray:
        yield Finding("ok", f"cluster: {ray.label}")
        if target := target_of(address):
            yield authentication(f"the head at {target}", ray_private.is_open(target, 3.0))
        nodes = alive()
        yield resources(setup.num_workers, setup.cpus_per_worker, nodes, ray_private.most_resources())
        storage = setup.storage if "://" in setup.storage else str(Location.parse(setup.storage))
        answers = on_each(nodes, examiner(), storage, marker, PACKAGES, seconds=ANSWER_SECONDS)
        yield from of_nodes(answers, _installed(), storage, ANSWER_SECONDS)


def _by_a_job(setup: Setup, url: str) -> Iterator[Finding]:
    """From a dashboard, the nodes are reached by a job alone: it examines them from the head."""
    import ray

    from mnist_ray.cluster import jobs

    found = dashboard.reach(url)
    same = found.ray_version == ray.__version__
    warning = "" if same else f"; here is Ray {ray.__version__}: `submit` works, `run --address` would not"
    yield Finding("ok" if same else "warn", f"cluster: {found.url}, Ray {found.ray_version}{warning}")
    yield authentication(found.url, not found.requires_token)
    jobs.require_absolute("--storage", setup.storage)
    command = ("doctor", "--address", "auto", "--storage", setup.storage, "--num-workers", str(setup.num_workers),
               "--cpus-per-worker", str(setup.cpus_per_worker))  # fmt: skip
    metadata = jobs.metadata_of("doctor", __version__, None, None)
    job = jobs.submit(found, command, working_dir=setup.working_dir, metadata=metadata)
    lines: list[str] = []
    code = jobs.Follower(found, job, lines.append).follow()
    relayed = re.findall(r"^(ok|warn|FAIL) +(.*)$", "\n".join(lines), re.MULTILINE)
    yield from (Finding(level, f"in a job: {line}") for level, line in relayed)
    if not relayed:
        yield Finding("FAIL", f"job: {job} ended with exit code {code} and reported nothing; see mnist-ray logs {job}"
                      f" --address {found.url}")  # fmt: skip
