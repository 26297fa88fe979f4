"""What this machine gives: CPUs by affinity and quota, and a folder that sockets fit in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mnist_ray.cluster import machine
from mnist_ray.cluster.machine import check_temporary_folder, num_cpus
from mnist_ray.collective import forming
from mnist_ray.errors import SetupError
from tests.support import data_makers as make

V1, V2 = "sys/fs/cgroup/cpu", "sys/fs/cgroup"


def quota_files(version: str, folder: str, quota: str, period: int = 100_000) -> dict[str, str]:
    """What the kernel shows of a cgroup with a quota in microseconds."""
    if version == V2:
        return {f"{V2}/{folder}/cpu.max": f"{quota} {period}\n"}
    return {
        f"{V1}/{folder}/cpu.cfs_quota_us": f"{'-1' if quota == 'max' else quota}\n",
        f"{V1}/{folder}/cpu.cfs_period_us": f"{period}\n",
    }


def system(root: Path, cgroups: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": cgroups, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


IN_A_CONTAINER = {V1: "4:memory:/\n1:cpu,cpuacct:/\n0::/\n", V2: "0::/\n"}
BELOW_A_SLICE = {V1: "1:cpu,cpuacct:/user.slice/job\n", V2: "0::/user.slice/job\n"}
NAMED_BY_THE_HOST = {V1: "1:cpu,cpuacct:/docker/4f3a\n", V2: "0::/../../docker/4f3a\n"}


@pytest.mark.parametrize("version", [V1, V2])
@pytest.mark.parametrize(
    ("cgroups", "folder"),
    [(IN_A_CONTAINER, "."), (BELOW_A_SLICE, "user.slice/job"), (BELOW_A_SLICE, "user.slice"), (NAMED_BY_THE_HOST, ".")],
)
@pytest.mark.parametrize(("quota", "cpus"), [("max", 4), ("100000", 1), ("250000", 2), ("50000", 1), ("900000", 4)])
def test_a_containers_quota_counts(
    version: str, cgroups: dict[str, str], folder: str, quota: str, cpus: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert num_cpus(system(tmp_path, cgroups[version], quota_files(version, folder, quota))) == cpus


@pytest.mark.parametrize("version", [V1, V2])
@pytest.mark.parametrize(("quota", "cpus"), [("max", 4), ("100000", 1), ("250000", 2), ("50000", 1), ("900000", 4)])
def test_the_ring_counts_alike(
    version: str, quota: str, cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    root = system(tmp_path, "", quota_files(version, ".", quota))
    assert forming._num_cores(root / "sys/fs/cgroup") == cpus


def test_the_smallest_quota_on_the_way_up_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {*range(8)})
    files = quota_files(V2, "a", "300000") | quota_files(V2, "a/b", "700000") | quota_files(V2, "c", "100000")
    assert num_cpus(system(tmp_path, "0::/a/b\n", files)) == 3


@pytest.mark.parametrize("text", ["", "max\n", "soon 100000\n", "100000 0\n"])
def test_what_is_not_a_quota_is_none(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    assert num_cpus(system(tmp_path, "0::/\n", {f"{V2}/cpu.max": text})) == 3
    assert num_cpus(tmp_path / "none") == 3


def test_a_quota_that_the_kernel_keeps() -> None:
    cgroup = Path("/sys/fs/cgroup/cpu", f"mnist-ray-test-{os.getpid()}")
    try:
        cgroup.mkdir()
        (cgroup / "cpu.cfs_quota_us").write_text("100000")
    except OSError:
        pytest.skip("this user may not make a cgroup (v1)")
    code = (
        f"import os; open({str(cgroup / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
        "from mnist_ray.cluster.machine import num_cpus; print(num_cpus())"
    )
    try:
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"1\n"
    finally:
        cgroup.rmdir()


def test_two_workers_do_not_fit_on_one_cpu_of_two(
    call: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_quotas", lambda root: [1.0])
    data = make.write_idx(tmp_path / "idx")
    code, line = call("run", "--data", data, "--storage", tmp_path / "made", "--num-workers", "2")
    assert code == 2
    assert "2 train workers x 1 CPU = 2 CPUs are needed, but this machine has 1" in line


# The folder of Ray's files and sockets.


@pytest.fixture(params=["RAY_TMPDIR", "TMPDIR"])
def variable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The one that says where Ray's files go."""
    monkeypatch.delenv("RAY_TMPDIR")
    return str(request.param)


def test_a_path_too_long_for_a_socket(
    variable: str, call: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, long = make.write_idx(tmp_path / "idx"), tmp_path / ("d" * 60)
    monkeypatch.setenv(variable, str(long))
    for command in (
        ("run", "--data", data, "--storage", tmp_path / "made"),
        ("shard", data, tmp_path / "made"),
    ):
        code, line = call(*command)
        assert code == 2
        assert f"Ray's temporary folder {long}/ray (from {variable}) has a path of " in line
        assert "export RAY_TMPDIR=/tmp or another short path (see docs/clusters.md#temporary-files)" in line
    assert not (tmp_path / "made").exists()
    assert not long.exists()


def test_the_longest_path_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own limit, of 107 bytes, with a process id of seven digits."""
    for length, fits in ((43, True), (44, False)):
        folder = "/tmp/" + "d" * (length - len("/tmp//ray"))
        monkeypatch.setenv("RAY_TMPDIR", folder)
        socket = f"{folder}/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
        assert (len(socket) <= 107) is fits
        if fits:
            check_temporary_folder()
        else:
            with pytest.raises(SetupError, match="has a path of 44 bytes, and more than 43 are too long"):
                check_temporary_folder()


def test_a_folder_of_another_user(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Path(os.environ["TMPDIR"]) / "u"
    (short / "ray").mkdir(parents=True)
    monkeypatch.setenv(variable, str(short))
    check_temporary_folder()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != short / "ray")  # root may write anywhere
    with pytest.raises(SetupError) as raised:
        check_temporary_folder()
    (short / "ray").rmdir()
    short.rmdir()
    owner = f"{short}/ray belongs to the user {short.parent.owner()}"
    assert str(raised.value) == (
        f"Ray's temporary folder {short}/ray (from {variable}) cannot be written: {owner}; export RAY_TMPDIR to a short"
        " path of your own"
    )


def test_a_file_where_the_folder_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null")
    with pytest.raises(SetupError, match="/dev/null is not a folder; export RAY_TMPDIR"):
        check_temporary_folder()
