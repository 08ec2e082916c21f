"""Likelihoods p(x|z): what the decoder's output means. Each carries its constants.

A likelihood is one row of `LIKELIHOODS`. Rows of one location-scale family differ only in where the
scale comes from, which `vae.model.decode` sees to; the suffix says it:

  (none)    σ of the hyperparameter `sigma`
  _shared   one learned log σ² for all pixels
  _pixel    log σ² [*x] from the decoder's second head, `variance`
  _optimal  σ² = mean squared error of the batch (σ-VAE: Rybkin et al. 2021, eq. 4)

σ is the family's scale parameter: the standard deviation of a Gaussian, but not of the others; and
`logvar` is log σ². It is in units of x.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vae import discretized, distributions

# With `_pixel` the likelihood of a pixel that never changes is unbounded (Mattei and Frellsen
# 2018). Data of 8 bits cannot tell a σ below a tenth of a grey level from zero.
MIN_PIXEL_LOGVAR = -15.6  # 2 ln(0.1/255)

# What a likelihood reads, by name: the decoder's heads, [*x] or, with other than one number a
# value, [pixels, numbers]; where it has a scale, `logvar` ([*x] or a scalar); and hyperparameters.
Outputs = dict[str, jax.Array]


def _one_per_value(channels: int) -> dict[str, int]:
    return {"output": channels}


def _two_per_value(channels: int) -> dict[str, int]:
    return {"output": channels, "variance": channels}


class Likelihood(NamedTuple):
    """p(x|z) as functions of `Outputs`.

    Attributes:
      log_prob: (x, outputs) -> scalar, nats, summed over x.
      mean: outputs -> E[x|z], [*x]; where there is none, of Student's t for df ≤ 1, the location.
      sample: (rng, outputs) -> a draw of x, [*x].
      bias: E[x] [*x] -> the bias of the head `output` under which a zero decoder has that mean
        (of discretised logistics, that location); None where a mean does not say it.
      support: smallest and largest value that data may take.
      heads: channels of the data -> the decoder's heads and the numbers of each per pixel.
      scale: where log σ² comes from: `fixed`, `shared`, `pixel`, `optimal`, or "" (no scale).
      numbers: hyperparameters that it reads.
      levels: of discrete data, the number of values that x takes, evenly over its support; else 0.
      location: whether the head `output` is the location of a density on the whole line, which
        `OUTPUTS` may bound.
    """

    log_prob: Callable[[jax.Array, Outputs], jax.Array]
    mean: Callable[[Outputs], jax.Array]
    sample: Callable[[jax.Array, Outputs], jax.Array]
    bias: Callable[[jax.Array], jax.Array] | None
    support: tuple[float, float]
    heads: Callable[[int], dict[str, int]] = _one_per_value
    scale: str = ""
    numbers: tuple[str, ...] = ()
    levels: int = 0
    location: bool = False


def _logit(mean: jax.Array) -> jax.Array:
    # A pixel that is black in all training images must stay possible: one half count each way
    # at about ten thousand images.
    p = jnp.clip(mean, 5e-5, 1 - 5e-5)
    return jnp.log(p) - jnp.log1p(-p)


class Output(NamedTuple):
    """What is made of the head `output` where it is a location, see `OUTPUTS`.

    Attributes:
      value: the head [*x] -> the location, [*x].
      inverse: a location -> the head that gives it, for the bias that starts there.
    """

    value: Callable[[jax.Array], jax.Array]
    inverse: Callable[[jax.Array], jax.Array]


OUTPUTS: dict[str, Output] = {
    "identity": Output(lambda head: head, lambda location: location),
    "sigmoid": Output(jax.nn.sigmoid, _logit),
}


def _sample_bernoulli(rng: jax.Array, outputs: Outputs) -> jax.Array:
    logits = outputs["output"]
    return jax.random.bernoulli(rng, jax.nn.sigmoid(logits)).astype(logits.dtype)


BERNOULLI = Likelihood(
    log_prob=lambda x, outputs: distributions.bernoulli_log_prob(x, outputs["output"]),
    mean=lambda outputs: jax.nn.sigmoid(outputs["output"]),
    sample=_sample_bernoulli,
    bias=_logit,
    support=(0.0, 1.0),
)


def _continuous_bernoulli_bias(mean: jax.Array) -> jax.Array:
    """The logit l with E[x] = mean: E[x] = ½ + ½ L(l/2), L(t) = coth t − 1/t of Langevin.

    L⁻¹(y) ≈ y(3 − y²)/(1 − y²) to 5% (Cohen 1991), and Newton's method from there.
    """
    # Data of 8 bits do not tell a mean from 0 that is below a tenth of a grey level; and with the
    # logit, beyond −2550 then, the gradient would vanish.
    mean = jnp.clip(mean, 0.1 / 255, 1 - 0.1 / 255)
    # From the nearer end, where E[x] keeps its digits.
    near = jnp.minimum(mean, 1 - mean)
    y = 1 - 2 * near
    start = -2 * y * (3 - jnp.square(y)) / (1 - jnp.square(y))
    mean_of = distributions.continuous_bernoulli_mean

    def step(_, logits):
        value, slope = jax.jvp(mean_of, (logits,), (jnp.ones_like(logits),))
        return logits - (value - near) / slope

    logits = jax.lax.fori_loop(0, 5, step, start)
    return jnp.where(mean > 0.5, -logits, logits)


def _sample_continuous_bernoulli(rng: jax.Array, outputs: Outputs) -> jax.Array:
    logits = outputs["output"]
    uniform = jax.random.uniform(rng, logits.shape, logits.dtype)
    return distributions.continuous_bernoulli_quantile(uniform, logits)


CONTINUOUS_BERNOULLI = Likelihood(
    log_prob=lambda x, outputs: distributions.continuous_bernoulli_log_prob(x, outputs["output"]),
    mean=lambda outputs: distributions.continuous_bernoulli_mean(outputs["output"]),
    sample=_sample_continuous_bernoulli,
    bias=_continuous_bernoulli_bias,
    support=(0.0, 1.0),
)


def _scale(outputs: Outputs) -> jax.Array:
    return jnp.exp(0.5 * jnp.broadcast_to(outputs["logvar"], outputs["output"].shape))


def _sample_gaussian(rng: jax.Array, outputs: Outputs) -> jax.Array:
    mean = outputs["output"]
    noise = jax.random.normal(rng, mean.shape, mean.dtype)
    return mean + _scale(outputs) * noise


GAUSSIAN = Likelihood(
    log_prob=lambda x, outputs: distributions.normal_log_prob(
        x, outputs["output"], outputs["logvar"]
    ),
    mean=lambda outputs: outputs["output"],
    sample=_sample_gaussian,
    bias=lambda mean: mean,
    support=(-float("inf"), float("inf")),
    scale="fixed",
    location=True,
)


def _sample_laplace(rng: jax.Array, outputs: Outputs) -> jax.Array:
    location = outputs["output"]
    noise = jax.random.laplace(rng, location.shape, location.dtype)
    return location + _scale(outputs) * noise


LAPLACE = GAUSSIAN._replace(
    log_prob=lambda x, outputs: distributions.laplace_log_prob(
        x, outputs["output"], outputs["logvar"]
    ),
    sample=_sample_laplace,
)


def _sample_student(rng: jax.Array, outputs: Outputs) -> jax.Array:
    location = outputs["output"]
    noise = jax.random.t(rng, outputs["student_df"], location.shape, location.dtype)
    return location + _scale(outputs) * noise


STUDENT = GAUSSIAN._replace(
    log_prob=lambda x, outputs: distributions.student_log_prob(
        x, outputs["output"], outputs["logvar"], outputs["student_df"]
    ),
    sample=_sample_student,
    numbers=("student_df",),
)


# Discrete: data k/255, k = 0 ... 255. Head layouts and formulas are in `vae.discretized`.

CATEGORICAL = Likelihood(
    log_prob=lambda x, outputs: discretized.categorical_log_prob(x, outputs["output"]),
    mean=lambda outputs: discretized.categorical_mean(outputs["output"]),
    sample=lambda rng, outputs: discretized.categorical_sample(rng, outputs["output"]),
    bias=None,
    support=(0.0, 1.0),
    heads=lambda channels: {"output": channels * discretized.LEVELS},
    levels=discretized.LEVELS,
)

LOGISTIC = Likelihood(
    log_prob=lambda x, outputs: discretized.logistic_log_prob(
        x, outputs["output"], outputs["logvar"]
    ),
    mean=lambda outputs: discretized.logistic_mean(outputs["output"], outputs["logvar"]),
    sample=lambda rng, outputs: discretized.logistic_sample(
        rng, outputs["output"], outputs["logvar"]
    ),
    bias=lambda mean: mean,
    support=(0.0, 1.0),
    scale="shared",
    levels=discretized.LEVELS,
)

LOGISTIC_MIXTURE = Likelihood(
    log_prob=lambda x, outputs: discretized.mixture_log_prob(x, outputs["output"]),
    mean=lambda outputs: discretized.mixture_mean(outputs["output"]),
    sample=lambda rng, outputs: discretized.mixture_sample(rng, outputs["output"]),
    bias=None,
    support=(0.0, 1.0),
    heads=lambda channels: {"output": discretized.mixture_numbers(channels)},
    levels=discretized.LEVELS,
)


def _scales(name: str, family: Likelihood) -> dict[str, Likelihood]:
    """The rows of a location-scale family: fixed, shared and per-pixel scale."""
    return {
        name: family,
        f"{name}_shared": family._replace(scale="shared"),
        f"{name}_pixel": family._replace(scale="pixel", heads=_two_per_value),
    }


LIKELIHOODS: dict[str, Likelihood] = {
    "bernoulli": BERNOULLI,
    "continuous_bernoulli": CONTINUOUS_BERNOULLI,
    **_scales("gaussian", GAUSSIAN),
    "gaussian_optimal": GAUSSIAN._replace(scale="optimal"),
    **_scales("laplace", LAPLACE),
    **_scales("student", STUDENT),
    "categorical": CATEGORICAL,
    "logistic_shared": LOGISTIC,
    "logistic_pixel": LOGISTIC._replace(scale="pixel", heads=_two_per_value),
    "logistic_mixture": LOGISTIC_MIXTURE,
}
