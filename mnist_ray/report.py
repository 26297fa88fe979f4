"""The HTML report and its pictures, from a finished run's files alone.

One file that opens from disk: no script, no network, and a content policy that forbids both. The curves are SVG drawn
by the template, so they follow the reader's light or dark theme. Sections without data are left out or say so.
"""

from __future__ import annotations

import base64
import heapq
import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mnist_ray.errors import InputError
from mnist_ray.storage import Location

NUM_SAMPLES = 9  # training images shown
NUM_MISTAKES = 12
NUM_QUARANTINED = 10
MAX_NUMBERED_CLASSES = 25  # more: the confusion matrix is colour only
MAX_MATRIX_CLASSES = 100  # more: the table would be larger than the rest of the report
_OF_MISTAKES = [
    "id",
    "label",
    "prediction",
    "probabilities",
    "top_classes",
    "top_probabilities",
]  # those that are there
ABSENT = "—"
THIN = "\u202f"  # a narrow space at which no line is broken: before a unit


def write_report(run: Location) -> Location:
    """Write `report.html` of a run (or of what `score --output` wrote) and return where it lies.

    Args:
        run: the folder with metrics.json; config.json, shards and predictions are used where they are there.

    Raises:
        InputError: there is no metrics.json, or a file is not what mnist-ray writes.
    """
    page = _render(_context(run)).encode()
    target = run / "report.html"
    target.write_bytes(page)
    return target


def class_names(run: Location) -> list[str]:
    """The names of a run's classes, by label: of its dataset, else of its metrics, else none."""
    config = (_json(run / "config.json") or {}).get("config") or {}
    return _class_names(_json(_shards(run, config) / "dataset.json"), _json(run / "metrics.json"))


def _class_names(dataset: Any, metrics: Any) -> list[str]:
    known = (dataset or {}).get("classes") or (metrics or {}).get("dataset", {}).get("classes") or []
    return [str(name) for name in (range(known) if isinstance(known, int) else known)]


@dataclass(frozen=True)
class Mistake:
    """A test image whose label the model did not predict."""

    id: int | str
    label: int
    prediction: int
    probability: float
    label_probability: float | None  # None where the model has no such class, or it is none of the top


def _context(run: Location) -> dict[str, Any]:
    """All that the template shows."""
    metrics = _json(run / "metrics.json")
    if metrics is None:
        raise InputError(f"no metrics.json in {run}: the run has not finished; the same run command goes on with it")
    config = (_json(run / "config.json") or {}).get("config") or {}
    shards = _shards(run, config)
    dataset = _json(shards / "dataset.json")
    classes = _class_names(dataset, metrics)
    after = metrics.get("after") or {}
    epochs = (metrics.get("train") or {}).get("epochs") or []
    predictions = run / "predictions" if (run / "predictions").is_dir() else run
    mistakes = _mistakes(predictions) if after.get("num_seen") else None
    pictures = _find(shards, dataset, "test", [mistake.id for mistake in mistakes or []])
    return {
        "name": run.name,
        "metrics": metrics,
        "classes": classes,
        "interval": _interval(after),
        "samples": [(_name(classes, label), _data_uri(image)) for image, label in _first(shards, dataset)],
        "charts": [
            chart
            for key, title in (("loss", "Loss"), ("accuracy", "Accuracy"))
            if (chart := _chart(title, [(epoch["epoch"], epoch.get(key)) for epoch in epochs], after.get(key)))
        ],
        "confusion": _confusion(after.get("confusion") or []),
        "pairs": _pairs(after.get("confusion") or [], classes),
        "calibration": _calibration(after.get("calibration") or {}),
        "mistakes": mistakes and [(m, _data_uri(pictures[m.id]) if m.id in pictures else None) for m in mistakes],
        "smooth": max((dataset or {}).get("image_shape", [0])[:2]) > 64,
        "quarantine": _quarantine(predictions),
        "config": _listed(config),
        "environment": _listed(metrics.get("environment") or {}),
        "phases": _phases(metrics.get("seconds") or {}),
        "numbered": max(len(classes), len(after.get("confusion") or [])) <= MAX_NUMBERED_CLASSES,
    }


