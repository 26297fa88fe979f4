"""Options: their help, their defaults, and where their values come from."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.config import RunConfig, ScoreConfig, ShardConfig, TrainConfig
from mnist_ray.errors import InputError
from mnist_ray.options import Option, Options
from mnist_ray.sources.base import Reading
from mnist_ray.sources.pixels import Conversion
from tests.support.command import called as call

# Options.


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (b"epochs = 2.5", "epochs must be of type integer, not 2.5"),
        (b"epochs = true", "epochs must be of type integer, not True"),
        (b"seed = [1, 2]", "seed must be of type integer, not [1, 2]"),
        (b"fresh = 'yes'", "fresh must be of type boolean, not 'yes'"),
        (b"name = 2026-01-01", "name must be of type text"),
        (b"[run.epochs]\nx = 1", "epochs must be of type integer, not {'x': 1}"),
        (b'name = "a\\u0000b"', "--name must be letters"),
        (b'data = "a\\u0000b"', "is not UTF-8; rename it"),
        (b"\xff", "is not TOML"),
        (b"epochs = 0", "--epochs must be at least 1, not 0"),
        (b"precision = 'float16'", "--precision must be one of float64, float32, bfloat16, not 'float16'"),
        (b"", "nowhere does not exist"),
        (b"num-workers = 2\nlearning_rate = 1", "nowhere does not exist"),
    ],
)
def test_a_config_file_with_a_mistake(
    toml: bytes, message: str, call: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    (tmp_path / "run.toml").write_bytes(toml)
    data = () if b"data" in toml else ("--data", tmp_path / "nowhere")
    code, line = call("run", "--config", tmp_path / "run.toml", "--storage", tmp_path / "storage", *data)
    assert code == 2
    assert message in line


@pytest.mark.parametrize("path", ["none.toml", "."])
def test_a_config_file_that_is_none(path: str, call: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, line = call("run", "--config", tmp_path / path)
    assert code == 2
    assert f"cannot read --config {tmp_path / path}: " in line


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/abs", "a b", "ä", "x\n", "-" * 3, "$(reboot)"])
def test_names_that_could_mean_something_else(name: str, call: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, line = call("run", f"--name={name}", "--storage", tmp_path)
    assert code == 2
    assert "--name must be letters, digits, '-', '_' and '.', not " in line


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """The configurations that `run` was called with, instead of running them."""
    from mnist_ray import pipeline

    configs: list[RunConfig] = []
    monkeypatch.setattr(pipeline, "run", lambda config, tell: configs.append(config))
    return configs


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


def test_one_file_for_several_commands(
    seen: list[RunConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the top level, a value is for the commands that have the option."""
    scored: list[ScoreConfig] = []
    monkeypatch.setattr("mnist_ray.pipeline.score", lambda config, tell: scored.append(config))
    (tmp_path / "all.toml").write_text(
        'epochs = 2\nmodel = "m"\nmax-bad = 0.5\n[run]\nseed = 3\n[score]\noutput = "o"\nmax-bad = 0.25\n'
    )
    for words in (["run"], ["score", "a"]):
        assert call(capsys, *words, "--config", str(tmp_path / "all.toml")) == (0, "", "")
    assert seen == [RunConfig(epochs=2, max_bad=0.5, seed=3)]
    assert scored == [ScoreConfig(input=("a",), model="m", output="o", max_bad=0.25)]


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("epoch = 2", "unknown option epoch; did you mean epochs?"),
        ("[run]\nbatchsize = 2", "unknown option batchsize; did you mean batch_size?"),
        ("[score]\nmax-bed = 2", "[score]: unknown option max_bed; did you mean max_bad?"),
        ("[doctor]\naddress = 'auto'", "unknown table doctor; "),
        ("topk = 2", "unknown option topk; did you mean top_k?"),
        ("[runs]\nepochs = 2", "unknown table runs; did you mean run?"),
        ("epochs = 'five'", "--epochs must be a whole number, not 'five'"),
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


@pytest.mark.parametrize(
    "config",
    [
        partial(RunConfig), partial(ShardConfig, source="a", destination="b"),
        partial(ScoreConfig, input=("a",), model="m", output="o"),
    ],
)  # fmt: skip
def test_the_options_of_images_are_the_same_for_all_commands(config: Any) -> None:
    made = config(
        image_column="img", label_column="fine_label", id_column="key", image_field="seg.png", resize="4X5", rgb=True,
        exif="ignore", background="#Ff8000",
    )  # fmt: skip
    convert = Conversion((4, 5), offered=True, rgb=True, applies_exif=False, background=(255, 128, 0))
    assert Reading.of(made, lenient=True) == Reading(
        image_column="img", label_column="fine_label", id_column="key", image_field="seg.png", convert=convert,
        lenient=True,
    )  # fmt: skip
    assert not Reading.of(config()).convert
    for wrong, said in (
        ({"background": "grey"}, "--background must be black, white or a colour such as #ff8000, not 'grey'"),
        ({"gray": True, "rgb": True}, "--gray and --rgb exclude each other"),
        ({"resize": "0x5"}, "--resize must be HxW"),
        ({"exif": "no"}, "--exif must be one of apply, ignore"),
    ):
        with pytest.raises(InputError, match=said):
            config(**wrong)


