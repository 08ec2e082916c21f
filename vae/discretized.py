"""Likelihoods of values of 256 levels, data k/255: categorical, discretised logistic, mixtures.

Inside, a value is its level k = 0 ... 255. The discretised logistic gives it the probability that
a logistic variable of location m and scale a, both in levels, has of rounding to k; what lies
beyond the ends counts for them:

  P(k) = σ((k + ½ − m)/a) − σ((k − ½ − m)/a), the first 1 for k = 255, the second 0 for k = 0

Kingma et al. 2016 (IAF), appendix; Salimans et al. 2017, eq. 2. Everything is finite, with its
gradient, for |m| up to 1e7 and log a between −30 and 1e4.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vae.distributions import log_mean_decay

LEVELS = 256
TOP = LEVELS - 1

COMPONENTS = 10  # as published
# Published as the least log-scale, of data in [−1, 1]: e^−7 is a ninth of a level, with which 97%
# of the mass can be in one. Less could gain 0.03 nats a value, and would put the next level out of
# reach.
MIN_LOG_SCALE = -7.0
LOG_UNIT = math.log(TOP / 2)  # levels in one unit of [−1, 1]

# Points of the lattice by which the mean of a mixture's later channels is averaged; odd, so that
# with every point its mirror image is there, and what is linear comes out exact.
MEAN_POINTS = 255


def level_of(x: jax.Array) -> jax.Array:
    """The level of each x = k/255, whichever way the quotient was rounded."""
    return jnp.clip(jnp.round(x * TOP), 0, TOP)


# Categorical: the head holds, for each channel of a pixel in turn, 256 logits.


def _logits(output: jax.Array) -> jax.Array:
    """[*pixels, channels·256] ↦ [*x, 256]; a vector's values are pixels of one channel."""
    shape = output.shape[:-1] if output.ndim == 2 else (*output.shape[:-1], -1)
    return output.reshape(*shape, LEVELS)


def categorical_log_prob(x: jax.Array, output: jax.Array) -> jax.Array:
    """Σ_j log softmax(logits_j) at x_j's level, nats. x [*x], output [*pixels, channels·256]."""
    logits = output.reshape(-1, LEVELS)
    # A comparison and a sum, which XLA fuses; the gradient of an index would be a scatter.
    chosen = level_of(x).reshape(-1, 1) == jnp.arange(LEVELS, dtype=x.dtype)[None]
    return jnp.sum(jnp.where(chosen, logits, 0.0)) - jnp.sum(jax.nn.logsumexp(logits, axis=-1))


def categorical_mean(output: jax.Array) -> jax.Array:
    """Σ_k P(k) k/255 of each value, [*x]."""
    probabilities = jax.nn.softmax(_logits(output), axis=-1)
    # No matrix product, which some accelerators would round to fewer digits.
    values = jnp.broadcast_to(jnp.arange(LEVELS, dtype=output.dtype) / TOP, probabilities.shape)
    return jnp.sum(probabilities * values, axis=-1)


def categorical_sample(rng: jax.Array, output: jax.Array) -> jax.Array:
    """A draw of x, [*x]."""
    levels = jax.random.categorical(rng, _logits(output), axis=-1)
    return levels.astype(output.dtype) / TOP


# The discretised logistic of one value. Location and scale are in levels.


def logistic_log_mass(level: jax.Array, location: jax.Array, log_scale: jax.Array) -> jax.Array:
    """log P(k), elementwise; the arguments broadcast to one shape of equal rank.

    σ(p) − σ(q) = σ(p)·σ(−q)·(1 − e^{−t}), t = p − q = 1/a: a product, so its logarithm is exact in
    the far tails, where the difference is 0 in floating point. At the ends one factor is left.
    """
    t = jnp.exp(-log_scale)
    at_most = jax.nn.log_sigmoid((level + 0.5 - location) * t)
    at_least = jax.nn.log_sigmoid((location - level + 0.5) * t)
    # log(1 − e^{−t}), without the logarithm of a t that has underflowed.
    inside = log_mean_decay(t) - log_scale
    low, high = level <= 0, level >= TOP
    return (
        jnp.where(high, 0.0, at_most)
        + jnp.where(low, 0.0, at_least)
        + jnp.where(low | high, 0.0, inside)
    )


