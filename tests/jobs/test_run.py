"""The main job as users start it, with real Ray processes: three ways, one result."""

from __future__ import annotations

import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mnist_ray.sources.open import open_source
from tests.support import own_model
from tests.support.command import BIN, ROOT, environment, free_port, metrics_of, mnist_ray, stop

EPOCHS = "1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("job")


@pytest.fixture(scope="module")
def local_run(folder: Path) -> tuple[Path, str]:
    """Way (a): nothing runs. The run's folder and what was said."""
    done = mnist_ray("run", "--storage", str(folder), "--name", "local", "--epochs", EPOCHS, env=environment(folder))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder / "local", done.stdout


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """`ray start --head` with token authentication on: the dashboard's port, and the environment of a user with the
    token. Stopped by process id: `ray stop` would take other Rays of this machine along."""
    port, gcs, current = free_port(), free_port(), Path("/tmp/ray/ray_current_cluster")
    env = environment(
        folder, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="1"
    )
    head = subprocess.Popen(
        [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={gcs}",
         f"--dashboard-port={port}", "--ray-client-server-port", str(free_port()),
         f"--dashboard-agent-listen-port={free_port()}", "--object-store-memory=200000000"],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        # `auto` reads that file, in which an earlier head may still stand.
        while socket.socket().connect_ex(("127.0.0.1", port)) or not current.read_text().endswith(f":{gcs}"):
            assert head.poll() is None, head.stdout and head.stdout.read()
            assert time.monotonic() < deadline, "the dashboard did not come up"
            time.sleep(0.2)
        yield port, env
    finally:
        stop(head)


@pytest.mark.ray
@pytest.mark.slow
def test_the_story_and_the_files(local_run: tuple[Path, str]) -> None:
    run, story = local_run
    for told in (
        "x_train (60000, 28, 28) uint8   y_train (60000,)",
        "x_test (10000, 28, 28) uint8   y_test (10000,)",
        "48 train + 48 test shards, 70,000 rows",
        "untrained, of test image 0 (a 7):",
        "before  loss 2.",
        "epoch 1/1  loss 0.",
        "scoring  10,000 images by 1 actor",
        str(run / "report.html"),
    ):
        assert told in story, story
    assert "\x1b" not in story
    for chatter in ("oneDNN", "cuda", "WARNING", "Traceback", "gcs_client"):
        assert chatter not in story
    metrics = metrics_of(run)
    assert metrics["dataset"] == {
        "name": "mnist", "train_images": 60000, "test_images": 10000, "image_shape": [28, 28],
        "classes": [str(digit) for digit in range(10)],
    }  # fmt: skip
    assert set(metrics["seconds"]) == {"start", "shard", "train", "score", "report", "total"}
    assert [epoch["epoch"] for epoch in metrics["train"]["epochs"]] == [1]
    assert 0.02 <= metrics["before"]["accuracy"] <= 0.25
    assert metrics["after"]["accuracy"] > 0.93
    assert metrics["score"]["images"] == metrics["after"]["num_seen"] == 10_000
    assert np.sum(metrics["after"]["confusion"]) == 10_000
    assert np.trace(metrics["after"]["confusion"]) == metrics["after"]["num_correct"]


@pytest.mark.ray
def test_predictions_are_each_image_once_and_verify(local_run: tuple[Path, str], folder: Path) -> None:
    run, _ = local_run
    table = pq.read_table(sorted((run / "predictions").glob("part-*.parquet")))
    rows = {name: np.array(table[name].to_pylist()) for name in ("id", "label", "prediction", "probabilities")}
    np.testing.assert_array_equal(rows["id"], np.arange(10_000))
    np.testing.assert_array_equal(rows["label"], open_source("embedded").read("test", 0, 10_000).labels)
    np.testing.assert_array_equal(rows["prediction"], rows["probabilities"].argmax(1))
    np.testing.assert_allclose(rows["probabilities"].sum(1), 1, atol=1e-5)
    assert (rows["prediction"] == rows["label"]).sum() == metrics_of(run)["after"]["num_correct"]
    assert mnist_ray("verify", str(run), env=environment(folder)).returncode == 0
    assert mnist_ray("status", str(run), env=environment(folder)).stdout.startswith(f"{run}: finished. accuracy 0.9")


@pytest.mark.ray
def test_again_it_shows_the_result_and_another_config_is_refused(local_run: tuple[Path, str], folder: Path) -> None:
    run, _ = local_run
    model = (run / "model" / "classifier.keras").stat().st_mtime_ns
    args = ("run", "--storage", str(folder), "--name", "local", "--epochs", EPOCHS)
    again = mnist_ray(*args, env=environment(folder))
    assert (again.returncode, again.stderr) == (0, "")
    assert "is finished; --fresh or another --name runs anew" in again.stdout
    assert f"{metrics_of(run)['after']['num_correct']:,} of 10,000 correct" in again.stdout
    other = mnist_ray(*args, "--seed", "9", "--batch-size", "32", env=environment(folder))
    assert (other.returncode, other.stdout) == (2, "")
    assert "--batch-size 64 -> 32, --seed 0 -> 9" in other.stderr
    assert other.stderr.count("\n") == 1
    assert (run / "model" / "classifier.keras").stat().st_mtime_ns == model


@pytest.mark.ray
@pytest.mark.drill  # a submitted job comes the same way
def test_ray_start_and_address_auto(
    cluster: tuple[int, dict[str, str]], local_run: tuple[Path, str], folder: Path
) -> None:
    _, env = cluster
    done = mnist_ray(
        "run", "--address", "auto", "--storage", str(folder), "--name", "auto", "--epochs", EPOCHS, env=env
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert metrics_of(folder / "auto")["after"] == metrics_of(local_run[0])["after"]
    assert metrics_of(folder / "auto")["environment"]["address"] == "auto"


@pytest.mark.ray
@pytest.mark.slow
def test_ray_job_submit_with_token_auth(
    cluster: tuple[int, dict[str, str]], local_run: tuple[Path, str], folder: Path
) -> None:
    port, env = cluster
    command = [str(BIN / "ray"), "job", "submit", "--address", f"http://127.0.0.1:{port}", "--working-dir", ".", "--",
               "python", "jobs/run.py", "--storage", str(folder), "--name", "job", "--epochs", EPOCHS]  # fmt: skip
    stranger = subprocess.run(
        command, env=environment(folder), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert stranger.returncode != 0
    assert not (folder / "job").exists()
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert metrics_of(folder / "job")["after"] == metrics_of(local_run[0])["after"]


@pytest.mark.ray
def test_our_submit_needs_the_token_and_gives_the_jobs_exit_code(
    cluster: tuple[int, dict[str, str]], folder: Path
) -> None:
    port, env = cluster
    submit = (
        "submit",
        "--address",
        f"http://127.0.0.1:{port}",
        "--",
        "run",
        "--storage",
        str(folder),
        "--data",
        "nowhere",
    )
    refused = mnist_ray(*submit, env=environment(folder))
    assert refused.returncode == 2
    assert "requires a token" in refused.stderr
    failed = mnist_ray(*submit, env=env)
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert "nowhere" in failed.stdout


@pytest.mark.ray
@pytest.mark.drill  # `unit/training/test_worker.py` has it without a job
def test_a_model_an_optimizer_and_a_callback_of_ones_own(cluster: tuple[int, dict[str, str]], tmp_path: Path) -> None:
    """In a module that only `--working-dir` brings to the job."""
    (tmp_path / "code").mkdir()
    shutil.copy(Path(own_model.__file__), tmp_path / "code")
    mnist = open_source("embedded")
    train, test = mnist.read("train", 0, 640), mnist.read("test", 0, 300)
    data = tmp_path / "some.npz"
    np.savez(data, x_train=train.images, y_train=train.labels, x_test=test.images, y_test=test.labels)
    port, env = cluster
    submit = ("submit", "--address", f"http://127.0.0.1:{port}", "--working-dir", str(tmp_path / "code"), "--")
    run = ("run", "--data", str(data), "--storage", str(tmp_path), "--name", "own", "--batch-size", "640",
           "--architecture", "own_model:classifier", "--learning-rate", "0.5", "--epochs", "9",
           "--precision", "float64")  # fmt: skip
    done = mnist_ray(*submit, *run, env=env)
    assert done.returncode == 0, done.stdout + done.stderr

    weights, losses = own_model.by_hand(train.images, train.labels, 0.5)
    told = metrics_of(tmp_path / "own")
    assert [epoch["loss"] for epoch in told["train"]["epochs"]] == pytest.approx(losses, abs=1e-9)
    logits = np.column_stack([test.images.reshape(300, 784) / 255, np.ones(300)]) @ weights
    assert told["after"]["num_correct"] == (logits.argmax(1) == test.labels).sum()

    score = ("score", str(data), "--model", str(tmp_path / "own"), "--output", str(tmp_path / "out"))
    scored = mnist_ray(*submit, *score, env=env)
    assert scored.returncode == 0, scored.stdout + scored.stderr
    again = metrics_of(tmp_path / "out")["after"]
    assert again["confusion"] == told["after"]["confusion"]
    assert again["loss"] == pytest.approx(told["after"]["loss"], rel=1e-12)  # summed in other units
