"""The check of one part of an output against the plan, the manifest and its own quarantine: hash it, count it again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mnist_ray.predictions.answers import Answers, AnyTally, answers_of
from mnist_ray.predictions.parts import METADATA, PartRecord, ids_digest
from mnist_ray.predictions.plan import Plan, part_name, short
from mnist_ray.storage.location import Location, sha256
from mnist_ray.storage.records import parse_record

_UNREADABLE = (pa.ArrowException, OSError, KeyError, TypeError, ValueError, AssertionError, IndexError)

Entry = dict[str, Any]
"""A file in the manifest: path, rows and sha256."""


class Unit(NamedTuple):
    """A unit of the plan, and the manifest's entry of its part."""

    number: int
    start: int
    stop: int
    part: Entry


@dataclass
class Found:
    """What the check of a file found."""

    differences: list[str] = field(default_factory=list)
    rows: int = 0
    quarantined: int = 0
    tally: AnyTally | None = None
    quarantine: Entry | None = None
    """The quarantine file that a part names."""
    is_counted: bool = False
    """Whether all rows of a unit were counted, those in quarantine as well."""

    def expect(self, what: str, found: object, expected: object) -> None:
        if found != expected:
            self.differences.append(f"{what} is {short(found)}, not {short(expected)}")

    def unreadable(self, path: str, error: Exception) -> None:
        self.differences.append(f"{path} cannot be read ({type(error).__name__}: {error})")


@dataclass(frozen=True)
class Recount:
    """Recounts the parts of an output. Picklable, and without the plan's units, which may be many."""

    root: Location
    plan_digest: str
    answers: Answers
    has_row_ids: bool

    @classmethod
    def of(cls, root: Location, plan: Plan, *, has_row_ids: bool) -> Recount:
        return cls(root, plan.digest, answers_of(plan), has_row_ids)

    def unit(self, unit: Unit) -> Found:
        """Check a part: its rows, and its metadata against them."""
        path, found = unit.part["path"], Found()
        table = self._read(unit.part, ["id", "label", *self.answers.columns], found)
        if table is None:
            return found
        try:
            record = parse_record(table.schema.metadata[METADATA], PartRecord, path, "score it again")
            tally = self.answers.read_tally(record.tally)
            is_expected = (record.plan, record.unit) == (self.plan_digest, unit.number)
            differences, counted = self.answers.recount(table)
            if not counted.has_counts_of(tally):  # type: ignore[arg-type]  # of one kind; losses need the model
                differences.append("counts that do not match its rows")
        except _UNREADABLE as error:
            found.unreadable(path, error)
            return found
        found.rows = table.num_rows
        found.expect(f"the path of unit {unit.number}", path, part_name(unit.number))
        if not is_expected:
            is_other_job = record.plan != self.plan_digest
            found.differences.append(
                f"{path} belongs to another job" if is_other_job else f"{path} is unit {record.unit}, not {unit.number}"
            )
            return found
        found.differences += [f"{path} has {difference}" for difference in differences]
        bad: NDArray[np.int64] | None = np.empty(0, np.int64)
        if record.quarantine is not None:
            found.quarantine = asdict(record.quarantine)
            bad = self.quarantined(found.quarantine, found)
        if bad is not None:  # or its file is missing or damaged, which is in the differences already
            self._check_rows(unit, table, bad, record.ids, found)
            found.is_counted = True
        found.tally = tally
        return found

    def quarantined(self, entry: Entry, found: Found) -> NDArray[np.int64] | None:
        """The rows that a quarantine file lists; None if it cannot be read."""
        table = self._read(entry, ["row"], found)
        if table is None:
            return None
        found.quarantined = table.num_rows
        rows: NDArray[np.int64] = table["row"].to_numpy()
        return rows

    def _read(self, entry: Entry, columns: list[str], found: Found) -> pa.Table | None:
        """The columns of a file; None if it is missing, unreadable, or has another sha256 than in the manifest."""
        path = entry["path"]
        try:
            data = (self.root / path).read_bytes()
        except FileNotFoundError:
            found.differences.append(f"{path} is missing")
            return None
        if sha256(data) != entry["sha256"]:
            found.differences.append(f"{path} has another sha256")
            return None
        try:
            # A thread of Arrow's that still ends as the process does can abort it (apache/arrow#34314).
            table = pq.ParquetFile(pa.BufferReader(data)).read(columns=columns, use_threads=False)
            table.select(columns)
        except (pa.ArrowException, OSError, KeyError) as error:
            found.unreadable(path, error)
            return None
        found.expect(f"the rows of {path}", table.num_rows, entry["rows"])
        return table

    def _check_rows(self, unit: Unit, table: pa.Table, bad: NDArray[np.int64], expected_ids: str, found: Found) -> None:
        """Check that a part and its quarantine have each row of the unit once, in order, and the ids as they were
        written."""
        path, images = unit.part["path"], unit.stop - unit.start
        rows = np.arange(unit.start, unit.stop)
        if len(bad):
            rows = np.setdiff1d(rows, bad)
        found.expect(f"the images of {path}", table.num_rows + len(bad), images)
        ids = ids_digest(table["id"], rows)
        if len(rows) + len(bad) != images:
            found.differences.append(f"{(found.quarantine or {})['path']} lists rows twice, or rows of other parts")
        elif ids != expected_ids:
            found.differences.append(f"{path} has other ids than were written{_repeated(table['id'])}")
        elif self.has_row_ids and ids != "rows":
            found.differences.append(f"{path} does not have the rows of the input in their order")


def _repeated(ids: pa.ChunkedArray) -> str:
    """A remark on ids that occur more than once; empty if none does."""
    counts = pc.value_counts(ids)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    return f" ({len(repeated)} of them more than once, the first {repeated[0].as_py()!r})" if len(repeated) else ""
