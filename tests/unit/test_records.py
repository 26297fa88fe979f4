"""Every JSON file that is read back, in the hands of somebody else: one line, and nothing opened outside the folder."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnist_ray.console import Console
from mnist_ray.errors import InputError, RetryableError, UserError
from mnist_ray.models import files
from mnist_ray.predictions import parts
from mnist_ray.predictions.plan import Plan
from mnist_ray.predictions.verify import verify
from mnist_ray.report import page
from mnist_ray.report.context import report_context
from mnist_ray.runs.folder import RunFolder, versions
from mnist_ray.runs.records import TrainedModelRecord
from mnist_ray.scoring.ledger import Ledger
from mnist_ray.sources.formats.shards import Manifest, ShardedSource, read_shard
from mnist_ray.status import status
from mnist_ray.steps.result import show_finished
from mnist_ray.storage.lease import Holder
from mnist_ray.storage.location import Location, sha256
from mnist_ray.storage.records import read_checked, read_record
from mnist_ray.training import checkpoints
from mnist_ray.training.checkpoints import Checkpoint, StartsRecord
from tests.support.hostile import MISSING, NOT_AN_OBJECT, NOT_JSON, all_changes, changed, places
from tests.support.output_maker import make_output
from tests.support.report_maker import change, make_run
from tests.support.run_folders import CONFIG, PRINT

# What is made, and who reads it.


def finished_run(root: Path) -> None:
    run = make_run(root / "run", train=2, test=12, num_shards=1)
    (run / "config.json").write_text('{"config": {"seed": 0, "shards": null}}')
    metrics = json.loads((run / "metrics.json").read_text())
    after = {
        **metrics["after"],
        "confusion": [[5, 1], [0, 6]],
        "per_class": metrics["after"]["per_class"][:1],
        "calibration": {"ece": 0.1, "bins": [{"low": 0.9, "high": 1, "count": 12, "accuracy": 1, "confidence": 1}]},
    }
    change(
        run,
        after=after,
        environment={"host": "h"},
        train={**metrics["train"], "epochs": metrics["train"]["epochs"][:2]},
    )


def numbers(root: Path) -> None:
    """Without images, so that the report is made quickly."""
    finished_run(root)
    shutil.rmtree(root / "run" / "shards")
    shutil.rmtree(root / "run" / "predictions")


def marked(root: Path, file: str, content: dict[str, Any]) -> None:
    (root / "run").mkdir()
    config = {"config": {}, "fingerprint": PRINT, "versions": versions()}
    (root / "run" / "config.json").write_text(json.dumps(config))
    (root / "run" / file).write_text(json.dumps(content))


def failed(root: Path) -> None:
    marked(root, "failure.json", {"exit_code": 2, "message": "row 3 is broken", "fingerprint": PRINT, "job_uid": "uid"})


def prepared(root: Path) -> None:
    marked(root, "metrics.json", {})


def training(root: Path) -> None:
    epoch = {"epoch": 1, "loss": 0.5, "accuracy": 0.8, "seconds": 1.5, "images_per_second": 1000.0}
    record = {"phase": "train", "done": 64, "total": 640, "per_second": 5, "epoch": 1, "loss": 0.5, "accuracy": 0.75,
              "epochs": [epoch], "heartbeat": 1.7e9, "owner": {"host": "h", "pid": 1}}  # fmt: skip
    marked(root, "progress.json", record)


def output(root: Path) -> None:
    make_output(root / "out")
    metrics = json.loads((root / "out" / "metrics.json").read_text())
    metrics["after"] = {name: metrics["after"][name] for name in ("num_correct", "num_seen", "accuracy", "loss")}
    (root / "out" / "metrics.json").write_text(json.dumps(metrics))


def reported_output(root: Path) -> None:
    output(root)
    config = {"input": ["photos"], "model": "m.keras", "output": "out", "top_k": None, "gray": True}
    change(root / "out", config=config, dataset={"name": "d", "image_shape": [4, 4], "classes": ["a", "b", "c", "d"]})


def dataset(root: Path) -> None:
    """One shard for each split, with their true sha256."""
    entries = {}
    for split, rows in (("train", 3), ("test", 2)):
        path = root / "shards" / split / "part-00000.parquet"
        path.parent.mkdir(parents=True)
        table = {
            "id": np.arange(rows),
            "image": pa.array([bytes(4)] * rows, pa.binary(4)),
            "label": np.zeros(rows, int),
        }
        pq.write_table(pa.table(table).replace_schema_metadata({"image_shape": "[2, 2]"}), path)
        entries[split] = [{"path": f"{split}/{path.name}", "rows": rows, "sha256": sha256(path.read_bytes())}]
    content = {"name": "d", "image_shape": [2, 2], "classes": ["a", "b"], "digest": "d" * 64,
               "shards": entries, "counts": {"train": 3, "test": 2}}  # fmt: skip
    (root / "shards" / "dataset.json").write_text(json.dumps(content))


def model(root: Path) -> None:
    (root / "model").mkdir()
    (root / "model" / "classifier.keras").write_bytes(b"an archive")
    recipe = {"architecture": "mlp", "image_shape": [2, 2], "num_classes": 2, "dropout": 0.2, "seed": 0,
              "precision": "float32"}  # fmt: skip
    trained = {"num_workers": 2, "batch_size": 64, "seconds": 1.5, "milliseconds_per_step": 1.5, "restarts": 0,
               "epochs": [{"epoch": 1, "loss": 0.5, "accuracy": 0.8, "seconds": 1.5}]}  # fmt: skip
    content = {"sha256": sha256(b"an archive"), "input_shape": [2, 2], "num_classes": 2, "classes": ["a", "b"],
               "pixels": "0-255", "recipe": recipe, "trained": trained}  # fmt: skip
    (root / "model" / "model.json").write_text(json.dumps(content))


def starts(root: Path) -> None:
    (root / "starts.json").write_text('{"starts": 3}')


def read_status(root: Location) -> None:
    status(str(root / "run"))


def read_prepare(root: Location) -> None:
    """On a copy, as it changes the folder."""
    copy = root / "copy"
    shutil.rmtree(copy.path, ignore_errors=True)
    shutil.copytree((root / "run").path, copy.path)
    RunFolder(copy).prepare(CONFIG, {**PRINT, "epochs": 6}, fresh=False)


def read_report(root: Location) -> None:
    report_context(root / "run")


def read_report_of_output(root: Location) -> None:
    report_context(root / "out", reference=root / "out")


def read_result(root: Location) -> None:
    show_finished(RunFolder(root / "run"), Console(io.StringIO()))


def read_verify(root: Location) -> None:
    verify(root / "out")


def read_resume(root: Location) -> None:
    plan = Plan.load(root / "out")
    assert plan is not None
    Ledger(plan, root / "out", parts.resume(root / "out", plan), max_bad=1, on_progress=None).finished()


def read_dataset(root: Location) -> None:
    manifest = Manifest.load(root / "shards")
    for shard in manifest.shards.values():
        read_shard(root / "shards", shard[0], manifest.image_shape)
    ShardedSource.open(root / "shards")


def read_model(root: Location) -> None:
    files.digest(root / "model")


def read_trained(root: Location) -> None:
    read_checked(root / "model" / "model.json", TrainedModelRecord, "train again")


def read_starts(root: Location) -> None:
    read_record(root / "starts.json", StartsRecord, "start again")


@dataclass(frozen=True)
class Case:
    file: str
    make: Callable[[Path], None]
    read: Callable[[Location], None]
    kind: type[UserError] = InputError
    allows: tuple[str, ...] = ()
    """Contents that are not objects, and that are right all the same."""


CASES = {
    "metrics.json by status": Case("run/metrics.json", finished_run, read_status, allows=("nothing in it",)),
    "metrics.json by report": Case("run/metrics.json", numbers, read_report, allows=("nothing in it",)),
    "metrics.json of an output by report": Case(
        "out/metrics.json", reported_output, read_report_of_output, allows=("nothing in it",)
    ),
    "metrics.json by run": Case("run/metrics.json", finished_run, read_result),
    "metrics.json by verify": Case("out/metrics.json", output, read_verify, RetryableError),
    "config.json by report": Case("run/config.json", finished_run, read_report, allows=("nothing in it",)),
    "config.json by run": Case("run/config.json", prepared, read_prepare),
    "failure.json by status": Case("run/failure.json", failed, read_status),
    "failure.json by run": Case("run/failure.json", failed, read_prepare),
    "progress.json by status": Case("run/progress.json", training, read_status),
    "dataset.json by report": Case("run/shards/dataset.json", finished_run, read_report),
    "dataset.json by train": Case("shards/dataset.json", dataset, read_dataset),
    "_plan.json by score": Case("out/_plan.json", output, read_resume),
    "_plan.json by report": Case("out/_plan.json", reported_output, read_report_of_output),
    "_plan.json by verify": Case("out/_plan.json", output, read_verify, RetryableError),
    "_manifest.json by verify": Case("out/_manifest.json", output, read_verify, RetryableError),
    "model.json by score": Case("model/model.json", model, read_model),
    "model.json by train": Case("model/model.json", model, read_trained),
    "starts.json by train": Case("starts.json", starts, read_starts),
}


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that are read or listed, each of them within the folder."""
    paths: list[str] = []
    root = os.path.realpath(tmp_path)

    def watched(name: str) -> None:
        original = getattr(Location, name)

        def watch(self: Location, *arguments: Any, **named: Any) -> Any:
            inside = os.path.realpath(self.path)
            assert inside == root or inside.startswith(f"{root}/"), self.path
            paths.append(inside)
            return original(self, *arguments, **named)

        monkeypatch.setattr(Location, name, watch)

    monkeypatch.setenv("MNIST_RAY_JOB_UID", "uid")
    for name in ("read_bytes", "open_file", "list", "delete", "write_bytes"):
        watched(name)
    return paths


