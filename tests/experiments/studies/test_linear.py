"""The linear VAE that studies share, against points that sample it exactly and against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies import linear
from tests.vae.exact import STATS, cubature
from vae import elbo, objectives
from vae.hparams import HParams

BETA, ETA2, LATENTS = 2.0, 0.3, 6
OF = linear.spec((8,), LATENTS)


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


def parameters(seed=0, of=OF):
    """No leaf at its neutral start; one variance for all x."""
    params = jax.tree.map(lambda a: a[0], linear.start(of, [seed]))
    rng = np.random.default_rng(seed)
    moved = jax.tree.map(lambda a: a + jnp.asarray(0.3 * rng.normal(size=a.shape)), params)
    return linear.one_variance(moved)


@pytest.mark.parametrize("likelihood", ["gaussian", "gaussian_shared"])
def test_terms_and_their_gradients_are_exact(likelihood):
    of = linear.spec((8,), LATENTS, likelihood)
    params, x = parameters(1, of), jnp.asarray(np.random.default_rng(2).normal(size=(7, 8)))
    noise = jnp.asarray(cubature(LATENTS))

    def exact(params):
        means = linear.means(of, params, x, ETA2)
        return means["distortion"] + BETA * means["rate"]

    def sampled(params):
        hparams = HParams(sigma=jnp.sqrt(ETA2))

        def one(x):
            params_of = linear.one_variance(params)
            terms = elbo.terms(of, params_of, STATS, hparams, x, noise, False)[0]
            metrics = objectives.metrics(terms)
            return metrics["distortion"] + BETA * metrics["rate"]

        return jnp.mean(jax.vmap(one)(x))

    (value, grads), (expected, expected_grads) = (
        jax.jit(jax.value_and_grad(f))(params) for f in (exact, sampled)
    )
    assert float(value) == pytest.approx(float(expected), rel=1e-12)
    # Sums of some hundred numbers of size 10.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), grads, expected_grads)
    assert np.abs(grads["decoder"]["output"]["kernel"]).max() > 0.1
    assert not np.any(grads["encoder"]["scale"]["kernel"])


def test_points_have_the_variances():
    x = linear.points()
    np.testing.assert_allclose(np.cov(x.T, ddof=0), np.diag(linear.VARIANCES), atol=1e-15)


def test_start_is_the_library_s_and_one_variance():
    starts = linear.start(OF, [0, 3])
    kernels = starts["encoder"]["mean"]["kernel"]
    assert kernels.shape == (2, 8, LATENTS) and kernels.dtype == jnp.float64
    assert not np.array_equal(kernels[0], kernels[1])
    # Glorot's uniform: nothing beyond, and near to its end.
    end = np.sqrt(6 / (8 + LATENTS))
    assert 0.8 * end < np.abs(kernels).max() < end
    assert not np.any(starts["encoder"]["scale"]["kernel"])


@pytest.mark.parametrize(("beta", "eta2"), [(1.0, 0.3), (2.0, 0.3), (5.0, 1.0)])
def test_the_optimum_against_hand_made_parameters(beta, eta2):
    level = beta * eta2
    kept = np.maximum(linear.VARIANCES - level, 0)[:LATENTS]
    params = jax.tree.map(jnp.zeros_like, parameters())
    encoder, decoder = np.zeros((8, LATENTS)), np.zeros((LATENTS, 8))
    np.fill_diagonal(encoder, np.sqrt(kept) / linear.VARIANCES[:LATENTS])
    np.fill_diagonal(decoder, np.sqrt(kept))
    params["encoder"]["mean"]["kernel"] = jnp.asarray(encoder)
    logvar = np.log(np.minimum(1, level / linear.VARIANCES))[:LATENTS]
    params["encoder"]["scale"]["bias"] = jnp.asarray(logvar)
    params["decoder"]["output"]["kernel"] = jnp.asarray(decoder)
    x, of = jnp.asarray(linear.points()), linear.optimum(beta, eta2)

    @jax.jit
    def seen(params):
        def loss(params):
            means = linear.means(OF, params, x, eta2)
            return means["distortion"] + beta * means["rate"], means

        grads, means = jax.grad(loss, has_aux=True)(params)
        error = linear.squared_error(means["distortion"], 8, eta2)
        units = linear.active_units(OF, params, x)
        return grads, means["rate"], error, units, linear.posterior_means(OF, params, x)

    grads, rate, error, units, posterior_means = seen(params)
    assert float(rate) == pytest.approx(of.rate, abs=1e-12)
    assert float(error) == pytest.approx(of.error)
    assert int(units) == of.active_units
    np.testing.assert_allclose(posterior_means, x @ encoder, atol=1e-14)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) < 1e-12


def test_a_mode_at_the_level_is_neither_kept_nor_counted():
    of = linear.optimum(1.0, 0.5)
    assert of.active_units == 3
    assert of.rate == pytest.approx(0.5 * np.log(8 * 4 * 2))
    assert of.error == pytest.approx(4 * 0.5 + 0.25 + 0.1 + 0.05 + 0.02)


def test_descent_of_a_parabola():
    ended = linear.descend(lambda p: jnp.sum(jnp.square(p["a"])), {"a": jnp.ones(2)}, 0.1, 3)
    np.testing.assert_allclose(ended["a"], 0.8**3)
