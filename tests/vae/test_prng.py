import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vae import prng, random


# Random123's known answers for threefry2x32 of 20 rounds: key, counter, result.
@pytest.mark.parametrize(
    "key, counter, result",
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_known_answers(key, counter, result):
    words = prng.block(jnp.uint32(key), *jnp.uint32(counter))
    assert tuple(int(w) for w in words) == result


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_keys_are_those_of_jax(seed):
    ours, theirs = random.key(jnp.uint32(seed)), jax.random.key(np.uint32(seed))
    for derive in (
        lambda k: k,
        lambda k: jax.random.fold_in(k, 3),
        lambda k: jax.random.fold_in(k, jnp.uint32(2**32 - 1)),
        lambda k: jax.random.split(k),
        lambda k: jax.random.split(k, (3, 2)),
        lambda k: jax.vmap(lambda i: jax.random.fold_in(k, i))(jnp.arange(5)),
    ):
        np.testing.assert_array_equal(
            jax.random.key_data(derive(ours)), jax.random.key_data(derive(theirs))
        )


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (0,)])
def test_bits_have_the_shape_and_type_asked_for(dtype, shape):
    with jax.enable_x64(True):
        bits = jax.random.bits(random.key(jnp.uint32(0)), shape, dtype)
    assert bits.shape == shape and bits.dtype == dtype


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_each_bit_is_fair_and_independent_of_the_next_number(dtype):
    n = 2**14
    with jax.enable_x64(True):
        numbers = np.asarray(jax.random.bits(random.key(jnp.uint32(1)), (n,), dtype))
    bits = np.unpackbits(numbers.view(np.uint8).reshape(n, -1), axis=1).astype(float)
    # Means and correlations of n fair bits have a standard error of 1/(2√n) and 1/√n; five of
    # them for 64 bits are exceeded once in 30,000 keys, and the key is fixed.
    assert np.abs(bits.mean(0) - 0.5).max() < 5 / (2 * np.sqrt(n))
    for lag in (1, 2):
        for i in range(bits.shape[1]):
            assert abs(np.corrcoef(bits[lag:, i], bits[:-lag, i])[0, 1]) < 5 / np.sqrt(n)


def test_no_number_occurs_in_two_places():
    # 2^12 words of 64 bits each: two equal ones would be a counter used twice.
    with jax.enable_x64(True):
        numbers = np.asarray(jax.random.bits(random.key(jnp.uint32(2)), (2**12,), "uint64"))
    assert len(np.unique(numbers)) == 2**12


def test_normal_and_uniform_numbers_are_such():
    key = random.key(jnp.uint32(3))
    normal = np.asarray(jax.random.normal(key, (20_000,)))
    uniform = np.asarray(jax.random.uniform(key, (20_000,)))
    assert scipy.stats.kstest(normal, "norm").pvalue > 1e-3
    assert scipy.stats.kstest(uniform, "uniform").pvalue > 1e-3


def test_draws_under_vmap_and_jit_are_those_alone():
    keys = jax.random.split(random.key(jnp.uint32(4)), 3)
    together = jax.jit(jax.vmap(lambda k: jax.random.normal(k, (5, 2))))(keys)
    for key, drawn in zip(keys, together, strict=True):
        # Bits are equal; ε goes through erf⁻¹, which may be fused with other roundings.
        np.testing.assert_allclose(drawn, jax.random.normal(key, (5, 2)), rtol=1e-6)
        bits = jax.jit(lambda k: jax.random.bits(k, (5,), jnp.uint16))(key)
        np.testing.assert_array_equal(bits, jax.random.bits(key, (5,), jnp.uint16))
