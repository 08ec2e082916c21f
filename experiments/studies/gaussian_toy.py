"""The Gaussian toy on which estimators of IWAE's gradient are compared; Rainforth et al. 2018.

z ~ N(μ, I), x|z ~ N(z, I), q(z|x) = N(Ax + b, ⅔I): the library's model without a hidden layer,
its prior a mixture of one. The posterior is N(½(x + μ), ½I), so that the best q has A = ½I and
b = ½μ. There are N examples of 20 values, from a μ ~ N(0, I); every number of A, b and μ is off
its optimum, for μ the mean of x, by a draw from N(0, 0.01²).

Gradients are those of the mean over the N examples, the only noise in them that of z. The examples'
noise is independent, so the variance of that mean is known from the variances of its terms.

What is expected has closed forms, in the offset Δ of q's mean from the posterior's and
ρ_a = E_q[(w/p(x))^a], all of which exist because q is wider than the posterior. With λ = a/s_p² +
(1 − a)/s², s² = ⅔ and s_p² = ½,

  ln ρ_a = −½ d (a ln s_p² + (1 − a) ln s² + ln λ) + ½ a(a − 1)/(s_p² s² λ) ‖Δ‖²;

for a = 2 it is 1 + χ² of q and the posterior.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vae import random
from vae.data import Transform
from vae.gradients import noise
from vae.gradients.noise import Moments
from vae.hparams import HParams
from vae.loss import Batch, batch_loss
from vae.spec import ModelSpec, ObjectiveSpec, Spec

DIM = 20
VARIANCE, POSTERIOR_VARIANCE = 2 / 3, 1 / 2
OFFSET = 0.01
PARAMETERS = ("A", "b", "μ")
_MODEL = ModelSpec((DIM,), DIM, depth=0, likelihood="gaussian", prior="mixture", prior_components=1)
# Samples of z at once: their arrays then fit a processor's cache.
_AT_ONCE = 16_384


class Toy(NamedTuple):
    """Parameters A [20, 20] (x from the left), b and μ [20]; and the examples x [N, 20]."""

    parameters: dict[str, jax.Array]
    x: jax.Array


def draw(seed: jax.Array | int, points: int) -> Toy:
    """A toy of N = `points` examples, all of it from the seed; float32."""
    rng = random.key(jnp.asarray(seed, jnp.uint32))
    mu_rng, z_rng, x_rng, *offset_rngs = jax.random.split(rng, 6)
    z = jax.random.normal(mu_rng, (1, DIM)) + jax.random.normal(z_rng, (points, DIM))
    x = z + jax.random.normal(x_rng, z.shape)
    mean = jnp.mean(x, axis=0)
    best = dict(zip(PARAMETERS, (0.5 * jnp.eye(DIM), 0.5 * mean, mean), strict=True))
    off = {
        name: value + OFFSET * jax.random.normal(rng, value.shape)
        for (name, value), rng in zip(best.items(), offset_rngs, strict=True)
    }
    return Toy(off, x)


def offsets(toy: Toy) -> np.ndarray:
    """Δ, the mean of q(z|x) less that of the posterior: [N, 20], float64."""
    a, b, mu = (np.asarray(toy.parameters[name], np.float64) for name in PARAMETERS)
    x = np.asarray(toy.x, np.float64)
    return x @ a + b - 0.5 * (x + mu)


def params_of(toy: Toy) -> dict[str, Any]:
    """The library's parameters of a toy."""
    a, b, mu = (toy.parameters[name] for name in PARAMETERS)
    scale = {"kernel": jnp.zeros_like(a), "bias": jnp.full_like(b, np.log(VARIANCE))}
    one = {
        "means": mu[None],
        "logvars": jnp.zeros_like(mu)[None],
        "weights": jnp.zeros_like(mu[:1]),
    }
    return {
        "encoder": {"mean": {"kernel": a, "bias": b}, "scale": scale},
        "decoder": {"output": {"kernel": jnp.eye(DIM, dtype=a.dtype), "bias": jnp.zeros_like(b)}},
        "prior": {"mixture": one},
    }


def spec_of(estimator: str, samples: int, groups: int = 1) -> Spec:
    """Of the mean of M bounds of K samples each: IWAE where M is 1."""
    return Spec(_MODEL, ObjectiveSpec("miwae", estimator, samples=samples, groups=groups))


def gradient(spec: Spec, toy: Toy, x: jax.Array, rng: jax.Array) -> dict[str, jax.Array]:
    """The bound's gradient in each of `PARAMETERS`, of one example x [20] and one draw of noise."""

    def bound(params):
        batch = Batch(x[None], jnp.zeros(1, jnp.int32))
        args = params, {}, HParams(), jnp.zeros((), jnp.int32), batch
        return -batch_loss(spec, Transform(), *args, rng=rng)[0]

    found = jax.grad(bound)(params_of(toy))
    mean = found["encoder"]["mean"]
    return {"A": mean["kernel"], "b": mean["bias"], "μ": found["prior"]["mixture"]["means"][0]}


