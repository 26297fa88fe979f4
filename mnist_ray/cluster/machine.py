"""What this machine gives a local Ray: CPUs, and a folder for its files and sockets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mnist_ray.errors import SetupError

_SOCKET_PATH_BYTES = 107  # what Linux allows
_UNLIMITED = 1 << 62  # what version 1 of cgroups has for no limit is above
_LONGEST_SOCKET = "session_2000-01-01_00-00-00_000000_0000000/sockets/plasma_store"  # in Ray's temporary folder


def num_cpus(root: Path = Path("/")) -> int:
    """CPUs that this process may use: those of its affinity, or fewer where a container's quota says so.

    A quota of 2.5 CPUs counts as 2, one of 0.5 as 1. root: where /proc and /sys are.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([float(affinity), *_quotas(root)])))


def _quotas(root: Path) -> list[float]:
    """The CPU quotas of this process's cgroups."""
    return [quota for cgroup in _cgroups(root, "cpu") for quota in _quota(cgroup)]


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes of memory that the cgroups of this process allow; None where they set no limit."""
    files = (cgroup / name for cgroup in _cgroups(root, "memory") for name in ("memory.max", "memory.limit_in_bytes"))
    limits = [int(text) for file in files if (text := _read(file)).isdecimal()]
    return min((limit for limit in limits if limit < _UNLIMITED), default=None)


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's cgroups and of those above them, of version 1 and 2."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        controllers, path = line.split(":", 2)[1:]
        if controllers and controller not in controllers.split(","):
            continue
        # Within a container, `path` may be the host's, which is not there. The container's own is the mount itself.
        for mount in {
            root / "sys/fs/cgroup",
            root / "sys/fs/cgroup" / controllers,
            root / "sys/fs/cgroup" / controller,
        }:
            within = mount / path.strip("/")
            for folder in (within, *within.parents):
                if folder.is_relative_to(mount):
                    yield folder


def _quota(cgroup: Path) -> Iterator[float]:
    """The quota of one cgroup in CPUs, if it has one."""
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join(_read(cgroup / file) for file in files).split()
            if quota not in ("max", "-1"):
                yield int(quota) / int(period)
        except (ValueError, ZeroDivisionError):
            continue


def _read(file: Path) -> str:
    """The text of a file; nothing where it cannot be read."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def temporary_folder() -> tuple[Path, str | None]:
    """Where a local Ray puts its files and sockets, and the variable that says so."""
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    return Path(os.environ[variable] if variable else "/tmp", "ray").absolute(), variable  # noqa: S108 - Ray's default


def check_temporary_folder() -> None:
    """Raise SetupError if a local Ray could not put its files and sockets into its temporary folder."""
    folder, variable = temporary_folder()
    named = f"Ray's temporary folder {folder}" + (f" (from {variable})" if variable else "")
    longest = _SOCKET_PATH_BYTES - len(f"/{_LONGEST_SOCKET}")
    if (length := len(os.fsencode(folder))) > longest:
        raise SetupError(
            f"{named} has a path of {length} bytes, and more than {longest} are too long for a socket; export"
            " RAY_TMPDIR=/tmp or another short path",
            see="clusters.md#temporary-files",
        )
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = f"{existing} belongs to {_owner(existing)}" if existing.is_dir() else f"{existing} is not a folder"
        raise SetupError(
            f"{named} cannot be written: {reason}; export RAY_TMPDIR to a short path of your own",
            see="clusters.md#temporary-files",
        )


def _owner(path: Path) -> str:
    try:
        return f"the user {path.owner()}"
    except KeyError:  # no passwd entry
        return f"the user {path.stat().st_uid}"
