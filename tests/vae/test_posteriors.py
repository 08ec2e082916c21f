"""Every family of posteriors: shapes, densities, the ways of gradients; mostly float64."""

import functools
import math

import jax
import jax.numpy as jnp
import jax.scipy.stats as jstats
import numpy as np
import pytest
import scipy.special
import scipy.stats

from tests.vae.building import COMPILE_FAST
from tests.vae.drawn import (
    FLOWS,
    GAUSSIAN,
    SPECS,
    D,
    flow_of,
    heads_of,
    model_of,
    moments,
    noise_of,
    posterior_of,
    samples_of,
    stats_of,
)
from vae import elbo, model
from vae.family import MODES, Posterior
from vae.hparams import HParams
from vae.posteriors import POINTS, POSTERIORS


class TestShapes:
    @pytest.mark.sampled
    @pytest.mark.parametrize("name", SPECS)
    def test_of_heads_noise_and_draws(self, name):
        spec, family = SPECS[name], POSTERIORS[name]
        latent_size = {"categorical": D * 4, "vq": D * 2}.get(name, D)
        noise_size = {"low_rank": D + 2, "vq": 0, "categorical": D * 4}.get(name, D)
        noise_size = 0 if name in POINTS else noise_size
        assert family.latent_size(spec) == latent_size
        assert family.noise_size(spec) == noise_size
        noise = model.noise(spec, jax.random.key(0), 6)
        assert noise.shape == (6, noise_size)
        heads, stats = heads_of(spec, dtype=np.float32), stats_of(spec, np.float32)
        posterior = family.posterior(spec, heads, stats, HParams())
        assert posterior.mean.shape == (latent_size,)
        has_scale = name in GAUSSIAN + FLOWS
        assert (posterior.logvar.shape if has_scale else posterior.logvar) == (
            (D,) if has_scale else None
        )
        z, log_q = samples_of(spec, heads, noise)
        assert z.shape == (6, latent_size) and log_q.shape == (6,)
        assert family.log_standard(spec, z[0]).shape == ()
        assert family.draw_standard(spec, jax.random.key(0), stats).shape == (latent_size,)
        assert family.location(spec, flow_of(spec, np.float32), posterior).shape == (latent_size,)
        assert (family.kl is None) == (name in FLOWS)
        if family.kl is not None:
            assert family.kl(spec, posterior).shape == (D,)

    @pytest.mark.sampled
    @pytest.mark.parametrize("name", SPECS)
    @pytest.mark.parametrize("train", [True, False])
    def test_of_the_terms_of_a_batch(self, name, train):
        spec = SPECS[name]
        params, stats = model_of(spec, np.float32)
        x = jnp.float32(np.random.default_rng(0).uniform(size=(5, 4)))
        noise = jax.vmap(lambda k: model.noise(spec, k, 2))(jax.random.split(jax.random.key(0), 5))
        one = functools.partial(elbo.terms, spec, params, stats, HParams(), train=train)
        batch = jax.vmap(one, axis_name="batch", out_axes=(0, None))
        terms, new = jax.jit(batch, compiler_options=COMPILE_FAST)(x, noise)
        assert terms.log_px.shape == terms.log_pz.shape == terms.log_qz.shape == (5, 2)
        assert terms.z.shape == (5, 2, POSTERIORS[name].latent_size(spec))
        assert terms.kl.shape == (5, 1 if name in FLOWS else D)
        assert jax.tree.structure(new) == jax.tree.structure(stats)
        values = (terms.log_px, terms.log_pz, terms.z)
        assert all(np.all(np.isfinite(a)) for a in values)
        # A point has no density, and says so; all others have one.
        assert np.all(np.isnan(terms.log_qz)) == np.all(np.isnan(terms.kl)) == (name in POINTS)
        if name not in FLOWS + POINTS + ("categorical",):
            # What an example gets does not depend on the batch, nor on training.
            alone, _ = jax.jit(functools.partial(one, train=False))(x[3], noise[3])
            np.testing.assert_allclose(terms.log_px[3], alone.log_px, rtol=1e-5)
            np.testing.assert_allclose(terms.kl[3], alone.kl, rtol=1e-5, atol=1e-6)


