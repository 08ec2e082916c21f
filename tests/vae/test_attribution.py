"""Attributions: exact where they must be, complete, and in agreement with Shapley's values."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae import attribution

pytestmark = pytest.mark.usefixtures("x64")


def vector(n=6, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=n))


def smooth(x):
    weights = vector(x.size, 5)
    return jnp.tanh(jnp.dot(weights, x)) + jnp.sum(x**3) + x[0] * x[1]


def kinked(x):
    matrix = jnp.asarray(np.random.default_rng(3).normal(size=(20, x.size)))
    return jnp.sum(jax.nn.relu(matrix @ x + vector(20, 4)))


def test_of_a_linear_score_all_are_its_parts():
    w, x, zero = vector(6, 1), vector(6, 2), jnp.zeros(6)

    def score(x):
        return jnp.dot(w, x) + 3.0

    for found in (
        attribution.gradient_times_input(score, x),
        attribution.integrated_gradients(score, x, zero, steps=2),
        attribution.shapley_values(score, x, zero),
    ):
        np.testing.assert_allclose(found, w * x, rtol=1e-10)


def test_integrated_gradients_are_complete():
    x, baseline = vector(6, 2), vector(6, 7)
    found = attribution.integrated_gradients(smooth, x, baseline)
    assert attribution.incompleteness(smooth, x, baseline, found) == pytest.approx(0, abs=1e-9)
    # Gradient × input is not.
    plain = attribution.gradient_times_input(smooth, x)
    assert abs(attribution.incompleteness(smooth, x, baseline, plain)) > 0.1


@pytest.mark.parametrize("steps", [16, 64, 1024])
def test_kinks_cost_no_more_than_a_step_each(steps):
    # Where the slope along the path jumps by J between two nodes, the rule is off by J times the
    # largest weight at most, which is below π/(2·steps).
    x, baseline = vector(6, 2), vector(6, 7)
    matrix = np.random.default_rng(3).normal(size=(20, 6))
    bound = np.abs(matrix @ np.asarray(x - baseline)).sum() * np.pi / (2 * steps)
    found = attribution.integrated_gradients(kinked, x, baseline, steps)
    assert abs(attribution.incompleteness(kinked, x, baseline, found)) < bound


def test_of_a_cubic_by_hand():
    # ∫ 3(tx)² dt · x = x³, and of a product of two each has half: a straight path is symmetric.
    x = jnp.array([2.0, 3.0])
    zero = jnp.zeros(2)
    found = attribution.integrated_gradients(lambda x: x[0] ** 3 + x[0] * x[1], x, zero, 4)
    np.testing.assert_allclose(found, [8 + 3, 3], rtol=1e-12)


def test_shapley_values_are_means_over_orders():
    x, baseline = vector(4, 2), vector(4, 7)
    expected = np.zeros(4)
    for order in itertools.permutations(range(4)):
        now = baseline
        for i in order:
            new = now.at[i].set(x[i])
            expected[i] += float(smooth(new) - smooth(now)) / math.factorial(4)
            now = new
    found = attribution.shapley_values(smooth, x, baseline)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_an_image_gets_an_image():
    image = vector(9, 1).reshape(3, 3, 1)
    zero = jnp.zeros_like(image)
    found = attribution.integrated_gradients(lambda x: jnp.sum(x**2), image, zero)
    assert found.shape == image.shape
    np.testing.assert_allclose(found, image**2, rtol=1e-10)


def test_it_agrees_with_shap():
    """KernelSHAP over all sets is exact; where the package is installed."""
    shap = pytest.importorskip("shap", reason="needs shap: pip install -e '.[compare]'")
    x, baseline = vector(5, 2), vector(5, 7)
    many = jax.jit(jax.vmap(smooth))
    explainer = shap.KernelExplainer(lambda a: np.asarray(many(a)), np.asarray(baseline)[None])
    theirs = explainer.shap_values(np.asarray(x)[None], nsamples=2**5, silent=True)
    ours = attribution.shapley_values(smooth, x, baseline)
    np.testing.assert_allclose(np.ravel(theirs), ours, atol=1e-6)
