"""A run in TensorBoard and on a real MLflow server, through a kill, a retry and the server's absence; and in a browser.

Needs Chromium, and the package indexes of Python and npm: MLflow's server is not among what is locked.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.tracking.scalars import Snapshot
from tests.support.command import BIN, environment, free_port, metrics_of
from tests.support.data_makers import write_mnist
from tests.support.drilling import Drill
from tests.support.process import Process

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.drill,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not (BROWSER and shutil.which("npm")), reason="needs Chromium and npm"),
]

EPOCHS = 8


def ask(url: str, body: Any = None) -> Any:
    """The answer to a request; None while there is none."""
    request = urllib.request.Request(
        url, json.dumps(body).encode() if body else None, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or "null")
    except (OSError, ValueError):
        return None


class MLflowServer:
    """MLflow's own server, in an environment of its own, which can go and come back."""

    def __init__(self, folder: Path, drill: Drill) -> None:
        self._folder, self._drill = folder, drill
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        install = [BIN / "uv", "pip", "install", "--quiet", "--python", folder / "venv" / "bin" / "python", "mlflow"]
        subprocess.run(install, env=environment(folder), check=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._process = self._drill.start(
            str(self._folder / "venv" / "bin" / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(self.port),
            "--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db", "--artifacts-destination",
            str(self._folder / "artifacts"), "--workers", "1",
            MLFLOW_DISABLE_TELEMETRY="true", TMPDIR=str(self._folder),
        )  # fmt: skip
        self._drill.until(self._process, "MLflow", lambda: self.runs() is not None, 300)

    def stop(self) -> None:
        self._process.remove()

    def ask(self, what: str, body: Any) -> Any:
        return ask(f"{self.url}/api/2.0/mlflow/{what}", body)

    def runs(self) -> list[Any] | None:
        """All runs of the experiment; None while the server is away."""
        found = self.ask("experiments/search", {"max_results": 100})
        if found is None:
            return None
        ids = [each["experiment_id"] for each in found["experiments"] if each["name"] == "drill"]
        return list(self.ask("runs/search", {"experiment_ids": ids}).get("runs", [])) if ids else []

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        found = ask(f"{self.url}/api/2.0/mlflow/metrics/get-history?run_id={run_id}&metric_key={metric}")
        return [(int(each.get("step", 0)), each["value"]) for each in found["metrics"]]


@pytest.fixture
def drill(tmp_path: Path) -> Iterator[Drill]:
    made = Drill(tmp_path)
    yield made
    made.remove()


def test_one_run_through_all_of_it(drill: Drill, tmp_path: Path) -> None:
    data, run = write_mnist(tmp_path / "little.npz", 2000, 500), tmp_path / "tracked"
    server, board = MLflowServer(tmp_path, drill), f"http://127.0.0.1:{free_port()}"
    server.start()
    tensorboard = drill.start(
        "tensorboard", "--logdir", str(run), "--port", board.rpartition(":")[2], "--reload_interval", "1",
        TMPDIR=str(tmp_path),
    )  # fmt: skip

    def begin(holds: Callable[[], bool]) -> Process:
        """The command, once something holds. Given again where it has failed: Ray's start has 30 s on any machine."""
        where = ["--data", str(data), "--storage", str(tmp_path), "--name", run.name, "--num-workers", "1"]
        training = ["--epochs", str(EPOCHS), "--validation-fraction", "0.2", "--batch-size", "4"]
        slowly = ["--architecture", "tests.support.drill_model:mlp"]
        for _ in range(4):
            driver = drill.start("mnist-ray", "run", *where, *training, *slowly, "--tensorboard", *tracked, **secret)
            while driver.ended() is None and not holds():
                assert time.monotonic() - driver.began < 400, driver.said()
                time.sleep(0.1)
            if driver.ended() in (None, 0):
                break
        return driver

    tracked = ["--mlflow", "auto", "--mlflow-experiment", "drill"]
    secret = {"MLFLOW_TRACKING_URI": server.url.replace("://", "://me:geheim@")}

    def shown() -> dict[str, Any]:
        """What TensorBoard shows by now: {run: {tag: …}}."""
        return ask(f"{board}/data/plugin/scalars/tags") or {}

    def has(epoch: int) -> bool:
        return (run / "tensorboard" / "train" / f"epoch-{epoch:06d}.tfevents").exists()

    def steps() -> list[int]:
        found = ask(f"{board}/data/plugin/scalars/scalars?run=tensorboard%2Ftrain&tag=epoch_loss") or []
        return [int(step) for _, step, _ in found]

    first = begin(lambda: has(2) and len(steps()) >= 2)
    assert first.ended() is None, first.said()
    first.remove()  # by SIGKILL, and its Ray with it
    server.stop()
    second = begin(lambda: has(4))
    second.strike(signal.SIGKILL, *second.processes("ray::RayTrainWorker"))
    assert second.end(600) == 0, second.said()
    warnings = [line for line in second.said().splitlines() if line.startswith("warning: MLflow")]
    assert warnings == [
        f"warning: MLflow at {server.url}: Connection refused; the run goes on and will try again",
        f"warning: MLflow at {server.url}: what this attempt has done is not logged (Connection refused); the same"
        " command adds what is missing",
    ]
    server.start()
    third = begin(lambda: False)
    assert third.end(300) == 0, third.said()
    assert "warning: MLflow" not in third.said()

    # MLflow has one run, each step once, and the result.
    metrics = metrics_of(run)
    (found,) = server.runs() or []
    run_id = found["info"]["run_id"]
    assert found["info"]["status"] == "FINISHED"
    assert f"  mlflow   {server.url}/#/experiments/{found['info']['experiment_id']}/runs/{run_id}\n" in third.said()
    wanted: dict[str, list[tuple[int, float]]] = {}
    for scalar in Snapshot(metrics["train"]["epochs"], metrics).scalars():
        wanted.setdefault(scalar.full_name, []).append((scalar.epoch, scalar.value))
    assert {each["key"] for each in found["data"]["metrics"]} == set(wanted)
    for name in ("loss", "accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy"):
        got = sorted(server.history(run_id, name))
        assert [step for step, _ in got] == [step for step, _ in wanted[name]]
        assert [value for _, value in got] == pytest.approx([value for _, value in wanted[name]], rel=1e-6)
    assert len(list((tmp_path / "artifacts").rglob("MLmodel"))) == 1

    # A scoring is another MLflow run, also one: a second command finds the output finished.
    output = tmp_path / "scored"
    for _ in range(2):
        score = drill.start(
            "mnist-ray", "score", str(data), "--model", str(run), "--output", str(output), *tracked, **secret
        )
        assert score.end(300) == 0, score.said()
    (scored,) = (each for each in server.runs() or [] if each["info"]["run_id"] != run_id)
    assert (scored["info"]["run_name"], scored["info"]["status"]) == (output.name, "FINISHED")
    accuracy = metrics_of(output)["after"]["accuracy"]
    assert server.history(scored["info"]["run_id"], "test_accuracy") == [(0, pytest.approx(accuracy))]
    scored_page = f"{server.url}/#/experiments/{scored['info']['experiment_id']}/runs/{scored['info']['run_id']}"
    assert f"mlflow       {scored_page}\n" in score.said()

    # No password is kept or printed.
    kept = [file for folder in (run, output, tmp_path / "artifacts") for file in folder.rglob("*") if file.is_file()]
    assert not [file for file in kept if b"geheim" in file.read_bytes()]
    assert not [each for each in (first, second, third, score) if "geheim" in each.said()]

    # TensorBoard, which has run all the time, has read on, and has each step once.
    drill.until(tensorboard, "TensorBoard reads on", lambda: len(steps()) >= EPOCHS, 60)
    assert steps() == list(range(1, EPOCHS + 1))
    drill.until(tensorboard, "the test images", lambda: "tensorboard/test" in shown(), 60)
    assert set(shown()) == {"tensorboard/test", "tensorboard/train", "tensorboard/validation"}

    look(
        tmp_path,
        {"name": "tensorboard", "url": f"{board}/#timeseries", "texts": ["epoch_loss", "tensorboard/validation"]},
        {"name": "mlflow", "url": f"{server.url}/#/experiments/{found['info']['experiment_id']}/runs/{run_id}",
         "texts": [run.name, "Finished", "test_accuracy", "learning_rate", "model"]},
        {"name": "report", "texts": ["report.html", "metrics.json"],
         "url": f"{server.url}/#/experiments/{found['info']['experiment_id']}/runs/{run_id}/artifacts/report.html"},
        {"name": "scoring", "url": scored_page, "texts": [output.name, "Finished", "score_images", "model_sha256"]},
    )  # fmt: skip


def look(folder: Path, *pages: dict[str, Any]) -> None:
    """Each page shows each text, in a real browser. TRACKING_SCREENSHOTS names a folder to keep the pictures in."""
    env = {**environment(folder), "PATH": os.environ["PATH"]}
    subprocess.run(["npm", "install", "--silent", "playwright-core"], cwd=folder, env=env, check=True)
    script = shutil.copy(Path(__file__).parent / "look_at_trackers.js", folder)
    pictures = os.environ.get("TRACKING_SCREENSHOTS", str(folder))
    command = ["node", script, str(BROWSER), pictures, json.dumps(pages)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert json.loads(done.stdout) == []
