"""Jobs that fail once a Ray runs: one line, the right exit code, nothing half-written."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.support import data_makers as make
from tests.support.cluster import Cluster
from tests.support.command import (
    BIN,
    ROOT,
    environment,
    mnist_ray,
    one_line,
)

pytestmark = pytest.mark.ray


def command(little: Path, storage: Path, name: str) -> list[str | Path]:
    return ["run", "--data", little, "--storage", storage, "--name", name, "--epochs", "2"]


def test_nobody_reads_what_is_said(local_run: tuple[Path, str], little: Path, folder: Path) -> None:
    """`mnist-ray run | head -1`, and a full disk where the log goes."""
    finished = ["run", "--storage", folder, "--name", local_run[0].name]
    for args in (finished, command(little, folder, "unheard")):
        ours, theirs = os.pipe()
        os.close(ours)
        for out, told in ((theirs, "Broken pipe"), (os.open("/dev/full", os.O_WRONLY), "No space left on device")):
            done = subprocess.run(
                [str(BIN / "mnist-ray"), *args], env=environment(folder), cwd=ROOT, stdout=out, stderr=subprocess.PIPE,
                text=True, timeout=60, check=False,
            )  # fmt: skip
            os.close(out)
            assert done.returncode == 1
            assert told in one_line(done.stderr)


@pytest.mark.drill
def test_an_unexpected_error_in_a_train_worker_and_a_closed_stdout(
    cluster: Cluster, little: Path, tmp_path: Path
) -> None:
    words = [
        str(BIN / "mnist-ray"), *command(little, tmp_path, "broken"), "--address", cluster.address,
        "--num-workers", "1", "--max-failures", "0", "--architecture", "tests.support.broken_model:classifier",
    ]  # fmt: skip
    line = f"{shlex.join(map(str, words))} >&-"
    done = subprocess.run(
        line, shell=True, env=cluster.env, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=150, check=False
    )
    log = tmp_path / "broken" / "error.log"
    assert done.returncode == 1
    assert f"training failed: KeyError: 'no such\\nkey'; the full log is {log}" in one_line(done.stderr)
    assert "in on_epoch_begin\n" in log.read_text()
    assert not (tmp_path / "broken" / "failure.json").exists()
    kept = (tmp_path / "broken" / "logs" / "workers" / "train-0.log").read_text()
    assert "in on_epoch_begin\n" in kept
    assert kept.count("on the way to fail") == 1


@pytest.mark.slow
def test_rows_that_are_found_bad_while_sharding(cluster: Cluster, tmp_path: Path) -> None:
    """`unit/test_sharding.py` has other formats."""
    pixels = np.zeros((7, 4, 4))
    pixels[3, 2, 1], pixels[4] = np.nan, -np.inf
    data = make.write_npz(tmp_path / "nan.npz", x_train=pixels)
    args = ("run", "--data", data, "--storage", tmp_path, "--num-shards", "2", "--address", cluster.address)
    done = mnist_ray(*args, env=cluster.env)
    assert done.returncode == 2
    assert "train row 3 has a pixel nan" in one_line(done.stderr)
    assert not (tmp_path / "mnist" / "shards" / "dataset.json").exists()
    assert not list(tmp_path.rglob("*.tmp"))
    assert "failed for good (exit code 2)" in mnist_ray("status", tmp_path / "mnist", env=cluster.env).stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kilobytes", "at"),
    [(300, "shards"), pytest.param(1500, "checkpoints", marks=pytest.mark.drill)],
)
def test_a_storage_that_fills_up(kilobytes: int, at: str, cluster: Cluster, little: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("this user may not mount a tmpfs")
    try:
        args = [*command(little, disk, "full"), "--address", cluster.address, "--max-failures", "0"]
        done = mnist_ray(*args, env=cluster.env)
        assert done.returncode == 1, done.stderr
        assert f"no space left to write {disk}/full/{at}" in one_line(done.stderr)
        assert not list((disk / "full").rglob("*.tmp"))
        assert not (disk / "full" / "metrics.json").exists()
        subprocess.run(["mount", "-o", "remount,size=40m", disk], check=True)
        if at == "checkpoints":
            done = mnist_ray(*args, env=cluster.env)
            assert (done.returncode, done.stderr) == (0, "")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_cluster_that_is_too_small_or_wants_a_token(cluster: Cluster, little: Path, tmp_path: Path) -> None:
    done = mnist_ray(
        *command(little, tmp_path, "wide"), "--num-workers", "5", "--address", cluster.address, env=cluster.env
    )
    assert done.returncode == 1
    told = "5 train workers x 1 CPU = 5 CPUs are needed, but the cluster has 2; use --num-workers 2"
    assert told in one_line(done.stderr)
    assert "--wait-for-resources SECONDS" in done.stderr
    without, given = environment(tmp_path, RAY_ADDRESS=cluster.address), cluster.token["RAY_AUTH_TOKEN"]
    refused, wrong, right = (
        mnist_ray("shard", little, tmp_path / "shards", "--num-shards", "2", env={**without, **token})
        for token in ({}, {"RAY_AUTH_TOKEN": given[::-1]}, {"RAY_AUTH_TOKEN": given})
    )
    for done, told in (
        (refused, "a token; export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"),
        (wrong, "another token than that in RAY_AUTH_TOKEN; export the cluster's token"),
    ):
        assert done.returncode == 2
        assert f"the cluster at {cluster.address} requires {told}" in one_line(done.stderr)
    assert (right.returncode, right.stderr) == (0, "")
