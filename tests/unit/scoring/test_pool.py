"""Scoring against plain single-process Keras, to the row; resuming, quarantine, and a checker that notices."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tracemalloc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnist_ray.errors import InputError, LeaseLostError, RetryableError, TooManyBadImagesError
from mnist_ray.models import build, conversion, files, runtime
from mnist_ray.models.conversion import NotConverted
from mnist_ray.models.engines.openvino import ConvertedClassifier
from mnist_ray.predictions import parts, plan
from mnist_ray.predictions.plan import Plan
from mnist_ray.predictions.tally import Tally
from mnist_ray.predictions.verify import verify
from mnist_ray.scoring import actor, dispatch
from mnist_ray.scoring.actor import Scorer
from mnist_ray.scoring.pool import ActorPool, _require_version
from mnist_ray.scoring.task import Settings, Task
from mnist_ray.sources.base import Reading, Source
from mnist_ray.sources.open import open_source
from mnist_ray.sources.pixels import Conversion
from mnist_ray.storage.attempt import end_older
from mnist_ray.storage.location import Location, sha256
from tests.support.data_makers import images, labels, write_folders, write_npz, write_parquet
from tests.support.reading import opened
from tests.support.scored import CLASSES, RECIPE, SHAPE

pytestmark = pytest.mark.tensorflow


# The whole, by Ray.


@pytest.fixture(scope="module")
def pool(ray_local: None) -> Iterator[ActorPool]:
    with ActorPool(2) as scorers:
        yield scorers


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Location:
    """A run's folder with a model whose predictions vary."""
    classifier = build.build(RECIPE)
    generator = np.random.default_rng(3)
    classifier.set_weights([weight + generator.normal(0, 0.2, weight.shape) for weight in classifier.get_weights()])
    folder = Location.parse(tmp_path_factory.mktemp("run"))
    files.save(classifier, folder / "model", RECIPE, CLASSES, {})
    return folder


def sharded(folder: Path, sizes: tuple[int, ...] = (5, 1, 9, 4, 7, 2), **changed: Any) -> Source:
    for number, rows in enumerate(sizes):
        write_parquet(folder / f"{number}.parquet", rows, shape=SHAPE, named_shape=True, **changed)
    return open_source(str(folder))


def plain(of: Location, source: Source, split: str, rows: int) -> tuple[np.ndarray, Tally]:
    """Logits and tally as Keras alone gives them: the reference."""
    keras = runtime.import_keras()
    classifier = keras.saving.load_model(files.locate(of)[0].path, compile=False)
    batch = source.read(split, 0, rows)
    logits = classifier.predict(batch.images, batch_size=16, verbose=0)
    losses = keras.losses.sparse_categorical_crossentropy(batch.labels, logits, from_logits=True)
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    confidences = (probabilities.max(1) / probabilities.sum(1)).astype(np.float32)
    tally = Tally.of(batch.labels, logits.argmax(1), np.asarray(losses, np.float64), confidences, logits.shape[1])
    return logits, tally


def same(tally: Tally, expected: Tally) -> None:
    assert (tally.num_correct, tally.num_seen) == (expected.num_correct, expected.num_seen)
    assert tally.confusion.matrix().tolist() == expected.confusion.matrix().tolist()
    assert tally.loss == pytest.approx(expected.loss, abs=1e-5, rel=1e-6)
    assert tally.calibration()["ece"] == pytest.approx(expected.calibration()["ece"], abs=1e-5)


def parts_of(output: Location) -> pa.Table:
    return pa.concat_tables(
        [pq.read_table(file.path) for file in output.list() if file.name.startswith("part-")]
    )  # fmt: skip


def times_of(output: Location) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in Path(output.path).rglob("*") if file.is_file()}


