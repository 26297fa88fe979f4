"""Commands that must fail, in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command import (
    called,
    one_line,
)


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """A command that must fail: (exit code, its one line on stderr)."""
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)

    def run(*args: str | Path) -> tuple[int, str]:
        code, out, err = called(capfd, *args)
        assert out == ""
        return code, one_line(err)

    return run