@pytest.mark.parametrize("kind", [RunConfig, ShardConfig, TrainConfig, ScoreConfig])
def test_every_option_has_a_sentence_of_help_and_one_default(kind: type[Options]) -> None:
    assert all(re.fullmatch(r"\S.*\.", spec.rules.help) for spec in kind.options())
    shared = {spec.name: spec.default for spec in RunConfig.options()}
    if kind is ScoreConfig:  # those of run concern the training
        del shared["architecture"], shared["batch_size"], shared["precision"]
    assert all(shared.get(spec.name, spec.default) == spec.default for spec in kind.options())


def test_options_know_their_types() -> None:
    known = {spec.name: (spec.type, spec.is_optional, spec.is_many) for spec in ScoreConfig.options()}
    assert known["input"] == (str, False, True)
    assert known["gray"] == (bool, False, False)
    assert known["max_bad"] == (float, False, False)
    assert known["limit"] == (int, True, False)
    assert [spec.name for spec in ScoreConfig.options() if spec.is_required] == ["input", "model", "output"]


def test_positional_arguments_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    got: list[ShardConfig] = []
    monkeypatch.setattr("mnist_ray.pipeline.shard", lambda config, console: got.append(config))
    monkeypatch.setenv("MNIST_RAY_SHARD_SOURCE", "photos")
    monkeypatch.setenv("MNIST_RAY_SHARD_DESTINATION", "shards")
    assert call(capsys, "shard") == (0, "", "")
    assert got == [ShardConfig(source="photos", destination="shards")]


def test_thresholds_are_numbers_from_0_to_1() -> None:
    def config(**more: Any) -> ScoreConfig:
        return ScoreConfig(input=("x",), model="m", output="o", **more)

    assert config().thresholds() is None
    assert config(threshold="0.3").thresholds() == (0.3,)
    assert config(threshold="0.3,1,0").thresholds() == (0.3, 1.0, 0.0)
    for wrong in ("", "x", "1.1", "-0.1", "nan", "0.1,", "0.1;0.2"):
        with pytest.raises(InputError, match="--threshold must be a number from 0 to 1, or one for each label"):
            config(threshold=wrong)
    for name, value in (("output_name", "a"), ("classes", "f"), ("threshold", "0.5"), ("top_k", 2)):
        option = f"--{name.replace('_', '-')}"
        with pytest.raises(
            InputError, match=f"--output-layer writes embeddings, which have no classes; leave out {option}"
        ):
            config(output_layer="a", **{name: value})


# Passwords.

REQUIRED: dict[type[Options], dict[str, Any]] = {
    RunConfig: {},
    ShardConfig: {"source": "a", "destination": "b"},
    TrainConfig: {"shards": "a"},
    ScoreConfig: {"input": "a", "model": "m", "output": "o"},
}


@pytest.mark.parametrize(
    ("kind", "option"),
    [(kind, option) for kind in REQUIRED for option in kind.options() if option.type is str],
    ids=lambda value: value.__name__ if isinstance(value, type) else value.name,
)
@pytest.mark.parametrize("uri", ["s3://me:geheim@h/x", "db+driver://:geheim@h", "x://h/y?user=me&password=geheim"])
def test_no_option_takes_a_password(kind: type[Options], option: Option, uri: str) -> None:
    value = ["a", uri] if option.is_many else uri
    with pytest.raises(InputError) as error:
        kind(**REQUIRED[kind] | {option.name: value})
    assert str(error.value) == f"{option.title} with a password would be stored and shown; put it into the environment"


@pytest.mark.parametrize(
    "uri",
    ["s3://bucket/a:b@c", "gs://anonymous@bucket/x", "s3://b/x?endpoint_override=http://h:9000", "http://h:80/a@b"],
)
def test_what_is_no_password(uri: str) -> None:
    assert RunConfig(data=uri).data == uri


def test_a_password_is_refused_wherever_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = "http://me:geheim@h"
    (tmp_path / "run.toml").write_text(f"mlflow = '{uri}'")
    told = [call(capsys, "run", "--mlflow", uri), call(capsys, "run", "--config", "run.toml")]
    monkeypatch.setenv("MNIST_RAY_RUN_MLFLOW", uri)
    told.append(call(capsys, "run"))
    message = (
        "mnist-ray: --mlflow with a password would be stored and shown; put it into the environment (see"
        " docs/errors.md#passwords)\n"
    )
    assert told == [(2, "", message)] * 3
    assert [file.name for file in tmp_path.iterdir()] == ["run.toml"]