def _render(context: dict[str, Any]) -> str:
    import jinja2

    # Chainable: a key that metrics.json lacks is empty, and the filters show it as a dash.
    env = jinja2.Environment(autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=True, lstrip_blocks=True)
    classes = context["classes"]
    env.filters |= {"count": _count, "percent": _percent, "number": _number, "seconds": _seconds}
    env.filters["class_name"] = lambda label: _name(classes, label)
    source = resources.files("mnist_ray").joinpath("report.html.j2").read_text(encoding="utf-8")
    return env.from_string(source).render(context)


# Reading what lies in the run's folder.


def _json(file: Location) -> Any:
    """What the file holds; None where there is none."""
    try:
        return file.read_json()
    except FileNotFoundError:
        return None


def _shards(run: Location, config: dict[str, Any]) -> Location:
    """Where the run's shards lie: in its folder, or, after `mnist-ray train SHARDS`, where that says."""
    own = run / "shards"
    return Location.parse(config["shards"]) if config.get("shards") and not own.is_dir() else own


@contextmanager
def _parquet(file: Location) -> Iterator[pq.ParquetFile]:
    try:
        with file.open_file() as stream, pq.ParquetFile(stream) as parquet:
            yield parquet
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise InputError(f"cannot read {file}: {str(error).splitlines()[0]}; `mnist-ray verify` tells more") from error


def _groups(files: Iterable[Location], columns: list[str]) -> Iterator[tuple[pq.ParquetFile, int, pa.Table]]:
    """One row group at a time: (the open file, the group's number, its columns). Files that are gone are skipped.

    Without threads: one of Arrow's that still ends as the process does can abort it (apache/arrow#34314).
    """
    for file in files:
        try:
            with _parquet(file) as parquet:
                for group in range(parquet.num_row_groups):
                    yield parquet, group, parquet.read_row_group(group, columns=columns, use_threads=False)
        except FileNotFoundError:
            continue


def _parts(folder: Location) -> list[Location]:
    return [file for file in folder.list() if file.name.startswith("part-") and file.name.endswith(".parquet")]


def _split(shards: Location, dataset: Any, split: str) -> list[Location]:
    return [shards / entry["path"] for entry in (dataset or {}).get("shards", {}).get(split, []) if entry["rows"]]


def _pixels(dataset: Any, column: pa.ChunkedArray) -> list[np.ndarray]:
    """(height, width) or (height, width, channels) uint8 each."""
    shape = tuple(dataset["image_shape"])
    return [np.frombuffer(value, np.uint8).reshape(shape) for value in column.to_pylist()]


def _first(shards: Location, dataset: Any) -> list[tuple[np.ndarray, int]]:
    """The first training images with their labels."""
    found: list[tuple[np.ndarray, int]] = []
    for _, _, table in _groups(_split(shards, dataset, "train"), ["image", "label"]):
        rows = table.slice(0, NUM_SAMPLES - len(found))
        found += zip(_pixels(dataset, rows["image"]), rows["label"].to_pylist(), strict=True)
        if len(found) == NUM_SAMPLES:
            break
    return found


def _find(shards: Location, dataset: Any, split: str, ids: Sequence[int | str]) -> dict[int | str, np.ndarray]:
    """The images with these ids. Only ids are read, and then the row groups that hold one of them."""
    missing = set(ids)
    found: dict[int | str, np.ndarray] = {}
    if not missing:
        return {}
    for parquet, group, table in _groups(_split(shards, dataset, split), ["id"]):
        rows = pc.indices_nonzero(pc.is_in(table["id"], value_set=pa.array(sorted(missing), table["id"].type)))
        if len(rows):
            images = parquet.read_row_group(group, columns=["image"], use_threads=False).take(rows)["image"]
            found |= zip(table["id"].take(rows).to_pylist(), _pixels(dataset, images), strict=True)
            missing -= found.keys()
        if not missing:
            break
    return found


