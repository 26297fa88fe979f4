"""A real Prometheus scrapes a real run."""

from __future__ import annotations

import json
import shutil
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.cluster.gauges import COUNTERS, GAUGES
from tests.support import data_makers as make
from tests.support.cluster import Cluster
from tests.support.command import free_port
from tests.support.process import Process

pytestmark = [
    pytest.mark.drill,
    pytest.mark.skipif(not shutil.which("prometheus"), reason="Prometheus is not installed"),
]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    made = Cluster(tmp_path, num_cpus=2, metrics_port=free_port())
    yield made
    made.remove()


def test_prometheus_sees_every_gauge(cluster: Cluster, tmp_path: Path) -> None:
    port, config = free_port(), tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s}\n"
        f"scrape_configs: [{{job_name: ray, static_configs: [{{targets: ['127.0.0.1:{cluster.metrics_port}']}}]}}]\n"
    )
    prometheus = Process(
        str(shutil.which("prometheus")), f"--config.file={config}", f"--web.listen-address=127.0.0.1:{port}",
        f"--storage.tsdb.path={tmp_path / 'tsdb'}", env=cluster.env, log=tmp_path / "prometheus.log",
    )  # fmt: skip
    data, run = make.write_mnist(tmp_path / "little.npz", 2000, 500), tmp_path / "watched"
    run_it = ["run", "--data", data, "--storage", tmp_path, "--name", run.name, "--num-workers", "1", "--epochs", "300"]
    score_it = ["score", *[data] * 4000, "--model", run, "--output", tmp_path / "out", "--split", "train"]
    jobs = []
    try:
        counters = {f"{name}_total" for name in COUNTERS}
        of_run, of_output = set(GAUGES) - {"quarantined"} | counters, {"quarantined", "done", "total"} | counters
        for what, words, where in ((of_run, run_it, run), (of_output, score_it, tmp_path / "out")):
            job = Process(
                "mnist-ray", *map(str, words), env={**cluster.env, **cluster.joined}, log=tmp_path / "job.log"
            )
            jobs.append(job)
            job.until(f"{what} are there", lambda what=what, where=where: what <= seen(port, str(where)), 240)
            job.until("it has ended", lambda job=job: "predictions  " in job.said() or "scores  " in job.said(), 240)
        phase = ask(port, f'max_over_time(ray_mnist_ray_phase{{run="{run}", phase="train"}}[10m])')
        assert {each["value"][1] for each in phase} == {"1"}, "of the driver, and of rank 0"
    finally:
        for job in jobs:
            job.remove()
        prometheus.remove()


def seen(port: int, run: str) -> set[str]:
    """The gauges of a run that are there now."""
    return {each["metric"]["__name__"].removeprefix("ray_mnist_ray_") for each in ask(port, f'{{run="{run}"}}')}


def ask(port: int, query: str) -> list[dict[str, Any]]:
    """What Prometheus answers; nothing while it is not up."""
    try:
        address = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        with urllib.request.urlopen(address) as answer:
            return list(json.load(answer)["data"]["result"])
    except OSError:
        return []
