"""Damaged inputs of all formats: each is read, or refused in one line, soon, in little memory, and writes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.command import ROOT, environment
from tests.fuzz_cases import FORMATS

CASES = 700
SECONDS = 5.0


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.drill)])
def test_damaged_inputs_are_read_or_refused(step: int, tmp_path: Path) -> None:
    """step: some of every format, or all. In one process, which may not grow by more than a gigabyte."""
    command = [sys.executable, "-m", "tests.fuzz_cases", str(tmp_path), "0", str(step), str(CASES)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=230, check=False
    )
    told: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, (told[-1:], done.stderr[-2000:])
    cases = [each for each in told if "kind" in each]
    wrong = [
        each for each in cases
        if each["kind"] == "ERROR" or each["wrote"] or each["seconds"] > SECONDS or "\n" in each["said"].strip()
    ]  # fmt: skip
    assert not wrong, "\n".join(map(str, wrong[:20]))
    assert len(cases) == -(-CASES // step)
    assert {each["format"] for each in cases} == {each.__name__ for each in FORMATS}
    kinds = Counter(each["kind"] for each in cases)
    print(
        f"\n  {dict(kinds)}, slowest {max(each['seconds'] for each in cases):.2f} s, peak {told[-1]['peak'] >> 20} MB"
    )
    assert kinds["refused"] > len(cases) / 4  # the damage is some
    assert kinds["read"] > len(cases) / 20  # and not every one is fatal
