"""The Gaussian toy: gradients by NumPy in float64, closed forms by quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from experiments.studies import gaussian_toy as toys
from vae.data import Transform
from vae.gradients import noise
from vae.gradients.noise import Moments
from vae.hparams import HParams
from vae.loss import draw
from vae.random import example_rngs


def by_hand(estimator, x, a, b, mu, e):
    """Gradients of the mean of the bounds of noise e [M, K, 20], by their formulas."""
    s2 = toys.VARIANCE
    mean = x @ a + b
    z = mean + np.sqrt(s2) * e
    log_w = (
        stats.norm.logpdf(z, mu).sum(-1)
        + stats.norm.logpdf(x, z).sum(-1)
        - stats.norm.logpdf(z, mean, np.sqrt(s2)).sum(-1)
    )
    weight = np.exp(log_w - log_w.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    model = mu - z + x - z
    # Of ln w through z and q's mean together, where ln q does not move; and through z alone.
    path = {"reparameterization": model}.get(estimator, model + (z - mean) / s2)
    power = 2 if estimator == "dreg" else 1
    in_b = np.einsum("mk,mkd->d", weight**power, path) / len(e)
    in_mu = np.einsum("mk,mkd->d", weight, z - mu) / len(e)
    return {"A": np.outer(x, in_b), "b": in_b, "μ": in_mu}


def float64(toy):
    return [np.asarray(toy.parameters[name], np.float64) for name in toys.PARAMETERS]


@pytest.mark.parametrize("estimator", ["reparameterization", "stl", "dreg"])
def test_gradients_of_one_example(estimator):
    toy, rng = toys.draw(3, 5), jax.random.key(1)
    spec, x = toys.spec_of(estimator, samples=4, groups=3), toy.x[2]
    found = jax.jit(lambda rng: toys.gradient(spec, toy, x, rng))(rng)
    (own,) = example_rngs(rng, jnp.zeros(1, jnp.int32))
    e = np.float64(draw(spec, Transform(), HParams(), x, own).noise).reshape(3, 4, toys.DIM)
    expected = by_hand(estimator, np.float64(x), *float64(toy), e)
    for name in toys.PARAMETERS:
        # ln w is about −50, with a rounding of 4e-6 that the weights have as a relative error.
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5 * scale)


def test_a_toy_without_offset_is_at_its_optimum(monkeypatch):
    monkeypatch.setattr(toys, "OFFSET", 0.0)
    toy = toys.draw(0, 200)
    # In float32, x of up to 5.
    assert np.abs(toys.offsets(toy)).max() < 1e-5
    assert np.abs(toys.evidence_gradient(toy)).max() < 1e-5
    # x − μ of the model has the variance 2: of 4000 numbers, to 2·√(2/4000).
    assert np.var(np.asarray(toy.x) - np.asarray(toy.parameters["μ"])) == pytest.approx(
        2, abs=4 * 2 * np.sqrt(2 / 4000)
    )


def test_moments_are_of_each_example_and_of_their_mean(monkeypatch):
    toy, rng = toys.draw(1, 6), jax.random.key(2)
    specs = {name: toys.spec_of(name, samples=3) for name in ("stl", "dreg")}
    moments = jax.jit(lambda: toys.moments(specs, toy, rng, draws=10))
    found = jax.tree.map(np.asarray, moments())
    # Four examples at a time, and then two; the programs may round differently, ln w by 4e-6.
    monkeypatch.setattr(toys, "_AT_ONCE", 12)
    again = jax.jit(lambda: toys.moments(specs, toy, rng, draws=10))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), found, again)
    whole = toys.only("b", toys.only("dreg", toys.of_mean(found)))
    own = found.mean["dreg"]["b"], found.m2["dreg"]["b"]
    np.testing.assert_allclose(whole.mean, own[0].mean(0), rtol=1e-5)
    np.testing.assert_allclose(noise.variance(whole), own[1].mean(0) / 9 / 6, rtol=1e-5)


def test_the_variance_of_a_mean():
    # 300 draws of 50 examples, each with a mean and a variance of its own.
    rng = np.random.default_rng(0)
    draws = rng.normal(rng.normal(size=(50, 4)), rng.uniform(1, 3, (50, 4)), (300, 50, 4))
    each = Moments(
        jnp.full(50, 300), jnp.asarray(draws.mean(0), jnp.float32), jnp.asarray(draws.var(0) * 300)
    )
    found = noise.variance(toys.of_mean(each))
    # The variance of 300 means is known to √(2/300) = 8%.
    np.testing.assert_allclose(found, draws.mean(1).var(0, ddof=1), rtol=4 * 0.08)
    assert toys.of_mean(each).count == 300


def test_slopes():
    k = np.array([10.0, 30.0, 100.0])
    values = np.stack([3 * k**-0.5, k**2], axis=1)
    np.testing.assert_allclose(toys.slope(k, values), [-0.5, 2], rtol=1e-12)


class TestClosedForms:
    """In one dimension, against integrals over q = N(Δ, s²) with the posterior N(0, s_p²)."""

    OFFSET = 0.3

    @pytest.fixture(autouse=True)
    def _one_dimension(self, monkeypatch):
        monkeypatch.setattr(toys, "DIM", 1)

    @staticmethod
    def expectation(function, offset):
        """E_q of function(z, w/p(x))."""
        q = stats.norm(offset, np.sqrt(toys.VARIANCE))
        p = stats.norm(0, np.sqrt(toys.POSTERIOR_VARIANCE))

        def integrand(z):
            return q.pdf(z) * function(z, p.pdf(z) / q.pdf(z))

        return integrate.quad(integrand, -10, 10, epsabs=1e-13, epsrel=1e-11)[0]

    @pytest.mark.parametrize("a", [1, 2, 3, 4])
    def test_moments_of_the_weights(self, a):
        value, growth = toys.rho(a, self.OFFSET**2)
        assert value == pytest.approx(self.expectation(lambda z, w: w**a, self.OFFSET), rel=1e-8)
        up = toys.rho(a, self.OFFSET**2 + 1e-5)[0]
        assert growth == pytest.approx(np.log(up / value) / 1e-5, rel=1e-4, abs=1e-12)

    def test_gradient_of_the_bound(self):
        def bound(offset, k):
            mu2, mu3 = (self.expectation(lambda z, w, n=n: (w - 1) ** n, offset) for n in (2, 3))
            return -mu2 / (2 * k) + (mu3 / 3 - 0.75 * mu2**2) / k**2

        for k in (2, 50):
            slope = (bound(self.OFFSET + 1e-4, k) - bound(self.OFFSET - 1e-4, k)) / 2e-4
            found = toys.bound_gradient(np.array([[self.OFFSET]]), k)
            assert found == pytest.approx(slope, rel=1e-5)

    def test_mean_of_stl(self):
        def path(z):
            return -z / toys.POSTERIOR_VARIANCE + (z - self.OFFSET) / toys.VARIANCE

        first = self.expectation(lambda z, w: w * path(z), self.OFFSET)
        second = self.expectation(lambda z, w: w**2 * (path(z) - first), self.OFFSET)
        for k in (2, 50):
            found = toys.stl_mean(np.array([[self.OFFSET]]), k)
            assert found == pytest.approx(first - second / k, rel=1e-6)
