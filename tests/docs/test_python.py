"""The examples of docs/python.md, one after the other in one process, and what they print."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Page
from tests.docs.shown import assert_shown
from tests.support.command import environment, left_running

PAGE = Page(ROOT / "docs" / "python.md")

BEFORE = """
import os, signal, time
BEGAN, SIGINT = time.time(), signal.getsignal(signal.SIGINT)
"""

AFTERWARDS = """
assert ray.is_initialized(), "the calls have ended a Ray that is not theirs"
assert "RAY_AUTH_TOKEN" not in os.environ
assert signal.getsignal(signal.SIGINT) is SIGINT  # where `make` runs in the background, it is ignored
assert again.metrics == result.metrics
assert again.seconds < time.time() - BEGAN, "counted from the start of the process"
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_examples_run_one_after_the_other_and_print_what_is_shown(tmp_path: Path) -> None:
    (photos,) = [block for block in Page(ROOT / "docs" / "data.md").blocks if block.is_python]
    examples = [block for block in PAGE.blocks if block.is_python]
    assert len(examples) == 6
    marked = [f"{block.text}\nprint('end of example {number}')" for number, block in enumerate(examples)]
    script = "\n".join([BEFORE, photos.text, *marked, AFTERWARDS])
    (tmp_path / "script.py").write_text(script)
    (tmp_path / "home").mkdir()
    env = environment(tmp_path / "home")
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ends = time.monotonic() + 20  # helpers of Ray's dashboard are on their way out
    while left := left_running(env):
        assert time.monotonic() < ends, left
        time.sleep(0.1)
    rest = done.stdout
    for number, shown in enumerate(block.text for block in PAGE.blocks if block.info == "console"):
        printed, rest = rest.split(f"end of example {number}\n")
        assert_shown(shown, printed)
        if "ray.remote" in examples[number].text:
            assert "Ray at" not in printed  # a task is quiet
