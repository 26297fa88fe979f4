"""What a command says on stderr: warnings and errors, as text or, with `--log-format json`, as objects."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import click

from mnist_ray.errors import printable


def json_line(level: str, message: str, run: str | None = None, phase: str | None = None, **fields: Any) -> str:
    """A line of `--log-format json`. level: info, result, warning or error."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"time": now, "level": level, "run": run, "phase": phase, "message": message, **fields})


class Messages:
    """Of one command: the object of click's context."""

    as_json = False

    def __init__(self) -> None:
        self.place: Callable[[], tuple[str | None, str | None]] = lambda: (None, None)
        """The run and its phase, once they are known."""

    def warn(self, text: str) -> None:
        self._write("warning", f"warning: {text}", text)

    def error(self, text: str, exit_code: int) -> int:
        """Say why a command ends. Returns the exit code, which says it as well where nobody can be told."""
        with suppress(OSError):
            self._write("error", text, text, exit_code=exit_code)
        return exit_code

    def _write(self, level: str, shown: str, message: str, **fields: Any) -> None:
        line = f"mnist-ray: {printable(' '.join(shown.split()))}"
        if self.as_json:
            line = json_line(level, " ".join(message.split()), *self.place(), **fields)
        click.echo(line, err=True)


def messages() -> Messages:
    """Those of the command that runs."""
    return click.get_current_context().ensure_object(Messages)
