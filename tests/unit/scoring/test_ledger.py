"""The ledger of a scoring: what is counted, too many bad images, and a result that is already there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mnist_ray.errors import TooManyBadImagesError
from mnist_ray.predictions import parts
from mnist_ray.predictions.parts import Committed
from mnist_ray.predictions.plan import Plan
from mnist_ray.scoring.ledger import Ledger
from mnist_ray.storage.location import Location
from tests.support.output_maker import make_output


@pytest.fixture
def output(tmp_path: Path) -> Location:
    """18 images in units of 6, 5 and 7; two are quarantined in unit 1, one in unit 2."""
    make_output(tmp_path / "out")
    return Location.parse(tmp_path / "out")


def units_of(output: Location) -> list[Committed]:
    plan = Plan.load(output)
    assert plan is not None
    return list(parts.resume(output, plan))


def ledger_of(output: Location, units: tuple[int, ...], max_bad: float = 1.0, on_progress: Any = None) -> Ledger:
    plan = Plan.load(output)
    assert plan is not None
    done = [each for each in units_of(output) if each.unit in units]
    return Ledger(plan, output, done, max_bad=max_bad, on_progress=on_progress)


def test_units_are_counted_as_they_come(output: Location) -> None:
    seen: list[tuple[int, int, int]] = []
    one, other = units_of(output)[::2]
    ledger = ledger_of(output, (1,), on_progress=lambda *now: seen.append(now))
    assert (ledger.resumed_images, ledger.units_left) == (5, [0, 2])
    ledger.add(other)
    ledger.add(one)
    assert (ledger.images, ledger.quarantined, ledger.units_left) == (18, 3, [])
    assert [each[:2] for each in seen] == [(5, 18), (12, 18), (18, 18)]
    assert seen[-1][2] == ledger.quarantined
    scored = ledger.result(2, 0.5, ledger.images - ledger.resumed_images)
    assert (scored.images, scored.scored, scored.quarantined, scored.images_per_second) == (18, 15, 3, 26.0)


def test_the_order_of_the_units_does_not_change_the_result(output: Location) -> None:
    whole = ledger_of(output, (0, 1, 2))
    backwards = ledger_of(output, ())
    for each in reversed(units_of(output)):
        backwards.add(each)
    assert backwards.result(1, 1.0, 18).tally.to_json() == whole.result(1, 1.0, 18).tally.to_json()


def test_too_many_bad_images(output: Location) -> None:
    assert ledger_of(output, (0, 1, 2), max_bad=3 / 18).quarantined == 3
    with pytest.raises(
        TooManyBadImagesError,
        match=r"^3 of 18 images cannot be scored, more than --max-bad 0\.16, such as images/7\.png \(row 7\), which is"
        r" an empty file; all reasons are in .*out/quarantine: repair the images or raise --max-bad$",
    ):
        ledger_of(output, (0, 1, 2), max_bad=0.16)


def test_a_finished_output_is_a_result(output: Location) -> None:
    manifest = (output / "_manifest.json").read_json()
    (output / "_manifest.json").write_json({**manifest, "num_actors": 3, "seconds": 2.0})
    scored = ledger_of(output, (0, 1, 2)).finished()
    assert scored is not None
    assert (scored.num_actors, scored.seconds, scored.images_per_second) == (3, 2.0, 9.0)
    assert ledger_of(output, (0, 1)).finished() is None
    (output / "_manifest.json").write_json({**manifest, "parts": manifest["parts"][:2]})
    assert ledger_of(output, (0, 1, 2)).finished() is None
    for damaged in ({"quarantine": manifest["quarantine"][:1]}, {"quarantined": 0}, {"classes": ["a", "b", "c", "d"]}):
        (output / "_manifest.json").write_json({**manifest, **damaged})
        assert ledger_of(output, (0, 1, 2)).finished() is None  # so that it is written again
    (output / "_manifest.json").delete()
    assert ledger_of(output, (0, 1, 2)).finished() is None
