"""The report of an output: what `score` writes beside its parts, with labels and without."""

from __future__ import annotations

import io
import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mnist_ray.console import Console
from mnist_ray.errors import InputError
from mnist_ray.predictions import parts
from mnist_ray.predictions.answers import answers_of
from mnist_ray.predictions.parts import ScoredRows
from mnist_ray.predictions.plan import Plan
from mnist_ray.report import images, sample
from mnist_ray.report.images import KEPT, encode, keep, kept, read_images
from mnist_ray.report.page import write_report
from mnist_ray.report.pairs import OtherImagesError, compare
from mnist_ray.report.result import Result
from mnist_ray.report.sample import Shown, sample_of
from mnist_ray.sources.base import Batch, Source
from mnist_ray.sources.open import open_source
from mnist_ray.steps.result import report_output
from mnist_ray.storage.location import Location
from tests.support.many_classes import make_wide_output
from tests.support.output_maker import NAMES, make_output
from tests.support.report_maker import Page, change, decode, report

SCORED = np.setdiff1d(np.arange(18), [7, 8, 13])  # rows of make_output that are not in quarantine


def picture(row: int) -> np.ndarray:
    return np.full((4, 4), row, np.uint8)


def fetch(shown: Sequence[Shown]) -> dict[int, bytes]:
    return {row: encode(picture(row)) for each in shown if (row := each.row) is not None}


@pytest.fixture
def made(tmp_path: Path) -> dict[str, np.ndarray]:
    """An output without labels."""
    made = make_output(tmp_path / "out", classes=NAMES)
    score = {"images": 18, "quarantined": 3, "num_actors": 1}
    change(
        tmp_path / "out", after=None, score=score, dataset={"name": "images", "classes": list(NAMES)},
        config={"input": ["a folder", "b"], "model": "m.keras", "output": "out", "top_k": 2, "split": "test",
                "gray": True},
    )  # fmt: skip
    return made


def output_page(tmp_path: Path, **more: Any) -> Page:
    write_report(Location.parse(tmp_path / "out"), **more)
    return Page((tmp_path / "out/report.html").read_text(encoding="utf-8"))


def test_predictions_by_class(made: dict[str, np.ndarray], tmp_path: Path) -> None:
    page = output_page(tmp_path)
    counts = np.bincount(made["predictions"][SCORED], minlength=4)
    assert page.table("Class", "Images") == [
        [name, str(n), f"{n / 15 * 100:.1f} %"] for name, n in zip(NAMES, counts, strict=True)
    ]
    confidences = made["probabilities"][SCORED].max(1)
    assert f"The mean confidence is {confidences.mean() * 100:.1f} %." in page.text
    bins = Counter(np.minimum((confidences * 20).astype(int), 19).tolist())
    for count in bins.values():
        assert f"<title>{count} images</title>" in page.html
    assert page.html.count('<rect class="share"') == len(bins)
    assert "Images scored 15" in page.text
    assert "No labelled image was scored, so there is no accuracy to report." in page.text
    assert "Counted over all images." in page.text
    assert [row[1] for row in page.table("Source")] == ["7", "8", "13"]


def test_the_command_and_the_fingerprints(made: dict[str, np.ndarray], tmp_path: Path) -> None:
    text = output_page(tmp_path).text
    assert "Make it again mnist-ray score 'a folder' b --model m.keras --output out --gray --top-k 2 Copy" in text
    assert f"model sha256 {'ab' * 32} input digest {'cd' * 32}" in text


