"""What Parquet files must agree on, and what opening each of them once shows: columns, layout, shapes and labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from mnist_ray.errors import InputError
from mnist_ray.sources import pixels
from mnist_ray.sources.base import Reading
from mnist_ray.sources.formats import columns
from mnist_ray.sources.formats.arrow_types import (
    element_type,
    is_id,
    is_label,
    is_text,
    kin,
    named_shape,
    plain,
    plain_type,
)
from mnist_ray.sources.formats.parquet_files import (
    DamagedError,
    ParquetFile,
    open_parquet_file,
    parquet_errors,
    partition_of,
    read_footer,
)
from mnist_ray.sources.labels import several_labels
from mnist_ray.storage.location import Location

_LOOKS = 8  # files of encoded images in which the first image is decoded
_FEW_ROWS = 16  # show how encoded and raw images are stored
_LABELS_AT_ONCE = 1 << 20
_LISTS_AT_ONCE = 1 << 11  # of labels; each may be long

Look = tuple[columns.Layout, tuple[int, ...]]
"""How a file stores its images, and their shape once converted."""


@dataclass
class Seen:
    """What one look into a file shows."""

    file: ParquetFile
    used: pa.Schema | None = None
    """The columns that are read."""
    labels: frozenset[str] = frozenset()
    """The valid labels, as text."""
    has_labels: bool = False
    """Whether there is any label but -1."""
    has_minus_one: bool = False
    damage: DamagedError | None = None


class Survey:
    """Looks into files, many at once (`look`), adds up what they show (`add`), and keeps what a source needs of it.

    All must have the same columns, of the same types. Of several files, and where the reading is lenient, a damaged one
    is accepted and counts as rows that cannot be read.
    """

    def __init__(self, reading: Reading, num_files: int) -> None:
        self.id_column = reading.id_column
        self.label_column = (reading.label_column or "label") if reading.takes("column") else None
        self.image_column = reading.image_column or "image"
        self.labels: dict[str, set[str]] = {}
        """The valid labels of each split, as text."""
        self._split = ""  # that is added
        self._has_labels = self._has_minus_one = False  # in this split
        self.looks: list[Look] = []
        self.damage: DamagedError | None = None
        """The first file that is damaged."""
        self._reading = reading
        self._accepts_damage = reading.lenient and num_files > 1
        self._every = max(-(-num_files // _LOOKS), 1)
        self._number = 0  # of the file that is added next
        self._first: tuple[pa.Schema, Location] | None = None
        self._known: tuple[pa.Schema, pa.Schema] | None = None  # a file's schema, and what is read of it

    @property
    def schema(self) -> pa.Schema | None:
        """The columns that are read. None where no file could be opened."""
        return None if self._first is None else self._first[0]

    def look(self, location: Location) -> Seen:
        """Read a file's footer and labels. May be called in many threads. Raises InputError where it lacks a column."""
        seen = Seen(ParquetFile(location, 1))
        try:
            with parquet_errors(location), location.open_file() as opened:
                footer, reader = read_footer(opened, location)
                seen.file = ParquetFile(location, footer.rows, footer.identity)
                seen.used = self._used_columns(reader.schema_arrow, location)
                self._read_labels(reader, seen)
        except DamagedError as error:
            seen.damage = error
            if not seen.file.footer:
                seen.file = ParquetFile(location, 1, f"{location.size()} damaged", error.reason)
        return seen

    def add(self, seen: Seen) -> ParquetFile:
        """Raises InputError where the file is damaged, or differs from those before it."""
        number, self._number = self._number, self._number + 1
        try:
            if seen.used is not None:
                self._compare_schema(seen.used, seen.file.location)
                if not self.looks or (self.looks[0][0].kind == "encoded" and number % self._every == 0):
                    with open_parquet_file(seen.file.location, ahead=False) as reader:
                        self._look_at_images(reader, seen.file.location)
            if seen.damage is not None:
                raise seen.damage
        except DamagedError as error:
            if not self._accepts_damage:
                raise
            self.damage = self.damage or error
        self.labels[self._split] |= seen.labels
        self._has_labels |= seen.has_labels
        self._has_minus_one |= seen.has_minus_one
        return seen.file

    def add_split(self, split: str, files: Iterator[ParquetFile]) -> tuple[ParquetFile, ...]:
        """The files of a split as `add` returns them.

        Where all their labels are -1, as Hugging Face marks those that are not public, they are unknown, not bad.
        """
        self._split, self.labels[split] = split, set()
        self._has_labels = self._has_minus_one = False
        added = tuple(files)
        if self._has_labels or not self._has_minus_one:
            return added
        return tuple(replace(file, is_unlabelled=True) for file in added)

    def _compare_schema(self, used: pa.Schema, location: Location) -> None:
        if self._first is None:
            self._first = used, location
            self.id_column = self.id_column or ("id" if "id" in used.names else None)
            return
        first, first_location = self._first
        if used is not first and not _agree(used, first):
            raise InputError(
                f"{location} has {_describe(used)}, but {first_location} {_describe(first)}; make them alike"
            )

    def _used_columns(self, schema: pa.Schema, location: Location) -> pa.Schema:
        """The fields of the columns that are read. Raises InputError where one is missing or of a wrong type."""
        known = self._known
        if known is not None and schema.equals(known[0], check_metadata=True):
            return known[1]
        names, reading, partition = schema.names, self._reading, partition_of(location)
        given = {
            "--id-column": reading.id_column,
            "--label-column": reading.label_column,
            "--image-column": reading.image_column,
        }
        for option, name in given.items():
            if name is not None and name not in (*names, *(partition if option == "--label-column" else ())):
                raise InputError(f"{location} has no column `{name}` for {option}, only {', '.join(names)}")
        if self.image_column not in names:
            others = f", only {', '.join(names)}; name the images' by --image-column" if names else ""
            raise InputError(f"{location} has no column `image`{others}")
        id_column = reading.id_column or ("id" if "id" in names else None)
        used = [name for name in dict.fromkeys((self.image_column, self.label_column, id_column)) if name in names]
        types = {name: schema.field(name).type for name in used}
        kind = types.get(str(self.label_column))
        if kind is not None and not is_label(element_type(plain_type(kind)) or plain_type(kind)):
            raise InputError(f"{location}: `{self.label_column}` is {kind}; labels must be class numbers or text")
        if kind is not None and element_type(plain_type(kind)) is not None and not reading.takes_several:
            raise several_labels(f"{location}: `{self.label_column}` is {kind}")
        if id_column and not is_id(plain_type(types[id_column])):
            raise InputError(f"{location}: `{id_column}` is {types[id_column]}; ids must be integers or strings")
        fields = pa.schema([schema.field(name) for name in used], metadata=schema.metadata)
        if reading.label_column in (None, *names):  # or each file's folder decides
            self._known = schema, fields
        return fields

    def _look_at_images(self, reader: Any, location: Location) -> None:
        """Add the layout and shape of the first image that is not null, if the file has one."""
        is_lists = pa.types.is_nested(reader.schema_arrow.field(self.image_column).type)
        damage: Exception | None = None
        for group in range(reader.num_row_groups):
            try:
                sample = self._sample(reader, group, pixels.SAMPLE_ROWS if is_lists else _FEW_ROWS)
            except (pa.ArrowInvalid, OSError) as error:  # another row group may be readable
                damage = damage or error
                continue
            if sample is None:
                continue
            try:
                named = named_shape(reader.schema_arrow, self.image_column)
                self.looks.append(columns.layout_of(sample, named, self._reading.convert, signed=self._reading.signed))
            except ValueError as error:
                raise InputError(f"{location}: {error}") from error
            return
        if damage is not None:
            raise damage

    def _sample(self, reader: Any, group: int, rows: int) -> pa.Array | None:
        """The images of the first `rows` rows of a group that have any."""
        for records in reader.iter_batches(rows, [group], columns=[self.image_column]):
            if len(sample := plain(records.column(0)).drop_null()):
                return sample
        return None

    def _read_labels(self, reader: Any, seen: Seen) -> None:
        """Find the labels, and whether there is any but -1. Invalid labels do not count.

        Most footers have statistics, but they are not used: where they are damaged, asking pyarrow for them ends the
        process, as it does not catch its own ParquetException.
        """
        if self.label_column is None:
            return
        if seen.used is None or self.label_column not in seen.used.names:
            self._read_partition(partition_of(seen.file.location), seen)
            return
        is_list = element_type(plain_type(seen.used.field(self.label_column).type)) is not None
        at_once = _LISTS_AT_ONCE if is_list else _LABELS_AT_ONCE
        for records in reader.iter_batches(at_once, columns=[self.label_column], use_threads=False):
            column = plain(records.column(0)).drop_null()
            if is_list:
                seen.labels |= columns.seen_in_lists(column)
                seen.has_labels |= bool(len(column.flatten()))
                seen.has_minus_one = True  # lists that are all empty or null tell no labels
                continue
            if is_text(column.type):
                seen.labels |= {*columns.label_texts(column)} - {""}
                seen.has_labels = True
            if is_text(column.type) or self._are_all_labels(column, seen):
                continue
            labels, _ = columns.to_labels(column, {})
            seen.labels |= {str(label) for label in np.flatnonzero(np.bincount(labels[labels >= 0]))}
            is_minus_one = columns.to_numbers(column) == -1
            seen.has_minus_one |= bool(is_minus_one.any())
            seen.has_labels |= not is_minus_one.all()

    def _are_all_labels(self, column: pa.Array, seen: Seen) -> bool:
        """Whether all are class numbers, as nearly always; they are counted then, at a fraction of the cost."""
        if not pa.types.is_integer(column.type) or not len(column):
            return False
        values = column.to_numpy()
        lowest, highest = int(values.min()), int(values.max())
        if lowest < 0 or highest >= pixels.MAX_CLASSES:
            return False
        distinct = np.flatnonzero(np.bincount(values)) if highest <= len(values) else np.unique(values)
        seen.labels |= set(map(str, distinct.tolist()))
        seen.has_labels = True
        return True

    def _read_partition(self, partition: Mapping[str, str], seen: Seen) -> None:
        value = partition.get(str(self.label_column), columns.HIVE_NULL)
        if value != columns.HIVE_NULL:
            seen.labels, seen.has_labels = frozenset({pixels.by_value(value)} - {""}), True


def _agree(one: pa.Schema, other: pa.Schema) -> bool:
    """Whether files can be read together. A column of nothing but nulls agrees with any."""
    shapes = {(each.metadata or {}).get(b"image_shape") for each in (one, other)}
    pairs = [(one.field(name).type, other.field(name).type) for name in one.names if name in other.names]
    known = [pair for pair in pairs if not any(map(pa.types.is_null, pair))]
    return len(shapes) == 1 and one.names == other.names and all(kin(first) == kin(second) for first, second in known)


def _describe(schema: pa.Schema) -> str:
    """Columns, types and shape: what must agree, and what a message shows where it does not."""
    shape = (schema.metadata or {}).get(b"image_shape", b"").decode(errors="replace")
    return ", ".join(f"{each.name} {each.type}" for each in schema) + (f" of shape {shape}" if shape else "")
