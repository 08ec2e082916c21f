"""Posteriors q(z|x): what the encoder's heads mean, how z is drawn, and log q(z|x).

A posterior is one row of `POSTERIORS`: pure functions of one example. z has `latent_size` numbers:
`latent_dim`, or, where the latents are discrete, `latent_dim` variables of several numbers each.

The gradient of log q(z|x) is taken in one of three ways, `mode`:

  total  through z and through the parameters of q, together: plain reparameterisation
  path   through z alone, the parameters held: Roeder et al. 2017
  score  through the parameters alone, z held
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vae import distributions, flows
from vae.hparams import HParams
from vae.spec import ModelSpec

MODES = ("total", "path", "score")

Heads = dict[str, jax.Array]


class Posterior(NamedTuple):
    """q(z|x) of one example.

    Attributes:
      mean: E[z], of flows that of what flows; [latent_size].
      logvar: log of the variances, before correlations or flows; [d], or None where there are none.
      rest: what else a family needs.
    """

    mean: jax.Array
    logvar: jax.Array | None = None
    rest: dict[str, jax.Array] = {}


class Family(NamedTuple):
    """A row of `POSTERIORS`.

    Attributes:
      heads: spec -> the encoder's heads and their sizes.
      posterior: (spec, heads, stats, hparams) -> Posterior; stats are those of this family.
      noise: (rng, shape) -> standard noise, of shape [K, noise_size].
      noise_size: spec -> numbers of noise in one draw.
      draw: (spec, params, posterior, noise, hparams, train) -> (z, what log_q needs of the draw).
      log_q: (spec, params, posterior, z, noise, drawn, mode) -> log q(z|x), nats.
      modes: the modes of `log_q`.
      kl: (spec, posterior) -> KL of each latent dimension to the standard prior, [d], nats; or
        None. Its terms are those of the chain rule where dimensions are correlated.
      log_standard: (spec, z) -> log-density of the standard prior, of the same kind as q.
      draw_standard: (spec, rng, stats) -> z of the standard prior.
      init: (spec, rng) -> (parameters, running statistics) of its own, both may be empty.
      update: (spec, posterior, stats, hparams) -> new running statistics; collectives over `batch`.
      latent_size: spec -> numbers in z.
      location: (spec, params, posterior) -> the z that stands for q, [latent_size].
      continuous: whether z has a density (and, say, could be interpolated).
    """

    heads: Callable[[ModelSpec], dict[str, int]]
    posterior: Callable[..., Posterior]
    draw: Callable[..., tuple[jax.Array, Any]]
    log_q: Callable[..., jax.Array]
    log_standard: Callable[[ModelSpec, jax.Array], jax.Array]
    draw_standard: Callable[..., jax.Array]
    kl: Callable[[ModelSpec, Posterior], jax.Array] | None = None
    modes: tuple[str, ...] = MODES
    noise: Callable[..., jax.Array] = jax.random.normal
    noise_size: Callable[[ModelSpec], int] = lambda spec: spec.latent_dim
    init: Callable[..., tuple[dict[str, Any], dict[str, Any]]] = lambda spec, rng: ({}, {})
    update: Callable[..., dict[str, Any]] | None = None
    latent_size: Callable[[ModelSpec], int] = lambda spec: spec.latent_dim
    location: Callable[..., jax.Array] = lambda spec, params, posterior: posterior.mean
    continuous: bool = True


def _log_standard_normal(z: jax.Array) -> jax.Array:
    zero = jnp.zeros_like(z)
    return distributions.normal_log_prob(z, zero, zero)


def _draw_standard_normal(spec: ModelSpec, rng: jax.Array, stats: dict[str, Any]) -> jax.Array:
    return jax.random.normal(rng, (spec.latent_dim,))


def _moved(posterior: Posterior, z: jax.Array) -> jax.Array:
    """(z − z₀) − (mean − mean₀), which is zero, but has the gradient of z − mean.

    From it ε = noise + σ⁻¹(...) has the right value to the last digit, which (z − mean)/σ has lost
    to rounding where σ is far below |mean|.
    """
    held = jax.lax.stop_gradient
    return (z - held(z)) - (posterior.mean - held(posterior.mean))


# Diagonal Gaussian.


def log_variance(spec: ModelSpec, scale: jax.Array, hparams: HParams) -> jax.Array:
    """What the scale head means, as log σ², [d].

    `logvar`: itself. `softplus`: σ = softplus(s). `floored`: σ² below the point from which on
    KL(N(·, σ²)||N(0, 1)) ≥ δ = `rate_floor` nats whatever the mean is, so that the rate cannot
    collapse: the committed rate of Razavi et al. 2019 (δ-VAE), for independent dimensions.
    """
    if spec.posterior_scale == "softplus":
        # 2 ln softplus(s). For s below −10 float32 softplus loses digits and then underflows to
        # 0, while ln softplus(s) → s, off by less than e^s/2.
        safe = jnp.maximum(scale, -10.0)
        return 2 * jnp.where(scale > -10.0, jnp.log(jax.nn.softplus(safe)), scale)
    if spec.posterior_scale == "floored":
        ceiling = jnp.asarray(distributions.logvar_of_kl(hparams.rate_floor), scale.dtype)
        return ceiling - jax.nn.softplus(-scale)
    return scale


def _gaussian(spec: ModelSpec, heads: Heads, stats: dict[str, Any], hparams: HParams) -> Posterior:
    rest = {name: head for name, head in heads.items() if name not in ("mean", "scale")}
    return Posterior(heads["mean"], log_variance(spec, heads["scale"], hparams), rest)


def _draw_gaussian(spec, params, posterior, noise, hparams, train):
    return posterior.mean + jnp.exp(0.5 * posterior.logvar) * noise, None


def _diagonal_noise(posterior: Posterior, z: jax.Array, noise: jax.Array) -> jax.Array:
    """ε = (z − mean)/σ with its gradients."""
    held = jax.lax.stop_gradient(posterior.logvar)
    moved = _moved(posterior, z) * jnp.exp(-0.5 * posterior.logvar)
    return jnp.exp(0.5 * (held - posterior.logvar)) * noise + moved


def _log_q_gaussian(spec, params, posterior, z, noise, drawn, mode):
    epsilon = noise if mode == "total" else _diagonal_noise(posterior, z, noise)
    return _log_standard_normal(epsilon) - 0.5 * jnp.sum(posterior.logvar)


GAUSSIAN = Family(
    heads=lambda spec: {"mean": spec.latent_dim, "scale": spec.latent_dim},
    posterior=_gaussian,
    draw=_draw_gaussian,
    log_q=_log_q_gaussian,
    kl=lambda spec, q: distributions.kl_standard_normal(q.mean, q.logvar),
    log_standard=lambda spec, z: _log_standard_normal(z),
    draw_standard=_draw_standard_normal,
)


# Full covariance LLᵀ: diag L = σ, below it the head `factor`, scaled by the row's σ.


def _cholesky(spec: ModelSpec, posterior: Posterior) -> jax.Array:
    d = spec.latent_dim
    below = jnp.zeros((d, d), posterior.mean.dtype)
    below = below.at[jnp.tril_indices(d, -1)].set(posterior.rest["factor"])
    return jnp.exp(0.5 * posterior.logvar)[:, None] * (
        below + jnp.eye(d, dtype=posterior.mean.dtype)
    )


def _draw_full(spec, params, posterior, noise, hparams, train):
    return posterior.mean + _cholesky(spec, posterior) @ noise, None


def _log_q_full(spec, params, posterior, z, noise, drawn, mode):
    epsilon = noise
    if mode != "total":
        factor = _cholesky(spec, posterior)
        residual = jax.lax.stop_gradient(factor) @ noise + _moved(posterior, z)
        # L⁻¹ of L₀·noise is noise; said so, its value is exact.
        solved = jax.scipy.linalg.solve_triangular(factor, residual, lower=True)
        epsilon = noise + (solved - jax.lax.stop_gradient(solved))
    return _log_standard_normal(epsilon) - 0.5 * jnp.sum(posterior.logvar)


def _kl_full(spec: ModelSpec, posterior: Posterior) -> jax.Array:
    """½(Σ_i L_ji² + μ_j² − 1 − ln L_jj²): E KL(q(z_j|z_<j) || p(z_j)), whose sum is the KL."""
    correlated = jnp.sum(jnp.square(jnp.tril(_cholesky(spec, posterior), -1)), axis=1)
    independent = distributions.kl_standard_normal(posterior.mean, posterior.logvar)
    return independent + 0.5 * correlated


# Low rank, Σ = diag σ² + FFᵀ; noise is [ε, η], z = mean + σε + Fη.


def _low_rank_factor(spec: ModelSpec, posterior: Posterior) -> jax.Array:
    """G = diag(σ)⁻¹F, [d, r]: the factor in units of σ, as the head gives it."""
    return posterior.rest["factor"].reshape(spec.latent_dim, spec.posterior_rank)


def _inverse_root(factor: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(S, the quotients |M_j|/|M_j−1| [d]) with SSᵀ = M_d⁻¹, M_j = I + Σ_{i≤j} g_i g_iᵀ, g_i rows.

    Potter's update of the root, row by row (Bierman 1977, section II.3): with f = Sᵀg and
    α = 1 + |f|² = |M_j|/|M_j−1|, S becomes S − Sffᵀ/(α + √α). A Cholesky factor of M would lose
    the I beside a large G, and with it be no number.
    """

    def row(root, g):
        f = root.T @ g
        growth = 1 + jnp.sum(jnp.square(f))
        return root - jnp.outer(root @ f, f) / (growth + jnp.sqrt(growth)), growth

    return jax.lax.scan(row, jnp.eye(factor.shape[1], dtype=factor.dtype), factor)


