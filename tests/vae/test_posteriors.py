"""Every family of posteriors: densities, KLs, the ways of gradients, codebooks; mostly float64."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import jax.scipy.stats as jstats
import numpy as np
import pytest
import scipy.special
import scipy.stats

from tests.vae.building import COMPILE_FAST, parameters
from vae import distributions, model
from vae.hparams import HParams
from vae.posteriors import MODES, POSTERIORS, Posterior, log_variance
from vae.spec import ModelSpec

D = 3
SPECS = {
    name: ModelSpec(
        (4,),
        D,
        depth=1,
        width=8,
        activation="tanh",
        posterior=name,
        posterior_rank=2,
        codes=4,
        code_dim=2,
        flow_layers=2,
        flow_width=5,
    )
    for name in POSTERIORS
}
GAUSSIAN = ("gaussian", "full", "low_rank")
FLOWS = ("iaf", "coupling")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def heads_of(spec, seed=0, dtype=np.float64):
    """Heads N(0, 1): posteriors of all kinds of shapes."""
    rng = np.random.default_rng(seed)
    sizes = POSTERIORS[spec.posterior].heads(spec)
    return {name: jnp.asarray(rng.normal(size=n), dtype) for name, n in sizes.items()}


def noise_of(spec, num_samples, seed=1, dtype=np.float64):
    rng = np.random.default_rng(seed)
    size = POSTERIORS[spec.posterior].noise_size(spec)
    if spec.posterior == "categorical":
        return jnp.asarray(rng.gumbel(size=(num_samples, size)), dtype)
    return jnp.asarray(rng.normal(size=(num_samples, size)), dtype)


@functools.cache
def model_of(spec, dtype=np.float64):
    """(parameters, statistics); made once, because a flow takes long to trace."""
    return parameters(spec, dtype=dtype)


def stats_of(spec, dtype=np.float64):
    return model_of(spec, dtype)[1].get("posterior", {})


def flow_of(spec, dtype=np.float64):
    return model_of(spec, dtype)[0].get("posterior", {})


def posterior_of(spec, heads, hparams=None, dtype=np.float64):
    hparams = HParams() if hparams is None else hparams
    return POSTERIORS[spec.posterior].posterior(spec, heads, stats_of(spec, dtype), hparams)


def samples_of(spec, heads, noise, mode="total"):
    """(z [K, n], log q(z|x) [K])."""
    dtype = noise.dtype.type
    return _samples_of(spec, mode, heads, flow_of(spec, dtype), stats_of(spec, dtype), noise)


@functools.partial(jax.jit, static_argnames=("spec", "mode"), compiler_options=COMPILE_FAST)
def _samples_of(spec, mode, heads, flow, stats, noise):
    family = POSTERIORS[spec.posterior]
    posterior = family.posterior(spec, heads, stats, HParams())

    def one(noise):
        z, drawn = family.draw(spec, flow, posterior, noise, HParams(), False)
        return z, family.log_q(spec, flow, posterior, z, noise, drawn, mode)

    return jax.vmap(one)(noise)


def moments(spec, heads):
    """(mean, covariance) of the Gaussian families, in NumPy, as their descriptions say."""
    heads = jax.tree.map(np.asarray, heads)
    std = np.exp(0.5 * heads["scale"])
    if spec.posterior == "full":
        lower = np.zeros((D, D))
        values = iter(heads["factor"])
        for i in range(D):
            lower[i, i] = 1
            for j in range(i):
                lower[i, j] = next(values)
        correlation = lower @ lower.T
    elif spec.posterior == "low_rank":
        factor = heads["factor"].reshape(D, 2)
        correlation = np.eye(D) + factor @ factor.T
    else:
        correlation = np.eye(D)
    return heads["mean"], std[:, None] * correlation * std[None]


class TestShapes:
    @pytest.mark.parametrize("name", POSTERIORS)
    def test_of_heads_noise_and_draws(self, name):
        spec, family = SPECS[name], POSTERIORS[name]
        latent_size = {"categorical": D * 4, "vq": D * 2}.get(name, D)
        noise_size = {"low_rank": D + 2, "point": 0, "vq": 0, "categorical": D * 4}.get(name, D)
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

    @pytest.mark.parametrize("name", POSTERIORS)
    @pytest.mark.parametrize("train", [True, False])
    def test_of_the_terms_of_a_batch(self, name, train):
        spec = SPECS[name]
        params, stats = model_of(spec, np.float32)
        x = jnp.float32(np.random.default_rng(0).uniform(size=(5, 4)))
        noise = jax.vmap(lambda k: model.noise(spec, k, 2))(jax.random.split(jax.random.key(0), 5))
        one = functools.partial(model.terms, spec, params, stats, HParams(), train=train)
        batch = jax.vmap(one, axis_name="batch", out_axes=(0, None))
        terms, new = jax.jit(batch, compiler_options=COMPILE_FAST)(x, noise)
        assert terms.log_px.shape == terms.log_pz.shape == terms.log_qz.shape == (5, 2)
        assert terms.z.shape == (5, 2, POSTERIORS[name].latent_size(spec))
        assert terms.kl.shape == (5, 1 if name in FLOWS else D)
        assert jax.tree.structure(new) == jax.tree.structure(stats)
        values = (terms.log_px, terms.log_pz, terms.z)
        assert all(np.all(np.isfinite(a)) for a in values)
        # The point has no density, and says so; all others have one.
        assert np.all(np.isnan(terms.log_qz)) == np.all(np.isnan(terms.kl)) == (name == "point")
        if name not in FLOWS + ("categorical", "point"):
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


class TestScales:
    """What the head `scale` means."""

    S = np.concatenate([np.linspace(-60, 60, 241), [-10.001, -10.0, -9.999, 0.0]])

    def logvar(self, scale, s=S, dtype=np.float64, **numbers):
        spec = dataclasses.replace(SPECS["gaussian"], posterior_scale=scale)
        return log_variance(spec, jnp.asarray(s, dtype), HParams(**numbers))

    def test_logvar_is_itself(self, x64):
        np.testing.assert_array_equal(self.logvar("logvar"), self.S)

    def test_softplus(self, x64):
        expected = 2 * np.log(np.log1p(np.exp(-np.abs(self.S))) + np.maximum(self.S, 0))
        # Below −10 it is 2s: off by less than e^s.
        np.testing.assert_allclose(self.logvar("softplus"), expected, rtol=1e-12, atol=5e-5)

    def test_softplus_of_0(self, x64):
        # Oracle 23: softplus(0) = ln 2, and softplus_β(0) = ln(1 + e^{β·0})/β = 1 at β = ln 2.
        std = float(jnp.exp(0.5 * self.logvar("softplus")[-1]))
        assert std == pytest.approx(math.log(2), rel=1e-14)
        assert std / math.log(2) == pytest.approx(1, rel=1e-14)

    @pytest.mark.parametrize("floor", [0.0, 1e-3, 0.1, 1.0, 30.0])
    def test_floored_cannot_come_closer_to_the_prior(self, floor, x64):
        logvar = self.logvar("floored", rate_floor=floor)
        for mean in (-3.0, -1e-8, 0.0, 0.5):
            kl = distributions.kl_standard_normal(jnp.full(len(self.S), mean), logvar)
            assert np.all(kl >= floor * (1 - 1e-12) + 0.5 * mean**2 * (1 - 1e-12))
        # The limit of a wide posterior at 0 has just that rate. At s = 60 it is off by e^−60.
        widest = distributions.kl_standard_normal(jnp.zeros(1), logvar[240:241])
        assert float(widest[0]) == pytest.approx(floor, rel=1e-10, abs=1e-15)
        # All widths below are there: ln σ² = ceiling + ln sigmoid(s).
        np.testing.assert_allclose(
            logvar - logvar[240], -np.logaddexp(0, -self.S), rtol=1e-12, atol=1e-14
        )

    @pytest.mark.parametrize("floor", [1e-3, 0.1, 1.0, 30.0])
    def test_floored_in_float32(self, floor):
        # ½(e^v − 1 − v) = δ at v ≈ −2√δ: a rounding of v by 6e-8·|v|, and of the difference by as
        # much, are 4·6e-8/√δ of it.
        logvar = self.logvar("floored", dtype=np.float32, rate_floor=floor)
        kl = np.asarray(distributions.kl_standard_normal(jnp.zeros_like(logvar), logvar))
        assert np.all(kl >= floor * (1 - 3e-7 / min(math.sqrt(floor), 1)))


class TestDivergences:
    @pytest.mark.parametrize("name", GAUSSIAN)
    def test_closed_form(self, name, x64):
        # Oracle 1, with p = N(0, I): ½(tr Σ + |μ|² − d − ln|Σ|).
        spec = SPECS[name]
        for seed in range(3):
            heads = heads_of(spec, seed)
            mean, covariance = moments(spec, heads)
            expected = 0.5 * (
                np.trace(covariance) + mean @ mean - D - np.linalg.slogdet(covariance)[1]
            )
            kl = POSTERIORS[name].kl(spec, posterior_of(spec, heads))
            assert float(kl.sum()) == pytest.approx(expected, rel=1e-12)
            if name == "gaussian":
                variance = np.diagonal(covariance)
                each = 0.5 * (np.log(1 / variance) + variance + mean**2 - 1)
                np.testing.assert_allclose(kl, each, rtol=1e-10)

    @pytest.mark.parametrize("name", GAUSSIAN)
    def test_each_dimension_is_the_expected_conditional_divergence(self, name, x64):
        # q(z_j|z_<j) = N(m_j + b(z_<j − m_<j), v) by the Schur complement; its KL to N(0, 1) has
        # the expectation ½(v + E[mean²] − 1 − ln v), E[mean²] = m_j² + b·Σ_<<·b.
        spec, heads = SPECS[name], heads_of(SPECS[name], seed=5)
        mean, covariance = moments(spec, heads)
        expected = []
        for j in range(D):
            b = np.linalg.solve(covariance[:j, :j], covariance[:j, j])
            explained = b @ covariance[:j, j]
            v = covariance[j, j] - explained
            expected.append(0.5 * (v + mean[j] ** 2 + explained - 1 - np.log(v)))
        kl = POSTERIORS[name].kl(spec, posterior_of(spec, heads))
        np.testing.assert_allclose(kl, expected, rtol=1e-10)

    @pytest.mark.parametrize("name", [*GAUSSIAN, "categorical"])
    def test_monte_carlo(self, name, x64):
        spec, heads = SPECS[name], heads_of(SPECS[name], seed=2)
        z, log_q = samples_of(spec, heads, noise_of(spec, 20_000))
        log_p = jax.vmap(lambda z: POSTERIORS[name].log_standard(spec, z))(z)
        ratios = np.asarray(log_q - log_p)
        error = ratios.std() / math.sqrt(len(ratios))
        kl = float(POSTERIORS[name].kl(spec, posterior_of(spec, heads)).sum())
        assert abs(ratios.mean() - kl) < 5 * error < 0.1 * kl

    def test_enumeration_of_codes(self, x64):
        spec = SPECS["categorical"]
        heads = heads_of(spec, seed=3)
        p = scipy.special.softmax(np.asarray(heads["logits"]).reshape(D, 4), axis=-1)
        kl = POSTERIORS["categorical"].kl(spec, posterior_of(spec, heads))
        total = 0.0
        for codes in itertools.product(range(4), repeat=D):
            q = np.prod([p[j, c] for j, c in enumerate(codes)])
            total += q * (np.log(q) + D * np.log(4))
        assert float(kl.sum()) == pytest.approx(total, rel=1e-12)
        np.testing.assert_allclose(kl, np.log(4) - scipy.stats.entropy(p, axis=-1), rtol=1e-12)

    def test_of_a_code_it_is_the_entropy_of_the_prior(self, x64):
        spec = SPECS["vq"]
        posterior = posterior_of(spec, heads_of(spec))
        np.testing.assert_allclose(POSTERIORS["vq"].kl(spec, posterior), np.full(D, np.log(4)))
        assert float(POSTERIORS["vq"].log_standard(spec, posterior.mean)) == pytest.approx(
            -D * np.log(4)
        )


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
    """What gradients of log q(z|x) flow through, as `model.terms_given` takes them."""

    @staticmethod
    @functools.cache
    def compiled(spec, mode):
        params, stats = model_of(spec)

        def value(heads, flow, noise):
            posterior = POSTERIORS[spec.posterior].posterior(spec, heads, {}, HParams())
            given = {**params, "posterior": flow} if flow else params
            terms, _ = model.terms_given(
                spec,
                given,
                stats,
                HParams(),
                jnp.full(4, 0.5),
                posterior,
                noise[None],
                False,
                path=model.Path(mode),
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
            terms, _ = model.terms_given(
                spec,
                params,
                stats,
                HParams(),
                jnp.full(4, 0.5),
                posterior,
                noise_of(spec, 2),
                False,
                path=model.Path(mode),
            )
            return jnp.sum(terms.log_px + terms.log_pz)

        for mode, alive in (("score", False), ("path", True), ("total", True)):
            grads = jax.tree.leaves(jax.grad(value)(heads, mode))
            assert all(np.any(g != 0) == alive for g in grads)


class TestExtremes:
    @pytest.mark.parametrize("name", [*GAUSSIAN, "coupling", "iaf"])
    def test_values_and_gradients_are_finite(self, name):
        # All pairs of a log-variance and a size of the other heads: factor, context, mean.
        spec, family = SPECS[name], POSTERIORS[name]
        flow, given = flow_of(spec, np.float32), heads_of(spec, dtype=np.float32)
        noise = noise_of(spec, 1, dtype=np.float32)[0]

        def values(heads, mode):
            posterior = family.posterior(spec, heads, {}, HParams())
            z, drawn = family.draw(spec, flow, posterior, noise, HParams(), True)
            log_q = family.log_q(spec, flow, posterior, z, noise, drawn, mode)
            return log_q if family.kl is None else log_q + jnp.sum(family.kl(spec, posterior))

        @functools.partial(jax.jit, static_argnums=2, compiler_options=COMPILE_FAST)
        @functools.partial(jax.vmap, in_axes=(0, 0, None))
        def value_and_gradients(logvar, size, mode):
            heads = {name: size * head for name, head in given.items()}
            return jax.value_and_grad(values)(heads | {"scale": jnp.full(D, logvar)}, mode)

        logvars, sizes = np.meshgrid(np.float32([-60, -20, 0, 30]), np.float32([0, 1, 1e4]))
        for mode in family.modes:
            result = value_and_gradients(logvars.ravel(), sizes.ravel(), mode)
            assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(result))

    def test_a_covariance_of_eight_dimensions_with_a_large_factor(self):
        # Its triangular root has an inverse with entries of 10^28: so large are true gradients.
        spec, family = dataclasses.replace(SPECS["full"], latent_dim=8), POSTERIORS["full"]
        heads = heads_of(spec, dtype=np.float32)
        heads["factor"] = 1e4 * jnp.sign(heads["factor"])
        noise = noise_of(spec, 1, dtype=np.float32)[0]

        def value(heads, mode):
            posterior = family.posterior(spec, heads, {}, HParams())
            z, drawn = family.draw(spec, {}, posterior, noise, HParams(), True)
            return family.log_q(spec, {}, posterior, z, noise, drawn, mode)

        for mode in MODES:
            result = jax.value_and_grad(value)(heads, mode)
            assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(result))

    def test_a_large_factor_of_rank_one_leaves_the_other_directions(self, x64):
        # Columns that are parallel: I + GᵀG in float32 would have lost the I. Against float64.
        spec = SPECS["low_rank"]
        heads = heads_of(spec)
        heads["factor"] = jnp.repeat(1e3 * jnp.asarray([1.0, -2.0, 0.5]), 2)
        mean, covariance = moments(spec, heads)
        noise = noise_of(spec, 5)
        z, log_q = samples_of(spec, heads, noise)
        expected = scipy.stats.multivariate_normal(mean, covariance).logpdf(z)
        np.testing.assert_allclose(log_q, expected, rtol=1e-7)
        small = jax.tree.map(jnp.float32, heads)
        # √α = 4000 roundings of 6e-8, on values of order one.
        _, single = samples_of(spec, small, jnp.float32(noise))
        np.testing.assert_allclose(single, log_q, atol=2e-3)

    @pytest.mark.parametrize("name", GAUSSIAN)
    def test_a_draw_narrower_than_rounding_has_its_density(self, name):
        # σ = e^−30 beside a mean of 3: z is the mean to the last bit, ε is not 0.
        spec = SPECS[name]
        heads = heads_of(spec, dtype=np.float32)
        heads |= {"mean": jnp.full(D, 3.0), "scale": jnp.full(D, -60.0)}
        noise = noise_of(spec, 5, dtype=np.float32)
        mean, covariance = moments(spec, jax.tree.map(np.float64, heads))
        lead = {"full": _full_root, "low_rank": _low_rank_root}.get(name, _diagonal_root)
        root = lead(jax.tree.map(np.float64, heads))
        offsets = np.float64(noise) @ root.T
        expected = scipy.stats.multivariate_normal(np.zeros(D), covariance * np.exp(60)).logpdf(
            offsets * np.exp(30)
        )
        for mode in MODES:
            _, log_q = samples_of(spec, heads, noise, mode)
            np.testing.assert_allclose(log_q, expected + D * 30, rtol=1e-5)

    @pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
    def test_logits_of_categories(self, size):
        spec, family = SPECS["categorical"], POSTERIORS["categorical"]
        heads = {"logits": size * heads_of(spec, dtype=np.float32)["logits"]}
        noise = noise_of(spec, 1, dtype=np.float32)[0]

        def value(heads):
            posterior = family.posterior(spec, heads, {}, HParams())
            z, _ = family.draw(spec, {}, posterior, noise, HParams(temperature=0.1), True)
            return jnp.sum(family.kl(spec, posterior)) + jnp.sum(jnp.square(z))

        value, grads = jax.value_and_grad(value)(heads)
        assert np.isfinite(value) and np.all(np.isfinite(grads["logits"]))


def _diagonal_root(heads):
    return np.diag(np.exp(0.5 * heads["scale"]))


def _full_root(heads):
    below = np.eye(D)
    below[np.tril_indices(D, -1)] = heads["factor"]
    return np.exp(0.5 * heads["scale"])[:, None] * below


def _low_rank_root(heads):
    factor = heads["factor"].reshape(D, 2)
    return np.exp(0.5 * heads["scale"])[:, None] * np.concatenate([np.eye(D), factor], axis=1)


class TestCategories:
    SPEC = SPECS["categorical"]

    def test_draws_follow_the_probabilities(self):
        n, heads = 20_000, heads_of(self.SPEC, seed=4, dtype=np.float32)
        noise = model.noise(self.SPEC, jax.random.key(3), n)
        z, _ = samples_of(self.SPEC, heads, noise)
        counts = np.asarray(z, np.float64).reshape(n, D, 4).sum(0)
        p = scipy.special.softmax(np.float64(heads["logits"]).reshape(D, 4), axis=-1)
        for j in range(D):
            assert scipy.stats.chisquare(counts[j], n * p[j]).pvalue > 1e-4

    def test_draws_of_the_prior_are_uniform(self):
        n = 20_000
        draw = functools.partial(POSTERIORS["categorical"].draw_standard, self.SPEC, stats={})
        z = jax.vmap(draw)(jax.random.split(jax.random.key(5), n))
        counts = np.asarray(z, np.float64).reshape(n, D, 4).sum(0)
        assert np.all(counts.sum(1) == n)
        assert all(scipy.stats.chisquare(c).pvalue > 1e-4 for c in counts)

    def test_relaxed_draws_are_the_softmax_and_tend_to_the_hard_ones(self, x64):
        heads, noise = heads_of(self.SPEC), noise_of(self.SPEC, 20)
        hard, _ = samples_of(self.SPEC, heads, noise)
        family, posterior = POSTERIORS["categorical"], posterior_of(self.SPEC, heads)
        distances = []
        for temperature in (1.0, 0.3, 0.03, 1e-4):

            def draw(noise, temperature=temperature):
                run = HParams(temperature=temperature)
                return family.draw(self.SPEC, {}, posterior, noise, run, True)[0]

            z = np.asarray(jax.vmap(draw)(noise))
            scores = np.asarray(heads["logits"])[None] + np.asarray(noise)
            expected = scipy.special.softmax(scores.reshape(-1, D, 4) / temperature, axis=-1)
            np.testing.assert_allclose(z.reshape(-1, D, 4), expected, rtol=1e-9, atol=1e-12)
            distances.append(np.abs(z - hard).max(-1).mean())
        assert np.all(np.diff(distances) < 0) and distances[-1] < 1e-6


class TestCodebook:
    SPEC = SPECS["vq"]

    def stats(self):
        return stats_of(self.SPEC)

    def test_the_nearest_entry_is_chosen(self, x64):
        book = np.asarray(self.stats()["codebook"])
        for seed in range(20):
            heads = heads_of(self.SPEC, seed)
            posterior = posterior_of(self.SPEC, heads)
            encoded = np.asarray(heads["mean"]).reshape(D, 2)
            nearest = np.linalg.norm(encoded[:, None] - book[None], axis=-1).argmin(1)
            np.testing.assert_array_equal(posterior.rest["codes"], nearest)
            np.testing.assert_allclose(posterior.mean, book[nearest].reshape(-1), rtol=1e-12)
            np.testing.assert_array_equal(posterior.rest["quantized"], book[nearest])

    def test_the_gradient_passes_straight_through(self, x64):
        def z(mean):
            posterior = posterior_of(self.SPEC, {"mean": mean})
            return POSTERIORS["vq"].draw(self.SPEC, {}, posterior, jnp.zeros(0), None, True)[0]

        jacobian = jax.jacobian(z)(heads_of(self.SPEC)["mean"])
        np.testing.assert_array_equal(jacobian, np.eye(2 * D))

    def test_the_codebook_follows_the_averages(self, x64):
        # Appendix A.1, in NumPy, over eight batches of five examples.
        decay, rng = 0.8, np.random.default_rng(7)
        stats = self.stats()
        book = np.array(stats["codebook"])
        counts, totals = np.ones(len(book)), book.copy()
        for _ in range(8):
            means = rng.normal(size=(5, 2 * D))

            def one(mean, stats=stats):
                hparams = HParams(codebook_decay=decay)
                posterior = POSTERIORS["vq"].posterior(self.SPEC, {"mean": mean}, stats, hparams)
                return POSTERIORS["vq"].update(self.SPEC, posterior, stats, hparams)

            stats = jax.vmap(one, axis_name="batch", out_axes=None)(jnp.asarray(means))
            points = means.reshape(-1, 2)
            chosen = ((points[:, None] - book[None]) ** 2).sum(-1).argmin(1)
            for c in range(len(book)):
                counts[c] = decay * counts[c] + (1 - decay) * np.sum(chosen == c)
                totals[c] = decay * totals[c] + (1 - decay) * points[chosen == c].sum(0)
                book[c] = totals[c] / counts[c]
            np.testing.assert_allclose(stats["codebook"], book, rtol=1e-10)
            np.testing.assert_allclose(stats["count"], counts, rtol=1e-10)
            np.testing.assert_allclose(stats["total"], totals, rtol=1e-10)

    def test_an_entry_that_nothing_chooses_fades_where_it_is(self):
        # All examples sit on entry 0. The others' averages fall by a tenth a step, below the least
        # float32 in a thousand; the quotient of the two gathers a rounding in each.
        stats = stats_of(self.SPEC, np.float32)
        start = np.asarray(stats["codebook"])
        mean = jnp.tile(stats["codebook"][0], D)

        def one(mean, stats):
            hparams = HParams(codebook_decay=0.9)
            posterior = POSTERIORS["vq"].posterior(self.SPEC, {"mean": mean}, stats, hparams)
            return POSTERIORS["vq"].update(self.SPEC, posterior, stats, hparams)

        def step(stats, _):
            means = jnp.broadcast_to(mean, (4, 2 * D))
            new = jax.vmap(one, (0, None), out_axes=None, axis_name="batch")(means, stats)
            return new, None

        end, _ = jax.lax.scan(step, stats, length=1500)
        np.testing.assert_allclose(end["codebook"], start, rtol=2e-5)
        np.testing.assert_allclose(end["count"], [4 * D, 0, 0, 0], rtol=1e-5, atol=1e-30)
        # One that is chosen again is where its examples are.
        end["codebook"] = end["codebook"].at[1].set(start[0] + 1.0)
        moved = jax.vmap(lambda m: one(m, end), axis_name="batch", out_axes=None)(
            jnp.broadcast_to(mean + 0.9, (4, 2 * D))
        )
        np.testing.assert_allclose(moved["codebook"][1], start[0] + 0.9, rtol=1e-5)

    def test_the_update_has_no_gradient(self):
        stats = stats_of(self.SPEC, np.float32)

        def total(means):
            def one(mean):
                posterior = POSTERIORS["vq"].posterior(self.SPEC, {"mean": mean}, stats, HParams())
                return POSTERIORS["vq"].update(self.SPEC, posterior, stats, HParams())

            new = jax.vmap(one, axis_name="batch", out_axes=None)(means)
            return sum(jnp.sum(a) for a in jax.tree.leaves(new))

        assert np.all(jax.grad(total)(jnp.ones((3, 2 * D))) == 0)

    def test_training_moves_it_and_evaluation_does_not(self):
        params, stats = model_of(self.SPEC, np.float32)
        x, noise = jnp.ones((3, 4)), jnp.zeros((3, 1, 0))
        for train in (True, False):
            one = functools.partial(model.terms, self.SPEC, params, stats, HParams(), train=train)
            _, new = jax.jit(jax.vmap(one, axis_name="batch", out_axes=(0, None)))(x, noise)
            same = np.array_equal(new["posterior"]["codebook"], stats["posterior"]["codebook"])
            assert same != train


def test_the_point_is_its_mean():
    spec = SPECS["point"]
    posterior = posterior_of(spec, heads_of(spec, dtype=np.float32), dtype=np.float32)
    assert isinstance(posterior, Posterior) and posterior.logvar is None
    z, _ = POSTERIORS["point"].draw(spec, {}, posterior, jnp.zeros(0), HParams(), True)
    np.testing.assert_array_equal(z, posterior.mean)
