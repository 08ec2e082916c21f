"""Every random number is a function of (seed, purpose or step, example), by `fold_in`.

Nothing depends on the position in a population, on the device count or on the clock, so packing
runs together changes no result and resuming needs no saved generator state.
"""

import jax

# Steps take the numbers from 0 up; these are out of any training's reach.
INIT = 2**32 - 1
ORDER = 2**32 - 2
EVALUATE = 2**32 - 3
GALLERY = 2**32 - 4


def stream(seed: jax.Array, purpose: int | jax.Array) -> jax.Array:
    """The key of one purpose (`INIT`, `ORDER`, `EVALUATE`, `GALLERY`) or of one training step."""
    return jax.random.fold_in(jax.random.key(seed), purpose)


def epoch_order(seed: jax.Array, epoch: jax.Array, num_examples: int) -> jax.Array:
    """The order of the training examples in one epoch: a permutation, int32 [num_examples]."""
    rng = jax.random.fold_in(stream(seed, ORDER), epoch)
    return jax.random.permutation(rng, num_examples)


def example_rngs(rng: jax.Array, index: jax.Array) -> jax.Array:
    """One key for each example, by its index in the dataset: keys [B]."""
    return jax.vmap(lambda i: jax.random.fold_in(rng, i))(index)
