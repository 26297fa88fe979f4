"""What one node of a cluster tells of itself: versions, limits, Ray's folder, the storage, the clock.

`tell` runs on the node. It is sent with its code, so that a node without this package can say so.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mnist_ray.cluster import ray_private
from mnist_ray.cluster.machine import memory_limit, num_cpus
from mnist_ray.errors import UserError
from mnist_ray.storage.location import Location

PACKAGES = ("mnist-ray", "ray", "tensorflow", "keras", "numpy", "pyarrow")
"""Those whose versions must be equal on all nodes."""


def examiner() -> Callable[[str, str | None, tuple[str, ...]], dict[str, Any]]:
    """The function to run on a node. It is nested, so that Ray sends its code instead of its name."""

    def examine(storage: str, marker: str | None, packages: tuple[str, ...]) -> dict[str, Any]:
        import importlib.metadata
        import platform
        import time

        versions: dict[str, str | None] = {"python": platform.python_version()}
        for package in packages:
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                versions[package] = None
        found: dict[str, Any] = {"versions": versions, "missing": None}
        try:
            from mnist_ray.cluster.examination import look
        except ImportError as error:
            found["missing"] = str(error)
        else:
            found |= look(storage, marker)
        return found | {"time": time.time()}

    return examine


def look(storage: str, marker: str | None) -> dict[str, Any]:
    """What needs this package: the node's limits, Ray's folder there, and the storage.

    marker: the name of a file that the driver has written to the storage; None where it could not.
    """
    folder = ray_private.session_folder()
    disk = shutil.disk_usage(folder)
    is_shared = marker is None or _sees(storage, marker)
    return {
        "cpus": num_cpus(),
        "memory": memory_limit(),
        "ray_folder": folder,
        "ray_disk_used": 1 - disk.free / disk.total,
        "storage": try_storage(storage) if is_shared else None,  # else a folder would be left on the node's disk
        "sees_marker": is_shared,
    }


def try_storage(uri: str) -> str | None:
    """Write, read, rename and remove a small file. Returns what went wrong."""
    content = uuid.uuid4().hex.encode()
    try:
        location = Location.parse(uri)
        probe = location / f".probe-{uuid.uuid4().hex[:8]}"
        probe.write_bytes(b"mnist-ray")
        probe.write_bytes(content)  # in place of another one; on a disk, that is a rename
        read = probe.read_bytes()
        probe.delete()
    except FileNotFoundError:
        return f"what was written to {uri} is not there a moment later"
    except UserError as error:
        return str(error) + (rights(location) if "Permission denied" in str(error) else "")
    if read != content:
        return f"{location} gives something else than what was written a moment ago"
    return None


def rights(location: Location) -> str:
    """Whose the folder on a disk is, and who we are: what a person needs to mend it."""
    folder = Path(location.path)
    with suppress(OSError):
        found = next(each for each in (folder, *folder.parents) if each.exists()).stat()
        return (
            f" (this process is user {os.geteuid()}, the folder belongs to user {found.st_uid}, mode"
            f" {found.st_mode & 0o7777:o}; on the storage's server: chown {os.geteuid()}. Kubernetes' fsGroup does not"
            " do that on NFS)"
        )
    return ""


def _sees(storage: str, marker: str) -> bool:
    with suppress(FileNotFoundError, UserError):
        (Location.parse(storage) / marker).read_bytes()
        return True
    return False
