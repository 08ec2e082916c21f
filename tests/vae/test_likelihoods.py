import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae.likelihoods import LIKELIHOODS

NAMES = sorted(LIKELIHOODS)


def test_the_names_are_those_of_the_config():
    assert NAMES == [
        "bernoulli",
        "gaussian",
        "gaussian_optimal",
        "gaussian_pixel",
        "gaussian_shared",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_samples_have_the_mean_and_the_variance(name):
    likelihood, n = LIKELIHOODS[name], 50_000
    output = jnp.float32([-2.0, 0.3, 1.5])
    logvar = None
    if name == "gaussian_pixel":
        logvar = jnp.float32([-1.0, 0.0, 1.0])
    elif name != "bernoulli":
        logvar = jnp.float32(-0.7)
    keys = jax.random.split(jax.random.key(0), n)
    x = jax.jit(jax.vmap(lambda key: likelihood.sample(key, output, logvar)))(keys)
    assert x.dtype == output.dtype
    x, mean = np.float64(x), np.float64(likelihood.mean(output))
    variance = mean * (1 - mean) if logvar is None else np.exp(np.float64(logvar)) * np.ones(3)
    # Standard errors of the two estimates; of the second from the fourth moment.
    assert np.all(np.abs(x.mean(0) - mean) < 5 * np.sqrt(variance / n))
    squares = (x - mean) ** 2
    assert np.all(np.abs(squares.mean(0) - variance) < 5 * squares.std(0) / np.sqrt(n))
    low, high = likelihood.support
    assert low <= x.min() and x.max() <= high


@pytest.mark.parametrize("name", NAMES)
def test_log_prob_is_the_density_of_the_samples(name):
    # Σ_k w_k f(x_k) = ∫ p(x) dx = 1 over one dimension: the constants are there.
    likelihood = LIKELIHOODS[name]
    if name == "bernoulli":
        grid, weight, logvar = jnp.float32([0, 1]), 1.0, None
    else:
        grid = jnp.linspace(-10, 10, 4001)
        weight, logvar = 20 / 4000, jnp.float32(-0.5)
    log_prob = jax.vmap(lambda x: likelihood.log_prob(x[None], jnp.float32([0.4]), logvar))(grid)
    assert float(jnp.exp(log_prob).sum()) * weight == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_bias_gives_the_mean(name):
    likelihood = LIKELIHOODS[name]
    mean = jnp.float32([0.001, 0.2, 0.5, 0.999])
    np.testing.assert_allclose(likelihood.mean(likelihood.bias(mean)), mean, rtol=1e-5)


def test_a_pixel_that_is_always_black_stays_possible():
    likelihood = LIKELIHOODS["bernoulli"]
    ends = likelihood.mean(likelihood.bias(jnp.float32([0, 1])))
    np.testing.assert_allclose(ends, [5e-5, 1 - 5e-5], rtol=1e-5)
