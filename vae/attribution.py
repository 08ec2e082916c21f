"""What of an input drives a number that is made of it: attributions of pixels.

A *score* is a function x [*x] -> scalar: a latent's mean, the error of a reconstruction, the value
of one of its pixels. Each attribution is an array like x. Both are exact for a linear score of a
zero baseline; neither says what would happen if pixels changed together.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Score = Callable[[jax.Array], jax.Array]


def gradient_times_input(score: Score, x: jax.Array) -> jax.Array:
    """x ⊙ ∇score(x), [*x]; of a score that is linear without a constant, its parts."""
    return x * jax.grad(score)(x)


def integrated_gradients(
    score: Score, x: jax.Array, baseline: jax.Array, steps: int = 64
) -> jax.Array:
    """(x − b) ⊙ ∫₀¹ ∇score(b + t(x − b)) dt, [*x]; Sundararajan et al. 2017, eq. 1.

    Complete: the attributions sum to score(x) − score(b), their proposition 1. The integral is by
    Gauss and Legendre's rule, exact where the gradient along the path is a polynomial of degree
    below 2·`steps`; with kinks (relu) its error falls as 1/steps or faster, see `incompleteness`.

    Args:
      baseline: b [*x], what counts as nothing: a black image, or the mean image.
      steps: gradients.
    """
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    t = jnp.asarray(0.5 * (nodes + 1), x.dtype)
    w = jnp.asarray(0.5 * weights, x.dtype)

    def add(total, point):
        t, w = point
        return total + w * jax.grad(score)(baseline + t * (x - baseline)), None

    mean, _ = jax.lax.scan(add, jnp.zeros_like(x), (t, w))
    return (x - baseline) * mean


def incompleteness(
    score: Score, x: jax.Array, baseline: jax.Array, attribution: jax.Array
) -> jax.Array:
    """Σ attribution − (score(x) − score(b)): 0 of an attribution that is complete."""
    return jnp.sum(attribution) - (score(x) - score(baseline))


def shapley_values(score: Score, x: jax.Array, baseline: jax.Array) -> jax.Array:
    """Shapley's value of each of few numbers, [n], exactly; Lundberg and Lee 2017, eq. 4 and 8.

    φ_i = Σ_S |S|!(n − |S| − 1)!/n! · (v(S ∪ i) − v(S)), v(S) the score of x on S and of the
    baseline elsewhere: what the package `shap` estimates by sampling, with one background example.

    Args:
      x: [n], n ≤ 16: the score is evaluated at all 2ⁿ mixtures.
    """
    n = x.size
    bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    values = jax.vmap(lambda on: score(jnp.where(on, x, baseline)))(jnp.asarray(bits, bool))
    count = bits.sum(axis=1)
    # The weight of a set without i: |S|!(n − |S| − 1)!/n! = 1/(n·C(n − 1, |S|)).
    weight = np.array([1 / (n * math.comb(n - 1, size)) for size in range(n)])
    signed = np.where(bits == 1, weight[np.maximum(count - 1, 0)][:, None], 0.0)
    signed -= np.where(bits == 0, weight[np.minimum(count, n - 1)][:, None], 0.0)
    return jnp.asarray(signed, values.dtype).T @ values
