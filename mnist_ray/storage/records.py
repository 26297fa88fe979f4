"""Records: what a JSON file that is read back may hold. Whoever can write the file can write anything into it.

A record is a dataclass. pydantic checks the content against its annotations, strictly: 1 is not "1", and true is not 1.
It takes a fifth of a second to import, so that happens when the first file is read.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast

from mnist_ray.errors import InputError
from mnist_ray.storage.location import Location

T = TypeVar("T")


@dataclass(frozen=True)
class Rule:
    """An annotation of a field: what its value must be beyond its type, in words that follow the field's name."""

    words: str
    is_met: Callable[[Any], bool]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic import AfterValidator  # which is not in the annotations, so that they do not import it

        return AfterValidator(self._checked).__get_pydantic_core_schema__(source, handler)

    def _checked(self, value: T) -> T:
        if not self.is_met(value):
            raise ValueError(self.words)
        return value


def one_of(*values: str) -> Rule:
    """The rule of a field that has one of a few values."""
    return Rule(f"must be {', '.join(values[:-1])} or {values[-1]}", values.__contains__)


def _is_line(text: str) -> bool:
    return re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", text) is None


def _is_inside(path: str) -> bool:
    steps = path.split("/")
    return (
        len(path) < 256
        and _is_line(path)
        and not {"", ".", ".."} & set(steps)
        and "\\" not in path
        and ":" not in steps[0]
    )


def _is_real(value: float) -> bool:
    return value == 0 or 1e-300 < abs(value) < 1e300


Count = Annotated[int, Rule("must be from 0 to 2**53", lambda value: 0 <= value <= 1 << 53)]
NumClasses = Annotated[int, Rule("must be from 1 to 10 million", lambda value: 1 <= value <= 10_000_000)]
Real = Annotated[float, Rule("must be a finite number", _is_real)]
Share = Annotated[float, Rule("must be from 0 to 1", lambda value: 0 <= value <= 1)]
Seconds = Annotated[float, Rule("must be 0 or more, and finite", lambda value: value >= 0 and _is_real(value))]
Sha256 = Annotated[str, Rule("must be 64 hex digits", lambda text: re.fullmatch("[0-9a-f]{64}", text) is not None)]
Line = Annotated[str, Rule("must be one line without control characters", _is_line)]
PathInside = Annotated[str, Rule("must be a path within the file's folder", _is_inside)]
Pixels = Annotated[str, one_of("0-255", "0-1", "-1-1")]
Engine = Annotated[str, one_of("openvino", "tensorflow")]
Kind = Annotated[str, one_of("classes", "labels", "embeddings")]
Precision = Annotated[str, one_of("float32", "float64", "bfloat16")]


def parse_record(data: bytes, kind: type[T], name: object, remedy: str) -> T:
    """The record in a file's bytes. `name` and `remedy` are for the message: which file, and what the user can do.

    Raises ValueError where it is not JSON, InputError that names the first field that is wrong.
    """
    from pydantic import ValidationError

    try:
        return cast(T, _validator(cast(Any, kind))(data, strict=True))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise ValueError(first["ctx"]["error"]) from None
        raise InputError(f"{name} is damaged: {_problem(first)}; {remedy}") from None


def read_record(file: Location, kind: type[T], remedy: str) -> T:
    """The record in a file. Raises FileNotFoundError, or InputError in one line."""
    record: T = file.read_json(lambda data: parse_record(data, kind, file, remedy))
    return record


def parse_checked(data: bytes, kind: type, name: object, remedy: str) -> dict[str, Any]:
    """As `parse_record`, but returns the JSON object as it is, with the keys that the record does not have."""
    parse_record(data, kind, name, remedy)
    value: dict[str, Any] = json.loads(data)
    return value


def read_checked(file: Location, kind: type, remedy: str) -> dict[str, Any]:
    """As `read_record`, but returns the JSON object as it is, with the keys that the record does not have."""
    value: dict[str, Any] = file.read_json(lambda data: parse_checked(data, kind, file, remedy))
    return value


def parse_lines(data: bytes, kind: type) -> list[dict[str, Any]]:
    """The JSON objects, one a line, that are such records. Other lines are left out."""
    found = []
    for line in data.splitlines():
        with suppress(ValueError):  # an InputError is one, too
            found.append(parse_checked(line, kind, "", ""))
    return found


@functools.cache
def _validator(kind: Any) -> Callable[..., Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind).validate_json


def _problem(error: Any) -> str:
    """pydantic's error in our words: the field and what is wrong with it. Nothing in it is longer than a line."""
    field = "".join(
        f"[{step}]" if isinstance(step, int) else f".{step}" if step.isidentifier() else f"[{step[:40]!a}]"
        for step in error["loc"]
    ).lstrip(".")[:100]
    match error["type"]:
        case "missing":
            words = "is missing"
        case "unexpected_keyword_argument":
            words = "is not a field of it"
        case "value_error":
            words = str(error["ctx"]["error"])
        case "dataclass_type" | "dict_type" | "mapping_type":
            words = "must be an object"
        case _:
            text = error["msg"].removeprefix("Input should be ")
            words = f"must be {text}" if text != error["msg"] else text[0].lower() + text[1:]
    return f"`{field}` {words}" if field else f"its content {words}"
