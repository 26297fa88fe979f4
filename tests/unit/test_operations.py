"""submit, status, logs and stop as a user types them, before a dashboard that is not Ray's."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from mnist_ray import operations, status
from mnist_ray.cluster import dashboard, jobs
from mnist_ray.cluster.dashboard import Dashboard
from mnist_ray.cluster.signals import interruptible
from mnist_ray.errors import Interrupted, RetryableError
from mnist_ray.runs.folder import RunFolder
from mnist_ray.runs.log import driver_log
from mnist_ray.runs.process_log import worker_log
from tests.support.command import called
from tests.support.run_folders import prepare
from tests.unit.cluster.test_jobs import Client, info

URL = "http://h:8265"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    """The only dashboard that answers."""
    made = Client(["hello\n"], [1], info("SUCCEEDED", 0, "Job finished successfully."))
    made.get_job_logs = lambda job: "hello\n"  # type: ignore[attr-defined]
    import ray

    def reach(address: str | None) -> Dashboard:
        if address != URL:
            raise RetryableError("no Ray dashboard answers")
        return Dashboard(URL, ray.__version__, True, made)

    monkeypatch.setattr(dashboard, "reach", reach)
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: None)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.at(str(tmp_path), "mnist")


def submit(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    return called(capsys, "submit", "--address", URL, *words)


# submit


def test_a_job_is_followed_to_its_end(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = submit(capsys, "--", "run", "--storage", "s3://b/runs/", "--name", "n", "--epochs", "3")
    assert (code, err) == (0, "")
    assert out == f"submitted j to {URL}, for s3://b/runs/n\nhello\njob j: SUCCEEDED\n"
    assert client.submitted["entrypoint"] == "python -m mnist_ray run --storage s3://b/runs/ --name n --epochs 3"
    told = client.submitted["metadata"]
    assert told["run"] == "s3://b/runs/n"
    assert told["command"] == "run --storage s3://b/runs/ --name n --epochs 3"
    assert len(told["options_sha256"]) == 64


def test_what_is_sent_is_told_before(client: Client, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("x" * 10)
    words = (
        "--working-dir",
        str(tmp_path),
        "--no-wait",
        "--",
        "run",
        "--storage",
        "/mnt",
        "--architecture",
        "own:model",
    )
    code, out, _ = submit(capsys, *words)
    assert code == 0
    assert out.splitlines() == [
        f"sending {tmp_path}: 1 file, 10 bytes (unless the cluster has them already)",
        f"submitted j to {URL}, for /mnt/mnist",
        f"follow  mnist-ray submit --follow j --address {URL}",
        f"stop    mnist-ray stop j --address {URL}",
    ]
    (tmp_path / ".gitignore").write_text("own.py")
    code, out, err = submit(capsys, *words)
    assert (code, out) == (2, "")
    assert "own.py would not be sent: .gitignore or .rayignore names it" in err


def test_following_an_earlier_job(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    client.end = info("STOPPED")
    assert submit(capsys, "--follow", "j") == (1, "hello\njob j: STOPPED\n", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--", "run"],
            "--storage ./storage/mnist is a relative path, which lies in a folder of the job's own on one node",
        ),
        (["--", "run", "--storage", "runs"], "--storage runs/mnist is a relative path"),
        (["--", "train", "/shards", "--storage", "runs"], "--storage runs/mnist is a relative path"),
        (["--", "score", "x", "--model", "m", "--output", "o"], "--output o is a relative path"),
        (["--", "shard", "x", "shards"], "DEST shards is a relative path"),
        (["--", "run", "--storage", "/s", "--epochs", "0"], "--epochs must be at least 1, not 0"),
        (["--", "run", "--storage", "/s", "--epoch", "1"], "there is no option --epoch; did you mean --epochs?"),
        (["--", "submit", "--", "run"], "submit takes a command of mnist-ray after --, not 'submit'"),
        (["--follow", "j", "--", "run"], "--follow takes the id of a job, and neither a command nor"),
        (["--follow", "j", "--no-wait"], "--follow takes the id of a job"),
        (["--working-dir", "/nowhere", "--", "verify", "/o"], "--working-dir /nowhere is not a folder"),
    ],
)
def test_what_is_refused_before_anything_is_sent(
    words: list[str], message: str, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = submit(capsys, *words)
    assert (code, out, client.submitted) == (2, "", {})
    assert err.count("\n") == 1
    assert message in err


def test_the_folder_of_a_job_takes_no_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`ray job submit --working-dir . -- python jobs/run.py` starts in a folder that Ray removes."""
    (tmp_path / "_ray_pkg_0123").mkdir()
    monkeypatch.chdir(tmp_path / "_ray_pkg_0123")
    code, out, err = called(capsys, "run")
    assert (code, out) == (2, "")
    assert "--storage ./storage/mnist is a relative path" in err
    assert not [*(tmp_path / "_ray_pkg_0123").iterdir()]