def logistic_level(noise: jax.Array, location: jax.Array, log_scale: jax.Array) -> jax.Array:
    """The level that a standard logistic `noise` makes; its gradient is that before rounding."""
    # With a scale of e^30 a draw is below 0 or above 255 but for one in 1e11.
    drawn = jnp.clip(location + jnp.exp(jnp.minimum(log_scale, 30.0)) * noise, 0, TOP)
    return drawn + jax.lax.stop_gradient(jnp.round(drawn) - drawn)


def logistic_mean_level(location: jax.Array, log_scale: jax.Array) -> jax.Array:
    """E[k] = Σ_{k=0}^{254} P(> k) = Σ_{k=0}^{254} σ((m − k − ½)/a), within 1e-3 of a level.

    Two forms in place of 255 sigmoids for each value: a mean is wanted of every component of every
    pixel. Where a < 1 all but the 16 sigmoids nearest to m are 0 or 1: those left out are off by
    e^{−8} and less, 6e-4 together. Where a ≥ 1 the sum is ∫₀²⁵⁵ σ((m − t)/a) dt up to its ends
    (Euler and Maclaurin): a first correction of at most 1/(96a), which is made, and a second of at
    most 2e-4/a³; the sum's own ripple is 2e-8.
    """
    # a ≥ 1. The integral a·log((1 + e^{m/a})/(1 + e^{(m−255)/a})) without a difference of large
    # numbers: a·log(1 + σ((m − 255)/a)·(e^T − 1)), T = 255/a. At e^30 it has reached its limit.
    broad_log = jnp.clip(log_scale, 0.0, 30.0)
    per_level = jnp.exp(-broad_log)
    width = TOP * per_level  # T
    bottom, top = location * per_level, (location - TOP) * per_level
    log_growth = width + log_mean_decay(width) + math.log(TOP) - broad_log  # log(e^T − 1)
    integral = jnp.exp(broad_log) * jax.nn.softplus(jax.nn.log_sigmoid(top) + log_growth)
    ends = (_sigmoid_slope(top) - _sigmoid_slope(bottom)) * per_level / 24
    # a < 1.
    nearest = jnp.round(jnp.clip(jax.lax.stop_gradient(location), 0, TOP))[..., None]
    offsets = jnp.arange(-8, 8, dtype=location.dtype)
    edges = nearest + jnp.broadcast_to(offsets, (*location.shape, 16))
    passed = jax.nn.sigmoid(
        (location[..., None] - edges - 0.5) * jnp.exp(-jnp.minimum(log_scale, 0.0))[..., None]
    )
    counted = jnp.where((edges >= 0) & (edges < TOP), passed, 0.0)
    narrow = jnp.maximum(nearest[..., 0] - 8, 0) + jnp.sum(counted, axis=-1)
    return jnp.where(log_scale < 0, narrow, integral + ends)