def _draw_low_rank(spec, params, posterior, noise, hparams, train):
    epsilon, eta = noise[: spec.latent_dim], noise[spec.latent_dim :]
    scaled = epsilon + _low_rank_factor(spec, posterior) @ eta
    return posterior.mean + jnp.exp(0.5 * posterior.logvar) * scaled, None


def _log_q_low_rank(spec, params, posterior, z, noise, drawn, mode):
    """With M = I + GᵀG and u = σ⁻¹(z − mean) = ε + Gη: uᵀ(I + GGᵀ)⁻¹u = |u − Gη̂|² + |η̂|².

    η̂ = M⁻¹Gᵀu is the mean of η given z; as η + M⁻¹(Gᵀε − η) it loses no digits for large G.
    """
    factor = _low_rank_factor(spec, posterior)
    epsilon, eta = noise[: spec.latent_dim], noise[spec.latent_dim :]
    if mode != "total":
        held = jax.lax.stop_gradient
        ratio = jnp.exp(0.5 * (held(posterior.logvar) - posterior.logvar))
        u = ratio * (epsilon + held(factor) @ eta)
        u = u + _moved(posterior, z) * jnp.exp(-0.5 * posterior.logvar)
        # η is held: u moves, so ε is what is left of it.
        epsilon = epsilon + ((u - factor @ eta) - held(u - factor @ eta))
    root, growth = _inverse_root(factor)
    shift = root @ (root.T @ (factor.T @ epsilon - eta))
    squared = jnp.sum(jnp.square(epsilon - factor @ shift)) + jnp.sum(jnp.square(eta + shift))
    log_det = jnp.sum(posterior.logvar) + jnp.sum(jnp.log(growth))
    return -0.5 * (squared + log_det + spec.latent_dim * distributions.LOG_2PI)


