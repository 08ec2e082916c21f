"""Every random number is a function of (seed, purpose or step, example), by `fold_in`.

Nothing depends on the position in a population, on the device count or on the clock, so packing
runs together changes no result and resuming needs no saved generator state.
"""

import math

import jax
import jax.numpy as jnp

from vae import prng

# Steps take the numbers from 0 up; these are out of any training's reach.
INIT = 2**32 - 1
ORDER = 2**32 - 2
EVALUATE = 2**32 - 3
GALLERY = 2**32 - 4
ENCODER = 2**32 - 5
PROBE = 2**32 - 6

# Two half-rounds each. Two rounds of random functions make a strong pseudo-random permutation of
# large sets (Luby and Rackoff 1988), but four are not enough for sets of five examples: their
# orders fail the chi-square tests of tests/vae/test_random.py.
FEISTEL_ROUNDS = 8


def key(seed: jax.Array) -> jax.Array:
    """The key of a seed, uint32: of `prng.THREEFRY`, whose numbers come cheaper than JAX's own."""
    return jax.random.key(seed, impl=prng.THREEFRY)


def stream(seed: jax.Array, purpose: int | jax.Array) -> jax.Array:
    """The key of one purpose (`INIT`, `ORDER`, `EVALUATE`, ...) or of one training step."""
    return jax.random.fold_in(key(seed), purpose)


def batch(seed: jax.Array, step: jax.Array, batch_size: int, num_examples: int) -> jax.Array:
    """Which examples are in the batch of a step: a function of (seed, step) alone, int32 [B].

    Each epoch has an order of its own, of which the last N mod B examples are left out.
    """
    epoch, number = jnp.divmod(step, num_examples // batch_size)
    rng = jax.random.fold_in(stream(seed, ORDER), epoch)
    position = number * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    return shuffled(rng, position, num_examples)


def shuffled(rng: jax.Array, position: jax.Array, num_examples: int) -> jax.Array:
    """Which example stands at a position of a random order: a permutation, computed where asked.

    A Feistel network keyed by `rng` permutes the points of an a × b grid, a ≈ b ≈ √N, which has
    at most √N more points than N; what lands beyond N is permuted again until it does not (cycle
    walking: Black and Rogaway 2002). So a batch costs its own B numbers, where
    `jax.random.permutation` sorts all N: on two CPU cores, for 60,000 examples, ten training
    steps at the start of each dispatch.

    Args:
      rng: key. position: 0 to N − 1, integers of any shape. num_examples: N < 2^31.

    Returns:
      int32, of the shape of `position`.
    """
    round_keys = jax.random.bits(rng, (FEISTEL_ROUNDS, 2), jnp.uint32)
    rows = math.isqrt(num_examples - 1) + 1
    columns = -(-num_examples // rows)

    def permute(point):
        row, column = point // jnp.uint32(columns), point % jnp.uint32(columns)
        for first, second in round_keys:
            # Twice modulo: a sum that passed 2^32 would send two rows to one.
            row = (row + _mix(column ^ first) % jnp.uint32(rows)) % jnp.uint32(rows)
            column = (column + _mix(row ^ second) % jnp.uint32(columns)) % jnp.uint32(columns)
        return row * jnp.uint32(columns) + column

    index = jax.lax.while_loop(
        lambda index: jnp.any(index >= num_examples),
        lambda index: jnp.where(index < num_examples, index, permute(index)),
        permute(position.astype(jnp.uint32)),
    )
    return index.astype(jnp.int32)


def _mix(x: jax.Array) -> jax.Array:
    """Lets each bit of x, uint32, act on all: the finaliser of MurmurHash3 (Appleby 2011)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def example_rngs(rng: jax.Array, index: jax.Array) -> jax.Array:
    """One key for each example, by its index in the dataset: keys [B]."""
    return jax.vmap(lambda i: jax.random.fold_in(rng, i))(index)
