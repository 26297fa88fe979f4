"""The command line as a user meets it: exit code and the full output, without a cluster."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from ray.exceptions import ActorDiedError, RayError, RayTaskError, UnserializableException

from mnist_ray import cli
from mnist_ray.config import DATA_FORMATS, RunConfig, accepted_data
from mnist_ray.errors import DivergedError, InputError
from mnist_ray.options import Group
from tests.support.command import ROOT, one_line
from tests.support.command import called as call
from tests.support.output_maker import make_output

COMMANDS = ["run", "shard", "train", "score", "report", "verify", "status", "logs", "stop", "submit", "doctor"]
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
        (["--epoch", "2"], "there is no option --epoch; did you mean --epochs?"),
        (["--epochs", "0"], "--epochs must be at least 1, not 0"),
        (["--dropout", "1"], "--dropout must be less than 1, not 1.0"),
        (["--learning-rate", "nan"], "--learning-rate must be more than 0, not nan"),
        (["--learning-rate", "inf"], "--learning-rate must be finite, not inf"),
        (["--num-workers", "4:2"], "--num-workers needs 1 <= MIN <= MAX, not '4:2'"),
        (["--num-workers", "two"], "--num-workers must be N or MIN:MAX, not 'two'"),
        (["--name", "../up"], "--name must be letters, digits, '-', '_' and '.', not '../up'"),
        (["--precision", "float16"], "--precision must be one of float64, float32, bfloat16, not 'float16'"),
        (["surplus"], "run does not take 'surplus'; try mnist-ray run --help"),
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
            inner = values["arguments"] or ("run",)  # --follow takes no command
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
        ("score", "score needs INPUT...; try mnist-ray score --help"),
        ("score a", "score needs --model; try mnist-ray score --help"),
        ("score a --model m", "score needs --output; try mnist-ray score --help"),
        ("shard a", "shard needs DEST; try mnist-ray shard --help"),
        ("verify", "verify needs OUTPUT; try mnist-ray verify --help"),
        ("submit", "submit needs -- COMMAND [ARGS]...; try mnist-ray submit --help"),
        ("doctor --addres a", "there is no option --addres; did you mean --address?"),
        ("doctor --xyzzy", "there is no option --xyzzy; try mnist-ray doctor --help"),
        ("rum", "there is no command rum; did you mean run?"),
        ("xyzzy", "there is no command xyzzy; try mnist-ray --help"),
        ("run --epochs", "--epochs needs a value; the command's --help describes it"),
        ("score a --model m --output", "--output needs a value; the command's --help describes it"),
        ("run --resize --gray", "--resize must be HxW in pixels of at most 4096, such as 28x28, not '--gray'"),
        ("score a --limit --output b", "--limit must be a whole number, not '--output'"),
        ("run --epochs 2.5", "--epochs must be a whole number, not '2.5'"),
        ("run --dropout x", "--dropout must be a number, not 'x'"),
        ("run --fresh=yes", "--fresh is a switch and takes no value; leave the = out"),
        ("verify a b", "verify does not take 'b'; try mnist-ray verify --help"),
        ("report", "report needs RUN...; try mnist-ray report --help"),
        ("report a b --reference c", "--reference takes one RUN; without it, several are compared"),
        ("report a --output b", "--output must be the name of a file that ends in .html, not 'b'"),
    ],
)
def test_a_usage_error_says_what_to_do(arguments: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, *arguments.split()) == (2, "", f"mnist-ray: {line}\n")


@pytest.mark.parametrize("pixels", [["--pixels", "-1-1"], ["--pixels=-1-1"]])
def test_a_value_may_begin_with_a_dash(pixels: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "score", "a", *pixels, "--model", "no-model", "--output", "b")
    assert (code, "no-model does not exist; --model takes" in err) == (2, True)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("row 3 is broken", see="runs.md#failures"), 2, "row 3 is broken (see docs/runs.md#failures)"),
        (InputError("a\nb\x1b[2J.png is bad"), 2, "a b\\x1b[2J.png is bad"),
        (DivergedError("the loss is no longer finite"), 1, "the loss is no longer finite"),
        (click.Abort(), 130, "interrupted"),
    ],
)
def test_every_error_is_one_line(
    error: Exception, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_by(error, monkeypatch)
    assert call(capsys, "run") == (code, "", f"mnist-ray: {line}\n")
    monkeypatch.setenv("MNIST_RAY_DEBUG", "1")
    assert call(capsys, "run")[0] == code


def fail_by(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: RunConfig, console: object) -> None:
        raise error

    monkeypatch.setattr("mnist_ray.pipeline.run", fail)


class Panic(BaseException):
    """As code in Rust raises it."""


TRACEBACK = "\x1b[36mray::f()\x1b[39m (pid=1)\n" + '  File "x.py", line 1, in f\n    raise\n    ^^^\n'
BOOM = RayTaskError("f", TRACEBACK + "ValueError: boom", ValueError("boom"))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("x"), "KeyError: 'x'"),
        (OSError("one\ntwo "), "OSError: two"),
        (AssertionError(), "AssertionError"),
        (Panic("at lib.rs"), "Panic: at lib.rs"),
        (ValueError("x" * 1000), "ValueError: " + "x" * 288),
        (BOOM, "ValueError: boom"),
        (BOOM.as_instanceof_cause(), "ValueError: boom"),
        (ActorDiedError(BOOM), "ValueError: boom"),
        (RayTaskError("f", TRACEBACK + "Own: one\n  two", RayError("it cannot be pickled")), "Own: two"),
        (RayTaskError("f", TRACEBACK + "Own", RayError("it cannot be pickled")), "Own"),
        (UnserializableException(f"Original exception:\n{TRACEBACK}Own: one"), "Own: one"),
        (ActorDiedError(), "ActorDiedError: The actor died unexpectedly before finishing this task."),
    ],
)
def test_an_unexpected_error_is_its_last_line_and_a_log(
    error: BaseException, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fail_by(error, monkeypatch)
    code, out, err = call(capsys, "run")
    (log,) = tmp_path.iterdir()
    assert (code, out) == (1, "")
    assert err == f"mnist-ray: unexpected {line}; the full log is {log} (see docs/runs.md#failures)\n"
    assert "in fail\n" in log.read_text()
    assert log.stat().st_mode & 0o077 == 0
    monkeypatch.setenv("MNIST_RAY_DEBUG", "1")
    with pytest.raises(type(error)):
        cli.main(["run"])


def test_where_no_log_can_be_written_there_is_still_the_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    fail_by(KeyError("x"), monkeypatch)
    line = "mnist-ray: unexpected KeyError: 'x' (see docs/runs.md#failures)\n"
    assert call(capsys, "run") == (1, "", line)


def test_an_error_in_a_thread_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def start_thread(config: RunConfig, console: object) -> None:
        thread = threading.Thread(target=lambda: {}["x"])
        thread.start()
        thread.join()

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("mnist_ray.pipeline.run", start_thread)
    code, _, err = call(capsys, "run")
    (log,) = tmp_path.iterdir()
    assert code == 0
    assert one_line(err).startswith(f"mnist-ray: in the background: unexpected KeyError: 'x'; the full log is {log}")


@pytest.mark.parametrize(
    ("closed", "code", "err"),
    [
        (">&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        (">/dev/full", 1, "No space left on device"),
        ("2>&-", 0, ""),
    ],
)
def test_closed_streams(closed: str, code: int, err: str, tmp_path: Path) -> None:
    """`verify` opens files, which must not get the number of a stream that others write to."""
    make_output(tmp_path / "out")
    line = f"{shlex.quote(sys.executable)} -m mnist_ray verify {shlex.quote(str(tmp_path / 'out'))} {closed}"
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(line, shell=True, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert err in (one_line(done.stderr) if err else done.stderr)
    assert done.stderr.count("\n") == bool(err)
