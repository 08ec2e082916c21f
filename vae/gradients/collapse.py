"""Posterior collapse: which latents carry nothing, how much z tells of x, how far q lags behind.

Measured as in evaluation, of examples with a deterministic transform: running statistics, the
averaged parameters where there are any, and noise that is a function of the key and the example.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vae import elbo, model, objectives, penalties, random
from vae.data import Examples, prepare
from vae.errors import UserError
from vae.evaluate import ACTIVE_UNIT_VARIANCE, IW_CHUNK
from vae.posteriors import POINTS
from vae.spec import ModelSpec
from vae.train import TrainState

# What of a posterior is not a density of z has none of this: neither a KL per dimension to lose,
# nor weights of its samples.
_WITHOUT_DENSITY = (*POINTS, "vq", "categorical")

# Those whose `mean` is E_q[z].
_GAUSSIANS = ("gaussian", "full", "low_rank")


class Codes(NamedTuple):
    """What the encoder makes of N examples.

    Attributes:
      kl: KL(q(z|x) || p(z)) of each dimension [N, d] or, without a closed form, sampled, [N, 1].
      location: the z that stands for q(z|x), [N, d].
      z: one sample of q(z|x), [N, d].
      mean, logvar: of q(z|x), before correlations or flows; [N, d].
    """

    kl: jax.Array
    location: jax.Array
    z: jax.Array
    mean: jax.Array
    logvar: jax.Array


class Means(NamedTuple):
    """The mean of z given x, by the encoder and by the model itself, of N examples.

    Attributes:
      encoder: E[z] under q(z|x), [N, d].
      model: E[z] under p(z|x), estimated, [N, d].
      effective_samples: (Σw)²/Σw² of the weights behind it, 1 to K, [N]. Below some tens, `model`
        is a few samples of q and near `encoder` whatever the lag.
    """

    encoder: jax.Array
    model: jax.Array
    effective_samples: jax.Array


class Lag(NamedTuple):
    """How far the encoder's means are from the model's; He et al. 2019.

    Attributes:
      squared: mean over examples of the squared difference, of each dimension, [d].
      rms: root of its mean over dimensions.
      slopes: of the regression of the encoder's mean on the model's, [d]: 1 where q keeps up, 0
        where q ignores what the model's posterior knows; NaN where the model's mean is constant.
      slope: the same of all dimensions pooled, each centred on its own mean.
    """

    squared: jax.Array
    rms: jax.Array
    slopes: jax.Array
    slope: jax.Array


def collapse(
    spec: ModelSpec,
    examples: Examples,
    state: TrainState,
    rng: jax.Array,
    *,
    thresholds: tuple[float, ...] = (ACTIVE_UNIT_VARIANCE,),
    epsilon: float = 0.01,
    delta: float = 0.01,
    batch_size: int = 128,
) -> dict[str, jax.Array]:
    """How collapsed the posterior of a run is, over N examples.

    Args:
      rng: key of the samples. thresholds: of `active_units`, T of them.
      epsilon, delta: see `collapsed`. batch_size: examples encoded at once.

    Returns:
      rate            mean KL(q(z|x) || p(z)), nats.
      active_units    [T] how many dimensions vary, see `active_units`.
      Where the KL has a closed form:
      kl_per_dim      [d] mean KL of each dimension; of correlated ones, the chain rule's terms.
      collapsed       [d] which dimensions are, see `collapsed`.
      fraction_collapsed  the share of those.
      Where q(z|x) is a diagonal Gaussian:
      mutual_information  I_q(x; z), estimated from N² pairs, see `penalties.information_gains`.
      information_ceiling ln N, which the estimate cannot pass: near it, it is a lower bound alone.
      marginal_kl     KL(q(z) || p(z)) = rate − mutual_information (Hoffman and Johnson 2016); so
        too large by what the ceiling cuts off.

    Raises:
      UserError: a posterior without a density.
    """
    seen = codes(spec, examples, state, rng, batch_size=batch_size)
    rate = jnp.mean(jnp.sum(seen.kl, axis=1))
    result = {"rate": rate, "active_units": active_units(seen.location, thresholds)}
    if elbo.analytic_kl(spec):
        which = collapsed(seen.kl, epsilon=epsilon, delta=delta)
        result |= {
            "kl_per_dim": jnp.mean(seen.kl, axis=0),
            "collapsed": which,
            "fraction_collapsed": jnp.mean(which.astype(rate.dtype)),
        }
    if spec.posterior == "gaussian":
        information = jnp.mean(penalties.information_gains(seen.z, seen.mean, seen.logvar))
        result |= {
            "mutual_information": information,
            "information_ceiling": jnp.asarray(math.log(len(seen.z)), rate.dtype),
            "marginal_kl": rate - information,
        }
    return result


def codes(
    spec: ModelSpec, examples: Examples, state: TrainState, rng: jax.Array, *, batch_size: int
) -> Codes:
    """`Codes` of all examples, `batch_size` at a time; raises as `collapse`."""
    _check(spec)

    def one(raw, rng):
        x = prepare(examples.transform, raw, None)
        terms, _ = elbo.terms(
            spec,
            state.eval_params,
            state.stats,
            state.hparams,
            x,
            model.noise(spec, rng, 1),
            train=False,
        )
        posterior = terms.posterior
        location = model.location(spec, state.eval_params, posterior, state.stats)
        return Codes(terms.kl, location, terms.z[0], posterior.mean, posterior.logvar)

    rngs = random.example_rngs(rng, jnp.arange(examples.raw.shape[0]))
    return jax.lax.map(lambda pair: one(*pair), (examples.raw, rngs), batch_size=batch_size)


def active_units(location: jax.Array, thresholds: tuple[float, ...]) -> jax.Array:
    """Dimensions whose variance over examples (ddof 0) exceeds each threshold; Burda et al. 2016.

    Args:
      location: [N, d]. thresholds: T of them; section 5.2 has 0.01.

    Returns:
      int32 [T].
    """
    variance = jnp.var(location, axis=0)
    above = variance[None, :] > jnp.asarray(thresholds, variance.dtype)[:, None]
    return jnp.sum(above, axis=1, dtype=jnp.int32)


def collapsed(kl: jax.Array, *, epsilon: float, delta: float) -> jax.Array:
    """Which dimensions are (ε, δ)-collapsed: P_x(KL_j < ε) ≥ 1 − δ; Lucas et al. 2019.

    Args:
      kl: KL of each dimension, [N, d], nats. epsilon: nats. delta: a share of the N examples.

    Returns:
      bool [d].
    """
    # Counted in whole examples: of 100, one may be above for δ = .01. A KL that is not a number is
    # not below ε. The 1e-6 is for a δN that floats round to just below the whole number it is.
    above = jnp.sum(~(kl < epsilon), axis=0)
    return above <= math.floor(delta * len(kl) + 1e-6)


def posterior_means(
    spec: ModelSpec,
    examples: Examples,
    state: TrainState,
    rng: jax.Array,
    *,
    num_samples: int,
    batch_size: int = 16,
) -> Means:
    """E[z] under the model's posterior p(z|x), by self-normalised importance sampling from q.

    With weights w_k = p(x, z_k)/q(z_k|x) of K samples, and w̃ their softmax,

        E_p[z|x] ≈ E_q[z|x] + Σ_k (w̃_k − 1/K) z_k:

    the samples' own mean gives way to the known one (of flows it has to do), so that equal weights,
    q = p(z|x), give no difference at all, and not one of σ/√K. `IW_CHUNK` samples at a time of
    `batch_size` examples: memory does not grow with K. The bias is of the order of 1/K.

    Raises:
      UserError: a posterior without a density; fewer than 2 samples, of which no weight tells.
    """
    _check(spec)
    if num_samples < 2:
        raise UserError(
            f"num_samples: {num_samples}, but a lag is found by comparing the weights of samples. "
            "Set num_samples to 2 or more: hundreds, for dimensions that are not collapsed."
        )
    params, stats, hparams = state.eval_params, state.stats, state.hparams
    chunk = min(IW_CHUNK, num_samples)

    def one(raw, rng):
        x = prepare(examples.transform, raw, None)
        posterior, _ = model.encode(spec, params, stats, hparams, x, train=False)
        center = model.location(spec, params, posterior, stats)

        def body(sums, number):
            noise = model.noise(spec, jax.random.fold_in(rng, number), chunk)
            terms, _ = elbo.terms_given(
                spec, params, stats, hparams, x, posterior, noise, train=False
            )
            used = number * chunk + jnp.arange(chunk) < num_samples
            log_w = jnp.where(used, objectives.iw_log_weights(terms), -jnp.inf)
            # From there on, so that the difference of two averages of z loses no digits.
            moved = jnp.where(used[:, None], terms.z - center[None], 0)
            return _add(sums, log_w, moved), None

        start = _Sums.empty(center)
        sums, _ = jax.lax.scan(body, start, jnp.arange(-(-num_samples // chunk)))
        plain = sums.plain / num_samples
        mean = center if spec.posterior in _GAUSSIANS else center + plain
        return Means(
            encoder=mean,
            model=mean + (sums.weighted / sums.weight - plain),
            effective_samples=jnp.square(sums.weight) / sums.squared,
        )

    rngs = random.example_rngs(rng, jnp.arange(examples.raw.shape[0]))
    return jax.lax.map(lambda pair: one(*pair), (examples.raw, rngs), batch_size=batch_size)


def lag(means: Means) -> Lag:
    """The distance and the regression of the encoder's means and the model's."""
    squared = jnp.mean(jnp.square(means.encoder - means.model), axis=0)
    encoder, true = (a - jnp.mean(a, axis=0)[None] for a in (means.encoder, means.model))
    shared, spread = jnp.sum(encoder * true, axis=0), jnp.sum(jnp.square(true), axis=0)
    return Lag(
        squared=squared,
        rms=jnp.sqrt(jnp.mean(squared)),
        slopes=_ratio(shared, spread),
        slope=_ratio(jnp.sum(shared), jnp.sum(spread)),
    )


class _Sums(NamedTuple):
    """Sums over samples, those with weights in units of exp(top), top the largest log-weight."""

    top: jax.Array
    weight: jax.Array
    squared: jax.Array
    weighted: jax.Array
    plain: jax.Array

    @classmethod
    def empty(cls, like: jax.Array) -> "_Sums":
        zero = jnp.zeros((), like.dtype)
        none = jnp.zeros_like(like)
        return cls(jnp.full((), -jnp.inf, like.dtype), zero, zero, none, none)


def _add(sums: _Sums, log_w: jax.Array, values: jax.Array) -> _Sums:
    """The sums with samples of log-weights [K] and values [K, d] added."""
    top = jnp.maximum(sums.top, jnp.max(log_w))
    old, new = jnp.exp(sums.top - top), jnp.exp(log_w - top)
    return _Sums(
        top,
        old * sums.weight + jnp.sum(new),
        jnp.square(old) * sums.squared + jnp.sum(jnp.square(new)),
        old * sums.weighted + jnp.sum(new[:, None] * values, axis=0),
        sums.plain + jnp.sum(values, axis=0),
    )


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    return jnp.where(
        denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1), jnp.nan
    )


def _check(spec: ModelSpec) -> None:
    if spec.posterior in _WITHOUT_DENSITY:
        raise UserError(
            f"model.posterior: {spec.posterior} has no density q(z|x), and so neither active units "
            "nor a lag to be told from it. Leave the measures of collapse out, or set "
            "model.posterior to gaussian."
        )
