"""CSV files with a row an image and a column a pixel, as Kaggle has MNIST: with or without a header, labels or ids;
separated by commas, semicolons or tabs; compressed by gzip or not.

A row that has another number of columns, or anything but numbers, is bad.
"""

from __future__ import annotations

import codecs
import gzip
import io
import itertools
import re
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import InputError
from mnist_ray.sources import pixels
from mnist_ray.sources.base import Reading
from mnist_ray.sources.formats.arrays import (
    ArraySource,
    ArraySplit,
    ArraySplits,
    open_arrays,
    refuse_bomb,
    to_splits,
)
from mnist_ray.sources.formats.containers import ArrowFile
from mnist_ray.storage.location import Location, io_errors

_PIXEL = re.compile(r"(?:pixels?|pix|px|p|x|attr|feature|v)?[ _.-]?\d+(?:[x_.-]\d+)?", re.IGNORECASE)
_NUMBER = re.compile(r"\s*-?\d+(?:\.\d*)?(?:e[+-]?\d+)?\s*", re.IGNORECASE)
_LABELS = ("label", "class", "target", "y", "digit")
_OTHERS = ("id", "imageid", "image_id", "index", "unnamed: 0", "")  # pandas writes its index without a name
_GZIP = b"\x1f\x8b"
SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
_FEWEST = 10  # columns of a table of pixels that are looked at


class _Columns(NamedTuple):
    """Which columns are what."""

    width: int
    delimiter: str
    has_header: bool
    label: int | None
    pixels: list[int]

    @classmethod
    def of(cls, line: str, label_column: str | None, where: str) -> _Columns:
        """From the first line. Raises InputError where there is no such label, or the pixels are no square image."""
        delimiter = _delimiter(line)
        names = _fields(line, delimiter)
        labels = _LABELS if label_column is None else (label_column.lower(),)
        label = next((number for number, name in enumerate(names) if name in labels), None)
        has_header = label is not None or not all(_NUMBER.fullmatch(name) for name in names) or _count_up(names)
        if label_column is not None and label is None:
            raise InputError(f"{where} has no column `{label_column}` for --label-column")
        chosen = [number for number, name in enumerate(names) if number != label and name not in _OTHERS]
        if label is None and not pixels.is_square(len(chosen)) and pixels.is_square(len(chosen) - 1):
            label, *chosen = chosen
        if not pixels.is_square(len(chosen)):
            raise InputError(f"{where} has {len(chosen)} columns of pixels, which are no square gray image")
        return cls(len(names), delimiter, has_header, label, chosen)


def is_pixel_table(first_bytes: bytes) -> bool:
    """Whether a CSV file that begins so has a column a pixel, rather than a column of paths."""
    text, newline, _ = first_bytes.decode(_encoding(first_bytes), errors="replace").partition("\n")
    names = _fields(text, _delimiter(text))
    if not newline:
        names = names[:-1]  # it is cut off
    others = [name for name in names if name not in (*_LABELS, *_OTHERS)]
    is_numbers = all(_NUMBER.fullmatch(name) for name in others)
    return len(names) >= _FEWEST and (is_numbers or all(_PIXEL.fullmatch(name) for name in others))


def open_pixel_tables(files: Mapping[str, list[Location]], name: str, reading: Reading) -> ArraySource:
    return open_arrays(name, partial(_load, files, reading.label_column, signed=reading.signed), reading)


def _load(files: Mapping[str, list[Location]], label_column: str | None, *, signed: bool) -> ArraySplits:
    load = partial(_load_file, label_column=label_column, signed=signed)
    return {split: _joined([load(file, split) for file in each]) for split, each in files.items()}