def _sigmoid_slope(t: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(t) * jax.nn.sigmoid(-t)


# The same for x [*x] in [0, 1], with location [*x] in units of x and logvar = log of the squared
# scale, [*x] or a scalar, in those units too.


def _in_levels(location: jax.Array, logvar: jax.Array) -> tuple[jax.Array, jax.Array]:
    return TOP * location, 0.5 * jnp.broadcast_to(logvar, location.shape) + math.log(TOP)


def logistic_log_prob(x: jax.Array, location: jax.Array, logvar: jax.Array) -> jax.Array:
    """Σ_j log P(x_j), nats."""
    location, log_scale = (a.reshape(-1) for a in _in_levels(location, logvar))
    return jnp.sum(logistic_log_mass(level_of(x).reshape(-1), location, log_scale))


def logistic_mean(location: jax.Array, logvar: jax.Array) -> jax.Array:
    """E[x], [*x]: the location, but for what lies beyond the ends and counts for them."""
    return logistic_mean_level(*_in_levels(location, logvar)) / TOP


def logistic_sample(rng: jax.Array, location: jax.Array, logvar: jax.Array) -> jax.Array:
    """A draw of x, [*x]."""
    noise = jax.random.logistic(rng, location.shape, location.dtype)
    return logistic_level(noise, *_in_levels(location, logvar)) / TOP


# Mixtures (PixelCNN++: Salimans et al. 2017, eq. 1 to 3). A pixel's C channels share the component;
# within it, the location of each channel is linear in the values v ∈ [−1, 1] of those before it:
# m_c + Σ_{c'<c} tanh(r_{cc'})·v_{c'}. Published for C = 3, red to green to blue; any C will do.


class Mixture(NamedTuple):
    """Of P pixels and M components; locations and log-scales for values in [−1, 1].

    Attributes:
      logits: [M, P]. locations, log_scales: [C, M, P].
      coefficients: [C, C, M, P]; zero unless the second channel comes before the first.
    """

    logits: jax.Array
    locations: jax.Array
    log_scales: jax.Array
    coefficients: jax.Array


def mixture_numbers(channels: int) -> int:
    """Numbers per pixel: a logit, C locations, C log-scales, C(C−1)/2 coefficients a component."""
    return COMPONENTS * (channels + 1) * (channels + 2) // 2


def mixture_of(output: jax.Array) -> Mixture:
    """Reads a head [*pixels, mixture_numbers(C)].

    In it the 10 components' logits come first, then 10 numbers each for the locations, for the
    log-scales, and for the coefficients of the pairs (c, c') = (1, 0), (2, 0), (2, 1), ...
    """
    numbers = output.reshape(-1, output.shape[-1] // COMPONENTS, COMPONENTS).transpose(1, 2, 0)
    # (C + 1)(C + 2) lies between the squares of C + 1 and C + 2.
    channels = math.isqrt(2 * len(numbers)) - 1
    logits, locations, log_scales, pairs = jnp.split(
        numbers, (1, 1 + channels, 1 + 2 * channels), axis=0
    )
    rows, columns = np.tril_indices(channels, -1)
    coefficients = jnp.zeros((channels, channels, *numbers.shape[1:]), output.dtype)
    return Mixture(
        logits[0],
        locations,
        MIN_LOG_SCALE + jax.nn.softplus(log_scales - MIN_LOG_SCALE),
        coefficients.at[rows, columns].set(jnp.tanh(pairs)),
    )


def _location_level(locations, coefficients, values):
    """Locations in levels given the values v [C, ...] of the channels; later ones' are not read."""
    return (1 + locations + jnp.sum(coefficients * values, axis=-3)) * (TOP / 2)


def mixture_log_prob(x: jax.Array, output: jax.Array) -> jax.Array:
    """Σ over pixels of log Σ_m π_m Π_c P_m(x_c | x_<c), nats. x [*x], output as `mixture_of`."""
    mixture = mixture_of(output)
    levels = level_of(x).reshape(-1, len(mixture.locations)).T[:, None, :]  # [C, 1, P]
    locations = _location_level(
        mixture.locations, mixture.coefficients, (levels * (2 / TOP) - 1)[None]
    )
    log_masses = logistic_log_mass(levels, locations, mixture.log_scales + LOG_UNIT)
    joint = jax.nn.log_softmax(mixture.logits, axis=0) + jnp.sum(log_masses, axis=0)
    return jnp.sum(jax.nn.logsumexp(joint, axis=0))


def _chain(mixture: Mixture, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws channel after channel from standard logistic noise, [C, M or 1, P or 1].

    Returns:
      Levels drawn and the locations that they were drawn from, in levels, [C, M, P].
    """

    def channel(values, row):
        index, location, log_scale, coefficients, noise = row
        location = _location_level(location, coefficients, values)
        level = logistic_level(noise, location, log_scale + LOG_UNIT)
        return values.at[index].set(level * (2 / TOP) - 1), (level, location)

    start = jnp.zeros_like(mixture.locations)
    rows = (jnp.arange(len(start)), mixture.locations, mixture.log_scales, mixture.coefficients)
    return jax.lax.scan(channel, start, (*rows, noise))[1]


def _as_data(levels: jax.Array, output: jax.Array) -> jax.Array:
    """[C, P] ↦ x [*x]; a vector's values are pixels of one channel."""
    shape = output.shape[:-1] if output.ndim == 2 else (*output.shape[:-1], len(levels))
    return levels.T.reshape(shape) / TOP


def mixture_sample(rng: jax.Array, output: jax.Array) -> jax.Array:
    """A draw of x, [*x]: of each pixel's component, then of its channels in order."""
    mixture = mixture_of(output)
    component_rng, noise_rng = jax.random.split(rng)
    component = jax.random.categorical(component_rng, mixture.logits, axis=0)[None, None]
    noise = jax.random.logistic(
        noise_rng, (len(mixture.locations), 1, component.shape[-1]), output.dtype
    )
    chosen = mixture._replace(
        locations=jnp.take_along_axis(mixture.locations, component, axis=1),
        log_scales=jnp.take_along_axis(mixture.log_scales, component, axis=1),
        coefficients=jnp.take_along_axis(mixture.coefficients, component[None], axis=2),
    )
    return _as_data(_chain(chosen, noise)[0][:, 0], output)


def mixture_mean(output: jax.Array) -> jax.Array:
    """E[x], [*x].

    Of a pixel's first channel Σ_m π_m E_m[k]. The mean of a later one, given its component, depends
    on the values before it, and not linearly, as it is cut off at 0 and 255: a sum over 256^(C−1)
    of them. It is averaged over a lattice of `MEAN_POINTS` instead, which is right to
    a few hundredths of a level where nothing is cut off, and otherwise, for C = 3, was within half
    a level (2e-3) in every trial made.
    """
    mixture = mixture_of(output)
    channels = len(mixture.locations)
    # Nothing depends on the last channel's noise.
    points = np.pad(_lattice(channels - 1), ((0, 0), (0, 1))) if channels > 1 else np.zeros((1, 1))

    # Recomputed in back-propagation: nothing of a point is kept.
    @jax.checkpoint
    def add(total, noise):
        _, locations = _chain(mixture, noise[:, None, None])
        return total + logistic_mean_level(locations, mixture.log_scales + LOG_UNIT), None

    total, _ = jax.lax.scan(
        add, jnp.zeros_like(mixture.locations), jnp.asarray(points, output.dtype)
    )
    weights = jax.nn.softmax(mixture.logits, axis=0)[None]
    return _as_data(jnp.sum(weights * total, axis=1) / len(points), output)


def _lattice(dimensions: int) -> np.ndarray:
    """Standard logistic noise [MEAN_POINTS, n]: quantiles of the points ½ + iα mod 1.

    α_j = φ^−j with φ^{n+1} = φ + 1, the golden ratio for n = 1: Kronecker's sequence, which fills
    the cube evenly (Niederreiter 1992, ch. 3).
    """
    phi = 1.0
    for _ in range(50):  # a contraction
        phi = (1 + phi) ** (1 / (dimensions + 1))
    index = np.arange(MEAN_POINTS)[:, None] - MEAN_POINTS // 2
    uniform = (0.5 + index * phi ** -np.arange(1.0, dimensions + 1)) % 1
    return np.log(uniform) - np.log1p(-uniform)
