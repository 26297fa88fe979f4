"""The predictions in an output folder: a unit's part and quarantine, going on with what is there, the manifest.

A part is committed by one atomic write; that it is there is the record of it. Its own counts are in its Parquet
metadata, so going on needs neither finished input nor finished rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mnist_ray.predictions.plan import MANIFEST, QUARANTINE, Plan, is_part, part_name, sweep
from mnist_ray.predictions.tally import Tally
from mnist_ray.sources.base import Bad
from mnist_ray.storage.location import Location, sha256

METADATA = b"mnist_ray"
"""The key of a part's own counts in its schema."""


@dataclass(frozen=True, kw_only=True)
class File:
    """An entry of the manifest. `path` is relative to the output."""

    path: str
    rows: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Committed:
    """A unit whose part is in storage."""

    unit: int
    part: File
    quarantine: File | None
    tally: Tally

    @property
    def quarantined(self) -> int:
        return self.quarantine.rows if self.quarantine else 0


def commit(
    output: Location,
    plan: Plan,
    unit: int,
    *,
    ids: NDArray[Any],
    labels: NDArray[np.int64],
    predictions: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    sources: list[str] | None,
    bad: Sequence[Bad],
    tally: Tally,
    input_name: str,
    before: Committed | None = None,
) -> Committed:
    """Write a unit's quarantine and then its part. All arrays are (n,), probabilities (n, num_classes).

    before: the same unit as it was committed, of which all else are just the rows that it has quarantined. Its
    quarantine is replaced under another name: at any moment the part in storage names one that is there.
    """
    start, stop = plan.units[unit]
    missing = before.quarantined if before else stop - start
    assert len(ids) + len(bad) == missing, (unit, len(ids), len(bad), missing)
    if before and not len(ids):
        return before
    name = part_name(unit)
    if before and before.quarantine and before.quarantine.path == f"{QUARANTINE}/{name}":
        name = name.replace(".", "-again.")
    quarantine = None
    if bad:
        table = pa.table(
            {
                "source": pa.array([each.source or input_name for each in bad], pa.string()),
                "row": pa.array([each.row for each in bad], pa.int64()),
                "reason": pa.array([each.reason for each in bad], pa.string()),
            }
        )
        quarantine = _write(output, f"{QUARANTINE}/{name}", table)
    table = _table(plan, ids, labels, predictions, probabilities, sources)
    rows = np.delete(np.arange(start, stop), [each.row - start for each in bad])
    if before:
        table, tally = _merged(output, before, table, rows), before.tally + tally
    told = {
        "plan": plan.digest,
        "unit": unit,
        "ids": ids_digest(table["id"], rows),
        "tally": tally.to_json(),
        "quarantine": asdict(quarantine) if quarantine else None,
    }
    table = table.replace_schema_metadata({METADATA: json.dumps(told)})
    part = _write(output, part_name(unit), table)
    if before and before.quarantine:
        (output / before.quarantine.path).delete()
    return Committed(unit=unit, part=part, quarantine=quarantine, tally=tally)


def _merged(output: Location, before: Committed, new: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """The rows of a part and those that were in its quarantine, in the order of the input. rows: all that there are."""
    old = pq.read_table(pa.BufferReader((output / before.part.path).read_bytes())).replace_schema_metadata(None)
    if not len(old):
        return new
    added = np.intersect1d(rows, list(quarantined(output, before)))
    order = np.argsort(np.concatenate([np.setdiff1d(rows, added), added]))
    return pa.concat_tables([old, new.cast(old.schema)]).take(order)


def quarantined(output: Location, of: Committed) -> dict[int, str]:
    """The rows that a unit has not scored, and the source of each."""
    if of.quarantine is None:
        return {}
    table = pq.read_table(pa.BufferReader((output / of.quarantine.path).read_bytes()), columns=["row", "source"])
    return dict(zip(table["row"].to_pylist(), table["source"].to_pylist(), strict=True))


def _table(
    plan: Plan,
    ids: NDArray[Any],
    labels: NDArray[np.int64],
    predictions: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    sources: list[str] | None,
) -> pa.Table:
    """The rows of a part, or some of them."""
    columns = {
        "id": pa.array(ids, pa.string() if ids.dtype == object else pa.int64()),
        "label": pa.array(labels, pa.int64(), mask=labels < 0),
        "prediction": pa.array(predictions, pa.int64()),
    }
    if plan.names:
        columns["class"] = pa.array(plan.names, pa.string()).take(columns["prediction"])
    if plan.top_k is None:
        columns["probabilities"] = _lists(np.asarray(probabilities, np.float32))
    else:
        classes, chances = top(predictions, probabilities, plan.top_k)
        columns |= {"top_classes": _lists(classes), "top_probabilities": _lists(chances)}
    if sources is not None:
        columns["source"] = pa.array(sources, pa.string())
    return pa.table(columns)


def ids_digest(ids: pa.ChunkedArray, rows: NDArray[np.int64]) -> str:
    """What a part says of its ids: that they are the numbers of its rows, or else their digest. What the input calls
    its images is its own affair, twice the same name included; but no name may change or change places."""
    if not pa.types.is_integer(ids.type):
        return sha256("\n".join(ids.to_pylist()).encode())
    numbers = ids.to_numpy()
    return "rows" if np.array_equal(numbers, rows) else sha256(numbers.tobytes())


def _lists(rows: NDArray[Any]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), rows.shape[1])


