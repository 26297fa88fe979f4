"""The plan of an output: what is scored, cut into units of work. Frozen at the first start. And the names of the files.

_plan.json                      what is scored, and the units
_model.xml, .bin, .json         a user's model, converted for this scoring
part-00000.parquet              predictions of unit 0
quarantine/part-00000.parquet   the rows of unit 0 that could not be scored, with reasons
_manifest.json                  written last
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar

from mnist_ray.errors import InputError, require
from mnist_ray.storage.location import Location, sha256
from mnist_ray.storage.records import (
    Count,
    Engine,
    Kind,
    Line,
    NumClasses,
    Pixels,
    Precision,
    Rule,
    Sha256,
    Share,
    read_record,
)

PLAN, MANIFEST, QUARANTINE = "_plan.json", "_manifest.json", "quarantine"
LOGS, WORKER_LOGS = "logs", "logs/workers"
"""Which runs/log.py writes."""

CONVERTED = "_model"
_MOST_SHOWN = 80  # characters of a value, in messages
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"part-\d{5,}(-again|-[0-9a-f]{8})?\.parquet")
_OTHER_FILES = (QUARANTINE, LOGS, "metrics.json", "progress.json", "report.html", "error.log", "mlflow.json")

MOST_ROWS = 131_072
_FEWEST_ROWS = 4_096
_UNIT_BYTES = 128 << 20  # of pixels, or of probabilities: an actor holds a whole unit
_ENOUGH_UNITS = 16  # so that an input of moderate size has work for several actors


def part_name(unit: int) -> str:
    return f"part-{unit:05d}.parquet"


def is_part(name: str) -> bool:
    """Whether this is the name of a part, or of a part's quarantine."""
    return _PART.fullmatch(name) is not None


def is_ours(name: str) -> bool:
    """Whether scoring writes files of this name into an output or its quarantine folder."""
    return name.startswith((".", "_")) or name in _OTHER_FILES or is_part(name)


def sweep(output: Location) -> None:
    """Remove temporary files and unfinished uploads of killed writers.

    A live writer may fail by it, so call it only before units are given out, or after all are committed: what is
    written then is a copy, by an actor that was taken for lost.
    """
    for folder in (output, output / QUARANTINE):
        folder.sweep(is_ours)


