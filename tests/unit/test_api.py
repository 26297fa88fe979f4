"""The functions of `import mnist_ray`: the commands' options, defaults and errors, and nothing before it is needed."""

from __future__ import annotations

import inspect
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import mnist_ray
from mnist_ray.cluster.connect import connect
from mnist_ray.config import Cluster, RunConfig, ScoreConfig, ShardConfig, TrainConfig
from mnist_ray.console import Console
from mnist_ray.errors import InputError, Interrupted, RetryableError, SetupError
from mnist_ray.results import Evaluation
from mnist_ray.steps.metrics import Clock
from mnist_ray.storage.location import Location
from tests.support import data_makers as make
from tests.support.output_maker import make_output

KINDS = {"run": RunConfig, "shard": ShardConfig, "train": TrainConfig, "score": ScoreConfig}
commands = pytest.mark.parametrize("name", KINDS)

# What is known without a call.


def test_importing_costs_nothing() -> None:
    code = "import sys, mnist_ray; print(sorted(name for name in sys.modules if name.startswith('mnist_ray')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['mnist_ray']\n"
    code = "import sys, mnist_ray; mnist_ray.run; print({'ray', 'pyarrow', 'numpy', 'click', 'keras'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_names_are_those_that_are_offered() -> None:
    assert {*mnist_ray.__all__} <= {*dir(mnist_ray)}
    assert all(hasattr(mnist_ray, name) for name in mnist_ray.__all__)
    with pytest.raises(AttributeError, match="module 'mnist_ray' has no attribute 'scores'"):
        mnist_ray.scores  # noqa: B018


@commands
def test_a_function_takes_the_fields_of_its_configuration(name: str) -> None:
    function, kind = getattr(mnist_ray, name), KINDS[name]
    parameters = inspect.signature(function).parameters
    assert [*parameters] == [*inspect.signature(kind).parameters]
    assert {*parameters} == {spec.name for spec in fields(kind)}
    for option in kind.options():
        parameter = parameters[option.name]
        assert (parameter.default is inspect.Parameter.empty) == option.is_required
        assert option.is_required or parameter.default == option.default
        assert (parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD) == (option.rules.group is None)
        assert f"    {option.name}: {option.rules.help}" in function.__doc__


