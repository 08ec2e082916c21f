import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae import random
from vae.data import Transform, prepare
from vae.data import transform as transform_module
from vae.data.transform import draw_bits

DYNAMIC = Transform(1.0, 0.0, "dynamic")


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(5,), (4, 3, 1)])
def test_scaling_is_affine(dtype, shape):
    raw = np.arange(np.prod(shape)).astype(dtype).reshape(shape)
    x = prepare(Transform(0.5, -1.0), raw, None)
    assert x.dtype == jnp.float32 and x.shape == shape
    np.testing.assert_array_equal(x, raw.astype(np.float32) * 0.5 - 1.0)  # exact in binary


@pytest.mark.parametrize("max_value", [1, 16, 255])
def test_unit_scaling_ends_exactly_at_0_and_1(max_value):
    x = jax.jit(lambda raw: prepare(Transform(1.0 / max_value), raw, None))(
        np.array([0, max_value], np.uint8)
    )
    assert x.tolist() == [0.0, 1.0]


def test_transform_is_a_static_argument():
    assert hash(Transform(0.5)) == hash(Transform(0.5)) and Transform(0.5) == Transform(0.5)
    jitted = jax.jit(prepare, static_argnums=0)
    assert float(jitted(Transform(0.5), np.uint8(4), None)) == 2.0


def test_dynamic_bits_have_the_right_frequencies():
    # Each probability is drawn n times; the binomial standard error bounds the error. 64 values at
    # 5 standard errors: a correct sampler fails with probability 64 x 6e-7, and the key is fixed.
    n = 20_000
    raw = np.arange(64, dtype=np.uint8)
    transform = Transform(1.0 / 63, 0.0, "dynamic")
    keys = jax.random.split(random.key(jnp.uint32(0)), n)
    bits = np.asarray(jax.jit(jax.vmap(lambda key: prepare(transform, raw, key)))(keys))
    assert set(np.unique(bits)) == {0.0, 1.0}
    p = raw / 63.0
    error = np.abs(bits.mean(axis=0) - p)
    assert (error <= 5 * np.sqrt(p * (1 - p) / n) + 2**-17).all()
    # The ends have no error at all.
    assert bits[:, 0].max() == 0.0 and bits[:, -1].min() == 1.0


def test_dynamic_bits_of_one_word_are_independent():
    # Two draws share a 32-bit word: neighbours must not be correlated. With p = 1/2 the sample
    # correlation of n pairs has standard error 1/sqrt(n).
    n = 100_000
    bits = np.asarray(prepare(DYNAMIC, jnp.full((2 * n,), 0.5), random.key(jnp.uint32(1))))
    for first, second in [(bits[0::2], bits[1::2]), (bits[1:-1:2], bits[2::2])]:
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(n)


@pytest.mark.parametrize("shape", [(7,), (3, 3, 1), (8, 8, 1)])
def test_bits_under_jit_and_vmap_equal_solo_bits(shape):
    raw = jax.random.uniform(jax.random.key(2), (5, *shape))
    keys = jax.random.split(random.key(jnp.uint32(3)), 5)
    solo = np.stack([prepare(DYNAMIC, raw[i], keys[i]) for i in range(5)])
    together = jax.jit(jax.vmap(lambda r, k: prepare(DYNAMIC, r, k)))(raw, keys)
    np.testing.assert_array_equal(solo, together)
    runs = jax.jit(jax.vmap(jax.vmap(lambda r, k: prepare(DYNAMIC, r, k))))(
        jnp.stack([raw, raw]), jnp.stack([keys, keys])
    )
    np.testing.assert_array_equal(runs, np.stack([solo, solo]))


def test_key_matters_for_dynamic_only():
    raw = jnp.full((100,), 0.5)
    one, two = (prepare(DYNAMIC, raw, jax.random.key(seed)) for seed in (0, 1))
    assert (one != two).any()
    np.testing.assert_array_equal(one, prepare(DYNAMIC, raw, jax.random.key(0)))
    np.testing.assert_array_equal(
        prepare(Transform(), raw, jax.random.key(0)), prepare(Transform(), raw, None)
    )


def test_dynamic_without_a_key_is_refused():
    with pytest.raises(ValueError, match="needs a key"):
        prepare(DYNAMIC, jnp.zeros(3), None)


def test_drawn_bits_do_not_depend_on_chunks_or_number_of_rows(monkeypatch):
    raw = np.random.default_rng(0).random((50, 9)).astype(np.float32)
    whole = draw_bits(DYNAMIC, raw, seed=7, stream=0)
    assert whole.dtype == np.uint8 and set(np.unique(whole)) == {0, 1}
    np.testing.assert_array_equal(draw_bits(DYNAMIC, raw[:13], seed=7, stream=0), whole[:13])
    monkeypatch.setattr(transform_module, "_CHUNK", 8)
    np.testing.assert_array_equal(draw_bits(DYNAMIC, raw, seed=7, stream=0), whole)


def test_drawn_bits_depend_on_seed_stream_and_row():
    raw = np.full((2, 200), 0.5, np.float32)
    bits = draw_bits(DYNAMIC, raw, seed=0, stream=0)
    assert (bits[0] != bits[1]).any()
    assert (bits != draw_bits(DYNAMIC, raw, seed=2**32 - 1, stream=0)).any()
    assert (bits != draw_bits(DYNAMIC, raw, seed=0, stream=1)).any()
