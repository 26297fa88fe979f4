"""Whatever nobody foresaw: one line, a log in the run's folder, and nothing else that changes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from mnist_ray.config import RunConfig
from mnist_ray.console import Console
from mnist_ray.errors import InputError, LeaseLostError, RetryableError, UnexpectedError
from mnist_ray.runs.crash import explained, explaining
from mnist_ray.runs.driver import hold
from mnist_ray.runs.folder import RunFolder
from mnist_ray.steps.exclusive import hold_output, hold_run
from mnist_ray.storage import fence
from mnist_ray.storage.location import Location
from tests.support.command import called, one_line
from tests.support.data_makers import write_npz
from tests.support.models import RECIPE
from tests.support.run_folders import CONFIG, PRINT, finish, non_local


@pytest.fixture
def quiet() -> Console:
    return Console(io.StringIO())


@pytest.mark.parametrize("is_local", [True, False])
def test_the_log_lies_in_the_runs_folder(is_local: bool, tmp_path: Path, quiet: Console) -> None:
    folder = RunFolder.at(str(tmp_path), "mnist") if is_local else non_local(tmp_path)
    log = folder.root / "error.log"
    with (
        pytest.raises(UnexpectedError) as raised,
        hold_run(folder, CONFIG, PRINT, RECIPE, quiet),
    ):
        {}["no such key"]
    assert str(raised.value) == f"unexpected KeyError: 'no such key'; the full log is {log}"
    assert raised.value.exit_code == 1
    assert isinstance(raised.value.__cause__, KeyError)
    assert b'{}["no such key"]\n' in log.read_bytes()
    assert not folder.failure.exists()
    with hold_run(folder, CONFIG, PRINT, RECIPE, quiet):
        assert not log.exists()  # it was of the attempt before


def test_of_an_output_as_well_and_it_may_be_replaced(tmp_path: Path) -> None:
    output = Location.parse(tmp_path / "out")
    with pytest.raises(UnexpectedError, match=f"{output}/error.log"), hold_output(output, "", Console()):
        raise ZeroDivisionError
    assert (output / "error.log").exists()
    from mnist_ray.predictions.plan import is_ours

    assert is_ours("error.log")


def test_while_the_summary_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(write_npz(tmp_path / "data.npz", 60, 10))
    config = RunConfig(data=data, storage=str(tmp_path))
    folder = RunFolder.at(str(tmp_path), "mnist")
    from mnist_ray.sources.open import open_source

    folder.prepare(config, {"data": open_source(data).digest(), **config.fingerprint()}, fresh=False)
    finish(folder)
    epoch = {"epoch": 1, "loss": 0.5, "accuracy": 0.5, "seconds": 1.0, "images_per_second": 1.0}
    train = {"epochs": [epoch], "num_workers": 2, "batch_size": 64, "milliseconds_per_step": 1.0}
    folder.metrics.write_json({"train": train, "seconds": {"total": 1.0}})

    def fail(*arguments: object) -> None:
        raise TypeError("unsupported format string")

    monkeypatch.setattr("mnist_ray.steps.result.print_result", fail)
    code, _, err = called(capsys, "run", "--data", data, "--storage", tmp_path)
    assert code == 1, err
    line = f"unexpected TypeError: unsupported format string; the full log is {folder.root}/error.log"
    assert line in one_line(err)
    assert "in show_finished" in (folder.root / "error.log").read_bytes().decode()
    assert folder.metrics.exists()


def test_an_error_of_the_job_is_not_one_of_the_folders_lock(tmp_path: Path) -> None:
    """To call it "cannot write FOLDER" would send the user the wrong way, and end retries that may help."""
    with (
        pytest.raises(FileNotFoundError, match="plasma_store"),
        hold(Location.parse(tmp_path / "run"), ""),
    ):
        raise FileNotFoundError(2, "No such file or directory", "plasma_store")


@pytest.mark.parametrize("known", [InputError("x"), RetryableError("x"), LeaseLostError("x")])
def test_what_a_user_can_act_on_stays_as_it_is(known: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(known)) as raised, explaining(Location.parse(tmp_path)):
        raise known
    assert raised.value is known
    assert list(tmp_path.iterdir()) == []


def test_a_log_is_written_once(tmp_path: Path) -> None:
    first = explained(KeyError("x"), Location.parse(tmp_path))
    assert explained(first) is first
    training = explained(UnexpectedError("training failed: KeyError: 'x'"), Location.parse(tmp_path))
    assert str(training) == f"training failed: KeyError: 'x'; the full log is {tmp_path}/error.log"


def test_a_driver_that_lost_its_lease_writes_no_log_into_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost() -> None:
        raise LeaseLostError("another driver has taken over")

    (tmp_path / "t").mkdir()
    (tmp_path / "run").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    monkeypatch.setattr(fence, "check", lost)
    known = explained(KeyError("x"), Location.parse(tmp_path / "run"))
    assert f"the full log is {tmp_path}/t/mnist-ray-" in str(known)
    assert list((tmp_path / "run").iterdir()) == []
