"""Linear VAEs, where everything is known: the marginal likelihood, the posterior, the optimum."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tests.vae.building import COMPILE_FAST, context, hand_made, parameters, population
from tests.vae.exact import STATS, exact_elbo, exact_terms
from vae import bounds, elbo, evaluate, objectives, train
from vae.data import Examples, Transform
from vae.hparams import HParams
from vae.spec import ModelSpec, ObjectiveSpec, OptimizerSpec, Spec

SPEC = ModelSpec((4,), 2, depth=0, likelihood="gaussian")
SIGMA = 0.5  # a number of float32 too
B = np.array([0.5, -1.0, 0.2, 0.0])
# x = zW + b + σ·noise. Rows that are orthogonal give a diagonal posterior, which q can be.
W = np.array([[0.9, -0.3, 0.5, 0.7], [0.2, 0.8, -0.5, 0.4425]])
W[1] -= W[0] * (W[0] @ W[1]) / (W[0] @ W[0])
POSTERIOR_VARIANCE = 1 / (1 + np.square(W).sum(1) / SIGMA**2)


def log_marginal(x):
    """log N(x; b, WᵀW + σ²I), [N]."""
    covariance = W.T @ W + SIGMA**2 * np.eye(4)
    return scipy.stats.multivariate_normal(B, covariance).logpdf(x)


def linear_parameters(offset=(0.0, 0.0), log_ratio=0.0):
    """The model, with q(z|x) off its posterior by `offset` standard deviations of that; float64.

    log_ratio: log of q's variance over the posterior's.
    """
    kernel = W.T * POSTERIOR_VARIANCE / SIGMA**2
    bias = -B @ kernel + np.asarray(offset) * np.sqrt(POSTERIOR_VARIANCE)
    return {
        "encoder": {
            "mean": {"kernel": kernel, "bias": bias},
            "scale": {"kernel": np.zeros((4, 2)), "bias": np.log(POSTERIOR_VARIANCE) + log_ratio},
        },
        "decoder": {"output": {"kernel": W, "bias": B}},
    }


def linear_population(offset=(0.0, 0.0), log_ratio=0.0):
    """The same as a population of one, in float32."""
    params = jax.tree.map(jnp.float32, linear_parameters(offset, log_ratio))
    return hand_made(Spec(SPEC), params, sigma=SIGMA)


def draw(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 2)) @ W + B + SIGMA * rng.normal(size=(n, 4))


def exact_log_weights(params, x, noise):
    """log w [N, K], float64."""
    with jax.enable_x64(True):
        return np.asarray(jax.vmap(objectives.iw_log_weights)(exact_terms(SPEC, params, x, noise)))


class TestBound:
    def test_it_is_the_marginal_likelihood_at_the_posterior(self):
        x = draw(50)
        bound = exact_elbo(SPEC, linear_parameters(), x)
        np.testing.assert_allclose(bound, log_marginal(x), rtol=1e-10)

    def test_each_weight_is_the_marginal_likelihood_at_the_posterior(self):
        x, noise = draw(50), np.random.default_rng(1).normal(size=(20, 2))
        log_w = exact_log_weights(linear_parameters(), x, noise)
        np.testing.assert_allclose(log_w, log_marginal(x)[:, None] + np.zeros(20), rtol=1e-10)

    @pytest.mark.parametrize("offset", [(0.5, 0.0), (0.3, -0.4), (2.0, 1.0)])
    def test_the_gap_of_an_offset(self, offset):
        # Oracle 8: ½‖Δ‖².
        x = draw(50)
        bound = exact_elbo(SPEC, linear_parameters(offset), x)
        gap = log_marginal(x) - bound
        np.testing.assert_allclose(gap, 0.5 * np.square(offset).sum(), rtol=1e-9)

    def test_nothing_exceeds_it(self):
        x = draw(50)
        for seed in range(5):
            params = linear_parameters() | {"encoder": parameters(SPEC, seed)[0]["encoder"]}
            assert np.all(exact_elbo(SPEC, params, x) < log_marginal(x))

    def test_evaluation_reports_it(self):
        # In float32, and with sampled noise. At the posterior the weights have no spread at all,
        # so `iw_bound` is log p for any K; `elbo` has that of its sampled distortion.
        x, n = draw(2000), 2000
        data = Examples(jnp.float32(x), Transform())
        pop, split = linear_population(), jnp.int32(0)
        expected = log_marginal(np.float64(data.raw)).mean()
        bound = evaluate.iw_bound(SPEC, "vmap", 70, 500, pop, data, split)
        assert float(bound[0]) == pytest.approx(expected, rel=1e-5)
        result = evaluate.evaluate(SPEC, "vmap", 4, 500, pop, data, split)
        log_px = exact_terms(
            SPEC, linear_parameters(), x[:200], np.random.default_rng(2).normal(size=(100, 2))
        ).log_px
        spread = float(np.std(np.asarray(log_px), axis=1).mean()) / np.sqrt(4 * n)
        assert abs(float(result["elbo"][0]) - expected) < 5 * spread
        assert spread < 0.02


class TestEveryBound:
    """What is reported under the name `bound` is no more than log p(x), whatever is trained."""

    @staticmethod
    def gaps(name, offset, log_ratio=0.0, n=4000, **numbers):
        """log p(x) − bound of n examples, each with noise of its own; float64."""
        samples, groups = 3, 2 if name in ("miwae", "piwae") else 1
        spec = Spec(SPEC, ObjectiveSpec(name, samples=samples, groups=groups))
        x, rng = draw(n), np.random.default_rng(5)
        noise = rng.normal(size=(n, samples * groups, 2))
        with jax.enable_x64(True):
            params = jax.tree.map(jnp.asarray, linear_parameters(offset, log_ratio))
            # β is a weight of the loss and not of what is reported.
            run = HParams(sigma=SIGMA, beta=7.0, **numbers)
            run = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), run)

            def one(x, noise):
                def terms_of(path, held):
                    return elbo.terms(SPEC, params, STATS, run, x, noise, True, path=path)

                _, extra, terms, _ = objectives.example_loss(context(spec, run), terms_of)
                bound = extra.get("bound", jnp.mean(objectives.iw_log_weights(terms)))
                return bound, objectives.metrics(terms)["elbo"]

            batch = jax.jit(jax.vmap(one, axis_name="batch"), compiler_options=COMPILE_FAST)
            values = batch(jnp.asarray(x), jnp.asarray(noise))
        return tuple(log_marginal(x) - np.asarray(a) for a in values)

    @pytest.mark.parametrize("name", bounds.BOUNDS)
    def test_it_is_below_the_marginal_likelihood(self, name):
        numbers = [{"renyi_alpha": a} for a in (0.0, 0.5, 3.0)] if name == "renyi" else [{}]
        for given in numbers:
            gap, elbo_gap = self.gaps(name, (0.8, -0.6), log_ratio=0.3, **given)
            error = gap.std() / np.sqrt(len(gap))
            assert gap.mean() > 5 * error
            # And, for α ≤ 1, not below the ELBO, of which `elbo` has its own.
            if given.get("renyi_alpha", 0) <= 1 and name != "elbo":
                both = np.sqrt(gap.var() + elbo_gap.var()) / np.sqrt(len(gap))
                assert elbo_gap.mean() - gap.mean() > 5 * both

    @pytest.mark.parametrize("name", bounds.BOUNDS)
    def test_it_is_the_marginal_likelihood_at_the_posterior(self, name):
        gap, _ = self.gaps(name, (0.0, 0.0), n=20)
        np.testing.assert_allclose(gap, 0, atol=1e-9)


class TestImportanceWeights:
    OFFSET = (0.3, 0.4)  # ‖Δ‖² = 0.25

    @staticmethod
    @functools.cache
    def gap(num_samples, offset=OFFSET, log_ratio=0.0, n=65_536):
        """Mean of log p(x) − L_K over n examples: each an independent draw, whatever its x."""
        data = Examples(jnp.float32(draw(n)), Transform())
        pop = linear_population(offset, log_ratio)
        bound = evaluate.iw_bound(SPEC, "vmap", num_samples, 4096, pop, data, jnp.int32(0))
        return log_marginal(np.float64(data.raw)).mean() - float(bound[0])

    @pytest.mark.parametrize("num_samples", [1, 10, 100])
    def test_gap_of_k_samples(self, num_samples):
        # Oracle 8. log w − log p = −Δ·ε − ½‖Δ‖² is N(−s²/2, s²) with s = ‖Δ‖: the expected gap by
        # an independent Monte Carlo. E w = 1 makes w − 1 a control variate, so that its error is
        # that of the gap's second order: below 1% of the library's.
        s, draws = 0.5, 2_000_000 // num_samples
        noise = np.random.default_rng(0).normal(size=(draws, num_samples))
        mean_w = np.exp(-s * noise - s**2 / 2).mean(1)
        expected = np.mean(mean_w - 1 - np.log(mean_w))
        measured = {1: 0.1251, 10: 0.0138, 100: 0.0013}  # studies.md
        assert expected == pytest.approx(measured[num_samples], abs=2e-4)
        error = np.log(mean_w).std() / np.sqrt(65_536)
        assert abs(self.gap(num_samples) - expected) < 5 * error
        assert 5 * error < expected

    def test_gap_times_k_tends_to_half_the_chi_square(self):
        # (e^{‖Δ‖²} − 1)/2 = 0.142. At K = 100 the next order, in 1/K, is below 2%.
        limit = (np.exp(0.25) - 1) / 2
        error = 100 * np.sqrt((np.exp(0.25) - 1) / 100 / 65_536)
        assert abs(100 * self.gap(100) - limit) < 5 * error + 0.02 * limit

    def test_more_samples_are_tighter(self):
        gaps = [self.gap(k) for k in (1, 3, 10, 100)]
        # Standard error of the difference: that of K = 1 at most.
        error = 0.5 / np.sqrt(65_536)
        assert gaps[0] - gaps[1] > 5 * error and gaps[1] - gaps[2] > 5 * error
        assert gaps[2] - gaps[3] > 5 * np.sqrt((np.exp(0.25) - 1) / 10 / 65_536)
        assert gaps[3] > -5 * np.sqrt((np.exp(0.25) - 1) / 100 / 65_536)

    def test_one_sample_is_the_elbo(self):
        assert self.gap(1) == pytest.approx(0.125, abs=5 * 0.5 / np.sqrt(65_536))

    @pytest.mark.parametrize(("offset", "log_ratio"), [(0.0, 0.5), (0.3, 0.5), (0.5, -0.4)])
    def test_variance_of_the_weights_is_chi_square(self, offset, log_ratio):
        # Oracle 9, per dimension, with m_p = 0 and s_p = 1 in units of the posterior:
        # 1 + χ² = E_q (w/p)² = s² e^{m²/(2s² − 1)} / √(2s² − 1).
        variance, n = np.exp(log_ratio), 400_000
        means = np.array([offset, 0.0])
        expected = np.prod(
            variance * np.exp(means**2 / (2 * variance - 1)) / np.sqrt(2 * variance - 1)
        )
        x, noise = draw(1), np.random.default_rng(4).normal(size=(n, 2))
        params = linear_parameters((offset, 0.0), log_ratio)
        log_w = exact_log_weights(params, x, noise)[0] - log_marginal(x)
        squares = np.exp(2 * log_w)
        assert abs(squares.mean() - expected) < 5 * squares.std() / np.sqrt(n)
        assert abs(np.exp(log_w).mean() - 1) < 5 * np.exp(log_w).std() / np.sqrt(n)
        assert expected > 1.02  # there is something to see


class TestPrincipalComponents:
    """Oracle 2: training reaches the maximum of probabilistic PCA, which bounds it."""

    DIM, LATENT_DIM, N = 6, 3, 128

    @pytest.fixture(scope="class")
    @classmethod
    def data(cls):
        rng = np.random.default_rng(0)
        scales = np.sqrt([4.0, 2.0, 1.0, 0.3, 0.2, 0.1])
        rotation, _ = np.linalg.qr(rng.normal(size=(cls.DIM, cls.DIM)))
        x = np.float32((rng.normal(size=(cls.N, cls.DIM)) * scales) @ rotation + 0.5)
        # Eigenvalues of the covariance with ddof = 0: that of the data, not of a population.
        return x, np.sort(np.linalg.eigvalsh(np.cov(np.float64(x).T, ddof=0)))[::-1]

    @pytest.mark.sampled
    @pytest.mark.parametrize("likelihood", ["gaussian", "gaussian_shared", "gaussian_optimal"])
    def test_training_reaches_the_maximum(self, data, likelihood):
        x, eigenvalues = data
        q = self.LATENT_DIM
        variance = 0.25 if likelihood == "gaussian" else eigenvalues[q:].mean()
        spec = Spec(
            ModelSpec((self.DIM,), q, depth=0, likelihood=likelihood),
            ObjectiveSpec(samples=4),
            OptimizerSpec(schedule="cosine"),
            batch_size=self.N,
        )
        runs = [
            HParams(
                seed=seed,
                sigma=0.5,
                learning_rate=0.05,
                b2=0.99,
                lr_decay_steps=2000.0,
                lr_decay_rate=0.0,
            )
            for seed in (0, 1)
        ]
        pop = population(spec, runs)
        examples = Examples(jnp.asarray(x), Transform())
        pop = train.train_chunk(spec, "vmap", pop, examples, 2000)

        # Model eigenvalues: those of the data where they are kept, σ² elsewhere.
        kept = np.maximum(eigenvalues[:q], variance)
        modelled = np.concatenate([kept, np.full(self.DIM - q, variance)])
        best = -0.5 * np.sum(np.log(2 * np.pi * modelled) + eigenvalues / modelled)
        if likelihood != "gaussian":  # the form of Tipping and Bishop 1999, eq. 9
            d = self.DIM
            logs = np.log(eigenvalues[:q]).sum() + (d - q) * np.log(variance)
            assert best == pytest.approx(-0.5 * (d * np.log(2 * np.pi) + logs + d), rel=1e-12)

        reported = evaluate.evaluate(spec.model, "vmap", 64, self.N, pop, examples, jnp.int32(0))
        for i in range(len(runs)):
            state = jax.tree.map(lambda a, i=i: a[i], pop.states)
            sigma = {
                "gaussian": lambda s: 0.5,
                "gaussian_shared": lambda s: jnp.exp(0.5 * s.params["likelihood"]["logvar"]),
                "gaussian_optimal": lambda s: jnp.sqrt(s.stats["likelihood"]["variance"]),
            }[likelihood](state)
            fixed = dataclasses.replace(spec.model, likelihood="gaussian")
            params = {part: state.params[part] for part in ("encoder", "decoder")}
            bound = exact_elbo(fixed, params, x, float(sigma)).mean()
            assert bound <= best + 1e-6
            # What the noise of the samples leaves as the learning rate goes to 0: it was 2e-4.
            assert best - bound < 1e-3
            # A distortion of 64 × 256 samples, each of which spreads by about √(6/2) nats.
            assert abs(float(reported["elbo"][i]) - bound) < 5 * np.sqrt(3 / (64 * self.N))
