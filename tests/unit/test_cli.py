"""The command line as a user meets it: exit code and the full output, without a cluster."""

from __future__ import annotations

import os
import pickle
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mnist_ray import cli
from mnist_ray.config import DATA_FORMATS, RunConfig, ScoreConfig, ShardConfig, TrainConfig, accepted_data
from mnist_ray.errors import DivergedError, InputError, RetryableError, UserError
from mnist_ray.options import Group, Options

ROOT = Path(cli.__file__).parents[1]
COMMANDS = ["run", "shard", "train", "score", "report", "verify", "status", "submit", "doctor"]
WITH_DATA = {"run": "--data", "shard": "SRC", "score": "INPUT..."}


def call(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(args)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """The configurations that `run` was called with, instead of running them."""
    from mnist_ray import pipeline

    configs: list[RunConfig] = []
    monkeypatch.setattr(pipeline, "run", lambda config, tell: configs.append(config))
    return configs


def page(name: str) -> str:
    """A help page on a terminal of 80 columns."""
    done = CliRunner(env={"COLUMNS": "80"}).invoke(cli.cli, [name, "--help"] if name else ["--help"])
    assert done.exit_code == 0, done.output
    return done.output


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


def test_flags_beat_the_environment_beats_the_file_beats_the_default(
    seen: list[RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'seed = 1\nepochs = 2\n[run]\nbatch-size = 3\nname = "file"\nfresh = true\n[score]\nmax-bad = 0.5\n'
    )
    monkeypatch.setenv("MNIST_RAY_RUN_EPOCHS", "4")
    monkeypatch.setenv("MNIST_RAY_RUN_NAME", "environment")
    assert call(capsys, "run", "--config", str(file), "--name", "flag") == (0, "", "")
    assert seen == [RunConfig(seed=1, epochs=4, batch_size=3, name="flag", fresh=True)]


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("epoch = 2", "unknown option epoch; did you mean epochs?"),
        ("[run]\nbatchsize = 2", "unknown option batchsize; did you mean batch_size?"),
        ("[runs]\nepochs = 2", "unknown table runs; did you mean run?"),
        ("epochs = 'five'", "Invalid value for '--epochs': 'five' is not a valid integer."),
        ("epochs = ", "is not TOML: Invalid value (at "),
    ],
)
def test_a_mistake_in_the_file_is_one_line_that_says_what_to_do(
    seen: list[RunConfig], toml: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.toml").write_text(toml)
    code, out, err = call(capsys, "run", "--config", str(tmp_path / "run.toml"))
    assert (code, out, seen) == (2, "", [])
    assert message in err
    assert err.count("\n") == 1


def test_a_misspelt_variable_is_an_error(
    seen: list[RunConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MNIST_RAY_RUN_EPOCH", "4")
    assert call(capsys, "run") == (
        2, "", "mnist-ray: environment: unknown option MNIST_RAY_RUN_EPOCH; did you mean MNIST_RAY_RUN_EPOCHS?\n",
    )  # fmt: skip


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


def test_a_diverged_training_is_not_retryable() -> None:
    error = pickle.loads(pickle.dumps(DivergedError("no number", see="runs.md#failures")))
    assert (str(error), error.see, error.exit_code) == ("no number", "runs.md#failures", 1)
    assert isinstance(error, UserError)
    assert not isinstance(error, RetryableError | InputError)


def test_submit_takes_our_commands_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "submit", "--", "rm", "-rf", "/")[::2] == (
        2, "mnist-ray: submit takes a command of mnist-ray after --, not 'rm'\n",
    )  # fmt: skip


def test_an_address_where_nobody_listens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "run", "--storage", str(tmp_path), "--address", "127.0.0.1:1")
    assert code == 1
    assert err.startswith("mnist-ray: nothing listens at 127.0.0.1:1 ")
    assert err.count("\n") == 1


def test_more_workers_than_cpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "run", "--storage", str(tmp_path), "--num-workers", "4096")
    assert code == 2
    assert err.startswith("mnist-ray: 4096 train workers x 1 CPU = 4096 CPUs are needed, but this machine has ")
    assert "--cpus-per-worker 0.5" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("kind", [RunConfig, ShardConfig, TrainConfig, ScoreConfig])
