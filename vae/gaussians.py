"""Gaussian posteriors: diagonal, of full covariance, and of low rank plus diagonal."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from vae import distributions
from vae.family import Family, Heads, Posterior
from vae.hparams import HParams
from vae.spec import ModelSpec

# Of the scale `soft_clamp`: the largest |log σ|.
SOFT_CLAMP = 5.0


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


def log_variance(spec: ModelSpec, scale: jax.Array, hparams: HParams | None = None) -> jax.Array:
    """What the scale head means, as log σ², [d].

    `logvar`: itself. `softplus`: σ = softplus(s). `softplus_ln2`: σ = ln(1 + e^{s ln 2})/ln 2, 1
    at s = 0 (Hazami et al. 2022, Efficient-VDVAE). `soft_clamp`: log σ = 5 tanh(s/5), within ±5
    (Vahdat and Kautz 2020, NVAE). `floored`: σ² below the point from which on
    KL(N(·, σ²)||N(0, 1)) ≥ δ = `rate_floor` nats whatever the mean is, so that the rate cannot
    collapse: the committed rate of Razavi et al. 2019 (δ-VAE), for independent dimensions; it
    alone reads `hparams`.
    """
    if spec.posterior_scale == "softplus":
        return 2 * _log_softplus(scale)
    if spec.posterior_scale == "softplus_ln2":
        return 2 * (_log_softplus(scale * math.log(2)) - math.log(math.log(2)))
    if spec.posterior_scale == "soft_clamp":
        return 2 * SOFT_CLAMP * jnp.tanh(scale / SOFT_CLAMP)
    if spec.posterior_scale == "floored":
        ceiling = jnp.asarray(distributions.logvar_of_kl(hparams.rate_floor), scale.dtype)
        return ceiling - jax.nn.softplus(-scale)
    return scale


def _log_softplus(s: jax.Array) -> jax.Array:
    """ln ln(1 + e^s).

    For s below −10 float32 softplus loses digits and then underflows to 0, while this → s, off by
    less than e^s/2.
    """
    safe = jnp.maximum(s, -10.0)
    return jnp.where(s > -10.0, jnp.log(jax.nn.softplus(safe)), s)


def _gaussian(spec: ModelSpec, heads: Heads, stats: dict[str, Any], hparams: HParams) -> Posterior:
    rest = {name: head for name, head in heads.items() if name not in ("mean", "scale")}
    return Posterior(heads["mean"], log_variance(spec, heads["scale"], hparams), rest)


def _draw_gaussian(spec, params, posterior, noise, hparams, train):
    return posterior.mean + jnp.exp(0.5 * posterior.logvar) * noise, None


def diagonal_noise(posterior: Posterior, z: jax.Array, noise: jax.Array) -> jax.Array:
    """ε = (z − mean)/σ with its gradients."""
    held = jax.lax.stop_gradient(posterior.logvar)
    moved = _moved(posterior, z) * jnp.exp(-0.5 * posterior.logvar)
    return jnp.exp(0.5 * (held - posterior.logvar)) * noise + moved


def _log_q_gaussian(spec, params, posterior, z, noise, drawn, mode):
    epsilon = noise if mode == "total" else diagonal_noise(posterior, z, noise)
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


FULL = GAUSSIAN._replace(
    heads=lambda spec: (
        GAUSSIAN.heads(spec) | {"factor": spec.latent_dim * (spec.latent_dim - 1) // 2}
    ),
    draw=_draw_full,
    log_q=_log_q_full,
    kl=_kl_full,
)

LOW_RANK = GAUSSIAN._replace(
    heads=lambda spec: GAUSSIAN.heads(spec) | {"factor": spec.latent_dim * spec.posterior_rank},
    draw=_draw_low_rank,
    log_q=_log_q_low_rank,
    kl=_kl_low_rank,
    noise_size=lambda spec: spec.latent_dim + spec.posterior_rank,
)
