"""A run's folder: whose it is, who may write, what a failure and a heartbeat mean; what `status` and `doctor` say."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.errors import (
    DivergedError,
    InputError,
    LeaseLostError,
    RetryableError,
    SetupError,
    TooManyBadImagesError,
    UserError,
)
from mnist_ray.runs.folder import PACKAGES, RunFolder
from mnist_ray.storage.location import Location
from tests.support.run_folders import HERE, PRINT, finish, names, prepare


def test_a_free_name_is_taken_and_taken_again(folder: RunFolder) -> None:
    assert prepare(folder) == []
    assert names(folder) == {"config.json", "progress.json"}
    assert folder.config.read_json()["fingerprint"] == PRINT
    assert folder.progress.read_json()["owner"] == {"host": HERE, "pid": os.getpid(), "job": None}
    assert prepare(folder) == []


def test_another_configuration_is_refused_and_what_differs_is_named(folder: RunFolder) -> None:
    prepare(folder)
    finish(folder)
    before = {each.name: each.read_bytes() for each in folder.root.list() if each.is_file()}
    with pytest.raises(InputError) as caught:
        prepare(folder, seed=9, epochs=2, data="e" * 64)
    assert str(caught.value) == (
        f"the run {folder.root} was made with another configuration (--data dddddddd… -> eeeeeeee…, --epochs 5 -> 2,"
        " --seed 0 -> 9); choose another --name, or --fresh to remove it"
    )
    assert {each.name: each.read_bytes() for each in folder.root.list() if each.is_file()} == before


def test_changed_code_is_another_configuration(folder: RunFolder) -> None:
    prepare(folder, code="a" * 64)
    finish(folder)
    with pytest.raises(InputError, match=r"\(the code of --architecture aaaaaaaa… -> bbbbbbbb…\); choose another"):
        prepare(folder, code="b" * 64)


def test_a_name_under_which_nothing_was_made_yet_is_free_for_another_configuration(folder: RunFolder) -> None:
    prepare(folder)
    (folder.shards / "train" / "part-00000.parquet").write_bytes(b"of an attempt that failed")
    prepare(folder, seed=9)
    assert folder.config.read_json()["fingerprint"]["seed"] == 9


@pytest.mark.parametrize("place", ["checkpoints", "model", "shards"])
def test_and_not_free_once_something_is(folder: RunFolder, place: str) -> None:
    prepare(folder)
    (folder.root / place / "dataset.json").write_json({})
    with pytest.raises(InputError, match="--seed 0 -> 9"):
        prepare(folder, seed=9)


def test_more_epochs_of_a_finished_run_go_on_from_its_checkpoints(folder: RunFolder) -> None:
    prepare(folder)
    finish(folder)
    assert folder.is_finished(PRINT)
    prepare(folder, epochs=6)
    assert names(folder) == {"config.json", "progress.json", "shards", "checkpoints", "tensorboard", "mlflow.json"}
    assert not folder.is_finished({**PRINT, "epochs": 6})
    finish(folder)
    with pytest.raises(InputError, match="--epochs 6 -> 5"):
        prepare(folder)


def test_another_version_of_a_package_is_a_warning(folder: RunFolder) -> None:
    prepare(folder)
    there = folder.config.read_json()
    there["versions"]["keras"] = "3.0.0"
    folder.config.write_json(there)
    (warning,) = prepare(folder)
    assert warning.startswith("keras was 3.0.0 when this run began and is 3.")


def test_fresh_removes_what_is_ours_and_nothing_else(folder: RunFolder) -> None:
    prepare(folder)
    finish(folder)
    (folder.root / "notes.txt").write_bytes(b"mine")
    prepare(folder, fresh=True, seed=9)
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
    with pytest.raises(InputError, match=r"no config\.json of mnist-ray, so it is not a run's folder"), folder.hold():
        pass
    with pytest.raises(InputError, match="use another --name"):
        prepare(folder, fresh=fresh)
    assert {each.name: each.read_bytes() for each in folder.root.list()} == before


JOB = "MNIST_RAY_JOB_UID"


@pytest.mark.parametrize("kind", [InputError, TooManyBadImagesError])
def test_another_attempt_of_the_same_job_ends_as_the_one_before(
    folder: RunFolder, kind: type[InputError], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(folder)
    monkeypatch.setenv(JOB, "uid-1")
    folder.mark_failed(kind("row 3 is broken"), PRINT)
    for fresh in (False, True):
        with pytest.raises(kind, match=r"row 3 is broken .as the attempt before; see .*failure\.json") as caught:
            prepare(folder, fresh=fresh)
        assert caught.value.exit_code == kind.exit_code
    prepare(folder, seed=9)  # another configuration may succeed
    assert not folder.failure.exists()


@pytest.mark.parametrize(("marked", "started"), [(None, None), ("", ""), ("1", None), (None, "1"), ("1", "2")])
def test_any_other_start_removes_the_mark(
    folder: RunFolder, marked: str | None, started: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that somebody has started anew, perhaps with a corrected image, or a person at a terminal."""
    prepare(folder)
    for value in (marked, started):
        if value is None:
            monkeypatch.delenv(JOB, raising=False)
        else:
            monkeypatch.setenv(JOB, value)
        if value is marked:
            folder.mark_failed(InputError("x"), PRINT)
            assert folder.failure.exists()
    prepare(folder)
    assert not folder.failure.exists()


def test_a_mark_of_an_older_version_names_no_job(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(folder)
    folder.failure.write_json({"exit_code": 2, "message": "x", "fingerprint": PRINT})
    monkeypatch.setenv(JOB, "uid-1")
    prepare(folder)
    assert not folder.failure.exists()


@pytest.mark.parametrize(
    "error",
    [SetupError("requires a token"), RetryableError("no space left"), DivergedError("x"), LeaseLostError("x")],
)
def test_what_is_not_the_fault_of_input_or_options_leaves_no_mark(folder: RunFolder, error: UserError) -> None:
    prepare(folder)
    folder.mark_failed(error, PRINT)
    assert not folder.failure.exists()


def test_a_storage_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for storage in (str(tmp_path / "file"), "/proc"):
        with pytest.raises(SetupError) as caught, RunFolder.at(storage, "mnist").hold():
            pass
        assert "\n" not in str(caught.value)


def test_an_unreadable_result_does_not_stop_a_mark(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that fails at the end must not hide the failure that it is told of."""

    def refuse(*_: Any) -> None:
        raise RetryableError("no space left")

    monkeypatch.setattr(Location, "write_json", refuse)
    folder.mark_failed(InputError("the first error"), PRINT)


def test_the_config_is_what_a_person_can_read(folder: RunFolder) -> None:
    prepare(folder)
    there = json.loads(Path(folder.config.path).read_text())
    assert there["config"]["batch_size"] == 64
    assert set(there["versions"]) == set(PACKAGES)
