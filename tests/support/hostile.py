"""JSON that somebody else wrote: every value of a good file replaced by bad ones, and files that are not JSON."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

NOT_JSON = {
    "empty": b"", "cut off": b'{"a": 1', "not UTF-8": b"\xff\xfe{}", "a word": b"hello", "two values": b"{} {}",
    "10 MB of brackets": b"[" * 10_000_000, "10 MB of objects": b'{"a":' * 2_000_000,
    "closed brackets": b"[" * 5_000 + b"]" * 5_000, "a number of 10,000 digits": b"9" * 10_000,
    "half a surrogate": b'"\\ud800"',
}  # fmt: skip

NOT_AN_OBJECT = {
    "null": b"null", "a list": b"[]", "a number": b"1", "a text": b'"x"', "NaN": b"NaN", "nothing in it": b"{}"
}  # fmt: skip

BAD_VALUES: tuple[Any, ...] = (
    None, True, "x", "", "../../x", "/etc/passwd", "s3://bucket/x", "two\nlines", "\x1b[2J", "9" * 5000,
    -1, 0, 0.5, 1e308, 5e-324, float("nan"), float("inf"), 10**18, 10**400, [], {}, ["x"], [[]], {"x": {"y": []}},
)  # fmt: skip

MISSING = object()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON value; of lists, only of their first and last items."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if not isinstance(value, list) or key in (0, len(value) - 1):
            yield from places(item, (*path, key))


def changed(good: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a path, or without it."""
    result = copy.deepcopy(good)
    parent = result
    for step in path[:-1]:
        parent = parent[step]
    if value is MISSING:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return result


def all_changes(good: Any) -> Iterator[tuple[str, Any]]:
    """(what was done, the result) of every bad value at every place of a good file."""
    for path in places(good):
        yield f"{path} missing", changed(good, path, MISSING)
        for value in BAD_VALUES:
            yield f"{path} = {str(value)[:40]!r}", changed(good, path, value)
    yield "a key more", {**good, "more": 1}
