"""The verdict on a quantity: an interval against what is expected."""

import math

import numpy as np
import pytest
import scipy.stats

from experiments.studies.quantity import (
    INCONCLUSIVE,
    NOT_REPRODUCED,
    OPEN,
    REPRODUCED,
    Quantity,
    difference,
    exact,
    of_seeds,
)


def test_the_interval_is_students():
    values = np.random.default_rng(0).normal(3, 2, 7)
    q = of_seeds("x", values)
    asked = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert q.ci == pytest.approx((asked.low, asked.high), rel=1e-12)
    assert q.measured == pytest.approx(values.mean()) and q.seeds == 7


@pytest.mark.parametrize(
    ("values", "expected", "relation", "tolerance", "verdict"),
    [
        ((0.99, 1.0, 1.01), 1.0, "=", 0.1, REPRODUCED),
        ((0.99, 1.0, 1.01), 2.0, "=", 0.1, NOT_REPRODUCED),
        ((0.5, 1.0, 1.5), 1.0, "=", 0.1, INCONCLUSIVE),  # the mean is right, the interval wide
        ((0.99, 1.0, 1.01), 0.9, ">=", 0.0, REPRODUCED),
        ((0.99, 1.0, 1.01), 1.0, ">=", 0.0, INCONCLUSIVE),
        ((0.99, 1.0, 1.01), 1.1, ">=", 0.0, NOT_REPRODUCED),
        ((0.99, 1.0, 1.01), 1.1, "<=", 0.0, REPRODUCED),
        ((0.99, 1.0, 1.01), 0.9, "<=", 0.0, NOT_REPRODUCED),
        ((1.0, 1.0), 1.0, ">=", 0.0, REPRODUCED),
        ((1.0,), 1.0, "=", 0.0, REPRODUCED),
        ((1.0,), 1.1, "=", 0.05, NOT_REPRODUCED),
        ((1.0,), None, "=", 0.0, OPEN),
        ((math.nan, math.nan), 1.0, "=", 0.1, INCONCLUSIVE),
        ((1.0, 1.0, math.nan), 1.0, "=", 0.1, INCONCLUSIVE),  # one seed diverged
        ((), 1.0, "=", 0.1, INCONCLUSIVE),
    ],
)
def test_verdict(values, expected, relation, tolerance, verdict):
    q = Quantity("x", values, expected, tolerance, relation)
    assert q.verdict == verdict


def test_an_interval_of_its_own_counts():
    q = exact("slope", -0.5, -0.5, 0.07, interval=(-0.6, -0.4))
    assert q.verdict == INCONCLUSIVE
    assert exact("slope", -0.5, -0.5, 0.07, interval=(-0.53, -0.47)).verdict == REPRODUCED


def test_diverged_seeds_are_said():
    q = of_seeds("x", [1.0, math.nan, 1.2], 1.0, 5.0, note="too large a rate")
    assert (q.seeds, q.missing) == (2, 1)
    assert q.remark == "1 of 3 seeds diverged or have no result; too large a rate"
    assert q.verdict == INCONCLUSIVE


def test_the_test_has_its_level():
    """Where the truth lies on the edge of the region, a verdict of reproduced is wrong: 2.5%."""
    rng = np.random.default_rng(1)
    trials = 4000
    wrong = sum(
        of_seeds("x", rng.normal(0, 1, 4), 0, relation=">=").verdict == REPRODUCED
        for _ in range(trials)
    )
    # Four standard errors of a share of 2.5%.
    assert abs(wrong / trials - 0.025) < 4 * math.sqrt(0.025 * 0.975 / trials)


def test_differences_are_of_the_same_seed():
    assert difference({0: 1.0, 1: 2.0}, {0: 0.5, 1: 0.5}) == [0.5, 1.5]
    missing = difference({0: 1.0, 1: 2.0}, {0: 0.5})
    assert missing[0] == 0.5 and math.isnan(missing[1])


def test_expectations_in_words():
    assert of_seeds("x", [1.0], -0.5, 0.07).expectation() == "-0.5 ± 0.07"
    assert of_seeds("x", [1.0], 1.3, relation=">=").expectation() == "≥ 1.3"
    assert of_seeds("x", [1.0]).expectation() == ""
