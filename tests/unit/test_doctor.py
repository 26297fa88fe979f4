"""What `doctor` finds here: each broken set-up is broken for real, unless its name says otherwise."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from mnist_ray import doctor
from mnist_ray.cluster import upload
from mnist_ray.cluster.dashboard import Dashboard
from mnist_ray.doctor import Finding, Setup, examine
from tests.support.http_server import http_server
from tests.support.s3_server import settings
from tests.unit.cluster.test_jobs import Client, info


@pytest.fixture(autouse=True)
def is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def kinds(found: list[Finding]) -> list[str]:
    return [f"{level} {line.split(' ')[0].rstrip(':')}" for level, line in found]


def test_a_sound_machine_and_nothing_is_left(tmp_path: Path) -> None:
    found = list(examine(Setup(storage=str(tmp_path / "a" / "b" / "storage"), num_workers=1)))
    assert kinds(found) == ["ok python", "ok packages", "ok machine", "ok storage"]
    assert found[3].line == f"storage: {tmp_path}/a/b/storage can be written, read and renamed in"
    assert list(tmp_path.iterdir()) == []


@contextmanager
def as_user(user: int) -> Iterator[None]:
    if os.geteuid():
        pytest.skip("only root can become another user")
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


class Broken:
    """The set-ups, by name: what is done to the machine, and what is asked then."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, opened: ExitStack) -> None:
        self.folder, self.patch, self.opened = folder, patch, opened

    def a_python_that_tensorflow_lacks__faked(self) -> Setup:
        self.patch.setattr(doctor.sys, "version_info", (3, 14, 0))
        return Setup()

    def a_package_that_is_missing__faked(self) -> Setup:
        def version(package: str) -> str:
            if package == "keras":
                raise PackageNotFoundError
            return "1"

        self.patch.setattr(doctor, "version", version)
        return Setup()

    def a_file_in_place_of_a_package(self) -> Setup:
        (self.folder / "tensorflow.py").touch()
        self.patch.chdir(self.folder)
        return Setup()

    def a_temporary_folder_too_long_for_sockets(self) -> Setup:
        self.patch.setenv("RAY_TMPDIR", f"/tmp/{'d' * 60}")
        return Setup()

    def shared_memory_that_is_too_small__faked(self) -> Setup:
        self.patch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=64 << 20, total=1))
        return Setup()

    def more_workers_than_cpus(self) -> Setup:
        return Setup(num_workers=500, cpus_per_worker=2)

    def a_storage_below_a_file(self) -> Setup:
        (self.folder / "file").write_text("x")
        return Setup(storage=str(self.folder / "file" / "storage"))

    def a_full_disk__faked(self) -> Setup:
        disk = shutil.disk_usage
        almost = SimpleNamespace(free=5 << 20, total=1)
        self.patch.setattr(doctor.shutil, "disk_usage", lambda path: disk(path) if path == "/dev/shm" else almost)
        return Setup(num_workers=1)

    def credentials_that_the_store_refuses(self) -> Setup:
        return self._store(b"InvalidAccessKeyId")

    def rights_that_the_store_refuses(self) -> Setup:
        return self._store(b"AccessDenied")

    def _store(self, code: bytes) -> Setup:
        error = b"<?xml version='1.0'?><Error><Code>" + code + b"</Code><Message>no</Message></Error>"
        url = self.opened.enter_context(http_server({}, otherwise=(403, error)))
        for name, value in settings(int(url.rpartition(":")[2])).items():
            self.patch.setenv(name, value)
        return Setup(storage="s3://bucket/runs")

    def an_upload_that_is_too_large(self) -> Setup:
        (self.folder / "big.bin").write_bytes(b"x" * 3000)
        self.patch.setattr(upload.ray_private, "upload_limit", lambda: 2048)
        return Setup(working_dir=str(self.folder))

    def an_upload_that_replaces_a_package(self) -> Setup:
        (self.folder / "keras.py").touch()
        return Setup(working_dir=str(self.folder))

    def an_upload_that_is_no_folder(self) -> Setup:
        return Setup(working_dir=str(self.folder / "nowhere"))

    def an_address_where_nobody_listens(self) -> Setup:
        return Setup(address="127.0.0.1:1")

    def an_address_that_is_none(self) -> Setup:
        return Setup(address="ray-head")

    def a_dashboard_that_is_not_up(self) -> Setup:
        return Setup(address="http://127.0.0.1:1")


