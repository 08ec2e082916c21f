"""Gradients of linear-Gaussian VAEs, where every density is known, by every estimator.

In float64, and each sample with the same noise for every estimator, so that they differ by what the
estimators are and by nothing else.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.vae.building import parameters
from vae import elbo, objectives
from vae.hparams import HParams
from vae.loss import hold
from vae.posteriors import POSTERIORS
from vae.spec import ModelSpec, ObjectiveSpec, Spec

BOUNDS = ("elbo", "iwae", "miwae", "ciwae", "renyi", "piwae")
ESTIMATORS = ("reparameterization", "stl", "dreg", "score")
UNBIASED = ("reparameterization", "dreg", "score")
FAMILIES = ("gaussian", "full", "low_rank", "coupling")
X = np.array([0.8, -1.3, 0.4])
ALPHA, CIWAE_BETA, SIGMA = 0.3, 0.4, 0.9
# Of every test that can: one program for each bound is compiled, and run with other numbers.
DRAWS, SAMPLES = 30_000, 4


def model_spec(posterior="gaussian", values=3, latents=2, prior="standard"):
    if POSTERIORS[posterior].nets:  # two layers, with a network of tanh units between them
        layers = {"stochastic": (latents - 1, 1), "stochastic_depth": 1, "stochastic_width": 2}
        layers |= {"activation": "tanh"}
    else:
        layers = {}
    return ModelSpec(
        (values,),
        latents,
        depth=0,
        likelihood="gaussian",
        posterior=posterior,
        prior=prior,
        posterior_rank=1,
        flow_layers=2,
        flow_width=3,
        **layers,
    )


def hand_params(spec, seed=0):
    return parameters(spec, seed, np.float64)[0]


@functools.cache
def standard_noise(spec, draws=DRAWS, samples=SAMPLES):
    size = POSTERIORS[spec.posterior].noise_size(spec)
    return np.random.default_rng(samples).normal(size=(draws, samples, size))


def groups_of(name):
    return 2 if name in ("miwae", "piwae") else 1


@functools.cache
def program(spec, name, samples, estimators):
    """(params, hparams, beta, x, noise [n, K, size]) -> {estimator: (loss, metrics, gradients)}."""
    groups, rng = groups_of(name), jax.random.key(0)

    def one(estimator, params, hparams, beta, x, noise):
        objective = ObjectiveSpec(
            name, estimator, samples=samples // groups, groups=groups, kl="sampled"
        )

        def loss(params):
            context = objectives.Context(
                spec=Spec(spec, objective),
                hparams=hparams,
                beta=beta,
                step=jnp.int32(0),
                x=x,
                rng=rng,
                step_rng=rng,
                params=params,
                stats={},
                decode=lambda z: z,
            )

            def terms_of(path, held):
                kept, stats = hold(params, held), {"encoder": {}, "decoder": {}}
                return elbo.terms(spec, kept, stats, hparams, x, noise, True, path=path)

            value, metrics, *_ = objectives.example_loss(context, terms_of)
            return value, metrics

        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return value, metrics, gradient

    def each(estimator, *args):
        axes = (None, None, None, None, 0)
        return jax.vmap(functools.partial(one, estimator), axes, axis_name="batch")(*args)

    return jax.jit(lambda *args: {estimator: each(estimator, *args) for estimator in estimators})


class Found(NamedTuple):
    """losses [n], metrics, and gradients of the loss, [n, P]: q's flow is part of the encoder."""

    loss: np.ndarray
    metrics: dict
    encoder: np.ndarray
    decoder: np.ndarray
    prior: np.ndarray


def estimates(
    name, noise, *, params=None, spec=None, x=X, beta=1.0, estimators=ESTIMATORS, **hparams
):
    """{estimator: Found} for every draw of the noise [n, K, size], the K of all groups together."""
    spec = model_spec() if spec is None else spec
    params = hand_params(spec) if params is None else params
    values = {"renyi_alpha": ALPHA, "ciwae_beta": CIWAE_BETA, "sigma": SIGMA} | hparams
    args = jax.tree.map(
        lambda a: jnp.asarray(a, jnp.float64), (params, HParams(**values), beta, x, noise)
    )

    def flat(tree, *parts):
        leaves = jax.tree.leaves([tree[part] for part in parts if part in tree])
        nothing = np.zeros((len(noise), 0))
        rows = [np.reshape(leaf, (len(noise), -1)) for leaf in leaves]
        return np.concatenate([nothing, *rows], axis=1)

    parts = (("encoder", "posterior"), ("decoder",), ("prior",))
    found = program(spec, name, noise.shape[1], estimators)(*args)
    return {
        estimator: Found(np.asarray(loss), metrics, *(flat(tree, *names) for names in parts))
        for estimator, (loss, metrics, tree) in found.items()
    }


@functools.cache
def of_bound(name, beta=1.0, posterior="gaussian"):
    """The estimates at arbitrary parameters."""
    spec = model_spec(posterior)
    wanted = ESTIMATORS if posterior in ("gaussian", "full") else UNBIASED
    return estimates(name, standard_noise(spec), spec=spec, beta=beta, estimators=wanted)


def standard_errors(difference):
    """The mean of [n, P] in its own standard errors, [P]."""
    error = difference.std(axis=0) / np.sqrt(len(difference))
    return difference.mean(axis=0) / error
