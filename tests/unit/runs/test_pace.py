"""The time that is left, of jobs whose course is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mnist_ray.runs.pace import Pace, duration

TOTAL = 10_000

Course = Callable[[float], float]
"""What is done at a second."""


def steady(second: float) -> float:
    return 50 * second


def after_a_slow_start(second: float) -> float:
    """The first images come after 20 seconds, and at first slowly."""
    return 0 if second < 20 else 5 * (second - 20) if second < 30 else 50 + 50 * (second - 30)


def slower_from_half(second: float) -> float:
    return 100 * second if second < 50 else 5_000 + 25 * (second - 50)


def in_bursts(second: float) -> float:
    """Units of 500 images, one in ten seconds."""
    return second // 10 * 500


def estimates(course: Course, every: float = 0.1) -> dict[float, float | None]:
    """The estimate at each second until the end."""
    now = 0.0
    pace, found = Pace(TOTAL, lambda: now), {}
    while (done := int(course(now))) < TOTAL:
        found[round(now, 1)] = pace.update(done)
        now += every
    return found


def end_of(course: Course) -> float:
    return next(second / 10 for second in range(100_000) if course(second / 10) >= TOTAL)


@pytest.mark.parametrize(
    ("course", "known_from", "within"),
    [(steady, 3, 0.01), (after_a_slow_start, 61, 0.05), (slower_from_half, 81, 0.05), (in_bursts, 31, 0.05)],
)
def test_the_estimate_is_near_what_it_takes(course: Course, known_from: float, within: float) -> None:
    end, found = end_of(course), estimates(course)
    errors = [
        abs(left - (end - second)) / (end - second)
        for second, left in found.items()
        if left is not None and known_from <= second < end - 5
    ]
    assert len(errors) > 100
    assert max(errors) <= within


def test_nothing_is_promised_before_there_is_anything_to_go_by() -> None:
    assert set(list(estimates(after_a_slow_start).values())[:200]) == {None}
    assert set(list(estimates(steady).values())[:20]) == {None}
    assert Pace(10).seconds_left is None


def test_what_was_done_before_does_not_count() -> None:
    """A resumed job of which nine tenths are there."""
    now = 0.0
    pace = Pace(TOTAL, lambda: now)
    pace.update(9_000)
    now = 10.0
    assert pace.update(9_100) == pytest.approx(90)


def test_a_job_that_stands_still_takes_longer_and_longer() -> None:
    now = 0.0
    pace = Pace(TOTAL, lambda: now)
    pace.update(0)
    now = 10.0
    assert pace.update(1_000) == pytest.approx(90)
    now = 20.0
    assert pace.update(1_000) == pytest.approx(80), "as long as nothing was due"
    now = 40.0
    assert pace.update(1_000) == pytest.approx(9 * 30 - 10)
    assert pace.update(TOTAL) == 0


@pytest.mark.parametrize(
    ("seconds", "digits", "said"),
    [
        (0, 0, "0 s"), (59.4, 0, "59 s"), (59.6, 0, "1 min"), (75, 0, "1 min 15 s"), (3599, 0, "59 min 59 s"),
        (3600, 0, "1 h"), (7500, 0, "2 h 5 min"), (37.62, 1, "37.6 s"), (59.94, 1, "59.9 s"), (59.96, 1, "1 min"),
        (97.3, 1, "1 min 37 s"),
    ],
)  # fmt: skip
def test_times_are_said_to_two_places(seconds: float, digits: int, said: str) -> None:
    assert duration(seconds, digits) == said