@pytest.mark.parametrize(
    ("words", "env", "name"),
    [
        (["run", "--storage", "/s", "--mlflow", "http://me:geheim@h"], {}, "--mlflow"),
        (["score", "s3://me:geheim@b", "--model", "/m", "--output", "/o"], {}, "INPUT"),
        (["run", "--config", "/etc/nowhere.toml", "--mlflow=http://me:geheim@h"], {}, "a command"),
        (["verify", "s3://me:geheim@b"], {}, "a command"),
        (["run", "--storage", "/s"], {"MNIST_RAY_RUN_MLFLOW": "http://me:geheim@h"}, "--mlflow"),
        (
            ["run", "--config", "/etc/nowhere.toml"], {"MNIST_RAY_RUN_MLFLOW": "http://me:geheim@h"},
            "MNIST_RAY_RUN_MLFLOW",
        ),
    ],
)  # fmt: skip
def test_a_password_is_not_sent(
    words: list[str], env: dict[str, str], name: str, client: Client, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Ray's dashboard and the metadata of the job would show it."""
    for variable, value in env.items():
        monkeypatch.setenv(variable, value)
    code, out, err = submit(capsys, "--", *words)
    assert (code, out, client.submitted) == (2, "", {})
    assert err.startswith(f"mnist-ray: {name} with a password would be stored and shown; ")
    assert "geheim" not in err


def test_a_config_that_only_the_image_has(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(capsys, "--", "run", "--config", "/etc/nowhere.toml")[0] == 0
    assert "run" not in client.submitted["metadata"]


def test_another_ray_there_is_a_warning(
    client: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard, "reach", lambda address: Dashboard(URL, "2.9.0", True, client))
    code, _, err = submit(capsys, "--", "verify", "/o")
    assert code == 0
    assert err.startswith("mnist-ray: warning: the cluster has Ray 2.9.0, which the job will use; here is Ray 2.60")


# Ctrl-C


@pytest.mark.parametrize(
    ("kind", "terminal", "answer", "said"),
    [
        (signal.SIGINT, False, None, "interrupted; the job continues: mnist-ray submit --follow j"),
        (signal.SIGTERM, True, None, "interrupted; the job continues: mnist-ray submit --follow j"),
        (signal.SIGINT, True, "detach", "interrupted; the job continues"),
        (signal.SIGINT, True, click.Abort(), "interrupted; the job continues"),  # a second Ctrl-C
        (signal.SIGINT, True, "stop", "job j: STOPPED; the same command continues from what is committed"),
    ],
)
def test_ctrl_c_asks_only_a_person(
    kind: signal.Signals, terminal: bool, answer: Any, said: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def prompt(text: str, **_: Any) -> str:
        asked.append(text)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    client.end, client.connections = info("STOPPED"), [1, 1]
    monkeypatch.setattr(operations.click, "prompt", prompt)
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(operations.sys, stream, SimpleNamespace(isatty=lambda: terminal, write=len, flush=int))
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: os.kill(os.getpid(), kind))
    with pytest.raises(Interrupted) as raised:
        operations._follow(Dashboard(URL, "2.60.0", True, client), "j")
    assert str(raised.value).startswith(said)
    assert bool(asked) is (answer is not None)


def test_a_second_ctrl_c_at_the_question_does_not_hide_what_becomes_of_the_job(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reaches the handler around the whole command, whose words are for a command that works here."""

    def prompt(*_: Any, **__: Any) -> str:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise click.Abort from None  # as click does
        pytest.fail("not interrupted")

    client.end, client.connections = info("STOPPED"), [1, 1]
    monkeypatch.setattr(operations.click, "prompt", prompt)
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(operations.sys, stream, SimpleNamespace(isatty=lambda: True, write=len, flush=int))
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: os.kill(os.getpid(), signal.SIGINT))
    said = "interrupted; the job continues: mnist-ray submit --follow j"
    with pytest.raises(Interrupted, match=said), interruptible():
        operations._follow(Dashboard(URL, "2.60.0", True, client), "j")


def test_ctrl_c_and_watching_on(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    client.connections = [1, 1]
    monkeypatch.setattr(operations, "_choice", lambda interrupted: "watch")
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: os.kill(os.getpid(), signal.SIGINT))
    assert operations._follow(Dashboard(URL, "2.60.0", True, client), "j") == 0


# status, logs, stop


def test_a_job_and_its_run(client: Client, folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(folder)
    client.end.metadata["run"] = str(folder.root)
    client.connections = []
    code, out, _ = called(capsys, "status", "j", "--address", URL)
    assert code == 0
    assert out.splitlines()[0] == "j: SUCCEEDED. Job finished successfully."
    assert out.splitlines()[1].startswith(f"{folder.root}: start, last update ")
    client.end.metadata["run"] = "s3://nobody/knows"
    assert called(capsys, "logs", "j", "--address", URL) == (0, "hello\n", "")
    assert called(capsys, "stop", "j", "--address", URL) == (0, "j: SUCCEEDED\n", "")


@pytest.mark.parametrize("command", ["status", "logs", "stop"])
def test_neither_a_run_nor_a_job(
    command: str, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = called(capsys, command, "nobody")
    assert code == 2
    assert "nobody is not a run's folder here, and Ray cannot be asked for a job of this name: no Ray dash" in err
    code, _, err = called(capsys, command, tmp_path)
    assert code == 2
    assert f"{tmp_path} is not a run's folder (no progress.json)" in err


def test_the_log_of_a_run(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(folder)
    code, _, err = called(capsys, "logs", folder.root.path)
    assert code == 2
    assert f"{folder.root} keeps no log" in err
    driver_log(folder.root).write_bytes(b"one\ntwo\n")
    assert called(capsys, "logs", folder.root.path) == (0, "one\ntwo\n", "")
    assert called(capsys, "logs", folder.root.path, "--workers") == (0, "one\ntwo\n", "")
    for name in ("train-1", "train-0"):
        worker_log(folder.root, name).write_bytes(f"of {name}\n".encode())
    every = "one\ntwo\n\n=== train-0\nof train-0\n\n=== train-1\nof train-1\n"
    assert called(capsys, "logs", folder.root.path, "--workers") == (0, every, "")
    code, _, err = called(capsys, "logs", "raysubmit_x", "--workers")
    assert code == 2
    assert "--workers takes the folder of a run or an output, not a job" in err


def owned(folder: RunFolder, **owner: Any) -> None:
    prepare(folder)
    folder.progress.write_json({"phase": "shard", "heartbeat": time.time(), "owner": owner})


def test_stopping_a_run_stops_its_job(client: Client, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    owned(folder, host="elsewhere", pid=7, job="j")
    path = str(folder.root)
    with folder.hold():
        client.end = info("STOPPED", run=path)
        assert status.stop(path, URL) == "j: STOPPED; the same command continues from what is committed"
        client.end = info("STOPPED", run="/another")
        with pytest.raises(ValueError, match=r"the job j that .* names works on /another; give the id of the job"):
            status.stop(path, URL)
    assert status.stop(path).endswith("/mnist: nothing runs; the same command continues from what is committed")
    folder.metrics.write_json({})
    assert status.stop(path).endswith("/mnist: finished; nothing runs")


def test_stopping_a_run_that_is_no_job(folder: RunFolder) -> None:
    path = str(folder.root)
    with folder.hold():
        owned(folder, host="elsewhere", pid=7, job=None)
        with pytest.raises(ValueError, match=r"process 7 on elsewhere, .*; end it there: kill 7"):
            status.stop(path)
        owned(folder, host=platform.node(), pid=os.getppid() + 10**6, job=None)  # it is gone, or is no driver
        with pytest.raises(ValueError, match="cannot be reached from here"):
            status.stop(path)
        code = "import time; time.sleep(60)  # mnist"
        with subprocess.Popen([sys.executable, "-c", code]) as driver:
            owned(folder, host=platform.node(), pid=driver.pid, job=None)
            reap: Callable[[float], None] = lambda seconds: driver.poll() and None  # noqa: E731
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(status.time, "sleep", reap)
                assert status.stop(path) == f"{path}: stopped; the same command continues from what is committed"
            assert driver.wait() == -signal.SIGTERM
