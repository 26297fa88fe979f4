"""What lies in an output folder: the plan, the parts, the quarantine, the manifest; and checking all of it offline.

    _plan.json                      units of work and what they are of; frozen at the first start
    part-00000.parquet              unit 0, committed by one atomic write; that it is there is the record of it
    quarantine/part-00000.parquet   what of unit 0 could not be scored; written before the part
    _manifest.json                  written last

A part's own counts are in its Parquet metadata, so going on needs neither finished input nor finished rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mnist_ray.errors import InputError, RetryableError
from mnist_ray.metrics import Tally
from mnist_ray.sources import Bad
from mnist_ray.storage import Location, sha256

PLAN, MANIFEST, QUARANTINE = "_plan.json", "_manifest.json", "quarantine"
_PART = re.compile(r"part-\d{5,}\.parquet")
_TEMPORARY = re.compile(r"\.(part-\d{5,}\.parquet|_plan\.json|_manifest\.json)\.[0-9a-f]+\.tmp")
_METADATA = b"mnist_ray"

MOST_ROWS = 131_072
_FEWEST_ROWS = 4_096
_UNIT_BYTES = 128 << 20  # of pixels, which an actor holds at once
_ENOUGH_UNITS = 16  # so that many actors find work in a middling input


# Units.


def plan_units(
    ranges: Iterable[tuple[int, int]], *, row_bytes: int, target_rows: int | None = None
) -> list[tuple[int, int]]:
    """Units of work as (start, stop): each range cut into pieces of `target_rows`, a power of two, and a rest.

    ranges: what no unit may span the border of, in order; empty ones are left out. target_rows follows from the number
    of rows where it is not given, never from the number of actors.
    """
    ranges = [(start, stop) for start, stop in ranges if stop > start]
    if target_rows is None:
        rows = sum(stop - start for start, stop in ranges)
        wanted = max(_FEWEST_ROWS, min(MOST_ROWS, rows // _ENOUGH_UNITS))
        wanted = max(1, min(wanted, _UNIT_BYTES // row_bytes))
        target_rows = 1 << (wanted.bit_length() - 1)  # does not cut through the row groups of most writers
    assert 1 <= target_rows <= MOST_ROWS
    return [
        (first, min(first + target_rows, stop)) for start, stop in ranges for first in range(start, stop, target_rows)
    ]


def limited(ranges: Iterable[tuple[int, int]], limit: int | None) -> list[tuple[int, int]]:
    """The ranges of the first `limit` rows."""
    return [(start, stop if limit is None else min(stop, limit)) for start, stop in ranges]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an output is of. Another one in the same folder is refused."""

    model_sha256: str
    input_digest: str
    split: str
    limit: int | None
    pixels: str
    num_classes: int
    units: tuple[tuple[int, int], ...]

    @property
    def images(self) -> int:
        return sum(stop - start for start, stop in self.units)

    @cached_property
    def digest(self) -> str:
        return sha256(json.dumps(asdict(self)).encode())

    @classmethod
    def load(cls, output: Location) -> Plan | None:
        """The stored one. Raises InputError where it is damaged, or where parts lie there without any."""
        try:
            stored = (output / PLAN).read_json()
            return cls(**{**stored, "units": tuple((int(start), int(stop)) for start, stop in stored["units"])})
        except FileNotFoundError:
            if any(_PART.fullmatch(file.name) or file.name == MANIFEST for file in output.list()):
                raise InputError(f"{output} holds parts but no {PLAN}; choose another --output") from None
            return None
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{output / PLAN} is damaged ({error}); choose another --output") from error

    def freeze(self, output: Location) -> Plan:
        """The plan to follow: the stored one where there is one for the same, else this, stored now.

        Raises InputError where the stored one is of something else, and says what differs.
        """
        stored = Plan.load(output)
        if stored is None:
            (output / PLAN).write_json(asdict(self))
            return self
        names = {
            "model_sha256": "--model",
            "input_digest": "input",
            "split": "--split",
            "limit": "--limit",
            "pixels": "--pixels",
        }
        differing = [
            f"{told} {_short(getattr(stored, name))} -> {_short(getattr(self, name))}"
            for name, told in names.items()
            if getattr(stored, name) != getattr(self, name)
        ]
        if differing:
            raise InputError(
                f"{output} holds predictions of something else ({', '.join(differing)}); choose another --output"
            )
        return stored