class TestDensities:
    @pytest.mark.parametrize("name", GAUSSIAN)
    @pytest.mark.parametrize("mode", MODES)
    def test_gaussians_are_multivariate_normals(self, name, mode, x64):
        spec = SPECS[name]
        for seed in range(3):
            heads = heads_of(spec, seed)
            z, log_q = samples_of(spec, heads, noise_of(spec, 20), mode)
            mean, covariance = moments(spec, heads)
            expected = scipy.stats.multivariate_normal(mean, covariance).logpdf(z)
            np.testing.assert_allclose(log_q, expected, rtol=1e-10)

    @pytest.mark.parametrize("name", GAUSSIAN)
    def test_a_draw_has_the_mean_and_the_covariance(self, name, x64):
        # z is linear in the noise: z = m + A·noise, Cov[z] = AAᵀ, exactly.
        spec, heads = SPECS[name], heads_of(SPECS[name])
        posterior, family = posterior_of(spec, heads), POSTERIORS[name]

        def draw(noise):
            return family.draw(spec, {}, posterior, noise, HParams(), True)[0]

        zero = jnp.zeros(family.noise_size(spec))
        mean, covariance = moments(spec, heads)
        matrix = np.asarray(jax.jacobian(draw)(zero))
        np.testing.assert_allclose(draw(zero), mean, rtol=1e-12)
        np.testing.assert_allclose(matrix @ matrix.T, covariance, rtol=1e-12)

    @pytest.mark.parametrize("name", FLOWS)
    def test_flows_are_changes_of_variables(self, name, x64):
        # log q(z(ε)) = log N(ε; 0, I) − ln|det ∂z/∂ε|, the Jacobian by central differences of
        # step 1e-5: off by about 1e-10 in its entries.
        spec, heads = SPECS[name], heads_of(SPECS[name])
        noise = np.asarray(noise_of(spec, 6))
        steps = 1e-5 * np.concatenate([np.eye(D), -np.eye(D)])
        around = (noise[:, None] + steps[None]).reshape(-1, D)
        moved = np.asarray(samples_of(spec, heads, jnp.asarray(around))[0]).reshape(-1, 2 * D, D)
        jacobians = (moved[:, :D] - moved[:, D:]) / 2e-5
        log_det = np.linalg.slogdet(jacobians)[1]
        expected = scipy.stats.norm.logpdf(noise).sum(1) - log_det
        for mode in POSTERIORS[name].modes:
            _, log_q = samples_of(spec, heads, jnp.asarray(noise), mode)
            np.testing.assert_allclose(log_q, expected, atol=1e-7)
        # The flow does something: its volume is not that of its base.
        base = 0.5 * np.asarray(heads["scale"]).sum()
        assert np.all(np.abs(log_det - base) > 1e-2)

    def test_of_a_flow_the_context_counts(self, x64):
        for name in FLOWS:
            spec, heads = SPECS[name], heads_of(SPECS[name])
            other = {**heads, "context": heads["context"] + 1}
            first, second = (samples_of(spec, h, noise_of(spec, 1))[0] for h in (heads, other))
            assert np.max(np.abs(first - second)) > 1e-2

    def test_the_location_of_a_flow_is_where_the_mean_flows(self, x64):
        for name in FLOWS:
            spec, heads = SPECS[name], heads_of(SPECS[name])
            still, _ = samples_of(spec, heads, jnp.zeros((1, D)))
            flow, posterior = flow_of(spec), posterior_of(spec, heads)
            where = POSTERIORS[name].location(spec, flow, posterior)
            np.testing.assert_allclose(where, still[0], rtol=1e-12)
            assert np.max(np.abs(where - heads["mean"])) > 1e-2

    def test_categorical_is_the_probability_of_the_codes(self, x64):
        spec = SPECS["categorical"]
        heads = heads_of(spec)
        z, log_q = samples_of(spec, heads, noise_of(spec, 50))
        codes = np.asarray(z).reshape(50, D, 4)
        assert np.all(np.sort(codes, axis=-1) == [0, 0, 0, 1])
        p = scipy.special.softmax(np.asarray(heads["logits"]).reshape(D, 4), axis=-1)
        expected = np.log(p[np.arange(D), codes.argmax(-1)]).sum(-1)
        np.testing.assert_allclose(log_q, expected, rtol=1e-12)
        np.testing.assert_allclose(posterior_of(spec, heads).mean, p.reshape(-1), rtol=1e-12)


def reparameterized(spec, heads, noise):
    """(z, mean, covariance) as functions of the heads, without the library."""
    std = jnp.exp(0.5 * heads["scale"])
    if spec.posterior == "full":
        below = jnp.zeros((D, D)).at[np.tril_indices(D, -1)].set(heads["factor"])
        root = std[:, None] * (jnp.eye(D) + below)
    elif spec.posterior == "low_rank":
        factor = heads["factor"].reshape(D, 2)
        root = std[:, None] * jnp.concatenate([jnp.eye(D), factor], axis=1)
    else:
        root = jnp.diag(std)
    return heads["mean"] + root @ noise, heads["mean"], root @ root.T


