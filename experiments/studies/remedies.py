"""Remedies for posterior collapse raise rate, information and active units (Dieng et al. 2019).

Each is meant to keep latents in use that a VAE lets collapse, at about the same ELBO:

  warm-up    β from 0 to 1 over half of the training; Bowman et al. 2016, Sønderby et al. 2016
  cyclical   M = 4 such warm-ups, each over R = ½ of its cycle; Fu et al. 2019
  free bits  Σ_j max(λ, E KL_j), λ = ½ nat; Kingma et al. 2016, eq. 15
  floor      σ so small that KL_j ≥ .1 nats for every x; as the δ-VAE, Razavi et al. 2019
  skip       z beside the input of every layer of the decoder; Dieng et al. 2019

Here: scikit-learn's digits, dynamically binarised, 8 latents, two layers of 128 units, 5 seeds. The
images are small so that the rate stays below log N of the test images, the most that the estimate
of I_q(x; z) can say; the full budget has MNIST, where it does not. Theirs are text, OMNIGLOT, MNIST
and autoregressive decoders; a δ-VAE's prior is correlated and its posterior is not.

Asked, of each against none, seed by seed: rate, information and active units do not fall, and the
ELBO loses less than a nat. The floor narrows σ whether or not the mean moves: it may raise the rate
and nothing else.
"""

from typing import Any

import jax
import numpy as np

from experiments.report import canvas, style
from experiments.studies import trained
from experiments.studies.cases import Context, Found
from experiments.studies.quantity import Quantity, by_seed, difference, of_seeds
from vae import random
from vae.gradients import collapse

ID = "B9"
CONFIGS = {"quick": "configs/studies/remedies.py", "full": "configs/studies/remedies_full.py"}
SEEDS = 5
PLAIN = {
    "objective__beta_schedule": "constant",
    "objective__free_bits": 0.0,
    "model__posterior_scale": "logvar",
    "model__latent_skip": "none",
}
REMEDIES = {
    "none": {},
    "warm-up": {"objective__beta_schedule": "linear"},
    "cyclical": {"objective__beta_schedule": "cyclical"},
    "free bits": {"objective__free_bits": 0.5},
    "floor": {"model__posterior_scale": "floored"},
    "skip": {"model__latent_skip": "concat"},
}
PAPERS = {
    "warm-up": "Sønderby et al. 2016",
    "cyclical": "Fu et al. 2019",
    "free bits": "Kingma et al. 2016",
    "floor": "Razavi et al. 2019",
    "skip": "Dieng et al. 2019",
}
# Key, name, unit, and how far the difference to none may be below 0.
METRICS = (
    ("rate", "rate", "nats", 0.0),
    ("information", "mutual information", "nats", 0.0),
    ("active_units", "active units", "", 0.0),
    ("elbo", "ELBO", "nats", -1.0),
)


def cases(budget: str) -> list[dict[str, Any]]:
    del budget
    return [{"remedy": remedy, "seed": seed} for remedy in REMEDIES for seed in range(SEEDS)]


def run(arguments: dict[str, Any], context: Context) -> dict[str, Any]:
    """Rate, information, its ceiling and active units of one run, on test images."""
    fields = PLAIN | REMEDIES[arguments["remedy"]]
    found = trained.load(context, seed=arguments["seed"], **fields)
    names = ("rate", "information", "ceiling", "active_units")
    if found is None:
        return dict.fromkeys(names, np.nan)
    seen = _collapse(found.spec.model, found.examples("test"), found.state)
    values = seen["rate"], seen["mutual_information"], seen["information_ceiling"]
    return dict(zip(names, (*values, seen["active_units"][0]), strict=True))


@jax.jit(static_argnums=0)
def _collapse(spec, examples, state):
    rng = random.stream(state.hparams.seed, random.EVALUATE)
    return collapse.collapse(spec, examples, state, rng)


def _of(found: Found, remedy: str) -> dict[str, dict[int, float]]:
    """Each metric of each seed."""
    of = found.of(remedy=remedy)
    values = {
        key: {case.arguments["seed"]: float(case.values[key]) for case in of}
        for key in ("rate", "information", "active_units")
    }
    fields = PLAIN | REMEDIES[remedy]
    return values | {"elbo": by_seed(found.results, "test/elbo", **fields)}


def measure(found: Found) -> list[Quantity]:
    """Each metric with each remedy, and less that of none."""
    of = {remedy: _of(found, remedy) for remedy in REMEDIES}
    rows = []
    for key, name, unit, least in METRICS:
        tail = f", {unit}" if unit else ""
        for remedy, values in of.items():
            rows.append(of_seeds(f"{name}, {remedy}{tail}", values[key].values()))
        for remedy, paper in PAPERS.items():
            rows.append(
                of_seeds(
                    f"{name}, {remedy} − none{tail}",
                    difference(of[remedy][key], of["none"][key]),
                    least,
                    relation=">=",
                    source=paper,
                )
            )
    ceilings = [case.values["ceiling"] for case in found.cases]
    # A quarter of a nat below the ceiling the estimate says less than there is.
    highest = max(max(values["information"].values()) for values in of.values())
    room = float(np.nanmin(ceilings)) - highest
    note = "" if room > 0.25 else "the estimates are cut off there"
    return [*rows, of_seeds("log N less the largest mutual information, nats", [room], note=note)]


def figure(found: Found):
    """Each metric over the remedies, a point for each seed."""
    sheet, panels = canvas.new_figure(2, 2, 6.8, 4.2)
    of = {remedy: _of(found, remedy) for remedy in REMEDIES}
    for panel, (key, name, unit, _) in zip(panels, METRICS, strict=True):
        for place, values in enumerate(of.values()):
            points = list(values[key].values())
            panel.plot([place] * len(points), points, "o", color=style.PETROFF[place], ms=4)
        panel.axhline(
            np.nanmean(list(of["none"][key].values())), color=style.MUTED, lw=0.8, ls="--"
        )
        panel.set_xticks(range(len(of)), list(of), rotation=30, ha="right")
        panel.set_title(f"{name}, {unit}" if unit else name)
    return sheet
