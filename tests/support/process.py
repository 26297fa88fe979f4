"""A command in a session of its own, watched from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import BIN, ROOT


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

    def until(self, what: str, holds: Callable[[], Any], seconds: float = 90) -> None:
        """Wait until something holds; the process must live until then."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert self.ended() is None, f"ended with {self.ended()} before {what}: {self.said()}"
            assert time.monotonic() < deadline, f"not in {seconds} s: {what}; {self.said()}"
            time.sleep(0.1)

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
