"""Checking an output offline: every file is hashed, every row counted again, and what differs is named."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mnist_ray.errors import InputError, RetryableError
from mnist_ray.metrics import Tally
from mnist_ray.plan import MANIFEST, QUARANTINE, Plan, part_name, short
from mnist_ray.predictions import METADATA
from mnist_ray.storage import Location, sha256


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
            self.found.append(f"{what} is {short(is_so)}, not {short(should)}")

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
            told = json.loads(parquet.schema_arrow.metadata[METADATA])
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
