"""`mnist-ray` as a stranger starts it: an empty HOME, none of our variables, a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support import session

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def environment(home: Path, **more: str) -> dict[str, str]:
    """Of a user with an empty HOME and none of our variables. Rays that are started with it leave their files where the
    session's are; the mark is its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MNIST_RAY_"))}
    ours = {"HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}", session.MARK: session.mark()}
    return {**clean, **ours, "RAY_TMPDIR": os.environ["RAY_TMPDIR"], **more}


def mnist_ray(
    *args: str | Path, env: dict[str, str], cwd: Path = ROOT, timeout: float = 200
) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "mnist-ray"), *map(str, args)]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False)


def left_running(env: dict[str, str]) -> list[str]:
    """The command lines of the processes that have this environment's mark."""
    return [*session.running(env[session.MARK]).values()]


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
