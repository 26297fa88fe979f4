"""Checks of the machine, the packages, the storage and the cluster: what would fail, and how to fix it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mnist_ray.cluster.machine import check_temporary_folder, num_cpus
from mnist_ray.errors import UserError
from mnist_ray.runs.folder import PACKAGES
from mnist_ray.shadows import shadow
from mnist_ray.storage.location import Location

NEEDED_BYTES = 2**30
"""Free space that a run needs on a local disk. Ray needs a quarter of it in /dev/shm."""


def examine(address: str | None, storage: str) -> Iterator[tuple[bool, str]]:
    """Yield (passed, what was found and what to do) for one check after the other."""
    yield _python()
    yield _packages()
    yield _checked("machine", _machine)
    yield _checked("storage", lambda: _storage(storage))
    if address or os.environ.get("RAY_ADDRESS"):
        yield _checked("cluster", lambda: _cluster(address))


def _checked(what: str, check: Callable[[], tuple[bool, str]]) -> tuple[bool, str]:
    """The result of a check; a UserError is a failed one."""
    try:
        return check()
    except UserError as error:
        return False, f"{what}: {error}"


def _python() -> tuple[bool, str]:
    fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return fits, f"python {sys.version.split()[0]}" + ("" if fits else "; TensorFlow needs 3.11 to 3.13")


def _packages() -> tuple[bool, str]:
    found, missing = [], []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        return False, f"packages: {', '.join(missing)} not installed; `make setup` installs the locked versions"
    if message := shadow():
        return False, f"packages: {message}"
    return True, f"packages: {', '.join(found)}"


def _machine() -> tuple[bool, str]:
    check_temporary_folder()
    cpus, shm = num_cpus(), shutil.disk_usage("/dev/shm").free  # noqa: S108 - read, not used
    if shm < NEEDED_BYTES // 4:
        return False, f"machine: /dev/shm has {shm >> 20} MiB free; Ray needs 256 MiB (docker run --shm-size 1g)"
    enough = cpus >= 2
    return enough, f"machine: {cpus} CPU{'s' if cpus > 1 else ''}, /dev/shm {shm >> 20} MiB free" + (
        "" if enough else "; the default of 2 workers needs 2 CPUs; give --cpus-per-worker 0.5"
    )


def _storage(uri: str) -> tuple[bool, str]:
    location = made = Location.parse(uri)
    existed = location.exists()
    while not made.parent.exists() and made.parent.path != made.path:
        made = made.parent
    location.check_writable()
    if not existed:
        made.delete()  # with the parent folders that the check made
    if location.is_local:
        free = shutil.disk_usage(Path(location.path if existed else made.parent.path)).free
        if free < NEEDED_BYTES:
            return False, f"storage: {location} has {free >> 20} MiB free; choose another --storage"
    return True, f"storage: {location} is writable"


def _cluster(address: str | None) -> tuple[bool, str]:
    from mnist_ray.cluster.connect import connect
    from mnist_ray.config import Cluster

    with connect(Cluster(address=address)) as ray:
        return True, f"cluster: {ray.label}"
