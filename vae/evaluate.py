"""Held-out evaluation of a population: bounds in nats, active units, importance-sampled NLL.

Everything is a mean over examples, computed in batches, so that memory does not grow with the
size of the dataset, nor with K. The noise of an example is a function of (seed, split, example):
the same at each evaluation, so that curves show the model and not the draw.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vae import elbo, hierarchy, mesh, model, objectives, packing, random
from vae.data import Examples, prepare
from vae.likelihoods import LIKELIHOODS
from vae.posteriors import POSTERIORS
from vae.spec import ModelSpec
from vae.train import TrainState

# A latent dimension is active when the variance over x of its posterior mean exceeds this:
# Burda et al. 2016, section 5.2.
ACTIVE_UNIT_VARIANCE = 0.01

# Samples of z decoded at once for each example of `nll`. A constant: the noise of sample k must
# not depend on how much memory there is.
IW_CHUNK = 64

SPLITS = {"test": 0, "train": 1}


class _Moments(NamedTuple):
    """Count, means and sums of squared deviations, mergeable (Chan et al. 1979)."""

    count: jax.Array
    mean: jax.Array
    m2: jax.Array

    def merge(self, other: "_Moments") -> "_Moments":
        count = self.count + other.count
        share = other.count / jnp.maximum(count, 1)
        delta = other.mean - self.mean
        return _Moments(
            count,
            self.mean + delta * share,
            self.m2 + other.m2 + jnp.square(delta) * (self.count * share),
        )


def _batch_moments(values: jax.Array, weights: jax.Array) -> _Moments:
    """Of values [B, d] with weights [B] of 0 or 1."""

    def total(values):  # not a product of matrices: a GPU would round its factors to TF32
        return jnp.sum(weights[:, None] * values, axis=0)

    count = jnp.sum(weights)
    mean = total(values) / jnp.maximum(count, 1)
    return _Moments(count, mean, total(jnp.square(values - mean[None])))


def _batches(num_examples: int, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """Indices [batches, B] that cover all examples, and weights: 0 where the last is padded."""
    num_batches = -(-num_examples // batch_size)
    index = jnp.arange(num_batches * batch_size).reshape(num_batches, batch_size)
    return jnp.minimum(index, num_examples - 1), (index < num_examples).astype(jnp.float32)


def _examples(
    examples: Examples, state: TrainState, split: jax.Array, index: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Model inputs [B, *x], spread over `data`, and one key for each."""
    rng = jax.random.fold_in(random.stream(state.hparams.seed, random.EVALUATE), split)
    raw = mesh.spread(examples.raw[index])
    x = jax.vmap(lambda raw: prepare(examples.transform, raw, None))(raw)
    return x, random.example_rngs(rng, index)


def evaluate_run(
    spec: ModelSpec,
    examples: Examples,
    split: jax.Array,
    state: TrainState,
    *,
    num_samples: int,
    batch_size: int,
) -> dict[str, jax.Array]:
    """Rate, distortion and elbo of one run, with the definitions of training.

    Args:
      examples: with a deterministic transform, see `vae.data.Dataset.evaluation`.
      split: a value of `SPLITS`, which keeps the noise of the splits apart.
      num_samples: K samples of z per example.

    Returns:
      `rate`, `distortion`, `elbo`, `active_units` (scalars), `kl_per_dim` ([d], or [1] where the
      KL is one number), and `bpd`, −elbo in bits per value, where the data are discrete. Of
      several stochastic layers also `rate_z1`, `active_units_z1`, ...: each layer's part of them.
    """

    def body(carry, batch):
        index, weights = batch
        x, rngs = _examples(examples, state, split, index)

        def one(x, rng):
            noise = model.noise(spec, rng, num_samples, state.hparams)
            terms, _ = elbo.terms(
                spec, state.eval_params, state.stats, state.hparams, x, noise, train=False
            )
            where = model.location(spec, state.eval_params, terms.posterior, state.stats)
            return objectives.metrics(terms), terms.kl, where

        metrics, kl, mean = jax.vmap(one)(x, rngs)
        columns = jnp.stack([metrics[name] for name in names], axis=1)
        values, means = carry
        values = values.merge(_batch_moments(jnp.concatenate([columns, kl], axis=1), weights))
        return (values, means.merge(_batch_moments(mean, weights))), None

    names = ("rate", "distortion", "elbo")

    def empty(n):
        return _Moments(jnp.zeros(()), jnp.zeros(n), jnp.zeros(n))

    latent_size = POSTERIORS[spec.posterior].latent_size(spec)
    carry = empty(len(names) + elbo.num_kls(spec)), empty(latent_size)
    batches = _batches(examples.raw.shape[0], batch_size)
    (values, means), _ = jax.lax.scan(body, carry, batches)
    # A discrete variable, or a code, has several numbers: together they are one unit.
    variance = jnp.sum((means.m2 / means.count).reshape(spec.latent_dim, -1), axis=1)
    result = {name: values.mean[i] for i, name in enumerate(names)}
    if LIKELIHOODS[spec.likelihood].levels:
        result["bpd"] = -result["elbo"] / (spec.num_values * math.log(2))
    kl, active = values.mean[len(names) :], variance > ACTIVE_UNIT_VARIANCE
    if len(spec.latent_dims) > 1:
        layers = zip(hierarchy.split(spec, kl), hierarchy.split(spec, active), strict=True)
        for layer, (own_kl, own_active) in enumerate(layers, 1):
            result[f"rate_z{layer}"] = jnp.sum(own_kl)
            result[f"active_units_z{layer}"] = jnp.sum(own_active)
    return {**result, "active_units": jnp.sum(active), "kl_per_dim": kl}


