import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from vae import distributions


def general_kl(mean_q, var_q, mean_p, var_p):
    """Oracle 1: ½ Σ [ln(σ_p²/σ_q²) + (σ_q² + Δμ²)/σ_p² − 1], each dimension, in float64."""
    return 0.5 * (np.log(var_p / var_q) + (var_q + (mean_q - mean_p) ** 2) / var_p - 1)


def test_kl_is_the_general_formula():
    rng = np.random.default_rng(0)
    mean, logvar = rng.normal(size=(2, 1000)) * 2
    expected = general_kl(mean, np.exp(logvar), 0.0, 1.0)
    # In float64 all but the last few digits; in float32, 1e-6 of the largest of the three terms
    # that are added.
    with jax.enable_x64(True):
        kl = distributions.kl_standard_normal(jnp.asarray(mean), jnp.asarray(logvar))
        assert kl.dtype == jnp.float64
        np.testing.assert_allclose(kl, expected, rtol=1e-10, atol=1e-15)
    single = distributions.kl_standard_normal(jnp.float32(mean), jnp.float32(logvar))
    largest = np.maximum(mean**2, np.maximum(np.abs(logvar), np.exp(logvar)))
    assert np.all(np.abs(single - expected) <= 1e-6 * largest)


def test_kl_is_what_monte_carlo_says():
    mean, logvar, n = np.array([0.7, -1.5, 0.0]), np.array([-1.0, 0.8, -3.0]), 200_000
    noise = np.random.default_rng(1).normal(size=(n, 3))
    z = mean + np.exp(0.5 * logvar) * noise
    draws = -0.5 * noise**2 - 0.5 * logvar + 0.5 * z**2  # log q(z) − log p(z)
    error = draws.mean(0) - distributions.kl_standard_normal(jnp.float32(mean), jnp.float32(logvar))
    assert np.all(np.abs(error) < 5 * draws.std(0) / np.sqrt(n))


@pytest.mark.parametrize("logvar", [0.1, -0.1, 1e-2, -1e-2, 1e-3, -1e-3, 1e-4])
def test_kl_keeps_its_digits_near_the_prior(logvar):
    value = np.float64(np.float32(logvar))
    exact = 0.5 * (np.expm1(value) - value)
    kl = distributions.kl_standard_normal(jnp.zeros(1), jnp.float32([logvar]))[0]
    # Two roundings of numbers of the size of logvar. exp(v) − 1 − v instead rounds at the size of
    # 1 and is off by up to 6e-8, more than this allows.
    assert abs(kl - exact) <= 2.0**-23 * abs(value)
    assert kl >= 0


def test_kl_of_the_prior_is_zero_with_zero_gradient():
    def kl(mean, logvar):
        return distributions.kl_standard_normal(mean, logvar).sum()

    value, gradients = jax.value_and_grad(kl, (0, 1))(jnp.zeros(3), jnp.zeros(3))
    assert value == 0 and not np.any(gradients)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 2)])
def test_normal_is_scipys(shape):
    x, mean, logvar = np.random.default_rng(2).normal(size=(3, *shape))
    with jax.enable_x64(True):
        for v in (logvar, logvar.flat[0]):  # per dimension, or one for all
            value = distributions.normal_log_prob(*map(jnp.asarray, (x, mean, v)))
            expected = scipy.stats.norm.logpdf(x, mean, np.exp(0.5 * v)).sum()
            assert value.dtype == jnp.float64 and value.shape == ()
            assert float(value) == pytest.approx(expected, rel=1e-13)


def test_bernoulli_is_scipys():
    rng = np.random.default_rng(3)
    logits, x = rng.normal(size=20) * 5, rng.integers(0, 2, 20)
    with jax.enable_x64(True):
        value = distributions.bernoulli_log_prob(jnp.asarray(x, float), jnp.asarray(logits))
    expected = scipy.stats.bernoulli.logpmf(x, 1 / (1 + np.exp(-logits))).sum()
    assert float(value) == pytest.approx(expected, rel=1e-12)


def test_bernoulli_sums_to_one_over_all_images():
    n = 8
    images = jnp.asarray(list(itertools.product([0.0, 1.0], repeat=n)))
    logits = jnp.linspace(-6.0, 4.0, n)
    log_probs = jax.vmap(distributions.bernoulli_log_prob, (0, None))(images, logits)
    # Each log-probability has an error of some ulps of 20, which is its largest size.
    assert float(jax.nn.logsumexp(log_probs)) == pytest.approx(0, abs=1e-5)


def test_bernoulli_of_a_grey_value_is_the_cross_entropy():
    x, logits = jnp.float32([0.25, 0.9]), jnp.float32([1.5, -0.5])
    p = 1 / (1 + np.exp(-np.float64(logits)))
    expected = np.sum(np.float64(x) * np.log(p) + (1 - np.float64(x)) * np.log(1 - p))
    assert float(distributions.bernoulli_log_prob(x, logits)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("logit", [-1e4, -100.0, 100.0, 1e4])
@pytest.mark.parametrize("x", [0.0, 1.0])
def test_bernoulli_is_finite_at_extreme_logits(x, logit):
    value, slope = jax.value_and_grad(distributions.bernoulli_log_prob, 1)(
        jnp.float32([x]), jnp.float32([logit])
    )
    right = (x == 1) == (logit > 0)
    assert value == (0 if right else -abs(logit))
    assert slope[0] == (0 if right else -np.sign(logit))


def test_bernoulli_has_its_textbook_derivatives():
    # Against the derivatives on paper, twice over, and at 0, where |l| has none.
    x, logits = jnp.array([0.0, 1.0, 0.3, 1.0]), jnp.array([0.0, 2.0, -1.5, -30.0])
    with jax.enable_x64(True):
        x, logits = x.astype(float), logits.astype(float)
        first = jax.grad(distributions.bernoulli_log_prob, 1)(x, logits)
        by_x = jax.grad(distributions.bernoulli_log_prob, 0)(x, logits)
        second = jax.hessian(distributions.bernoulli_log_prob, 1)(x, logits)
        p = scipy.special.expit(np.asarray(logits))
        np.testing.assert_allclose(first, x - p, rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(by_x, logits, rtol=0)
        np.testing.assert_allclose(second, np.diag(-p * (1 - p)), rtol=1e-12)


def test_bernoulli_in_float32_is_that_of_float64():
    # log(1 + e) in place of log1p(e): 6e-8 nats a pixel, and the sum's own rounding.
    rng = np.random.default_rng(5)
    logits, x = np.float32(rng.normal(size=784) * 8), np.float32(rng.integers(0, 2, 784))
    exact = scipy.stats.bernoulli.logpmf(x, scipy.special.expit(np.float64(logits))).sum()
    value = float(distributions.bernoulli_log_prob(jnp.asarray(x), jnp.asarray(logits)))
    # The sum: at most log2(784) roundings of each partial sum where it is pairwise.
    rounding = 10 * float(np.spacing(np.float32(-exact)))
    assert value == pytest.approx(exact, abs=784 * 6e-8 + rounding)
