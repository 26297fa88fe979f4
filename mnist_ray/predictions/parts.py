"""The parts of an output: commit a unit's rows, commit them again after a retry, find what is committed, sum it up.

A part is committed by one atomic write, and its presence is the record that its unit is done. Its Parquet metadata hold
the unit's counts, so resuming reads neither finished input nor finished rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mnist_ray.errors import RetryableError, require
from mnist_ray.predictions.answers import FLOATS, AnyTally, answers_of, label_column
from mnist_ray.predictions.label_tally import LabelTallyRecord
from mnist_ray.predictions.plan import MANIFEST, QUARANTINE, Plan, is_part, part_name, sweep
from mnist_ray.predictions.tally import TallyRecord
from mnist_ray.sources.base import Bad
from mnist_ray.storage import attempt
from mnist_ray.storage.disk import ChangedMeanwhileError
from mnist_ray.storage.location import Location, sha256
from mnist_ray.storage.parallel import in_parallel
from mnist_ray.storage.records import Count, Line, Rule, Seconds, Sha256, parse_record

METADATA = b"mnist_ray"
"""The key of a part's metadata in its Parquet schema: plan, unit, ids, tally and quarantine, as JSON."""

_READ_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """An entry of the manifest. `path` is relative to the output."""

    path: Annotated[str, Rule("must be the name of a part", lambda path: is_part(path.removeprefix(f"{QUARANTINE}/")))]
    rows: Count
    sha256: Sha256


@dataclass(frozen=True, kw_only=True)
class ManifestRecord:
    """What is read back of _manifest.json."""

    images: Count
    scored: Count
    quarantined: Count
    model_sha256: Sha256
    parts: tuple[File, ...]
    quarantine: tuple[File, ...]
    num_actors: Count | None = None
    seconds: Seconds | None = None
    passed_over: Mapping[str, Count] | None = None
    """How many files of the input are no images, by kind."""


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """The metadata of a part."""

    plan: Sha256
    unit: Count
    ids: Line
    tally: TallyRecord | LabelTallyRecord
    quarantine: File | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What the manifest holds of a unit whose part is in storage."""

    unit: int
    part: File
    quarantine: File | None

    @property
    def quarantined(self) -> int:
        """The number of rows in quarantine."""
        return self.quarantine.rows if self.quarantine else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Committed(Entry):
    """A unit whose part is in storage, with its counts."""

    tally: AnyTally

    def entry(self) -> Entry:
        """Without the counts, which may be large."""
        return Entry(unit=self.unit, part=self.part, quarantine=self.quarantine)


@dataclass(frozen=True, kw_only=True)
class ScoredRows:
    """Rows of one unit, in the order of the input: n of them scored, the others bad."""

    ids: NDArray[Any]
    """(n,) int64, or object array of str."""
    labels: NDArray[Any]
    """(n,), or (n, number of classes), as in a `Batch`."""
    predictions: NDArray[np.int64] | None
    """(n,) class numbers; None for labels and embeddings."""
    probabilities: NDArray[np.float32]
    """(n, num_classes); with `top_classes`, (n, k). Of labels, their scores; of embeddings, (n, size) values."""
    sources: list[str] | None
    """n paths, for inputs with one file per image."""
    bad: Sequence[Bad]
    """The rows that could not be scored."""
    tally: AnyTally
    """Of the n rows."""
    input_name: str
    """The source of bad rows that have no file of their own."""
    top_classes: NDArray[np.int64] | None = None
    """(n, k) the classes that the probabilities are of, as `top` gives them; None for all, in their order."""

    def __len__(self) -> int:
        return len(self.ids) + len(self.bad)

    def good_rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """The row numbers of start..stop without the bad ones."""
        return np.delete(np.arange(start, stop), [each.row - start for each in self.bad])


def commit(output: Location, plan: Plan, unit: int, scored: ScoredRows) -> Committed:
    """Write the quarantine of a unit, then its part. scored: all rows of the unit.

    If another actor has committed the unit already, that commit stands: its bytes may differ, because of another CPU,
    or of an image that was repaired meanwhile.
    """
    start, stop = plan.units[unit]
    require(len(scored) == stop - start, f"unit {unit} has {len(scored)} of {stop - start} rows")
    quarantine = _write_quarantine(output, part_name(unit), scored)
    table = _table(plan, scored)
    old: bytes | None = None
    while True:
        with suppress(ChangedMeanwhileError):
            return _write_part(output, plan, unit, table, scored.good_rows(start, stop), quarantine, scored.tally, old)
        if now := committed(output, plan, unit):
            return now
        old = (output / part_name(unit)).read_if_there()  # damaged, or of another job


def commit_retried(output: Location, plan: Plan, earlier: Committed, retried: ScoredRows) -> Committed:
    """Write a unit's part again, with the rows of its quarantine that could be scored now.

    earlier: the unit as it was committed when the job began. retried: exactly the rows in its quarantine. If another
    actor has meanwhile committed the unit again, that commit stands, whichever images it found mended.
    """
    require(len(retried) == earlier.quarantined, f"{len(retried)} of {earlier.quarantined} rows were tried again")
    if not len(retried.ids):
        return earlier
    rows = retried.good_rows(*plan.units[earlier.unit])
    data = (output / earlier.part.path).read_bytes()
    if sha256(data) == earlier.part.sha256:
        table = _merged(data, _table(plan, retried), rows, set(quarantined(output, earlier)))
        quarantine = _write_quarantine(output, part_name(earlier.unit), retried)
        with suppress(ChangedMeanwhileError):
            return _write_part(output, plan, earlier.unit, table, rows, quarantine, _sum(earlier, retried), data)
    now = committed(output, plan, earlier.unit)
    if now is None:
        raise RetryableError(f"{output / earlier.part.path} was replaced while its quarantined images were scored")
    return now


def _sum(earlier: Committed, retried: ScoredRows) -> AnyTally:
    total: AnyTally = earlier.tally + retried.tally  # type: ignore[operator]  # both of one plan
    return total


def _merged(part: bytes, added: pa.Table, rows: NDArray[np.int64], quarantined_rows: set[int]) -> pa.Table:
    """The rows of a part and those out of its quarantine, in the order of the input. rows: the numbers of both."""
    old = pq.read_table(pa.BufferReader(part)).replace_schema_metadata(None)
    if not len(old):
        return added
    is_added = np.isin(rows, list(quarantined_rows))
    order = np.argsort(np.concatenate([rows[~is_added], rows[is_added]]))
    require(len(order) == len(old) + len(added), f"{len(old)} + {len(added)} rows became {len(order)}")
    return pa.concat_tables([old.cast(added.schema), added]).take(order)  # so written by the same schema


def quarantined(output: Location, committed: Committed) -> dict[int, str]:
    """The source of each row in a unit's quarantine, by row number."""
    if committed.quarantine is None:
        return {}
    data = (output / committed.quarantine.path).read_bytes()
    table = pq.read_table(pa.BufferReader(data), columns=["row", "source"])
    return dict(zip(table["row"].to_pylist(), table["source"].to_pylist(), strict=True))


