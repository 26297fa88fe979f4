"""A command on a terminal of its own, as a person has it: what is typed, Ctrl-C with it, goes through the terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import subprocess
import termios
import threading
import time
from pathlib import Path

import pytest

from tests.support.command import BIN, ROOT

CTRL_C = "\x03"


class Terminal:
    """`mnist-ray` in a session whose controlling terminal is ours. `with` ends it."""

    def __init__(self, *args: str | Path, env: dict[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        self._shown: list[bytes] = []
        self._popen = subprocess.Popen(
            [str(BIN / "mnist-ray"), *map(str, args)], env={**env, "TERM": "xterm"}, cwd=ROOT, stdin=theirs,
            stdout=theirs, stderr=theirs, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while data := os.read(self._ours, 65536):
                self._shown.append(data)

    @property
    def shown(self) -> str:
        return b"".join(self._shown).decode(errors="replace").replace("\r\n", "\n")

    def type(self, text: str) -> int:
        """Returns the length of what was shown before: what comes after it is the answer."""
        before = len(self.shown)
        os.write(self._ours, text.encode())
        return before

    def until(self, text: str, after: int = 0, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.shown[after:]:
            if self._popen.poll() is not None or time.monotonic() > deadline:
                self._reader.join(1)
                if text in self.shown[after:]:
                    return
                pytest.fail(f"not shown: {text!r}; exit code {self._popen.poll()}; {self.shown}")
            time.sleep(0.05)

    def end(self, seconds: float = 60) -> int:
        """Its exit code."""
        code = self._popen.wait(seconds)
        self._reader.join(5)
        return code

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._popen.poll() is None:
            os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()
        self._reader.join(5)
        os.close(self._ours)
