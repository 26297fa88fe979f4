"""An MLflow run, in a real database by the real client: one for a folder, each step once, whatever failed between."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.runs.folder import RunFolder
from mnist_ray.storage.location import Location
from mnist_ray.tracking.mlflow_run import _SETTINGS, MLflowRun
from mnist_ray.tracking.scalars import Snapshot
from tests.unit.tracking.conftest import ARCHIVE, write_model

pytestmark = pytest.mark.slow

PARAMS = {"data": "s3://key:hunter2@bucket/mnist?token=1", "epochs": 5, "learning_rate": 0.001}


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of MLflow's without runs, which takes seconds to make."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _SETTINGS.items():
            patch.setenv(name, value)
        from mlflow import MlflowClient

        file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
        MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


class Store:
    """A database of one test, and what is in it."""

    def __init__(self, file: Path) -> None:
        self.uri = f"sqlite:///{file}"

    def run(self, folder: RunFolder, *, experiment: str = "tests", **params: Any) -> MLflowRun:
        """A new process's view of a run's folder."""
        return MLflowRun(folder, self.uri, experiment, PARAMS | params)

    @property
    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    def runs(self, experiment: str = "tests") -> list[Any]:
        found = self.client.get_experiment_by_name(experiment)
        return list(self.client.search_runs([found.experiment_id])) if found else []

    def the_run(self) -> Any:
        (run,) = self.runs()
        return run

    def history(self, metric: str) -> list[tuple[int, float]]:
        found = self.client.get_metric_history(self.the_run().info.run_id, metric)
        return sorted((each.step, each.value) for each in found)

    def models(self) -> list[Any]:
        return list(self.client.search_logged_models([self.the_run().info.experiment_id]))


@pytest.fixture
def store(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)  # MLflow keeps artifacts there
    return Store(Path(shutil.copy(empty, tmp_path)))


def some(snapshot: Snapshot, count: int) -> Snapshot:
    return Snapshot(snapshot.epochs[:count])


def losses(snapshot: Snapshot) -> list[tuple[int, float]]:
    return [(epoch["epoch"], epoch["loss"]) for epoch in snapshot.epochs]


def test_a_run_as_it_goes(store: Store, folder: RunFolder, finished: Snapshot) -> None:
    run = store.run(folder)
    run.sync(Snapshot())
    assert store.the_run().info.status == "RUNNING"
    run.sync(some(finished, 2))
    assert store.history("loss") == losses(finished)[:2]
    run.sync(finished)
    run.end("FINISHED")
    found = store.the_run()
    assert (found.info.run_name, found.info.status) == ("mnist", "FINISHED")
    assert found.data.params == {"data": "s3://…@bucket/mnist?…", "epochs": "5", "learning_rate": "0.001"}
    assert found.data.tags["mnist_ray.folder"] == str(folder.root)
    assert set(found.data.metrics) == {
        "loss", "accuracy", "seconds", "images_per_second", "test_loss", "test_accuracy",
        "score_images", "score_quarantined", "score_seconds", "score_images_per_second",
    }  # fmt: skip
    assert store.history("loss") == losses(finished)
    before, after = finished.metrics["before"]["loss"], finished.metrics["after"]["loss"]
    assert store.history("test_loss") == [(0, before), (5, after)]
    (last,) = (each.timestamp for each in store.client.get_metric_history(found.info.run_id, "loss") if each.step == 5)
    assert last == 1_005_000
    artifacts = Path(found.info.artifact_uri)
    assert {file.name for file in artifacts.iterdir()} == {"report.html", "metrics.json"}
    assert (artifacts / "report.html").read_text() == "<h1>A report</h1>"
    assert json.loads((artifacts / "metrics.json").read_text()) == folder.metrics.read_json()
    assert json.loads(Path(folder.mlflow.path).read_text())["run_id"] == found.info.run_id
    assert b"hunter2" not in Path(store.uri.removeprefix("sqlite:///")).read_bytes()


def test_the_model_has_a_signature_and_is_there_once(store: Store, folder: RunFolder, finished: Snapshot) -> None:
    from mlflow.models import Model

    for _ in range(2):
        store.run(folder).sync(finished)
    (logged,) = store.models()
    assert (logged.name, logged.status, logged.source_run_id) == ("model", "READY", store.the_run().info.run_id)
    (output,) = store.the_run().outputs.model_outputs
    assert (output.model_id, output.step) == (logged.model_id, 5)
    model = Model.load(f"{logged.artifact_location}/MLmodel")
    assert model.signature.inputs.to_dict() == [
        {"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": (-1, 28, 28)}}
    ]
    assert model.signature.outputs.to_dict() == [
        {"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": (-1, 10)}}
    ]
    assert model.metadata == {"classes": list("0123456789"), "pixels": "0-255", "output": "logits"}
    assert (Path(logged.artifact_location) / "data" / "model.keras").read_bytes() == ARCHIVE


def test_the_environment_stays_as_it_was(
    store: Store, folder: RunFolder, finished: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be that of a notebook, which uses MLflow, too."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    before = dict(os.environ)
    run = store.run(folder)
    run.sync(finished)
    run.end("FINISHED")
    assert dict(os.environ) == before


def test_a_metric_may_have_any_name(store: Store, folder: RunFolder) -> None:
    epoch = {"epoch": 1, "loss": 1.0, "val_top-5@1%": 0.5, "größe/b": 2.0, "unix_time": 1.0}
    store.run(folder).sync(Snapshot([epoch]))
    assert store.the_run().data.metrics == {"loss": 1.0, "val_top-5_1_": 0.5, "größe/b": 2.0}


def test_the_signature_of_other_models(store: Store, folder: RunFolder, finished: Snapshot) -> None:
    from mlflow.models import Model

    recipe = {"architecture": "my:own", "image_shape": [9, 8, 3], "num_classes": 10, "dropout": 0.0, "seed": 0,
              "precision": "float64"}  # fmt: skip
    shape = [None, None, 3]
    write_model(Path(folder.model.path), pixels="0-1", input_shape=shape, recipe=recipe)
    store.run(folder).sync(finished)
    signature = Model.load(f"{store.models()[0].artifact_location}/MLmodel").signature
    assert signature.inputs.to_dict()[0]["tensor-spec"] == {"dtype": "float32", "shape": (-1, -1, -1, 3)}
    assert signature.outputs.to_dict()[0]["tensor-spec"] == {"dtype": "float64", "shape": (-1, 10)}


def test_a_retry_goes_on_with_the_same_run(store: Store, folder: RunFolder, finished: Snapshot) -> None:
    first = store.run(folder)
    first.sync(some(finished, 3))
    first.end("FAILED")
    assert store.the_run().info.status == "FAILED"
    second = store.run(folder)
    second.sync(Snapshot())
    assert store.the_run().info.status == "RUNNING"
    second.sync(some(finished, 1))
    second.sync(finished)
    second.end("FINISHED")
    for _ in range(2):  # a finished run is only shown
        third = store.run(folder)
        third.sync(finished)
        third.end("FINISHED")
    assert store.history("loss") == losses(finished)
    assert store.the_run().info.status == "FINISHED"


def test_more_epochs_are_more_steps_and_another_model(store: Store, folder: RunFolder, finished: Snapshot) -> None:
    first = store.run(folder)
    first.sync(Snapshot(finished.epochs[:3], finished.metrics))
    first.end("FINISHED")
    write_model(Path(folder.model.path), b"a better model")
    store.run(folder, epochs=9).sync(finished)
    assert store.history("loss") == losses(finished)
    assert [step for step, _ in store.history("test_loss")] == [0, 3, 5]
    assert sorted(each.step for each in store.the_run().outputs.model_outputs) == [3, 5]
    data = store.the_run().data
    assert (data.params["epochs"], data.tags["mnist_ray.epochs"]) == ("5", "9")
    assert "mnist_ray.data" not in data.tags


@pytest.mark.parametrize("call", ["create_run", "log_batch", "log_outputs", "log_model_artifacts", "log_artifact"])
def test_a_request_whose_answer_is_lost_is_not_made_twice(
    call: str, store: Store, folder: RunFolder, finished: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    known, lost = getattr(MlflowClient, call), []

    def lose(*args: Any, **kwargs: Any) -> Any:
        answer = known(*args, **kwargs)
        if len(lost) < 3:
            lost.append(call)
            raise TimeoutError("timed out")
        return answer

    monkeypatch.setattr(MlflowClient, call, lose)
    run = store.run(folder)
    for _ in range(4):
        try:
            run.sync(finished)
        except TimeoutError:
            continue
        break
    assert len(lost) == (1 if call == "create_run" else 3)
    assert store.history("loss") == losses(finished)
    assert [step for step, _ in store.history("test_loss")] == [0, 5]
    assert [each.status for each in store.models()] == ["READY"]
    assert len(list(Path(store.the_run().info.artifact_uri).iterdir())) == 2


def test_a_run_whose_id_was_not_kept_is_found(store: Store, folder: RunFolder, finished: Snapshot) -> None:
    """The process ended between the two writes."""
    store.run(folder).sync(some(finished, 2))
    kept = folder.mlflow.read_json()
    folder.mlflow.write_json({"key": kept["key"]})
    store.run(folder).sync(finished)
    assert store.history("loss") == losses(finished)
    assert folder.mlflow.read_json() == kept


def test_another_run_where_there_is_none(store: Store, folder: RunFolder, finished: Snapshot) -> None:
    """In another experiment, and in place of one that somebody has deleted."""
    store.run(folder).sync(finished)
    store.run(folder, experiment="others").sync(finished)
    assert [len(store.runs(each)) for each in ("tests", "others")] == [1, 1]
    first = store.the_run().info.run_id
    store.client.delete_run(first)
    store.run(folder).sync(finished)
    assert store.the_run().info.run_id != first
    assert store.history("loss") == losses(finished)


def test_what_is_lacking(store: Store, folder: RunFolder, finished: Snapshot) -> None:
    run = store.run(folder)
    assert run.lacking(finished) == "what this attempt has done is not logged"
    run.sync(some(finished, 2))
    assert run.lacking(some(finished, 2)) == "how the run has ended may not be logged"
    assert run.lacking(some(finished, 3)) == "epoch 3 may not be logged"
    assert run.lacking(finished) == "epochs 3 to 5 and the result may not be logged"


def of_output(folder: RunFolder, day: int = 1, **score: Any) -> Snapshot:
    """Of a finished output, whose files are written."""
    metrics = {
        "model": {"path": "m", "sha256": "ab" * 32}, "after": {"accuracy": 0.5, "loss": None, "num_seen": 8},
        "score": {"images": 10, "quarantined": 2, "engine": "openvino", "precision": "float32", **score},
        "environment": {"finished": f"2026-01-0{day}T00:00:00+00:00"},
    }  # fmt: skip
    folder.metrics.write_json(metrics)
    folder.report.write_bytes(b"<h1>A report</h1>")
    return Snapshot(metrics=metrics)


def test_an_output(store: Store, tmp_path: Path) -> None:
    """It has neither epochs nor a model, and its folder may take another place in the end."""
    folder, place = RunFolder(Location.parse(tmp_path / ".out.new")), Location.parse(tmp_path / "out")
    run = MLflowRun(folder, store.uri, "tests", {"input": ("a", "b"), "engine": "openvino"}, place)
    run.sync(Snapshot())
    assert store.the_run().info.status == "RUNNING"
    run.sync(of_output(folder))
    run.end("FINISHED")
    found = store.the_run()
    assert (found.info.run_name, found.info.status) == ("out", "FINISHED")
    assert found.data.tags["mnist_ray.folder"] == str(place)
    assert found.data.params == {
        "input": "a, b", "engine": "openvino", "precision": "float32", "model_sha256": "ab" * 32
    }  # fmt: skip
    assert found.data.metrics == {"test_accuracy": 0.5, "score_images": 10, "score_quarantined": 2}
    assert {file.name for file in Path(found.info.artifact_uri).iterdir()} == {"report.html", "metrics.json"}
    assert store.models() == []


def test_results_that_have_changed_are_logged_again(store: Store, tmp_path: Path) -> None:
    folder = RunFolder(Location.parse(tmp_path / "out"))
    for day, quarantined in enumerate((2, 2, 0, 0), 1):
        run = store.run(folder)
        run.sync(Snapshot())
        run.sync(of_output(folder, day, quarantined=quarantined))
        run.end("FINISHED")
    assert store.history("score_quarantined") == [(0, 0), (0, 2)]
    assert store.history("score_images") == [(0, 10)]
    assert store.the_run().data.metrics["score_quarantined"] == 0