def first_quarantined(output: Location, committed: Entry) -> tuple[str, int, str]:
    """(source, row, reason) of the first bad image of a unit that has one."""
    assert committed.quarantine is not None
    table = pq.read_table(pa.BufferReader((output / committed.quarantine.path).read_bytes()))
    source, row, reason = (table[name][0].as_py() for name in ("source", "row", "reason"))
    return source, row, reason


# Tables and files.


def _table(plan: Plan, scored: ScoredRows) -> pa.Table:
    """The rows of a part, or some of them."""
    columns = {
        "id": pa.array(scored.ids, pa.string() if scored.ids.dtype == object else pa.int64()),
        "label": label_column(scored.labels),
        **answers_of(plan).table(scored.probabilities, scored.predictions, scored.top_classes),
    }
    if scored.sources is not None:
        columns["source"] = pa.array(scored.sources, pa.string())
    return pa.table(columns)


def ids_digest(ids: pa.ChunkedArray, rows: NDArray[np.int64]) -> str:
    """The word `rows` where the ids are the row numbers, else their sha256.

    The input may use the same id twice; but no id may change, or change places.
    """
    if not pa.types.is_integer(ids.type):
        return sha256("\n".join(ids.to_pylist()).encode())
    numbers = ids.to_numpy()
    return "rows" if np.array_equal(numbers, rows) else sha256(numbers.tobytes())


def _write_part(
    output: Location,
    plan: Plan,
    unit: int,
    table: pa.Table,
    rows: NDArray[np.int64],
    quarantine: File | None,
    tally: AnyTally,
    old: bytes | None,
) -> Committed:
    """Write a unit's part with its metadata over `old`. rows: (n,) row numbers of the table.

    Raises ChangedMeanwhileError where the part is another by now.
    """
    metadata = {
        "plan": plan.digest,
        "unit": unit,
        "ids": ids_digest(table["id"], rows),
        "tally": tally.to_json(),
        "quarantine": asdict(quarantine) if quarantine else None,
    }
    data = _encoded(table.replace_schema_metadata({METADATA: json.dumps(metadata)}))
    (output / part_name(unit)).write_over(data, old)
    part = File(path=part_name(unit), rows=table.num_rows, sha256=sha256(data))
    return Committed(unit=unit, part=part, quarantine=quarantine, tally=tally)


