"""Units that wait, as stretches of consecutive ones: who has done a unit goes on with the next, whose rows it may have
begun to read already (sources/formats/parquet_rows.py)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Generic, TypeVar

Unit = TypeVar("Unit")


class Stretches(Generic[Unit]):
    """Units that wait to be taken; at first all, as one stretch."""

    def __init__(self, units: Sequence[Unit]) -> None:
        """units: distinct, hashable."""
        self._units = units
        self._numbers = {unit: number for number, unit in enumerate(units)}
        self._stops = {0: len(units)} if units else {}
        """Where each stretch ends, by its beginning."""
        self._count = len(units)

    def __len__(self) -> int:
        return self._count

    def take_next(self, unit: Unit) -> Unit | None:
        """The one after `unit`, if it waits."""
        number = self._numbers[unit] + 1
        return self._take(number, number) if number in self._stops else None

    def take_any(self, held: Collection[Unit]) -> Unit | None:
        """The first of the longest stretch; or the middle one, where whoever holds the unit before will want the first.
        None where nothing waits.

        held: the units that are worked on.
        """
        if not self._stops:
            return None
        start, stop = max(self._stops.items(), key=lambda each: each[1] - each[0])
        is_wanted = start > 0 and self._units[start - 1] in held
        return self._take(start, (start + stop) // 2 if is_wanted else start)

    def put_back(self, unit: Unit) -> None:
        number = self._numbers[unit]
        if not any(start <= number < stop for start, stop in self._stops.items()):
            self._stops[number] = self._stops.pop(number + 1, number + 1)
            self._count += 1

    def _take(self, start: int, number: int) -> Unit:
        """Take a number out of the stretch that begins at `start`."""
        stop = self._stops.pop(start)
        for first, end in ((start, number), (number + 1, stop)):
            if first < end:
                self._stops[first] = end
        self._count -= 1
        return self._units[number]
