"""A run that is interrupted in every phase ends as one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command import (
    BIN,
    ROOT,
    environment,
    left_running,
    metrics_of,
    mnist_ray,
    one_line,
)
from tests.support.data_makers import write_mnist


def command(folder: Path, name: str) -> list[str]:
    return ["run", "--data", str(folder / "small.npz"), "--storage", str(folder), "--name", name, "--epochs", "2"]


@pytest.mark.ray
@pytest.mark.drill
@pytest.mark.timeout(600)
def test_a_run_interrupted_in_every_phase_ends_as_one_that_was_not(tmp_path: Path) -> None:
    folder, run = tmp_path, tmp_path / "interrupted"
    write_mnist(folder / "small.npz", 2000, 500)
    calm = mnist_ray(*command(folder, "undisturbed"), env=environment(folder))
    assert (calm.returncode, calm.stderr) == (0, "")
    phases: list[tuple[signal.Signals, Callable[[], bool]]] = [
        (signal.SIGTERM, lambda: (run / "progress.json").exists()),
        (signal.SIGINT, lambda: any(run.glob("shards/train/*.parquet"))),
        (signal.SIGTERM, lambda: (run / "shards" / "dataset.json").exists()),
        (signal.SIGINT, lambda: any(run.glob("checkpoints/*.npz"))),
        (signal.SIGTERM, lambda: (run / "model" / "model.json").exists()),
    ]
    for kind, reached in phases:
        env = environment(folder)
        driver = subprocess.Popen(
            [str(BIN / "mnist-ray"), *command(folder, run.name)], env=env, cwd=ROOT, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while not reached():
            assert driver.poll() is None, driver.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        began = time.monotonic()
        # A terminal sends Ctrl-C to all that run in it, a scheduler its SIGTERM to one process.
        os.killpg(driver.pid, kind) if kind is signal.SIGINT else driver.send_signal(kind)
        out, err = driver.communicate(timeout=60)
        assert time.monotonic() - began < 20
        assert driver.returncode == 130, (out, err)
        assert one_line(err) == "mnist-ray: interrupted; the same command continues from what is committed"
        assert "\x1b" not in out
        assert "\r" not in out
        deadline = time.monotonic() + 10
        while left := left_running(env):  # orphans that are on their way out
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
        assert not (run / "metrics.json").exists()
        assert not (run / "failure.json").exists()
        assert "its driver has ended; run it again to continue" in mnist_ray("status", run, env=env).stdout
    done = mnist_ray(*command(folder, run.name), env=environment(folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert metrics_of(run)["after"] == metrics_of(folder / "undisturbed")["after"]
    assert not list(run.rglob("*.tmp"))
