"""Units that wait, as stretches of consecutive ones."""

from __future__ import annotations

import random

import pytest

from mnist_ray.scoring.stretches import Stretches


def test_who_has_done_a_unit_goes_on_with_the_next() -> None:
    waiting = Stretches("abcdefgh")
    assert [waiting.take_any(""), waiting.take_any("a"), waiting.take_any("ae")] == ["a", "e", "c"]
    assert [waiting.take_next("a"), waiting.take_next("e"), waiting.take_next("c")] == ["b", "f", "d"]
    assert (waiting.take_next("b"), waiting.take_next("d"), len(waiting)) == (None, None, 2)
    assert (waiting.take_next("f"), waiting.take_any(""), waiting.take_any(""), len(waiting)) == ("g", "h", None, 0)


def test_a_stretch_that_nobody_is_about_to_go_on_with_is_begun_at_its_beginning() -> None:
    waiting = Stretches(range(9))
    assert [waiting.take_any(()), waiting.take_any(())] == [0, 1]


def test_what_is_put_back_is_taken_once_more() -> None:
    waiting = Stretches("abcd")
    assert waiting.take_any("") == "a"
    assert waiting.take_next("a") == "b"
    for unit in ("b", "b", "c"):  # b by two actors; c, which nobody has taken
        waiting.put_back(unit)
    assert len(waiting) == 3
    assert [waiting.take_next("a"), waiting.take_next("b"), waiting.take_next("c")] == ["b", "c", "d"]


@pytest.mark.parametrize("seed", range(20))
def test_each_is_taken_once_whatever_happens(seed: int) -> None:
    rng = random.Random(seed)
    units = [f"unit {number}" for number in range(rng.choice([0, 1, 2, 7, 50]))]
    waiting, held, done = Stretches(units), [], []  # type: ignore[var-annotated]
    while len(done) < len(units):
        if held and rng.random() < 0.6:
            unit = held.pop(rng.randrange(len(held)))
            if rng.random() < 0.3:
                waiting.put_back(unit)
                continue
            done.append(unit)
            taken = waiting.take_next(unit)
            assert taken is None or units.index(taken) == units.index(unit) + 1
        else:
            taken = waiting.take_any(held)
        if taken is not None:
            held.append(taken)
        assert len(waiting) + len(held) + len(done) == len(units)
    assert sorted(done) == sorted(units)
    assert waiting.take_any(()) is None
