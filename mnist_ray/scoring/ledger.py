"""The ledger of a scoring: which units are committed, how many images that is, and whether too many are bad."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable
from dataclasses import replace

from mnist_ray.errors import InputError, TooManyBadImagesError, require
from mnist_ray.predictions import parts
from mnist_ray.predictions.answers import answers_of
from mnist_ray.predictions.parts import Committed, Entry, ManifestRecord, first_quarantined
from mnist_ray.predictions.plan import MANIFEST, QUARANTINE, Plan
from mnist_ray.scoring.task import Scored
from mnist_ray.storage.location import Location
from mnist_ray.storage.records import read_checked


class Ledger:
    """Units in, one result out. Everything that it counts is in storage."""

    def __init__(
        self,
        plan: Plan,
        output: Location,
        done: Iterable[Committed],
        *,
        max_bad: float,
        on_progress: Callable[[int, int, int], None] | None,
    ) -> None:
        """done: the units that are committed already. max_bad: the share of all images that may be in quarantine.
        on_progress(images done, images, of them in quarantine): called once for all that is done already, then for
        each unit."""
        self.committed: list[Entry] = []
        self.images = self.quarantined = 0
        self._tally, self._losses = answers_of(plan).sum(), dict[int, float]()
        self._plan, self._output, self._max_bad, self._on_progress = plan, output, max_bad, None
        for each in done:
            self.add(each)
        self._on_progress = on_progress
        self._tell()
        self.resumed_images = self.images
        """Of the images, those that an earlier command scored."""

    @property
    def units_left(self) -> list[int]:
        done = {each.unit for each in self.committed}
        return [unit for unit in range(len(self._plan.units)) if unit not in done]

    def add(self, committed: Committed) -> None:
        """Count a unit. Raises TooManyBadImagesError."""
        self.committed.append(committed.entry())
        self._tally.add(committed.tally)
        self._losses[committed.unit] = committed.tally.loss_sum
        self.images += committed.part.rows + committed.quarantined
        self.quarantined += committed.quarantined
        if self.quarantined > self._max_bad * self._plan.images:
            source, row, reason = first_quarantined(self._output, next(e for e in self.committed if e.quarantined))
            raise TooManyBadImagesError(
                f"{self.quarantined:,} of {self._plan.images:,} images cannot be scored, more than --max-bad"
                f" {self._max_bad:g}, such as {source} (row {row}), which {reason}; all reasons are in"
                f" {self._output / QUARANTINE}: repair the images or raise --max-bad",
                see="predictions.md#quarantine",
            )
        self._tell()

    def _tell(self) -> None:
        if self._on_progress:
            self._on_progress(self.images, self._plan.images, self.quarantined)

    def finished(self) -> Scored | None:
        """The result of an earlier command, if its manifest is that of this plan and of exactly these units."""
        if self.units_left:
            return None
        try:
            manifest = read_checked(self._output / MANIFEST, ManifestRecord, "score the input again")
        except (FileNotFoundError, InputError):
            return None
        counted = parts.count(self._plan, self.committed)
        if {name: manifest[name] for name in counted} != counted or any(self._plan.told_otherwise(manifest)):
            return None
        return self.result(manifest.get("num_actors") or 0, manifest.get("seconds") or 0.0, self._plan.images)

    def result(self, num_actors: int, seconds: float, images: int) -> Scored:
        """The result, once all units are committed. images: those that were scored within the seconds."""
        require(self.images == self._plan.images, f"{self.images} of {self._plan.images} images are accounted for")
        # Losses are floats: added in the order of the units they give the same sum, whichever unit came first.
        losses = [loss for _, loss in sorted(self._losses.items())]
        return Scored(
            tally=replace(self._tally.total(), loss_sum=functools.reduce(operator.add, losses, 0.0)),
            images=self.images,
            scored=self.images - self.quarantined,
            quarantined=self.quarantined,
            num_actors=num_actors,
            seconds=seconds,
            images_per_second=images / seconds if seconds else 0.0,
            plan=self._plan,
        )
