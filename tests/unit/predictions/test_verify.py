"""The checker against planted damage, each kind by its name; outputs are made without Ray and without a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnist_ray.errors import InputError, RetryableError
from mnist_ray.predictions.tally import Tally
from mnist_ray.predictions.verify import verify
from mnist_ray.storage.location import Location, sha256
from tests.support.output_maker import NAMES, make_output


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "out"
    make_output(folder)
    return folder


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "out"))


@pytest.mark.parametrize("changed", [{}, {"top_k": 2}, {"classes": NAMES}, {"classes": NAMES, "top_k": 4}, {"bad": ()}])
def test_what_is_whole_is_said_to_be(tmp_path: Path, changed: dict[str, Any]) -> None:
    made = make_output(tmp_path / "out", **changed)
    verified = verify(Location.parse(tmp_path / "out"))
    bad = len(changed.get("bad", (7, 8, 13)))
    assert (verified.images, verified.scored, verified.quarantined, verified.parts) == (18, 18 - bad, bad, 3)
    rows = np.setdiff1d(np.arange(18), [7, 8, 13] if bad else [])
    known = made["labels"][rows] >= 0
    right = (made["labels"] == made["predictions"])[rows]
    assert (verified.tally.num_correct, verified.tally.num_seen) == (int(right.sum()), int(known.sum()))
    assert f"18 images = {18 - bad} scored + {bad} quarantined in 3 parts, each once" in str(verified)


def test_the_users_own_ids_may_be_there_twice(tmp_path: Path) -> None:
    """They are carried; numbers and names alike, also where they happen to be out of order."""
    for number, ids in enumerate((np.zeros(18, np.int64), np.array(["same"] * 18, object), np.arange(18)[::-1])):
        make_output(tmp_path / str(number), ids=ids)
        assert verify(Location.parse(tmp_path / str(number))).scored == 15


def test_files_that_were_passed_over_are_counted(out: Path) -> None:
    manifest = json.loads((out / "_manifest.json").read_text())
    (out / "_manifest.json").write_text(json.dumps(manifest | {"passed_over": {".txt": 1200, "val/": 1}}))
    verified = verify(Location.parse(out))
    assert verified.passed_over == 1201
    assert "in 3 parts, each once; 1,201 other files were passed over; " in str(verified)
    (out / "_manifest.json").write_text(json.dumps(manifest | {"passed_over": {".txt": -1}}))
    with pytest.raises(RetryableError, match=r"`passed_over\['.txt'\]` must be"):
        verify(Location.parse(out))


# Damage.


def rewrite(out: Path, name: str, change: Callable[[pa.Table], pa.Table], **changed: Any) -> None:
    """Another table under a sha256 that the manifest agrees with. changed: of the part's metadata."""
    table = pq.read_table(out / name)
    metadata = table.schema.metadata or {}
    if changed:
        metadata = {b"mnist_ray": json.dumps({**json.loads(metadata[b"mnist_ray"]), **changed}).encode()}
    pq.write_table(change(table).replace_schema_metadata(metadata), out / name)
    agree(out, name)


def agree(out: Path, *names: str) -> None:
    """Enter the files as they are now into the manifest."""
    manifest = json.loads((out / "_manifest.json").read_text())
    for entry in [*manifest["parts"], *manifest["quarantine"]]:
        if entry["path"] in names:
            data = (out / entry["path"]).read_bytes()
            entry |= {"sha256": sha256(data), "rows": pq.read_metadata(out / entry["path"]).num_rows}
    (out / "_manifest.json").write_text(json.dumps(manifest))


