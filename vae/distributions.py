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


def log_mean_decay(t: jax.Array) -> jax.Array:
    """log ∫₀¹ e^{−tu} du = log((1 − e^{−t})/t) of each t ≥ 0; 0 at t = 0, and falling.

    The derivative of the closed form is a difference of two terms of size 1/t and loses its digits
    near 0; the Taylor series' first term left out, 5e-11·t^12, is below 2e-14 for t < ½, where the
    closed form has lost a factor of 4.
    """
    small = t < 0.5
    near = jnp.where(small, t, 0.0)
    square = jnp.square(near)
    series = 1 / 181440 + square * (-1 / 9676800 + square / 479001600)
    series = square * (1 / 24 + square * (-1 / 2880 + square * series)) - near / 2
    far = jnp.where(small, 1.0, t)
    return jnp.where(small, series, jnp.log(-jnp.expm1(-far)) - jnp.log(far))


def continuous_bernoulli_log_prob(x: jax.Array, logits: jax.Array) -> jax.Array:
    """Σ_j log p(x_j), p(x) = C(λ) λ^x (1 − λ)^{1−x} on [0, 1], λ = σ(l).

    Loaiza-Ganem and Cunningham 2019. With C it is e^{lx} / ∫₀¹ e^{lu} du, written here
    from the end that l favours: −|l|·(distance of x to it) − log ∫₀¹ e^{−|l|u} du.

    Args:
      x: [*x] in [0, 1]. logits: [*x].

    Returns:
      A scalar, in nats; it may be positive, as of any density.
    """
    x, logits = x.reshape(-1), logits.reshape(-1)
    # Not max(l, 0) and |l|: their derivatives at 0 need not be of the same side.
    up = logits > 0
    decay = log_mean_decay(jnp.where(up, logits, -logits))
    return jnp.sum(x * logits - jnp.where(up, logits, 0.0) - decay)


def continuous_bernoulli_mean(logits: jax.Array) -> jax.Array:
    """E[x] = 1/(1 − e^{−l}) − 1/l of each logit, ½ at 0; Loaiza-Ganem and Cunningham 2019.

    For l < 0 it is −(log_mean_decay)'(|l|), which keeps its digits where it is near 0.
    """
    slope = jax.grad(lambda t: jnp.sum(log_mean_decay(t)))(jnp.abs(logits))
    return jnp.where(logits > 0, 1 + slope, -slope)


def continuous_bernoulli_quantile(u: jax.Array, logits: jax.Array) -> jax.Array:
    """The x with P(X ≤ x) = u, or, for positive logits, with P(X ≥ x) = u; u in [0, 1)."""
    # 1e-30 is 0 to a density, and −log(1 − u(1 − e^{−t}))/t is u there, to the last digit.
    t = jnp.maximum(jnp.abs(logits), 1e-30)
    x = -jnp.log1p(u * jnp.expm1(-t)) / t
    return jnp.where(logits > 0, 1 - x, x)


def laplace_log_prob(x: jax.Array, location: jax.Array, logvar: jax.Array) -> jax.Array:
    """Σ_j −|x_j − location_j|/s_j − log 2s_j, with s² = exp(logvar).

    Args:
      x, location: [*x]. logvar: log s², [*x], or a scalar shared by all; the variance is 2s².

    Returns:
      A scalar, in nats.
    """
    logvar = jnp.broadcast_to(logvar, x.shape).reshape(-1)
    error = jnp.abs(x - location).reshape(-1)
    return -jnp.sum(error * jnp.exp(-0.5 * logvar) + 0.5 * logvar + math.log(2))


def student_log_prob(
    x: jax.Array, location: jax.Array, logvar: jax.Array, df: jax.Array
) -> jax.Array:
    """Σ_j log of Student's t with df = ν > 0, at (x_j − location_j)/s_j, less log s_j.

    log Γ((ν+1)/2)/Γ(ν/2) − ½ log νπ − log s − (ν+1)/2 · log(1 + ((x − location)/s)²/ν).

    Args:
      x, location: [*x]. logvar: log s², [*x], or a scalar shared by all; the variance is
        s²ν/(ν − 2), infinite for ν ≤ 2. df: a scalar.

    Returns:
      A scalar, in nats.
    """
    logvar = jnp.broadcast_to(logvar, x.shape).reshape(-1)
    ratio = jnp.abs(x - location).reshape(-1) * jnp.exp(-0.5 * logvar) / jnp.sqrt(df)
    # From 1e9 on the 1 is below the last digit, and the square, later, above the largest number.
    far = ratio > 1e9
    near = jnp.log1p(jnp.square(jnp.where(far, 1.0, ratio)))
    tail = jnp.where(far, 2 * jnp.log(jnp.where(far, ratio, 1.0)), near)
    constant = log_gamma_half_step(df / 2) - 0.5 * jnp.log(df * math.pi)
    return jnp.sum(constant - 0.5 * logvar - 0.5 * (df + 1) * tail)


def log_gamma_half_step(a: jax.Array) -> jax.Array:
    """log Γ(a + ½)/Γ(a) for a scalar a > 0, to the last digits.

    The difference of two `gammaln` is off by an ulp of a·log a: in float32, for a = 5000, by
    0.004 nats in every pixel. So a goes up by 8 through Γ(a + 1) = aΓ(a), to where the asymptotic
    series (Tricomi and Erdélyi 1951) is off by less than 1e-14.
    """
    steps = jnp.sum(jnp.log1p(0.5 / (a + jnp.arange(8, dtype=a.dtype))))
    b = a + 8
    # 691/180224 b^−11 − 31/18432 b^−9 + 17/14336 b^−7 − ... − 1/8 b^−1
    series = jnp.polyval(
        jnp.asarray([691 / 180224, -31 / 18432, 17 / 14336, -1 / 640, 1 / 192, -1 / 8], a.dtype),
        1 / jnp.square(b),
    )
    return 0.5 * jnp.log(b) + series / b - steps


def kl_standard_normal(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """KL(N(mean, diag exp(logvar)) || N(0, I)) of each dimension; Kingma and Welling 2014, app. B.

    Args:
      mean, logvar: [d].

    Returns:
      [d], in nats; each is ≥ 0. `expm1` keeps the digits where the posterior is near the prior.
    """
    return 0.5 * (jnp.square(mean) + jnp.expm1(logvar) - logvar)


def logvar_of_kl(kl: jax.Array | float) -> jax.Array:
    """The v ≤ 0 with ½(e^v − 1 − v) = `kl` ≥ 0: so narrow a N(0, e^v) is so far from N(0, 1).

    Newton's method on f(v) = e^v − 1 − v − 2·kl, which is convex and falls for v < 0: from a start
    left of the root, where f ≥ 0, it goes up to it and never past it.
    """
    target = 2 * jnp.asarray(kl)

    def step(_, v):
        slope = jnp.expm1(v)
        safe = jnp.where(slope < 0, slope, -1)
        return jnp.where(slope < 0, v - (slope - v - target) / safe, v)

    # Quadratic convergence: the start is off by less than a third of itself at its worst.
    return jax.lax.fori_loop(0, 10, step, -(target + jnp.sqrt(2 * target)))