def refusal(case: Case, root: Path) -> str | None:
    """The message with which a reader refuses the file; None where it takes it."""
    try:
        case.read(Location.parse(root))
        return None
    except case.kind as error:
        message = str(error).replace(str(root), "ROOT")
    assert message.isprintable(), message
    assert len(message) < 600, message
    return message


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("opened")
def test_what_is_no_record(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    case.make(tmp_path)
    assert refusal(case, tmp_path) is None
    for words, content in {**NOT_JSON, **NOT_AN_OBJECT}.items():
        (tmp_path / case.file).write_bytes(content)
        message = refusal(case, tmp_path)
        assert (message is None) == (words in case.allows), (words, message)
        assert message is None or case.file.rpartition("/")[2] in message


@pytest.mark.parametrize("name", CASES)
def test_any_value_at_any_place_is_one_line_or_does_no_harm(name: str, tmp_path: Path, opened: list[str]) -> None:
    case = CASES[name]
    case.make(tmp_path)
    place = tmp_path / case.file
    good = json.loads(place.read_text())
    refused = 0
    for words, content in all_changes(good):
        place.write_text(json.dumps(content))
        try:
            refused += refusal(case, tmp_path) is not None
        except Exception as error:
            raise AssertionError(f"{words}: {type(error).__name__}: {error}") from error
    assert refused
    assert opened


@pytest.mark.drill
def test_the_report_shows_whatever_it_takes(tmp_path: Path) -> None:
    numbers(tmp_path)
    place = tmp_path / "run" / "metrics.json"
    good = json.loads(place.read_text())
    shown = 0
    for path in places(good):
        for value in (MISSING, None, 0):
            place.write_text(json.dumps(changed(good, path, value)))
            with suppress(InputError):
                shown += "</html>" in page._render(report_context(Location.parse(tmp_path / "run")))
    assert shown > 100


# What must be refused, and what a user reads.

REFUSED: dict[str, list[tuple[tuple[Any, ...], Any, str]]] = {
    "metrics.json by report": [
        (("after", "num_correct"), "many", "`after.num_correct` must be a valid integer"),
        (("after", "num_correct"), 13, "`after` has 13 correct of 12"),
        (("after", "confusion", 0), [1], "`after.confusion` must be a square matrix"),
        (("train", "epochs", 1, "loss"), float("nan"), "`train.epochs[1].loss` must be a finite number"),
        (("seconds", "train"), -1, "`seconds.train` must be 0 or more, and finite"),
        (("dataset", "classes"), 10**12, "`dataset.classes` must be the names of the classes, or their number"),
    ],
    "failure.json by status": [
        (("message",), "one\ntwo", "`message` must be one line without control characters"),
        (("exit_code",), MISSING, "`exit_code` is missing"),
        (("job_uid",), "one\ntwo", "`job_uid` must be one line without control characters"),
    ],
    "progress.json by status": [
        (("done",), -5, "`done` must be from 0 to 2**53"),
        (("heartbeat",), float("inf"), "`heartbeat` must be a finite number"),
        (("epoch",), MISSING, "its content has no `epoch`"),
    ],
    "dataset.json by train": [
        (("shards", "test", 0, "path"), "../../x", "`shards.test[0].path` must be a path within the file's folder"),
        (("shards", "test", 0, "path"), "/etc/passwd", "must be a path within the file's folder"),
        (("shards", "test", 0, "path"), "s3://bucket/x", "must be a path within the file's folder"),
        (("shards", "test", 0, "path"), "test/./../../x", "must be a path within the file's folder"),
        (("shards", "test", 0, "rows"), -2, "`shards.test[0].rows` must be from 0 to 2**53"),
        (("shards", "test", 0, "sha256"), "ab" * 31, "`shards.test[0].sha256` must be 64 hex digits"),
        (("shards", "../x"), [], "must be train, test or all"),
        (("shards", "test"), [], "`shards` must have a shard for each split"),
        (("image_shape",), [2, 2, 2], "`image_shape` must be (h, w) or (h, w, 3)"),
        (("image_shape",), [2, 10**9], "`image_shape` must be (h, w) or (h, w, 3)"),
        (("counts", "test"), 3, "its counts are not those of its shards"),
    ],
    "dataset.json by report": [
        (("shards", "test", 0, "path"), "../../x", "`shards.test[0].path` must be a path within the file's folder"),
    ],
    "_plan.json by score": [
        (("units", 1), [6, 6], "`units` must be row ranges in order, of 1 to 131,072 rows"),
        (("units", 1), [5, 11], "`units` must be row ranges in order"),
        (("units", 1), [6, 10**15], "`units` must be row ranges in order"),
        (("units", 0), [-1, 6], "`units` must be row ranges in order"),
        (("pixels",), "0-2", "`pixels` must be 0-255, 0-1 or -1-1"),
        (("num_classes",), 10**9, "`num_classes` must be from 1 to 10 million"),
        (("classes",), ["a"], "its content has 1 class names for 4 classes"),
        (("top_k",), 5, "its content keeps the top 5 of 4 classes"),
        (("model_sha256",), "AB" * 32, "`model_sha256` must be 64 hex digits"),
        (("more",), 1, "`more` is not a field of it"),
    ],
    "_manifest.json by verify": [
        (("parts", 0, "path"), "../x.parquet", "`parts[0].path` must be the name of a part"),
        (("parts", 0, "path"), "_plan.json", "`parts[0].path` must be the name of a part"),
        (("quarantine", 0, "path"), "quarantine/../../x", "`quarantine[0].path` must be the name of a part"),
        (("parts", 0, "rows"), True, "`parts[0].rows` must be a valid integer"),
    ],
    "model.json by score": [
        (("recipe", "image_shape"), ["touch", "x"], "`recipe.image_shape[0]` must be a valid integer"),
        (("recipe", "dropout"), 1.5, "`recipe.dropout` must be from 0 to 1"),
        (("classes",), ["a"], "its content has 1 classes, but a recipe for 2"),
        (("pixels",), None, "`pixels` must be a valid string"),
    ],
    "model.json by train": [(("trained", "epochs"), [], "`trained.epochs` must have at least one")],
    "starts.json by train": [(("starts",), "3", "`starts` must be a valid integer")],
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.usefixtures("opened")
def test_the_field_and_what_is_wrong_are_named(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    case.make(tmp_path)
    place = tmp_path / case.file
    good = json.loads(place.read_text())
    for path, value, words in REFUSED[name]:
        place.write_text(json.dumps(changed(good, path, value)))
        message = refusal(case, tmp_path)
        assert message is not None, (path, value)
        assert words in message
        assert f"{place.name} is damaged: " in message


# Records within files of other kinds.


@pytest.mark.usefixtures("opened")
def test_a_part_with_foreign_metadata_is_scored_again_and_differs(tmp_path: Path) -> None:
    make_output(tmp_path / "out")
    output, file = Location.parse(tmp_path / "out"), tmp_path / "out" / "part-00001.parquet"
    plan = Plan.load(output)
    assert plan is not None
    whole = pq.read_table(file)
    good = json.loads(whole.schema.metadata[parts.METADATA])
    hostile = [content for _, content in all_changes(good)]
    refused = 0
    for content in [*(json.dumps(each).encode() for each in hostile), *NOT_JSON.values(), *NOT_AN_OBJECT.values()]:
        pq.write_table(whole.replace_schema_metadata({parts.METADATA: content}), file)
        found = parts.committed(output, plan, 1)
        refused += found is None
        assert found is None or found.tally.num_seen >= 0
    assert refused > len(hostile) / 2
    with pytest.raises(RetryableError, match=r"part-00001\.parquet has another sha256"):
        verify(output)


def test_a_checkpoint_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    meta = {"epochs": [{"epoch": 1, "loss": 0.1, "seconds": 2.0}], "tallies": [1.5], "seconds": 0.5}
    folder = Location.parse(tmp_path)

    def load(data: bytes) -> Checkpoint | None:
        for old in tmp_path.iterdir():
            old.unlink()
        (tmp_path / f"step-0000000001-{sha256(data)}.npz").write_bytes(data)
        warnings: list[str] = []
        found = checkpoints.load_newest(folder, warnings.append)
        assert [each.isprintable() for each in warnings] == [True] * (found is None)
        return found

    assert load(Checkpoint(1, [np.zeros(2)], meta).to_bytes()) is not None
    refused = [words for words, changed in all_changes(meta) if load(Checkpoint(1, [], changed).to_bytes()) is None]
    for words in (
        "('epochs',) missing",
        "('epochs', 0, 'seconds') = 'nan'",
        "('seconds',) = '-1'",
        "('tallies', 0) = 'x'",
    ):
        assert words.replace("'nan'", repr("nan")) in refused
    assert load(b"not a zip file") is None
    assert load(b"") is None


@pytest.mark.parametrize("content", [*NOT_JSON.values(), *NOT_AN_OBJECT.values()])
def test_a_lease_of_somebody_else_counts_as_none(content: bytes) -> None:
    assert Holder.from_bytes(content) is None


def test_a_lease_with_other_values() -> None:
    good = json.loads(Holder.new().to_bytes())
    for field, value in (("count", "1"), ("count", -1), ("process", "b/../../etc"), ("token", 5), ("host", "a\nb")):
        assert Holder.from_bytes(json.dumps({**good, field: value}).encode()) is None, (field, value)
    assert Holder.from_bytes(json.dumps(good).encode()) is not None
