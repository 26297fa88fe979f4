"""Processes that drills start, watch, strike and remove; and Ray clusters of several nodes."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import BIN, ROOT, environment, free_port


def session_of(pid: int) -> int | None:
    """The session that a process belongs to; None where it is gone or a zombie."""
    with suppress(OSError, IndexError):
        state, _, _, session = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
        return int(session) if state != "Z" else None
    return None


class Process:
    """A command in a session of its own, with all that it starts."""

    def __init__(self, *command: str, env: dict[str, str], log: Path) -> None:
        self.out, self.err = log.with_suffix(".out"), log.with_suffix(".err")
        self.began = time.monotonic()
        with self.out.open("w") as out, self.err.open("w") as err:
            self._popen = subprocess.Popen(
                [str(BIN / command[0]), *command[1:]], env=env, cwd=ROOT, stdout=out, stderr=err, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def processes(self, name: str = "") -> list[int]:
        """Those of its session whose title begins with `name`."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and session_of(int(entry.name)) == self.pid:
                with suppress(OSError):
                    if (entry / "cmdline").read_bytes().startswith(name.encode()):
                        found.append(int(entry.name))
        return sorted(found)

    def strike(self, kind: signal.Signals, *pids: int) -> float:
        """Send a signal; when."""
        for pid in pids:
            os.kill(pid, kind)
        return time.monotonic()

    def said(self) -> str:
        return f"{self.out.read_text()}\n{self.err.read_text()}"

    def ended(self) -> int | None:
        return self._popen.poll()

    def end(self, seconds: float = 150) -> int:
        """Its exit code, and what it said on stderr."""
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still runs after {seconds} s: {self.said()}")

    def remove(self) -> None:
        """Whatever is left of it."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._popen.wait()


class Drill:
    """A user of its own, and the processes that were started for it."""

    def __init__(self, folder: Path) -> None:
        self._home = folder
        self._processes: list[Process] = []

    def start(self, *command: str, **env: str) -> Process:
        log = self._home / f"{len(self._processes)}-{command[0]}"
        self._processes.append(Process(*command, env=environment(self._home, **env), log=log))
        return self._processes[-1]

    def progress(self) -> dict[str, Any]:
        """For the message when something does not come."""
        return {}

    def until(self, driver: Process, what: str, holds: Callable[[], Any], seconds: float = 180) -> float:
        """When something holds; the driver must live until then."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert driver.ended() is None, f"ended with {driver.ended()} before {what}: {driver.said()}"
            assert time.monotonic() < deadline, f"{what}: not in {seconds} s; {self.progress()} {driver.said()}"
            time.sleep(0.02)
        return time.monotonic()

    def remove(self) -> None:
        for process in reversed(self._processes):
            process.remove()


class Nodes:
    """A Ray cluster of hosts: each a `ray start` in a session of its own, with its own CPUs."""

    def __init__(self, drill: Drill) -> None:
        self._drill = drill
        self._env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self._address = f"127.0.0.1:{free_port()}"
        self.env = {**self._env, "RAY_ADDRESS": self._address}
        port = self._address.partition(":")[2]
        self.head = self._start("--head", f"--port={port}", "--include-dashboard=false")

    def add(self, num_cpus: int = 1, **env: str) -> Process:
        return self._start("--address", self._address, num_cpus=num_cpus, **env)

    def _start(self, *args: str, num_cpus: int = 1, **env: str) -> Process:
        """Until it is up: on one machine, hosts that start at once take each other's files."""
        common = ("--block", "--node-ip-address=127.0.0.1", "--object-store-memory=100000000", f"--num-cpus={num_cpus}")
        node = self._drill.start("ray", "start", *args, *common, **self._env, **env)
        deadline = time.monotonic() + 90
        while "will now block" not in node.said():
            assert node.ended() is None, node.said()
            assert time.monotonic() < deadline, node.said()
            time.sleep(0.2)
        return node