EXPECTED = {
    "a_python_that_tensorflow_lacks__faked": "; TensorFlow needs 3.11 to 3.13",
    "a_package_that_is_missing__faked": "packages: keras not installed; `make setup` installs",
    "a_file_in_place_of_a_package": "packages: Python would import tensorflow.py in ",
    "a_temporary_folder_too_long_for_sockets": "machine: Ray's temporary folder /tmp/dddd",
    "shared_memory_that_is_too_small__faked": "machine: /dev/shm has 64 MiB free; Ray needs 256 MiB",
    "more_workers_than_cpus": "machine: 500 train workers x 2 CPU = 1000 CPUs are needed, but this machine has ",
    "a_storage_below_a_file": "storage: cannot ",
    "a_full_disk__faked": " has 5 MiB free; choose another --storage",
    "credentials_that_the_store_refuses": "; correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "rights_that_the_store_refuses": "or correct the path or its permissions",
    "an_upload_that_is_too_large": "the largest files are big.bin (2.9 KiB): name them in a .rayignore",
    "an_upload_that_replaces_a_package": "upload: Python would import keras.py in ",
    "an_upload_that_is_no_folder": "/nowhere is not a folder",
    "an_address_where_nobody_listens": "cluster: nothing listens at 127.0.0.1:1 ",
    "an_address_that_is_none": "cluster: --address must be auto, HOST:PORT or ray://HOST:PORT, not 'ray-head'",
    "a_dashboard_that_is_not_up": "cluster: no Ray dashboard answers at http://127.0.0.1:1 (Connection refused)",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_broken_set_up_is_found_in_seconds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as opened:
        setup: Setup = getattr(Broken(tmp_path, monkeypatch, opened), name)()
        if setup.storage == Setup.storage:
            setup = replace(setup, storage=str(tmp_path / "runs"))
        began = time.process_time()  # which a busy machine does not stretch
        failed = [line for level, line in examine(setup) if level == "FAIL"]
        assert time.process_time() - began < 5
    assert [line for line in failed if EXPECTED[name] in line], failed
    assert not [line for line in failed if "\n" in line]
    assert not (tmp_path / "runs").exists()


def test_a_storage_that_user_1000_cannot_write(tmp_path: Path) -> None:
    """As the root of a plain NFS export."""
    storage = tmp_path / "export"
    for folder in [storage, *storage.parents]:
        if folder.is_relative_to("/tmp/"):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o755)
    with as_user(1000):
        found = list(examine(Setup(storage=str(storage / "runs"), num_workers=1)))
    assert found[-1].level == "FAIL"
    assert f"cannot make the folder {storage}/runs: " in found[-1].line
    assert "(this process is user 1000, the folder belongs to user 0, mode 755;" in found[-1].line
    assert "chown 1000" in found[-1].line


def told(log: list[str], code: int, monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What is found from a dashboard whose job logs so."""
    import ray

    client = Client(log, [len(log)], info("SUCCEEDED" if code == 0 else "FAILED", code))
    reached = Dashboard("http://h:8265", ray.__version__, False, client)
    monkeypatch.setattr("mnist_ray.cluster.dashboard.reach", lambda url: reached)
    found = list(examine(Setup(address="http://h:8265", storage="s3://b/runs", num_workers=3, working_dir=None)))
    assert client.submitted["entrypoint"] == (
        "python -m mnist_ray doctor --address auto --storage s3://b/runs --num-workers 3 --cpus-per-worker 1.0"
    )
    return found[2:]


def test_from_a_dashboard_a_job_examines_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    log = ["noise\nok    python 3.11.7\n", "FAIL  storage: no\nwarn  clock: 6 s\n"]
    cluster, token, *nodes = told(log, 1, monkeypatch)
    assert cluster == Finding("ok", "cluster: http://h:8265, Ray 2.60.0")
    assert token.level == "warn"
    assert token.line.startswith("token: http://h:8265 requires none, so whoever reaches it runs code there")
    assert nodes == [
        ("ok", "in a job: python 3.11.7"),
        ("FAIL", "in a job: storage: no"),
        ("warn", "in a job: clock: 6 s"),
    ]


def test_a_job_that_cannot_examine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(["No module named mnist_ray\n"], 1, monkeypatch)[-1].line.startswith(
        "cluster: job j: the cluster's Python has no mnist_ray; give the nodes an image that has it"
    )
    assert told(["Killed\n"], 137, monkeypatch)[-1] == Finding(
        "FAIL", "job: j ended with exit code 137 and reported nothing; see mnist-ray logs j --address http://h:8265"
    )
    found = list(examine(Setup(address="http://h:8265")))
    assert found[-1].line.startswith("cluster: --storage ./storage is a relative path")
