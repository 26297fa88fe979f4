"""A session of tests has a room of its own under /tmp: its HOME, its temporary files, and its Rays'. Whoever reads it
at the end sees what was left, however busy the machine is with other things."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
MARK = "MNIST_RAY_TEST_MARK"
"""In the environment of every process that a session starts, however far from it that has gone: the session's own id,
and, of a command with an environment of its own, another one after a dot."""

EXPECTED = (".keras", "pytest-of-", "__autograph_generated_file", "__pycache__", "pymp-")
"""In HOME and among the temporary files: what Keras writes when it is imported, pytest's folders, and what TensorFlow
(with its bytecode) and multiprocessing remove when a process ends, but not when it is ended by force."""

ENDING_SECONDS = 15.0
"""Ray's agents notice within this time that their head is gone."""


def enter() -> Path:
    """Make the room, and make this process live in it. Rooms that earlier sessions of this checkout have left go.

    Its path is short: Ray puts sockets below it, and a socket's path has 107 bytes at the most.
    """
    for old in Path("/tmp").glob("mr????????"):
        with suppress(OSError, ValueError):
            pid, checkout = (old / "session").read_text().split(" ", 1)
            if checkout == str(ROOT) and not Path("/proc", pid).exists():  # what failed there has been looked at
                shutil.rmtree(old, ignore_errors=True)
    room = Path(tempfile.mkdtemp(prefix="mr", dir="/tmp"))
    (room / "session").write_text(f"{os.getpid()} {ROOT}")
    for name in ("home", "t", "r"):
        (room / name).mkdir()
    git = Path.home() / ".gitconfig"
    if git.exists():  # it may say that this checkout is safe
        os.environ.setdefault("GIT_CONFIG_GLOBAL", str(git))
    os.environ |= {"HOME": str(room / "home"), "TMPDIR": str(room / "t"), "RAY_TMPDIR": str(room / "r")}
    os.environ[MARK] = uuid.uuid4().hex
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else Ray makes one and keeps it in HOME
    tempfile.tempdir = None  # it is looked up again
    return room


def mark() -> str:
    """A mark for an environment of its own."""
    return f"{os.environ[MARK].partition('.')[0]}.{uuid.uuid4().hex}"


def running(mark: str) -> dict[int, str]:
    """The command lines, by process id, of the processes whose mark begins so."""
    searched, found = f"{MARK}={mark}".encode(), {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if searched in (process / "environ").read_bytes():
                found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return found


def left(room: Path) -> list[str]:
    """What the session has left: processes (which are ended then) and files. Nothing, if all is well."""
    deadline = time.monotonic() + ENDING_SECONDS
    while (processes := running(os.environ[MARK])) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    files = [file for name in ("home", "t") for file in (room / name).iterdir() if not file.name.startswith(EXPECTED)]
    return [f"process {pid}: {line[:200]}" for pid, line in processes.items()] + [str(file) for file in sorted(files)]


def leave(room: Path, *, keep: bool) -> None:
    """Remove the room. keep: what failed tests have in their folders stays, to be looked at."""
    for name in ("home", "r") if keep else (".",):
        shutil.rmtree(room / name, ignore_errors=True)
