"""Convolutions of one image as matrix products: [H, W, C] in, [H', W', F] out, no bias.

Products, because a vmap over runs turns convolutions into grouped ones, and because XLA's CPU
backend takes its fast path for convolutions in the outermost computation alone, never in a loop:
the training loop's weight gradients would be up to a hundred times slower.

Each is a convolution of stride 1 and few taps on an image of fewer places and more channels, so
that patches overlap little. All are the plain convolutions but for the order of sums.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

# (h [..., n], w [n, m]) -> [..., m].
Product = Callable[[jax.Array, jax.Array], jax.Array]

# Of an image made twice as large by repetition, which of two neighbours in the small one the three
# taps around a pixel read: for the first and the second pixel of two [2], neighbour [2], tap [3].
_READ = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)


def same(h: jax.Array, kernel: jax.Array, product: Product) -> jax.Array:
    """Stride 1 and padding SAME: [H, W, F].

    kernel: [k, k, C, F], k odd.
    """
    k = kernel.shape[0]
    h = jnp.pad(h, [(k // 2, k // 2), (k // 2, k // 2), (0, 0)])
    return _valid(h, kernel, product)


def halved(h: jax.Array, kernel: jax.Array, product: Product) -> jax.Array:
    """Stride 2 and padding SAME: [⌈H/2⌉, ⌈W/2⌉, F].

    A convolution of the image of its blocks of 2 × 2 pixels, with half as many taps a side.

    kernel: [k, k, C, F], k even.
    """
    k, _, channels, features = kernel.shape
    out = [-(-n // 2) for n in h.shape[:2]]
    blocks = [m + k // 2 - 1 for m in out]
    total = [2 * b - n for b, n in zip(blocks, h.shape[:2], strict=True)]
    h = jnp.pad(h, [*((t // 2, t - t // 2) for t in total), (0, 0)])
    h = h.reshape(blocks[0], 2, blocks[1], 2, channels).swapaxes(1, 2).reshape(*blocks, -1)
    kernel = kernel.reshape(k // 2, 2, k // 2, 2, channels, features).swapaxes(1, 2)
    return _valid(h, kernel.reshape(k // 2, k // 2, -1, features), product)


def doubled(h: jax.Array, kernel: jax.Array, size: tuple[int, int], product: Product) -> jax.Array:
    """Of the image twice as large, each pixel repeated, cut to `size`: stride 1, padding SAME.

    Two neighbouring taps often read the same pixel of h: their weights are summed first, and a
    pixel of h and its neighbours give the four output pixels in its place with four weights each
    in place of nine.

    kernel: [3, 3, C, F].
    """
    if any(n % 2 for n in size):  # the cut leaves half a pixel of h at an edge
        large = jnp.repeat(jnp.repeat(h, 2, axis=0), 2, axis=1)[: size[0], : size[1]]
        return same(large, kernel, product)
    channels, features = kernel.shape[2:]
    rows, columns = h.shape[:2]
    kernel = jnp.einsum("pak,qbl,klcf->abcpqf", _READ, _READ, kernel)
    h = jnp.pad(h, ((1, 1), (1, 1), (0, 0)))
    found = _valid(h, kernel.reshape(2, 2, channels, 4 * features), product)
    found = found.reshape(rows + 1, columns + 1, 2, 2, features)
    pixels = [[found[p : p + rows, q : q + columns, p, q] for q in range(2)] for p in range(2)]
    pixels = jnp.stack([jnp.stack(row, axis=2) for row in pixels], axis=1)
    return pixels.reshape(*size, features)


def _valid(h: jax.Array, kernel: jax.Array, product: Product) -> jax.Array:
    """Stride 1, no padding: patches × matrix."""
    a, b, _, features = kernel.shape
    rows, columns = h.shape[0] - a + 1, h.shape[1] - b + 1
    patches = [h[i : i + rows, j : j + columns] for i in range(a) for j in range(b)]
    return product(jnp.concatenate(patches, axis=-1), kernel.reshape(-1, features))