def _load_file(file: Location, split: str, *, label_column: str | None, signed: bool) -> ArraySplit:
    lines = _lines(file)
    first = next(lines, "")
    columns = _Columns.of(first, label_column, str(file))
    if not columns.has_header:
        lines = itertools.chain([first], lines)
    first_row = next(lines, None)
    reasons: dict[int, str] = {}
    if first_row is None:
        values: NDArray[Any] = np.empty((0, columns.width), np.uint8)
    else:
        try:  # the usual case, in a fraction of the time and memory
            values = np.loadtxt(
                itertools.chain([first_row], lines), np.uint8, comments=None, delimiter=columns.delimiter,
                quotechar='"', ndmin=2,
            )  # fmt: skip
            if values.shape[1] != columns.width:
                raise ValueError
        except (ValueError, OverflowError):
            values, reasons = _row_by_row(file, columns)
    if not columns.has_header and columns.label == 0 and _is_constant(values[:, 0]) > _is_constant(values[:, -1]):
        raise InputError(
            f"{file} has no header, so its first column is taken for the label, but that is {values[0, 0]:g} in every"
            " row, unlike the last column; put the label first, or name it in a header"
        )
    side = pixels.square(len(columns.pixels))
    images = values[:, columns.pixels].reshape(-1, *side)
    labels = None if columns.label is None else values[:, columns.label]
    part = to_splits({split: (images, labels)}, str(file), signed=signed)[split]
    return ArraySplit(part.images, part.labels, part.reasons | reasons, part.mislabelled - reasons.keys())


def _row_by_row(file: Location, columns: _Columns) -> tuple[NDArray[np.float64], dict[int, str]]:
    """Values of any numbers, and the reasons of rows that have others, which are zero in the result."""
    rows: list[NDArray[np.float64]] = []
    reasons: dict[int, str] = {}
    for line in itertools.islice(_lines(file), int(columns.has_header), None):
        fields = _fields(line, columns.delimiter)
        rows.append(np.zeros(columns.width))
        if len(fields) != columns.width:
            reasons[len(rows) - 1] = f"has {len(fields)} columns, not {columns.width} like the first line"
            continue
        try:
            rows[-1][[*columns.pixels]] = np.array([fields[number] for number in columns.pixels], np.float64)
            if columns.label is not None:
                rows[-1][columns.label] = float(fields[columns.label])
        except ValueError as error:
            reasons[len(rows) - 1] = f"holds what is not a number ({_excerpt(error)})"
    return np.stack(rows), reasons


def _is_constant(column: NDArray[Any]) -> bool:
    return bool(len(column) and (column == column[0]).all())


def _excerpt(error: ValueError) -> str:
    """What could not be converted, of "could not convert string to float: 'a'"."""
    return str(error).rpartition(": ")[2].encode("ascii", "backslashreplace").decode()[:40]


def _lines(file: Location) -> Iterator[str]:
    try:
        with file.open_file() as opened, io_errors(file, "read"):
            begin = bytes(opened.read(len(_GZIP)))
            opened.seek(0)
            stream = _Unpacked(opened, file) if begin == _GZIP else opened
            for line in io.TextIOWrapper(stream, _encoding(begin), errors="replace"):
                if not line.isspace():
                    yield line
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist") from error


class _Unpacked(gzip.GzipFile):
    """What gzip has compressed into a file, unless it is damaged, or far more than any table compresses to."""

    def __init__(self, opened: Any, where: Location) -> None:
        super().__init__(fileobj=ArrowFile(opened, where))
        self._size, self._where, self._count = opened.size(), where, 0

    def read1(self, size: int = -1) -> bytes:
        try:
            data = super().read1(size)
        except (EOFError, zlib.error, OSError) as error:
            raise InputError(f"{self._where} is truncated or damaged ({error}); copy it again") from error
        self._count += len(data)
        refuse_bomb(self._count, self._size, str(self._where))
        return data


def _encoding(begin: bytes) -> str:
    return "utf-16" if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def _delimiter(line: str) -> str:
    return max(",;\t", key=line.count)


def _fields(line: str, delimiter: str) -> list[str]:
    return [field.strip().strip('"').lower() for field in line.split(delimiter)]


def _count_up(names: list[str]) -> bool:
    """Whether numbers are the names of columns, as pandas writes them: 0, 1, 2, …"""
    return names[:_FEWEST] in ([str(first + number) for number in range(_FEWEST)] for first in (0, 1))


def _joined(parts: list[ArraySplit]) -> ArraySplit:
    if len(parts) == 1:
        return parts[0]
    begins = np.cumsum([0, *(len(part.images) for part in parts)]).tolist()
    reasons: dict[int, str] = {}
    mislabelled: set[int] = set()
    for begin, part in zip(begins, parts, strict=False):
        reasons |= {begin + row: reason for row, reason in part.reasons.items()}
        mislabelled |= {begin + row for row in part.mislabelled}
    images, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "labels"))
    return ArraySplit(images, labels, reasons, frozenset(mislabelled))
