"""What an output is of and how it is cut: the plan, frozen at the first start, and the names of what follows from it.

_plan.json                      units of work and what they are of
part-00000.parquet              unit 0
quarantine/part-00000.parquet   what of unit 0 could not be scored
_manifest.json                  written last
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from mnist_ray.errors import InputError
from mnist_ray.storage.location import Location, sha256

PLAN, MANIFEST, QUARANTINE = "_plan.json", "_manifest.json", "quarantine"
_PART = re.compile(r"part-\d{5,}(-again)?\.parquet")
_BESIDE = (QUARANTINE, "metrics.json", "progress.json", "report.html")

MOST_ROWS = 131_072
_FEWEST_ROWS = 4_096
_UNIT_BYTES = 128 << 20  # of pixels, which an actor holds at once
_ENOUGH_UNITS = 16  # so that many actors find work in a middling input


def part_name(unit: int) -> str:
    return f"part-{unit:05d}.parquet"


def is_part(name: str) -> bool:
    """Whether a file of this name is a part, or the quarantine of one."""
    return _PART.fullmatch(name) is not None


def is_ours(name: str) -> bool:
    """Whether scoring writes files of this name into an output or its quarantine."""
    return name.startswith((".", "_")) or name in _BESIDE or is_part(name)


def sweep(output: Location) -> None:
    """Remove what killed writers left in an output, where no living one matters: before a unit is given to an actor,
    and after each is committed (an actor that still writes one again, as it was taken for lost, may fail)."""
    for folder in (output, output / QUARANTINE):
        folder.sweep(is_ours)


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
    top_k: int | None = None
    """So many of the most probable classes are kept; all where None."""
    classes: tuple[str, ...] | None = None
    """Their names, where the model knows them."""
    precision: str = "float32"
    """Of the computation."""
    jit: bool = False
    batch_size: int = 1
    """The way to compute (`inference.Way`), chosen once, so that every actor and a resume give the same bytes."""
    changed: tuple[int, int] | None = None
    """(predictions that are others than in float32, of so many of a sample), where the precision is not the model's."""

    mended_digest: str | None = None
    """Of the input after its owner had mended what was quarantined, for it to be scored again."""

    @property
    def names(self) -> tuple[str, ...] | None:
        """Of the classes, where they say more than the numbers do."""
        return None if self.classes == tuple(map(str, range(self.num_classes))) else self.classes

    @property
    def images(self) -> int:
        return sum(stop - start for start, stop in self.units)

    @cached_property
    def digest(self) -> str:
        """What the parts carry: they stay those of this plan when the input is mended."""
        return sha256(json.dumps({**asdict(self), "mended_digest": None}).encode())

    @classmethod
    def load(cls, output: Location) -> Plan | None:
        """The stored one. Raises InputError where it is damaged, or where parts lie there without any."""
        try:
            stored = (output / PLAN).read_json()
            units = tuple((int(start), int(stop)) for start, stop in stored["units"])
            classes = stored.get("classes")
            named = None if classes is None else tuple(map(str, classes))
            changed = stored.get("changed") and tuple(map(int, stored["changed"]))
            return cls(**{**stored, "units": units, "classes": named, "changed": changed})
        except FileNotFoundError:
            if any(is_part(file.name) or file.name == MANIFEST for file in output.list()):
                raise InputError(f"{output} holds parts but no {PLAN}; choose another --output") from None
            return None
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{output / PLAN} is damaged ({error}); choose another --output") from error

    def freeze(self, output: Location, *, is_mended: bool = False) -> Plan:
        """The plan to follow: the stored one where there is one for the same, else this, stored now.

        is_mended: the input may be another than the stored plan's. Raises InputError where the stored one is of
        something else, and says what differs.
        """
        stored = Plan.load(output)
        if stored is None:
            (output / PLAN).write_json(asdict(self))
            return self
        if self.input_digest in (stored.input_digest, stored.mended_digest):
            given = replace(self, input_digest=stored.input_digest)
        elif is_mended:
            given = replace(self, input_digest=stored.input_digest)
            stored = replace(stored, mended_digest=self.input_digest)
        else:
            given = self
        names = {
            "model_sha256": "--model",
            "input_digest": "input",
            "split": "--split",
            "limit": "--limit",
            "pixels": "--pixels",
            "top_k": "--top-k",
            "precision": "--precision",
            "jit": "--jit",
            "batch_size": "--batch-size",
        }
        differing = [
            f"{told} {short(getattr(stored, name))} -> {short(getattr(given, name))}"
            for name, told in names.items()
            if getattr(stored, name) != getattr(given, name)
        ]
        if differing:
            mending = given.input_digest != stored.input_digest and (output / QUARANTINE).list()
            also = "; --retry-quarantined goes on with it if all you did was mend images" if mending else ""
            raise InputError(
                f"{output} holds predictions of something else ({', '.join(differing)}); choose another --output,"
                f" or --overwrite to replace it{also}"
            )
        if is_mended:
            (output / PLAN).write_json(asdict(stored))
        return stored


def short(value: Any) -> Any:
    """For a message: of a digest, the beginning is enough."""
    return value[:12] if isinstance(value, str) else value
