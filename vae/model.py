"""The VAE: encoder, prior N(0, I), decoder and likelihood; the only owner of parameters.

Everything here acts on ONE example x [*x]. The caller vmaps over examples with the axis name
`batch`; K samples of z are a vmap inside, with the axis name `sample`.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vae import distributions
from vae.hparams import HParams
from vae.likelihoods import LIKELIHOODS
from vae.nets import Decoder, Encoder
from vae.spec import ModelSpec

# With `gaussian_pixel` the likelihood of a pixel that never changes is unbounded (Mattei and
# Frellsen 2018). Data of 8 bits cannot tell a σ below a tenth of a grey level from zero.
MIN_PIXEL_LOGVAR = -15.6  # 2 ln(0.1/255)


class Posterior(NamedTuple):
    """q(z|x) = N(mean, diag exp(logvar)); each [d]."""

    mean: jax.Array
    logvar: jax.Array

    def reparameterize(self, noise: jax.Array) -> jax.Array:
        """z = mean + σ·ε for one ε [d]."""
        return self.mean + jnp.exp(0.5 * self.logvar) * noise


class Terms(NamedTuple):
    """The pieces of any bound on log p(x) for one example, in nats, before anyone sums them.

    Attributes:
      log_px: log p(x|z_k), [K].
      log_pz: log p(z_k), [K].
      log_qz: log q(z_k|x), [K].
      kl: KL(q(z_j|x) || p(z_j)) of each latent dimension, analytic, [d].
      posterior: q(z|x).
    """

    log_px: jax.Array
    log_pz: jax.Array
    log_qz: jax.Array
    kl: jax.Array
    posterior: Posterior


Params = dict[str, Any]
Stats = dict[str, Any]


def encode(
    spec: ModelSpec, params: Params, stats: Stats, x: jax.Array, train: bool
) -> tuple[Posterior, Stats]:
    """x [*x] ↦ q(z|x), and the encoder's running statistics (unchanged unless `train`)."""
    variables = {"params": params["encoder"], "batch_stats": stats.get("encoder", {})}
    (mean, scale), updated = Encoder(spec).apply(variables, x, train, mutable=["batch_stats"])
    if spec.posterior_scale == "softplus":
        # 2 ln softplus(s). For s below −10 float32 softplus loses digits and then underflows to
        # 0, while ln softplus(s) → s, off by less than e^s/2.
        safe = jnp.maximum(scale, -10.0)
        scale = 2 * jnp.where(scale > -10.0, jnp.log(nn.softplus(safe)), scale)
    return Posterior(mean, scale), updated.get("batch_stats", {})


def decode(
    spec: ModelSpec, params: Params, stats: Stats, z: jax.Array, sigma: jax.Array, train: bool
) -> tuple[jax.Array, jax.Array | None, Stats]:
    """K latents z [K, d] ↦ (output [K, *x], log-variance, the decoder's running statistics).

    The log-variance is [K, *x] (`gaussian_pixel`), a scalar, or None (Bernoulli). That of
    `gaussian_optimal` is the running one: the batch's own needs x, see `terms`.
    """
    variables = {"params": params["decoder"], "batch_stats": stats.get("decoder", {})}

    def one(z):
        (output, logvar), updated = Decoder(spec).apply(
            variables, z, train, mutable=["batch_stats"]
        )
        return (output, logvar), updated.get("batch_stats", {})

    # A single sample is not mapped over: the axis is there by its name alone. With an axis of one,
    # XLA's CPU backend would transpose what the gradients are products of.
    mapped, in_axes = (z[0], None) if len(z) == 1 else (z, 0)
    (output, logvar), updated = jax.vmap(
        one, in_axes, out_axes=(0, None), axis_name="sample", axis_size=len(z)
    )(mapped)
    if spec.likelihood == "gaussian":
        logvar = 2 * jnp.log(jnp.asarray(sigma, z.dtype))
    elif spec.likelihood == "gaussian_shared":
        logvar = params["likelihood"]["logvar"]
    elif spec.likelihood == "gaussian_pixel":
        logvar = MIN_PIXEL_LOGVAR + nn.softplus(logvar - MIN_PIXEL_LOGVAR)
    elif spec.likelihood == "gaussian_optimal":
        logvar = jnp.log(stats["likelihood"]["variance"])
    return output, logvar, updated


