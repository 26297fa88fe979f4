"""Units: they tile the rows, span no border and fit into memory. Plans: what decides a part is in their digest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mnist_ray.errors import InputError
from mnist_ray.predictions.plan import MOST_ROWS, Plan, kept_bytes, limited, plan_units
from mnist_ray.storage.location import Location

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


# Plans.

PLAIN: dict[str, Any] = {
    "model_sha256": "ab" * 32, "input_digest": "cd" * 32, "split": "test", "limit": None, "pixels": "0-255",
    "num_classes": 4, "units": ((0, 6), (6, 11)),
}  # fmt: skip


def test_an_output_of_an_earlier_version_keeps_its_digest() -> None:
    """Parts name their plan by it: with another one, they would all be scored again."""
    assert Plan(**PLAIN).digest == "3865fe12f78d36c44180890ad5b9a2205236788cf27fff22e366888798abd0a6"
    more = {"engine": "openvino", "engine_version": "2026.4.1", "converted_sha256": "ef" * 32,
            "classes": tuple("abcd"), "top_k": 2, "batch_size": 8}  # fmt: skip
    assert Plan(**PLAIN, **more).digest == "41b6b6d24ea46d93f5316172d204d23aa26c234b747bcf65febb1b7e5fbe612a"


def test_what_decides_a_part_is_in_the_digest() -> None:
    plain = Plan(**PLAIN).digest
    changes: list[dict[str, Any]] = [
        {"kind": "labels", "thresholds": (0.5,) * 4}, {"kind": "labels", "thresholds": (0.5, 0.5, 0.5, 0.4)},
        {"kind": "embeddings", "output_layer": "a"}, {"kind": "embeddings", "output_layer": "b"}, {"output_name": "a"},
    ]  # fmt: skip
    for changed in changes:
        assert Plan(**PLAIN, **changed).digest != plain
        plain = Plan(**PLAIN, **changed).digest
    for remark in ("pixels_reason", "engine_reason"):
        assert Plan(**PLAIN, **{remark: "so"}).digest == Plan(**PLAIN).digest


def test_other_options_are_other_jobs(tmp_path: Path) -> None:
    output = Location.parse(tmp_path)
    Plan(**PLAIN, kind="labels", thresholds=(0.5,) * 4, classes=tuple("abcd")).freeze(output)
    other = Plan(**PLAIN, kind="labels", thresholds=(0.4,) * 4, classes=tuple("abcx"), output_name="digit")
    with pytest.raises(
        InputError, match=r"--classes a,b,c,d -> a,b,c,x, --output-name None -> digit, --threshold 0\.5"
    ):
        other.freeze(output)
    assert Plan.load(output) == Plan(**PLAIN, kind="labels", thresholds=(0.5,) * 4, classes=tuple("abcd"))


def test_images_that_are_retried_must_be_decoded_as_the_others_were(tmp_path: Path) -> None:
    """Else an output would mix photos that are upright with others that are not."""
    output = Location.parse(tmp_path)
    upright, as_stored = "rules 3, exif applied, background #000000", "rules 3, exif ignored, background #000000"
    Plan(**PLAIN, decoded_by=upright).freeze(output)
    repaired = {**PLAIN, "input_digest": "ef" * 32}
    assert Plan(**repaired, decoded_by=upright).freeze(output, is_retry=True).mended_digest == "ef" * 32
    with pytest.raises(InputError, match=f"images decoded by {upright} -> {as_stored}"):
        Plan(**repaired, decoded_by=as_stored).freeze(output, is_retry=True)
    earlier = tmp_path / "earlier"  # version, which did not say
    Plan(**PLAIN).freeze(Location.parse(earlier))
    assert Plan(**PLAIN, decoded_by=upright).freeze(Location.parse(earlier)) == Plan(**PLAIN)


@pytest.mark.parametrize(
    "changed", [{"kind": "labels"}, {"thresholds": (0.5,) * 4}, {"kind": "embeddings", "top_k": 2}]
)
def test_a_plan_of_no_kind_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="with thresholds or the top"):
        Plan(**PLAIN, **changed)
