"""Hostile and damaged `.keras` files, each loaded in a process as an actor does it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import ROOT, environment

pytestmark = pytest.mark.tensorflow

SECONDS = 60.0


# All of it, as an actor loads it.


@pytest.mark.drill
@pytest.mark.timeout(1500)
def test_hostile_and_damaged_models(tmp_path: Path) -> None:
    for name in ("models", "scratch", "working", "modules"):
        (tmp_path / name).mkdir()
    planted = tmp_path / "models" / "planted"
    (tmp_path / "modules" / "planted_module.py").write_text(f"open({str(planted)!r}, 'w')\n")
    env = environment(tmp_path, TMPDIR=str(tmp_path / "scratch"), PYTHONPATH=f"{ROOT}:{tmp_path / 'modules'}")
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.models", str(tmp_path / "models")], cwd=tmp_path / "working", env=env,
        capture_output=True, text=True, timeout=1400, check=False,
    )  # fmt: skip
    told: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, (told[-1:], done.stderr[-2000:])
    cases = [each for each in told if "kind" in each]
    wrong = [
        each for each in cases
        if each["kind"] == "ERROR" or each["left"] or each["seconds"] > SECONDS or each["grown"] > 100 << 20
        or (each["kind"] == "refused" and ("\n" in each["said"] or not each["names_it"]))
    ]  # fmt: skip
    assert not wrong, "\n".join(map(str, wrong[:20]))
    assert not planted.exists()
    assert not list((tmp_path / "scratch").iterdir())
    assert told[-1]["child"] < 3 << 30
    kinds = Counter(each["kind"] for each in cases)
    slowest = max(cases, key=lambda each: each["seconds"])
    print(f"\n  {dict(kinds)}; slowest {slowest['seconds']} s ({slowest['name']}); the largest child"
          f" {told[-1]['child'] >> 20} MB; all grew by {sum(each['grown'] for each in cases) >> 20} MB")  # fmt: skip
    assert len(cases) >= 150
    assert cases[0] == cases[0] | {"name": "undamaged", "kind": "works"}
    assert kinds["refused"] > 100