# What is given.


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The (configuration, console, beginning) with which a step of the pipeline was called, instead of working."""
    from mnist_ray import pipeline

    calls: list[Any] = []

    def take(*args: Any) -> Any:
        calls.append(args)
        raise InterruptedError

    for name in KINDS:
        monkeypatch.setattr(pipeline, name, take)
    return calls


def test_what_python_has_becomes_what_the_command_line_gives(given: list[Any]) -> None:
    began = time.time()
    for call in (
        lambda: mnist_ray.run(data=Path("a"), num_workers=2, epochs=np.int64(3), learning_rate=1, quiet=True),
        lambda: mnist_ray.shard(Path("a"), "b"),
        lambda: mnist_ray.train("c", storage=Path("s")),
        lambda: mnist_ray.score("a", model=Path("m"), output="o", threshold=0.5),
        lambda: mnist_ray.score([Path("a"), "b"], model="m", output="o"),
    ):
        with pytest.raises(InterruptedError):
            call()
    assert [config for config, _, _ in given] == [
        RunConfig(data="a", num_workers="2", epochs=3, learning_rate=1.0, quiet=True),
        ShardConfig(source="a", destination="b"),
        TrainConfig(shards="c", storage="s"),
        ScoreConfig(input=("a",), model="m", output="o", threshold="0.5"),
        ScoreConfig(input=("a", "b"), model="m", output="o"),
    ]
    assert [type(getattr(given[0][0], name)) for name in ("data", "num_workers", "epochs", "learning_rate")] == [
        str, str, int, float,
    ]  # fmt: skip
    assert all(began <= at <= time.time() for _, _, at in given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "--epochs must be at least 1, not 0"),
        ({"epochs": "5"}, "--epochs must be a whole number, not '5'"),
        ({"epochs": 2.5}, "--epochs must be a whole number, not 2.5"),
        ({"epochs": True}, "--epochs must be a whole number, not True"),
        ({"epochs": None}, "--epochs must be a whole number, not None"),
        ({"learning_rate": "fast"}, "--learning-rate must be a number, not 'fast'"),
        ({"fresh": 1}, "--fresh must be True or False, not 1"),
        ({"data": np.zeros((3, 4, 4))}, "--data must be text, not a ndarray"),
        ({"name": Path("a")}, "--name must be text, not a PosixPath"),
        ({"num_workers": 0}, "--num-workers needs 1 <= MIN <= MAX, not '0'"),
        ({"num_workers": False}, "--num-workers must be text, not False"),
    ],
)
def test_a_value_that_is_none_is_refused_as_on_the_command_line(
    options: dict[str, Any], message: str, given: list[Any]
) -> None:
    with pytest.raises(InputError) as raised:
        mnist_ray.run(**options)
    assert (str(raised.value), given) == (message, [])


@pytest.mark.parametrize(
    ("given_input", "message"),
    [
        ([], "INPUT must be text, a path, or several, not a list"),
        (np.zeros((3, 4, 4)), "INPUT must be text, a path, or several, not a ndarray"),
        (["a", 3], "INPUT must be text, not 3"),
    ],
)
def test_an_input_that_is_none(given_input: Any, message: str) -> None:
    with pytest.raises(InputError) as raised:
        mnist_ray.score(given_input, model="m", output="o")
    assert str(raised.value) == message


def test_a_working_directory_that_would_break_the_job(
    given: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keras.py").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"Python would import keras\.py in .* in place of its own package"):
        mnist_ray.run()
    (tmp_path / "_ray_pkg_1").mkdir()
    monkeypatch.chdir(tmp_path / "_ray_pkg_1")
    with pytest.raises(InputError, match=r"--storage \./storage/mnist is a relative path"):
        mnist_ray.run()
    assert given == []


def test_an_input_that_does_not_exist_raises_and_leaves_all_as_it_was(tmp_path: Path) -> None:
    handlers = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    environment = dict(os.environ)
    for call in (
        lambda: mnist_ray.run(data=tmp_path / "none", storage=tmp_path / "s"),
        lambda: mnist_ray.shard(tmp_path / "none", tmp_path / "s"),
        lambda: mnist_ray.train(tmp_path / "none", storage=tmp_path / "s"),
        lambda: mnist_ray.score(tmp_path / "none", model=tmp_path / "none", output=tmp_path / "s"),
        lambda: mnist_ray.verify(tmp_path / "none"),
        lambda: mnist_ray.load_predictions(tmp_path / "none"),
    ):
        with pytest.raises(InputError, match=str(tmp_path / "none")):
            call()
    assert [*tmp_path.iterdir()] == []
    assert handlers == {kind: signal.getsignal(kind) for kind in handlers}
    assert environment == dict(os.environ)


# What is returned.


def test_predictions_are_a_dataset_in_the_order_of_the_input(tmp_path: Path) -> None:
    output = Location.parse(tmp_path)
    make_output(tmp_path)
    found = mnist_ray.load_predictions(tmp_path)
    verified = mnist_ray.verify(tmp_path)
    table = found.to_table()
    assert table.num_rows == verified.scored
    assert table["id"].to_pylist() == sorted(table["id"].to_pylist())
    assert found.schema.metadata is None
    right = [row["label"] == row["prediction"] for row in table.to_pylist() if row["label"] is not None]
    assert verified.after is not None
    assert (sum(right), len(right)) == (verified.after.num_correct, verified.after.num_seen)
    (output / "_manifest.json").delete()
    with pytest.raises(RetryableError, match="is unfinished"):
        mnist_ray.load_predictions(tmp_path)


def test_an_evaluation_may_have_no_accuracy() -> None:
    metrics = {"num_correct": 0, "num_seen": 0, "accuracy": None, "loss": None, "confusion": []}
    assert Evaluation.of(metrics) == Evaluation(num_correct=0, num_seen=0, accuracy=None, loss=None)


def test_the_clock_counts_from_the_beginning_that_it_is_given() -> None:
    clock = Clock(time.time() - 100)
    assert 100 <= clock.lap("start") < 110
    assert clock.lap("shard") < 10
    assert 100 <= clock.total() < 110


# Where it is shown.


class _Display:
    """IPython's, as a notebook's page sees it: the last content of each display."""

    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []

    def display(self, bundle: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        assert raw
        assert display_id
        self.shown.append(bundle)
        place = len(self.shown) - 1
        return SimpleNamespace(update=lambda bundle, raw: self.shown.__setitem__(place, bundle))


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> _Display:
    """A stand-in: ipykernel is no dependency. tests/drills/test_notebook.py has a real kernel."""
    display, ipython, page = _Display(), ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: SimpleNamespace(kernel="a kernel")  # type: ignore[attr-defined]
    page.display = display.display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", page)
    monkeypatch.setattr("mnist_ray.console._NOTEBOOK_SECONDS", 0)
    return display


def test_a_bar_of_a_notebook_becomes_the_line_that_stays(
    notebook: _Display, capsys: pytest.CaptureFixture[str]
) -> None:
    console, log = Console(), list[str]()
    diary: Any = SimpleNamespace(line=log.append)
    with console.about("/runs/m", lambda: None, diary):
        with console.bar("epoch 1/2", 10) as bar:
            bar.update(4, "loss <0.1>", 12.3)
            (bundle,) = notebook.shown
            assert bundle["text/plain"] == "epoch 1/2  4/10  loss <0.1>  12 s left"
            assert '<progress value="4" max="10"></progress> epoch 1/2  4/10  loss &lt;0.1&gt;' in bundle["text/html"]
            console.print("a line")
            bar.finish("loss 0.05")
        with console.bar("epoch 2/2", 10) as bar:
            bar.update(1)
        with console.bar("scoring", 10):
            pass
        with console.bar("sharding", 10) as bar:
            bar.finish("2 tasks")
    assert [bundle["text/plain"] for bundle in notebook.shown] == ["epoch 1/2  loss 0.05", "", "sharding  2 tasks"]
    assert capsys.readouterr().out == "a line\n"
    assert log == ["a line", "epoch 1/2  loss 0.05", "sharding  2 tasks"]


@pytest.mark.parametrize("options", [{"quiet": True}, {"as_json": True}, {"stream": io.StringIO()}])
def test_no_bar_of_a_notebook_where_none_is_wanted(notebook: _Display, options: dict[str, Any]) -> None:
    with Console(**options).bar("epoch 1/2", 10) as bar:
        bar.update(4)
    assert notebook.shown == []


# With the caller's own Ray.

LITTLE: dict[str, Any] = {"num_workers": 1, "num_shards": 2}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make.write_mnist(tmp_path / "little.npz", 400, 100)


@pytest.mark.ray
@pytest.mark.slow
def test_a_call_uses_the_ray_of_its_process_also_from_a_thread_and_leaves_it(
    ray_local: None, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(mnist_ray.shard(images, tmp_path / "shards", num_shards=2)))
    thread.start()
    thread.join()
    (shards,) = made
    assert (shards.images, shards.shards) == ({"train": 400, "test": 100}, {"train": 2, "test": 2})
    assert (shards.image_shape, len(shards.classes)) == ((28, 28), 10)
    assert ray.is_initialized()
    assert "Ray at " in capsys.readouterr().out
    refused = pytest.raises(
        SetupError, match=r"--address is 127\.0\.0\.1:1, but this process is connected to the Ray at "
    )
    with refused, connect(Cluster(address="127.0.0.1:1")):
        pass


@pytest.mark.ray
@pytest.mark.slow
def test_a_task_that_holds_what_the_workers_need_is_told_so(ray_local: None, images: Path, tmp_path: Path) -> None:
    import ray

    def train(data: Path, storage: Path) -> str:
        try:
            mnist_ray.run(data=data, storage=storage, num_workers=2)
        except RetryableError as error:
            return str(error)
        return "no error"

    said = ray.get(ray.remote(num_cpus=1)(train).remote(images, tmp_path))
    assert said.startswith("2 train workers x 1 CPU = 2 CPUs are needed, but the cluster has 1; use --num-workers 1")
    assert "; the calling task holds 1 CPU, which num_cpus=0 frees" in said


@pytest.mark.ray
@pytest.mark.slow
def test_an_interrupted_training_leaves_nothing_on_the_callers_ray(
    ray_local: None, images: Path, tmp_path: Path
) -> None:
    import ray

    def interrupt() -> None:
        progress = Location.parse(tmp_path / "long" / "progress.json")
        wait_for(lambda: progress.exists() and progress.read_json().get("phase") == "train")
        wait_for(lambda: progress.read_json().get("epoch", 0) > 0)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Interrupted, match="the same command continues"):
        mnist_ray.run(data=images, storage=tmp_path, name="long", epochs=100_000, **LITTLE)
    assert ray.is_initialized()
    wait_for(lambda: ray.available_resources().get("CPU") == 2)
    assert signal.getsignal(signal.SIGINT) is before


def wait_for(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.1)
