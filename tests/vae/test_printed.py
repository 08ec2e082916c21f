"""The printed losses: their formulas, and that their gradients are what the docstring says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from vae import distributions, elbo, model, objectives, printed
from vae.hparams import HParams
from vae.likelihoods import LIKELIHOODS
from vae.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("x64")


def vectors(seed=0, shape=(5,), scale=2.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape))


class TestLogSoftmax:
    def test_it_is_the_difference_written_out(self):
        m = vectors()
        z = printed.squashed(m)
        expected = np.sum(scipy.special.log_softmax(z) - scipy.special.log_softmax(m))
        assert printed.log_softmax_difference(m, z) == pytest.approx(expected, rel=1e-12)
        assert np.all((z > 0) & (z < 1))

    def test_its_gradient_is_the_one_of_the_docstring(self):
        m = vectors(1)
        z = scipy.special.expit(m)
        slope = z * (1 - z)
        d = len(m)
        softmax = scipy.special.softmax
        expected = (1 - d * softmax(z)) * slope - (1 - d * softmax(m))
        found = jax.grad(lambda m: printed.log_softmax_difference(m, printed.squashed(m)))(m)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)

    def test_it_does_not_pull_to_the_prior(self):
        # Equal codes, however far from the prior's mean: no gradient, where a KL's is m.
        for where in (0.0, 3.0, -7.0):
            m = jnp.full(4, where)
            gradient = jax.grad(lambda m: printed.log_softmax_difference(m, printed.squashed(m)))(m)
            np.testing.assert_allclose(gradient, 0, atol=1e-12)
            kl = jax.grad(lambda m: distributions.kl_standard_normal(m, jnp.zeros(4)).sum())(m)
            np.testing.assert_allclose(kl, where, atol=1e-12)

    def test_near_zero_it_is_a_kl_without_the_mean(self):
        m = vectors(7, scale=1e-3)
        gradient = jax.grad(lambda m: printed.log_softmax_difference(m, printed.squashed(m)))(m)
        # The next order is |m|² = 1e-6 of 1e-3.
        np.testing.assert_allclose(gradient, 15 / 16 * (m - m.mean()), atol=5e-6)

    def test_it_is_bounded_below_one_way_round_alone(self):
        # Along (t, −t) the softmax of m takes 2t from Σ log softmax(m); that of z stays bounded.
        for t in (10.0, 100.0, 1000.0):
            m = jnp.array([t, -t])
            value = printed.log_softmax_difference(m, printed.squashed(m))
            assert value == pytest.approx(2 * t, abs=2.0)


class TestTied:
    def test_it_is_the_kl_of_the_gaussian_that_nobody_draws_from(self):
        h = vectors(2)
        expected = distributions.kl_standard_normal(h, h).sum()
        assert printed.tied_kl(h) == pytest.approx(float(expected), rel=1e-12)

    def test_the_code_knows_neither_scale_nor_place_of_the_head(self):
        params, stats = jax.tree.map(lambda a: a.astype(float), printed.init_norm(3))
        rest = stats["norm"]

        def code(head):
            one = jax.vmap(
                lambda h: printed.normalized(params, model.Posterior(h, rest=rest), True),
                axis_name="batch",
            )
            return one(head)

        h = vectors(3, (16, 3), 5.0)
        # But for EPSILON beside variances of 25 and more, whose share is below 1e-6.
        np.testing.assert_allclose(code(3 * h + 7), code(h), atol=1e-5)
        np.testing.assert_allclose(code(h).mean(0), 0, atol=1e-12)
        np.testing.assert_allclose(code(h).std(0), 1, atol=1e-6)

    def test_running_statistics_come_to_those_of_the_batch(self):
        _, stats = jax.tree.map(lambda a: a.astype(float), printed.init_norm(3))
        h = vectors(4, (16, 3))
        one = jax.vmap(
            lambda h, stats: printed.update_norm(model.Posterior(h), stats),
            (0, None),
            None,
            axis_name="batch",
        )
        for _ in range(200):  # 0.9^200 is below 1e-9
            stats = one(h, stats)
        np.testing.assert_allclose(stats["norm"]["mean"], np.mean(h, 0), atol=1e-8)
        np.testing.assert_allclose(stats["norm"]["var"], np.var(h, 0), atol=1e-8)


class TestOutput:
    @pytest.mark.parametrize("likelihood", ["gaussian", "laplace_shared", "student_pixel"])
    def test_a_sigmoid_bounds_the_location(self, likelihood):
        plain = ModelSpec((6,), 2, depth=1, width=5, likelihood=likelihood)
        bounded = ModelSpec((6,), 2, depth=1, width=5, likelihood=likelihood, output="sigmoid")
        params, stats = model.init(plain, HParams(), jax.random.key(0), jnp.zeros(6))
        z = jnp.float32(vectors(5, (3, 2), 4.0))

        def mean(spec):
            decoded, _ = model.decode(spec, params, stats, HParams(), z, False)
            return decoded.each(LIKELIHOODS[likelihood].mean)

        expected = scipy.special.expit(np.float64(mean(plain)))
        np.testing.assert_allclose(mean(bounded), expected, rtol=1e-6)

    def test_the_mean_image_is_where_it_starts(self):
        spec = ModelSpec(
            (6,), 2, depth=0, likelihood="gaussian", output="sigmoid", output_bias="data_mean"
        )
        mean = jnp.linspace(0.05, 0.95, 6, dtype=jnp.float32)
        params, stats = model.init(spec, HParams(), jax.random.key(0), mean)
        zero = jnp.zeros((1, 2), jnp.float32)
        decoded, _ = model.decode(spec, params, stats, HParams(), zero, False)
        np.testing.assert_allclose(decoded.heads["output"][0], mean, rtol=1e-5)


@pytest.mark.parametrize("latent_dim", [2, 20])
def test_pixel_means_are_sums_with_another_sigma_and_beta(latent_dim):
    """(1/D)|x − x̂|² + (1/d) Σ KL_j is the elbo's loss at σ² = D/2, β = 1/d, but for a constant."""
    d_x = 784
    spec = ModelSpec((d_x,), latent_dim, depth=0, likelihood="gaussian", output="sigmoid")
    hparams = HParams(sigma=np.sqrt(d_x / 2))
    params, stats = model.init(spec, hparams, jax.random.key(0), jnp.zeros(d_x))
    x = jnp.float32(np.random.default_rng(0).uniform(size=d_x))
    noise = jnp.float32(vectors(6, (1, latent_dim), 1.0))

    @jax.jit
    def both(params):
        def printed_loss(params):
            t, _ = elbo.terms(spec, params, stats, hparams, x, noise, False)
            decoded, _ = model.decode(spec, params, stats, hparams, t.z, False)
            error = jnp.square(decoded.heads["output"][0] - x)
            return jnp.mean(error) + jnp.mean(t.kl)

        def bound(params):
            t, _ = elbo.terms(spec, params, stats, hparams, x, noise, False)
            return objectives.distortion(t) + jnp.sum(t.kl) / latent_dim

        return jax.grad(printed_loss)(params), jax.grad(bound)(params)

    one, other = both(params)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        # float32: rounding in sums of a few hundred terms.
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)