def _kl_low_rank(spec: ModelSpec, posterior: Posterior) -> jax.Array:
    """E KL(q(z_j|z_<j) || p(z_j)), with Var[z_j|z_<j] = σ_j²·|M_j|/|M_j−1|, see `_inverse_root`."""
    factor = _low_rank_factor(spec, posterior)
    _, growth = _inverse_root(factor)
    spread = jnp.exp(posterior.logvar) * jnp.sum(jnp.square(factor), axis=1)
    independent = distributions.kl_standard_normal(posterior.mean, posterior.logvar)
    return independent + 0.5 * (spread - jnp.log(growth))


# Flows on a diagonal Gaussian, which read a context from the encoder.


def _flow_spec(spec: ModelSpec, kind: str) -> flows.FlowSpec:
    return flows.FlowSpec(
        kind=kind,
        dim=spec.latent_dim,
        context_dim=spec.flow_width,
        layers=spec.flow_layers,
        width=spec.flow_width,
    )


def _flow(kind: str) -> Family:
    """Inverse autoregressive (Kingma et al. 2016) or coupling (Dinh et al. 2017) flow."""

    def draw(spec, params, posterior, noise, hparams, train):
        base, _ = _draw_gaussian(spec, params, posterior, noise, hparams, train)
        return flows.forward(_flow_spec(spec, kind), params, base, posterior.rest["context"])

    def log_q(spec, params, posterior, z, noise, drawn, mode):
        if mode == "total":
            return _log_q_gaussian(spec, params, posterior, z, noise, None, mode) - drawn
        context = posterior.rest["context"]
        base, log_det = flows.inverse(_flow_spec(spec, kind), params, z, context)
        log_base = distributions.normal_log_prob(base, posterior.mean, posterior.logvar)
        return log_base + log_det

    return GAUSSIAN._replace(
        heads=lambda spec: GAUSSIAN.heads(spec) | {"context": spec.flow_width},
        draw=draw,
        log_q=log_q,
        kl=None,
        # The density of a given z takes an autoregressive flow as many passes as z has dimensions.
        modes=("total",) if kind == "iaf" else MODES,
        location=lambda spec, params, posterior: flows.forward(
            _flow_spec(spec, kind), params, posterior.mean, posterior.rest["context"]
        )[0],
        init=lambda spec, rng: (flows.init(_flow_spec(spec, kind), rng), {}),
    )