def _mistakes(predictions: Location) -> list[Mistake]:
    """The most confident mistakes, most confident first. Probabilities are read only where a row group has any."""
    best: list[Mistake] = []
    for parquet, group, table in _groups(_parts(predictions), ["label", "prediction"]):
        wrong = pc.indices_nonzero(pc.not_equal(table["label"], table["prediction"]))  # unknown labels are null: no
        if not len(wrong):
            continue
        rows = parquet.read_row_group(group, columns=_OF_MISTAKES, use_threads=False).take(wrong)
        labels, predicted = (rows[name].combine_chunks().to_numpy() for name in ("label", "prediction"))
        probabilities = _probabilities(rows)
        confidence = probabilities[np.arange(len(rows)), predicted]
        top = np.argsort(-confidence, kind="stable")[:NUM_MISTAKES]
        ids = rows["id"].take(pa.array(top)).to_pylist()
        best += [
            Mistake(
                id=key,
                label=int(labels[row]),
                prediction=int(predicted[row]),
                probability=float(confidence[row]),
                label_probability=_known(probabilities[row, labels[row]])
                if 0 <= labels[row] < probabilities.shape[1]
                else None,
            )
            for key, row in zip(ids, top, strict=True)
        ]
        best = heapq.nlargest(NUM_MISTAKES, best, key=lambda mistake: mistake.probability)
    return best


def _probabilities(rows: pa.Table) -> np.ndarray:
    """(n, num_classes); NaN for a class that is none of the most probable ones that were kept."""

    def lists(name: str) -> np.ndarray:
        return np.asarray(rows[name].combine_chunks().flatten()).reshape(len(rows), -1)

    if "probabilities" in rows.column_names:
        return lists("probabilities")
    classes = lists("top_classes")
    found = np.full((len(rows), max(classes.max(), *rows["label"].to_pylist()) + 1), np.nan)
    np.put_along_axis(found, classes, lists("top_probabilities"), axis=1)
    return found


def _known(probability: float) -> float | None:
    return None if math.isnan(probability) else float(probability)


def _quarantine(predictions: Location) -> list[dict[str, Any]]:
    """The first of what could not be scored: source, row, reason."""
    found: list[dict[str, Any]] = []
    files = [file for file in (predictions / "quarantine").list() if file.name.endswith(".parquet")]
    for _, _, table in _groups(files, ["source", "row", "reason"]):
        found += table.slice(0, NUM_QUARANTINED - len(found)).to_pylist()
        if len(found) == NUM_QUARANTINED:
            break
    return found


# Turning it into what is shown.


