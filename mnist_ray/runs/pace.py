"""How fast something goes, how long the rest will take, and how that is said."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_WINDOW_SECONDS = 30.0
_FEWEST = 4  # samples in the window: units of work may take longer than it
_LEAST_SECONDS = 2.0  # before that, anything would be a guess
_BETWEEN_SECONDS = 0.25  # of the samples that are kept


class Pace:
    """The pace of the last half minute: a start is slow, and speeds change. What was done before it began does not
    count, as in a job that is resumed."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._clock = total, clock
        self._samples: deque[tuple[float, int]] = deque()  # when how much was done; only where it was more than before

    def update(self, done: int) -> float | None:
        """Take in how much is done by now. Returns `seconds_left`."""
        now, samples = self._clock(), self._samples
        if not samples or done > samples[-1][1]:
            if len(samples) > 2 and now - samples[-2][0] < _BETWEEN_SECONDS:
                samples.pop()
            samples.append((now, done))
        while len(samples) > _FEWEST and samples[1][0] <= now - _WINDOW_SECONDS:
            samples.popleft()
        return self.seconds_left

    @property
    def seconds_left(self) -> float | None:
        """None while it cannot be known. It grows where more should have been done by now."""
        if len(self._samples) < 2:
            return None
        (began, before), (last, done) = self._samples[0], self._samples[-1]
        if done >= self._total:
            return 0.0
        if last - began < _LEAST_SECONDS:
            return None
        gap, silent = (last - began) / (len(self._samples) - 1), self._clock() - last
        seconds = last - began + max(silent - gap, 0.0)
        return max((self._total - done) * seconds / (done - before) - min(silent, gap), 0.0)


def duration(seconds: float, digits: int = 0) -> str:
    """A time as people say it, to two places: 8 s, 1 min 20 s, 2 h. digits: of seconds below a minute."""
    if round(seconds, digits) < 60:
        return f"{seconds:.{digits}f} s"
    whole = round(seconds)
    units = (whole // 60, "min", whole % 60, "s") if whole < 3600 else (whole // 3600, "h", whole % 3600 // 60, "min")
    return "{} {} {} {}".format(*units) if units[2] else "{} {}".format(*units)
