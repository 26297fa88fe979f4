"""Checking an output offline: every file is hashed, every row counted again, and what differs is named."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mnist_ray.errors import InputError, RetryableError
from mnist_ray.predictions.parts import METADATA, ids_digest
from mnist_ray.predictions.plan import MANIFEST, QUARANTINE, Plan, part_name, short
from mnist_ray.predictions.tally import Tally
from mnist_ray.storage.location import Location, sha256


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
    try:
        plan = Plan.load(root)
    except InputError as error:
        raise RetryableError(f"{root} differs from what was written: {str(error).split(';')[0]}") from error
    if plan is None:
        raise InputError(f"{output} holds no predictions")
    try:
        manifest = (root / MANIFEST).read_json()
    except FileNotFoundError as error:
        raise RetryableError(f"{root} is unfinished: it has no {MANIFEST}; start the same command again") from error
    except InputError as error:
        raise RetryableError(f"{root / MANIFEST} is damaged: {error}") from error
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
        self.quarantined: dict[str, NDArray[np.int64]] = {}
        """The rows that each quarantine file names; a part takes its own out."""

    def expect(self, what: str, is_so: object, should: object) -> None:
        if is_so != should:
            self.found.append(f"{what} is {short(is_so)}, not {short(should)}")

    def all(self, manifest: dict[str, Any]) -> Verified:
        parts, quarantine = manifest["parts"], manifest["quarantine"]
        self.expect("the manifest's model", manifest["model_sha256"], self.plan.model_sha256)
        self.expect("the number of parts", len(parts), len(self.plan.units))
        quarantined = sum(self.quarantine(entry) for entry in quarantine)
        scored = sum(self.part(unit, entry, quarantine) for unit, entry in enumerate(parts[: len(self.plan.units)]))
        self.found += [f"{path} belongs to no part" for path in self.quarantined]
        listed = {entry["path"] for entry in [*parts, *quarantine]}
        for prefix, folder in (("", self.root), (f"{QUARANTINE}/", self.root / QUARANTINE)):
            for file in folder.list():
                if file.name.endswith(".parquet") and f"{prefix}{file.name}" not in listed:
                    self.found.append(f"{prefix}{file.name} is not in the manifest")
        for name, counted in (("images", scored + quarantined), ("scored", scored), ("quarantined", quarantined)):
            self.expect(f"the manifest's {name}", manifest[name], counted)
        self.expect("the plan's images", self.plan.images, scored + quarantined)
        return Verified(str(self.root), scored + quarantined, scored, quarantined, len(parts), self.tally)

    def read(self, entry: dict[str, Any], columns: list[str]) -> pa.Table | None:
        """The columns, once the file's sha256 is what the manifest says; else None."""
        path = entry["path"]
        try:
            data = (self.root / path).read_bytes()
        except FileNotFoundError:
            self.found.append(f"{path} is missing")
            return None
        if sha256(data) != entry["sha256"]:
            self.found.append(f"{path} has another sha256")
            return None
        try:
            # A thread of Arrow's that still ends as the process does can abort it (apache/arrow#34314).
            table = pq.ParquetFile(pa.BufferReader(data)).read(columns=columns, use_threads=False)
            table.select(columns)
        except (pa.ArrowException, OSError, KeyError) as error:
            self.found.append(f"{path} cannot be read ({type(error).__name__}: {error})")
            return None
        self.expect(f"the rows of {path}", table.num_rows, entry["rows"])
        return table

    def quarantine(self, entry: dict[str, Any]) -> int:
        """The rows of a quarantine file."""
        table = self.read(entry, ["row"])
        if table is None:
            return 0
        self.quarantined[entry["path"]] = table["row"].to_numpy()
        return int(table.num_rows)

    def part(self, unit: int, entry: dict[str, Any], quarantine: list[dict[str, Any]]) -> int:
        """Recount a part; its rows."""
        plan, path = self.plan, entry["path"]
        chances = ["probabilities"] if plan.top_k is None else ["top_classes", "top_probabilities"]
        table = self.read(entry, ["id", "label", "prediction", *(["class"] if plan.names else []), *chances])
        if table is None:
            return 0
        try:
            told = json.loads(table.schema.metadata[METADATA])
            is_ours = (told["plan"], told["unit"]) == (plan.digest, unit)
            told_tally, told_quarantine, ids = Tally.from_json(told["tally"]), told["quarantine"], told["ids"]
            differences = self.rows(table, told_tally)
        except (pa.ArrowException, KeyError, TypeError, ValueError, AssertionError, IndexError) as error:
            self.found.append(f"{path} cannot be read ({type(error).__name__}: {error})")
            return 0
        self.expect(f"the path of unit {unit}", path, part_name(unit))
        if not is_ours:
            other = "of another job" if told["plan"] != plan.digest else f"unit {told['unit']}, not {unit}"
            self.found.append(f"{path} is {other}")
            return int(table.num_rows)
        self.found += [f"{path} has {difference}" for difference in differences]
        bad: NDArray[np.int64] | None = np.empty(0, np.int64)
        if told_quarantine is not None:
            if told_quarantine not in quarantine:
                self.found.append(f"the manifest has not the quarantine of {path}")
            bad = self.quarantined.pop(told_quarantine["path"], None)
        if bad is not None:  # else its file is missing or damaged, which is said
            start, stop = plan.units[unit]
            rows = np.setdiff1d(np.arange(start, stop), bad)
            self.expect(f"the images of {path}", table.num_rows + len(bad), stop - start)
            if len(rows) + len(bad) != stop - start:
                self.found.append(f"{told_quarantine['path']} names rows twice, or rows of other parts")
            elif ids_digest(table["id"], rows) != ids:
                twice = pc.value_counts(table["id"])
                twice = twice.filter(pc.greater(twice.field("counts"), 1)).field("values")
                also = f" ({len(twice)} are there twice, the first {twice[0].as_py()!r})" if len(twice) else ""
                self.found.append(f"{path} has other ids than were written{also}")
        self.tally += told_tally
        return int(table.num_rows)

    def rows(self, table: pa.Table, told: Tally) -> list[str]:
        """What differs between the columns of a part, or from its own counts."""
        found, classes = [], self.plan.num_classes
        labels, predictions = table["label"].fill_null(-1).to_numpy(), table["prediction"].to_numpy()
        if self.plan.top_k is None:
            chances = _rows(table["probabilities"])
            confidences = chances[np.arange(len(labels)), predictions]
            is_most = not (confidences < chances.max(axis=1, initial=0)).any()
        else:
            chances = _rows(table["top_probabilities"])
            confidences = chances[:, 0]
            is_most = bool((_rows(table["top_classes"])[:, 0] == predictions).all() and (np.diff(chances) <= 0).all())
        if not is_most:
            found.append("predictions that are not its most probable classes")
        if self.plan.names and pa.array(self.plan.names).take(pa.array(predictions)) != table["class"].combine_chunks():
            found.append("class names that are not those of its predictions")
        counted = Tally.of(labels, predictions, np.zeros(len(labels)), confidences, classes)
        if counted.to_json() != {**told.to_json(), "loss_sum": 0.0}:
            found.append("other counts than its rows give")
        return found

    def beside(self, run: Location | None, folder: Location, verified: Verified) -> None:
        """What metrics.json and the run's model say of the same."""
        if (folder / "metrics.json").is_file():
            try:
                metrics = (folder / "metrics.json").read_json()
                after, score = dict(metrics.get("after") or {}), dict(metrics.get("score") or {})
            except (InputError, AttributeError, TypeError, ValueError):
                self.found.append("metrics.json is damaged")
                after, score = {}, {}
            for name, counted in self.tally.summary(detailed=True).items():
                if name in after and after[name] != counted:
                    self.found.append(f"metrics.json tells of another {name}")
            if "images" in score:
                self.expect("the images of metrics.json", score["images"], verified.images)
                self.expect("the quarantined of metrics.json", score.get("quarantined"), verified.quarantined)
        if run is not None and (run / "model" / "classifier.keras").is_file():
            model = sha256((run / "model" / "classifier.keras").read_bytes())
            self.expect("the run's model", model, self.plan.model_sha256)


def _rows(lists: pa.ChunkedArray) -> NDArray[Any]:
    """(n, values of each list)."""
    size = lists.type.list_size
    return np.asarray(pc.list_flatten(lists).to_numpy()).reshape(-1, size)
