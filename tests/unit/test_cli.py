"""The command line as a user meets it: exit code and the full output, without a cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mnist_ray import cli
from mnist_ray.config import RunConfig, ScoreConfig


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


@pytest.mark.parametrize(
    "name", ["", "run", "shard", "train", "score", "report", "verify", "status", "submit", "doctor"]
)
def test_help_everywhere_without_heavy_imports(name: str) -> None:
    code = (
        "import sys; from mnist_ray.cli import cli\n"
        f"try: cli({[name, '--help'] if name else ['--help']!r})\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'tensorflow', 'keras', 'ray', 'pyarrow', 'numpy', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage:")


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
        ("epoch = 2", "no option epoch; did you mean epochs?"),
        ("[run]\nbatchsize = 2", "no option batchsize; did you mean batch_size?"),
        ("[runs]\nepochs = 2", "no table runs; did you mean run?"),
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
        2, "", "mnist-ray: environment: no option MNIST_RAY_RUN_EPOCH; did you mean MNIST_RAY_RUN_EPOCHS?\n",
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


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "rum")
    assert (code, err.count("\n")) == (2, 1)
    assert "No such command 'rum'" in err


def test_submit_takes_our_commands_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "submit", "--", "rm", "-rf", "/")[::2] == (
        2, "mnist-ray: submit takes a command of mnist-ray after --, not 'rm'\n",
    )  # fmt: skip


def test_an_address_where_nobody_listens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "run", "--storage", str(tmp_path), "--address", "127.0.0.1:1")
    assert code == 1
    assert err.startswith("mnist-ray: nobody listens at 127.0.0.1:1 ")
    assert err.count("\n") == 1


def test_more_workers_than_cpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "run", "--storage", str(tmp_path), "--num-workers", "4096")
    assert code == 2
    assert err.startswith("mnist-ray: 4096 train workers x 1 CPU = 4096 CPUs asked, but this machine has ")
    assert "--cpus-per-worker 0.5" in err
    assert err.count("\n") == 1


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
    assert "input is of type" in call(capsys, "score", *rest, "--config", str(tmp_path / "score.toml"))[2]
