"""The gradient noise scale: how large a batch must be for its gradient to be more than noise.

The gradient of a batch of B independent examples has the mean G and the covariance Σ/B, so that
E|g_B|² = |G|² + tr Σ/B. Two batch sizes tell the two apart; McCandlish et al. 2018, appendix A.1:

    |G|² = (B_b·|g_b|² − B_s·|g_s|²)/(B_b − B_s),   S = (|g_s|² − |g_b|²)/(1/B_s − 1/B_b),

both unbiased, and B_simple = S/|G|². A ratio of estimates is biased where |G|² is not well known:
squares are averaged over draws first, and one ratio is taken.

Σ has all that differs between examples: which they are, their binarisation and their samples of z.
G and Σ are those of what the examples are drawn from: that examples of a finite dataset do not come
twice is no error in them, as if the dataset itself had been drawn.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vae.errors import UserError
from vae.gradients.noise import mean
from vae.gradients.per_example import PerExample
from vae.layers import layer_names, layer_norms
from vae.optimizers import ENCODER_PARTS

# What the arrays [P] of this module are of. The posterior's flow is part of the encoder, and of the
# decoder are the parameters of the likelihood and of the prior; a discriminator is of none.
PARTS = ("encoder", "decoder", "all")


class NoiseScale(NamedTuple):
    """Of each of `PARTS`, [P]; see the formulas of this module.

    Attributes:
      squared_gradient: |G|²: unbiased, and so negative at times where G is small.
      trace: S = tr Σ of one example, unbiased too.
      simple: B_simple = S/|G|², in examples; infinite where no |G|² stands out of the noise.
    """

    squared_gradient: jax.Array
    trace: jax.Array
    simple: jax.Array


def part_of(layer: str) -> str:
    """Where a layer counts: `encoder`, `decoder` or, of a discriminator, ""."""
    part = layer.split("/")[0]
    if part == "discriminator":
        return ""
    return "encoder" if part in ENCODER_PARTS else "decoder"


def from_norms(small_sq: jax.Array, big_sq: jax.Array, b_small: int, b_big: int) -> NoiseScale:
    """The formulas, from mean squared norms of the gradients of batches of two sizes.

    Args:
      small_sq, big_sq: E|g|², of any one shape, which is that of the results.

    Raises:
      UserError: b_small ≥ b_big, which tells nothing apart, or b_small < 1.
    """
    if not 1 <= b_small < b_big:
        raise UserError(
            f"batch sizes: a noise scale needs a small batch and a larger one, got {b_small} and "
            f"{b_big}. Set two different sizes."
        )
    squared = (b_big * big_sq - b_small * small_sq) / (b_big - b_small)
    trace = (small_sq - big_sq) / (1 / b_small - 1 / b_big)
    infinite = (squared <= 0) & (trace > 0)
    return NoiseScale(squared, trace, jnp.where(infinite, jnp.inf, trace / squared))


def from_chunks(gradient: Callable[[Any], dict[str, Any]], chunks: Any, b_small: int) -> NoiseScale:
    """Small batches that together are the big one, whose gradient is the mean of theirs.

    For losses that do not couple the examples of a batch (`per_example.uncoupled`): for the others
    the mean is not the gradient of the big batch, see `from_batches`. All gradients serve twice.

    Args:
      gradient: the mean gradient of a small batch, in the parameters' structure.
      chunks: pytree whose leaves have leading axes [draws, n]: n small batches, of different
        examples, for each draw of a big one.
      b_small: examples in a small batch; the big one has n·b_small.
    """

    def small(chunk):
        found = gradient(chunk)
        return found, _squares(found)

    def draw(chunks):
        big, small_sq = mean(small, chunks)
        return small_sq, _squares(big)

    num_chunks = jax.tree.leaves(chunks)[0].shape[1]
    return from_norms(*mean(draw, chunks), b_small, num_chunks * b_small)


def from_batches(
    gradient: Callable[[Any], dict[str, Any]], small: Any, big: Any, b_small: int, b_big: int
) -> NoiseScale:
    """Each size by batches of its own, as batch-coupled losses need.

    Under a loss that couples examples G itself depends on the batch size, and the noise scale is
    what the two sizes behave as if they had.

    Args:
      small, big: what `gradient` takes for a batch of `b_small` and of `b_big` examples, with a
        leading axis of draws.
    """

    def squares(batch):
        return _squares(gradient(batch))

    return from_norms(mean(squares, small), mean(squares, big), b_small, b_big)


def from_examples(found: PerExample, names: list[str]) -> NoiseScale:
    """Batches of one and of B, from the norms of per-example gradients.

    Args:
      found: with any leading axes, of draws of a batch. names: `layer_names` of the parameters.
    """
    small_sq = _over_parts(jnp.square(found.norms), names)
    big_sq = _over_parts(jnp.square(found.mean_norms), names)
    return from_norms(small_sq, big_sq, 1, found.norms.shape[-2])


def _over_parts(squares: jax.Array, names: list[str]) -> jax.Array:
    """The mean over all axes but the last [..., L], summed over the layers of each part: [P]."""
    of_layers = jnp.mean(squares.reshape(-1, len(names)), axis=0)
    sums = {"encoder": 0.0, "decoder": 0.0, "": 0.0}
    for name, value in zip(names, of_layers, strict=True):
        sums[part_of(name)] += value
    return jnp.stack([sums["encoder"], sums["decoder"], sums["encoder"] + sums["decoder"]])


def _squares(tree: dict[str, Any]) -> jax.Array:
    """|g|² of each of `PARTS`, [P]."""
    names = layer_names(tree)
    return _over_parts(jnp.square(layer_norms(tree)), names)
