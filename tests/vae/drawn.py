"""Posteriors to test: of every family one, its heads, noise, draws and moments; mostly float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.vae.building import COMPILE_FAST, parameters
from vae.hparams import HParams
from vae.posteriors import POSTERIORS
from vae.spec import ModelSpec

D = 3
SPECS = {
    name: ModelSpec(
        (4,),
        D,
        depth=1,
        width=8,
        activation="tanh",
        posterior=name,
        posterior_rank=2,
        codes=4,
        code_dim=2,
        flow_layers=2,
        flow_width=5,
    )
    for name in POSTERIORS
    if not POSTERIORS[name].nets  # of several layers: tests/vae/test_hierarchy.py
}
GAUSSIAN = ("gaussian", "full", "low_rank")
FLOWS = ("iaf", "coupling")


def heads_of(spec, seed=0, dtype=np.float64):
    """Heads N(0, 1): posteriors of all kinds of shapes."""
    rng = np.random.default_rng(seed)
    sizes = POSTERIORS[spec.posterior].heads(spec)
    return {name: jnp.asarray(rng.normal(size=n), dtype) for name, n in sizes.items()}


def noise_of(spec, num_samples, seed=1, dtype=np.float64):
    rng = np.random.default_rng(seed)
    size = POSTERIORS[spec.posterior].noise_size(spec)
    if spec.posterior == "categorical":
        return jnp.asarray(rng.gumbel(size=(num_samples, size)), dtype)
    return jnp.asarray(rng.normal(size=(num_samples, size)), dtype)


@functools.cache
def model_of(spec, dtype=np.float64):
    """(parameters, statistics); made once, because a flow takes long to trace."""
    return parameters(spec, dtype=dtype)


def stats_of(spec, dtype=np.float64):
    return model_of(spec, dtype)[1].get("posterior", {})


def flow_of(spec, dtype=np.float64):
    return model_of(spec, dtype)[0].get("posterior", {})


def posterior_of(spec, heads, hparams=None, dtype=np.float64):
    hparams = HParams() if hparams is None else hparams
    return POSTERIORS[spec.posterior].posterior(spec, heads, stats_of(spec, dtype), hparams)


def samples_of(spec, heads, noise, mode="total"):
    """(z [K, n], log q(z|x) [K])."""
    dtype = noise.dtype.type
    return _samples_of(spec, mode, heads, flow_of(spec, dtype), stats_of(spec, dtype), noise)


@functools.partial(jax.jit, static_argnames=("spec", "mode"), compiler_options=COMPILE_FAST)
def _samples_of(spec, mode, heads, flow, stats, noise):
    family = POSTERIORS[spec.posterior]
    posterior = family.posterior(spec, heads, stats, HParams())

    def one(noise):
        z, drawn = family.draw(spec, flow, posterior, noise, HParams(), False)
        return z, family.log_q(spec, flow, posterior, z, noise, drawn, mode)

    return jax.vmap(one)(noise)


def moments(spec, heads):
    """(mean, covariance) of the Gaussian families, in NumPy, as their descriptions say."""
    heads = jax.tree.map(np.asarray, heads)
    std = np.exp(0.5 * heads["scale"])
    if spec.posterior == "full":
        lower = np.zeros((D, D))
        values = iter(heads["factor"])
        for i in range(D):
            lower[i, i] = 1
            for j in range(i):
                lower[i, j] = next(values)
        correlation = lower @ lower.T
    elif spec.posterior == "low_rank":
        factor = heads["factor"].reshape(D, 2)
        correlation = np.eye(D) + factor @ factor.T
    else:
        correlation = np.eye(D)
    return heads["mean"], std[:, None] * correlation * std[None]
