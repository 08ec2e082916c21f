"""Losses as two write-ups print them, kept because their faults are studies of gradient flow.

Both call what follows a variational autoencoder. In neither is anything drawn at random, and what
stands for the KL is none. configs/seeds/ has the recipes, as printed and corrected;
experiments/studies/s0_vanishing.py and s2_stability.py measure what the faults do.

`log_softmax`, on vanishing gradients. The encoder has one head, m. The "sample" is z = sigmoid(m):
a code in (0, 1)^d, whose gradient sigmoid′(m) ≤ ¼ falls off as e^{−|m|}. The "KL" is a difference
of log-softmaxes: here, of the sample and of what it was made of,

    Σ_j [log softmax(z)_j − log softmax(m)_j]
        = Σ_j (z_j − m_j) + d·[logsumexp(m) − logsumexp(z)].

Its gradient in m_i is (1 − d·softmax(z)_i)·sigmoid′(m_i) − (1 − d·softmax(m)_i), where that of
KL(N(m, I)||N(0, I)) is m_i. Where all m_i are equal it is zero, wherever that is: its second part
sums to zero over i, so that no m is drawn to the prior's mean, but all to each other. Near zero it
is (15/16)·(m_i − m̄), and that much of a KL's gradient is by accident in it. The write-up does not
say which of the two is subtracted: the other way round it pushes the m_i apart, without any end,
because it has no lower bound then. There is no variance for it to see.

`tied`, on training stability. One dense layer, h, serves as mean and as log-variance. The decoder
reads BatchNorm(h)·exp(½h)·exp(−½h): the two factors are one, no noise stands between them, and
the scale and the place of h, which are all that the "KL" can see, are what BatchNorm takes away.
The textbook's KL of N(h, e^h),

    ½ Σ_j (h_j² + e^{h_j} − 1 − h_j),

is that of a distribution from which nothing is drawn. The error is counted twice, because it is
added to a bound that has it.
"""

from typing import Any

import jax
import jax.numpy as jnp

from vae.family import Posterior

# As `vae.nets.Normalize` has them.
MOMENTUM, EPSILON = 0.9, 1e-5


def squashed(mean: jax.Array) -> jax.Array:
    """The "sample" sigmoid(m), [d]."""
    return jax.nn.sigmoid(mean)


def log_softmax_difference(mean: jax.Array, z: jax.Array) -> jax.Array:
    """Σ_j [log softmax(z)_j − log softmax(m)_j] of m and z [d]: a number, and no KL."""
    return jnp.sum(jax.nn.log_softmax(z) - jax.nn.log_softmax(mean))


def tied_kl(head: jax.Array) -> jax.Array:
    """½ Σ_j (h_j² + e^{h_j} − 1 − h_j), the KL of N(h, e^h) to N(0, I), of h [d]; nats."""
    return 0.5 * jnp.sum(jnp.square(head) + jnp.expm1(head) - head)


def init_norm(dim: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """BatchNorm's parameters and running statistics."""
    zeros, ones = jnp.zeros(dim, jnp.float32), jnp.ones(dim, jnp.float32)
    return {"norm": {"scale": ones, "bias": zeros}}, {"norm": {"mean": zeros, "var": ones}}


def normalized(params: dict[str, Any], posterior: Posterior, train: bool) -> jax.Array:
    """BatchNorm(h)·exp(½h)·exp(−½h) of h = `posterior.mean` [d], by the batch's moments or, unless
    `train`, by the running ones in `posterior.rest`.

    The factors are left out: their product is 1, and its derivative 0. In float32 they would
    make infinity times zero of |h| > 177.
    """
    head = posterior.mean
    mean, var = _moments(head) if train else (posterior.rest["mean"], posterior.rest["var"])
    norm = params["norm"]
    return (head - mean) * jax.lax.rsqrt(var + EPSILON) * norm["scale"] + norm["bias"]


def update_norm(posterior: Posterior, stats: dict[str, Any]) -> dict[str, Any]:
    """The running statistics after a batch; within the axis `batch`."""
    mean, var = jax.lax.stop_gradient(_moments(posterior.mean))
    old = stats["norm"]
    return {
        "norm": {
            "mean": MOMENTUM * old["mean"] + (1 - MOMENTUM) * mean,
            "var": MOMENTUM * old["var"] + (1 - MOMENTUM) * var,
        }
    }


def _moments(head: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance over the axis `batch`, [d] each."""
    mean = jax.lax.pmean(head, "batch")
    return mean, jax.lax.pmean(jnp.square(head - mean), "batch")
