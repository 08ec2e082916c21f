"""Convolutions of one image as matrix products: [H, W, C] in, [H', W', F] out, no bias.

Products, because a vmap over runs turns convolutions into grouped ones, and because XLA's CPU
backend takes its fast path for convolutions in the outermost computation alone, never in a loop:
the training loop's weight gradients would be up to a hundred times slower.

Each is a convolution of stride 1 and few taps on an image of fewer places and more channels, so
that patches overlap little. All are the plain convolutions but for the order of sums.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Size = tuple[int, int] | None
# (h [..., n], w [n, m]) -> [..., m].
Product = Callable[[jax.Array, jax.Array], jax.Array]

# Of an image made twice as large by repetition, which of two neighbours in the small one the three
# taps around a pixel read: for the first and the second pixel of two [2], neighbour [2], tap [3].
_READ = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)

# Of an image padded by one pixel and cut into blocks of 2 × 2, which pixel the three taps around a
# pixel read: for the first and the second pixel of two [2], block [2], pixel in it [2], tap [3].
_BLOCK = np.array(
    [[[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [0, 0, 0]]]]
    + [[[[0, 0, 0], [1, 0, 0]], [[0, 1, 0], [0, 0, 1]]]],
    np.float32,
)

# So many times fewer features than channels are much fewer. Two cores, 128 images, a step back and
# forth: 32 × 32 pixels, 32 channels to 3: 95 ms as patches, 26 ms as a sum of blocks' products.
FEW = 4


def same(h: jax.Array, kernel: jax.Array, product: Product, size: Size = None) -> jax.Array:
    """Stride 1 and padding SAME: [H, W, F].

    To few features it goes by blocks of 2 × 2 pixels: four blocks hold what four pixels read, and
    a product of wide rows is quicker than one of narrow ones, though half its weights are zero.

    kernel: [3, 3, C, F]. size: that of h, which needs not be said.
    """
    del size
    channels, features = kernel.shape[2:]
    h = jnp.pad(h, ((1, 1), (1, 1), (0, 0)))
    if not _by_blocks((h.shape[0] - 2, h.shape[1] - 2), channels, features):
        return _valid(h, kernel, product)
    kernel = jnp.einsum("piak,qjbl,klcf->ijabcpqf", _BLOCK, _BLOCK, kernel)
    found = _valid(_blocks(h), kernel.reshape(2, 2, 4 * channels, 4 * features), product)
    return _pixels(found.reshape(*found.shape[:2], 2, 2, features))


def halved(h: jax.Array, kernel: jax.Array, product: Product, size: Size = None) -> jax.Array:
    """Stride 2 and padding SAME: [⌈H/2⌉, ⌈W/2⌉, F].

    A convolution of the image of its blocks of 2 × 2 pixels, with half as many taps a side.

    kernel: [k, k, C, F], k even. size: follows, and needs not be said.
    """
    del size
    k, _, channels, features = kernel.shape
    out = [-(-n // 2) for n in h.shape[:2]]
    total = [2 * (m - 1) + k - n for m, n in zip(out, h.shape[:2], strict=True)]
    h = jnp.pad(h, [*((t // 2, t - t // 2) for t in total), (0, 0)])
    kernel = kernel.reshape(k // 2, 2, k // 2, 2, channels, features).swapaxes(1, 2)
    return _valid(_blocks(h), kernel.reshape(k // 2, k // 2, -1, features), product)


def doubled(h: jax.Array, kernel: jax.Array, product: Product, size: Size = None) -> jax.Array:
    """Of the image twice as large, each pixel repeated, cut to `size`: stride 1, padding SAME.

    Two neighbouring taps often read the same pixel of h: their weights are summed first, and a
    pixel of h and its neighbours give the four output pixels in its place with four weights each
    in place of nine.

    kernel: [3, 3, C, F]. size: None: all of it, (2H, 2W).
    """
    size = size or (2 * h.shape[0], 2 * h.shape[1])
    if not _by_phases(size):  # the cut leaves half a pixel of h at an edge
        large = jnp.repeat(jnp.repeat(h, 2, axis=0), 2, axis=1)[: size[0], : size[1]]
        return same(large, kernel, product)
    channels, features = kernel.shape[2:]
    rows, columns = h.shape[:2]
    kernel = jnp.einsum("pak,qbl,klcf->abcpqf", _READ, _READ, kernel)
    h = jnp.pad(h, ((1, 1), (1, 1), (0, 0)))
    found = _valid(h, kernel.reshape(2, 2, channels, 4 * features), product)
    found = found.reshape(rows + 1, columns + 1, 2, 2, features)
    pixels = [found[p : p + rows, q : q + columns, p, q] for p in range(2) for q in range(2)]
    return _pixels(jnp.stack(pixels, axis=2).reshape(rows, columns, 2, 2, features))


def _blocks(h: jax.Array) -> jax.Array:
    """[2H, 2W, C] ↦ [H, W, 4C]: the pixels of a block of 2 × 2 one after the other."""
    rows, columns, channels = h.shape
    h = h.reshape(rows // 2, 2, columns // 2, 2, channels).swapaxes(1, 2)
    return h.reshape(rows // 2, columns // 2, 4 * channels)


def _pixels(h: jax.Array) -> jax.Array:
    """[H, W, 2, 2, F] ↦ [2H, 2W, F]: blocks of 2 × 2 in their places."""
    rows, columns, _, _, features = h.shape
    return h.swapaxes(1, 2).reshape(2 * rows, 2 * columns, features)


def _valid(h: jax.Array, kernel: jax.Array, product: Product) -> jax.Array:
    """Stride 1, no padding: [H − a + 1, W − b + 1, F].

    Either patches × matrix, or, to much fewer features than there are channels, first the product
    of each pixel with all taps and then their sum: what lies between is the smaller.

    kernel: [a, b, C, F].
    """
    a, b, channels, features = kernel.shape
    rows, columns = h.shape[0] - a + 1, h.shape[1] - b + 1
    taps = [(i, j) for i in range(a) for j in range(b)]
    if _as_patches(channels, features):
        patches = [h[i : i + rows, j : j + columns] for i, j in taps]
        return product(jnp.concatenate(patches, axis=-1), kernel.reshape(-1, features))
    made = product(h, jnp.moveaxis(kernel, 2, 0).reshape(channels, -1))
    # Slices of the last axis: an axis of its own for the few features would be slow to read.
    parts = jnp.split(made, len(taps), axis=-1)
    return sum(
        part[i : i + rows, j : j + columns] for (i, j), part in zip(taps, parts, strict=True)
    )


# (h, kernel, product, size) -> the convolution.
WAYS: dict[str, Callable[..., jax.Array]] = {"same": same, "halved": halved, "doubled": doubled}


class Cost(NamedTuple):
    """Of one convolution, in numbers.

    patches: of its input, which the way back reads again. terms: what nothing reads again: of sums,
    in place of patches, or what is cut off at the edges. products: multiplications.
    """

    patches: int
    terms: int
    products: int


def cost(way: str, size: tuple[int, int], k: int, channels: int, features: int) -> Cost:
    """What a convolution to `size` = (H', W') takes, by a kernel [k, k, channels, features]."""
    rows, columns = size
    taps, cut = k * k, 0
    if way == "halved":
        taps, channels = k * k // 4, 4 * channels
    elif way == "doubled" and _by_phases(size):
        rows, columns, taps = rows // 2 + 1, columns // 2 + 1, 4
        cut, features = 4 * features * (rows + columns - 1), 4 * features
    elif way == "same" and _by_blocks(size, channels, features):
        rows, columns, taps = rows // 2, columns // 2, 4
        channels, features = 4 * channels, 4 * features
    if _as_patches(channels, features):
        patches = rows * columns * taps * channels
        return Cost(patches, cut, patches * features)
    reach = math.isqrt(taps) - 1
    terms = (rows + reach) * (columns + reach) * taps * features
    return Cost(0, terms + cut, terms * channels)


def _by_blocks(size: tuple[int, int], channels: int, features: int) -> bool:
    return features < channels and not any(n % 2 for n in size)


def _by_phases(size: tuple[int, int]) -> bool:
    return not any(n % 2 for n in size)


def _as_patches(channels: int, features: int) -> bool:
    return FEW * features > channels
