"""With `--log-format json`, each line is an object, warnings and errors among them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from mnist_ray import pipeline
from mnist_ray.errors import Interrupted
from tests.support.command import called
from tests.support.data_makers import write_npz


def lines(text: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in text.splitlines()]
    assert all(each.pop("time").endswith("Z") for each in found)
    return found


@pytest.mark.parametrize("given", ["flag", "variable", "file"])
def test_an_option_that_is_wrong(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However the format was asked for, and before anything is known of the run."""
    (tmp_path / "run.toml").write_text("log_format = 'json'")
    words = {"flag": ["--log-format", "json"], "variable": [], "file": ["--config", str(tmp_path / "run.toml")]}[given]
    if given == "variable":
        monkeypatch.setenv("MNIST_RAY_RUN_LOG_FORMAT", "json")
    code, out, err = called(capsys, "run", "--epochs", "0", *words)
    assert (code, out) == (2, "")
    message = "--epochs must be at least 1, not 0"
    assert lines(err) == [{"level": "error", "run": None, "phase": None, "message": message, "exit_code": 2}]


def test_an_input_that_is_wrong_is_told_with_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, output = write_npz(tmp_path / "a.npz"), tmp_path / "out"
    words = ("score", str(data), "--model", str(tmp_path / "m.keras"), "--output", str(output))
    code, out, err = called(capsys, *words, "--log-format", "json")
    assert (code, out) == (2, "")
    (told,) = lines(err)
    assert told.pop("message").startswith(f"{tmp_path}/m.keras does not exist")
    assert told == {"level": "error", "run": str(output), "phase": "start", "exit_code": 2}


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (ValueError("odd"), "unexpected ValueError: odd; the full log is ", 1),
        (Interrupted("interrupted; nothing is left"), "interrupted; nothing is left", 130),
        (KeyboardInterrupt(), "interrupted", 130),
    ],
)
def test_what_nobody_foresaw(
    error: BaseException, message: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(pipeline, "run", fail)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended, out, err = called(capsys, "run", "--log-format", "json", "--storage", "/s")
    assert (ended, out) == (code, "")
    (told,) = lines(err)
    assert told.pop("message").startswith(message)
    assert told == {"level": "error", "run": "/s/mnist", "phase": "start", "exit_code": code}


def test_a_warning_before_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "csv.py").touch()
    code, _, err = called(capsys, "run", "--log-format", "json", "--epochs", "0")
    warning, error = lines(err)
    assert (code, warning["level"], error["level"]) == (2, "warning", "error")
    assert "csv.py" in warning["message"]


def test_a_command_line_that_cannot_be_read_is_answered_in_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert called(capsys, "run", "--log-format", "json", "--epoch", "0") == (
        2, "", "mnist-ray: there is no option --epoch; did you mean --epochs?\n"
    )  # fmt: skip