def _short(value: Any) -> Any:
    return value[:12] if isinstance(value, str) else value


# Parts.


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


def part_name(unit: int) -> str:
    return f"part-{unit:05d}.parquet"


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
    table = pa.table(columns).replace_schema_metadata({_METADATA: json.dumps(told)})
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
        if _PART.fullmatch(file.name) and f"{QUARANTINE}/{file.name}" not in kept:
            file.delete()
    return done


def _committed(output: Location, plan: Plan, unit: int) -> Committed | None:
    """What a part says of itself; None where it is torn or of something else, and must be written anew."""
    data = (output / part_name(unit)).read_bytes()
    try:
        parquet = pq.ParquetFile(pa.BufferReader(data))
        told = json.loads(parquet.schema_arrow.metadata[_METADATA])
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


# Checking.


@dataclass(frozen=True)
class Verified:
    """What was found to be so."""

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
            f" quarantined in {self.parts:,} parts, each once{accuracy}"
        )


def verify(output: Location) -> Verified:
    """Recount and re-hash an output, or a run's folder, offline.

    Raises InputError where there is no output, RetryableError where it is unfinished or anything differs.
    """
    root = output / "predictions" if (output / "predictions").is_dir() else output
    plan = Plan.load(root)
    if plan is None:
        raise InputError(f"{output} holds no predictions")
    try:
        manifest = (root / MANIFEST).read_json()
    except FileNotFoundError as error:
        raise RetryableError(f"{root} is unfinished: it has no {MANIFEST}; start the same command again") from error
    check = _Check(root, plan)
    try:
        verified = check.all(manifest)
    except (KeyError, TypeError, AttributeError) as error:
        raise RetryableError(f"{root / MANIFEST} is damaged ({type(error).__name__}: {error})") from error
    check.beside(output if root is not output else None, root.parent if root is not output else root, verified)
    if check.found:
        more = f"; and {len(check.found) - 5} more" if len(check.found) > 5 else ""
        raise RetryableError(f"{root} differs from what was written: {'; '.join(check.found[:5])}{more}")
    return verified


