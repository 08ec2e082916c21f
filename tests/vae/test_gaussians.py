"""Gaussian posteriors: scales, divergences, and what large and small heads do."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from tests.vae.building import COMPILE_FAST
from tests.vae.drawn import (
    GAUSSIAN,
    SPECS,
    D,
    flow_of,
    heads_of,
    moments,
    noise_of,
    posterior_of,
    samples_of,
)
from vae import distributions
from vae.family import MODES
from vae.gaussians import log_variance
from vae.hparams import HParams
from vae.posteriors import POSTERIORS


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
        assert float(jnp.exp(0.5 * self.logvar("softplus_ln2")[-1])) == pytest.approx(1, rel=1e-14)

    def test_softplus_ln2(self, x64):
        # σ = log₂(1 + 2^s); where s ln 2 < −10 it is 2^s/ln 2, off by less than 2^s.
        expected = 2 * np.log(np.logaddexp2(0, self.S))
        np.testing.assert_allclose(self.logvar("softplus_ln2"), expected, rtol=1e-12, atol=5e-5)
        assert np.all(np.diff(self.logvar("softplus_ln2")[:241]) > 0)

    def test_soft_clamp(self, x64):
        logvar = self.logvar("soft_clamp")
        np.testing.assert_allclose(logvar, 10 * np.tanh(self.S / 5), rtol=1e-14)
        # σ from e^−5 to e^5, and near 0 log σ is s.
        assert np.max(np.abs(logvar)) <= 10
        assert float(jax.grad(lambda s: jnp.sum(self.logvar("soft_clamp", s)))(0.0)) == 2

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
