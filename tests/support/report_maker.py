"""A made-up run: real MNIST pixels, predictions from numpy; and its report, parsed."""

from __future__ import annotations

import base64
import functools
import gzip
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mnist_ray.report.page import write_report
from mnist_ray.storage.location import Location
from tests.support.command import ROOT

DATA = ROOT / "mnist_ray" / "data"


@functools.cache
def idx(name: str, count: int) -> np.ndarray:
    """The first rows of one of the embedded IDX files."""
    raw = gzip.decompress((DATA / f"{name}-ubyte.gz").read_bytes())
    body = np.frombuffer(raw, np.uint8, offset=16 if "idx3" in name else 8)
    return (body.reshape(-1, 28, 28) if "idx3" in name else body)[:count]


def write_shards(folder: Path, split: str, images: np.ndarray, labels: np.ndarray, num_shards: int) -> list[Any]:
    (folder / split).mkdir(parents=True)
    entries = []
    for number, rows in enumerate(np.array_split(np.arange(len(images)), num_shards)):
        pixels = [images[row].tobytes() for row in rows]
        path = f"{split}/part-{number:05d}.parquet"
        table = {
            "id": pa.array(rows, pa.int64()),
            "image": pa.array(pixels, pa.binary(images[0].size)),
            "label": pa.array(labels[rows], pa.int64()),
        }
        pq.write_table(pa.table(table), folder / path, row_group_size=50)
        entries.append({"path": path, "rows": len(rows), "sha256": "0" * 64})
    return entries