class _Check:
    """Collects what differs."""

    def __init__(self, root: Location, plan: Plan) -> None:
        self.root, self.plan, self.found = root, plan, list[str]()
        self.tally = Tally.zero(plan.num_classes)
        self.ids: list[pa.Array] = []

    def expect(self, what: str, is_so: object, should: object) -> None:
        if is_so != should:
            self.found.append(f"{what} is {_short(is_so)}, not {_short(should)}")

    def all(self, manifest: dict[str, Any]) -> Verified:
        parts, quarantine = manifest["parts"], manifest["quarantine"]
        self.expect("the manifest's model", manifest["model_sha256"], self.plan.model_sha256)
        self.expect("the number of parts", len(parts), len(self.plan.units))
        scored = sum(self.part(unit, entry) for unit, entry in enumerate(parts[: len(self.plan.units)]))
        quarantined = sum(self.rows(entry) for entry in quarantine)
        listed = {entry["path"] for entry in [*parts, *quarantine]}
        for prefix, folder in (("", self.root), (f"{QUARANTINE}/", self.root / QUARANTINE)):
            for file in folder.list():
                if file.name.endswith(".parquet") and f"{prefix}{file.name}" not in listed:
                    self.found.append(f"{prefix}{file.name} is not in the manifest")
        for name, counted in (("images", scored + quarantined), ("scored", scored), ("quarantined", quarantined)):
            self.expect(f"the manifest's {name}", manifest[name], counted)
        self.expect("the plan's images", self.plan.images, scored + quarantined)
        self.unique()
        return Verified(str(self.root), scored + quarantined, scored, quarantined, len(parts), self.tally)

    def read(self, entry: dict[str, Any]) -> Any:
        """The file as Parquet, once its sha256 is what the manifest says; else None."""
        try:
            data = (self.root / entry["path"]).read_bytes()
        except FileNotFoundError:
            self.found.append(f"{entry['path']} is missing")
            return None
        if sha256(data) != entry["sha256"]:
            self.found.append(f"{entry['path']} has another sha256")
            return None
        try:
            return pq.ParquetFile(pa.BufferReader(data))
        except (pa.ArrowException, OSError) as error:
            self.found.append(f"{entry['path']} is no Parquet file ({error})")
            return None

    def rows(self, entry: dict[str, Any]) -> int:
        parquet = self.read(entry)
        if parquet is None:
            return 0
        self.expect(f"the rows of {entry['path']}", parquet.metadata.num_rows, entry["rows"])
        return int(parquet.metadata.num_rows)

    def part(self, unit: int, entry: dict[str, Any]) -> int:
        """Recount a part; its rows."""
        parquet, path = self.read(entry), entry["path"]
        if parquet is None:
            return 0
        try:
            table = parquet.read(columns=["id", "label", "prediction", "probabilities"])
            told = json.loads(parquet.schema_arrow.metadata[_METADATA])
            tally, quarantine = Tally.from_json(told["tally"]), told["quarantine"]
            labels = table["label"].fill_null(-1).to_numpy()
            predictions = table["prediction"].to_numpy()
            probabilities = pc.list_flatten(table["probabilities"]).to_numpy().reshape(len(labels), -1)
            counted = Tally.of(labels, predictions, np.zeros(len(labels)), self.plan.num_classes)
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, AssertionError, IndexError) as error:
            self.found.append(f"{path} cannot be read ({type(error).__name__}: {error})")
            return 0
        start, stop = self.plan.units[unit]
        self.expect(f"the path of unit {unit}", path, part_name(unit))
        self.expect(f"the rows of {path}", table.num_rows, entry["rows"])
        self.expect(f"the images of {path}", table.num_rows + (quarantine["rows"] if quarantine else 0), stop - start)
        self.expect(f"the plan of {path}", told["plan"], self.plan.digest)
        same = counted.num_correct == tally.num_correct and np.array_equal(counted.confusion, tally.confusion)
        if not same or counted.num_seen != tally.num_seen:
            self.found.append(f"the counts of {path} are not those of its rows")
        if len(labels) and (probabilities[np.arange(len(labels)), predictions] < probabilities.max(axis=1)).any():
            self.found.append(f"{path} has predictions that are not its most probable classes")
        self.tally += tally
        self.ids += table["id"].chunks
        return int(table.num_rows)

    def unique(self) -> None:
        """Every id is there once."""
        if not self.ids:
            return
        ids = pa.chunked_array(self.ids)
        if pa.types.is_integer(ids.type):  # sorting takes less memory than a hash table
            numbers = np.sort(ids.to_numpy())
            twice = numbers[1:][numbers[1:] == numbers[:-1]].tolist()
        elif pc.count_distinct(ids).as_py() != len(ids):
            counts = pc.value_counts(ids)
            twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()
        else:
            twice = []
        if twice:
            self.found.append(f"{len(twice)} ids are there twice, the first {twice[0]!r}")

    def beside(self, run: Location | None, folder: Location, verified: Verified) -> None:
        """What metrics.json and the run's model say of the same."""
        if (folder / "metrics.json").is_file():
            metrics = (folder / "metrics.json").read_json()
            after = metrics.get("after", {})
            for name, counted in self.tally.summary(detailed=True).items():
                if name in after and name in ("num_correct", "num_seen", "confusion"):
                    same = after[name] == counted
                    if not same:
                        self.found.append(f"metrics.json tells of another {name}")
            score = metrics.get("score", {})
            if "images" in score:
                self.expect("the images of metrics.json", score["images"], verified.images)
                self.expect("the quarantined of metrics.json", score.get("quarantined"), verified.quarantined)
        if run is not None and (run / "model" / "classifier.keras").is_file():
            model = sha256((run / "model" / "classifier.keras").read_bytes())
            self.expect("the run's model", model, self.plan.model_sha256)
