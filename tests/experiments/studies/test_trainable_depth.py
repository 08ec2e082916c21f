"""Mean-field theory of tanh nets by quadrature, small nets, and verdicts on made-up cases."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies import mean_field
from experiments.studies import trainable_depth as study
from experiments.studies.cases import Case, Found
from vae import data

SCALES = np.array([mean_field.depth_scale(w, study.BIAS) for w in study.WEIGHTS])


def test_the_published_fixed_points():
    for bias, weights in study.CRITICAL.items():
        assert mean_field.critical_weights(bias) == pytest.approx(weights, abs=6e-5)
    for weights, expected in study.ELSEWHERE.items():
        found = (
            mean_field.fixed_q(weights, 0.05),
            mean_field.chi(weights, 0.05),
            mean_field.fixed_c(weights, 0.05),
            mean_field.depth_scale(weights, 0.05),
        )
        assert found == pytest.approx(expected, abs=0.006)


def test_quadrature_against_draws():
    rng = np.random.default_rng(0)
    n, q, c, weights, bias = 400_000, 1.3, 0.4, 2.0, 0.05
    z, other = rng.normal(size=(2, n))
    u, v = math.sqrt(q) * z, math.sqrt(q) * (c * z + math.sqrt(1 - c * c) * other)
    products = (weights * np.tanh(u) * np.tanh(v) + bias) / q
    error = products.std() / math.sqrt(n)
    assert mean_field.next_c(c, q, weights, bias) == pytest.approx(products.mean(), abs=4 * error)


def test_correlations_decay_by_the_depth_scale():
    for weights in study.ELSEWHERE:
        size, (near, far) = study.starts(weights)
        curves = [mean_field.curve(weights, 0.05, size, start, 80) for start in (near, far)]
        gap = np.log(curves[0] - curves[1])
        scale = mean_field.depth_scale(weights, 0.05)
        assert -1 / (gap[60] - gap[59]) == pytest.approx(scale, rel=0.01)


def test_small_nets():
    """The first layer has q* and the correlations asked for; gradients keep to χ."""
    weights, nets, width = 2.5, 24, 96
    size, starts = study.starts(weights)
    keys = jax.random.split(jax.random.key(0), nets)
    found = study._measured(
        study._spec(width, 6, width),
        keys,
        jnp.float32(weights),
        jnp.float32(size),
        jnp.float32(starts),
    )
    found = {name: np.asarray(values).mean(axis=0) for name, values in found.items()}
    q = mean_field.fixed_q(weights, study.BIAS)
    # Means over 24 nets of 96 units and four inputs, of squares: √(2/n) of each net, and as much
    # again from the inputs' own lengths.
    error = 2 * math.sqrt(2 / (nets * width))
    assert found["q"][0] == pytest.approx(q, rel=4 * error)
    for name, start in zip(("near", "far"), starts, strict=True):
        expected = mean_field.curve(weights, study.BIAS, size, start, 6)
        np.testing.assert_allclose(found[name], expected, atol=4 / math.sqrt(nets * width) + 0.02)
    factor = (found["gradient"][0] / found["gradient"][-1]) ** (1 / 5)
    expected = mean_field.chi(weights, study.BIAS)
    assert factor == pytest.approx(expected, rel=4 * math.sqrt(5 / (5 * nets * width)) + 5 / width)


def test_a_shallow_net_trains():
    digits = data.load("digits", scaling="standardize")
    x = digits.train[:400].reshape(400, -1).astype(np.float32) / np.float32(6)
    keys = jax.random.split(jax.random.key(0), 2)
    accuracy = study._trained(
        study._spec(64, 2, 32),
        keys,
        np.float32([1.8, 1.8]),
        np.float32([0.05, 0.0]),
        x,
        digits.train_labels[:400],
    )
    assert accuracy[0] > 0.8 and accuracy[1] < 0.4  # the second stays as it was


def test_trained_depth():
    depths = np.array([10, 20, 40])
    accuracy = np.array([[0.9, 0.9, 0.9, 0.3], [0.9, 0.9, 0.55, 0.3], [0.9, 0.2, 0.35, 0.9]])
    assert study.trained_depth(depths, accuracy) == pytest.approx([40, 30, 20, 0])
    two = np.stack([accuracy, accuracy], axis=1)
    assert study.trained_depth(depths, two).shape == (2, 4)


def test_rank_correlation():
    assert study.rank_correlation(np.array([1, 2, 3, 9]), np.array([1, 4, 9, 10])) == 1
    assert study.rank_correlation(np.array([1, 2, 3]), np.array([3, 2, 1])) == -1
    assert study.rank_correlation(np.array([1, 1, 1]), np.array([3, 2, 1])) == 0
    # Ties have their mean rank: (1, 2.5, 2.5) with (1, 2, 3).
    ties = study.rank_correlation(np.array([1, 2, 2]), np.array([1, 2, 3]))
    assert ties == pytest.approx(math.sqrt(0.75))


def test_agreement():
    seen = np.array([True, True, True, False])
    assert study.agreement(np.array([True, True, True, True]), seen) == 0.5
    assert study.agreement(np.array([True, True, False, False]), seen) == pytest.approx(5 / 6)
    assert math.isnan(study.agreement(seen, np.ones(4, bool)))


def made_up(right):
    """Nets like wide nets that train up to 6ξ_c; or nets with χ² for χ that train only beyond."""
    rng = np.random.default_rng(0)
    cases = []
    for arguments in study.cases("quick"):
        seeds = arguments["seeds"]
        if arguments["what"] == "train":
            trains = arguments["depth"] <= 6 * SCALES
            trains = np.broadcast_to(trains == right, (seeds, len(SCALES)))
            values = {"accuracy": np.where(trains, 0.95, 0.1)}
        else:
            weights = arguments["weights"]
            size, starts = study.starts(weights)
            noise = 1 + 1e-5 * rng.normal(size=(seeds, 1))
            power = 1 if right else 2
            chi = mean_field.chi(weights, study.BIAS) ** power
            q = mean_field.fixed_q(weights, study.BIAS) * (1 if right else 1.1)
            values = {
                "q": q * noise * np.ones(study.NET_DEPTH),
                "gradient": (chi * noise) ** np.arange(study.NET_DEPTH)[::-1],
            }
            for name, start in zip(("near", "far"), starts, strict=True):
                curve = mean_field.curve(weights, study.BIAS, size, start, 60)
                stop = study.NET_DEPTH if right else 2 * study.NET_DEPTH
                values[name] = noise * curve[: stop : 1 if right else 2] * (1 if right else 0.9)
        cases.append(Case(arguments, values, 1.0))
    return Found("quick", cases=tuple(cases))


def test_verdicts():
    rows = study.measure(made_up(right=True))
    assert len(rows) == 4 + 2 * 8 + 3
    assert {row.verdict for row in rows if row.asked} == {"reproduced"}
    wrong = [row for row in study.measure(made_up(right=False)) if row.asked]
    of_nets = [row for row in wrong if row.name.startswith(("nets", "depth"))]
    assert len(of_nets) == 2 * 4 + 2
    assert {row.verdict for row in of_nets} == {"not reproduced"}


def test_figure():
    assert len(study.figure(made_up(right=True)).axes) == 4  # with a colour bar
