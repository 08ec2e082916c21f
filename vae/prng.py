"""Threefry-2x32 as JAX has it, but written out: a generator for `jax.random.key(impl=...)`.

On a CPU, JAX keeps the rounds of its own threefry in a loop, which goes through memory at each
turn, and takes a whole block of 64 bits for each number, whatever its width. Together that is a
tenth of the training step of an MLP on MNIST. Keys are those of JAX's generator; numbers are not.
"""

import math

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def block(key: jax.Array, high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 of 20 rounds at the counters (high, low); Salmon et al. 2011.

    Args:
      key: uint32 [2]. high, low: uint32, of one shape.

    Returns:
      Two words of 32 random bits for each counter, uint32.
    """
    keys = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    x, y = high + keys[0], low + keys[1]
    for i in range(5):
        for distance in _ROTATIONS[i % 2]:
            x = x + y
            y = x ^ ((y << distance) | (y >> (32 - distance)))
        x = x + keys[(i + 1) % 3]
        y = y + keys[(i + 2) % 3] + jnp.uint32(i + 1)
    return x, y


def _count(size: int) -> tuple[jax.Array, jax.Array]:
    low = jnp.arange(size, dtype=jnp.uint32)
    return jnp.zeros_like(low), low


def _seed(seed: jax.Array) -> jax.Array:
    return jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))


def _fold_in(key: jax.Array, data: jax.Array) -> jax.Array:
    data = jnp.asarray(data, jnp.uint32)
    return jnp.stack(block(key, jnp.zeros_like(data), data))


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.stack(block(key, *_count(math.prod(shape))), axis=-1).reshape(*shape, 2)


def _random_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    size = math.prod(shape)
    words = jnp.concatenate(block(key, *_count(-(-size * bit_width // 64))))
    # Each block is computed once: XLA would do so anew for each of its numbers, and each use.
    words = jax.lax.optimization_barrier(words)
    dtype = jnp.dtype(f"uint{bit_width}")
    if bit_width == 64:
        words = words.reshape(2, -1).T
    return jax.lax.bitcast_convert_type(words, dtype).reshape(-1)[:size].reshape(shape)


def _columns_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    # Number i of n is word i of the first words of all blocks, and then of the second words.
    if bit_width != 32:
        raise NotImplementedError(f"numbers of {bit_width} bits")
    index = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(-1, shape[-1])
    row, column = index // jnp.uint32(shape[-1]), index % jnp.uint32(shape[-1])
    index = row * key[2] + column
    half = (jnp.uint32(index.shape[0]) * key[2] + jnp.uint32(1)) // jnp.uint32(2)
    low = jnp.where(index < half, index, index - half)
    words = jax.lax.optimization_barrier(block(key[:2], jnp.zeros_like(low), low))
    return jnp.where(index < half, *words).reshape(shape)


def _not_for_keys(*arguments: object) -> jax.Array:
    raise NotImplementedError("a key of columns draws, and makes no further keys")


_COLUMNS = define_prng_impl(
    key_shape=(3,),
    seed=_not_for_keys,
    split=_not_for_keys,
    random_bits=_columns_bits,
    fold_in=_not_for_keys,
    name="threefry2x32_columns",
    tag="col",
)


def columns(key: jax.Array, number: jax.Array) -> jax.Array:
    """A key whose draws of shape [..., D] have in their first d columns those of `key`, [..., d].

    At twice the cost, and for numbers of 32 bits; the other columns are of no use.

    Args:
      key: of `THREEFRY`. number: d, traced; at most D.
    """
    data = jax.random.key_data(key)
    return jax.random.wrap_key_data(jnp.append(data, number.astype(jnp.uint32)), impl=_COLUMNS)


THREEFRY = define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="threefry2x32_unrolled",
    tag="unr",
)