class TestPaths:
    """What gradients of log q(z|x) flow through, as `elbo.terms_given` takes them."""

    @staticmethod
    @functools.cache
    def compiled(spec, mode):
        params, stats = model_of(spec)

        def value(heads, flow, noise):
            posterior = POSTERIORS[spec.posterior].posterior(spec, heads, {}, HParams())
            given = {**params, "posterior": flow} if flow else params
            terms, _ = elbo.terms_given(
                spec,
                given,
                stats,
                HParams(),
                jnp.full(4, 0.5),
                posterior,
                noise[None],
                False,
                path=elbo.Path(mode),
            )
            return terms.log_qz[0]

        return jax.jit(jax.value_and_grad(value, (0, 1)), compiler_options=COMPILE_FAST)

    def log_q(self, spec, mode, noise):
        return functools.partial(self.compiled(spec, mode), noise=noise)

    @pytest.mark.parametrize("name", [*GAUSSIAN, "coupling"])
    def test_values_agree_and_gradients_add_up(self, name, x64):
        # d log q(z(φ); φ) = ∂_z log q · dz/dφ + ∂_φ log q.
        spec, heads, flow = SPECS[name], heads_of(SPECS[name]), flow_of(SPECS[name])
        noise = noise_of(spec, 1)[0]
        values, grads = zip(
            *(self.log_q(spec, mode, noise)(heads, flow) for mode in MODES), strict=True
        )
        np.testing.assert_allclose(values, values[0], rtol=1e-10)
        total, path, score = grads
        jax.tree.map(
            lambda t, p, s: np.testing.assert_allclose(t, p + s, rtol=1e-8, atol=1e-8),
            total,
            path,
            score,
        )
        # All three are there, and differ.
        norms = [
            math.sqrt(sum(float(jnp.sum(jnp.square(a))) for a in jax.tree.leaves(g)))
            for g in (total, path, score)
        ]
        assert min(norms) > 0.1 and len({round(n, 6) for n in norms}) == 3

    @pytest.mark.sampled
    @pytest.mark.parametrize("name", GAUSSIAN)
    def test_each_is_that_of_the_density(self, name, x64):
        spec, heads = SPECS[name], heads_of(SPECS[name])
        noise = noise_of(spec, 1)[0]

        def density(z_of, of):
            z, _, _ = reparameterized(spec, z_of, noise)
            _, mean, covariance = reparameterized(spec, of, noise)
            return jstats.multivariate_normal.logpdf(z, mean, covariance)

        expected = {
            "path": jax.grad(density, 0)(heads, heads),
            "score": jax.grad(density, 1)(heads, heads),
        }
        expected["total"] = jax.tree.map(jnp.add, expected["path"], expected["score"])
        for mode in MODES:
            _, (grads, _) = self.log_q(spec, mode, noise)(heads, {})
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8),
                grads,
                expected[mode],
            )

    def test_a_flow_for_one_direction_has_one_mode(self):
        assert POSTERIORS["iaf"].modes == ("total",)
        assert POSTERIORS["coupling"].modes == MODES

    def test_a_score_reaches_neither_the_decoder_nor_the_prior(self, x64):
        # With z held, log p(x|z) and log p(z) have no gradient in the heads.
        spec, heads = SPECS["full"], heads_of(SPECS["full"])
        params, stats = model_of(spec)

        def value(heads, mode):
            posterior = POSTERIORS["full"].posterior(spec, heads, {}, HParams())
            terms, _ = elbo.terms_given(
                spec,
                params,
                stats,
                HParams(),
                jnp.full(4, 0.5),
                posterior,
                noise_of(spec, 2),
                False,
                path=elbo.Path(mode),
            )
            return jnp.sum(terms.log_px + terms.log_pz)

        for mode, alive in (("score", False), ("path", True), ("total", True)):
            grads = jax.tree.leaves(jax.grad(value)(heads, mode))
            assert all(np.any(g != 0) == alive for g in grads)


def test_the_point_is_its_mean():
    spec = SPECS["point"]
    posterior = posterior_of(spec, heads_of(spec, dtype=np.float32), dtype=np.float32)
    assert isinstance(posterior, Posterior) and posterior.logvar is None
    z, _ = POSTERIORS["point"].draw(spec, {}, posterior, jnp.zeros(0), HParams(), True)
    np.testing.assert_array_equal(z, posterior.mean)