def moments(specs: dict[str, Spec], toy: Toy, rng: jax.Array, draws: int) -> Moments:
    """Of each example's gradients by each spec, over `draws` draws of its noise: leaves [N, ...].

    All specs have the same number of samples, and each draw of noise is for all of them.
    """

    def of_example(args):
        x, rng = args

        def gradients(rng):
            return {name: gradient(spec, toy, x, rng) for name, spec in specs.items()}

        return noise.moments(gradients, jax.random.split(rng, draws))

    objective, number = next(iter(specs.values())).objective, len(toy.x)
    rngs = random.example_rngs(rng, jnp.arange(number, dtype=jnp.int32))
    at_once = min(number, max(1, _AT_ONCE // (objective.samples * objective.groups)))
    return jax.lax.map(of_example, (toy.x, rngs), batch_size=at_once)


def of_mean(found: Moments) -> Moments:
    """Of the mean over the examples, from those of each: their noise is independent.

    Its mean is the mean of theirs, its variance 1/N of the mean of theirs.
    """
    number = found.count.shape[0]
    mean, m2 = (
        jax.tree.map(lambda a: jnp.mean(a, axis=0), tree) for tree in (found.mean, found.m2)
    )
    return Moments(found.count[0], mean, jax.tree.map(lambda a: a / number, m2))


def only(name: str, found: Moments) -> Moments:
    """A part of a tree's moments."""
    return Moments(found.count, found.mean[name], found.m2[name])


def parts(tree: dict[str, jax.Array]) -> list[jax.Array]:
    """A, b and μ as the parts of which the noise is taken."""
    return [tree[name] for name in PARAMETERS]


def of_seeds(function: Callable[[Toy, jax.Array], Any], seeds: int, points: int) -> Any:
    """function(toy, key) of the toys of seeds 0, 1, ..., as one program: leaves [seeds, ...]."""

    def one(seed):
        # Not the key of the toy itself.
        return function(draw(seed, points), random.stream(seed, random.PROBE))

    return jax.jit(lambda seeds: jax.lax.map(one, seeds))(jnp.arange(seeds, dtype=jnp.uint32))


def slope(of: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Least-squares slope of ln values [n, ...] in ln of [n]: [...]."""
    log_of = np.log(of) - np.log(of).mean()
    return np.tensordot(log_of, np.log(values), axes=(0, 0)) / np.sum(np.square(log_of))


def rho(a: int, squared: np.ndarray) -> tuple[np.ndarray, float]:
    """ρ_a at ‖Δ‖² = `squared`, and its logarithm's derivative in ‖Δ‖²."""
    s2, p2 = VARIANCE, POSTERIOR_VARIANCE
    precision = a / p2 + (1 - a) / s2
    growth = 0.5 * a * (a - 1) / (p2 * s2 * precision)
    spread = a * np.log(p2) + (1 - a) * np.log(s2) + np.log(precision)
    return np.exp(growth * squared - 0.5 * DIM * spread), growth


def evidence_gradient(toy: Toy) -> np.ndarray:
    """∇_μ log p(x) = ½(x − μ), of the mean over the examples: [20], float64."""
    x, mu = (np.asarray(a, np.float64) for a in (toy.x, toy.parameters["μ"]))
    return 0.5 * (x.mean(axis=0) - mu)


def bound_gradient(offset: np.ndarray, samples: int) -> np.ndarray:
    """∇_b L_K over examples of offset Δ [N, 20], to the second order in 1/K: [20].

    L_K = log p(x) − μ₂/(2K) + (μ₃/3 − ¾μ₂²)/K² + O(1/K³), with the central moments μ₂ = ρ_2 − 1 and
    μ₃ = ρ_3 − 3ρ_2 + 2 of w/p(x): the expansion of the logarithm of a mean. It depends on Δ alone,
    so that ∇_μ (L_K − log p(x)) is −½ of this.
    """
    squared = np.sum(np.square(offset), axis=1, keepdims=True)
    (second, growth2), (third, growth3) = rho(2, squared), rho(3, squared)
    mu2_slope = growth2 * second
    mu3_slope = growth3 * third - 3 * mu2_slope
    first = -mu2_slope / 2
    next_order = mu3_slope / 3 - 1.5 * (second - 1) * mu2_slope
    in_squared = first / samples + next_order / samples**2
    return np.mean(2 * offset * in_squared, axis=0)


def stl_mean(offset: np.ndarray, samples: int) -> np.ndarray:
    """What STL estimates in the place of ∇_b L_K, to the first order in 1/K: [20].

    Σ_k w̃_k f(z_k) with f = ∇_z log w estimates E_p f, p the posterior, off by −ρ_2/K times how much
    larger E f is under the normalised p²/q. f is linear, E_p f = −Δ/s², and p²/q has the precision
    λ = 2/s_p² − 1/s² and its mean −Δ/(s²λ) beside p's.
    """
    s2, p2 = VARIANCE, POSTERIOR_VARIANCE
    squared = np.sum(np.square(offset), axis=1, keepdims=True)
    limit = -offset / s2
    beside = -offset / (s2 * (2 / p2 - 1 / s2)) * (1 / s2 - 1 / p2)
    return np.mean(limit - rho(2, squared)[0] / samples * beside, axis=0)