@pytest.mark.ray
@pytest.mark.parametrize("limit", [None, 1, 14, 15, 16])
def test_scores_are_those_of_plain_keras(pool: ActorPool, run: Location, tmp_path: Path, limit: int | None) -> None:
    source, output = sharded(tmp_path / "data"), Location.parse(tmp_path / "out")
    rows = limit or 28
    told: list[tuple[int, int, int]] = []
    scored = pool.score(
        run, source, "all", output, max_bad=0, settings=Settings(limit=limit), on_progress=lambda *now: told.append(now)
    )
    logits, expected = plain(run, source, "all", rows)
    same(scored.tally, expected)
    assert (scored.images, scored.scored, scored.quarantined, scored.plan.pixels) == (rows, rows, 0, "0-255")
    assert scored.seconds > 0
    assert told[-1] == (rows, rows, 0)
    assert told == sorted(told)

    table = parts_of(output)
    assert table.schema.names == ["id", "label", "prediction", "probabilities"]
    assert table["id"].to_pylist() == list(range(rows))
    assert table["label"].to_pylist() == source.read("all", 0, rows).labels.tolist()
    assert table["prediction"].to_pylist() == logits.argmax(1).tolist()
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    np.testing.assert_allclose(np.array(table["probabilities"].to_pylist()), probabilities, rtol=1e-4, atol=1e-7)

    manifest = (output / "_manifest.json").read_json()
    assert (manifest["images"], manifest["scored"], manifest["quarantined"]) == (rows, rows, 0)
    assert manifest["ids"] == "row"
    assert not [file for file in output.list() if file.name.startswith(".attempt-")]
    assert manifest["model_sha256"] == files.digest(run)
    for part in manifest["parts"]:
        assert part["sha256"] == sha256((output / part["path"]).read_bytes())
    assert sum(part["rows"] for part in manifest["parts"]) == rows
    verified = verify(output)
    assert (verified.images, verified.scored, verified.quarantined) == (rows, rows, 0)
    same(verified.tally, scored.tally)