def _write_quarantine(output: Location, name: str, scored: ScoredRows) -> File | None:
    """Write the bad rows, if there are any. A file of this name with other rows stays: a part may name it."""
    if not scored.bad:
        return None
    columns = {
        "source": pa.array([each.source or scored.input_name for each in scored.bad], pa.string()),
        "row": pa.array([each.row for each in scored.bad], pa.int64()),
        "reason": pa.array([each.reason for each in scored.bad], pa.string()),
    }
    table = pa.table(columns)
    data = _encoded(table)
    digest = sha256(data)
    try:
        (output / QUARANTINE / name).write_over(data, None)
    except ChangedMeanwhileError:
        if sha256((output / QUARANTINE / name).read_bytes()) != digest:
            name = name.replace(".", f"-{digest[:8]}.")
            (output / QUARANTINE / name).write_bytes(data)
    return File(path=f"{QUARANTINE}/{name}", rows=table.num_rows, sha256=digest)


def _encoded(table: pa.Table) -> memoryview:
    """The table as a Parquet file."""
    sink = pa.BufferOutputStream()
    names = set(table.column_names)
    split = FLOATS & names
    encodings = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in split}
    if "id" in names and pa.types.is_integer(table.schema.field("id").type):
        encodings["id"] = "DELTA_BINARY_PACKED"
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=sorted({"label", "prediction", "class"} & names),  # in the others nearly all values differ
        column_encoding=encodings,
        write_page_checksum=True,
    )
    return memoryview(sink.getvalue())


# What is committed.


def resume(output: Location, plan: Plan) -> Iterator[Committed]:
    """The units that are done, one at a time. Ends older attempts before, and removes what an interrupted job has left
    behind; quarantine that no part names is removed after the last unit. Take all before anything is written."""
    attempt.end_older(output)
    names = {file.name for file in output.list()}
    sweep(output)
    units = [unit for unit in range(len(plan.units)) if part_name(unit) in names]
    return _done(output, plan, units)


def _done(output: Location, plan: Plan, units: list[int]) -> Iterator[Committed]:
    kept = set()
    with closing(in_parallel(lambda unit: committed(output, plan, unit), units, at_once=_READ_AT_ONCE)) as found:
        for each in found:
            if each is not None:
                kept |= {each.quarantine.path} if each.quarantine else set()
                yield each
    _remove_unclaimed_quarantine(output, kept)


def _remove_unclaimed_quarantine(output: Location, kept: set[str]) -> None:
    """Remove what no part names any more, or not yet. kept: the paths of the others."""
    for file in (output / QUARANTINE).list():
        if is_part(file.name) and f"{QUARANTINE}/{file.name}" not in kept:
            file.delete()


def committed(output: Location, plan: Plan, unit: int) -> Committed | None:
    """The committed unit; None where its part is missing, damaged or of another plan, and must be written."""
    try:
        data = (output / part_name(unit)).read_bytes()
        parquet = pq.ParquetFile(pa.BufferReader(data))
        record = parse_record(parquet.schema_arrow.metadata[METADATA], PartRecord, part_name(unit), "score it again")
        if (record.plan, record.unit) != (plan.digest, unit):
            return None
        tally, quarantine = answers_of(plan).read_tally(record.tally), record.quarantine
        if quarantine and sha256((output / quarantine.path).read_bytes()) != quarantine.sha256:
            return None
        part = File(path=part_name(unit), rows=parquet.metadata.num_rows, sha256=sha256(data))
        return Committed(unit=unit, part=part, quarantine=quarantine, tally=tally)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return None


def count(plan: Plan, done: Iterable[Entry]) -> dict[str, Any]:
    """What a manifest holds of the units. Raises AssertionError as `write_manifest` does."""
    done = sorted(done, key=lambda each: each.unit)
    require([each.unit for each in done] == list(range(len(plan.units))), "not each unit is committed once")
    scored, quarantined = sum(each.part.rows for each in done), sum(each.quarantined for each in done)
    require(plan.images == scored + quarantined, f"{scored} + {quarantined} images, not {plan.images}")
    return {
        "images": plan.images,
        "scored": scored,
        "quarantined": quarantined,
        "parts": [asdict(each.part) for each in done],
        "quarantine": [asdict(each.quarantine) for each in done if each.quarantine],
    }


def write_manifest(output: Location, plan: Plan, done: Sequence[Entry], **more: Any) -> dict[str, Any]:
    """Write the last file of an output. Raises AssertionError unless every image of the plan is accounted for."""
    manifest = {**plan.told(), **more, **count(plan, done)}
    sweep(output)  # what a killed actor left
    _remove_unclaimed_quarantine(output, {each.quarantine.path for each in done if each.quarantine})
    (output / MANIFEST).write_json(manifest)
    return manifest
