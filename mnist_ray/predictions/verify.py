"""Verify an output offline: hash every file, count every row again, and name what differs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from mnist_ray.errors import InputError, RetryableError, counted
from mnist_ray.predictions.answers import AnyTally, answers_of
from mnist_ray.predictions.parts import ManifestRecord
from mnist_ray.predictions.plan import MANIFEST, QUARANTINE, Plan
from mnist_ray.predictions.recount import Entry, Found, Recount, Unit
from mnist_ray.predictions.tally import Tally
from mnist_ray.results import Evaluation
from mnist_ray.storage.location import Location, sha256
from mnist_ray.storage.parallel import in_parallel, in_processes
from mnist_ray.storage.records import Count, read_checked

_MOST_SHOWN = 5  # differences in a message
_MANY_PARTS = 1_000  # are worth the half second that a process takes to start
_REQUESTS_AT_ONCE = 8  # of an object store, by each process
_NOTIFY_SECONDS = 5.0


@dataclass(frozen=True)
class Verified:
    """What a verified output holds."""

    output: str
    images: int
    scored: int
    quarantined: int
    parts: int
    tally: AnyTally = field(repr=False)
    """All counts, the confusion among them."""
    passed_over: int = 0
    """Files of the input that are no images, as the manifest has them."""

    @property
    def after(self) -> Evaluation | None:
        """The labelled images, as in metrics.json; None where there are none, or where one may have several labels."""
        return Evaluation.of(self.tally.summary()) if self.tally.num_seen and isinstance(self.tally, Tally) else None

    def __str__(self) -> str:
        tally, accuracy = self.tally, ""
        if tally.num_seen:
            accuracy = (
                f"; {tally.num_correct:,} of {tally.num_seen:,} correct, accuracy {tally.accuracy:.6f}"
                if isinstance(tally, Tally)
                else f"; {tally.line}"
            )
        were = "was" if self.passed_over == 1 else "were"
        files = f"; {counted(self.passed_over, 'other file')} {were} passed over" if self.passed_over else ""
        return (
            f"{self.output}: verified; {counted(self.images, 'image')} = {self.scored:,} scored + {self.quarantined:,}"
            f" quarantined in {counted(self.parts, 'part')}, each once{files}{accuracy}"
        )


def verify(output: Location, *, processes: int = 1, notify: Callable[[str], None] = lambda line: None) -> Verified:
    """Recount and re-hash an output, or the predictions of a run's folder, offline.

    processes: CPUs to use. notify: called every few seconds with a line on the progress.

    Raises InputError if there is no output, RetryableError if it is unfinished or anything differs.
    """
    root, plan, manifest = load(output)
    check = _Check(root, plan)
    verified = check.manifest(manifest, processes, notify)
    check.metrics(output, verified)
    if root != output:
        check.model(output / "model" / "classifier.keras")
    if check.differences:
        raise _differs(root, check.differences)
    return verified


def load(output: Location) -> tuple[Location, Plan, dict[str, Any]]:
    """The folder of the predictions, which a run has within its own, their plan and their manifest. Raises as `verify`
    does."""
    root = output / "predictions" if (output / "predictions").is_dir() else output
    try:
        plan = Plan.load(root)
    except InputError as error:
        raise _differs(root, [str(error).split(";")[0]]) from error
    if plan is None:
        state = "holds no predictions" if root.exists() else "does not exist"
        raise InputError(f"{root} {state}; give a run's folder or what `mnist-ray score` wrote")
    try:
        return root, plan, read_checked(root / MANIFEST, ManifestRecord, "score the input again")
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


class _Check:
    """Compares an output with itself, and collects what differs."""

    def __init__(self, root: Location, plan: Plan) -> None:
        self.root, self.plan, self.whole = root, plan, Found()
        self._answers = answers_of(plan)
        self.tally: AnyTally = self._answers.sum().total()
        """Of all parts, once they are checked."""
        self._is_counted = True
        self._requests_at_once = 1 if root.is_local else _REQUESTS_AT_ONCE

    @property
    def differences(self) -> list[str]:
        return self.whole.differences

    def manifest(self, manifest: dict[str, Any], processes: int, notify: Callable[[str], None]) -> Verified:
        """Check all files against the manifest, and the manifest against their counts."""
        parts, quarantine = manifest["parts"], {entry["path"]: entry for entry in manifest["quarantine"]}
        recount = Recount.of(self.root, self.plan, has_row_ids=manifest.get("ids") == "row")
        for name, *both in self.plan.told_otherwise(manifest):
            self.whole.expect(f"the manifest's {name.removesuffix('_sha256')}", *both)
        if len(quarantine) < len(manifest["quarantine"]):
            self.differences.append("the manifest's quarantine has a file twice")
        self.whole.expect("the number of parts", len(parts), len(self.plan.units))
        tally, claimed = self._answers.sum(), set()
        for part, found in self._recounted(recount, parts, processes, notify):
            self._take(found)
            self._is_counted &= found.is_counted
            if found.tally:
                tally.add(found.tally)
            if found.quarantine:
                claimed.add(path := found.quarantine["path"])
                if found.quarantine != quarantine.get(path):
                    self.differences.append(f"the quarantine of {part['path']} is not in the manifest")
        self.tally = tally.total()
        for path in sorted(quarantine.keys() - claimed):
            found = Found()
            if recount.quarantined(quarantine[path], found) is not None and self._is_counted:
                found.differences.append(f"{path} belongs to no part")
            self._take(found)
        self.unlisted_files({*quarantine, *(entry["path"] for entry in parts)})
        scored, quarantined = self.whole.rows, self.whole.quarantined
        if self._is_counted:  # else the sums differ by the parts that are named already
            for name, counted in (("images", scored + quarantined), ("scored", scored), ("quarantined", quarantined)):
                self.whole.expect(f"the manifest's {name}", manifest[name], counted)
            self.whole.expect("the plan's images", self.plan.images, scored + quarantined)
        passed_over = sum((manifest.get("passed_over") or {}).values())
        return Verified(str(self.root), scored + quarantined, scored, quarantined, len(parts), self.tally, passed_over)

    def _take(self, found: Found) -> None:
        self.whole.rows += found.rows
        self.whole.quarantined += found.quarantined
        self.differences.extend(found.differences)

    def _recounted(
        self, recount: Recount, parts: list[Entry], processes: int, notify: Callable[[str], None]
    ) -> Iterator[tuple[Entry, Found]]:
        """Each part, in their order, with what its check found."""
        pairs = zip(self.plan.units, parts, strict=False)
        units = [Unit(number, *rows, part) for number, (rows, part) in enumerate(pairs)]
        if processes > 1 and len(units) >= _MANY_PARTS:  # in threads, they would wait for the interpreter
            checked = in_processes(recount.unit, units, processes=processes, threads=self._requests_at_once)
        else:
            checked = in_parallel(recount.unit, units, at_once=max(processes, self._requests_at_once))
        notified = time.monotonic()
        with closing(checked):
            for number, (unit, found) in enumerate(zip(units, checked, strict=True)):
                yield unit.part, found
                if time.monotonic() - notified >= _NOTIFY_SECONDS:
                    notified = time.monotonic()
                    notify(f"verifying {self.root}: {number + 1:,} of {len(units):,} parts …")

    def unlisted_files(self, listed: set[str]) -> None:
        for prefix, folder in (("", self.root), (f"{QUARANTINE}/", self.root / QUARANTINE)):
            for file in folder.list():
                if file.name.endswith(".parquet") and f"{prefix}{file.name}" not in listed:
                    self.differences.append(f"{prefix}{file.name} is not in the manifest")

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
        if not self._is_counted:
            return
        if self.tally.num_seen and not after:
            self.differences.append(f"metrics.json has no `after` of the {self.tally.num_seen:,} labelled images")
        for name, recounted in self.tally.summary(detailed=True).items():
            if name in after and after[name] != recounted:
                self.differences.append(f"metrics.json has another {name}")
        if "images" in score:
            self.whole.expect("the images of metrics.json", score["images"], verified.images)
            self.whole.expect("the quarantined of metrics.json", score.get("quarantined"), verified.quarantined)

    def model(self, file: Location) -> None:
        """Check a run's model, if it is there, against the plan."""
        if file.is_file():
            self.whole.expect("the run's model", sha256(file.read_bytes()), self.plan.model_sha256)