def test_the_pixels_of_a_unit_are_let_go_of(run: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sharded(tmp_path / "data", (500,))
    read: list[weakref.ref[Any]] = []
    stream = type(source).stream

    def in_steps(source: Source, split: str, start: int, stop: int, **more: Any) -> Iterator[Any]:
        for first in range(start, stop, 100):
            for batch in stream(source, split, first, first + 100, **more):
                copied = batch.images.copy()
                read.append(weakref.ref(copied))
                yield replace(batch, images=copied)
                del copied

    def commit(*_: Any) -> int:
        gc.collect()
        return sum(pixels() is not None for pixels in read)

    monkeypatch.setattr(type(source), "stream", in_steps)
    monkeypatch.setattr(parts, "commit", commit)
    plan = Plan(model_sha256="", input_digest="", split="all", limit=None, pixels="0-255", num_classes=3,
                units=((0, 500),), batch_size=100)  # fmt: skip
    task = Task(model=run, source=source, split="all", most_rows=500, total_rows=500, output=tmp_path, plan=plan)
    assert Scorer(task).score(0) <= 1
    assert len(read) >= 5


@pytest.mark.parametrize("top_k", [None, 1, 2, 3])
def test_a_unit_is_the_same_whole_and_in_pieces(
    run: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, top_k: int | None
) -> None:
    source = broken_folder(tmp_path / "data")
    whole = scorer_of(run, source, top_k)._score_rows(np.arange(21))
    monkeypatch.setattr(actor, "_MOST_VALUES", 4 * len(CLASSES))
    in_pieces = scorer_of(run, source, top_k)._score_rows(np.arange(21))
    for name, value in vars(whole).items():
        if isinstance(value, Tally):
            assert value.has_counts_of(in_pieces.tally)
            assert value.loss == pytest.approx(in_pieces.tally.loss, rel=1e-12)
        else:
            np.testing.assert_array_equal(getattr(in_pieces, name), value)
    assert whole.probabilities.shape == (len(whole.ids), top_k or len(CLASSES))


def test_of_many_classes_only_the_top_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, classes = 2_000, 2_000
    recipe = replace(RECIPE, num_classes=classes)
    files.save(build.build(recipe), Location.parse(tmp_path) / "model", recipe, tuple(map(str, range(classes))), {})
    source = sharded(tmp_path / "data", (rows,))
    monkeypatch.setattr(actor, "_MOST_VALUES", 1 << 17)
    scorer = scorer_of(Location.parse(tmp_path), source, 2)
    scorer._score_rows(np.arange(2))  # what is made once
    tracemalloc.start()
    try:
        scored = scorer._score_rows(np.arange(rows))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (scored.probabilities.shape, scored.top_classes.shape) == ((rows, 2), (rows, 2))
    assert peak < rows * classes * 4 / 2


@pytest.mark.ray
def test_units_are_cut_by_what_is_kept_of_their_images(
    pool: ActorPool, run: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_UNIT_BYTES", 4 * 30)  # four images; of three classes and their probabilities, 36 bytes
    source = sharded(tmp_path / "data", (5,))
    for top_k, units in ((None, ((0, 4), (4, 5))), (3, ((0, 2), (2, 4), (4, 5)))):
        settings = Settings(top_k=top_k)
        scored = pool.score(run, source, "all", Location.parse(tmp_path / str(top_k)), max_bad=0, settings=settings)
        assert scored.plan.units == units


def scorer_of(model: Location, source: Source, top_k: int | None) -> Scorer:
    split, rows = list(source.splits.items())[-1]
    settings = Settings(top_k=top_k, batch_size=4, jit=False)
    task = Task(model=model, source=source, split=split, most_rows=rows, total_rows=rows, settings=settings)
    classes = Scorer(task).inference.classifier.num_classes
    plan = Plan(model_sha256="", input_digest="", split=split, limit=None, pixels="0-255", num_classes=classes,
                units=((0, rows),), top_k=top_k)  # fmt: skip
    return Scorer(replace(task, plan=plan))


@pytest.mark.ray
def test_evaluation_writes_nothing_and_is_plain_keras(pool: ActorPool, run: Location, tmp_path: Path) -> None:
    source = open_source(
        str(write_npz(tmp_path / "data.npz", x_train=images(9, SHAPE), x_test=images(41, SHAPE), y_train=labels(9),
                      y_test=labels(41)))
    )  # fmt: skip
    same(pool.evaluate(run, source, "test"), plain(run, source, "test", 41)[1])
    same(pool.evaluate(run, source, "test", limit=40), plain(run, source, "test", 40)[1])
    untrained = build.build(RECIPE)
    tally = pool.evaluate(RECIPE, source, "test")
    chosen = np.asarray(untrained(images(41, SHAPE))).argmax(1)
    assert tally.num_correct == int((chosen == labels(41)).sum())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz"]


@pytest.mark.ray
def test_a_look_at_one_image(pool: ActorPool, run: Location) -> None:
    image = images(1, SHAPE)[0]
    logits, probabilities = pool.infer_one(RECIPE, image)
    np.testing.assert_allclose(logits, np.asarray(build.build(RECIPE)(image[None]))[0], rtol=1e-5, atol=1e-5)
    assert sum(probabilities) == pytest.approx(1)
    trained = files.load_converted(run)
    assert isinstance(trained, ConvertedClassifier)
    logits, probabilities = pool.infer_one(trained, image)
    np.testing.assert_allclose(logits, np.asarray(files.load(run).model(image[None]))[0], rtol=1e-5, atol=1e-5)
    assert sum(probabilities) == pytest.approx(1)


@pytest.mark.ray
def test_a_pool_whose_actors_were_all_ended_as_late_has_one_for_the_next_task(
    ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may hold what another has done at the end of a task. None would ever answer the next."""
    monkeypatch.setattr(dispatch, "HOPELESS_SECONDS", 0.0)
    with ActorPool(1) as pool:
        pool._actors.end(pool._actors.alive[0])
        assert len(pool.infer_one(RECIPE, images(1, SHAPE)[0])[0]) == len(CLASSES)


@pytest.mark.ray
def test_a_resume_writes_only_what_is_missing(pool: ActorPool, run: Location, tmp_path: Path) -> None:
    source, output = sharded(tmp_path / "data"), Location.parse(tmp_path / "out")
    first = pool.score(run, source, "all", output, max_bad=0)
    before = times_of(output)
    manifest = (output / "_manifest.json").read_json()
    again = pool.score(run, source, "all", output, max_bad=0)
    assert times_of(output) == before  # finished: nothing is written
    assert (again.seconds, again.num_actors) == (first.seconds, 2)
    same(again.tally, first.tally)

    (output / "part-00001.parquet").delete()
    whole = (output / "part-00004.parquet").read_bytes()
    (output / "part-00004.parquet").write_bytes(whole[: len(whole) // 2])  # torn by a power cut
    (output / ".part-00003.parquet.0123abcd.tmp").write_bytes(b"half")
    (output / ".mine").write_bytes(b"not ours to remove")
    told: list[tuple[int, int, int]] = []
    resumed = pool.score(run, source, "all", output, max_bad=0, on_progress=lambda *now: told.append(now))
    same(resumed.tally, first.tally)
    assert [each[:2] for each in told[-3:]] in ([(20, 28), (21, 28), (28, 28)], [(20, 28), (27, 28), (28, 28)])
    after = times_of(output)
    changed = {Path(name).name for name in after if after[name] != before.get(name)}
    assert changed == {"part-00001.parquet", "part-00004.parquet", "_manifest.json", ".mine"}
    assert (output / "_manifest.json").read_json()["parts"] == manifest["parts"]  # to the byte
    verify(output)


@pytest.mark.ray
def test_finished_input_is_never_read_again(pool: ActorPool, run: Location, tmp_path: Path) -> None:
    source, output = sharded(tmp_path / "data", (4, 4)), Location.parse(tmp_path / "out")
    first = pool.score(run, source, "all", output, max_bad=0)
    (output / "part-00001.parquet").delete()

    (tmp_path / "data" / "0.parquet").write_bytes(b"")
    same(pool.score(run, source, "all", output, max_bad=0).tally, first.tally)


@pytest.mark.ray
def test_a_killed_actor_changes_nothing(run: Location, tmp_path: Path, ray_local: None) -> None:
    import ray

    source, output = sharded(tmp_path / "data", (300,) * 20), Location.parse(tmp_path / "out")
    with ActorPool(1) as scorers:
        pid = ray.get(scorers._actors.alive[0].__ray_call__.remote(lambda _: os.getpid()))

        def kill(done: int, total: int, quarantined: int) -> None:
            if done == 900:
                os.kill(pid, signal.SIGKILL)

        scored = scorers.score(run, source, "all", output, max_bad=0, on_progress=kill)
        assert ray.get(scorers._actors.alive[0].__ray_call__.remote(lambda _: os.getpid())) != pid
    same(scored.tally, plain(run, source, "all", 6000)[1])
    assert verify(output).scored == 6000


@pytest.mark.ray
def test_actors_stop_writing_once_another_driver_has_begun(pool: ActorPool, run: Location, tmp_path: Path) -> None:
    source, output = sharded(tmp_path / "data", (4,) * 12), Location.parse(tmp_path / "out")
    with pytest.raises(LeaseLostError, match="another mnist-ray has begun to write"):
        pool.score(run, source, "all", output, max_bad=0, on_progress=lambda *_: end_older(output))
    assert not (output / "_manifest.json").exists()
    assert len(parts_of(output)) < 48
    pool.score(run, source, "all", output, max_bad=0)
    assert verify(output).scored == 48


@pytest.mark.ray
def test_a_slow_model_gets_more_actors(
    run: Location, tmp_path: Path, ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    source = sharded(tmp_path / "data", (300,) * 12)
    with ActorPool(1, most=2) as scorers:
        quick = scorers.score(run, source, "all", Location.parse(tmp_path / "quick"), max_bad=0)
        assert quick.num_actors == 1
        monkeypatch.setattr(dispatch, "WORTH_SECONDS", 1e-3)

        def wait(done: int, total: int, quarantined: int) -> None:
            if len(scorers._actors.alive) == 2:
                ray.get(scorers._actors.alive[1].ping.remote())

        slow = scorers.score(run, source, "all", Location.parse(tmp_path / "slow"), max_bad=0, on_progress=wait)
        assert slow.num_actors == 2
        assert ray.get(scorers._actors.alive[1].__ray_call__.remote(lambda actor: actor._scorer is not None))
    assert parts_of(Location.parse(tmp_path / "slow")) == parts_of(Location.parse(tmp_path / "quick"))
    same(slow.tally, quick.tally)


# Quarantine.


def broken_folder(folder: Path) -> Source:
    write_folders(folder, train=1, test=20, shape=SHAPE)
    for label in range(3):
        (folder / "test" / f"class-{label}").rename(folder / "test" / str(label))
        (folder / "train" / f"class-{label}").rename(folder / "train" / str(label)) if label == 0 else None
    (folder / "test" / "1" / "004.png").write_bytes(b"no image")
    (folder / "test" / "2" / "000.png").write_bytes(b"")
    return open_source(str(folder))


@pytest.mark.ray
def test_bad_images_are_set_aside_with_a_reason(pool: ActorPool, run: Location, tmp_path: Path) -> None:
    source, output = broken_folder(tmp_path / "data"), Location.parse(tmp_path / "out")
    scored = pool.score(run, source, "test", output, max_bad=0.1)
    assert (scored.images, scored.scored, scored.quarantined) == (21, 19, 2)
    rows = pq.read_table((output / "quarantine" / "part-00000.parquet").path).to_pylist()
    assert [(row["source"], row["row"]) for row in rows] == [
        (f"{tmp_path}/data/test/1/004.png", 8), (f"{tmp_path}/data/test/2/000.png", 14),
    ]  # fmt: skip
    assert rows[1]["reason"] == "is an empty file"
    table = parts_of(output)
    assert table.schema.names[-1] == "source"
    assert table["source"][0].as_py() == f"{tmp_path}/data/test/0/000.png"
    assert table["id"][0].as_py() == "test/0/000.png"
    assert table["label"].to_pylist() == [0] * 7 + [1] * 6 + [2] * 6
    assert verify(output).quarantined == 2


@pytest.mark.ray
def test_what_was_mended_is_scored_again(pool: ActorPool, run: Location, tmp_path: Path) -> None:
    source, output = broken_folder(tmp_path / "data"), Location.parse(tmp_path / "out")
    with pytest.raises(InputError, match="holds no predictions yet; leave out --retry-quarantined"):
        pool.score(run, source, "test", output, max_bad=0.1, settings=Settings(retry_quarantined=True))
    pool.score(run, source, "test", output, max_bad=0.1)
    shutil.copy(tmp_path / "data/test/1/001.png", tmp_path / "data/test/1/004.png")
    mended = open_source(str(tmp_path / "data"))
    with pytest.raises(
        InputError, match=r"predictions of another job \(input .*; if all you did was repair .* add --retry-quarantined"
    ):
        pool.score(run, mended, "test", output, max_bad=0.1)
    before = times_of(output)
    retry = Settings(retry_quarantined=True)
    with pytest.raises(TooManyBadImagesError):  # one is not mended: as a crash, this leaves an unfinished output
        pool.score(run, mended, "test", output, max_bad=0, settings=retry)
    scored = pool.score(run, mended, "test", output, max_bad=0.1, settings=retry)
    assert (scored.images, scored.scored, scored.quarantined) == (21, 20, 1)
    assert verify(output).scored == 20
    rows = [row for file in (output / "quarantine").list() for row in pq.read_table(file.path).to_pylist()]
    assert [(row["row"], row["reason"]) for row in rows] == [(14, "is an empty file")]
    table = parts_of(output)
    assert table["id"].to_pylist() == sorted(table["id"].to_pylist())
    copied, mine = (table["id"].to_pylist().index(f"test/1/{name}.png") for name in ("001", "004"))
    assert table["probabilities"][mine].as_py() == pytest.approx(table["probabilities"][copied].as_py(), rel=1e-5)
    assert before.keys() - times_of(output).keys() == {f"{output}/quarantine/part-00000.parquet"}
    same(pool.score(run, mended, "test", output, max_bad=0.1).tally, scored.tally)  # it is this input's now

    (tmp_path / "data/test/2/000.png").rename(tmp_path / "data/test/2/zzz.png")  # that is another image 14
    shutil.copy(tmp_path / "data/test/1/001.png", tmp_path / "data/test/2/aaa.png")
    (tmp_path / "data/test/2/zzz.png").unlink()
    with pytest.raises(InputError, match=r"image 14 is .*test/2/00\d\.png, but was .*test/2/000\.png when"):
        pool.score(run, open_source(str(tmp_path / "data")), "test", output, max_bad=0.1, settings=retry)
    (tmp_path / "data/test/2/aaa.png").unlink()
    with pytest.raises(InputError, match=r"now has 20 images, but .* was made of 21; score it into another --output"):
        pool.score(run, open_source(str(tmp_path / "data")), "test", output, max_bad=0.1, settings=retry)


@pytest.mark.ray
def test_too_many_bad_images(pool: ActorPool, run: Location, tmp_path: Path) -> None:
    source, output = broken_folder(tmp_path / "data"), Location.parse(tmp_path / "out")
    for _ in range(2):  # a second start says the same, from storage
        with pytest.raises(TooManyBadImagesError, match=r"2 of 21 images cannot be scored, more than --max-bad 0\.09"):
            pool.score(run, source, "test", output, max_bad=0.09)
        assert not (output / "_manifest.json").exists()
    with pytest.raises(RetryableError, match="is unfinished"):
        verify(output)
    assert pool.score(run, source, "test", output, max_bad=2 / 21).quarantined == 2


@pytest.mark.ray
def test_labels_beyond_the_model_are_set_aside(pool: ActorPool, run: Location, tmp_path: Path) -> None:
    source = sharded(tmp_path / "data", (5,), label=pa.array([0, 1, 9, None, 2]))
    output = Location.parse(tmp_path / "out")
    scored = pool.score(run, source, "all", output, max_bad=1)
    assert (scored.quarantined, scored.tally.num_seen) == (1, 3)
    assert parts_of(output)["id"].to_pylist() == [0, 1, 3, 4]
    assert parts_of(output)["label"].to_pylist() == [0, 1, None, 2]
    (row,) = pq.read_table((output / "quarantine" / "part-00000.parquet").path).to_pylist()
    assert row == {
        "source": source.name, "row": 2, "reason": "has label 9, which is not one of the model's 3 classes",
    }  # fmt: skip
    with pytest.raises(InputError, match="all row 2 has label 9"):
        pool.evaluate(run, source, "all")


@pytest.mark.ray
def test_folders_that_are_not_classes_are_no_labels_unless_asked_for(
    pool: ActorPool, run: Location, tmp_path: Path
) -> None:
    data = write_folders(tmp_path / "data", train=1, test=6, shape=SHAPE) / "test"
    (data / "class-0").rename(data / "0")
    (data / "notes.txt").write_text("not an image")
    output = Location.parse(tmp_path / "out")
    scored = pool.score(run, opened(data), "all", output, max_bad=0)
    assert (scored.scored, scored.quarantined, scored.tally.num_seen) == (6, 0, 2)
    assert parts_of(output)["label"].to_pylist() == [0, 0, None, None, None, None]
    assert scored.notes == (
        "the folders class-1, class-2 are not classes of the model: the images in them are scored without labels",
    )
    assert (output / "_manifest.json").read_json()["passed_over"] == {".txt": 1}
    assert verify(output).images == 6
    asked = opened(data, reading=Reading(labels="folders", lenient=True))
    with pytest.raises(InputError, match=r"another job \(input "):
        pool.score(run, asked, "all", output, max_bad=1)
    assert pool.score(run, asked, "all", Location.parse(tmp_path / "asked"), max_bad=1).quarantined == 4


@pytest.mark.ray
def test_ids_of_the_input_are_kept(pool: ActorPool, run: Location, tmp_path: Path) -> None:
    source = sharded(tmp_path / "data", (3,), id=pa.array(["x", "y", "z"]), label=None)
    output = Location.parse(tmp_path / "out")
    assert pool.score(run, source, "all", output, max_bad=0).tally.num_seen == 0
    assert parts_of(output)["id"].to_pylist() == ["x", "y", "z"]
    assert parts_of(output)["label"].to_pylist() == [None] * 3
    assert "accuracy" not in str(verify(output))


# Refusals.


@pytest.mark.ray
def test_another_plan_is_refused(pool: ActorPool, run: Location, tmp_path: Path) -> None:
    source, output = sharded(tmp_path / "data"), Location.parse(tmp_path / "out")
    pool.score(run, source, "all", output, max_bad=0)
    before = times_of(output)
    with pytest.raises(InputError, match=r"another job \(--limit None -> 5\); choose another --output"):
        pool.score(run, source, "all", output, max_bad=0, settings=Settings(limit=5))
    with pytest.raises(InputError, match=r"another job \(--pixels 0-255 -> 0-1\)"):
        pool.score(run, source, "all", output, max_bad=0, settings=Settings(pixels="0-1"))
    with pytest.raises(InputError, match=r"another job \(--engine openvino -> tensorflow, --jit False -> True"):
        pool.score(run, source, "all", output, max_bad=0, settings=Settings(jit=True, batch_size=3))
    with pytest.raises(InputError, match=r"another job \(--precision float32 -> bfloat16\)"):
        pool.score(run, source, "all", output, max_bad=0, settings=Settings(precision="bfloat16"))
    narrow = pool.score(run, source, "all", Location.parse(tmp_path / "narrow"), max_bad=0,
                        settings=Settings(precision="bfloat16", jit=True, batch_size=3))  # fmt: skip
    assert (narrow.plan.precision, narrow.plan.jit, narrow.plan.batch_size) == ("bfloat16", True, 3)
    assert narrow.plan.changed is not None
    assert narrow.plan.changed[1] == narrow.images
    assert f"of the first {narrow.images} predictions" in narrow.notes[0]
    other = Location.parse(tmp_path / "other")
    files.save(build.build(RECIPE), other / "model", RECIPE, CLASSES, {})
    with pytest.raises(InputError, match=r"another job \(--model "):
        pool.score(other, source, "all", output, max_bad=0)
    assert times_of(output) == before
    (output / "_plan.json").delete()
    with pytest.raises(InputError, match=r"holds parts but no _plan\.json"):
        pool.score(run, source, "all", output, max_bad=0)


@pytest.mark.ray
def test_the_slower_engine_computes_where_it_is_asked_for(pool: ActorPool, tmp_path: Path) -> None:
    """A job that began with the faster one, TensorFlow, says why; it is the faster one of both that can compute it."""
    model, output = tmp_path / "mine.keras", Location.parse(tmp_path / "out")
    build.build(RECIPE).save(model)
    reason = "it takes OpenVINO 2.0 times as long"
    left = NotConverted(sha256=sha256(model.read_bytes()), reason=reason)
    conversion.keep_beside(left, output, plan.CONVERTED)  # of a start that was interrupted
    source = sharded(tmp_path / "data")
    scored = pool.score(Location.parse(model), source, "all", output, max_bad=0, settings=Settings(limit=5))
    assert (scored.plan.engine, scored.plan.engine_reason) == ("tensorflow", reason)
    assert f"the model was computed by TensorFlow, because {reason}" in scored.notes
    assert Plan.load(output) == scored.plan
    (output / plan.PLAN).delete()
    (output / plan.MANIFEST).delete()
    for part in output.list():
        if plan.is_part(part.name):
            part.delete()
    asked = Settings(limit=5, engine="openvino")
    scored = pool.score(Location.parse(model), source, "all", output, max_bad=0, settings=asked)
    assert (scored.plan.engine, scored.plan.engine_reason) == ("openvino", None)


@pytest.mark.ray
def test_a_model_that_does_not_fit_writes_nothing(pool: ActorPool, run: Location, tmp_path: Path) -> None:
    write_parquet(tmp_path / "data" / "0.parquet", 3, shape=(5, 6), named_shape=True)
    with pytest.raises(InputError, match=r"the images are \(5, 6\), but the model takes \(6, 5\)"):
        pool.score(run, open_source(str(tmp_path / "data")), "all", Location.parse(tmp_path / "out"), max_bad=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.ray
def test_one_odd_image_is_set_aside_but_odd_ones_everywhere_are_refused(
    pool: ActorPool, run: Location, tmp_path: Path
) -> None:
    write_folders(tmp_path / "data", train=1, test=20, shape=SHAPE)
    for label in range(3):
        (tmp_path / "data/test" / f"class-{label}").rename(tmp_path / "data/test" / str(label))
    shutil.rmtree(tmp_path / "data/train")
    odd = write_folders(tmp_path / "odd", train=1, test=2, shape=(9, 8, 3))
    shutil.copy(odd / "test/class-0/000.png", tmp_path / "data/test/0/000.png")  # the first of all
    output, reading = Location.parse(tmp_path / "out"), Reading(convert=Conversion(offered=True), lenient=True)
    scored = pool.score(run, open_source(str(tmp_path / "data"), reading), "test", output, max_bad=0.1)
    assert (scored.images, scored.quarantined, scored.tally.num_seen) == (20, 1, 19)
    (row,) = pq.read_table((output / "quarantine" / "part-00000.parquet").path).to_pylist()
    assert row["source"] == f"{tmp_path}/data/test/0/000.png"
    assert row["reason"] == "has the shape (9, 8, 3), not (6, 5) like the others; --resize 6x5 --gray converts it"
    said = r"the images are \(9, 8, 3\), but the model takes \(6, 5\); give --resize 6x5 --gray"
    with pytest.raises(InputError, match=said):
        pool.score(run, open_source(str(odd), reading), "test", Location.parse(tmp_path / "none"), max_bad=0.1)
    assert not (tmp_path / "none").exists()


@pytest.mark.ray
def test_a_users_file_is_asked_what_it_takes(pool: ActorPool, tmp_path: Path) -> None:
    keras = runtime.import_keras()
    layers = keras.layers
    made = keras.Sequential(
        [keras.Input((*SHAPE, 1)), layers.Flatten(), layers.Dense(9, "relu"), layers.Dense(3, "softmax")]
    )
    made.save(tmp_path / "users.keras")
    source, output = sharded(tmp_path / "data"), Location.parse(tmp_path / "out")
    scored = pool.score(Location.parse(tmp_path / "users.keras"), source, "all", output, max_bad=0)
    assert scored.plan.pixels == "0-1"
    for told in ((output / "_plan.json").read_json(), (output / "_manifest.json").read_json()):
        assert (told["pixels"], told["pixels_reason"]) == ("0-1", "assumed: it does not scale them itself")
        assert told["pixels_assumed"] is True
    again = pool.score(Location.parse(tmp_path / "users.keras"), source, "all", output, max_bad=0)
    for each in (scored, again):
        (warning,) = each.warnings
        assert warning.startswith("pixels 0-1 are assumed: neither the model's layers nor the labelled images tell")
        (warning,) = replace(each, tally=Tally.zero(3)).warnings
        assert warning.startswith("nothing tells which pixels this model takes, so pixels 0-1 are only ASSUMED: if it")
    decided = pool.score(
        Location.parse(tmp_path / "users.keras"), source, "all", Location.parse(tmp_path / "decided"), max_bad=0,
        settings=Settings(pixels="0-1"),
    )  # fmt: skip
    assert (decided.plan.pixels_assumed, list(decided.warnings)) == (None, [])
    batch = source.read("all", 0, 28)
    expected = made.predict(batch.images[..., None] / 255, verbose=0)
    np.testing.assert_allclose(np.array(parts_of(output)["probabilities"].to_pylist()), expected, rtol=1e-5)
    assert scored.tally.num_correct == int((expected.argmax(1) == batch.labels).sum())


@pytest.mark.ray
def test_embeddings_of_a_run(pool: ActorPool, run: Location, tmp_path: Path) -> None:
    """Its kept conversion is of the whole model, so the part is converted for this output, and found there again."""
    source, output = sharded(tmp_path / "data"), Location.parse(tmp_path / "out")
    layers = runtime.import_keras().saving.load_model(files.locate(run)[0].path, compile=False).layers
    settings = Settings(output_layer=layers[2].name)
    scored = pool.score(run, source, "all", output, max_bad=0, settings=settings)
    assert (scored.tally.num_seen, scored.plan.kind, scored.plan.num_classes) == (0, "embeddings", 128)
    expected = source.read("all", 0, 28).images.astype(np.float32)
    for layer in layers[:3]:
        expected = layer(expected)
    table = parts_of(output)
    assert table.schema.names == ["id", "label", "embedding"]
    np.testing.assert_allclose(np.array(table["embedding"].to_pylist()), expected, rtol=1e-4, atol=1e-5)
    manifest = (output / "_manifest.json").read_json()
    assert (manifest["kind"], manifest["output_layer"]) == ("embeddings", layers[2].name)
    assert manifest["label_classes"] == list(source.classes)
    assert verify(output).scored == 28
    before = times_of(output)
    assert pool.score(run, source, "all", output, max_bad=0, settings=settings).scored == 28
    assert times_of(output) == before
    with pytest.raises(
        InputError, match=rf"holds the predictions of another job \(.*--output-layer {layers[2].name[:12]}"
    ):
        pool.score(run, source, "all", output, max_bad=0)


def test_an_output_of_another_version_of_the_engine_says_both_ways_out(tmp_path: Path) -> None:
    output = Location.parse(tmp_path / "out")
    plan: Any = SimpleNamespace(engine="openvino", engine_version="2026.3.0")
    _require_version(plan, cast(Any, SimpleNamespace(engine_version="2026.3.0")), output)
    with pytest.raises(InputError) as refusal:
        _require_version(plan, cast(Any, SimpleNamespace(engine_version="2026.4.1")), output)
    for words in ("begun with openvino 2026.3.0, and this is 2026.4.1", "pip install openvino==2026.3.0",
                  f"remove {output} and give the same command again"):  # fmt: skip
        assert words in str(refusal.value)
