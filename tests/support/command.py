"""`mnist-ray` as a stranger starts it: an empty HOME, none of our variables, a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
MARK = "MNIST_RAY_TEST_MARK"


def environment(home: Path, **more: str) -> dict[str, str]:
    """Every process started with it carries a mark of its own, however far from its parent it has gone."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MNIST_RAY_"))}
    return {**clean, "HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}", MARK: uuid.uuid4().hex, **more}


def mnist_ray(
    *args: str | Path, env: dict[str, str], cwd: Path = ROOT, timeout: float = 200
) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "mnist-ray"), *map(str, args)]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False)


def left_running(env: dict[str, str]) -> list[str]:
    """The command lines of the processes that carry the mark."""
    mark, found = env[MARK].encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it has ended
    return found


def stop(head: subprocess.Popen[str]) -> None:
    """End a `ray start --block` of a session of its own: it, and by force what it leaves. Never `ray stop`, which would
    take other Rays of this machine along."""
    head.terminate()
    try:
        head.wait(30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)


def metrics_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return content


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
