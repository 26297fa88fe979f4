"""Units: they tile the rows, span no border and fit into memory."""

from __future__ import annotations

import pytest

from mnist_ray.predictions.plan import MOST_ROWS, kept_bytes, limited, plan_units

# Units.


@pytest.mark.parametrize("rows", [1, 4095, 4096, 4097, 5 * 4096 + 1, 16 * MOST_ROWS - 1, 17 * MOST_ROWS + 1])
def test_units_tile_the_rows(rows: int) -> None:
    units = plan_units([(0, rows)], row_bytes=784)
    assert [start for start, _ in units] == [0, *(stop for _, stop in units[:-1])]
    assert units[-1][1] == rows
    sizes = [stop - start for start, stop in units]
    assert 0 < max(sizes) <= MOST_ROWS
    assert set(sizes[:-1]) <= {max(sizes)}
    assert rows < 16 * 4096 or len(units) >= 16  # enough for some actors


def test_units_span_no_border() -> None:
    assert plan_units([(0, 3), (3, 3), (3, 11), (11, 13)], row_bytes=1, target_rows=4) == [
        (0, 3), (3, 7), (7, 11), (11, 13),
    ]  # fmt: skip


def test_units_of_large_images_fit_into_memory() -> None:
    assert max(stop - start for start, stop in plan_units([(0, 10_000)], row_bytes=3 * 512 * 512)) == 128


@pytest.mark.parametrize(("classes", "top_k", "rows"), [
    (10, None, MOST_ROWS), (20_000, None, 1024), (20_000, 3, MOST_ROWS), (20_000, 20_000, 512),
])  # fmt: skip
def test_units_of_many_classes_fit_into_memory(classes: int, top_k: int | None, rows: int) -> None:
    units = plan_units([(0, 1 << 22)], row_bytes=kept_bytes(classes, top_k))
    assert units[0] == (0, rows)


def test_units_of_the_first_rows() -> None:
    ranges = [(0, 5), (5, 9), (9, 20)]
    assert plan_units(limited(ranges, 7), row_bytes=1, target_rows=4) == [(0, 4), (4, 5), (5, 7)]
    assert plan_units(limited(ranges, None), row_bytes=1, target_rows=16) == [(0, 5), (5, 9), (9, 20)]