def replaced(name: str, values: list[Any]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(name)
        return table.set_column(place, name, pa.array(values, table.schema.field(name).type))

    return change


def edit(out: Path, file: str, **changed: Any) -> None:
    content = json.loads((out / file).read_text())
    (out / file).write_text(json.dumps({**content, **changed}))


def swap(out: Path) -> None:
    one, other, between = out / "part-00000.parquet", out / "part-00001.parquet", out / "between"
    one.rename(between)
    other.rename(one)
    between.rename(other)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def swap_and_agree(out: Path) -> None:
    swap(out)
    agree(out, "part-00000.parquet", "part-00001.parquet")


def of_another_job(out: Path) -> None:
    make_output(out.parent / "other", input_digest="ef" * 32)
    shutil.copy(out.parent / "other" / "part-00000.parquet", out)
    agree(out, "part-00000.parquet")


def stale(out: Path) -> None:
    """The manifest of an earlier making of the same."""
    make_output(out.parent / "earlier", seed=1)
    shutil.copy(out.parent / "earlier" / "_manifest.json", out)


def extra_quarantine(out: Path) -> None:
    shutil.copy(out / "quarantine" / "part-00001.parquet", out / "quarantine" / "part-00000.parquet")


def boast(out: Path, **changed: Any) -> None:
    metrics = json.loads((out / "metrics.json").read_text())
    edit(out, "metrics.json", after={**metrics["after"], **changed})


def relabel(out: Path) -> None:
    labels = pq.read_table(out / "part-00000.parquet")["label"].to_pylist()
    rewrite(out, "part-00000.parquet", replaced("label", [None if label is None else 3 - label for label in labels]))


def repredict(out: Path) -> None:
    predictions = pq.read_table(out / "part-00000.parquet")["prediction"].to_pylist()
    rewrite(out, "part-00000.parquet", replaced("prediction", [(number + 1) % 4 for number in predictions]))


def other_plan(out: Path) -> None:
    edit(out, "_plan.json", input_digest="ef" * 32)


PART, ASIDE = "part-00001.parquet", "quarantine/part-00001.parquet"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing part": (lambda out: (out / PART).unlink(), r"part-00001\.parquet is missing"),
    "truncated part": (lambda out: truncate(out / PART), r"part-00001\.parquet has another sha256"),
    "truncated and agreed to": (
        lambda out: (truncate(out / PART), edit(out, "_manifest.json", parts=[
            {**entry, "sha256": sha256((out / entry["path"]).read_bytes())}
            for entry in json.loads((out / "_manifest.json").read_text())["parts"]
        ])),
        r"part-00001\.parquet cannot be read \(ArrowInvalid",
    ),
    "empty part": (lambda out: (out / PART).write_bytes(b""), r"part-00001\.parquet has another sha256"),
    "flipped bit": (lambda out: flip(out / PART), r"part-00001\.parquet has another sha256"),
    "two parts swapped": (swap, r"part-00000\.parquet has another sha256; part-00001\.parquet has another sha256"),
    "swapped and agreed to": (swap_and_agree, r"part-00000\.parquet is unit 1, not 0; part-00001\.parquet is unit 0"),
    "part of another job": (of_another_job, r"part-00000\.parquet belongs to another job"),
    "duplicate rows": (
        lambda out: rewrite(out, PART, lambda table: pa.concat_tables([table, table.slice(2)])),
        r"the images of part-00001\.parquet is 6, not 5",
    ),
    "missing rows": (
        lambda out: rewrite(out, PART, lambda table: table.slice(1)),
        r"the images of part-00001\.parquet is 4, not 5",
    ),
    "rows in another order": (
        lambda out: rewrite(out, PART, lambda table: table.take([2, 1, 0])), "has other ids than were written"
    ),
    "duplicate id": (
        lambda out: rewrite(out, PART, replaced("id", [6, 9, 9])),
        r"part-00001\.parquet has other ids than were written \(1 of them more than once, the first 9\)",
    ),
    "id of another part": (
        lambda out: rewrite(out, PART, replaced("id", [6, 9, 0])), r"part-00001\.parquet has other ids than were"
    ),
    "stale manifest": (stale, r"part-00000\.parquet has another sha256"),
    "counts of the manifest": (
        lambda out: edit(out, "_manifest.json", scored=16, images=19),
        "the manifest's images is 19, not 18; the manifest's scored is 16, not 15",
    ),
    "quarantined of the manifest": (
        lambda out: edit(out, "_manifest.json", quarantined=0), "the manifest's quarantined is 0, not 3"
    ),
    "model of the manifest": (
        lambda out: edit(out, "_manifest.json", model_sha256="12" * 32),
        "the manifest's model is 121212121212, not abababababab",
    ),
    "classes of the manifest": (
        lambda out: edit(out, "_manifest.json", classes=["dog", "cat", "bee", "ape"]),
        r"the manifest's classes is dog,cat,bee,ape, not None",
    ),
    "pixels of the manifest": (
        lambda out: edit(out, "_manifest.json", pixels="0-1"), "the manifest's pixels is 0-1, not 0-255"
    ),
    "quarantine twice in the manifest": (
        lambda out: edit(
            out, "_manifest.json", quarantine=2 * json.loads((out / "_manifest.json").read_text())["quarantine"]
        ),
        r"the manifest's quarantine has a file twice",
    ),
    "a part left out of the manifest": (
        lambda out: edit(out, "_manifest.json", parts=json.loads((out / "_manifest.json").read_text())["parts"][:2]),
        r"the number of parts is 2, not 3.*part-00002\.parquet is not in the manifest",
    ),
    "damaged manifest": (lambda out: (out / "_manifest.json").write_text("{}"), r"_manifest\.json is damaged"),
    "manifest that is not JSON": (
        lambda out: (out / "_manifest.json").write_text('{"images": 1'), r"_manifest\.json is not JSON"
    ),
    "plan that is not JSON": (lambda out: truncate(out / "_plan.json"), r"differs .*_plan\.json is not JSON"),
    "missing plan": (lambda out: (out / "_plan.json").unlink(), r"differs .* holds parts but no _plan\.json"),
    "metrics.json that is not JSON": (lambda out: truncate(out / "metrics.json"), r"metrics\.json is damaged"),
    "metrics.json of something else": (
        lambda out: (out / "metrics.json").write_text("[]"), r"metrics\.json is damaged"
    ),
    "no manifest": (lambda out: (out / "_manifest.json").unlink(), "is unfinished"),
    "changed plan": (other_plan, r"part-00000\.parquet belongs to another job; part-00001\.parquet belongs to"),
    "extra part": (
        lambda out: shutil.copy(out / PART, out / "part-00009.parquet"), r"part-00009\.parquet is not in the manifest"
    ),
    "extra quarantine": (extra_quarantine, r"quarantine/part-00000\.parquet is not in the manifest"),
    "missing quarantine": (lambda out: (out / ASIDE).unlink(), r"quarantine/part-00001\.parquet is missing"),
    "flipped quarantine": (lambda out: flip(out / ASIDE), r"quarantine/part-00001\.parquet has another sha256"),
    "changed quarantine": (
        lambda out: rewrite(out, ASIDE, replaced("row", [7, 7])),
        r"quarantine/part-00001\.parquet has another sha256; the quarantine of part-00001\.parquet is not in the",
    ),
    "quarantine forgotten": (
        lambda out: rewrite(out, PART, lambda table: table, quarantine=None),
        r"the images of part-00001\.parquet is 3, not 5.*quarantine/part-00001\.parquet belongs to no part",
    ),
    "accuracy of metrics.json": (lambda out: boast(out, accuracy=1.0), r"metrics\.json has another accuracy"),
    "counts of metrics.json": (
        lambda out: boast(out, num_correct=15, num_seen=15),
        r"metrics\.json has another num_correct; metrics\.json has another num_seen",
    ),
    "loss of metrics.json": (lambda out: boast(out, loss=0.5), r"metrics\.json has another loss"),
    "calibration of metrics.json": (
        lambda out: boast(out, calibration={"ece": 0.0, "bins": []}), r"metrics\.json has another calibration"
    ),
    "no accuracy in metrics.json": (
        lambda out: edit(out, "metrics.json", after=None), r"metrics\.json has no `after` of the \d+ labelled images"
    ),
    "images of metrics.json": (
        lambda out: edit(out, "metrics.json", score={"images": 18, "quarantined": 0}),
        r"the quarantined of metrics\.json is 0, not 3",
    ),
    "not the most probable": (
        repredict, r"part-00000\.parquet has predictions that are not its most probable classes"
    ),
    "changed labels": (relabel, r"part-00000\.parquet has counts that do not match its rows"),
    "changed counts": (
        lambda out: rewrite(out, PART, lambda table: table, tally=Tally.zero(4).to_json()),
        r"part-00001\.parquet has counts that do not match its rows",
    ),
    "a column gone": (
        lambda out: rewrite(out, PART, lambda table: table.drop_columns(["label"])),
        r"part-00001\.parquet cannot be read \(KeyError",
    ),
    "no metadata": (
        lambda out: pq.write_table(pq.read_table(out / PART).replace_schema_metadata(None), out / PART)
        or agree(out, PART),
        r"part-00001\.parquet cannot be read \(TypeError",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(out: Path, kind: str) -> None:
    harm, said = DAMAGE[kind]
    harm(out)
    with pytest.raises(RetryableError, match=said) as refusal:
        verify(Location.parse(out))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", [PART, ASIDE])
def test_a_damaged_file_is_one_line_whatever_sums_it_changes(out: Path, name: str) -> None:
    flip(out / name)
    with pytest.raises(RetryableError) as refusal:
        verify(Location.parse(out))
    assert str(refusal.value) == f"{out} differs from what was written: {name} has another sha256"


def test_processes_find_what_threads_find(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mnist_ray.predictions.verify._MANY_PARTS", 3)
    assert str(verify(Location.parse(out), processes=2)) == str(verify(Location.parse(out)))
    flip(out / "part-00000.parquet")
    (out / ASIDE).unlink()
    rewrite(out, "part-00002.parquet", replaced("label", [0] * 6))
    said = []
    for processes in (1, 2):
        with pytest.raises(RetryableError) as refusal:
            verify(Location.parse(out), processes=processes)
        said.append(str(refusal.value))
    assert said[0] == said[1]
    assert said[0].count("; ") >= 2


def test_a_long_verification_tells_how_far_it_is(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mnist_ray.predictions.verify._NOTIFY_SECONDS", 0.0)
    lines: list[str] = []
    verify(Location.parse(out), notify=lines.append)
    assert lines == [f"verifying {out}: {number} of 3 parts …" for number in (1, 2, 3)]


def test_rows_out_of_order_are_damage_also_where_the_part_agrees(out: Path) -> None:
    """Its ids are the rows' numbers, so it cannot be that the user's own are out of order."""
    edit(out, "_manifest.json", ids="row")
    assert verify(Location.parse(out)).scored == 15
    ids = [10, 6, 9]
    rewrite(out, PART, lambda table: table.take([2, 0, 1]), ids=sha256(np.array(ids).tobytes()))
    assert pq.read_table(out / PART)["id"].to_pylist() == ids
    with pytest.raises(RetryableError, match=r"part-00001\.parquet does not have the rows of the input in their order"):
        verify(Location.parse(out))


def test_two_parts_that_name_the_same_quarantine(out: Path) -> None:
    entry = json.loads((out / "_manifest.json").read_text())["quarantine"][0]
    rewrite(out, "part-00002.parquet", lambda table: table, quarantine=entry)
    with pytest.raises(RetryableError, match=r"part-00001\.parquet lists rows twice, or rows of other parts"):
        verify(Location.parse(out))


def test_the_users_ids_may_not_change(tmp_path: Path) -> None:
    make_output(tmp_path / "out", ids=np.array([f"name-{row // 2}" for row in range(18)], object))
    rewrite(tmp_path / "out", PART, replaced("id", ["name-3", "name-3", "name-5"]))
    with pytest.raises(
        RetryableError, match=r"other ids than were written \(1 of them more than once, the first 'name-3'\)"
    ):
        verify(Location.parse(tmp_path / "out"))


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("class", ["ape", "ape", "ape"], "class names that are not those of its predictions"),
        ("top_classes", [[0, 1], [0, 1], [0, 1]], "predictions that are not its most probable classes"),
        ("top_probabilities", [[0.1, 0.9]] * 3, "predictions that are not its most probable classes"),
    ],
)
def test_damage_of_names_and_of_the_top(tmp_path: Path, column: str, values: list[Any], said: str) -> None:
    make_output(tmp_path / "out", classes=NAMES, top_k=2)
    rewrite(tmp_path / "out", PART, replaced(column, values))
    with pytest.raises(RetryableError, match=said):
        verify(Location.parse(tmp_path / "out"))


def test_a_runs_model_that_was_replaced(whole: Path, tmp_path: Path) -> None:
    model = tmp_path / "run" / "model" / "classifier.keras"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"the model")
    make_output(tmp_path / "run" / "predictions", model_sha256=sha256(b"the model"))
    assert verify(Location.parse(tmp_path / "run")).images == 18
    model.write_bytes(b"another model")
    with pytest.raises(RetryableError, match="the run's model is"):
        verify(Location.parse(tmp_path / "run"))


def test_where_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no predictions"):
        verify(Location.parse(tmp_path))
