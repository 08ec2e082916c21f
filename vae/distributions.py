"""Densities and divergences in nats, summed over the dimensions of one example."""

import math

import jax
import jax.numpy as jnp

LOG_2PI = math.log(2 * math.pi)


def normal_log_prob(x: jax.Array, mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """Σ_j log N(x_j | mean_j, exp(logvar_j)), over every axis.

    Args:
      x, mean: [*x]. logvar: [*x], or a scalar shared by all dimensions.

    Returns:
      A scalar, in nats.
    """
    x, mean, logvar = x.reshape(-1), mean.reshape(-1), jnp.broadcast_to(logvar, x.shape).reshape(-1)
    squared = jnp.square(x - mean) * jnp.exp(-logvar)
    return -0.5 * jnp.sum(squared + logvar + LOG_2PI)


def bernoulli_log_prob(x: jax.Array, logits: jax.Array) -> jax.Array:
    """Σ_j x_j log σ(l_j) + (1 − x_j) log(1 − σ(l_j)), finite for any finite logits.

    Written as x·l − softplus(l), so that neither logarithm is ever of a rounded 0. For grey
    values in (0, 1) it is the usual cross-entropy, which is no density of x.

    Args:
      x: [*x] in [0, 1]. logits: [*x].

    Returns:
      A scalar, in nats.
    """
    # Flat, because XLA's CPU backend reduces the short trailing axes of images half as fast.
    return jnp.sum(_bernoulli(x.reshape(-1), logits.reshape(-1)))


@jax.custom_jvp
def _bernoulli(x: jax.Array, logits: jax.Array) -> jax.Array:
    """x·l − softplus(l), elementwise.

    log(1 + e), not log1p(e), which takes twice as long: in float32 it is off by at most 6e-8 nats
    for 0 < e ≤ 1, half an ulp of the 1; over MNIST's 784 pixels that is at most 5e-5 nats.
    """
    return x * logits - jnp.maximum(logits, 0) - jnp.log(1 + jnp.exp(-jnp.abs(logits)))


# Its own derivative, so that back-propagation computes one sigmoid and keeps nothing.
_bernoulli.defjvps(
    lambda t, out, x, logits: t * logits,
    lambda t, out, x, logits: t * (x - jax.nn.sigmoid(logits)),
)


def kl_standard_normal(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """KL(N(mean, diag exp(logvar)) || N(0, I)) of each dimension; Kingma and Welling 2014, app. B.

    Args:
      mean, logvar: [d].

    Returns:
      [d], in nats; each is ≥ 0. `expm1` keeps the digits where the posterior is near the prior.
    """
    return 0.5 * (jnp.square(mean) + jnp.expm1(logvar) - logvar)
