"""Two drivers of one run in storage without locks: one works at a time, whatever becomes of the other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import environment, mnist_ray, one_line
from tests.support.data_makers import write_mnist
from tests.support.process import Process
from tests.support.s3_server import BUCKET, settings

pytestmark = [pytest.mark.drill, pytest.mark.ray, pytest.mark.timeout(600)]

AHEAD = "import time as _time\n_now = _time.time\n_time.time = lambda: _now() + 60\n"


class Drivers:
    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port, self.started = folder, port, list[Process]()
        write_mnist(folder / "small.npz", 2000, 500)
        (folder / "ahead").mkdir()
        (folder / "ahead" / "sitecustomize.py").write_text(AHEAD)

    def env(self, *, is_ahead: bool = False) -> dict[str, str]:
        more = {"PYTHONPATH": str(self.folder / "ahead")} if is_ahead else {}
        return environment(self.folder, **settings(self.port), **more)

    def start(self, name: str, *, epochs: int, is_ahead: bool = False) -> Process:
        storage = f"s3://{BUCKET}/{self.folder.name}"
        command = ["mnist-ray", "run", "--data", str(self.folder / "small.npz"), "--storage", storage]
        log = self.folder / f"{name}-{len(self.started)}"
        command += ["--name", "one", "--epochs", str(epochs)]
        self.started.append(Process(*command, env=self.env(is_ahead=is_ahead), log=log))
        return self.started[-1]

    def signal_all(self, process: Process, kind: signal.Signals) -> None:
        """To all that runs in a driver's session: its whole host stands still, or goes on."""
        for pid in process.processes():
            os.kill(pid, kind)

    def read(self, client: Any, name: str) -> Any:
        try:
            body = client.get_object(Bucket=BUCKET, Key=f"{self.folder.name}/one/{name}")["Body"].read()
        except client.exceptions.NoSuchKey:
            return None
        return json.loads(body)


@pytest.fixture
def drivers(tmp_path: Path, port: int) -> Iterator[Drivers]:
    made = Drivers(tmp_path, port)
    yield made
    for process in made.started:
        made.signal_all(process, signal.SIGCONT)
        process.remove()


def test_a_second_driver_waits_and_is_refused_whatever_its_clock_says(drivers: Drivers, client: Any) -> None:
    first = drivers.start("first", epochs=5000)
    first.until("it trains", lambda: (drivers.read(client, "progress.json") or {}).get("phase") == "train")
    second = drivers.start("second", epochs=5000, is_ahead=True)
    assert second.end() == 1
    assert "another mnist-ray (process " in one_line(second.err.read_text())
    status = mnist_ray("status", f"s3://{BUCKET}/{drivers.folder.name}/one", env=drivers.env(is_ahead=True))
    assert "its driver has ended" not in status.stdout
    assert first.ended() is None


def test_a_host_that_stood_still_writes_nothing_when_it_goes_on(drivers: Drivers, client: Any) -> None:
    first = drivers.start("first", epochs=40)
    first.until("it trains", lambda: (drivers.read(client, "progress.json") or {}).get("epoch", 0) > 2)
    drivers.signal_all(first, signal.SIGSTOP)
    began = time.monotonic()
    second = drivers.start("second", epochs=40, is_ahead=True)
    second.until(
        "it trains on", lambda: (drivers.read(client, "progress.json") or {}).get("owner", {}).get("pid") == second.pid
    )
    assert time.monotonic() - began > 15
    drivers.signal_all(first, signal.SIGCONT)
    assert first.end() == 1
    assert "another mnist-ray has taken over" in one_line(first.err.read_text())
    assert second.end(300) == 0, second.said()
    verified = subprocess.run(
        ["mnist-ray", "verify", f"s3://{BUCKET}/{drivers.folder.name}/one"], env=drivers.env(), check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stderr
    assert "500 images = 500 scored + 0 quarantined" in verified.stdout
