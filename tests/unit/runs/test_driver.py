"""One driver: a second one is refused while the first lives."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.errors import RetryableError
from mnist_ray.runs import driver
from mnist_ray.runs.folder import RunFolder
from mnist_ray.runs.progress import owner
from tests.support.run_folders import HERE, PRINT, beat, non_local


def test_a_second_driver_is_refused_while_the_first_lives(folder: RunFolder) -> None:
    code = (
        "import sys; from mnist_ray.runs.folder import RunFolder\n"
        "with RunFolder.at(sys.argv[1], 'mnist').lock():\n"
        "  print('locked', flush=True); input()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(folder.root.parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "locked\n"
    with pytest.raises(RetryableError, match=f"another mnist-ray is working on {folder.root}; wait"), folder.lock():
        pass
    first.kill()
    first.communicate()
    with folder.lock():
        pass


def test_two_runs_of_one_storage_do_not_meet(tmp_path: Path) -> None:
    first, second = RunFolder.at(str(tmp_path), "a"), RunFolder.at(f"file://{tmp_path}", "b")
    again = RunFolder.at(f"file://{tmp_path}", "a")
    with first.lock(), second.lock(), pytest.raises(RetryableError), again.lock():
        pass


@pytest.mark.parametrize(
    ("age", "phase", "of"),
    [
        (60, "train", {"host": "elsewhere", "pid": 1}),  # not heard of for long
        (0, "done", {"host": "elsewhere", "pid": 1}),
        (0, "train", {"host": HERE, "pid": 2**22 + 1}),  # dead, as this host knows
        (0, "train", owner()),  # an attempt of this very process
    ],
)
def test_a_dead_driver_is_taken_over_at_once(
    tmp_path: Path, age: float, phase: str, of: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = non_local(tmp_path)
    folder.config.write_json({"fingerprint": PRINT, "versions": {"ray": "2.60.0"}})
    beat(folder, age, phase, **of)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waited"))
    with folder.lock():
        pass


@pytest.mark.parametrize("of", [{"host": "elsewhere", "pid": 7}, {"host": HERE, "pid": os.getppid()}])
def test_a_living_driver_is_waited_for_then_refused(
    tmp_path: Path, of: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = non_local(tmp_path)
    folder.config.write_json({"fingerprint": PRINT, "versions": {"ray": "2.60.0"}})
    monkeypatch.setattr(driver, "FOREIGN_DRIVER_SECONDS", 0.3)
    monkeypatch.setattr(driver, "HEARTBEAT_SECONDS", 0.05)
    beat(folder, **of)
    with (
        pytest.raises(RetryableError, match=f"process {of['pid']} on {of['host']}. is working on s3://"),
        folder.lock(),
    ):
        pass


def test_a_driver_that_ends_meanwhile_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = non_local(tmp_path)
    folder.config.write_json({"fingerprint": PRINT, "versions": {"ray": "2.60.0"}})
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        beat(folder, phase="done", host="elsewhere", pid=7)

    beat(folder, host="elsewhere", pid=7)
    monkeypatch.setattr(time, "sleep", sleep)
    with folder.lock():
        pass
    assert len(waits) == 1
