"""The command line as a user meets it: exit code and the full output, without a cluster."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mnist_ray import cli
from mnist_ray.config import DATA_FORMATS, RunConfig, accepted_data
from mnist_ray.errors import DivergedError, InputError
from mnist_ray.options import Group
from tests.support.command import ROOT, one_line
from tests.support.command import called as call
from tests.support.output_maker import make_output

COMMANDS = ["run", "shard", "train", "score", "report", "verify", "status", "submit", "doctor"]
WITH_DATA = {"run": "--data", "shard": "SRC", "score": "INPUT..."}


def test_help_everywhere_without_heavy_imports() -> None:
    code = (
        "import sys; from mnist_ray.cli import cli\n"
        f"for words in {[[], *([name] for name in COMMANDS)]!r}:\n"
        "    try: cli([*words, '--help'])\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "heavy = {'tensorflow', 'keras', 'ray', 'pyarrow', 'numpy', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage:") == 1 + len(COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoch", "2"], "No such option '--epoch'. (Did you mean one of: '--epochs', "),
        (["--epochs", "0"], "--epochs must be at least 1, not 0"),
        (["--dropout", "1"], "--dropout must be less than 1, not 1.0"),
        (["--learning-rate", "nan"], "--learning-rate must be more than 0, not nan"),
        (["--learning-rate", "inf"], "--learning-rate must be finite, not inf"),
        (["--num-workers", "4:2"], "--num-workers needs 1 <= MIN <= MAX, not '4:2'"),
        (["--num-workers", "two"], "--num-workers must be N or MIN:MAX, not 'two'"),
        (["--name", "../up"], "--name must be letters, digits, '-', '_' and '.', not '../up'"),
        (["--precision", "float16"], "'float16' is not one of 'float64', 'float32', 'bfloat16'."),
        (["surplus"], "Got unexpected extra argument (surplus)"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, "run", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("mnist-ray: ")
    assert err.count("\n") == 1


def test_submit_takes_our_commands_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "submit", "--", "rm", "-rf", "/")[::2] == (
        2, "mnist-ray: submit takes a command of mnist-ray after --, not 'rm'\n",
    )  # fmt: skip


def test_verify_tells_a_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_output(tmp_path / "out")
    code, out, err = call(capsys, "verify", tmp_path / "out")
    assert (code, err) == (0, "")
    assert "18 images = 15 scored + 3 quarantined in 3 parts, each once" in out
    part = tmp_path / "out" / "part-00001.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    for _ in ("changed", "missing"):
        code, out, err = call(capsys, "verify", tmp_path / "out")
        assert (code, out) == (1, "")
        assert part.name in one_line(err)
        part.unlink(missing_ok=True)


def page(name: str) -> str:
    """A help page on a terminal of 80 columns."""
    done = CliRunner(env={"COLUMNS": "80"}).invoke(cli.cli, [name, "--help"] if name else ["--help"])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("start", [[], ["-m", "mnist_ray"], ["-m", "mnist_ray.cli"]])
def test_without_a_command_the_help_is_printed(start: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if start:
        done = subprocess.run([sys.executable, *start], cwd=ROOT, capture_output=True, text=True, check=False)
        code, out, err = done.returncode, done.stdout, done.stderr
    else:
        code, out, err = call(capsys)
    assert (code, err) == (0, "")
    assert out.startswith("Usage: mnist-ray [OPTIONS] COMMAND [ARGS]...\n")
    assert "MNIST_RAY_DEBUG=1" in out


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_a_help_page_fits_80_columns_and_is_not_cut(name: str) -> None:
    lines = page(name).splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if line.endswith("...") and not line.startswith("Usage:")]


def test_the_help_lists_every_command() -> None:
    assert set(cli.cli.commands) == set(COMMANDS)
    listed = re.findall(r"^  ([a-z]+)  +[A-Z].*\.$", page(""), re.MULTILINE)
    assert listed == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_commands_that_run(name: str) -> None:
    examples = re.findall(r"^  mnist-ray (.*)$", page(name).rpartition("\nExample")[2], re.MULTILINE)
    assert examples
    for example in examples:
        words = shlex.split(example)
        assert words[0] == name
        values = cli.cli.commands[name].make_context(name, words[1:]).params
        if name == "submit":
            inner = values["arguments"]
            cli.cli.commands[inner[0]].make_context(inner[0], list(inner[1:]))


@pytest.mark.parametrize("name", ["run", "train", "score", "shard"])
def test_options_are_grouped_with_the_required_ones_first(name: str) -> None:
    headings = re.findall(r"^(\S.*):$", page(name), re.MULTILINE)
    order = ["Positional arguments", *Group, "Other options", "Example", "Examples"]
    assert headings == sorted(headings, key=order.index)
    required = [param for param in cli.cli.commands[name].params if param.required]
    assert cli.cli.commands[name].params[: len(required)] == required


@pytest.mark.parametrize("name", WITH_DATA)
def test_help_names_every_format(name: str) -> None:
    words = " ".join(page(name).split())
    assert accepted_data() in words
    assert all(text in accepted_data() for text in DATA_FORMATS.values())


@pytest.mark.parametrize(
    ("shell", "line"),
    [("bash", "complete -o nosort -F "), ("zsh", "compdef "), ("fish", "complete --no-files --command ")],
)
def test_shell_completion(shell: str, line: str) -> None:
    assert f"_MNIST_RAY_COMPLETE={shell}_source mnist-ray" in page("")

    def complete(how: str, **words: str) -> str:
        env = {**os.environ, "_MNIST_RAY_COMPLETE": f"{shell}_{how}", **words}
        command = [sys.executable, "-m", "mnist_ray"]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout

    assert line in complete("source")
    cursor = "--ep" if shell == "fish" else "2"
    assert "--epochs" in complete("complete", COMP_WORDS="mnist-ray run --ep", COMP_CWORD=cursor)
    cursor = "pho" if shell == "fish" else "3"
    assert "file" in complete("complete", COMP_WORDS="mnist-ray run --data pho", COMP_CWORD=cursor)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("score", "Missing argument 'INPUT...'; try mnist-ray score --help"),
        ("score a", "Missing option '--model'; try mnist-ray score --help"),
        ("score a --model m", "Missing option '--output'; try mnist-ray score --help"),
        ("shard a", "Missing argument 'DEST'; try mnist-ray shard --help"),
        ("verify", "Missing argument 'OUTPUT'; try mnist-ray verify --help"),
        ("submit", "Missing argument '-- COMMAND [ARGS]...'; try mnist-ray submit --help"),
        ("doctor --addres a", "No such option '--addres'. Did you mean '--address'?; try mnist-ray doctor --help"),
        ("rum", "No such command 'rum'. Did you mean 'run'?; try mnist-ray --help"),
    ],
)
def test_a_usage_error_points_to_the_help(arguments: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, *arguments.split()) == (2, "", f"mnist-ray: {line}\n")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("row 3 is broken", see="runs.md#failures"), 2, "row 3 is broken (see docs/runs.md#failures)"),
        (DivergedError("the loss is no longer finite"), 1, "the loss is no longer finite"),
        (click.Abort(), 130, "interrupted"),
        (KeyError("x"), 1, "unexpected KeyError: 'x'; set MNIST_RAY_DEBUG=1 for the traceback"),
        (OSError("one\ntwo "), 1, "unexpected OSError: two; set MNIST_RAY_DEBUG=1 for the traceback"),
        (AssertionError(), 1, "unexpected AssertionError; set MNIST_RAY_DEBUG=1 for the traceback"),
    ],
)
def test_every_error_is_one_line(
    error: Exception, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: RunConfig, console: object) -> None:
        raise error

    monkeypatch.setattr("mnist_ray.pipeline.run", fail)
    assert call(capsys, "run") == (code, "", f"mnist-ray: {line}\n")
    monkeypatch.setenv("MNIST_RAY_DEBUG", "1")
    if "unexpected" in line:
        with pytest.raises(type(error)):
            cli.main(["run"])
    else:
        assert call(capsys, "run")[0] == code


def test_an_error_of_ray_names_its_cause(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from ray.exceptions import ActorDiedError, RayTaskError

    cause = ValueError("boom")
    for error, reason in (
        (RayTaskError("f", "Traceback:\n  File x\nValueError: boom", cause).as_instanceof_cause(), "ValueError: boom"),
        (RayTaskError("f", "Traceback:\n  File x\nValueError: boom", cause), "ValueError: boom"),
        (ActorDiedError(), "The actor died unexpectedly before finishing this task."),
    ):

        def fail(config: RunConfig, console: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("mnist_ray.pipeline.run", fail)
        assert call(capsys, "run")[::2] == (
            1, f"mnist-ray: Ray failed: {reason}; the same command continues from what is committed\n",
        )  # fmt: skip
