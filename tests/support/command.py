"""`mnist-ray` as a stranger starts it: an empty HOME, none of our variables, a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from mnist_ray import cli
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


def one_after_the_other(
    *commands: tuple[str | Path, ...], env: dict[str, str], timeout: float = 200
) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each, in one process, which imports what they need once."""
    lines = [[str(word) for word in command] for command in commands]
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_THE_OTHER, json.dumps(lines)], env=env, cwd=ROOT, capture_output=True,
        text=True, timeout=timeout, check=True,
    )  # fmt: skip
    return [(code, out, err) for code, out, err in json.loads(done.stdout)]


ONE_AFTER_THE_OTHER = """
import contextlib, io, json, sys
from mnist_ray import cli
told = []
for line in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(line)
        except SystemExit as end:
            told.append((end.code or 0, out.getvalue(), err.getvalue()))
print(json.dumps(told))
"""


def on_a_terminal(*args: str | Path, env: dict[str, str]) -> tuple[int, str, str]:
    """Exit code, what the terminal showed, and stderr."""
    ours, theirs = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):
            while data := os.read(ours, 65536):
                shown.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    done = subprocess.run(
        [str(BIN / "mnist-ray"), *map(str, args)], env={**env, "TERM": "xterm"}, cwd=ROOT, stdout=theirs,
        stderr=subprocess.PIPE, text=True, timeout=200, check=False,
    )  # fmt: skip
    os.close(theirs)
    reader.join()
    os.close(ours)
    return done.returncode, b"".join(shown).decode(), done.stderr


def called(capture: pytest.CaptureFixture[str], *args: str | Path) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command in this process, which may start no Ray."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(arg) for arg in args])
    out, err = capture.readouterr()
    return int(ended.value.code or 0), out, err


def one_line(err: str) -> str:
    assert err.startswith("mnist-ray: "), err
    assert err.count("\n") == 1, err
    assert err.endswith("\n"), err
    return err.strip()


def left_running(env: dict[str, str]) -> list[str]:
    """The command lines of the processes that have this environment's mark."""
    return [*session.running(env[session.MARK]).values()]


def metrics_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return content


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
