"""The optimum of the linear β-VAE, mode by mode, and the way out of its collapse.

Lucas et al. 2019; Wang and Ziyin 2022, theorem 2. x has covariance diag λ, p(x|z) variance η². Mode
i is kept where λ_i > βη². Everything in float64, without sampling.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vae.building import context, hand_made
from tests.vae.exact import STATS, cubature
from vae import elbo, evaluate, objectives, train
from vae.hparams import HParams
from vae.spec import ModelSpec, ObjectiveSpec, Spec

pytestmark = pytest.mark.usefixtures("x64")

LAMBDA = np.array([4, 2, 1, 0.5, 0.25, 0.1, 0.05, 0.02])
LATENTS, MODES = 6, len(LAMBDA)
SPEC = Spec(ModelSpec((MODES,), LATENTS, depth=0, likelihood="gaussian"), ObjectiveSpec())
# Two points along each axis: their mean is 0 and their covariance diag λ, to the last bit or so.
X = np.concatenate([np.diag(np.sqrt(MODES * LAMBDA)), -np.diag(np.sqrt(MODES * LAMBDA))])
CASES = [(1.0, 0.3), (2.0, 0.3), (0.5, 0.3), (5.0, 1.0)]


def terms(params, x, eta2):
    hparams, noise = HParams(sigma=jnp.sqrt(eta2)), jnp.asarray(cubature(LATENTS))
    return elbo.terms(SPEC.model, params, STATS, hparams, x, noise, True)[0]


def loss(params, beta, eta2):
    """The mean over X of what objective `elbo` minimises, its expectation exact."""

    def one(x):
        ctx = context(SPEC, HParams(free_bits=jnp.zeros(())), beta=beta)
        return objectives.elbo_loss(terms(params, x, eta2), ctx)[0]

    return jnp.mean(jax.vmap(one, axis_name="batch")(jnp.asarray(X)))


def rate_and_error(params, eta2):
    """(mean rate, mean E|x − x̂|²) over X; the distortion is the second over 2η² and constants."""

    def one(x):
        metrics = objectives.metrics(terms(params, x, eta2))
        constants = 0.5 * MODES * np.log(2 * np.pi * eta2)
        return metrics["rate"], 2 * eta2 * (metrics["distortion"] - constants)

    rate, error = jax.vmap(one, axis_name="batch")(jnp.asarray(X))
    return float(jnp.mean(rate)), float(jnp.mean(error))


def optimum(beta, eta2):
    """Oracle 3: singular values² max(0, λ − βη²) in the decoder, variances min(1, βη²/λ)."""
    kept = np.maximum(LAMBDA - beta * eta2, 0)[:LATENTS]
    variance = np.minimum(1, beta * eta2 / LAMBDA)[:LATENTS]
    encoder, decoder = np.zeros((MODES, LATENTS)), np.zeros((LATENTS, MODES))
    np.fill_diagonal(encoder, np.sqrt(kept) / LAMBDA[:LATENTS])
    np.fill_diagonal(decoder, np.sqrt(kept))
    return linear(encoder, np.log(variance), decoder)


def linear(encoder, logvar, decoder):
    latents = encoder.shape[1]
    scale = {"kernel": np.zeros(encoder.shape), "bias": logvar}
    mean = {"kernel": encoder, "bias": np.zeros(latents)}
    output = {"kernel": decoder, "bias": np.zeros(MODES)}
    params = {"encoder": {"mean": mean, "scale": scale}, "decoder": {"output": output}}
    return jax.tree.map(jnp.asarray, params)


def random_parameters(seed):
    rng = np.random.default_rng(seed)
    shape = (MODES, LATENTS)
    return linear(
        0.3 * rng.normal(size=shape), np.zeros(LATENTS), 0.3 * rng.normal(size=shape[::-1])
    )


@functools.partial(jax.jit, static_argnames="steps")
def descended(params, beta, eta2, rate, steps):
    """Gradient descent on the exact loss."""

    def step(params, _):
        grads = jax.grad(loss)(params, beta, eta2)
        return jax.tree.map(lambda p, g: p - rate * g, params, grads), None

    return jax.lax.scan(step, params, length=steps)[0]


class TestOptimum:
    @pytest.mark.parametrize(("beta", "eta2"), CASES)
    def test_nothing_pulls_away_from_it(self, beta, eta2):
        grads = jax.grad(loss)(optimum(beta, eta2), beta, eta2)
        # Sums of a few dozen numbers of size 10.
        assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) < 1e-13
        start = jax.grad(loss)(random_parameters(0), beta, eta2)
        assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(start)) > 0.1

    @pytest.mark.parametrize(("beta", "eta2"), CASES)
    def test_its_rate_and_its_error(self, beta, eta2):
        # Oracle 4, with latents for all that is kept.
        active = beta * eta2 < LAMBDA
        rate, error = rate_and_error(optimum(beta, eta2), eta2)
        expected = 0.5 * np.log(LAMBDA[active] / (beta * eta2)).sum()
        assert rate == pytest.approx(expected, rel=1e-12, abs=1e-14)
        assert error == pytest.approx(np.minimum(LAMBDA, beta * eta2).sum(), rel=1e-12)

    @pytest.mark.sampled
    @pytest.mark.parametrize(
        ("beta", "eta2", "rate", "error", "units"),
        [(1.0, 0.3, 3.101093, 1.62, 4), (2.0, 0.3, 1.805959, 2.72, 3), (5.0, 1.0, 0, 7.92, 0)],
    )
    def test_descent_finds_it_from_anywhere(self, beta, eta2, rate, error, units):
        for seed in (0, 1):
            params = descended(random_parameters(seed), beta, eta2, 0.02, 20_000)
            assert float(loss(params, beta, eta2)) == pytest.approx(
                float(loss(optimum(beta, eta2), beta, eta2)), abs=1e-7
            )
            # The rate is flat to first order at the optimum only along the trade with the error:
            # it is known to the root of what the loss is known to.
            found_rate, found_error = rate_and_error(params, eta2)
            assert found_rate == pytest.approx(rate, abs=3e-4)
            assert found_error == pytest.approx(error, abs=3e-4)
            # As evaluation counts them, in float32.
            single = jax.tree.map(jnp.float32, params)
            with jax.enable_x64(False):
                population = hand_made(SPEC, single, sigma=np.float32(np.sqrt(eta2)))
                examples = train.Examples(jnp.float32(X), train.Transform())
                split = jnp.int32(evaluate.SPLITS["test"])
                seen = evaluate.evaluate(SPEC.model, "vmap", 1, len(X), population, examples, split)
            assert seen["active_units"][0] == units

    @pytest.mark.parametrize("beta", [0.5, 1.0, 2.0, 4.0])
    def test_the_slope_of_distortion_against_rate_is_beta(self, beta):
        # Oracle 4, in nats: between β(1 ± h) to second order in h.
        eta2, h = 0.22, 1e-4
        points = [rate_and_error(optimum(b, eta2), eta2) for b in (beta * (1 - h), beta * (1 + h))]
        (rate_a, error_a), (rate_b, error_b) = points
        slope = (error_b - error_a) / (2 * eta2) / (rate_b - rate_a)
        assert slope == pytest.approx(-beta, rel=1e-6)


class TestEscape:
    """Oracle 5: from no signal at all, (U, W, Σ) = (0, 0, I), mode i grows by

    s = [−(1 + βη²λ) + √((1 − βη²λ)² + 4λ²)]/(2η²), which is positive where λ > βη².
    """

    @staticmethod
    def growth(beta, eta2, eigenvalue):
        a = beta * eta2 * eigenvalue
        return (-(1 + a) + np.sqrt((1 - a) ** 2 + 4 * eigenvalue**2)) / (2 * eta2)

    @staticmethod
    def of_kernels(kernels, beta, eta2):
        encoder, decoder = kernels
        return loss(linear(encoder, jnp.zeros(LATENTS), decoder), beta, eta2)

    @pytest.mark.parametrize(("beta", "eta2"), CASES)
    def test_the_rates_are_the_curvatures_of_the_loss(self, beta, eta2):
        size = MODES * LATENTS
        start = jnp.zeros(2 * size)

        def flat(kernels):
            encoder, decoder = kernels[:size], kernels[size:]
            both = encoder.reshape(MODES, LATENTS), decoder.reshape(LATENTS, MODES)
            return self.of_kernels(both, beta, eta2)

        found = np.sort(np.linalg.eigvalsh(-jax.hessian(flat)(start)))[::-1]
        # Each mode can go to any latent; its other direction decays.
        rates = np.repeat(self.growth(beta, eta2, LAMBDA), LATENTS)
        np.testing.assert_allclose(found[:size], np.sort(rates)[::-1], rtol=1e-9, atol=1e-12)
        assert np.sum(found > 1e-9) == LATENTS * np.sum(beta * eta2 < LAMBDA)

    def test_a_small_signal_grows_by_it(self):
        beta, eta2, rate, steps = 1.0, 0.3, 1e-4, 4000
        expected = self.growth(beta, eta2, LAMBDA[0])
        assert expected == pytest.approx(9.6708, abs=1e-4)
        encoder, decoder = np.zeros((MODES, LATENTS)), np.zeros((LATENTS, MODES))
        encoder[0, 0] = decoder[0, 0] = 1e-7
        first = descended(linear(encoder, np.zeros(LATENTS), decoder), beta, eta2, rate, steps)
        second = descended(first, beta, eta2, rate, steps)
        sizes = [float(p["decoder"]["output"]["kernel"][0, 0]) for p in (first, second)]
        # Steps of 1e-4 are off by s·rate/2, 5e-4 of s; the signal is still below 1e-3.
        assert 0 < sizes[0] < sizes[1] < 1e-3
        assert np.log(sizes[1] / sizes[0]) / (rate * steps) == pytest.approx(expected, rel=0.01)
