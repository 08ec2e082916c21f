"""Singular values of a run's decoder and encoder, example by example.

With the running statistics of normalisations, as in evaluation: each example has a Jacobian of its
own. Singular values all near one are dynamical isometry, under which neither signals nor gradients
vanish or explode in any direction (Saxe et al. 2014; Pennington et al. 2017).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vae import model, random
from vae.data import Examples, prepare
from vae.errors import UserError
from vae.gradients import spectra
from vae.likelihoods import LIKELIHOODS
from vae.posteriors import POSTERIORS
from vae.spec import ModelSpec
from vae.train import TrainState


def decoder_values(
    spec: ModelSpec,
    examples: Examples,
    state: TrainState,
    rng: jax.Array,
    *,
    num: int = 8,
    batch_size: int = 16,
) -> jax.Array:
    """Singular values of ∂E[x|z]/∂z at the z that stands for q(z|x) of each example, falling.

    E[x|z] is the mean of the likelihood, in units of x: what one sees of the decoder. Where it
    squashes its outputs (Bernoulli's σ(l)), the slope of that is in it too, and saturated pixels
    count for nothing.

    Args:
      examples: B of them, with a deterministic transform. rng: key, see `spectra.singular_values`.
      num: how many, where the smaller of latent size and values of x is above
        `spectra.EXACT_SIZE`; else there are all.
      batch_size: examples at once, each with its Jacobian: memory does not grow with B.

    Returns:
      [B, min(latent size, values of x)] or [B, num].

    Raises:
      UserError: a posterior whose z is discrete.
    """

    def at(x):
        posterior, _ = model.encode(
            spec, state.eval_params, state.stats, state.hparams, x, train=False
        )
        return mean_of, model.location(spec, state.eval_params, posterior, state.stats)

    def mean_of(z):
        decoded, _ = model.decode(
            spec, state.eval_params, state.stats, state.hparams, z[None], train=False
        )
        return decoded.each(LIKELIHOODS[spec.likelihood].mean)[0]

    return _values(spec, examples, at, rng, num, batch_size)


def encoder_values(
    spec: ModelSpec,
    examples: Examples,
    state: TrainState,
    rng: jax.Array,
    *,
    num: int = 8,
    batch_size: int = 16,
) -> jax.Array:
    """Singular values of ∂μ/∂x, μ the z that stands for q(z|x), at each example, falling.

    μ is the posterior's mean or, of a flow, where its base's mean flows to.

    Args, returns and raises: as `decoder_values`.
    """

    def mean_of(x):
        posterior, _ = model.encode(
            spec, state.eval_params, state.stats, state.hparams, x, train=False
        )
        return model.location(spec, state.eval_params, posterior, state.stats)

    return _values(spec, examples, lambda x: (mean_of, x), rng, num, batch_size)


def conditioning(spec: ModelSpec, values: jax.Array) -> dict[str, jax.Array]:
    """What the singular values [B, r] of a Jacobian say, each a mean over examples; scalars.

    `largest`, and, where `values` are all there are:
      smallest       of all.
      rank           how many are not zero to rounding: above max(n, D)·eps times the largest.
      condition      the largest over the smallest that is not zero.
      log_spread     standard deviation of ln s over those that are not zero: 0 if all are equal.
      mean_square    of s², over all. Isometry: 1.
      variance_square of s², over all. Isometry: 0.
    `condition` and `log_spread` are means over the examples whose Jacobian is not zero, and NaN if
    all are.
    """
    latent = POSTERIORS[spec.posterior].latent_size(spec)
    result = {"largest": jnp.mean(values[:, 0])}
    if values.shape[1] < min(latent, spec.num_values):
        return result
    limit = max(latent, spec.num_values) * jnp.finfo(values.dtype).eps * values[:, :1]
    real = values > limit
    rank = jnp.sum(real, axis=1)
    some = rank > 0
    smallest = jnp.min(jnp.where(real, values, jnp.inf), axis=1)
    condition = jnp.where(some, values[:, 0] / smallest, jnp.nan)
    logs = jnp.log(jnp.where(real, values, 1))
    spread = jnp.where(some, jnp.std(logs, axis=1, where=real), jnp.nan)
    squares = jnp.square(values)
    return result | {
        "smallest": jnp.mean(values[:, -1]),
        "rank": jnp.mean(rank.astype(values.dtype)),
        "condition": jnp.nanmean(condition),
        "log_spread": jnp.nanmean(spread),
        "mean_square": jnp.mean(squares),
        "variance_square": jnp.mean(jnp.var(squares, axis=1)),
    }


def _values(
    spec: ModelSpec,
    examples: Examples,
    at: Callable[[jax.Array], tuple[Callable[[jax.Array], jax.Array], jax.Array]],
    rng: jax.Array,
    num: int,
    batch_size: int,
) -> jax.Array:
    """Singular values of a function at a point, both of which x says, for each example."""
    if not POSTERIORS[spec.posterior].continuous:
        raise UserError(
            f"model.posterior: {spec.posterior} has a discrete z, in which nothing has a "
            "derivative. Leave the Jacobians out, or set model.posterior to gaussian."
        )

    def one(raw, rng):
        function, point = at(prepare(examples.transform, raw, None))
        _, linear = jax.linearize(function, point)
        return spectra.singular_values(linear, point, rng, num=num)

    rngs = random.example_rngs(rng, jnp.arange(examples.raw.shape[0]))
    return jax.lax.map(lambda pair: one(*pair), (examples.raw, rngs), batch_size=batch_size)
