"""Bounds on log p(x) as functions of the log-weights of K samples, and estimators of gradients.

log w_k = log p(x|z_k) + log p(z_k) − log q(z_k|x), z_k ~ q(z|x), of one example. A bound B is one
row of `BOUNDS`; an estimator is one row of `ESTIMATORS` and works for every bound, because all it
needs are two derivatives of B: v_k = ∂B/∂log w_k and h_k = ∂²B/∂(log w_k)².

The gradient of E[B] in the encoder's parameters φ is E Σ_k v_k (path_k − score_k), where path_k is
the gradient of log w_k through z_k alone and score_k = ∂ log q(z_k|x)/∂φ at a held z_k.

  reparameterization  as it stands; Kingma and Welling 2014
  stl                 without the scores, biased unless E[v_k score_k] = 0; Roeder et al. 2017
  dreg                the scores reparameterised once more, E[v_k score_k] = E[h_k path_k], so that
                      Σ_k (v_k − h_k) path_k: w̃_k² for IWAE (Tucker et al. 2019, eq. 7), and
                      α w̃_k + (1 − α) w̃_k² for Rényi's bound (Daudel et al. 2023)
  gdreg               dreg, and for the parameters λ of a learned prior the like: the scores
                      s_k = ∂/∂λ log p(z_k) reparameterised as if z_k = T(e_k; λ) had been drawn
                      from p, E[v_k s_k] = E[(v_k ∇log q/p + h_k ∇log w_k)·∂T(e_k; λ)/∂λ], ∇ in z_k
                      (Bauer and Mnih 2021, section 4)
  score               no path at all: Σ_k (B − B_k) score_k with a baseline B_k from the other
                      samples, their mean in the place of log w_k: VIMCO (Mnih and Rezende 2016),
                      of the ELBO the leave-one-out mean (Kool et al. 2019)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vae.hparams import HParams


class Bound(NamedTuple):
    """One row of `BOUNDS`.

    Attributes:
      value: (log_w [M, K], hparams) -> B, nats.
      share: (log_w [M, K], hparams) -> 1 − h_k/v_k, [M, K]: what `dreg` leaves of each path at
        β = 1, see `path_share`.
      encoder: the bound that the encoder's parameters maximise, where it is another one.
    """

    value: Callable[[jax.Array, HParams], jax.Array]
    share: Callable[[jax.Array, HParams], jax.Array]
    encoder: str = ""


def log_mean_exp(values: jax.Array, axis: int | None = None) -> jax.Array:
    """log of the mean of exp(values)."""
    count = values.size if axis is None else values.shape[axis]
    return jax.nn.logsumexp(values, axis=axis) - jnp.log(jnp.asarray(count, values.dtype))


def elbo(log_w: jax.Array, hparams: HParams) -> jax.Array:
    """1/K Σ log w_k: the ELBO with a sampled KL."""
    del hparams
    return jnp.mean(log_w)


def iwae(log_w: jax.Array, hparams: HParams) -> jax.Array:
    """log 1/K Σ w_k; Burda et al. 2016, eq. 8."""
    del hparams
    return log_mean_exp(log_w)


def miwae(log_w: jax.Array, hparams: HParams) -> jax.Array:
    """1/M Σ_m log 1/K Σ_k w_mk; Rainforth et al. 2018, eq. 14."""
    del hparams
    return jnp.mean(log_mean_exp(log_w, axis=1))


def ciwae(log_w: jax.Array, hparams: HParams) -> jax.Array:
    """β ELBO + (1 − β) IWAE, β = `ciwae_beta`; Rainforth et al. 2018, eq. 15."""
    beta = jnp.asarray(hparams.ciwae_beta, log_w.dtype)
    return beta * elbo(log_w, hparams) + (1 - beta) * iwae(log_w, hparams)


def renyi(log_w: jax.Array, hparams: HParams) -> jax.Array:
    """1/(1 − α) log 1/K Σ w_k^(1−α); Li and Turner 2016, eq. 7: α = 1 the ELBO, α = 0 IWAE.

    A lower bound for α ≥ 0. As it stands, its rounding errors of 1e-7/|a|, a = 1 − α, drown it as
    α → 1. There it is taken from the mean up, mean + log(1 + mean(exp(a·d) − 1))/a with deviations
    d from the mean, which loses no digits while a·d is small and is the mean at a = 0.
    """
    a = 1 - jnp.asarray(hparams.renyi_alpha, log_w.dtype)
    divisor = jnp.where(a == 0, jnp.ones_like(a), a)
    mean = jnp.mean(log_w)
    tilt = a * (log_w - mean)
    near = jnp.max(jnp.abs(tilt)) < 1
    excess = jnp.mean(jnp.expm1(jnp.where(near, tilt, 0)))
    return jnp.where(near, mean + jnp.log1p(excess) / divisor, log_mean_exp(a * log_w) / divisor)


def _softmax_share(log_w: jax.Array, hparams: HParams) -> jax.Array:
    """v = w̃, h = w̃(1 − w̃)."""
    del hparams
    return jax.nn.softmax(log_w, axis=(0, 1))


def _miwae_share(log_w: jax.Array, hparams: HParams) -> jax.Array:
    """As IWAE within each group: the factor 1/M is in both v and h."""
    del hparams
    return jax.nn.softmax(log_w, axis=1)


def _ciwae_share(log_w: jax.Array, hparams: HParams) -> jax.Array:
    """v = β/K + (1 − β)w̃, h = (1 − β)w̃(1 − w̃)."""
    beta = jnp.asarray(hparams.ciwae_beta, log_w.dtype)
    weight = jax.nn.softmax(log_w, axis=(0, 1))
    v = beta / log_w.size + (1 - beta) * weight
    rest = beta / log_w.size + (1 - beta) * jnp.square(weight)
    # Both vanish for β = 0 and a weight of 0, and so does what is multiplied by their quotient.
    return rest / jnp.where(v > 0, v, jnp.ones_like(v))


def _renyi_share(log_w: jax.Array, hparams: HParams) -> jax.Array:
    """v = w̃, the softmax of a·log w, and h = a·w̃(1 − w̃)."""
    a = 1 - jnp.asarray(hparams.renyi_alpha, log_w.dtype)
    return 1 - a * (1 - jax.nn.softmax(a * log_w, axis=(0, 1)))


BOUNDS: dict[str, Bound] = {
    "elbo": Bound(elbo, lambda log_w, hparams: jnp.ones_like(log_w)),
    "iwae": Bound(iwae, _softmax_share),
    "miwae": Bound(miwae, _miwae_share),
    "ciwae": Bound(ciwae, _ciwae_share),
    # The decoder maximises IWAE over all M·K samples; Rainforth et al. 2018, section 5.3.
    "piwae": Bound(iwae, _softmax_share, encoder="miwae"),
    "renyi": Bound(renyi, _renyi_share),
}


class Estimator(NamedTuple):
    """One row of `ESTIMATORS`: the `mode` of log q(z|x) (see `vae.family`) and what it is."""

    mode: str
    doubly: bool = False
    prior: bool = False
    score: bool = False


ESTIMATORS: dict[str, Estimator] = {
    "reparameterization": Estimator("total"),
    "stl": Estimator("path"),
    "dreg": Estimator("path", doubly=True),
    "gdreg": Estimator("path", doubly=True, prior=True),
    "score": Estimator("score", score=True),
}


def prior_share(
    bound: Bound, log_w: jax.Array, hparams: HParams, beta: jax.Array | float = 1.0
) -> jax.Array:
    """βh/v, [M, K]: what `gdreg` gives the prior of the gradient that arrives at each z.

    That gradient is v_k ∇log w_k, and λ's of log w_k is weighed by β. Where the encoder's `dreg`
    leaves the path 1 − βh/v, nothing is lost.
    """
    return beta * (1 - bound.share(log_w, hparams))


def path_share(
    bound: Bound, log_w: jax.Array, hparams: HParams, beta: jax.Array | float = 1.0
) -> jax.Array:
    """Factor of each sample's path for `dreg`, [M, K]: (1 − a)(1 − βh/v) + aβh/v, a = `dreg_alpha`.

    β: what log q is weighed by in `log_w`, and so the scores that turn into β·h_k of the path.

    a = 0 is the bound's own gradient. For IWAE, a = 1 is the doubly reparameterised wake update of
    RWS, Σ (w̃ − w̃²) path, and a = ½ half of stl (Tucker et al. 2019, section 6): not the bound's.
    """
    share = 1 - beta + beta * bound.share(log_w, hparams)
    a = jnp.asarray(hparams.dreg_alpha, log_w.dtype)
    return (1 - a) * share + a * (1 - share)


def learning_signal(bound: Bound, log_w: jax.Array, hparams: HParams) -> jax.Array:
    """B − B_mk, [M, K]: B_mk has the mean of the group's other log-weights in place of log w_mk.

    Of one sample in a group there are no others: the baseline is then 0, the signal B itself.
    """
    groups, samples = log_w.shape
    value = bound.value(log_w, hparams)
    if samples == 1:
        return jnp.broadcast_to(value, log_w.shape)
    others = (jnp.sum(log_w, axis=1, keepdims=True) - log_w) / (samples - 1)

    def without(m, k):
        return bound.value(log_w.at[m, k].set(others[m, k]), hparams)

    m, k = jnp.divmod(jnp.arange(log_w.size), samples)
    return value - jax.vmap(without)(m, k).reshape(groups, samples)
