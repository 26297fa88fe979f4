"""A child process in which a file from anywhere is tried: no network, no files of others, limited memory and time.

It is for damaged HDF5, which can crash it, and for a hostile model, which can fill its memory or run for ever. How much
it is closed off depends on the system: Linux alone has what `confine` uses.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_ray.errors import InputError, RetryableError, SetupError, one_line

if TYPE_CHECKING:
    from mnist_ray.storage.location import Location

SECONDS = 180
_BYTES = 2 << 30  # beyond what TensorFlow takes, and four times the archive
_REFUSED = "refused: "
_KEPT = ("PATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LD_PRELOAD", "LANG", "LC_ALL")  # of the environment: no secrets


def in_child(archive: Location, code: str, *paths: Path) -> None:
    """Run our own code, which is `refusing()`, in a confined process. Raises InputError where that fails.

    paths: what the code is given in sys.argv. The folder of the first is all that it may write to.
    """
    scratch = paths[0].parent
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ} | {
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    command = [sys.executable, "-c", f"from mnist_ray.models.child import confine; confine(); {code}"]
    try:
        done = subprocess.run(  # noqa: S603
            [*command, *map(str, paths)], cwd=scratch, env=environment, capture_output=True, text=True,
            errors="replace", timeout=SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{archive} could not be loaded within {SECONDS} s") from error
    except OSError as error:
        raise RetryableError(f"cannot start a process to try {archive} in ({one_line(error)})") from error
    if done.returncode:
        refusal = refusal_in(done.stdout) or f"loading it crashed: status {done.returncode}"
        raise InputError(f"{archive} cannot be loaded ({refusal})")


def refusal_in(output: str) -> InputError | SetupError | None:
    """What code that was `refusing()` has printed for its parent: one line, whatever else has printed there."""
    refusals = [line.removeprefix(_REFUSED) for line in output.splitlines() if line.startswith(_REFUSED)]
    try:
        is_of_setup, message, see = json.loads(refusals[-1])
    except (IndexError, TypeError, ValueError):
        return None
    return (SetupError if is_of_setup is True else InputError)(str(message).partition("\n")[0], see=see)


# In the child process.


@contextmanager
def refusing() -> Iterator[None]:
    """Tell the parent process of any error in one line."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        yield
    except Exception as error:
        refusal = error if isinstance(error, InputError | SetupError) else InputError(one_line(error))
        told = [isinstance(refusal, SetupError), refusal.message, refusal.see]
        print(f"{_REFUSED}{json.dumps(told)}", flush=True)  # noqa: T201 - what the parent reads
        raise SystemExit(1) from None


@contextmanager
def limited_memory(path: Path) -> Iterator[None]:
    """Limit the memory to what is in use already and what a model of the file's size may need."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if (in_use := Path("/proc/self/statm")).exists():
        limit = int(in_use.read_text().split()[0]) * resource.getpagesize() + 4 * path.stat().st_size + _BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def confine() -> set[str]:
    """Close this process off from the network and from files that it does not need. Returns what could be closed.

    Call it before anything starts a thread.
    """
    if not sys.platform.startswith("linux"):
        return set()
    libc = ctypes.CDLL(None, use_errno=True)
    closed = set()
    if _leave_network(libc):
        closed.add("network")
    if _leave_files(libc):
        closed.add("files")
    return closed


def _leave_network(libc: ctypes.CDLL) -> bool:
    """Enter a network namespace of its own: in a user namespace, which most systems allow, where we are not root."""
    new_user, new_ipc, new_net = 0x10000000, 0x08000000, 0x40000000  # linux/sched.h
    return any(libc.unshare(flags) == 0 for flags in (new_net | new_ipc, new_user | new_net | new_ipc))


# Landlock (linux/landlock.h): rights that a process gives up for good, without being root.

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # system calls, on all architectures
_PATH_BENEATH, _NO_NEW_PRIVILEGES = 1, 38
_READ = 0b1101  # execute, read a file, read a folder
_OF_FILES = 0xC007  # execute, write, read, truncate, ioctl: what a rule for a file may allow
_READABLE = (
    "/usr", "/lib", "/lib64", "/sys/devices/system", "/sys/fs/cgroup", "/proc/self", "/proc/cpuinfo", "/proc/meminfo",
    "/proc/stat", "/proc/sys", "/etc/ld.so.cache", "/etc/localtime", "/etc/mime.types", "/etc/alternatives",
    "/etc/ssl/openssl.cnf", "/etc/pki/tls/openssl.cnf", "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom",
)  # fmt: skip


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def _leave_files(libc: ctypes.CDLL) -> bool:
    """Keep reading what Python and TensorFlow are made of, and writing to HOME; give up all other files.

    Where the kernel knows how: also TCP, and signals to processes outside.
    """
    version = libc.syscall(_CREATE_RULESET, None, 0, 1)
    if version < 1:
        return False
    every = (1 << (13 + min(version - 1, 2) + (version >= 5))) - 1
    rules = _Ruleset(every, 0b11 if version >= 4 else 0, 0b11 if version >= 6 else 0)
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.byref(rules), 8 + 8 * (version >= 4) + 8 * (version >= 6), 0)
    if ruleset < 0:
        return False
    try:
        _allow(libc, ruleset, _READ, [*_READABLE, sys.prefix, sys.base_prefix, *sys.path])
        _allow(libc, ruleset, every, [os.environ["HOME"], "/dev/null"])
        libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        return bool(libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, rights: int, paths: Iterable[str]) -> None:
    """Those that exist. For a symbolic link, what it leads to."""
    for path in paths:
        if path and Path(path).exists():
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rule = _Beneath(rights if Path(path).is_dir() else rights & _OF_FILES, descriptor)
            libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
            os.close(descriptor)
