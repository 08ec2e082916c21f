"""Terms of linear VAEs without sampling error: expectations of quadratics by a cubature."""

import jax
import jax.numpy as jnp
import numpy as np

from vae import elbo, objectives
from vae.hparams import HParams, stack

STATS = {"encoder": {}, "decoder": {}}


def cubature(latent_dim):
    """Noise [2d, d] with mean 0 and covariance 1: exact for the expectation of any quadratic."""
    return np.sqrt(latent_dim) * np.concatenate([np.eye(latent_dim), -np.eye(latent_dim)])


def exact_terms(spec, params, x, noise, sigma=0.5):
    """Terms of x [N, D] in float64, with the same noise [K, d] for each."""
    with jax.enable_x64(True):
        params, x, noise = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (params, x, noise))
        hparams = jax.tree.map(
            lambda a: jnp.asarray(a[0], jnp.float64), stack([HParams(sigma=sigma)])
        )

        def one(x):
            return elbo.terms(spec, params, STATS, hparams, x, noise, train=False)[0]

        return jax.vmap(one)(x)


def exact_elbo(spec, params, x, sigma=0.5):
    """ELBO of each example, its expectation done exactly, float64 [N]."""
    with jax.enable_x64(True):
        terms = exact_terms(spec, params, x, cubature(spec.latent_dim), sigma)
        return np.asarray(jax.vmap(objectives.metrics)(terms)["elbo"])
