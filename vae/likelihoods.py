"""Likelihoods p(x|z): what the decoder's output means. Each carries its constants.

A likelihood is one row of `LIKELIHOODS`. The variance of the Gaussian rows differs only in where
it comes from, which `vae.model.VAE` decides:

  gaussian          σ² of the hyperparameter `sigma`
  gaussian_shared   one learned log σ² for all pixels
  gaussian_pixel    log σ² [*x] from the decoder's second head
  gaussian_optimal  σ² = mean squared error of the batch (σ-VAE: Rybkin et al. 2021, eq. 4)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vae import distributions


class Likelihood(NamedTuple):
    """p(x|z) as functions of the decoder's output [*x] and a log-variance ([*x], scalar or None).

    Attributes:
      log_prob: (x, output, logvar) -> scalar, nats, summed over x.
      mean: output -> E[x|z], [*x].
      sample: (rng, output, logvar) -> a draw of x, [*x].
      bias: E[x] [*x] -> the output bias under which a zero decoder has that mean.
      support: smallest and largest value that data may take.
    """

    log_prob: Callable[..., jax.Array]
    mean: Callable[[jax.Array], jax.Array]
    sample: Callable[..., jax.Array]
    bias: Callable[[jax.Array], jax.Array]
    support: tuple[float, float]


def _logit(mean: jax.Array) -> jax.Array:
    # A pixel that is black in all training images must stay possible: one half count each way
    # at about ten thousand images.
    p = jnp.clip(mean, 5e-5, 1 - 5e-5)
    return jnp.log(p) - jnp.log1p(-p)


BERNOULLI = Likelihood(
    log_prob=lambda x, logits, _: distributions.bernoulli_log_prob(x, logits),
    mean=jax.nn.sigmoid,
    sample=lambda rng, logits, _: jax.random.bernoulli(rng, jax.nn.sigmoid(logits)).astype(
        logits.dtype
    ),
    bias=_logit,
    support=(0.0, 1.0),
)

GAUSSIAN = Likelihood(
    log_prob=distributions.normal_log_prob,
    mean=lambda output: output,
    sample=lambda rng, mean, logvar: (
        mean
        + jnp.exp(0.5 * jnp.broadcast_to(logvar, mean.shape))
        * jax.random.normal(rng, mean.shape, mean.dtype)
    ),
    bias=lambda mean: mean,
    support=(-float("inf"), float("inf")),
)

LIKELIHOODS: dict[str, Likelihood] = {
    "bernoulli": BERNOULLI,
    "gaussian": GAUSSIAN,
    "gaussian_shared": GAUSSIAN,
    "gaussian_pixel": GAUSSIAN,
    "gaussian_optimal": GAUSSIAN,
}
