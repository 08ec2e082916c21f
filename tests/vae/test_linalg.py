"""Decompositions that are loops under vmap, and what they decompose."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae import linalg, train
from vae.hparams import HParams, stack
from vae.spec import ModelSpec, Spec

RNG = np.random.default_rng(0)


def batched_calls(function, *arguments):
    """Calls of LAPACK in a compiled program whose first result has a batch axis."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    calls = re.findall(r"= \(?\w+\[([\d,]*)\]\S*.* custom-call\(.*lapack", text)
    assert calls
    return [shape for shape in calls if shape.count(",") > 1]


def test_eigh():
    a = RNG.normal(size=(5, 4, 4)).astype(np.float32)
    a = a + np.swapaxes(a, 1, 2)
    values, vectors = jax.vmap(linalg.eigh)(a)
    # Of norm 5: a hundred roundings of float32.
    np.testing.assert_allclose(values, np.linalg.eigvalsh(a), atol=5e-5)
    again = np.einsum("bij,bj,bkj->bik", vectors, values, vectors)
    np.testing.assert_allclose(again, a, atol=5e-5)
    assert not batched_calls(jax.vmap(linalg.eigh), a)
    assert batched_calls(jax.vmap(jnp.linalg.eigh), a)  # what is looked for is there


def test_singular_values():
    a = RNG.normal(size=(2, 3, 4, 6)).astype(np.float32)
    twice = jax.vmap(jax.vmap(linalg.singular_values))
    np.testing.assert_allclose(twice(a), np.linalg.svd(a, compute_uv=False), atol=5e-5)
    assert not batched_calls(twice, a)


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5)])
def test_orthogonal_is_jax_s(shape):
    rngs = jax.random.split(jax.random.key(0), 3)
    drawn = jax.vmap(lambda rng: linalg.orthogonal(rng, shape, jnp.float32))(rngs)
    for rng, kernel in zip(rngs, drawn, strict=True):
        expected = jax.nn.initializers.orthogonal()(rng, shape, jnp.float32)
        np.testing.assert_array_equal(kernel, expected)


def test_no_population_decomposes_a_batch():
    """Two batches at once hang on two cores, in some of some tries: so there is none."""
    spec = Spec(ModelSpec((20,), 3, depth=2, width=(16, 8), init="orthogonal"))
    runs = stack([HParams(seed=seed) for seed in range(3)])
    mean = jnp.zeros(20)
    assert not batched_calls(lambda runs: train.init(spec, runs, mean), runs)