def test_every_option_has_a_sentence_of_help_and_one_default(kind: type[Options]) -> None:
    assert all(re.fullmatch(r"\S.*\.", spec.rules.help) for spec in kind.options())
    shared = {spec.name: spec.default for spec in RunConfig.options()}
    if kind is ScoreConfig:  # those of run concern the training
        del shared["batch_size"], shared["precision"]
    assert all(shared.get(spec.name, spec.default) == spec.default for spec in kind.options())


def test_options_know_their_types() -> None:
    known = {spec.name: (spec.type, spec.is_optional, spec.is_many) for spec in ScoreConfig.options()}
    assert known["input"] == (str, False, True)
    assert known["gray"] == (bool, False, False)
    assert known["max_bad"] == (float, False, False)
    assert known["limit"] == (int, True, False)
    assert [spec.name for spec in ScoreConfig.options() if spec.is_required] == ["input", "model", "output"]


def anchors(text: str) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.*?) *#*$", outside, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_anchors_are_those_of_github() -> None:
    assert anchors("# Workers and CPUs\n## `score`: what's new?\n```\n# comment\n```\n") == {
        "workers-and-cpus", "score-whats-new",
    }  # fmt: skip


def test_errors_name_sections_of_the_documentation() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "mnist_ray").rglob("*.py"))
    named = set(re.findall(r'\bsee(?:: str)? ?= ?"([^"]*)"', sources))
    assert len(named) > 3
    assert all(re.fullmatch(r"[a-z-]+\.md(#[a-z-]+)?", each) for each in named)
    if not (ROOT / "docs").is_dir():
        pytest.skip("docs/ does not exist yet")
    for page, _, anchor in (each.partition("#") for each in named):
        assert not anchor or anchor in anchors((ROOT / "docs" / page).read_text())
        assert (ROOT / "docs" / page).is_file()


def test_inputs_from_the_command_line_the_environment_and_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    got: list[ScoreConfig] = []
    monkeypatch.setattr("mnist_ray.pipeline.score", lambda config, tell: got.append(config))
    rest = ("--model", "m", "--output", "o")
    assert call(capsys, "score", *rest)[0] == 2
    assert call(capsys, "score", "a", "b", *rest, "--resize", "28x20")[0] == 0
    (tmp_path / "score.toml").write_text('input = ["c", "d e"]\ngray = true\n')
    assert call(capsys, "score", *rest, "--config", str(tmp_path / "score.toml"))[0] == 0
    monkeypatch.setenv("MNIST_RAY_SCORE_INPUT", "f g")
    assert call(capsys, "score", *rest)[0] == 0
    assert [config.input for config in got] == [("a", "b"), ("c", "d e"), ("f", "g")]
    assert [(config.size(), config.gray) for config in got] == [((28, 20), False), (None, True), (None, False)]
    code, _, err = call(capsys, "score", "a", *rest, "--resize", "28")
    assert (code, err) == (
        2, "mnist-ray: --resize must be HxW in pixels of at most 4096, such as 28x28, not '28'\n",
    )  # fmt: skip
    (tmp_path / "score.toml").write_text("input = [1]\n")
    assert call(capsys, "score", *rest, "--config", str(tmp_path / "score.toml"))[::2] == (
        2, f"mnist-ray: {tmp_path}/score.toml: input must be a list of texts, not [1]\n",
    )  # fmt: skip


def test_positional_arguments_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    got: list[ShardConfig] = []
    monkeypatch.setattr("mnist_ray.pipeline.shard", lambda config, console: got.append(config))
    monkeypatch.setenv("MNIST_RAY_SHARD_SOURCE", "photos")
    monkeypatch.setenv("MNIST_RAY_SHARD_DESTINATION", "shards")
    assert call(capsys, "shard") == (0, "", "")
    assert got == [ShardConfig(source="photos", destination="shards")]
