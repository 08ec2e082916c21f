"""The linear VAE without sampling, which several studies share.

x̂ = zW + b, q(z|x) = N(xU + c, diag v) with one v for all x (Lucas et al. 2019), p(z) =
N(0, I), p(x|z) = N(x̂, η²I): the library's model without a hidden layer. Its distortion is known,

  −E log p(x|z) = −log p(x|E z) + ½ Σ_j v_j ‖W_j‖²/η²,

so that rate, distortion and their gradients have no sampling error. All are functions of the first
two moments of x. Rates and distortions are in nats, float64 under `jax.enable_x64(True)`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vae import elbo, model, objectives, random
from vae.elbo import Terms
from vae.evaluate import ACTIVE_UNIT_VARIANCE
from vae.hparams import HParams
from vae.model import Params
from vae.spec import ModelSpec

# The variances λ of the principal components of x in most of the studies.
VARIANCES = np.array([4, 2, 1, 0.5, 0.25, 0.1, 0.05, 0.02])
_STATS = {"encoder": {}, "decoder": {}}


class Optimum(NamedTuple):
    """Rate (nats), E|x − x̂|² and the number of active units at the global optimum."""

    rate: float
    error: float
    active_units: int


def optimum(beta: float, eta2: float, variances: np.ndarray = VARIANCES) -> Optimum:
    """Of D + β·R, with latents for all that is kept: Lucas et al. 2019; Wang and Ziyin 2022, thm 2.

    Mode i is kept where λ_i > a = βη²: R = Σ_kept ½ ln(λ_i/a) and E|x − x̂|² = Σ min(λ_i, a), which
    is reverse water-filling with water level a. A kept mode has the posterior mean's variance
    1 − a/λ_i, and is active where that passes the threshold of active units.
    """
    level = beta * eta2
    kept = variances[variances > level]
    return Optimum(
        rate=float(0.5 * np.log(kept / level).sum()),
        error=float(np.minimum(variances, level).sum()),
        active_units=int(np.sum(1 - level / variances > ACTIVE_UNIT_VARIANCE)),
    )


def points(variances: np.ndarray = VARIANCES) -> np.ndarray:
    """Examples [2D, D] with mean 0 and covariance diag λ: two along each axis, float64."""
    ends = np.diag(np.sqrt(len(variances) * variances))
    return np.concatenate([ends, -ends])


def spec(example_shape: tuple[int, ...], latents: int, likelihood: str = "gaussian") -> ModelSpec:
    """Of the linear VAE; its η² is σ² of `HParams`, or learned with `gaussian_shared`."""
    return ModelSpec(example_shape, latents, depth=0, likelihood=likelihood)


def start(of: ModelSpec, seeds: Sequence[int]) -> Params:
    """The library's initial parameters, one v for all x: leaves [seeds, ...]."""

    def one(seed):
        rng = random.stream(seed, random.INIT)
        zeros = jnp.zeros(of.example_shape, jnp.float32)
        return model.init(of, HParams(), rng, zeros)[0]

    params = jax.jit(jax.vmap(one))(jnp.asarray(seeds, jnp.uint32))
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.result_type(float)), params)
    return one_variance(params)


def one_variance(params: Params) -> Params:
    """v the same for all x: without the kernel of the head `scale`, which gets no gradient then."""
    encoder = params["encoder"]
    scale = encoder["scale"] | {"kernel": jnp.zeros_like(encoder["scale"]["kernel"])}
    return params | {"encoder": encoder | {"scale": scale}}


def exact_terms(of: ModelSpec, params: Params, hparams: HParams, x: jax.Array) -> Terms:
    """The terms of x [*x], `log_px` [1] being its expectation over q(z|x)."""
    params = one_variance(params)
    noise = jnp.zeros((1, of.latent_dim), x.dtype)
    terms, _ = elbo.terms(of, params, _STATS, hparams, x, noise, train=False)
    decoded, _ = model.decode(of, params, _STATS, hparams, terms.z, train=False)
    kernel = params["decoder"]["output"]["kernel"]
    spread = jnp.exp(terms.posterior.logvar) @ jnp.sum(jnp.square(kernel), axis=1)
    lost = 0.5 * spread * jnp.exp(-decoded.shared["logvar"])
    return terms._replace(log_px=terms.log_px - lost)


def means(
    of: ModelSpec, params: Params, x: jax.Array, eta2: jax.Array | float = 1.0
) -> dict[str, jax.Array]:
    """`rate`, `distortion` and `elbo`, means over x [N, *x]; η² of a fixed likelihood."""
    hparams = HParams(sigma=jnp.sqrt(jnp.asarray(eta2, x.dtype)))
    each = jax.vmap(lambda x: objectives.metrics(exact_terms(of, params, hparams, x)))(x)
    return {name: jnp.mean(values) for name, values in each.items()}


def squared_error(distortion: jax.Array, num_values: int, eta2: jax.Array | float) -> jax.Array:
    """E|x − x̂|² over x and z, of the distortion D = E|x − x̂|²/(2η²) + ½ d ln 2πη²."""
    return 2 * eta2 * distortion - eta2 * num_values * jnp.log(2 * jnp.pi * eta2)


def posterior_means(of: ModelSpec, params: Params, x: jax.Array) -> jax.Array:
    """E[z|x] of x [N, *x]: [N, latents]."""
    params = one_variance(params)
    return jax.vmap(lambda x: model.encode(of, params, _STATS, HParams(), x, train=False)[0].mean)(
        x
    )


def active_units(of: ModelSpec, params: Params, x: jax.Array) -> jax.Array:
    """How many latents have a mean whose variance over x [N, *x] is above 0.01."""
    return jnp.sum(jnp.var(posterior_means(of, params, x), axis=0) > ACTIVE_UNIT_VARIANCE)


def descend(
    loss: Callable[[Params], jax.Array], params: Params, rate: jax.Array | float, steps: int
) -> Params:
    """`steps` steps of gradient descent."""

    def step(_, params):
        return jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(loss)(params))

    return jax.lax.fori_loop(0, steps, step, params)
