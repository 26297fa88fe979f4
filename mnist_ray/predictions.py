"""The predictions in an output folder: a unit's part and quarantine, going on with what is there, the manifest.

A part is committed by one atomic write; that it is there is the record of it. Its own counts are in its Parquet
metadata, so going on needs neither finished input nor finished rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mnist_ray.metrics import Tally
from mnist_ray.plan import MANIFEST, QUARANTINE, Plan, is_part, part_name
from mnist_ray.sources import Bad
from mnist_ray.storage import Location, sha256

METADATA = b"mnist_ray"
"""The key of a part's own counts in its schema."""

_TEMPORARY = re.compile(r"\.(part-\d{5,}\.parquet|_plan\.json|_manifest\.json)\.[0-9a-f]+\.tmp")


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
) -> Committed:
    """Write a unit's quarantine and then its part. All arrays are (n,), probabilities (n, num_classes)."""
    start, stop = plan.units[unit]
    assert len(ids) + len(bad) == stop - start, (unit, len(ids), len(bad))
    quarantine = None
    if bad:
        table = pa.table(
            {
                "source": pa.array([each.source or input_name for each in bad], pa.string()),
                "row": pa.array([each.row for each in bad], pa.int64()),
                "reason": pa.array([each.reason for each in bad], pa.string()),
            }
        )
        quarantine = _write(output, f"{QUARANTINE}/{part_name(unit)}", table)
    columns = {
        "id": pa.array(ids, pa.string() if ids.dtype == object else pa.int64()),
        "label": pa.array(labels, pa.int64(), mask=labels < 0),
        "prediction": pa.array(predictions, pa.int64()),
        "probabilities": pa.FixedSizeListArray.from_arrays(
            pa.array(np.ascontiguousarray(probabilities, np.float32).reshape(-1)), plan.num_classes
        ),
    }
    if sources is not None:
        columns["source"] = pa.array(sources, pa.string())
    told = {
        "plan": plan.digest,
        "unit": unit,
        "tally": tally.to_json(),
        "quarantine": asdict(quarantine) if quarantine else None,
    }
    table = pa.table(columns).replace_schema_metadata({METADATA: json.dumps(told)})
    return Committed(unit=unit, part=_write(output, part_name(unit), table), quarantine=quarantine, tally=tally)


def _write(output: Location, path: str, table: pa.Table) -> File:
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=False,  # nearly every value is another
        use_byte_stream_split=[
            name for name in ("probabilities.list.element",) if "probabilities" in table.column_names
        ],
        write_page_checksum=True,
    )
    data = memoryview(sink.getvalue())
    (output / path).write_bytes(data)
    return File(path=path, rows=table.num_rows, sha256=sha256(data))


def resume(output: Location, plan: Plan) -> list[Committed]:
    """The units that are done. What an interrupted attempt left besides is removed."""
    names = {file.name for file in output.list()}
    for folder in (output, output / QUARANTINE):
        for file in folder.list():
            if _TEMPORARY.fullmatch(file.name):
                file.delete()
    units = [unit for unit in range(len(plan.units)) if part_name(unit) in names]
    with ThreadPoolExecutor(8) as pool:  # storage answers slowly, but many at once
        done = [each for each in pool.map(lambda unit: _committed(output, plan, unit), units) if each is not None]
    kept = {each.quarantine.path for each in done if each.quarantine}
    for file in (output / QUARANTINE).list():
        if is_part(file.name) and f"{QUARANTINE}/{file.name}" not in kept:
            file.delete()
    return done


def _committed(output: Location, plan: Plan, unit: int) -> Committed | None:
    """What a part says of itself; None where it is torn or of something else, and must be written anew."""
    data = (output / part_name(unit)).read_bytes()
    try:
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
        **more,
        "parts": [asdict(each.part) for each in done],
        "quarantine": [asdict(each.quarantine) for each in done if each.quarantine],
    }
    (output / MANIFEST).write_json(manifest)
    return manifest
