"""The ELBO of one example in pieces, of which every bound on log p(x) is made.

As in `vae.model`, x is ONE example [*x]; the caller vmaps over examples with the axis name `batch`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vae import hierarchy, model
from vae.family import Posterior
from vae.hparams import HParams
from vae.likelihoods import LIKELIHOODS
from vae.model import Params, Stats, Taps
from vae.posteriors import POSTERIORS
from vae.priors import PRIORS
from vae.spec import ModelSpec


class Terms(NamedTuple):
    """The pieces of any bound on log p(x) for one example, in nats, before anyone sums them.

    Attributes:
      log_px: log p(x|z_k), [K].
      log_pz: log p(z_k), [K].
      log_qz: log q(z_k|x), [K].
      kl: KL(q(z|x) || p(z)), split as far as it goes: of each latent dimension, analytic, [d];
        where it has no closed form, mean_k log q(z_k|x) − log p(z_k), [1], or, of stochastic
        layers, that of each dimension given the layers that it hangs on, [d].
      posterior: q(z|x).
      z: the samples, [K, latent_size].
    """

    log_px: jax.Array
    log_pz: jax.Array
    log_qz: jax.Array
    kl: jax.Array
    posterior: Posterior
    z: jax.Array


class Path(NamedTuple):
    """How gradients flow through the samples of z; the values are the same whatever it says.

    Attributes:
      mode: one of `vae.family.MODES`: what the gradient of log q(z|x) is taken through.
      scale: [K] or None: factors on the gradient that arrives at the posterior through z_k.
      prior_scale: [K] or None: the parameters of the prior get their gradient as if z_k had been
        drawn from it (`gdreg`, see `vae.bounds`), with these factors on what arrives at z_k.
    """

    mode: str = "total"
    scale: jax.Array | None = None
    prior_scale: jax.Array | None = None


PLAIN = Path()


def terms(
    spec: ModelSpec,
    params: Params,
    stats: Stats,
    hparams: HParams,
    x: jax.Array,
    noise: jax.Array,
    train: bool,
    *,
    path: Path = PLAIN,
    encoded: jax.Array | None = None,
    taps: Taps | None = None,
) -> tuple[Terms, Stats]:
    """The decomposed terms of one example: encode x, then `terms_given` the posterior.

    Args:
      x: [*x]. noise: standard noise of the posterior, [K, noise_size], see `noise`.
      train: whether batch statistics are used and updated; needs the axis name `batch`.
      path: what gradients flow through.
      encoded: what the encoder sees in place of x, [*x]: a corrupted x.
      taps: of `encoder` and `decoder`.

    Returns:
      Terms, and the updated running statistics.
    """
    seen = x if encoded is None else encoded
    taps = taps or {}
    posterior, encoder_stats = model.encode(
        spec, params, stats, hparams, seen, train, taps=taps.get("encoder")
    )
    result, new_stats = terms_given(
        spec,
        params,
        stats,
        hparams,
        x,
        posterior,
        noise,
        train,
        path=path,
        taps=taps.get("decoder"),
    )
    return result, new_stats | {"encoder": encoder_stats}


def terms_given(
    spec: ModelSpec,
    params: Params,
    stats: Stats,
    hparams: HParams,
    x: jax.Array,
    posterior: Posterior,
    noise: jax.Array,
    train: bool,
    *,
    path: Path = PLAIN,
    taps: Taps | None = None,
) -> tuple[Terms, Stats]:
    """z_k from noise_k, p(x|z_k) = model.decode(z_k), and the log-densities of x and z.

    With `gaussian_optimal` and `train`, σ² is the squared error's mean over the axis `batch`,
    over samples and over dimensions: the maximum-likelihood σ² given the networks (Rybkin et al.
    2021). It is held constant in the gradient, which changes nothing, because ∂ELBO/∂σ² = 0
    there. Evaluation uses its running mean: p(x|z) must be one density, not one per batch. The
    mean is over the batches seen, with weights that fall by 1% a step; `weight` is their sum, by
    which it is normalised (as in Adam), so that the starting value has no share in it.

    Args and returns: as `terms`; the statistics are those of all but the encoder.
    """
    family, likelihood = POSTERIORS[spec.posterior], LIKELIHOODS[spec.likelihood]
    own = model.posterior_params(spec, params, stats, train)
    each = functools.partial(jax.vmap, axis_name="sample")

    # 1. Draw z.
    z, drawn = each(lambda e: family.draw(spec, own, posterior, e, hparams, train))(noise)
    if path.mode == "score":
        z = jax.lax.stop_gradient(z)
    drawn_z = jax.lax.stop_gradient(z)
    if path.scale is not None:
        z = scale_gradient(z, path.scale)
    prior = model.prior_state(spec, params, stats, hparams, train)
    if path.prior_scale is not None:
        moved = jax.vmap(lambda z: PRIORS[spec.prior].moved(spec, prior, z))(drawn_z)
        z = z + _only_gradient(scale_gradient(moved, path.prior_scale))

    # 2. Decode.
    decoded, decoder_stats = model.decode(spec, params, stats, hparams, z, train, taps=taps)
    new_stats = {"decoder": decoder_stats}
    if likelihood.scale == "optimal":
        variance, weight = stats["likelihood"]["variance"], stats["likelihood"]["weight"]
        if train:
            error = jnp.mean(jnp.square(decoded.heads["output"] - x[None]))
            # A decoder that is exact to the last bit would have σ² = 0 and an infinite density.
            batch_variance = jnp.maximum(
                jax.lax.pmean(jax.lax.stop_gradient(error), "batch"), 1e-12
            )
            decoded.shared["logvar"] = jnp.log(batch_variance)
            weight = 0.99 * weight + 0.01
            variance = variance + 0.01 / weight * (batch_variance - variance)
        new_stats["likelihood"] = {"variance": variance, "weight": weight}
    if family.update is not None:
        new_stats["posterior"] = (
            family.update(spec, posterior, stats["posterior"], hparams)
            if train
            else stats["posterior"]
        )
    for part in ("posterior", "prior") if family.nets else ():
        if part in stats:
            nets = hierarchy.Nets(params[part], stats[part], train)
            new_stats[part] = hierarchy.statistics(spec, nets, drawn_z, part == "posterior")

    # 3. Weigh.
    held, held_own = (
        jax.lax.stop_gradient((posterior, own)) if path.mode == "path" else (posterior, own)
    )
    held_prior = prior if path.prior_scale is None else jax.lax.stop_gradient(prior)

    def log_q(z, e, drawn):
        return family.log_q(spec, held_own, held, z, e, drawn, path.mode)

    def log_p(z):
        return PRIORS[spec.prior].log_prob(spec, held_prior, z)

    log_qz, log_pz = each(log_q)(z, noise, drawn), each(log_p)(z)
    if family.nets:  # of each dimension
        split = jnp.mean(log_qz - log_pz, axis=0)
        log_qz, log_pz = jnp.sum(log_qz, axis=1), jnp.sum(log_pz, axis=1)
    if path.prior_scale is not None:
        slope = jax.vmap(jax.grad(lambda z, *draw: jnp.sum(log_q(z, *draw) - log_p(z))))
        held_slope = jax.lax.stop_gradient(slope(drawn_z, noise, drawn))
        log_pz = log_pz + _only_gradient(jnp.sum(held_slope * moved, axis=1))
    if family.nets:
        kl = split
    else:
        kl = family.kl(spec, posterior) if analytic_kl(spec) else jnp.mean(log_qz - log_pz)[None]
    return Terms(
        log_px=decoded.each(lambda outputs: likelihood.log_prob(x, outputs)),
        log_pz=log_pz,
        log_qz=log_qz,
        kl=kl,
        posterior=posterior,
        z=z,
    ), new_stats


def analytic_kl(spec: ModelSpec) -> bool:
    """Whether KL(q(z|x) || p(z)) has a closed form."""
    return spec.prior == "standard" and POSTERIORS[spec.posterior].kl is not None


def num_kls(spec: ModelSpec) -> int:
    """Numbers that the KL is split into: one for each latent dimension, or one in all."""
    return spec.latent_dim if analytic_kl(spec) or POSTERIORS[spec.posterior].nets else 1


def _only_gradient(value: jax.Array) -> jax.Array:
    """Zero, with the gradient of `value`."""
    return value - jax.lax.stop_gradient(value)


@jax.custom_vjp
def scale_gradient(value: jax.Array, scale: jax.Array) -> jax.Array:
    """`value` [K, ...]; its gradient is multiplied by `scale`, [K] or [], on the way back."""
    del scale
    return value


scale_gradient.defvjp(
    lambda value, scale: (value, scale),
    lambda scale, gradient: (
        gradient * scale.reshape(scale.shape + (1,) * (gradient.ndim - scale.ndim)),
        jnp.zeros_like(scale),
    ),
)
