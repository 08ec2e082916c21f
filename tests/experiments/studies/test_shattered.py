"""Correlations of gradients: the recursion, small nets, and verdicts on made-up cases."""

import math

import jax
import numpy as np
import pytest

from experiments.studies import shattered as study
from experiments.studies.cases import Case, Found


def test_the_published_correlations():
    expected = [0.5, 0.3016, 0.1046, 0.0337, 0.0055, 0.0009]
    found = [study.correlation("none", depth) for depth in study.DEPTHS]
    assert found == pytest.approx(expected, abs=6e-5)
    assert study.correlation("plain", 1) == study.correlation("scaled", 1) == 0.75


def test_kappas_are_expectations():
    rng = np.random.default_rng(0)
    n = 400_000
    u, other = rng.normal(size=(2, n))
    for c in (0.0, 0.4, 0.9):
        v = c * u + math.sqrt(1 - c * c) * other
        # Shares and means over n draws: errors of .0016 at most.
        assert study.kappa0(c) == pytest.approx(2 * np.mean((u > 0) & (v > 0)), abs=0.007)
        products = 2 * np.maximum(u, 0) * np.maximum(v, 0)
        assert study.kappa1(c) == pytest.approx(products.mean(), abs=4 * products.std() / n**0.5)


@pytest.mark.parametrize("residual, depth", [("none", 2), ("plain", 2), ("scaled", 3)])
def test_small_nets(residual, depth):
    spec = study._spec(residual, depth, 128)
    keys = jax.random.split(jax.random.key(0), 40)
    cosines = np.asarray(study._cosines(spec, keys), np.float64)
    expected = study.correlation(residual, depth)
    error = cosines.std(ddof=1) / math.sqrt(len(cosines))
    # Beside the noise: terms of 1/n.
    assert cosines.mean() == pytest.approx(expected, abs=4 * error + 5 * depth / 128 * expected)


def test_the_limit_of_wide_nets():
    by_width = {str(n): np.array([0.3 + 2 / n, 0.1 - 1 / n]) for n in (128, 256, 512)}
    assert study.wide(by_width) == pytest.approx([0.3, 0.1])
    assert study.wide({"256": np.array([0.3, 0.1])}) == pytest.approx([0.3, 0.1])


def test_a_curve():
    slope = study.run({"what": "curve", "residual": "none", "depth": 1}, None)["slope"]
    assert slope.shape == (study.POINTS,) and np.isfinite(slope).all()
    # One layer: piecewise linear in x, so that along a circle most of it changes little by little.
    steps = np.abs(np.diff(slope))
    assert np.median(steps) < 0.1 * np.std(slope)


def made_up(add, residual_factor=1.0):
    """`add` to all correlations of feed-forward nets, and what finite widths add."""
    rng = np.random.default_rng(0)
    cases = []
    for arguments in study.cases("quick"):
        if arguments["what"] == "curve":
            values = {"slope": rng.normal(size=study.POINTS)}
        else:
            residual = arguments["residual"]
            value = study.correlation(residual, arguments["depth"])
            value = value + add if residual == "none" else value * residual_factor
            noise = 1e-5 * rng.normal(size=arguments["seeds"])
            widths = study.NETS if residual == "none" else {study.RESIDUAL_WIDTH: 1}
            extra = 2.0 if residual == "none" else 0.0
            values = {str(n): value + extra / n + noise for n in widths}
        cases.append(Case(arguments, values, 1.0))
    return Found("quick", cases=tuple(cases))


def test_verdicts():
    rows = study.measure(made_up(0.0))
    assert len(rows) == 18 + 2
    assert [row.verdict for row in rows if row.asked] == ["reproduced"] * (6 + 3 + 3 + 2)
    wrong = study.measure(made_up(0.05, residual_factor=0.5))
    verdicts = {row.name: row.verdict for row in wrong}
    assert {verdicts[row.name] for row in wrong if row.asked} == {"not reproduced"}


def test_figure():
    assert len(study.figure(made_up(0.0)).axes) == 4
