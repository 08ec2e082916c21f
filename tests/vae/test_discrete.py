"""Discrete posteriors: draws, relaxed draws, and the codebook's averages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats

from tests.vae.drawn import (
    SPECS,
    D,
    heads_of,
    model_of,
    noise_of,
    posterior_of,
    samples_of,
    stats_of,
)
from vae import elbo, model
from vae.hparams import HParams
from vae.posteriors import POSTERIORS


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
            one = functools.partial(elbo.terms, self.SPEC, params, stats, HParams(), train=train)
            _, new = jax.jit(jax.vmap(one, axis_name="batch", out_axes=(0, None)))(x, noise)
            same = np.array_equal(new["posterior"]["codebook"], stats["posterior"]["codebook"])
            assert same != train
