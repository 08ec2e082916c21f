"""Discrete posteriors: `latent_dim` variables of `codes` values, relaxed or quantised."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from vae.family import Family, Posterior
from vae.spec import ModelSpec


def _uniform(spec: ModelSpec, z: jax.Array) -> jax.Array:
    return jnp.asarray(-spec.latent_dim * math.log(spec.codes), z.dtype)


def _categorical(spec, heads, stats, hparams):
    logits = jax.nn.log_softmax(heads["logits"].reshape(spec.latent_dim, spec.codes))
    return Posterior(jnp.exp(logits).reshape(-1), None, {"logits": logits})


def _draw_categorical(spec, params, posterior, noise, hparams, train):
    """One-hot by the Gumbel trick; in training the relaxed softmax((logits + g)/τ).

    Jang et al. 2017, eq. 2; Maddison et al. 2017.
    """
    scores = posterior.rest["logits"] + noise.reshape(spec.latent_dim, spec.codes)
    if train:
        return jax.nn.softmax(scores / hparams.temperature).reshape(-1), None
    hard = jax.nn.one_hot(jnp.argmax(scores, axis=-1), spec.codes, dtype=scores.dtype)
    return hard.reshape(-1), None


def _log_q_categorical(spec, params, posterior, z, noise, drawn, mode):
    """Σ z·log q(z|x): of a relaxed z no density, and the launcher asks for none."""
    return jnp.sum(z.reshape(spec.latent_dim, spec.codes) * posterior.rest["logits"])


def _kl_categorical(spec, posterior):
    """Σ_c q_c (ln q_c + ln C) of each variable, [d]."""
    log_q = posterior.rest["logits"]
    return jnp.sum(jnp.exp(log_q) * (log_q + math.log(spec.codes)), axis=-1)


def _draw_uniform(spec, rng, stats):
    codes = jax.random.randint(rng, (spec.latent_dim,), 0, spec.codes)
    return jax.nn.one_hot(codes, spec.codes).reshape(-1)


CATEGORICAL = Family(
    heads=lambda spec: {"logits": spec.latent_dim * spec.codes},
    posterior=_categorical,
    draw=_draw_categorical,
    log_q=_log_q_categorical,
    kl=_kl_categorical,
    log_standard=_uniform,
    draw_standard=_draw_uniform,
    modes=("total",),
    noise=jax.random.gumbel,
    noise_size=lambda spec: spec.latent_dim * spec.codes,
    latent_size=lambda spec: spec.latent_dim * spec.codes,
    continuous=False,
)


# Vector quantisation: van den Oord et al. 2017, the codebook by moving averages (appendix A.1).


def _init_codebook(spec: ModelSpec, rng: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
    """Entries of unit variance; `count` and `total` are the averages whose quotient they are."""
    codebook = jax.random.normal(rng, (spec.codes, spec.code_dim))
    return {}, {"codebook": codebook, "count": jnp.ones(spec.codes), "total": codebook}


def _quantize(spec, heads, stats, hparams):
    encoded = heads["mean"].reshape(spec.latent_dim, spec.code_dim)
    codebook = stats["codebook"]
    # |e|² − 2 e·z; |z|² is the same for all entries.
    scores = jnp.sum(jnp.square(codebook), axis=1)[None] - 2 * encoded @ codebook.T
    codes = jnp.argmin(scores, axis=-1)
    quantized = codebook[codes]
    # Straight-through: the gradient of z is the encoder's.
    z = encoded + jax.lax.stop_gradient(quantized - encoded)
    rest = {"encoded": encoded, "quantized": quantized, "codes": codes}
    return Posterior(z.reshape(-1), None, rest)


def _update_codebook(spec, posterior, stats, hparams):
    """Counts and sums of the batch into their averages, with weight 1 − γ; codebook = total/count.

    The sums run over the axis `batch`: examples are coupled, through what has no gradient.
    """
    chosen = jax.nn.one_hot(posterior.rest["codes"], spec.codes, dtype=posterior.mean.dtype)
    count = jax.lax.psum(jnp.sum(chosen, axis=0), "batch")
    total = jax.lax.psum(chosen.T @ posterior.rest["encoded"], "batch")
    decay = hparams.codebook_decay
    count = decay * stats["count"] + (1 - decay) * jax.lax.stop_gradient(count)
    total = decay * stats["total"] + (1 - decay) * jax.lax.stop_gradient(total)
    # An entry that nothing chooses fades from both alike and stays where it is.
    codebook = total / jnp.maximum(count, 1e-5)[:, None]
    fading = (count < 1e-5)[:, None]
    codebook = jnp.where(fading, stats["codebook"], codebook)
    return {"codebook": codebook, "count": count, "total": total}


VQ = Family(
    heads=lambda spec: {"mean": spec.latent_dim * spec.code_dim},
    posterior=_quantize,
    draw=lambda spec, params, posterior, noise, hparams, train: (posterior.mean, None),
    # q puts all its mass on one code.
    log_q=lambda spec, params, posterior, z, noise, drawn, mode: jnp.zeros((), z.dtype),
    kl=lambda spec, posterior: jnp.full(
        spec.latent_dim, math.log(spec.codes), posterior.mean.dtype
    ),
    log_standard=_uniform,
    draw_standard=lambda spec, rng, stats: stats["codebook"][
        jax.random.randint(rng, (spec.latent_dim,), 0, spec.codes)
    ].reshape(-1),
    modes=("total",),
    noise_size=lambda spec: 0,
    init=_init_codebook,
    update=_update_codebook,
    latent_size=lambda spec: spec.latent_dim * spec.code_dim,
    continuous=False,
)
