"""The gauges, and the dashboard and alerts that are made of their names."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.cluster.gauges import COUNTERS, GAUGES, BytesRead, Gauges
from mnist_ray.sources import meter

MONITORING = Path(__file__).parents[3] / "deploy" / "monitoring"


def test_dashboard_and_alerts_have_the_names_of_the_gauges() -> None:
    board = json.loads((MONITORING / "dashboard.json").read_text())
    shown = " ".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
    watched = (MONITORING / "alerts.yaml").read_text()
    names = re.compile(r"\bray_mnist_ray_(\w+)")
    assert set(names.findall(shown)) == {*GAUGES, *(f"{name}_total" for name in COUNTERS)}
    assert set(names.findall(watched)) <= set(GAUGES)


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool, of Prometheus, is not installed")
def test_each_alert_fires_once_and_not_without_need() -> None:
    rules = Path(__file__).with_name("alerts.test.yaml")
    done = subprocess.run(["promtool", "test", "rules", str(rules)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_record_sets_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    now: dict[tuple[str, str], float] = {}

    class Gauge:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            assert tag_keys == ("run", "phase")
            self.name = name

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert tags["run"] == "/runs/m"
            now[self.name, tags["phase"]] = value

    monkeypatch.setattr("ray.util.metrics.Gauge", Gauge)
    gauges = Gauges("/runs/m")
    fields: dict[str, Any] = {"phase": "train", "done": 64, "per_second": 1000, "loss": None, "epochs": []}
    gauges.show(fields)
    phases = {
        ("mnist_ray_phase", phase): float(phase == "train") for phase in ("start", "shard", "train", "score", "done")
    }
    assert now == {**phases, ("mnist_ray_done", "train"): 64.0, ("mnist_ray_images_per_second", "train"): 1000.0}
    gauges.show({"phase": "score", "quarantined": 2})
    assert now["mnist_ray_phase", "train"] == 0.0
    assert now["mnist_ray_quarantined", "score"] == 2.0


class Counter:
    def __init__(self) -> None:
        self.added: list[tuple[int, dict[str, str]]] = []

    def inc(self, value: int, tags: dict[str, str]) -> None:
        self.added.append((value, tags))


def test_two_threads_of_an_actor_count_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    made, both = Counter(), threading.Barrier(2)

    def counter_of(_: str) -> Counter:
        with suppress(threading.BrokenBarrierError):  # where the other thread has nothing to add
            both.wait(0.5)
        return made

    monkeypatch.setattr("mnist_ray.cluster.gauges._counter", counter_of)
    counter = BytesRead("/runs/m")
    meter.count(34)
    threads = [threading.Thread(target=counter.show) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made.added == [(34, {"run": "/runs/m"})]


def test_the_counter_adds_what_was_read_since_the_last_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Counter()
    monkeypatch.setattr("mnist_ray.cluster.gauges._counter", lambda name: made)
    meter.count(1_000)  # for another run
    counter = BytesRead("/runs/m")
    counter.show()
    meter.count(30)
    meter.count(4)
    counter.show()
    counter.show()
    meter.count(5)
    counter.show()
    assert made.added == [(34, {"run": "/runs/m"}), (5, {"run": "/runs/m"})]