def top(
    predictions: NDArray[np.int64], probabilities: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k most probable classes (n, k) and their probabilities, the most probable first; ties by class number.

    The prediction is the first, also where float32 cannot tell its probability from another.
    """
    rows = np.arange(len(predictions))
    ranked = -probabilities.astype(np.float32)
    ranked[rows, predictions] = -np.inf
    classes = np.argsort(ranked, axis=1, kind="stable")[:, :k]
    return classes, probabilities[rows[:, None], classes].astype(np.float32, copy=False)


def _write(output: Location, path: str, table: pa.Table) -> File:
    sink = pa.BufferOutputStream()
    names = set(table.column_names)
    split = {"probabilities", "top_probabilities"} & names
    encodings = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in split}
    if "id" in names and pa.types.is_integer(table.schema.field("id").type):
        encodings["id"] = "DELTA_BINARY_PACKED"
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=sorted({"label", "prediction", "class"} & names),  # elsewhere nearly every value is another
        column_encoding=encodings,
        write_page_checksum=True,
    )
    data = memoryview(sink.getvalue())
    (output / path).write_bytes(data)
    return File(path=path, rows=table.num_rows, sha256=sha256(data))


def resume(output: Location, plan: Plan) -> list[Committed]:
    """The units that are done. What an interrupted attempt left besides is removed."""
    names = {file.name for file in output.list()}
    sweep(output)
    units = [unit for unit in range(len(plan.units)) if part_name(unit) in names]
    with ThreadPoolExecutor(8) as pool:  # storage answers slowly, but many at once
        done = [each for each in pool.map(lambda unit: committed(output, plan, unit), units) if each is not None]
    kept = {each.quarantine.path for each in done if each.quarantine}
    for file in (output / QUARANTINE).list():
        if is_part(file.name) and f"{QUARANTINE}/{file.name}" not in kept:
            file.delete()
    return done


def committed(output: Location, plan: Plan, unit: int) -> Committed | None:
    """What a part says of itself; None where it is not there, torn or of something else, and must be written."""
    try:
        data = (output / part_name(unit)).read_bytes()
        parquet = pq.ParquetFile(pa.BufferReader(data))
        told = json.loads(parquet.schema_arrow.metadata[METADATA])
        if (told["plan"], told["unit"]) != (plan.digest, unit):
            return None
        quarantine = File(**told["quarantine"]) if told["quarantine"] else None
        if quarantine and sha256((output / quarantine.path).read_bytes()) != quarantine.sha256:
            return None
        part = File(path=part_name(unit), rows=parquet.metadata.num_rows, sha256=sha256(data))
        return Committed(unit=unit, part=part, quarantine=quarantine, tally=Tally.from_json(told["tally"]))
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return None


def write_manifest(output: Location, plan: Plan, done: Sequence[Committed], **more: Any) -> dict[str, Any]:
    """The last file of an output. It is asserted that every image of the plan is accounted for."""
    done = sorted(done, key=lambda each: each.unit)
    assert [each.unit for each in done] == list(range(len(plan.units)))
    scored, quarantined = sum(each.part.rows for each in done), sum(each.quarantined for each in done)
    assert plan.images == scored + quarantined, (plan.images, scored, quarantined)
    manifest = {
        "images": plan.images,
        "scored": scored,
        "quarantined": quarantined,
        "model_sha256": plan.model_sha256,
        "classes": plan.classes,
        **more,
        "parts": [asdict(each.part) for each in done],
        "quarantine": [asdict(each.quarantine) for each in done if each.quarantine],
    }
    sweep(output)  # what a killed actor left
    (output / MANIFEST).write_json(manifest)
    return manifest
