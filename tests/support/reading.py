"""Read inputs under test, and refusals of them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.errors import InputError
from mnist_ray.sources.base import Batch, Reading, Source
from mnist_ray.sources.open import open_source
from mnist_ray.sources.specs import open_inputs


def read_all(source: Source, split: str) -> Any:
    return source.read(split, 0, source.splits[split])


def assert_said(spec: str, said: str, **options: Any) -> None:
    """One line, and the right one."""
    with pytest.raises(InputError, match=said) as raised:
        open_source(spec, Reading(**options))
    assert "\n" not in str(raised.value)


LENIENT = Reading(lenient=True)


def opened(*specs: Path | str, reading: Reading = LENIENT) -> Source:
    source, split = open_inputs([str(spec) for spec in specs], "test", reading)
    assert split in source.splits
    return pickle.loads(pickle.dumps(source))  # as an actor gets it


def read(source: Source, split: str = "all") -> Batch:
    """All of a split; and every other range gives the same rows."""
    rows = source.splits[split]
    whole = source.read(split, 0, rows, strict=False)
    for start, stop in ((0, 1), (1, rows), (rows // 2, rows)):
        part = list(source.stream(split, start, stop, strict=False))
        expected = [(i, each) for i, each in enumerate(_rows(whole, rows)) if start <= i < stop]
        assert [name for batch in part for name in batch.ids] == [each for _, each in expected if each is not None]
        assert [bad.row for batch in part for bad in batch.bad] == [i for i, each in expected if each is None]
    return whole


def _rows(batch: Batch, rows: int) -> list[Any]:
    bad, ids = {each.row for each in batch.bad}, iter(batch.ids)
    return [None if row in bad else next(ids) for row in range(rows)]