def _data_uri(image: np.ndarray) -> str:
    """A PNG with exactly these pixels."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _chart(title: str, series: list[tuple[int, float | None]], test: float | None) -> dict[str, Any] | None:
    """A curve over epochs in a box of 320 by 170 units; `test` becomes a dashed line. None where there is nothing."""
    points = [(epoch, value) for epoch, value in series if value is not None]
    if not points:
        return None
    left, right, top, bottom = 36.0, 314.0, 30.0, 142.0
    values = [value for _, value in points] + ([] if test is None else [test])
    step = _step(max(values) - min(values) or abs(values[0]) or 1.0, 4)
    low, high = math.floor(min(values) / step) * step, math.ceil(max(values) / step) * step
    first, last = points[0][0], points[-1][0]
    every = max(1, math.ceil(_step(last - first or 1, 8)))

    def x(epoch: float) -> float:
        return round(left + (right - left) * ((epoch - first) / (last - first) if last > first else 0.5), 1)

    def y(value: float) -> float:
        return round(bottom - (bottom - top) * (value - low) / ((high - low) or step), 1)

    digits = max(0, -math.floor(math.log10(step)))
    ticks = [low + number * step for number in range(round((high - low) / step) + 1)]
    shown = _percent if title == "Accuracy" else _number
    return {
        "title": title,
        "summary": f"{title} of training by epoch, from {shown(points[0][1])} to {shown(points[-1][1])}",
        "points": [(x(epoch), y(value)) for epoch, value in points],
        "dots": len(points) <= 30,
        "x_ticks": [(x(epoch), epoch) for epoch in range(first, last + 1, every)],
        "y_ticks": [(y(tick), f"{tick:.{digits}f}") for tick in ticks],
        "test": None if test is None else (y(test), shown(test)),
    }


def _calibration(calibration: dict[str, Any]) -> dict[str, Any] | None:
    """Accuracy over confidence, and how many images each bin has, in boxes as those of `_chart`; None without any."""
    bins = calibration.get("bins") or []
    total = sum(each["count"] for each in bins)
    if not total:
        return None
    left, right, top, bottom = 36.0, 314.0, 30.0, 142.0

    def x(share: float) -> float:
        return round(left + (right - left) * share, 1)

    def y(share: float) -> float:
        return round(bottom - (bottom - top) * share, 1)

    most = max(each["count"] for each in bins) / total
    step = _step(most, 4)
    high = math.ceil(most / step) * step
    return {
        "ece": calibration.get("ece"),
        "points": [
            (x(each["confidence"]), y(each["accuracy"]), _percent(each["confidence"]), _percent(each["accuracy"]),
             each["count"])
            for each in bins if each["count"]
        ],
        "bars": [
            (x(each["low"]) + 0.7, y(each["count"] / total / high), x(each["high"]) - x(each["low"]) - 1.4,
             bottom - y(each["count"] / total / high), each["count"])
            for each in bins if each["count"]
        ],
        "x_ticks": [(x(tick / 5), f"{tick / 5:.1f}") for tick in range(6)],
        "y_ticks": [(y(tick / 5), f"{tick / 5:.1f}") for tick in range(6)],
        "share_ticks": [
            (y(tick * step / high), f"{100 * tick * step:.{0 if step >= 0.01 else 1}f}{THIN}%")
            for tick in range(round(high / step) + 1)
        ],
    }  # fmt: skip


def _step(extent: float, at_most: int) -> float:
    """The smallest of 1, 2 or 5 times a power of ten that cuts the extent into at most so many parts."""
    rough = extent / at_most
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _confusion(counts: list[list[int]]) -> list[list[tuple[int, float]]] | None:
    """(count, opacity) a cell. Mistakes are coloured relative to the largest of them, or they would not be seen."""
    if not counts or len(counts) > MAX_MATRIX_CLASSES:
        return None
    worst = max((n for i, row in enumerate(counts) for j, n in enumerate(row) if i != j), default=0)

    def opacity(row: list[int], i: int, j: int) -> float:
        if not row[j]:
            return 0.0
        return round(0.1 + 0.4 * row[j] / sum(row) if i == j else 0.08 + 0.47 * row[j] / worst, 2)

    return [[(n, opacity(row, i, j)) for j, n in enumerate(row)] for i, row in enumerate(counts)]


def _pairs(counts: list[list[int]], classes: list[str]) -> list[tuple[int, str, str]]:
    """The most frequent mistakes: (count, label, prediction), most frequent first."""
    wrong = ((n, -i, -j) for i, row in enumerate(counts) for j, n in enumerate(row) if n and i != j)
    return [(n, _name(classes, -i), _name(classes, -j)) for n, i, j in heapq.nlargest(5, wrong)]


def _interval(after: dict[str, Any]) -> tuple[float, float] | None:
    """Wilson's 95 % interval of the accuracy: what another test set of this size would be likely to give."""
    n = after.get("num_seen") or 0
    if not n:
        return None
    p, z = after["num_correct"] / n, 1.959964
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))


def _phases(seconds: dict[str, float | None]) -> list[tuple[str, float]]:
    """(phase, seconds) in the order of the flow; what the phases do not cover is `other`."""
    phases = [(name, value) for name in ("start", "shard", "train", "score", "report") if (value := seconds.get(name))]
    rest = (seconds.get("total") or 0.0) - sum(value for _, value in phases)
    return phases + ([("other", rest)] if rest > 0.05 else [])


def _name(classes: list[str], label: int | None) -> str:
    return "unknown" if label is None else classes[label] if 0 <= label < len(classes) else str(label)


def _listed(values: dict[str, Any]) -> list[tuple[str, str]]:
    return [(key.replace("_", " "), _shown(value)) for key, value in values.items() if value is not None]


def _shown(value: Any) -> str:
    """As text, without what a URI may hold of keys and passwords."""
    text = ("yes" if value else "no") if isinstance(value, bool) else str(value)
    return re.sub(r"://[^/@\s]*@", "://…@", re.sub(r"(://[^?\s]*)\?\S*", r"\1?…", text))


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else ABSENT


def _percent(value: Any, digits: int = 2) -> str:
    """A share as a percentage; one that is not all of it is never shown as 100."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return ABSENT
    text = f"{value * 100:.{digits}f}"
    return f"{text if value >= 1 or float(text) < 100 else f'{100 - 10**-digits:.{digits}f}'}{THIN}%"


def _number(value: Any, digits: int = 4) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else ABSENT


def _seconds(value: Any) -> str:
    if not isinstance(value, int | float):
        return ABSENT
    if value < 120:
        return f"{value:.1f}{THIN}s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