def plan_units(
    ranges: Iterable[tuple[int, int]], *, row_bytes: int, target_rows: int | None = None
) -> list[tuple[int, int]]:
    """Units of work as (start, stop): each range cut into pieces of `target_rows`, a power of two, and a rest.

    ranges: row ranges that no unit may span the border of, in order; empty ones are left out. row_bytes: what an actor
    holds of a row. target_rows: by default follows from the number of rows, never from the number of actors.
    """
    ranges = [(start, stop) for start, stop in ranges if stop > start]
    if target_rows is None:
        rows = sum(stop - start for start, stop in ranges)
        wanted = max(_FEWEST_ROWS, min(MOST_ROWS, rows // _ENOUGH_UNITS))
        wanted = max(1, min(wanted, _UNIT_BYTES // row_bytes))
        target_rows = 1 << (wanted.bit_length() - 1)  # a power of two seldom cuts through a row group
    require(1 <= target_rows <= MOST_ROWS, f"units of {target_rows} rows")
    return [
        (first, min(first + target_rows, stop)) for start, stop in ranges for first in range(start, stop, target_rows)
    ]


def kept_bytes(num_classes: int, top_k: int | None) -> int:
    """What is kept of an image's probabilities: each in four bytes, of the top ones their classes in eight."""
    return 4 * num_classes if top_k is None else (4 + 8) * top_k


def limited(ranges: Iterable[tuple[int, int]], limit: int | None) -> list[tuple[int, int]]:
    """The ranges of the first `limit` rows."""
    return [(start, stop if limit is None else min(stop, limit)) for start, stop in ranges]


def _are_units(units: tuple[tuple[int, int], ...]) -> bool:
    """Whether these are row ranges in order, none of them empty or too large."""
    last = 0
    for start, stop in units:
        if not last <= start < stop <= start + MOST_ROWS:
            return False
        last = stop
    return last <= 1 << 53


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an output holds. A scoring with another plan is refused in the same folder.

    The fields are the keys of _plan.json: do not rename them.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}  # a field that is not known may decide the result

    model_sha256: Sha256
    input_digest: Line
    split: Line
    limit: Count | None
    """Only the first images; all if None."""
    pixels: Pixels
    """What the model is given: 0-255 or 0-1."""
    num_classes: NumClasses
    """Of embeddings, the number of their values."""
    units: Annotated[
        tuple[tuple[int, int], ...], Rule(f"must be row ranges in order, of 1 to {MOST_ROWS:,} rows", _are_units)
    ]
    """(start, stop) rows of the split."""
    top_k: NumClasses | None = None
    """The number of most probable classes that are kept for each image; all if None."""
    classes: tuple[Line, ...] | None = None
    """The model's class names, if it has any."""
    precision: Precision = "float32"
    """Of the computation."""
    engine: Engine = "tensorflow"
    """What computes the model."""
    engine_version: Line | None = None
    converted_sha256: Sha256 | None = None
    """Of the model as OpenVINO computes it."""
    jit: bool = False
    batch_size: NumClasses = 1
    """How to compute (`Execution`), chosen once, so that every actor and every resume give the same bytes."""
    changed: tuple[Count, Count] | None = None
    """(predictions that differ from float32, images compared), where bfloat16 was asked for."""
    mended_digest: Line | None = None
    """Of the input after quarantined images were repaired, for --retry-quarantined."""
    kind: Kind | None = None
    """labels or embeddings; None for one of several classes."""
    output_name: Line | None = None
    """The output that is taken of a model with several."""
    output_layer: Line | None = None
    """The layer whose output is the embedding."""
    thresholds: tuple[Share, ...] | None = None
    """The scores from which on an image is given a label, one for each label."""
    decoded_by: Line | None = None
    """What decides the pixels of an encoded image; None where none is encoded, or it is not known."""
    pixels_reason: Line | None = None
    """Why these pixels, where the user has not said so."""
    engine_reason: Line | None = None
    """Why TensorFlow, where the user has not said so."""
    pixels_assumed: bool | None = None
    """Whether nothing tells which pixels the model takes, so that these are only what most models take."""

    def __post_init__(self) -> None:
        for names, what in ((self.classes, "class names"), (self.thresholds, "thresholds")):
            if names is not None and len(names) != self.num_classes:
                raise ValueError(f"has {len(names)} {what} for {self.num_classes} classes")
        if (self.kind == "labels") != (self.thresholds is not None) or (self.kind and self.top_k):
            raise ValueError(f"gives {self.kind or 'classes'}, with thresholds or the top {self.top_k}")
        if (self.top_k or 0) > self.num_classes:
            raise ValueError(f"keeps the top {self.top_k} of {self.num_classes} classes")

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The class names; None where they are only the class numbers."""
        is_numbers = self.classes is not None and self.classes == tuple(map(str, range(self.num_classes)))
        return None if is_numbers else self.classes

    @cached_property
    def images(self) -> int:
        return sum(stop - start for start, stop in self.units)

    @cached_property
    def digest(self) -> str:
        """sha256 by which parts name their plan. Does not change when quarantined images are repaired."""
        fields = asdict(self) | dict.fromkeys(("mended_digest", "pixels_reason", "pixels_assumed", "engine_reason"))
        if self.engine_version is None:  # as it was before there were two engines
            fields = {name: value for name, value in fields.items() if name not in _OF_ENGINES}
        for name in _OF_KINDS:  # as it was before there were labels and embeddings
            if fields[name] is None:
                del fields[name]
        return sha256(json.dumps(fields).encode())

    def told(self) -> dict[str, Any]:
        """What the manifest repeats of it, for those who read the parts."""
        names = ("pixels_reason", "pixels_assumed", "kind", "output_name", "output_layer", "thresholds")
        written = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {"model_sha256": self.model_sha256, "classes": self.classes, "pixels": self.pixels, **written}

    def told_otherwise(self, manifest: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
        """(name, value there, value here) of what differs in a manifest. Earlier versions did not write all of it."""
        for name, value in self.told().items():
            there = manifest.get(name, value)
            there = tuple(there) if isinstance(there, list) else there
            if there != value:
                yield name, there, value

    @classmethod
    def load(cls, output: Location) -> Plan | None:
        """The stored plan. Raises InputError where it is damaged, or where there are parts without a plan."""
        try:
            return read_record(output / PLAN, cls, "choose another --output")
        except FileNotFoundError:
            if any(is_part(file.name) or file.name == MANIFEST for file in output.list()):
                raise InputError(f"{output} holds parts but no {PLAN}; choose another --output") from None
            return None

    def freeze(self, output: Location, *, is_retry: bool = False) -> Plan:
        """Store this plan, or return the one that is stored if it is the same.

        is_retry: quarantined images may have been repaired, so the input's digest may differ; but the images that were
        scored must have been decoded as the others are now. Raises InputError that names the differences if the stored
        plan is another.
        """
        stored = Plan.load(output)
        if stored is None:
            (output / PLAN).write_json(asdict(self))
            return self
        is_known_input = self.input_digest in (stored.input_digest, stored.mended_digest)
        if is_retry and not is_known_input:
            stored = replace(stored, mended_digest=self.input_digest)
        wanted = replace(self, input_digest=stored.input_digest) if is_retry or is_known_input else self
        if differences := wanted._differences(stored):
            raise _other_plan(output, differences, is_other_input=wanted.input_digest != stored.input_digest)
        if is_retry:
            (output / PLAN).write_json(asdict(stored))
        return stored

    def _differences(self, stored: Plan) -> list[str]:
        """What differs, by option."""
        return [
            f"{option} {short(getattr(stored, field))} -> {short(getattr(self, field))}"
            for field, option in _OPTIONS.items()
            if getattr(stored, field) != getattr(self, field)
            and (field != "converted_sha256" or stored.engine == self.engine)
            and (field != "decoded_by" or stored.decoded_by is not None)  # as an earlier version left it
        ]


_OF_ENGINES = ("engine", "engine_version", "converted_sha256")
_OF_KINDS = (
    "kind", "output_name", "output_layer", "thresholds", "pixels_reason", "pixels_assumed", "engine_reason",
    "decoded_by",
)  # fmt: skip

_OPTIONS = {
    "model_sha256": "--model",
    "input_digest": "input",
    "split": "--split",
    "limit": "--limit",
    "pixels": "--pixels",
    "top_k": "--top-k",
    "precision": "--precision",
    "engine": "--engine",
    "converted_sha256": "converted model",
    "jit": "--jit",
    "batch_size": "--batch-size",
    "classes": "--classes",
    "output_name": "--output-name",
    "output_layer": "--output-layer",
    "kind": "--kind",
    "thresholds": "--threshold",
    "decoded_by": "images decoded by",
}
"""What decides whether two plans are the same, as messages name it."""


def _other_plan(output: Location, differences: list[str], *, is_other_input: bool) -> InputError:
    can_retry = is_other_input and (output / QUARANTINE).list()
    hint = "; if all you did was repair quarantined images, add --retry-quarantined" if can_retry else ""
    return InputError(
        f"{output} holds the predictions of another job ({', '.join(differences)}); choose another --output, or"
        f" --overwrite to replace it{hint}"
    )


def short(value: Any) -> Any:
    """A value as messages show it: of a digest, the first 12 digits; of a list, the first few; a text on one line."""
    if isinstance(value, tuple):
        return ",".join(str(short(each)) for each in value[:4]) + (",..." if len(value) > 4 else "")
    if not isinstance(value, str):
        return value
    text = value[:12] if _DIGEST.fullmatch(value) else value[:_MOST_SHOWN]
    return text if text.isprintable() else repr(text)
