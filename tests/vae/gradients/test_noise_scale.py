"""The gradient noise scale: oracle 22, on gradients whose G and Σ are known."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae.errors import UserError
from vae.gradients import noise_scale
from vae.gradients.per_example import PerExample
from vae.layers import layer_names

pytestmark = pytest.mark.usefixtures("x64")

# ½|θ − x|² of x ~ N(0, diag σ²) at θ: G = θ and Σ = diag σ², by layers of all kinds of parts.
THETA = {
    "encoder": {"layer_0": np.full(6, 0.5), "mean": np.full((2, 2), -0.3)},
    "posterior": {"layer_0": np.full(3, 0.2)},
    "decoder": {"output": np.full(5, 1.0)},
    "likelihood": {"logvar": np.array(0.4)},
    "prior": {"mixture": np.full(2, 0.7)},
    "discriminator": {"output": np.full(3, 50.0)},
}
SIGMA = {"encoder": 2.0, "posterior": 1.0, "decoder": 3.0, "likelihood": 1.0, "prior": 0.5}
SQUARED = np.array([6 * 0.25 + 4 * 0.09 + 3 * 0.04, 5 * 1.0 + 0.16 + 2 * 0.49])
TRACE = np.array([10 * 4.0 + 3 * 1.0, 5 * 9.0 + 1.0 + 2 * 0.25])


def of_parts(values):
    """[encoder, decoder] -> [encoder, decoder, all]."""
    return np.append(values, values.sum())


def examples(rng, *shape):
    """θ − x of examples x: leaves [*shape, ...]."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(THETA)
    rngs = jax.random.split(rng, len(leaves))

    def draw(rng, part, mean):
        noise = jax.random.normal(rng, (*shape, *np.shape(mean)))
        return jnp.broadcast_to(mean, noise.shape) + SIGMA.get(part, 100.0) * noise

    drawn = [draw(r, path[0].key, leaf) for r, (path, leaf) in zip(rngs, leaves, strict=True)]
    return structure.unflatten(drawn)


def batch_gradient(batch):
    return jax.tree.map(lambda a: jnp.mean(a, axis=0), batch)


def test_the_formulas():
    squared, trace = np.array([4.0, 0.1]), np.array([704.0, 3.0])
    small_sq, big_sq = (jnp.asarray(squared + trace / b) for b in (8, 128))
    found = noise_scale.from_norms(small_sq, big_sq, 8, 128)
    np.testing.assert_allclose(found.squared_gradient, squared, rtol=1e-12)
    np.testing.assert_allclose(found.trace, trace, rtol=1e-12)
    np.testing.assert_allclose(found.simple, trace / squared, rtol=1e-12)


def test_nothing_but_noise():
    # As it comes out by chance: the big batch's norm is smaller than the noise alone would be.
    found = noise_scale.from_norms(jnp.array([1.0, 0.0]), jnp.array([0.1, 0.0]), 1, 8)
    assert found.squared_gradient[0] < 0 and found.simple[0] == math.inf
    assert found.squared_gradient[1] == found.trace[1] == 0 and math.isnan(found.simple[1])


@pytest.mark.parametrize("sizes", [(8, 8), (8, 4), (0, 4)])
def test_sizes_that_tell_nothing_apart(sizes):
    with pytest.raises(UserError, match="batch sizes: .*a larger one, got"):
        noise_scale.from_norms(jnp.ones(3), jnp.ones(3), *sizes)


class TestQuadratic:
    B_SMALL, CHUNKS, DRAWS, REPLICATES = 4, 8, 5, 400

    @classmethod
    def one(cls, kind, rng):
        if kind == "chunks":
            chunks = examples(rng, cls.DRAWS, cls.CHUNKS, cls.B_SMALL)
            return noise_scale.from_chunks(batch_gradient, chunks, cls.B_SMALL)
        b_big = cls.CHUNKS * cls.B_SMALL
        small_rng, big_rng = jax.random.split(rng)
        small, big = examples(small_rng, 12, cls.B_SMALL), examples(big_rng, cls.DRAWS, b_big)
        return noise_scale.from_batches(batch_gradient, small, big, cls.B_SMALL, b_big)

    @classmethod
    @functools.cache
    def replicates(cls, kind):
        rngs = jax.random.split(jax.random.key(5), cls.REPLICATES)
        return jax.tree.map(np.asarray, jax.jit(jax.vmap(functools.partial(cls.one, kind)))(rngs))

    @pytest.mark.parametrize("kind", ["chunks", "batches"])
    def test_is_unbiased(self, kind):
        found = self.replicates(kind)
        for values, expected in ((found.squared_gradient, SQUARED), (found.trace, TRACE)):
            error = values.std(axis=0, ddof=1) / math.sqrt(self.REPLICATES)
            assert np.all(np.abs(values.mean(axis=0) - of_parts(expected)) < 4 * error)
            # Known to a few percent, so that the test can tell.
            assert np.all(error < 0.1 * of_parts(expected))

    @pytest.mark.parametrize("kind", ["chunks", "batches"])
    def test_ratio_of_averages(self, kind):
        # Over all replicates there are 2000 big batches. |g_b|² = |G|² + S/32 has the standard
        # deviation √(4 GᵀΣG/32 + 2 tr Σ²/32²), 2.6 of 6.1 in the decoder and 1.1 of 2.0 in the
        # encoder: known to 1.0% and 1.3%. S is known better.
        found = self.replicates(kind)
        ratio = found.trace.mean(axis=0) / found.squared_gradient.mean(axis=0)
        np.testing.assert_allclose(ratio, of_parts(TRACE) / of_parts(SQUARED), rtol=0.05)

    def test_alone_as_in_a_population(self):
        rng = jax.random.split(jax.random.key(5), self.REPLICATES)[3]
        alone = jax.jit(functools.partial(self.one, "chunks"))(rng)
        together = jax.tree.map(lambda a: a[3], self.replicates("chunks"))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), alone, together)


def test_three_ways_to_one_number():
    # Chunks of one example, their batches, and norms of per-example gradients.
    each = examples(jax.random.key(6), 3, 5, 1)
    chunks = noise_scale.from_chunks(batch_gradient, each, 1)
    small = jax.tree.map(lambda a: a.reshape(15, *a.shape[2:]), each)
    big = jax.tree.map(lambda a: a[:, :, 0], each)
    batches = noise_scale.from_batches(batch_gradient, small, big, 1, 5)
    names = layer_names(THETA)

    def norms(tree, axes):  # of each layer, [*axes, L]
        layers = (tree[part][layer] for part, layer in (name.split("/") for name in names))
        flat = [np.reshape(a, (*np.shape(a)[:axes], -1)) for a in layers]
        return jnp.stack([np.linalg.norm(a, axis=-1) for a in flat], axis=-1)

    means = jax.tree.map(lambda a: a.mean(axis=1), big)
    found = PerExample(norms(big, 2), jnp.zeros((3, 5)), norms(means, 1))
    of_norms = noise_scale.from_examples(found, names)
    for other in (batches, of_norms):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), chunks, other)


def test_parts():
    names = [f"{part}/layer" for part in THETA]
    counted = dict(zip(THETA, map(noise_scale.part_of, names), strict=True))
    assert counted == {
        "encoder": "encoder",
        "posterior": "encoder",
        "decoder": "decoder",
        "likelihood": "decoder",
        "prior": "decoder",
        "discriminator": "",
    }
