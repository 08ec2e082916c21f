"""The convolution as a matrix product is the convolution."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from vae.nets import Conv
from vae.spec import ModelSpec


@pytest.mark.parametrize(
    ("shape", "size", "stride"), [((8, 8, 3), 4, 2), ((7, 5, 2), 4, 2), ((7, 9, 4), 3, 1)]
)
def test_equals_the_convolution_of_flax(shape, size, stride):
    x = jax.random.normal(jax.random.key(0), shape)
    spec = ModelSpec(shape, init="he")
    ours, theirs = Conv(spec, 6, size, stride), nn.Conv(6, (size, size), (stride, stride))
    variables = ours.init(jax.random.key(1), x)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(
        np.shape, theirs.init(jax.random.key(1), x)
    )
    assert set(variables["params"]) == {"kernel", "bias"}
    # Sums of up to 4 * 4 * 4 products of order one, in float32: 64 roundings of 6e-8.
    np.testing.assert_allclose(
        ours.apply(variables, x), theirs.apply(variables, x), rtol=1e-5, atol=5e-6
    )
