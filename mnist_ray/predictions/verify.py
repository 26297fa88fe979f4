"""Verify an output offline: hash every file, count every row again, and name what differs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mnist_ray.errors import InputError, RetryableError
from mnist_ray.predictions.parts import METADATA, ManifestRecord, PartRecord, ids_digest
from mnist_ray.predictions.plan import MANIFEST, QUARANTINE, Plan, part_name, short
from mnist_ray.predictions.tally import Tally, TallySum
from mnist_ray.storage.location import Location, sha256
from mnist_ray.storage.parallel import in_parallel
from mnist_ray.storage.records import Count, parse_record, read_checked

_MOST_SHOWN = 5  # differences in a message

_UNREADABLE = (pa.ArrowException, OSError, KeyError, TypeError, ValueError, AssertionError, IndexError)


@dataclass(frozen=True)
class Verified:
    """What a verified output holds."""

    output: str
    images: int
    scored: int
    quarantined: int
    parts: int
    tally: Tally

    def __str__(self) -> str:
        seen = self.tally.num_seen
        accuracy = (
            f"; {self.tally.num_correct:,} of {seen:,} correct, accuracy {self.tally.accuracy:.6f}" if seen else ""
        )
        return (
            f"{self.output}: verified; {self.images:,} images = {self.scored:,} scored + {self.quarantined:,}"
            f" quarantined in {self.parts:,} {'part' if self.parts == 1 else 'parts'}, each once{accuracy}"
        )


def verify(output: Location) -> Verified:
    """Recount and re-hash an output, or the predictions of a run's folder, offline.

    Raises InputError if there is no output, RetryableError if it is unfinished or anything differs.
    """
    is_run = (output / "predictions").is_dir()
    root = output / "predictions" if is_run else output
    plan, manifest = _load(root)
    check = _Check(root, plan)
    verified = check.manifest(manifest)
    check.metrics(output, verified)
    if is_run:
        check.model(output / "model" / "classifier.keras")
    if check.differences:
        raise _differs(root, check.differences)
    return verified


def _load(root: Location) -> tuple[Plan, dict[str, Any]]:
    """The plan and the manifest. Raises as `verify` does."""
    try:
        plan = Plan.load(root)
    except InputError as error:
        raise _differs(root, [str(error).split(";")[0]]) from error
    if plan is None:
        state = "holds no predictions" if root.exists() else "does not exist"
        raise InputError(f"{root} {state}; verify takes a run's folder or what `mnist-ray score` wrote")
    try:
        return plan, read_checked(root / MANIFEST, ManifestRecord, "score the input again")
    except FileNotFoundError as error:
        raise RetryableError(f"{root} is unfinished: it has no {MANIFEST}; start the same command again") from error
    except InputError as error:
        raise _differs(root, [str(error).split(";")[0]]) from error


def _differs(root: Location, differences: list[str]) -> RetryableError:
    more = f"; and {len(differences) - _MOST_SHOWN} more" if len(differences) > _MOST_SHOWN else ""
    return RetryableError(f"{root} differs from what was written: {'; '.join(differences[:_MOST_SHOWN])}{more}")


@dataclass(frozen=True)
class _Metrics:
    """What is checked of metrics.json."""

    @dataclass(frozen=True)
    class Score:
        images: Count | None = None
        quarantined: Count | None = None

    after: dict[str, Any] | None = None
    score: Score | None = None


@dataclass
class _Found:
    """What the check of one file found."""

    differences: list[str] = field(default_factory=list)
    rows: int = 0
    bad: NDArray[np.int64] | None = None
    """The rows that a quarantine file lists; None where it cannot be read."""
    tally: Tally | None = None
    quarantine: str | None = None
    """The quarantine file that a part names."""

    def expect(self, what: str, found: object, expected: object) -> None:
        if found != expected:
            self.differences.append(f"{what} is {short(found)}, not {short(expected)}")

    def unreadable(self, path: str, error: Exception) -> None:
        self.differences.append(f"{path} cannot be read ({type(error).__name__}: {error})")


class _Check:
    """Compares an output with itself, and collects what differs. The files are checked many at once."""

    def __init__(self, root: Location, plan: Plan) -> None:
        self.root, self.plan, self.whole = root, plan, _Found()
        self.tally = Tally.zero(plan.num_classes)
        """Of all parts, once they are checked."""
        self.quarantined: dict[str, tuple[dict[str, Any], NDArray[np.int64] | None]] = {}
        """The entry of each quarantine file in the manifest, and the rows that the file lists."""
        self.has_row_ids = False

    @property
    def differences(self) -> list[str]:
        return self.whole.differences

    def manifest(self, manifest: dict[str, Any]) -> Verified:
        """Check all files against the manifest, and the manifest against their counts."""
        parts, quarantine = manifest["parts"], manifest["quarantine"]
        self.has_row_ids = manifest.get("ids") == "row"
        self.whole.expect("the manifest's model", manifest["model_sha256"], self.plan.model_sha256)
        self.whole.expect("the number of parts", len(parts), len(self.plan.units))
        scored = quarantined = 0
        for entry, found in zip(quarantine, self._checked(self.quarantine, quarantine), strict=True):
            self.quarantined[entry["path"]] = entry, found.bad
            quarantined += found.rows
        unclaimed = {path for path, (_, bad) in self.quarantined.items() if bad is not None}
        numbered = list(enumerate(parts[: len(self.plan.units)]))
        tally = TallySum(self.plan.num_classes)
        for found in self._checked(lambda each: self.part(*each), numbered):
            scored += found.rows
            unclaimed.discard(found.quarantine or "")
            if found.tally:
                tally.add(found.tally)
        self.tally = tally.total()
        self.differences.extend(f"{path} belongs to no part" for path in sorted(unclaimed))
        self.unlisted_files({entry["path"] for entry in [*parts, *quarantine]})
        for name, counted in (("images", scored + quarantined), ("scored", scored), ("quarantined", quarantined)):
            self.whole.expect(f"the manifest's {name}", manifest[name], counted)
        self.whole.expect("the plan's images", self.plan.images, scored + quarantined)
        return Verified(str(self.root), scored + quarantined, scored, quarantined, len(parts), self.tally)

    def _checked(self, check: Callable[[Any], _Found], files: list[Any]) -> Iterator[_Found]:
        """The check of each file, in their order. Hashing and decoding leave the interpreter to other threads."""
        cores = os.cpu_count() or 1
        with closing(in_parallel(check, files, at_once=cores if self.root.is_local else max(cores, 8))) as checks:
            for found in checks:
                self.differences.extend(found.differences)
                yield found

    def unlisted_files(self, listed: set[str]) -> None:
        for prefix, folder in (("", self.root), (f"{QUARANTINE}/", self.root / QUARANTINE)):
            for file in folder.list():
                if file.name.endswith(".parquet") and f"{prefix}{file.name}" not in listed:
                    self.differences.append(f"{prefix}{file.name} is not in the manifest")

    def read(self, entry: dict[str, Any], columns: list[str], found: _Found) -> pa.Table | None:
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

    def quarantine(self, entry: dict[str, Any]) -> _Found:
        """Check a quarantine file."""
        found = _Found()
        table = self.read(entry, ["row"], found)
        if table is not None:
            found.bad, found.rows = table["row"].to_numpy(), table.num_rows
        return found

    def part(self, unit: int, entry: dict[str, Any]) -> _Found:
        """Check a part: its rows, and its metadata against them."""
        path, found = entry["path"], _Found()
        table = self.read(entry, self.columns(), found)
        if table is None:
            return found
        try:
            record = parse_record(table.schema.metadata[METADATA], PartRecord, path, "score it again")
            tally = Tally.of_record(record.tally, self.plan.num_classes)
            its_quarantine = asdict(record.quarantine) if record.quarantine else None
            is_expected = (record.plan, record.unit) == (self.plan.digest, unit)
            differences = self.row_differences(table, tally)
        except _UNREADABLE as error:
            found.unreadable(path, error)
            return found
        found.rows = table.num_rows
        found.expect(f"the path of unit {unit}", path, part_name(unit))
        if not is_expected:
            is_other_job = record.plan != self.plan.digest
            found.differences.append(
                f"{path} belongs to another job" if is_other_job else f"{path} is unit {record.unit}, not {unit}"
            )
            return found
        found.differences += [f"{path} has {difference}" for difference in differences]
        bad: NDArray[np.int64] | None = np.empty(0, np.int64)
        if its_quarantine is not None:
            found.quarantine = path_of_it = its_quarantine["path"]
            listed, bad = self.quarantined.get(path_of_it, (None, None))
            if its_quarantine != listed:
                found.differences.append(f"the quarantine of {path} is not in the manifest")
        if bad is not None:  # or its file is missing or damaged, which is in the differences already
            self.row_numbers(unit, path, table, bad, record.ids, found)
        found.tally = tally
        return found

    def columns(self) -> list[str]:
        """The columns of a part that are checked."""
        names = ["class"] if self.plan.class_names else []
        probabilities = ["probabilities"] if self.plan.top_k is None else ["top_classes", "top_probabilities"]
        return ["id", "label", "prediction", *names, *probabilities]

    def row_numbers(
        self, unit: int, path: str, table: pa.Table, bad: NDArray[np.int64], expected_ids: str, found: _Found
    ) -> None:
        """Check that a part and its quarantine have each row of the unit once, in order, and the ids as they were
        written."""
        start, stop = self.plan.units[unit]
        rows = np.arange(start, stop)
        if len(bad):
            rows = np.setdiff1d(rows, bad)
        found.expect(f"the images of {path}", table.num_rows + len(bad), stop - start)
        ids = ids_digest(table["id"], rows)
        if len(rows) + len(bad) != stop - start:
            found.differences.append(f"{found.quarantine} lists rows twice, or rows of other parts")
        elif ids != expected_ids:
            found.differences.append(f"{path} has other ids than were written{_repeated(table['id'])}")
        elif self.has_row_ids and ids != "rows":
            found.differences.append(f"{path} does not have the rows of the input in their order")

    def row_differences(self, table: pa.Table, tally: Tally) -> list[str]:
        """What differs between the columns of a part, and from its tally."""
        found = []
        labels, predictions = table["label"].fill_null(-1).to_numpy(), table["prediction"].to_numpy()
        if self.plan.top_k is None:
            probabilities = _values(table["probabilities"])
            confidences = probabilities[np.arange(len(labels)), predictions]
            is_most_probable = not (confidences < probabilities.max(axis=1, initial=0)).any()
        else:
            probabilities = _values(table["top_probabilities"])
            confidences = probabilities[:, 0]
            is_first = _values(table["top_classes"])[:, 0] == predictions
            is_most_probable = bool(is_first.all() and (np.diff(probabilities) <= 0).all())
        if not is_most_probable:
            found.append("predictions that are not its most probable classes")
        names = self.plan.class_names
        if names and pa.array(names).take(pa.array(predictions)) != table["class"].combine_chunks():
            found.append("class names that are not those of its predictions")
        counted = Tally.of(labels, predictions, np.zeros(len(labels)), confidences, self.plan.num_classes)
        if not counted.has_counts_of(tally):  # losses cannot be recounted without the model
            found.append("counts that do not match its rows")
        return found

    def metrics(self, folder: Location, verified: Verified) -> None:
        """Check metrics.json, if there is one, against the counts."""
        file = folder / "metrics.json"
        if not file.is_file():
            return
        try:
            metrics = read_checked(file, _Metrics, "score the input again")
            after, score = metrics.get("after") or {}, metrics.get("score") or {}
        except InputError:
            self.differences.append("metrics.json is damaged")
            return
        for name, counted in self.tally.summary(detailed=True).items():
            if name in after and after[name] != counted:
                self.differences.append(f"metrics.json has another {name}")
        if "images" in score:
            self.whole.expect("the images of metrics.json", score["images"], verified.images)
            self.whole.expect("the quarantined of metrics.json", score.get("quarantined"), verified.quarantined)

    def model(self, file: Location) -> None:
        """Check a run's model, if it is there, against the plan."""
        if file.is_file():
            self.whole.expect("the run's model", sha256(file.read_bytes()), self.plan.model_sha256)


def _repeated(ids: pa.ChunkedArray) -> str:
    """A remark on ids that occur more than once; empty if none does."""
    counts = pc.value_counts(ids)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    return f" ({len(repeated)} of them more than once, the first {repeated[0].as_py()!r})" if len(repeated) else ""


def _values(lists: pa.ChunkedArray) -> NDArray[Any]:
    """(n, k): n lists of k values."""
    size = lists.type.list_size
    return np.asarray(pc.list_flatten(lists).to_numpy()).reshape(-1, size)
