"""A run's folder: whose it is, who may write, what a failure and a heartbeat mean; what `status` and `doctor` say."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from mnist_ray import pipeline
from mnist_ray.config import RunConfig, ScoreConfig, ShardConfig
from mnist_ray.console import Console
from mnist_ray.doctor import examine
from mnist_ray.errors import InputError, RetryableError, TooManyBadImagesError
from mnist_ray.runs import driver
from mnist_ray.runs.folder import PACKAGES, RunFolder
from mnist_ray.runs.progress import ProgressRecord, owner
from mnist_ray.status import status
from mnist_ray.steps import exclusive
from mnist_ray.storage.location import Location
from tests.support.data_makers import write_npz

CONFIG = RunConfig()
PRINT = {"data": "d" * 64, **CONFIG.fingerprint()}
HERE = owner()["host"]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.at(str(tmp_path), "mnist")


def non_local(tmp_path: Path) -> RunFolder:
    (tmp_path / "bucket" / "mnist").mkdir(parents=True)  # an object store needs no folders, this stand-in does
    return RunFolder(Location(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "bucket/mnist", "s3://"))


def claim(folder: RunFolder, *, fresh: bool = False, **changed: Any) -> list[str]:
    return folder.claim(CONFIG, {**PRINT, **changed}, fresh=fresh)


def finish(folder: RunFolder) -> None:
    """As a finished run leaves it."""
    for file in (folder.shards / "dataset.json", folder.model / "model.json", folder.predictions / "_manifest.json",
                 folder.root / "checkpoints" / "step-1.npz", folder.metrics, folder.report):  # fmt: skip
        file.write_json({})


def names(folder: RunFolder) -> set[str]:
    return {each.name for each in folder.root.list()}


def test_a_free_name_is_claimed_and_claimed_again(folder: RunFolder) -> None:
    assert claim(folder) == []
    assert names(folder) == {"config.json", "progress.json"}
    assert folder.config.read_json()["fingerprint"] == PRINT
    assert folder.progress.read_json()["owner"] == {"host": HERE, "pid": os.getpid()}
    assert claim(folder) == []


def test_another_configuration_is_refused_and_what_differs_is_named(folder: RunFolder) -> None:
    claim(folder)
    finish(folder)
    before = {each.name: each.read_bytes() for each in folder.root.list() if each.is_file()}
    with pytest.raises(InputError) as caught:
        claim(folder, seed=9, epochs=2, data="e" * 64)
    assert str(caught.value) == (
        f"the run {folder.root} was made with another configuration (--data dddddddd… -> eeeeeeee…, --epochs 5 -> 2,"
        " --seed 0 -> 9); choose another --name, or --fresh to remove it"
    )
    assert {each.name: each.read_bytes() for each in folder.root.list() if each.is_file()} == before


def test_a_name_under_which_nothing_was_made_yet_is_free_for_another_configuration(folder: RunFolder) -> None:
    claim(folder)
    (folder.shards / "train" / "part-00000.parquet").write_bytes(b"of an attempt that failed")
    claim(folder, seed=9)
    assert folder.config.read_json()["fingerprint"]["seed"] == 9


@pytest.mark.parametrize("place", ["checkpoints", "model", "shards"])
def test_and_not_free_once_something_is(folder: RunFolder, place: str) -> None:
    claim(folder)
    (folder.root / place / "dataset.json").write_json({})
    with pytest.raises(InputError, match="--seed 0 -> 9"):
        claim(folder, seed=9)


def test_more_epochs_of_a_finished_run_go_on_from_its_checkpoints(folder: RunFolder) -> None:
    claim(folder)
    finish(folder)
    assert folder.is_finished(PRINT)
    claim(folder, epochs=6)
    assert names(folder) == {"config.json", "progress.json", "shards", "checkpoints"}
    assert not folder.is_finished({**PRINT, "epochs": 6})
    finish(folder)
    with pytest.raises(InputError, match="--epochs 6 -> 5"):
        claim(folder)


def test_another_version_of_a_package_is_a_warning(folder: RunFolder) -> None:
    claim(folder)
    there = folder.config.read_json()
    there["versions"]["keras"] = "3.0.0"
    folder.config.write_json(there)
    (warning,) = claim(folder)
    assert warning.startswith("keras was 3.0.0 when this run began and is 3.")


def test_fresh_removes_what_is_ours_and_nothing_else(folder: RunFolder) -> None:
    claim(folder)
    finish(folder)
    (folder.root / "notes.txt").write_bytes(b"mine")
    claim(folder, fresh=True, seed=9)
    assert names(folder) == {"config.json", "progress.json", "notes.txt"}
    assert folder.config.read_json()["fingerprint"]["seed"] == 9


@pytest.mark.parametrize(
    "config", [None, "[]", "{}", '{"fingerprint": 1, "versions": {"ray": "2.60.0"}}', "no json", ""]
)
@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_somebody_else_is_left_alone(folder: RunFolder, config: str | None, fresh: bool) -> None:
    (folder.root / "thesis.tex").write_bytes(b"three years")
    if config is not None:
        folder.config.write_bytes(config.encode())
    before = {each.name: each.read_bytes() for each in folder.root.list()}
    with pytest.raises(InputError, match=r"no config\.json of mnist-ray, so it is not a run's folder"), folder.lock():
        pass
    with pytest.raises(InputError, match="use another --name"):
        claim(folder, fresh=fresh)
    assert {each.name: each.read_bytes() for each in folder.root.list()} == before


@pytest.mark.parametrize("kind", [InputError, TooManyBadImagesError])
def test_a_permanent_failure_is_honoured_where_the_manifest_says_so(
    folder: RunFolder, kind: type[InputError], monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(folder)
    folder.mark_failed(kind("row 3 is broken"), PRINT)
    monkeypatch.setenv("MNIST_RAY_HONOUR_FAILURE", "1")
    for fresh in (False, True):
        with pytest.raises(kind, match=r"row 3 is broken .as the attempt before; see .*failure\.json") as caught:
            claim(folder, fresh=fresh)
        assert caught.value.exit_code == kind.exit_code
    claim(folder, seed=9)  # another configuration may succeed
    assert not folder.failure.exists()


@pytest.mark.parametrize("value", [None, "0", ""])
def test_any_other_start_removes_the_mark(
    folder: RunFolder, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(folder)
    folder.mark_failed(InputError("x"), PRINT)
    if value is not None:
        monkeypatch.setenv("MNIST_RAY_HONOUR_FAILURE", value)
    claim(folder)
    assert not folder.failure.exists()


def test_a_second_driver_is_refused_while_the_first_lives(folder: RunFolder) -> None:
    code = (
        "import sys; from mnist_ray.runs.folder import RunFolder\n"
        "with RunFolder.at(sys.argv[1], 'mnist').lock():\n"
        "  print('locked', flush=True); input()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(folder.root.parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "locked\n"
    with pytest.raises(RetryableError, match=f"another mnist-ray is working on {folder.root}; wait"), folder.lock():
        pass
    first.kill()
    first.communicate()
    with folder.lock():
        pass


def test_two_runs_of_one_storage_do_not_meet(tmp_path: Path) -> None:
    first, second = RunFolder.at(str(tmp_path), "a"), RunFolder.at(f"file://{tmp_path}", "b")
    again = RunFolder.at(f"file://{tmp_path}", "a")
    with first.lock(), second.lock(), pytest.raises(RetryableError), again.lock():
        pass


def test_a_storage_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for storage in (str(tmp_path / "file"), "/proc"):
        with pytest.raises(InputError) as caught, RunFolder.at(storage, "mnist").lock():
            pass
        assert "\n" not in str(caught.value)


def test_two_drivers_of_an_output_or_of_shards(tmp_path: Path) -> None:
    """Each ends before it has started a Ray."""
    source, model = write_npz(tmp_path / "data.npz"), tmp_path / "model.keras"
    model.write_bytes(b"any")
    config = ScoreConfig(input=(str(source),), model=str(model), output=str(tmp_path / "out"))
    shards = ShardConfig(source=str(source), destination=str(tmp_path / "shards"))
    tell = Console(io.StringIO())
    for folder, start, remedy in (
        ("out", lambda: pipeline.score(config, tell), "--output"),
        ("shards", lambda: pipeline.shard(shards, tell), "DEST"),
    ):
        said = f"another mnist-ray is working on {tmp_path}/{folder}; wait for it or choose another {remedy}"
        with driver.sole_driver(Location.parse(tmp_path / folder), "") as by_heartbeat:
            assert not by_heartbeat
            with pytest.raises(RetryableError, match=said):
                start()


def test_where_there_are_no_locks_an_output_beats_from_the_start(tmp_path: Path) -> None:
    root = non_local(tmp_path).root
    with exclusive.exclusive_output(root, "") as (place, _):
        assert place == root
        beat = (root / "progress.json").read_json()
        assert (beat["phase"], beat["owner"]) == ("start", owner())
        assert time.time() - beat["heartbeat"] < 60


# Heartbeats, where there are no locks.


def beat(folder: RunFolder, age: float = 0.0, phase: str = "train", **of: Any) -> None:
    folder.progress.write_json({"phase": phase, "owner": of, "heartbeat": time.time() - age})


@pytest.mark.parametrize(
    ("age", "phase", "of"),
    [
        (60, "train", {"host": "elsewhere", "pid": 1}),  # not heard of for long
        (0, "done", {"host": "elsewhere", "pid": 1}),
        (0, "train", {"host": HERE, "pid": 2**22 + 1}),  # dead, as this host knows
        (0, "train", owner()),  # an attempt of this very process
    ],
)
def test_a_dead_driver_is_taken_over_at_once(
    tmp_path: Path, age: float, phase: str, of: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = non_local(tmp_path)
    folder.config.write_json({"fingerprint": PRINT, "versions": {"ray": "2.60.0"}})
    beat(folder, age, phase, **of)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waited"))
    with folder.lock():
        pass


@pytest.mark.parametrize("of", [{"host": "elsewhere", "pid": 7}, {"host": HERE, "pid": os.getppid()}])
def test_a_living_driver_is_waited_for_then_refused(
    tmp_path: Path, of: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = non_local(tmp_path)
    folder.config.write_json({"fingerprint": PRINT, "versions": {"ray": "2.60.0"}})
    monkeypatch.setattr(driver, "FOREIGN_DRIVER_SECONDS", 0.3)
    monkeypatch.setattr(driver, "HEARTBEAT_SECONDS", 0.05)
    beat(folder, **of)
    with (
        pytest.raises(RetryableError, match=f"process {of['pid']} on {of['host']}. is working on s3://"),
        folder.lock(),
    ):
        pass


def test_a_driver_that_ends_meanwhile_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = non_local(tmp_path)
    folder.config.write_json({"fingerprint": PRINT, "versions": {"ray": "2.60.0"}})
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        beat(folder, phase="done", host="elsewhere", pid=7)

    beat(folder, host="elsewhere", pid=7)
    monkeypatch.setattr(time, "sleep", sleep)
    with folder.lock():
        pass
    assert len(waits) == 1


def test_the_record_beats_until_the_workers_keep_it(folder: RunFolder) -> None:
    claim(folder)
    record = ProgressRecord(folder.progress, owner(), interval=0.01, until="train")
    record.update(phase="shard", done=3, total=9)
    deadline = time.monotonic() + 5
    while folder.progress.read_json()["phase"] != "shard":
        assert time.monotonic() < deadline
    first = folder.progress.read_json()["heartbeat"]
    while folder.progress.read_json()["heartbeat"] == first:
        assert time.monotonic() < deadline
    while record._thread.is_alive():
        beat(folder, phase="train", host="worker", pid=1)
        assert time.monotonic() < deadline
    assert folder.progress.read_json()["owner"] == {"host": "worker", "pid": 1}
    record.leave()


# What `status` and `doctor` say.


def test_status_of_each_state(folder: RunFolder) -> None:
    path = str(folder.root)
    with pytest.raises(InputError, match="is not a run's folder"):
        status(path)
    claim(folder)
    assert status(path).startswith(f"{path}: start, last update ")
    now = {"owner": {"host": "elsewhere", "pid": 1}, "heartbeat": time.time()}
    folder.progress.write_json({"phase": "shard", "done": 1200, "total": 96000, **now})
    assert status(path) == f"{path}: shard, 1,200 of 96,000, last update 0 s ago"
    told = {"phase": "train", "done": 640, "total": 2000, "per_second": 1234, "epoch": 1, "loss": 0.5, "accuracy": 0.75}
    folder.progress.write_json({**told, **now})
    line = "train, 640 of 2,000, 1 epoch finished, loss 0.5000, accuracy 0.7500, 1,234 images/s, last update 0 s ago"
    assert status(path) == f"{path}: {line}"
    folder.progress.write_json({**told, "owner": {"host": HERE, "pid": 2**22 + 1}, "heartbeat": time.time()})
    assert status(path) == f"{path}: {line}: its driver has ended; run it again to continue"
    folder.progress.write_json({**told, **now, "heartbeat": time.time() - 100})
    assert status(path).endswith("last update 100 s ago: its driver has ended; run it again to continue")
    folder.mark_failed(InputError("row 3 is broken"), PRINT)
    assert status(path) == f"{path}: failed for good (exit code 2): row 3 is broken"
    folder.metrics.write_json({"after": {"accuracy": 0.98, "num_correct": 98, "num_seen": 100}})
    assert status(path) == f"{path}: finished. accuracy 0.9800, 98 of 100"


@pytest.mark.parametrize("file", ["metrics.json", "failure.json", "progress.json"])
@pytest.mark.parametrize("content", ["[]", '{"after": 1}', "{", "null", '"x"', ""])
def test_status_of_what_somebody_else_wrote(folder: RunFolder, file: str, content: str) -> None:
    (folder.root / file).write_bytes(content.encode())
    with pytest.raises(InputError, match=file if content in ("{", "") else "mnist-ray did not write"):
        status(str(folder.root))


def test_doctor_finds_a_sound_machine_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = list(examine(None, str(tmp_path / "a" / "b" / "storage")))
    assert [line.split(" ")[0].rstrip(":") for _, line in found] == ["python", "packages", "machine", "storage"]
    assert found[0][0]
    assert found[1][0]
    assert found[3] == (True, f"storage: {tmp_path}/a/b/storage is writable")
    assert list(tmp_path.iterdir()) == []


def test_doctor_names_what_would_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "file").write_text("x")
    *_, storage, cluster = examine("127.0.0.1:1", str(tmp_path / "file" / "storage"))
    assert not storage[0]
    assert f"cannot write {tmp_path}/file/storage/" in storage[1] or "cannot make the folder" in storage[1]
    assert not cluster[0]
    assert cluster[1].startswith("cluster: nothing listens at 127.0.0.1:1 ")


def test_an_unreadable_result_does_not_stop_a_mark(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that fails at the end must not hide the failure that it is told of."""

    def refuse(*_: Any) -> None:
        raise RetryableError("no space left")

    monkeypatch.setattr(Location, "write_json", refuse)
    folder.mark_failed(InputError("the first error"), PRINT)


def test_the_config_is_what_a_person_can_read(folder: RunFolder) -> None:
    claim(folder)
    there = json.loads(Path(folder.config.path).read_text())
    assert there["config"]["batch_size"] == 64
    assert set(there["versions"]) == set(PACKAGES)
