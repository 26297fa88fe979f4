"""Files that list images: a path a line, or a table (CSV, or JSON lines) with a column of paths and perhaps one of
labels.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

from mnist_ray.errors import InputError
from mnist_ray.sources.base import IMAGE_SUFFIXES, Reading
from mnist_ray.sources.labels import elements, is_list, list_text
from mnist_ray.sources.listing import composed
from mnist_ray.sources.pixels import by_value
from mnist_ray.storage.location import Location

LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl")
METADATA = ("metadata.csv", "metadata.jsonl", "labels.csv")
"""Tables beside images that tell their labels, as Hugging Face's ImageFolder has them."""
_PATHS = ("path", "file_name", "filename", "file", "file_path", "filepath", "image", "image_path", "img", "img_path")
_LABELS = ("label", "class", "target", "category", "class_name", "label_name")
_BLOCK = 1 << 20  # bytes of a list that are read at once
_MAX_LINE = 8192  # characters: no file system has longer paths


class Listed(NamedTuple):
    path: str
    label: str | None = None
    """None where the list has no labels, "" where this image has none."""


def read_list(file: Location, reading: Reading) -> Iterator[Listed]:
    """The images of a list in its order. Reads a block at a time: there may be millions."""
    if not file.name.lower().endswith(".txt"):
        yield from read_table(file, reading)
        return
    for number, line in enumerate(filter(None, map(_path_of, _lines(file))), 1):
        if line.lower().endswith(LIST_SUFFIXES):
            raise InputError(f"{file}: line {number} is a list itself; give it as an INPUT of its own")
        yield Listed(line)


def read_table(file: Location, reading: Reading) -> Iterator[Listed]:
    """The rows of a table. Its columns are the usual ones, or those of --image-column and --label-column.

    Raises InputError where it has no column of paths.
    """
    yield from _rows_of_table(_lines(file), str(file), reading)


def _rows_of_table(lines: Iterator[str], file: str, reading: Reading) -> Iterator[Listed]:
    lines = filter(str.strip, lines)
    if file.partition("?")[0].lower().endswith(".jsonl"):
        yield from (_of_json(line, file, reading) for line in lines)
        return
    first = next(lines, "")
    delimiter = next((each for each in ",;\t" if each in first), ",")
    names = [name.strip().lower() for name in next(_rows([first], delimiter, file), [])] or [""]
    paths, labels = _column(names, reading.image_column, _PATHS), _column(names, reading.label_column, _LABELS)
    if paths is None and names[0].endswith(IMAGE_SUFFIXES) and not (reading.image_column or reading.label_column):
        lines, paths, labels = itertools.chain([first], lines), 0, 1 if len(names) > 1 else None  # there is no header
    if paths is None:
        raise InputError(
            f"{file} has no column of paths, only {', '.join(names)[:200]}; name it `path`, or give --image-column"
        )
    if reading.label_column and labels is None:
        raise InputError(f"{file} has no column `{reading.label_column}` for --label-column, only {', '.join(names)}")
    rows = _rows(lines, delimiter, file)
    if labels is None and reading.takes_several and reading.takes("column"):
        first_row = next(rows, [])
        _require_no_columns_of_0_and_1([*first_row[:paths], *first_row[paths + 1 :]], file)
        rows = itertools.chain([first_row], rows)
    for row in rows:
        fields = [*row, *[""] * len(names)]
        if fields[paths].strip():
            yield Listed(fields[paths].strip(), None if labels is None else by_value(fields[labels].strip()))


class _ColumnsError(InputError):
    """A table has labels, but not in a column of labels."""


def _require_no_columns_of_0_and_1(others: list[str], file: str) -> None:
    """Whether their order or their names tell which label each column is of cannot be known. others: the fields of a
    row without its path."""
    if len(others) > 1 and {by_value(each.strip()) for each in others} <= {"0", "1"}:
        raise _ColumnsError(
            f"{file} has a column of 0 and 1 for each label; write a row for each label of an image, with the label in"
            " the column `label`, or JSON lines with a list of them; or add --labels none"
        )


