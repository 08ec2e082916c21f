"""A larger variance of the decoder makes more latents collapse (Lucas et al. 2019).

With p(x|z) = N(x̂(z), σ²I) the linear VAE keeps the principal components of variance λ > σ² and no
others: the ELBO itself asks for the collapse, which is no failure of training. With nonlinear
decoders they see the same: dimension j is (ε, δ)-collapsed where

  P_x(KL(q(z_j|x) || p(z_j)) < ε) ≥ 1 − δ,

and the share of such dimensions grows with a fixed σ². Here δ = .01 and ε = .01 nats, and .1 beside
it, since they show it over ε: unused latents come to rest slowly, and .01 is near their noise. Over
the test images of a reduced MNIST (configs/mnist_8k.py) in [0, 1], with 200 latents, layers of 100
units and σ² of .01, .1, 1 and 10; theirs have other nets and all of MNIST. What a linear VAE with
as many latents would let collapse, the share of its λ_i ≤ σ², stands beside.

Asked: from each σ² to the next the share does not fall, and over all of them it grows. Epochs,
learning rate and seeds were settled after first looks, and ε = .1 was added then.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from experiments.report import canvas, style
from experiments.studies import trained
from experiments.studies.cases import Context, Found
from experiments.studies.quantity import REPRODUCED, Quantity, of_seeds
from vae import random
from vae.gradients import collapse

ID = "B8"
CONFIGS = {
    "quick": "configs/studies/variance_collapse.py",
    "full": "configs/studies/variance_collapse_full.py",
}
VARIANCES = (0.01, 0.1, 1.0, 10.0)
SEEDS = 5
DELTA = 0.01
# Nats: of the shares, and of the figure's curves.
EPSILONS = (0.01, 0.1)
CURVE = np.logspace(-4, 1, 26)


def cases(budget: str) -> list[dict[str, Any]]:
    return [{"variance": v, "seed": s} for v in VARIANCES for s in range(SEEDS)]


def run(arguments: dict[str, Any], context: Context) -> dict[str, Any]:
    """Shares of the collapsed dimensions of one run, by each of `EPSILONS` and over `CURVE`."""
    variance = arguments["variance"]
    found = trained.load(context, model__sigma=variance**0.5, seed=arguments["seed"])
    if found is None:
        nothing = {"collapsed": len(EPSILONS), "curve": len(CURVE)}
        return {"linear": np.nan} | {n: np.full(size, np.nan) for n, size in nothing.items()}
    kl = _kl(found.spec.model, found.examples("test"), found.state)

    def shares(epsilons):
        return np.array([np.mean(collapse.collapsed(kl, epsilon=e, delta=DELTA)) for e in epsilons])

    x = found.dataset.train.reshape(found.dataset.num_train, -1)
    return {
        "collapsed": shares(EPSILONS),
        "curve": shares(CURVE),
        "linear": linear_share(x * found.dataset.transform.scale, kl.shape[1], variance),
    }


@jax.jit(static_argnums=0)
def _kl(spec, examples, state):
    """KL of each example and dimension, nats, [N, d]."""
    rng = random.stream(state.hparams.seed, random.EVALUATE)
    return collapse.codes(spec, examples, state, rng, batch_size=500).kl


def linear_share(x: np.ndarray, latents: int, variance: float) -> float:
    """The share of a linear VAE's latents that collapse: λ_i ≤ σ² of x [N, D]."""
    spread = np.linalg.eigvalsh(np.cov(x.T, ddof=0))[::-1][:latents]
    return 1 - float(np.sum(spread > variance)) / latents


def _shares(found: Found, epsilon: float) -> dict[float, np.ndarray]:
    """Of each σ²: [seeds]."""
    place = EPSILONS.index(epsilon)
    return {
        v: np.array([c.values["collapsed"][place] for c in found.of(variance=v)]) for v in VARIANCES
    }


def _linear(found: Found, variance: float) -> float:
    return float(np.mean([case.values["linear"] for case in found.of(variance=variance)]))


def measure(found: Found) -> list[Quantity]:
    """The share at each σ², and how it grows from one to the next, by each ε."""
    return [row for epsilon in EPSILONS for row in _rows(found, epsilon)]


def _rows(found: Found, epsilon: float) -> list[Quantity]:
    shares, name = _shares(found, epsilon), f"share collapsed, ε = {epsilon:g} nats"
    rows = [
        of_seeds(
            f"{name}: at σ² = {variance:g}",
            values,
            source=f"a linear VAE: {_linear(found, variance):.2f}",
        )
        for variance, values in shares.items()
    ]
    asked = {"relation": ">=", "source": "Lucas et al. 2019"}
    for low, high in zip(VARIANCES[:-1], VARIANCES[1:], strict=True):
        more = shares[high] - shares[low]
        row = of_seeds(f"{name}: at σ² = {high:g} less at {low:g}", more, 0, **asked)
        note = "" if row.verdict == REPRODUCED else _not_at_rest(found, high)
        rows.append(dataclasses.replace(row, note=note))
    # One dimension of two hundred is the least that is more.
    ends = shares[VARIANCES[-1]] - shares[VARIANCES[0]]
    return [*rows, of_seeds(f"{name}: at the largest σ² less at the least", ends, 0.005, **asked)]


def _not_at_rest(found: Found, variance: float) -> str:
    """How many latents are between the two ε: no longer used, and still above the smaller."""
    near, far = (_shares(found, epsilon)[variance].mean() for epsilon in EPSILONS)
    between = (
        f"{far - near:.0%} of the latents are between {EPSILONS[0]:g} and {EPSILONS[1]:g} nats"
    )
    return f"{between}: not yet at rest" if far - near > 0.05 else ""


def figure(found: Found):
    """The share of collapsed dimensions over ε, as their figure of deep VAEs; and over σ²."""
    sheet, (curves, shares) = canvas.new_figure(1, 2, 6.8, 2.7)
    for variance, color in zip(VARIANCES, style.viridis(len(VARIANCES)), strict=True):
        for i, case in enumerate(found.of(variance=variance)):
            label = f"σ² = {variance:g}" if i == 0 else None
            curves.plot(CURVE, 100 * case.values["curve"], color=color, label=label, lw=1)
    curves.set_xscale("log")
    curves.set_xlabel("ε, nats")
    curves.set_ylabel("collapsed dimensions, %")
    curves.set_title("δ = 0.01")
    curves.legend()
    for epsilon, color, marker in zip(EPSILONS, style.PETROFF, "os", strict=False):
        curves.axvline(epsilon, color=color, lw=0.8, ls=":")
        for variance, values in _shares(found, epsilon).items():
            label = f"ε = {epsilon:g} nats" if variance == VARIANCES[0] else None
            shares.plot(
                [variance] * len(values), 100 * values, marker, color=color, ms=4, label=label
            )
    linear = [100 * _linear(found, variance) for variance in VARIANCES]
    shares.plot(VARIANCES, linear, "--", color=style.MUTED, label="linear VAE: λ ≤ σ²")
    shares.set_xscale("log")
    shares.set_xlabel("σ²")
    shares.set_ylabel("collapsed dimensions, %")
    shares.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return sheet