def make_run(folder: Path, *, train: int = 12, test: int = 300, classes: list[str] | None = None, error: float = 0.05,
             num_shards: int = 3) -> Path:  # fmt: skip
    """A finished run's folder. `error` is the share of test images that the made-up model gets wrong."""
    classes = classes or [str(digit) for digit in range(10)]
    images, labels = idx("t10k-images-idx3", test), idx("t10k-labels-idx1", test).astype(np.int64)
    entries = {
        "train": write_shards(
            folder / "shards", "train", idx("train-images-idx3", train), idx("train-labels-idx1", train), num_shards
        ),
        "test": write_shards(folder / "shards", "test", images, labels, num_shards),
    }
    write_json(
        folder / "shards/dataset.json",
        {"name": "mnist", "image_shape": [28, 28], "classes": classes, "counts": {"train": train, "test": test},
         "shards": entries},
    )  # fmt: skip

    # Logits by distance to the mean image of each class, so that mistakes are of a kind that a model makes.
    flat = images.reshape(test, -1) / 255.0
    means = np.stack([flat[labels == c].mean(0) if (labels == c).any() else flat.mean(0) for c in range(10)])
    logits = (2 * flat @ means.T - (means**2).sum(1)) / 4
    random = np.random.default_rng(0)
    logits[np.arange(test), labels] += 12
    second = np.where(np.eye(10, dtype=bool)[labels], -np.inf, logits).argmax(1)
    wrong = random.permutation(test)[: round(error * test)]
    logits[wrong, second[wrong]] = logits.max(1)[wrong] + random.exponential(2, len(wrong))
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = (probabilities / probabilities.sum(1, keepdims=True)).astype(np.float32)
    predicted = probabilities.argmax(1)
    (folder / "predictions").mkdir()
    for number, rows in enumerate(np.array_split(np.arange(test), 4)):
        columns = {
            "id": pa.array(rows, pa.int64()),
            "label": pa.array(labels[rows], pa.int64()),
            "prediction": pa.array(predicted[rows], pa.int64()),
            "probabilities": pa.FixedSizeListArray.from_arrays(pa.array(probabilities[rows].ravel()), 10),
        }
        pq.write_table(pa.table(columns), folder / f"predictions/part-{number:05d}.parquet")

    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (labels, predicted), 1)
    correct = int(confusion.trace())
    curve = [(0.2967, 0.9138), (0.1425, 0.9577), (0.1068, 0.9676), (0.0876, 0.9731), (0.0748, 0.9767)]
    metrics = {
        "dataset": {"name": "mnist", "train_images": train, "test_images": test, "image_shape": [28, 28],
                    "classes": classes},
        "train": {
            "num_workers": 2, "batch_size": 64, "seconds": 9.1, "milliseconds_per_step": 1.73, "restarts": 0,
            "resumed_from_epoch": None,
            "epochs": [
                {"epoch": n + 1, "loss": loss, "accuracy": accuracy, "seconds": 2.5 - 0.2 * n,
                 "images_per_second": 24000.0 + 2345.6 * n}
                for n, (loss, accuracy) in enumerate(curve)
            ],
        },
        "before": {"num_correct": test // 11, "num_seen": test, "accuracy": test // 11 / test, "loss": 2.3971},
        "after": {
            "num_correct": correct, "num_seen": test, "accuracy": correct / test, "loss": 0.0731,
            "confusion": confusion.tolist(),
            "per_class": [
                {"class": i, "precision": ratio(confusion[i, i], confusion[:, i].sum()),
                 "recall": ratio(confusion[i, i], confusion[i].sum()), "support": int(confusion[i].sum())}
                for i in range(len(classes))
            ],
        },
        "score": {"images": test, "quarantined": 0, "num_actors": 2, "seconds": 0.8, "images_per_second": test / 0.8},
        "seconds": {"start": 5.2, "shard": 2.9, "train": 21.4, "score": 7.3, "report": 0.4, "total": 37.6},
        "environment": {
            "host": "node-1", "platform": "Linux-6.1-x86_64", "cpus": "2", "python": "3.11.9", "mnist_ray": "0.1.0",
            "ray": "2.60.0", "tensorflow": "2.21.0", "keras": "3.15.1", "address": "local",
            "started": "2026-03-02T09:14:07+00:00", "finished": "2026-03-02T09:14:45+00:00",
        },
    }  # fmt: skip
    write_json(folder / "metrics.json", metrics)
    config = {"data": "embedded", "storage": "s3://key:secret@bucket/runs", "name": "mnist", "num_workers": "2",
              "epochs": 5, "batch_size": 64, "architecture": "mlp", "precision": "float32", "num_shards": num_shards,
              "dropout": 0.2, "learning_rate": 0.001, "seed": 0, "max_failures": 3, "address": None,
              "fresh": False}  # fmt: skip
    write_json(folder / "config.json", {"config": config, "fingerprint": {}})
    return folder


def ratio(part: Any, whole: Any) -> float | None:
    return float(part / whole) if whole else None


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def change(folder: Path, **replaced: Any) -> None:
    """Replace top-level keys of metrics.json; None removes one."""
    metrics = json.loads((folder / "metrics.json").read_text()) | replaced
    write_json(folder / "metrics.json", {key: value for key, value in metrics.items() if value is not None})


class Page(HTMLParser):
    """A report, parsed: its text, its tags, its tables (rows of cell texts) and its images."""

    VOID = frozenset({"meta", "img", "col", "line", "circle", "polyline"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.words: list[str] = []
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"
        self.text = " ".join(" ".join(self.words).split())
        self.images = [attributes for tag, attributes in self.tags if tag == "img"]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"style", "script"} & {*self.open}:
            return
        self.words.append(data)
        if self.open and {"td", "th"} & set(self.open[-2:]):
            self.tables[-1][-1][-1] += " ".join(data.split())

    def table(self, *heads: str) -> list[list[str]]:
        """The body of the table whose last head row starts so."""
        return next(t[i + 1 :] for t in self.tables for i, row in enumerate(t) if row[: len(heads)] == list(heads))


def report(folder: Path) -> Page:
    where = write_report(Location.parse(folder))
    assert where.path == str(folder / "report.html")
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def decode(uri: str | None) -> np.ndarray:
    assert uri is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))
