"""The convolutions as matrix products are the convolutions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae import conv
from vae.nets import Conv
from vae.spec import ModelSpec

# [H, W, C], kernel, way, size: with even and odd sides, and cuts of half a pixel. The first four
# are of every way.
CASES = {
    "halved, odd": ((7, 5, 2), 4, "halved", None),
    "same, by blocks, to few": ((6, 4, 32), 3, "same", None),
    "doubled, cut twice": ((4, 4, 2), 3, "doubled", (7, 7)),
    "halved, to few": ((6, 6, 8), 4, "halved", None),
    "halved": ((8, 8, 3), 4, "halved", None),
    "halved, one": ((1, 2, 2), 4, "halved", None),
    "same": ((6, 8, 4), 3, "same", None),
    "same, by blocks": ((6, 4, 8), 3, "same", None),
    "same, odd, to few": ((7, 4, 32), 3, "same", None),
    "doubled": ((4, 3, 3), 3, "doubled", (8, 6)),
    "doubled, cut": ((4, 3, 3), 3, "doubled", (7, 6)),
    "doubled, one": ((1, 1, 2), 3, "doubled", (2, 2)),
}


def plain(h, variables, kernel_size, way, size):
    """By Flax: stride 2, or of the image that is large already."""
    if way == "doubled":
        h = jnp.repeat(jnp.repeat(h, 2, axis=0), 2, axis=1)[: size[0], : size[1]]
    stride = 2 if way == "halved" else 1
    return nn.Conv(6, (kernel_size,) * 2, stride).apply(variables, h)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_convolution_of_flax(case):
    shape, *rest = CASES[case]
    x = jax.random.normal(jax.random.key(0), shape)
    ours = Conv(ModelSpec(shape, init="he"), 6, *rest)
    variables = ours.init(jax.random.key(1), x)
    theirs = nn.Conv(6, (rest[0],) * 2).init(jax.random.key(1), x)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, theirs)
    expected, pull = jax.vjp(lambda v, h: plain(h, v, *rest), variables, x)
    found, pull_ours = jax.vjp(ours.apply, variables, x)
    # Sums of up to 3 * 3 * 32 products of order one, in float32: 288 roundings of 6e-8.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)
    way_back = jax.random.normal(jax.random.key(2), expected.shape)
    for a, b in zip(
        jax.tree.leaves(pull_ours(way_back)), jax.tree.leaves(pull(way_back)), strict=True
    ):
        # No longer sums: over the pixels, or over taps and features.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("case", CASES)
def test_the_cost_is_what_the_program_multiplies_and_keeps(case):
    shape, k, way, size = CASES[case]
    x, kernel = jnp.zeros(shape), jnp.zeros((k, k, shape[-1], 6))
    seen = []

    def product(a, w):
        out = a @ w
        cut = out.size - np.prod(size) * 6 if way == "doubled" and size[0] % 2 == 0 else 0
        between = (0, out.size) if "to few" in case else (a.size, cut)
        seen.append((*between, a.size * w.shape[1]))
        return out

    out = conv.WAYS[way](x, kernel, product, size)
    assert [conv.cost(way, out.shape[:2], k, shape[-1], 6)] == seen
