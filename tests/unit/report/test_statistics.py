"""Tests of significance against published values, and against what they are by definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mnist_ray.report.statistics import (
    chi_square_p,
    chi_square_test,
    kolmogorov_smirnov,
    mcnemar,
    stability_index,
)


@pytest.mark.parametrize(
    ("statistic", "degrees", "p"),
    [
        # The usual table of critical values.
        (3.841459, 1, 0.05), (6.634897, 1, 0.01), (18.307038, 10, 0.05), (2.705543, 1, 0.1),
        (124.342113, 100, 0.05), (99.334129, 100, 0.5), (16.918978, 9, 0.05), (14.683657, 9, 0.1), (0, 3, 1),
    ],
)  # fmt: skip
def test_chi_square_as_the_tables_have_it(statistic: float, degrees: int, p: float) -> None:
    assert chi_square_p(statistic, degrees) == pytest.approx(p, rel=1e-5)


@pytest.mark.parametrize("x", [0.01, 0.5, 2, 9, 40, 600])
def test_chi_square_of_one_and_two_degrees_has_a_closed_form(x: float) -> None:
    assert chi_square_p(x, 2) == pytest.approx(math.exp(-x / 2), rel=1e-12)
    assert chi_square_p(x, 1) == pytest.approx(math.erfc(math.sqrt(x / 2)), rel=1e-10)


def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs() -> None:
    assert mcnemar(0, 0) == 1
    assert mcnemar(3, 3) == 1
    assert mcnemar(0, 5) == 2 / 2**5
    assert mcnemar(1, 8) == mcnemar(8, 1) == 2 * (1 + 9) / 2**9
    # Agresti, Categorical Data Analysis: 86 and 150 changed their minds; z squared is 17.36, 16.8 corrected.
    assert mcnemar(86, 150) == pytest.approx(3.7e-5, rel=0.05)


def test_mcnemar_of_many_pairs_hardly_differs_from_the_exact_test() -> None:
    exact = 2 * sum(math.comb(1001, k) for k in range(471)) / 2**1001
    assert mcnemar(470, 531) == pytest.approx(exact, rel=0.01)
    assert mcnemar(600, 600) == 1


def test_stability_index() -> None:
    same = np.array([100, 200, 700])
    assert stability_index(same, same * 1000) == pytest.approx(0, abs=1e-4)
    # (0.6 - 0.5) ln 1.2 + (0.4 - 0.5) ln 0.8
    assert stability_index(np.array([50_000, 50_000]), np.array([60_000, 40_000])) == pytest.approx(0.04055, abs=1e-5)
    assert math.isfinite(stability_index(np.array([10, 0]), np.array([0, 10])))


def test_chi_square_of_two_samples() -> None:
    """[[10, 20], [30, 40]]: n (ad - bc)^2 / (the four margins) = 100 * 200^2 / (30 * 70 * 40 * 60)."""
    expected = math.erfc(math.sqrt(100 * 200**2 / (30 * 70 * 40 * 60) / 2))
    assert chi_square_test(np.array([10, 20]), np.array([30, 40])) == pytest.approx(expected, rel=1e-10)
    assert chi_square_test(np.array([0, 0]), np.array([3, 4])) == 1
    # Classes that hardly occur are one: they say nothing alone.
    assert chi_square_test(np.array([1, 0, 50]), np.array([0, 1, 50])) == pytest.approx(1)


def test_kolmogorov_smirnov() -> None:
    one, other = np.arange(10) / 10, np.arange(10) / 10 + 0.25
    assert kolmogorov_smirnov(one, other)[0] == pytest.approx(0.3)
    assert kolmogorov_smirnov(one, one) == (0, 1)
    # K(1.358) is 0.05, as the tables have it.
    n = 20_000
    steps = np.arange(n) / n
    shift = 1.3581 / math.sqrt(n / 2)
    statistic, p = kolmogorov_smirnov(steps, steps + shift)
    assert statistic == pytest.approx(shift, abs=1 / n)
    assert p == pytest.approx(0.05, abs=0.002)


def test_the_tests_are_right_about_chance() -> None:
    """Of samples of one distribution, a twentieth has p < 0.05."""
    random = np.random.default_rng(0)
    samples = [(random.uniform(size=400), random.uniform(size=300)) for _ in range(400)]
    of_values = np.mean([kolmogorov_smirnov(*each)[1] < 0.05 for each in samples])
    of_counts = np.mean([chi_square_test(*(np.histogram(x, 6, (0, 1))[0] for x in each)) < 0.05 for each in samples])
    assert of_values == pytest.approx(0.05, abs=0.025)
    assert of_counts == pytest.approx(0.05, abs=0.025)
