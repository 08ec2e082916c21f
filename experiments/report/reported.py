"""What training reports beside ELBO, rate and distortion: the loss, the terms of the objective, and
what the optimiser did.

The terms are those that the runs logged, whichever objective logged them: one that is new here is
shown under its own name.
"""

import numpy as np

from experiments.report.results import Results, Run
from experiments.report.style import Metric

LOSS = Metric(
    "train/loss",
    "Loss",
    "nats",
    meaning="what is minimised; losses of different objectives do not compare.",
)

# In the order in which they are shown.
TERMS = (
    Metric(
        "train/bound",
        "Bound",
        "nats",
        meaning="the bound itself at β = 1, whichever surrogate gives its gradient; with many "
        "samples it lies above the ELBO.",
    ),
    Metric(
        "train/mutual_information",
        "Mutual information",
        "nats",
        meaning="of x and z, E log q(z|x) / q(z). With the total correlation and the KL of the "
        "dimensions it adds up to the rate.",
    ),
    Metric(
        "train/total_correlation",
        "Total correlation",
        "nats",
        meaning="KL(q(z) ‖ Π q(z_j)), how far the latent dimensions depend on each other: "
        "estimated from the batch by tcvae, by the discriminator by factor.",
    ),
    Metric(
        "train/dimension_kl",
        "KL of the dimensions",
        "nats",
        meaning="Σ KL(q(z_j) ‖ p(z_j)), how far each latent dimension, over all data, is from "
        "its prior.",
    ),
    Metric(
        "train/capacity", "Capacity", "nats", meaning="the rate that the objective aims at by now."
    ),
    Metric(
        "train/penalty",
        "Penalty",
        "nats",
        meaning="what the objective adds to distortion and rate, with its weights.",
    ),
    Metric(
        "train/mmd",
        "MMD²",
        "",
        meaning="squared maximum mean discrepancy of q(z) and p(z), before its weight. The "
        "estimate is unbiased, so it may be below zero.",
    ),
    Metric(
        "train/commitment",
        "Commitment",
        "",
        meaning="squared distance of the encoder's output from its code, before its weight.",
    ),
    Metric(
        "train/perplexity",
        "Perplexity",
        "codes",
        meaning="exp of the entropy of how often a batch uses each code: as many codes, used "
        "evenly, would be as diverse.",
    ),
    Metric(
        "train/code_usage",
        "Code usage",
        "",
        meaning="share of the codebook that a batch uses at all.",
    ),
    Metric(
        "train/feature_error",
        "Feature error",
        "",
        meaning="half the squared distance of x and its reconstruction in the discriminator's "
        "features.",
    ),
    Metric(
        "train/discriminator_loss",
        "Discriminator's loss",
        "nats",
        meaning="what the discriminator minimises.",
    ),
    Metric(
        "train/discriminator_accuracy",
        "Discriminator's accuracy",
        "",
        meaning="share of what the discriminator tells right: 0.5 is guessing.",
    ),
)

OPTIMISER = (
    Metric("train/beta", "β", "", meaning="weight of the rate at that step."),
    Metric("train/learning_rate", "Learning rate", "", meaning="at that step."),
    Metric(
        "train/grad_norm", "Gradient norm", "", meaning="of the whole gradient, before clipping."
    ),
    Metric(
        "train/clipped",
        "Clipped",
        "",
        meaning="share of the steps whose gradient was scaled down to optimizer.clip_norm.",
    ),
    Metric(
        "train/skipped",
        "Skipped",
        "",
        meaning="share of the steps passed over because of optimizer.skip_norm.",
    ),
)


def reported(results: Results) -> tuple[Metric, ...]:
    """What the runs logged, as far as it says something: a loss that is not the negative ELBO, the
    terms of objectives, and numbers of the optimiser that change, or are not zero.
    """
    named = (LOSS, *TERMS, *OPTIMISER)
    known = {"train/elbo", "train/rate", "train/distortion", *(metric.key for metric in named)}
    logged = dict.fromkeys(key for run in results.runs for key in run.curves)
    others = [
        Metric(key, key.removeprefix("train/").replace("_", " ").capitalize(), "")
        for key in logged
        if key.startswith("train/") and key not in known
    ]
    return tuple(
        metric
        for metric in (LOSS, *TERMS, *others, *OPTIMISER)
        if any(_says_something(metric.key, run) for run in results.runs)
    )


def _says_something(key: str, run: Run) -> bool:
    if key == LOSS.key:
        return _own_loss(run)
    if key in ("train/beta", "train/learning_rate"):
        return len(np.unique(_finite(run, key))) > 1
    if key in ("train/clipped", "train/skipped"):
        return bool(_finite(run, key).any())
    if key == "train/grad_norm":  # what those two are about
        return any(_says_something(f"train/{name}", run) for name in ("clipped", "skipped"))
    return _finite(run, key).size > 0


def _own_loss(run: Run) -> bool:
    """Whether the loss is another number than the negative ELBO or, without one, the distortion."""
    loss = run.curves.get(LOSS.key, np.zeros(0))
    elbo = run.curves.get("train/elbo", np.full(loss.size, np.nan))
    distortion = run.curves.get("train/distortion", np.full(loss.size, np.nan))
    difference = np.abs(loss - np.where(np.isfinite(elbo), -elbo, distortion))
    # Both are means in float32 over the steps since the last reading.
    return bool((difference > 1e-4 * (1 + np.abs(loss))).any())


def _finite(run: Run, key: str) -> np.ndarray:
    values = run.curves.get(key, np.zeros(0))
    return values[np.isfinite(values)]
