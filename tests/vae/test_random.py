import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tests.vae.building import order_of
from vae import random

EPOCHS = 20_000


def orders(n):
    """The orders of n examples in many epochs of one seed, [EPOCHS, n]."""
    root = random.stream(jnp.uint32(0), random.ORDER)

    @jax.jit
    @jax.vmap
    def order(epoch):
        return random.shuffled(jax.random.fold_in(root, epoch), jnp.arange(n), n)

    return np.asarray(order(jnp.arange(EPOCHS)))


@pytest.mark.sampled
@pytest.mark.parametrize("n", [1, 2, 3, 29, 30, 36, 37, 1257, 60_000])
def test_each_epoch_is_a_permutation_of_its_own(n):
    found = {(s, e): order_of(s, e, n) for s in (0, 1, 2**32 - 1) for e in (0, 1, 2**20)}
    for order in found.values():
        assert order.dtype == np.int32
        np.testing.assert_array_equal(np.sort(order), np.arange(n))
    if n > 20:
        assert len({tuple(order) for order in found.values()}) == len(found)


def test_a_position_is_computed_alone():
    rng = random.stream(jnp.uint32(7), random.ORDER)
    whole = random.shuffled(rng, jnp.arange(1257), 1257)
    for position in ([3], [[1256, 0], [700, 17]]):
        np.testing.assert_array_equal(
            random.shuffled(rng, jnp.array(position), 1257), whole[np.array(position)]
        )


@pytest.mark.parametrize("n", [29, 36, 100, 1257])
def test_it_is_a_permutation_whatever_the_mixing_gives(monkeypatch, n):
    # Numbers near 2^32, to which a row cannot be added in 32 bits: one in ten million is such.
    mix = random._mix
    monkeypatch.setattr(random, "_mix", lambda x: mix(x) | jnp.uint32(0xFFFFFFF0))
    np.testing.assert_array_equal(np.sort(order_of(0, 0, n)), np.arange(n))


# Sets of every shape of grid: square and not, full, and with points left over.
@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7, 9, 12, 13, 29])
def test_orders_are_uniform(n):
    """Chi-square tests against uniform orders; the keys are fixed, and 1e-4 leaves a correct
    generator one failure in a thousand such suites.
    """
    found = orders(n)
    pairs = {
        "first and second": (found[:, 0], found[:, 1]),
        "first and last": (found[:, 0], found[:, -1]),
    }
    for position in range(n):  # 1. Any example anywhere.
        counts = np.bincount(found[:, position], minlength=n)
        assert scipy.stats.chisquare(counts).pvalue > 1e-4 / n
    for what, (a, b) in pairs.items():  # 2. Any two of them in any two places.
        counts = np.zeros((n, n))
        np.add.at(counts, (a, b), 1)
        assert scipy.stats.chisquare(counts[~np.eye(n, dtype=bool)]).pvalue > 1e-4, what
    # 3. An epoch says nothing about the next.
    counts = np.zeros((n, n))
    np.add.at(counts, (found[:-1, 0], found[1:, 0]), 1)
    assert scipy.stats.chisquare(counts.ravel()).pvalue > 1e-4


def test_a_large_set_is_well_mixed():
    # Where neighbours of a set of MNIST's size go: the distances of uniform orders have the
    # triangular density, a position has no correlation with its example.
    n = 60_000
    order = order_of(0, 0, n)
    assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 5 / np.sqrt(n)
    distance = np.abs(np.diff(order))[::2] / n
    assert scipy.stats.kstest(distance, lambda d: 2 * d - d**2).pvalue > 1e-3


def test_streams_of_purposes_and_steps_differ():
    purposes = (random.INIT, random.ORDER, random.EVALUATE, random.GALLERY, 0, 1, 10**6)
    keys = {tuple(jax.random.key_data(random.stream(jnp.uint32(0), p)).tolist()) for p in purposes}
    assert len(keys) == len(purposes)