# A point: no distribution at all, for the autoencoders.

POINT = GAUSSIAN._replace(
    heads=lambda spec: {"mean": spec.latent_dim},
    posterior=lambda spec, heads, stats, hparams: Posterior(heads["mean"]),
    draw=lambda spec, params, posterior, noise, hparams, train: (posterior.mean, None),
    # Neither a density nor a rate: what is made of them is not a number, and reported as none.
    log_q=lambda spec, params, posterior, z, noise, drawn, mode: jnp.asarray(jnp.nan, z.dtype),
    kl=lambda spec, posterior: jnp.full(spec.latent_dim, jnp.nan, posterior.mean.dtype),
    noise_size=lambda spec: 0,
    modes=("total",),
)


# Discrete: `latent_dim` variables of `codes` values.


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


POSTERIORS: dict[str, Family] = {
    "gaussian": GAUSSIAN,
    "full": GAUSSIAN._replace(
        heads=lambda spec: (
            GAUSSIAN.heads(spec) | {"factor": spec.latent_dim * (spec.latent_dim - 1) // 2}
        ),
        draw=_draw_full,
        log_q=_log_q_full,
        kl=_kl_full,
    ),
    "low_rank": GAUSSIAN._replace(
        heads=lambda spec: GAUSSIAN.heads(spec) | {"factor": spec.latent_dim * spec.posterior_rank},
        draw=_draw_low_rank,
        log_q=_log_q_low_rank,
        kl=_kl_low_rank,
        noise_size=lambda spec: spec.latent_dim + spec.posterior_rank,
    ),
    "iaf": _flow("iaf"),
    "coupling": _flow("coupling"),
    "point": POINT,
    "categorical": CATEGORICAL,
    "vq": VQ,
}
