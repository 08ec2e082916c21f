"""Discriminators that are trained in the same step as the VAE, and the games they play.

Their parameters are the part `discriminator` of the run's. Each game returns its share of the VAE's
loss, through which no gradient reaches the discriminator, and the discriminator's own loss, through
which none reaches the VAE: their sum has the right gradient for both.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vae import random
from vae.nets import Discriminator
from vae.spec import ModelSpec, Spec

Metrics = dict[str, jax.Array]


def _net(spec: Spec, name: str) -> Discriminator:
    """`latent`: on z, an MLP of its own. `data`: on x, a trunk as the encoder's."""
    if name == "data":
        trunk = dataclasses.replace(spec.model, norm="none", residual="none", init="he")
    else:
        trunk = ModelSpec(
            example_shape=(1,),
            depth=spec.objective.discriminator_depth,
            width=spec.objective.discriminator_width,
            init="he",
            precision=spec.model.precision,
            remat=spec.model.remat,
        )
    return Discriminator(dataclasses.replace(trunk, activation="leaky_relu"))


def init(spec: Spec, name: str, latent_size: int, rng: jax.Array) -> dict[str, Any]:
    """The parameters of one run's discriminator."""
    shape = spec.model.example_shape if name == "data" else (latent_size,)
    return _net(spec, name).init(rng, jnp.zeros(shape))["params"]


def _accuracy(real: jax.Array, fake: jax.Array) -> Metrics:
    return {"discriminator_accuracy": 0.5 * (jnp.mean(real > 0) + jnp.mean(fake < 0))}


def factor(
    spec: Spec, params: dict[str, Any], z: jax.Array, step_rng: jax.Array
) -> tuple[jax.Array, jax.Array, Metrics]:
    """FactorVAE's game on one example: does z come from q(z) or from Π_j q(z_j)?

    The discriminator's logit estimates log q(z) − Σ_j log q(z_j), whose mean is the total
    correlation. Draws from Π_j q(z_j) are the batch's own, each dimension permuted over the axis
    `batch` (Kim and Mnih 2018, algorithm 1; they take them from a second batch).

    Args:
      z: [n]. step_rng: the same for all examples.

    Returns:
      (logit, through which z gets its gradient; the discriminator's loss; metrics).
    """
    held = jax.lax.stop_gradient
    net = _net(spec, "latent")
    batch = jax.lax.all_gather(held(z), "batch")
    position = jax.lax.axis_index("batch").astype(jnp.int32)
    rngs = jax.random.split(step_rng, z.shape[0])
    whose = jax.vmap(lambda rng: random.shuffled(rng, position, batch.shape[0]))(rngs)
    permuted = batch[whose, jnp.arange(z.shape[0])]
    ratio, _ = net.apply({"params": held(params)}, z)
    joint, _ = net.apply({"params": params}, held(z))
    product, _ = net.apply({"params": params}, permuted)
    loss = 0.5 * (jax.nn.softplus(-joint) + jax.nn.softplus(product))
    return ratio, loss, _accuracy(joint, product)


def vaegan(
    spec: Spec,
    params: dict[str, Any],
    x: jax.Array,
    reconstruction: jax.Array,
    generated: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, Metrics]:
    """The game of the VAE-GAN on one example: is an image real, or decoded?

    The decoder's share is the mean of −log D over what it made, which has a gradient where the
    discriminator is sure (Goodfellow et al. 2014, section 3), in place of log(1 − D).

    Args:
      x, reconstruction: [*x]. generated: [2, *x], decoded from q(z|x) and from p(z).

    Returns:
      (½|f(x) − f(reconstruction)|², the decoder's share, the discriminator's loss, metrics).
    """
    held = jax.lax.stop_gradient
    net = _net(spec, "data")

    def apply(params, x):
        return net.apply({"params": params}, x)

    _, features = apply(held(params), x)
    _, rebuilt = apply(held(params), reconstruction)
    error = 0.5 * jnp.sum(jnp.square(held(features) - rebuilt))
    fooled, _ = jax.vmap(lambda x: apply(held(params), x))(generated)
    game = jnp.mean(jax.nn.softplus(-fooled))
    real, _ = apply(params, x)
    fake, _ = jax.vmap(lambda x: apply(params, x))(held(generated))
    loss = jax.nn.softplus(-real) + jnp.mean(jax.nn.softplus(fake))
    return error, game, loss, _accuracy(real, fake)
