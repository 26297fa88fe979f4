"""Tests and intervals, by numpy and math alone: Wilson's interval, McNemar's test, and what tells two samples apart."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_EXACT = 1_000
"""Discordant pairs up to which McNemar's test is exact."""
_FEWEST_EXPECTED = 5.0  # in a cell of a chi-square test; rarer classes are counted together


def wilson_interval(right: int, n: int) -> tuple[float, float] | None:
    """The 95 % interval of a share (Wilson's score interval); None of nothing."""
    if not n:
        return None
    p, z = right / n, 1.959964
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    return low if p > 0 else 0.0, high if p < 1 else 1.0  # where rounding would exclude the share itself


def mcnemar(only_first: int, only_second: int) -> float:
    """The p-value of McNemar's test, of the images that only one of two classifiers gets right.

    Exact and two-sided (binomial) for few, else by chi-square with the continuity correction.
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    if not n:
        return 1.0
    if n <= MOST_EXACT:
        return min(1.0, sum(math.comb(n, k) for k in range(fewer + 1)) / (1 << (n - 1)))
    return chi_square_p(max(0, abs(only_first - only_second) - 1) ** 2 / n, 1)


def chi_square_p(statistic: float, degrees: int) -> float:
    """The probability of a larger chi-square: the regularized upper incomplete gamma function of half of both.

    By its series, or its continued fraction by Lentz's method (Numerical Recipes, 6.2).
    """
    a, x = degrees / 2, statistic / 2
    if degrees < 1 or x <= 0:
        return 1.0
    scale = math.exp(a * math.log(x) - x - math.lgamma(a))
    if x < a + 1:
        term = total = 1 / a
        while term > total * 1e-15:
            a += 1
            term *= x / a
            total += term
        return max(0.0, 1 - scale * total)
    b, c = x + 1 - a, math.inf
    d = fraction = 1 / b
    for i in range(1, 10_000):
        factor = -i * (i - a)
        b += 2
        d = 1 / (factor * d + b)
        c = b + factor / c
        fraction *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return min(1.0, scale * fraction)


def stability_index(reference: NDArray[Any], counts: NDArray[Any]) -> float:
    """The population stability index of two histograms (k,) over the same bins. Half an image is added to each bin, so
    that an empty one does not make it infinite."""
    shares = [(each + 0.5) / (each.sum() + 0.5 * len(each)) for each in (reference, counts)]
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())


def chi_square_test(reference: NDArray[Any], counts: NDArray[Any]) -> float:
    """The p-value that two histograms (k,) are of one distribution. Bins too rare for the test are counted as one."""
    table = np.array([reference, counts], np.float64)
    sums = table.sum(axis=1)
    if not sums.all():
        return 1.0
    is_rare = table.sum(axis=0) * sums.min() / sums.sum() < _FEWEST_EXPECTED
    table = np.column_stack([table[:, ~is_rare], table[:, is_rare].sum(axis=1)])
    table = table[:, table.sum(axis=0) > 0]
    expected = sums[:, None] * table.sum(axis=0) / sums.sum()
    return chi_square_p(float(((table - expected) ** 2 / expected).sum()), table.shape[1] - 1)


def kolmogorov_smirnov(one: NDArray[Any], other: NDArray[Any]) -> tuple[float, float]:
    """(statistic, p-value) of the two-sample Kolmogorov-Smirnov test, by its limit for large samples.

    With Stephens' correction (1970), which is close from a few images on. Ties make it careful, not wrong.
    """
    n, m = len(one), len(other)
    if not n or not m:
        return 0.0, 1.0
    one, other = np.sort(one), np.sort(other)
    both = np.concatenate([one, other])
    gaps = np.searchsorted(one, both, "right") / n - np.searchsorted(other, both, "right") / m
    statistic, root = float(np.abs(gaps).max()), math.sqrt(n * m / (n + m))
    x = (root + 0.12 + 0.11 / root) * statistic
    if x < 0.3:  # the series hardly converges there, and the value is 1 to five digits
        return statistic, 1.0
    p = 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 101))
    return statistic, min(1.0, max(0.0, p))