def terms(
    spec: ModelSpec,
    params: Params,
    stats: Stats,
    hparams: HParams,
    x: jax.Array,
    noise: jax.Array,
    train: bool,
) -> tuple[Terms, Stats]:
    """The decomposed terms of one example: encode x, then `terms_given` the posterior.

    Args:
      x: [*x]. noise: ε ~ N(0, I), [K, d].
      train: whether batch statistics are used and updated; needs the axis name `batch`.

    Returns:
      Terms, and the updated running statistics.
    """
    posterior, encoder_stats = encode(spec, params, stats, x, train)
    result, new_stats = terms_given(spec, params, stats, hparams, x, posterior, noise, train)
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
) -> tuple[Terms, Stats]:
    """z_k = mean + σ·noise_k, p(x|z_k) = decode(z_k), and the log-densities of x and z.

    With `gaussian_optimal` and `train`, σ² is the squared error's mean over the axis `batch`,
    over samples and over dimensions: the maximum-likelihood σ² given the networks (Rybkin et al.
    2021). It is held constant in the gradient, which changes nothing, because ∂ELBO/∂σ² = 0
    there. Evaluation uses its running mean: p(x|z) must be one density, not one per batch. The
    mean is over the batches seen, with weights that fall by 1% a step; `weight` is their sum, by
    which it is normalised (as in Adam), so that the starting value has no share in it.

    Args and returns: as `terms`; the statistics are those of decoder and likelihood.
    """
    likelihood = LIKELIHOODS[spec.likelihood]
    z = jax.vmap(posterior.reparameterize)(noise)
    output, logvar, decoder_stats = decode(spec, params, stats, z, hparams.sigma, train)
    new_stats = {"decoder": decoder_stats}
    if spec.likelihood == "gaussian_optimal":
        variance, weight = stats["likelihood"]["variance"], stats["likelihood"]["weight"]
        if train:
            error = jax.lax.stop_gradient(jnp.mean(jnp.square(output - x[None])))
            # A decoder that is exact to the last bit would have σ² = 0 and an infinite density.
            batch_variance = jnp.maximum(jax.lax.pmean(error, "batch"), 1e-12)
            logvar = jnp.log(batch_variance)
            weight = 0.99 * weight + 0.01
            variance = variance + 0.01 / weight * (batch_variance - variance)
        new_stats["likelihood"] = {"variance": variance, "weight": weight}
    logvar_axis = 0 if spec.likelihood == "gaussian_pixel" else None
    log_px = jax.vmap(likelihood.log_prob, (None, 0, logvar_axis))(x, output, logvar)
    standard = jnp.zeros_like(posterior.mean)

    def log_standard(z):
        return distributions.normal_log_prob(z, standard, standard)

    return Terms(
        log_px=log_px,
        log_pz=jax.vmap(log_standard)(z),
        # From ε = (z − mean)/σ, which z has lost to rounding where σ is far below |mean|.
        log_qz=jax.vmap(log_standard)(noise) - 0.5 * jnp.sum(posterior.logvar),
        kl=distributions.kl_standard_normal(*posterior),
        posterior=posterior,
    ), new_stats


def init(
    spec: ModelSpec, hparams: HParams, rng: jax.Array, data_mean: jax.Array
) -> tuple[Params, Stats]:
    """Parameters and running statistics of one run, from its key alone.

    Args:
      rng: key. data_mean: mean of the training examples [*x], read by `output_bias="data_mean"`.

    Returns:
      (params, stats): params has `encoder`, `decoder` and, for `gaussian_shared`, `likelihood`.
    """
    encoder_rng, decoder_rng = jax.random.split(rng)

    def one(x, z):  # within the named axes, because BatchNorm asks for them even here
        encoder = Encoder(spec).init(encoder_rng, x, True)
        decoder = jax.vmap(lambda z: Decoder(spec).init(decoder_rng, z, True), axis_name="sample")
        return encoder, jax.tree.map(lambda a: a[0], decoder(z[None]))

    x = jnp.zeros((1, *spec.example_shape), jnp.float32)
    z = jnp.zeros((1, spec.latent_dim), jnp.float32)
    encoder, decoder = jax.tree.map(lambda a: a[0], jax.vmap(one, axis_name="batch")(x, z))
    params = {"encoder": encoder["params"], "decoder": decoder["params"]}
    stats = {
        "encoder": encoder.get("batch_stats", {}),
        "decoder": decoder.get("batch_stats", {}),
    }
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * hparams.init_gain if path[-1].key == "kernel" else leaf, params
    )
    if spec.output_bias == "data_mean":
        output = params["decoder"]["output"]
        # One number a value, or, where the head is a convolution, one a channel.
        mean = data_mean.reshape(-1, output["bias"].shape[0]).mean(0)
        output["bias"] = LIKELIHOODS[spec.likelihood].bias(mean)
    if spec.likelihood == "gaussian_shared":
        params["likelihood"] = {"logvar": 2 * jnp.log(jnp.asarray(hparams.sigma, jnp.float32))}
    if spec.likelihood == "gaussian_optimal":
        stats["likelihood"] = {
            "variance": jnp.ones((), jnp.float32),
            "weight": jnp.zeros((), jnp.float32),
        }
    return params, stats