def iw_bounds_run(
    spec: ModelSpec,
    examples: Examples,
    split: jax.Array,
    index: jax.Array,
    state: TrainState,
    *,
    num_samples: int,
    batch_size: int,
) -> jax.Array:
    """log 1/K Σ_k w_k of each example `index` names, nats, [n]; Burda et al. 2016, eq. 8.

    The K samples are drawn and decoded `IW_CHUNK` at a time, their weights summed by a running
    log-sum-exp: memory is that of `batch_size` × `IW_CHUNK` decoded examples whatever K is. What
    an example gets depends on its index and on nothing else that is in the batch.
    """
    chunk = min(IW_CHUNK, num_samples)
    num_chunks = -(-num_samples // chunk)

    def one(x, rng):
        params, stats = state.eval_params, state.stats
        posterior, _ = model.encode(spec, params, stats, state.hparams, x, train=False)

        def body(log_sum, number):
            noise = model.noise(spec, jax.random.fold_in(rng, number), chunk, state.hparams)
            terms, _ = elbo.terms_given(
                spec, params, stats, state.hparams, x, posterior, noise, train=False
            )
            used = number * chunk + jnp.arange(chunk) < num_samples
            log_w = jnp.where(used, objectives.iw_log_weights(terms), -jnp.inf)
            return jnp.logaddexp(log_sum, jax.nn.logsumexp(log_w)), None

        log_sum, _ = jax.lax.scan(body, -jnp.inf, jnp.arange(num_chunks))
        return log_sum - jnp.log(num_samples)

    def batch(position):
        x, rngs = _examples(examples, state, split, index[position])
        return jax.vmap(one)(x, rngs)

    count = index.shape[0]
    positions, _ = _batches(count, batch_size)
    return jax.lax.map(batch, positions).reshape(-1)[:count]


def iw_bound_run(
    spec: ModelSpec,
    examples: Examples,
    split: jax.Array,
    state: TrainState,
    *,
    num_samples: int,
    batch_size: int,
) -> jax.Array:
    """Mean of `iw_bounds_run` over all examples, nats; nll = −iw_bound."""
    index = jnp.arange(examples.raw.shape[0])
    bounds = iw_bounds_run(
        spec, examples, split, index, state, num_samples=num_samples, batch_size=batch_size
    )
    return jnp.mean(bounds)


def _of_each_run(function: Callable[..., Any], doc: str) -> Any:
    """A jitted function of a population from one of a run, with a leading axis [R]."""

    def apply(spec, pack, num_samples, batch_size, population, examples, *which):
        def one(shared, state):
            return function(spec, *shared, state, num_samples=num_samples, batch_size=batch_size)

        return packing.over_runs(one, pack, (examples, *which), population.states)

    jitted = jax.jit(apply, static_argnames=("spec", "pack", "num_samples", "batch_size"))
    jitted.__doc__ = doc
    return jitted


# All are called as (spec, pack, num_samples, batch_size, population, examples, split), the last
# with the index of the examples after the split.
evaluate = _of_each_run(evaluate_run, "`evaluate_run` of each run: values with an axis [R].")
iw_bound = _of_each_run(iw_bound_run, "`iw_bound_run` of each run, [R].")
iw_bounds = _of_each_run(
    iw_bounds_run, "`iw_bounds_run` of each run, [R, n]: for a part of the examples at a time."
)