def labels_beside(folder: Location, names: Collection[str], reading: Reading) -> tuple[str, dict[str, str]] | None:
    """The labels of the images in and below a folder, by their paths in it, and the name of the table that has them.

    names: of the files in the folder. None where there is no such table.
    """
    name = next((name for name in METADATA if name in names), None)
    if name is None or not reading.takes("column"):
        return None
    labels = _labels(str(folder / name), _lines(folder / name), reading)
    return (name, labels) if labels else None


def labels_in(data: bytes, file: str, reading: Reading) -> dict[str, str]:
    """The same of a table's bytes; nothing where it has no labels. file: its name in an archive."""
    return _labels(file, _decoded(io.BytesIO(data), file), reading)


def _labels(file: str, lines: Iterator[str], reading: Reading) -> dict[str, str]:
    try:
        listed = list(_rows_of_table(lines, file, reading))
    except InputError as error:
        if reading.label_column or reading.image_column or isinstance(error, _ColumnsError):
            raise
        return {}  # it is a table of something else
    labels: dict[str, str] = {}
    for path, label in listed:
        inside = path.replace("\\", "/").removeprefix("./")  # as some write on Windows
        inside = composed(inside)
        if (known := labels.setdefault(inside, label or "")) == (label or ""):
            continue
        both = elements(known), elements(label or "")
        if not (reading.takes_several and all(both)) or is_list(label or ""):
            named = (" ".join(each) for each in both)
            raise InputError("{} gives {} two labels, {} and {}; leave one".format(file, path, *named))
        labels[inside] = list_text(dict.fromkeys([*both[0], *both[1]]))  # a row a label, as Open Images has it
    return labels if any(each.label is not None for each in listed) else {}


def _column(names: list[str], chosen: str | None, usual: tuple[str, ...]) -> int | None:
    wanted = usual if chosen is None else (chosen.lower(),)
    return next((names.index(name) for name in wanted if name in names), None)


def _rows(lines: Iterable[str], delimiter: str, file: str) -> Iterator[list[str]]:
    """The fields of each row. One in quotes may span lines, as a caption does; a quote without an end would swallow
    rows, so it is refused."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        yield from reader
    except csv.Error as error:
        raise InputError(f"{file} is not a table at line {reader.line_num}: {error}") from error


def _of_json(line: str, file: str, reading: Reading) -> Listed:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON lines: {error}") from error
    names = list(row) if isinstance(row, dict) else []
    lower = [name.lower() for name in names]
    paths, labels = _column(lower, reading.image_column, _PATHS), _column(lower, reading.label_column, _LABELS)
    if paths is None:
        raise InputError(f"{file}: a line has no path; name it `file_name`")
    label = None if labels is None else row[names[labels]]
    if isinstance(label, list):
        return Listed(str(row[names[paths]]), list_text(label))
    return Listed(str(row[names[paths]]), None if labels is None else by_value(str(label)) if label is not None else "")


def _lines(file: Location) -> Iterator[str]:
    try:
        with file.open_file() as opened:
            yield from _decoded(opened, str(file))
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist") from error


def _decoded(opened: Any, file: str) -> Iterator[str]:
    block, rest = opened.read(_BLOCK), ""
    is_utf16 = block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # as PowerShell writes it
    decoder = codecs.getincrementaldecoder("utf-16" if is_utf16 else "utf-8-sig")()
    try:
        while block:
            *lines, rest = (rest + decoder.decode(block)).split("\n")
            yield from (_checked(line, file) for line in lines)
            if len(rest) > _MAX_LINE:
                break
            block = opened.read(_BLOCK)
        yield _checked(rest + decoder.decode(b"", final=not block), file)
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not a list of paths: it is neither UTF-8 nor UTF-16; save it as UTF-8") from error


def _checked(line: str, file: str) -> str:
    if len(line) > _MAX_LINE or "\0" in line:
        raise InputError(f"{file} is not a list of paths: a line is too long or binary; write one path or URI a line")
    return line.rstrip("\r")


def _path_of(line: str) -> str:
    """The path, without quotes around it, or "" for a comment."""
    line = line.strip()
    if len(line) > 1 and line[0] == line[-1] and line[0] in "\"'":
        line = line[1:-1]
    return "" if line.startswith("#") else line
