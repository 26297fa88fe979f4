"""The main job as users start it, with real Ray processes: three ways, one result."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mnist_ray.sources.open import open_source
from mnist_ray.storage.location import Location
from tests.jobs.conftest import LITTLE
from tests.support import data_makers as make
from tests.support import own_model
from tests.support.cluster import Cluster
from tests.support.command import (
    BIN,
    ROOT,
    called,
    environment,
    metrics_of,
    mnist_ray,
    one_after_the_other,
    one_line,
)
from tests.support.report_maker import Page

pytestmark = pytest.mark.ray


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_the_story_and_the_files(local_run: tuple[Path, str]) -> None:
    run, story = local_run
    for told in (
        "x_train (60000, 28, 28) uint8   y_train (60000,)",
        "x_test (10000, 28, 28) uint8   y_test (10000,)",
        "48 train + 48 test shards, 70,000 rows",
        "untrained, of test image 0 (a 7):",
        "before  loss 2.",
        "epoch 5/5  loss 0.0",
        "scoring  10,000 images by 1 actor",
        str(run / "report.html"),
    ):
        assert told in story, story
    assert "\x1b" not in story
    log = (run / "logs" / "driver.log").read_text()
    assert log.startswith("--- 2")
    assert set(story.splitlines()) <= set(log.splitlines())
    events = [json.loads(line) for line in (run / "logs" / "events.jsonl").read_text().splitlines()]
    kinds = Counter(each["event"] for each in events)
    assert kinds == {"start": 1, "ray": 1, "actors": 1, "phase": 5, "workers": 1, "epoch": 5, "end": 1}
    moments = [json.loads(line) for line in (run / "logs" / "progress.jsonl").read_text().splitlines()]
    assert {"shard", "train", "score"} <= {each["phase"] for each in moments}
    assert max(each["images"] for each in moments if each["phase"] == "train") == 300_000
    assert 'class="timeline"' in (run / "report.html").read_text(encoding="utf-8")
    for chatter in ("oneDNN", "cuda", "WARNING", "Traceback", "gcs_client"):
        assert chatter not in story
    metrics = metrics_of(run)
    assert metrics["dataset"] == {
        "name": "mnist", "train_images": 60000, "test_images": 10000, "image_shape": [28, 28],
        "classes": [str(digit) for digit in range(10)],
    }  # fmt: skip
    assert set(metrics["seconds"]) == {"start", "shard", "train", "score", "report", "total"}
    assert [epoch["epoch"] for epoch in metrics["train"]["epochs"]] == [1, 2, 3, 4, 5]
    assert 0.02 <= metrics["before"]["accuracy"] <= 0.25
    assert metrics["after"]["accuracy"] > 0.97
    assert metrics["score"]["images"] == metrics["after"]["num_seen"] == 10_000
    assert np.sum(metrics["after"]["confusion"]) == 10_000
    assert np.trace(metrics["after"]["confusion"]) == metrics["after"]["num_correct"]


def test_predictions_are_each_image_once_and_verify(
    local_run: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = local_run
    table = pq.read_table(sorted((run / "predictions").glob("part-*.parquet")))
    rows = {name: np.array(table[name].to_pylist()) for name in ("id", "label", "prediction", "probabilities")}
    np.testing.assert_array_equal(rows["id"], np.arange(10_000))
    np.testing.assert_array_equal(rows["label"], open_source("embedded").read("test", 0, 10_000).labels)
    np.testing.assert_array_equal(rows["prediction"], rows["probabilities"].argmax(1))
    np.testing.assert_allclose(rows["probabilities"].sum(1), 1, atol=1e-5)
    assert (rows["prediction"] == rows["label"]).sum() == metrics_of(run)["after"]["num_correct"]
    assert called(capsys, "verify", run)[0] == 0
    assert called(capsys, "status", run)[1].startswith(f"{run}: finished. accuracy 0.9")


def test_again_it_shows_the_result_and_another_config_is_refused(local_run: tuple[Path, str], folder: Path) -> None:
    run, _ = local_run
    model = (run / "model" / "classifier.keras").stat().st_mtime_ns
    args = ("run", "--storage", str(folder), "--name", "local")
    again = mnist_ray(*args, env=environment(folder))
    assert (again.returncode, again.stderr) == (0, "")
    assert "is finished; use --fresh or another --name to run again" in again.stdout
    assert f"{metrics_of(run)['after']['num_correct']:,} of 10,000 correct" in again.stdout
    other = mnist_ray(*args, "--seed", "9", "--batch-size", "32", env=environment(folder))
    assert (other.returncode, other.stdout) == (2, "")
    assert "--batch-size 64 -> 32, --seed 0 -> 9" in other.stderr
    assert other.stderr.count("\n") == 1
    assert (run / "model" / "classifier.keras").stat().st_mtime_ns == model


@pytest.mark.drill  # a submitted job comes the same way
@pytest.mark.usefixtures("here")
def test_ray_start_and_address_auto(
    cluster: Cluster, stored_run: tuple[Location, str], little: Path, folder: Path
) -> None:
    where = ("--address", "auto", "--storage", folder, "--name", "auto")
    done = mnist_ray("run", "--data", little, *where, *LITTLE, env=cluster.env)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert metrics_of(folder / "auto")["after"] == (stored_run[0] / "metrics.json").read_json()["after"]
    assert metrics_of(folder / "auto")["environment"]["address"] == "auto"


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_ray_job_submit_with_token_auth(
    cluster: Cluster, stored_run: tuple[Location, str], little: Path, folder: Path
) -> None:
    command = [BIN / "ray", "job", "submit", "--address", f"http://{cluster.dashboard}", "--working-dir", ".", "--",
               "python", "jobs/run.py", "--data", little, "--storage", folder, "--name", "job", *LITTLE]  # fmt: skip
    stranger = subprocess.run(
        command, env=environment(folder), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert stranger.returncode != 0
    assert not (folder / "job").exists()
    done = subprocess.run(command, env=cluster.env, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert metrics_of(folder / "job")["after"] == (stored_run[0] / "metrics.json").read_json()["after"]


def test_our_submit_needs_the_token_and_gives_the_jobs_exit_code(cluster: Cluster, folder: Path) -> None:
    where = ("--address", f"http://{cluster.dashboard}")
    submit = ("submit", *where, "--", "run", "--storage", folder, "--data", "nowhere")
    refused = mnist_ray(*submit, env=environment(folder))
    assert refused.returncode == 2
    assert "requires a token" in refused.stderr
    refused = mnist_ray(*submit, env={**cluster.env, "RAY_AUTH_TOKEN": "ab" * 32})
    assert refused.returncode == 2
    assert "requires another token than that in RAY_AUTH_TOKEN" in one_line(refused.stderr)
    failed = mnist_ray(*submit, env=cluster.env)
    assert (failed.returncode, failed.stderr) == (2, ""), failed.stdout + failed.stderr
    assert "nowhere" in failed.stdout
    job = failed.stdout.split()[1]
    status, logs, stop, unknown = one_after_the_other(
        ("status", job, *where), ("logs", job, *where), ("stop", job, *where), ("logs", "raysubmit_none", *where),
        env=cluster.env,
    )  # fmt: skip
    assert status[1].startswith(f"{job}: FAILED. Job entrypoint command failed with exit code 2")
    assert status[2] == unknown[1] == ""
    assert "nowhere" in logs[1]
    assert stop == (0, f"{job}: FAILED\n", "")
    assert unknown[0] == 1
    assert f"the cluster at http://{cluster.dashboard} knows no job raysubmit_none" in one_line(unknown[2])


def test_the_doctor_of_a_cluster(cluster: Cluster, tmp_path: Path) -> None:
    command = ("doctor", "--address", cluster.address, "--storage", tmp_path / "runs", "--num-workers", "9")
    done = mnist_ray(*command, env=cluster.env)
    found = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert [(level, line.split()[0].rstrip(":")) for level, line in found] == [
        ("ok", "python"), ("ok", "packages"), ("ok", "storage"), ("ok", "cluster"), ("ok", "token"),
        ("FAIL", "resources"), ("ok", "versions"), ("ok", "storage"), ("ok", "quota"), ("ok", "Ray's"), ("ok", "clock"),
    ], done.stdout + done.stderr  # fmt: skip
    assert "9 train workers x 1 CPU = 9 CPUs are needed, but the cluster has 2" in done.stdout
    assert (done.returncode, done.stderr, list(tmp_path.iterdir())) == (1, "", [])


@pytest.mark.drill  # `unit/test_doctor.py` has it without a job
def test_the_doctor_from_a_dashboard_and_stopping_a_run(cluster: Cluster, tmp_path: Path) -> None:
    where = ("--address", f"http://{cluster.dashboard}")
    sound = mnist_ray("doctor", *where, "--storage", tmp_path / "runs", env=cluster.env)
    assert (sound.returncode, sound.stderr) == (0, ""), sound.stdout
    assert "ok    in a job: storage: written, read, renamed and removed from 1 node\n" in sound.stdout
    run = tmp_path / "runs" / "long"
    command = ("run", "--storage", tmp_path / "runs", "--name", "long", "--epochs", "500")
    job = mnist_ray("submit", *where, "--no-wait", "--", *command, env=cluster.env).stdout.split()[1]
    deadline = time.monotonic() + 120
    while "Ray at" not in (log := mnist_ray("logs", run, env=cluster.env)).stdout:
        assert time.monotonic() < deadline, log
    stopped, followed = one_after_the_other(("stop", run, *where), ("submit", *where, "--follow", job), env=cluster.env)
    assert stopped == (0, f"{job}: STOPPED; the same command continues from what is committed\n", "")
    assert followed[0] == 1
    assert followed[1].endswith(f"job {job}: STOPPED\n")
    log = mnist_ray("logs", run, env=cluster.env).stdout
    assert f", job {job}\n" in log
    assert log.endswith("mnist-ray: interrupted; the same command continues from what is committed\n")


@pytest.mark.drill  # `unit/training/test_worker.py` has it without a job
def test_a_model_an_optimizer_and_a_callback_of_ones_own(cluster: Cluster, tmp_path: Path) -> None:
    """In a module that only `--working-dir` brings to the job."""
    (tmp_path / "code").mkdir()
    shutil.copy(Path(own_model.__file__), tmp_path / "code")
    data = make.write_mnist(tmp_path / "some.npz", 640, 300)
    source = open_source(str(data))
    train, test = source.read("train", 0, 640), source.read("test", 0, 300)
    submit = ("submit", "--address", f"http://{cluster.dashboard}", "--working-dir", str(tmp_path / "code"), "--")
    run = ("run", "--data", str(data), "--storage", str(tmp_path), "--name", "own", "--batch-size", "640",
           "--architecture", "own_model:classifier", "--learning-rate", "0.5", "--epochs", "9",
           "--precision", "float64")  # fmt: skip
    done = mnist_ray(*submit, *run, env=cluster.env)
    assert done.returncode == 0, done.stdout + done.stderr

    weights, losses = own_model.by_hand(train.images, train.labels, 0.5)
    told = metrics_of(tmp_path / "own")
    assert [epoch["loss"] for epoch in told["train"]["epochs"]] == pytest.approx(losses, abs=1e-9)
    logits = np.column_stack([test.images.reshape(300, 784) / 255, np.ones(300)]) @ weights
    assert told["after"]["num_correct"] == (logits.argmax(1) == test.labels).sum()

    score = ("score", str(data), "--model", str(tmp_path / "own"), "--output", str(tmp_path / "out"))
    scored = mnist_ray(*submit, *score, env=cluster.env)
    assert scored.returncode == 0, scored.stdout + scored.stderr
    again = metrics_of(tmp_path / "out")["after"]
    assert again["confusion"] == told["after"]["confusion"]
    assert again["loss"] == pytest.approx(told["after"]["loss"], rel=1e-12)  # summed in other units
    page = Page((tmp_path / "out/report.html").read_text(encoding="utf-8"))
    assert f"Make it again mnist-ray {' '.join(score)} Copy" in page.text
    assert len(page.images) > 12
    assert "image not found" not in page.text