def test_the_images_are_those_of_the_rows(made: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Also behind rows in quarantine. The ids are the numbers of the rows."""
    page = output_page(tmp_path, fetch=fetch)
    confidences = made["probabilities"].max(1)
    least = SCORED[np.argsort(confidences[SCORED], kind="stable")][:12]
    cards = page.html.split("The least sure images")[1]
    for row in least:
        words = f"Image {row}, " + (f"labelled {NAMES[made['labels'][row]]}, " if made["labels"][row] >= 0 else "")
        assert f'alt="{words}predicted {NAMES[made["predictions"][row]]}"' in cards
    for image in page.images:
        assert np.array_equal(decode(image["src"]), picture(int(str(image["alt"]).split()[1].strip(","))))
    rows = page.html.split("Images of each predicted class")[1].split("</section>")[0]
    for number, name in enumerate(NAMES):
        first = [row for row in SCORED if made["predictions"][row] == number][:8]
        assert rows.count(f', predicted {name}"') == len(first)
        assert all(f'alt="Image {row}, predicted {name}"' in rows for row in first)


def test_the_report_is_made_again_without_the_input(made: dict[str, np.ndarray], tmp_path: Path) -> None:
    def fetch_and_keep(shown: Sequence[Shown]) -> dict[int, bytes]:
        keep(Location.parse(tmp_path / "out"), fetch(shown))
        return fetch(shown)

    first = output_page(tmp_path, fetch=fetch_and_keep)
    assert first.images
    assert output_page(tmp_path).html == first.html


@pytest.mark.parametrize("content", [
    b"", b"ARROW1", pa.table({"row": ["1"], "image": [b"x"]}), pa.table({"row": [1]}),
    pa.table({"row": [0], "image": [b"<script>"]}), pa.table({"row": [0, None], "image": ["text", None]}),
])  # fmt: skip
def test_images_that_somebody_else_wrote(made: dict[str, np.ndarray], tmp_path: Path, content: Any) -> None:
    if isinstance(content, pa.Table):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, content.schema) as writer:
            writer.write_table(content)
        content = sink.getvalue().to_pybytes()
    (tmp_path / "out" / KEPT).write_bytes(content)
    page = output_page(tmp_path)
    assert not page.images
    assert page.text.count("image not found") == 12


def test_with_labels_all_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_output(tmp_path / "out", classes=NAMES, bad=())
    metrics = Location.parse(tmp_path / "out/metrics.json").read_json()
    after = metrics["after"] | {"num_seen": 18, "num_correct": 5, "confusion": [[1, 2, 3, 4]] * 4}
    change(tmp_path / "out", after=after, score={"images": 18, "quarantined": 0}, dataset={"classes": list(NAMES)})
    monkeypatch.setattr(sample, "MOST_PARTS", 0)
    monkeypatch.setattr(sample, "SPREAD_PARTS", 1)
    page = output_page(tmp_path)
    assert [row[1] for row in page.table("Class", "Images")] == ["4", "8", "12", "16"]
    assert "The classes are counted over all images, the confidences over 6 of them." in page.text


@pytest.mark.parametrize("parts", [8, 100])
def test_the_work_is_bounded(parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 parts of 6 rows, 8 parts are opened; they are spread over all. Of each part, 4 rows are read."""
    output = Location.parse(tmp_path / "out")
    make_output(tmp_path / "out", units=(6,) * parts, bad=(7, 8, 13))
    for unit in set(range(parts)) - {n * parts // 8 for n in range(8)}:
        (tmp_path / f"out/part-{unit:05d}.parquet").write_bytes(b"not to be read")
    monkeypatch.setattr(sample, "SPREAD_PARTS", 8)
    monkeypatch.setattr(sample, "MOST_VALUES", 8 * 4 * (3 + 4))
    found = sample_of(output, sample.plan_of(output), 4)
    assert found.images == 8 * 4
    assert not found.is_whole
    spread = "parts spread over the whole output"
    assert f"Counted over 32 images from {spread}." in report(tmp_path / "out").text


def test_a_few_images_in_many_parts_are_all_looked_at(tmp_path: Path) -> None:
    """As a run has them: a part for each of 48 shards."""
    output = Location.parse(tmp_path / "out")
    make_output(tmp_path / "out", units=(3, 5) * 24, bad=())
    found = sample_of(output, sample.plan_of(output), 4)
    assert (found.images, found.is_whole) == (8 * 24, True)


@pytest.mark.parametrize(("num_classes", "rows"), [(1_000, 2_000), (20_000, 200)])
def test_many_classes_stay_readable(tmp_path: Path, num_classes: int, rows: int) -> None:
    make_wide_output(tmp_path / "out", num_classes, (rows, rows // 2))
    names = [f"kind {number}" for number in range(num_classes)]
    change(tmp_path / "out", dataset={"classes": names, "image_shape": [256, 256, 3]}, after=None)
    noise = encode(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8))
    page = output_page(tmp_path, fetch=lambda shown: {each.row: noise for each in shown})
    assert (tmp_path / "out/report.html").stat().st_size < 2_000_000
    assert len(page.table("Class", "Images")) == 12
    counts = [int(row[1]) for row in page.table("Class", "Images")]
    assert counts == sorted(counts, reverse=True)
    tiles = page.html.split('<div class="tiles">')[1].split("</section>")[0]
    assert tiles.count("<img") == 80
    assert "of the classes that are predicted most often" in page.text


# What `score` does.


class Broken(Source):
    def read(self, split: str, start: int, stop: int, *, strict: bool = True) -> Batch:
        raise OSError("the disk is gone")

    def digest(self) -> str:
        return ""


def test_a_scoring_keeps_the_images_that_it_shows(made: dict[str, np.ndarray], tmp_path: Path) -> None:
    source, output = open_source("embedded"), Location.parse(tmp_path / "out")
    printed = io.StringIO()
    report_output(output, "renamed", source, "test", Console(printed))
    assert printed.getvalue() == ""
    page = Page((tmp_path / "out/report.html").read_text(encoding="utf-8"))
    assert page.text.startswith("renamed: score report")
    pixels = source.read("test", 0, 18).images
    held = kept(output)
    assert set(held) <= set(SCORED.tolist())
    for image in page.images:
        assert np.array_equal(decode(image["src"]), pixels[int(str(image["alt"]).split()[1].strip(","))])


def test_nothing_that_fails_in_the_report_ends_the_scoring(made: dict[str, np.ndarray], tmp_path: Path) -> None:
    source = Broken(name="x", classes=(), image_shape=(4, 4), splits={"all": 18})
    printed = io.StringIO()
    report_output(Location.parse(tmp_path / "out"), "out", source, "all", Console(printed))
    assert printed.getvalue() == (
        "warning: the report could not be written (OSError: the disk is gone); try again: mnist-ray report"
        f" {tmp_path / 'out'}\n"
    )


def test_reading_images_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """An input whose images take long costs no more than those that are being read at the time."""
    ticks = itertools.count()
    monkeypatch.setattr(images, "_READS_AT_ONCE", 1)
    monkeypatch.setattr(images.time, "monotonic", lambda: next(ticks) * 0.5)
    wanted = [*range(60, 100, 10), *range(50)]
    found = read_images(open_source("embedded"), "test", [showing(row) for row in wanted])
    assert list(found) == [60, 70, 80]  # at 0.5, 1.0 and 1.5 seconds


def test_neighbours_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first wanted first, as time may run out; those near to it with it, however far apart they are wanted."""
    source = open_source("embedded")
    reads: list[tuple[int, int]] = []

    def read(self: Source, split: str, start: int, stop: int, *, strict: bool = True) -> Batch:
        reads.append((start, stop))
        return take(self, split, start, stop, strict=strict)

    take = type(source).read
    monkeypatch.setattr(type(source), "read", read)
    monkeypatch.setattr(images, "_READS_AT_ONCE", 1)
    wanted = [9_999, 40, 3, 10, 41, 0, 47, 11, 48]
    found = read_images(source, "test", [showing(row) for row in [*wanted, 3]])
    assert reads == [(9_999, 10_000), (40, 48), (0, 4), (10, 12), (48, 49)]
    pixels = take(source, "test", 0, 10_000).images
    assert found == {row: encode(pixels[row]) for row in wanted}


def showing(row: int) -> Shown:
    return Shown(row, row, None, 0, 0.5, None, None)


@pytest.mark.parametrize("kind", ["labels", "embeddings"])
def test_an_output_without_one_class_an_image(tmp_path: Path, kind: str) -> None:
    """Labels and embeddings have a report, too, without what needs a predicted class."""
    plan = Plan(
        model_sha256="ab" * 32, input_digest="cd" * 32, split="all", limit=None, pixels="0-255", num_classes=3,
        units=((0, 5),), kind=kind, thresholds=(0.5,) * 3 if kind == "labels" else None,
    )  # fmt: skip
    output = Location.parse(tmp_path / "out")
    plan.freeze(output)
    values, labels, answers = np.eye(5, 3, dtype=np.float32), np.full(5, -1), answers_of(plan)
    rows = ScoredRows(
        ids=np.arange(5), labels=labels, predictions=None, probabilities=values, sources=None, bad=[],
        tally=answers.tally(labels, values), input_name="images",
    )  # fmt: skip
    parts.write_manifest(output, plan, [parts.commit(output, plan, 0, rows)])
    (output / "metrics.json").write_json({"score": {"images": 5, "quarantined": 0, "num_actors": 1, "seconds": 1.0}})
    page = output_page(tmp_path)
    assert "Images scored 5" in page.text
    assert f"model sha256 {'ab' * 32}" in page.text
    assert "Predictions" not in page.text
    result = Result.read(output)
    with pytest.raises(OtherImagesError, match="Not both give each image one class"):
        compare(result, result, 3)
    if kind == "embeddings":
        with pytest.raises(InputError, match="holds no predicted classes"):
            write_report(output, reference=output)
