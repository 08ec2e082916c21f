"""The rules between the fields of a config that need neither the data nor the library.

Those between the parts of a model and its objective are in `vae.validity`; those that need the data
are checked where the data is, in `experiments.plan`.
"""

from collections.abc import Mapping
from typing import Any

from absl import logging

from experiments import fields
from vae.errors import UserError

# What the library's tables say too; written down here, because they import JAX and a typo is
# answered before that. tests/experiments/test_rules.py holds the two against each other.
BYTE_LIKELIHOODS = ("categorical", "logistic_shared", "logistic_pixel", "logistic_mixture")
UNIT_LIKELIHOODS = ("bernoulli", "continuous_bernoulli", *BYTE_LIKELIHOODS)
NO_FREE_BITS = (
    "iwae",
    "miwae",
    "ciwae",
    "piwae",
    "renyi",
    "capacity",
    "autoencoder",
    "log_softmax",
    "tied",
    "vq",
)
POINTS = ("point", "squashed", "tied")
NO_FREE_BITS_ESTIMATORS = ("dreg", "gdreg", "score")

# Steps that something takes, and when it counts.
LENGTHS = {
    "objective.warmup_steps": ("objective.beta_schedule", ("linear", "sigmoid")),
    "objective.capacity_steps": ("objective.name", ("capacity",)),
    "optimizer.warmup_steps": ("", ()),
    "optimizer.decay_steps": ("optimizer.schedule", ("cosine", "step", "stages")),
}


def check(flat: Mapping[str, Any]) -> None:
    """Passes the flat config of one run whose fields agree with each other.

    Raises:
      UserError: two that contradict each other, by name, and what to do.
    """
    epochs, steps = flat["train.epochs"], flat["train.steps"]
    if epochs is not None and steps is not None:
        raise UserError(
            f"train.epochs and train.steps: both are set ({epochs} and {steps}), and exactly one "
            "gives the length of training. Set the other to null, e.g. --config.train.epochs=null."
        )
    if epochs is None and steps is None:
        raise UserError(
            "train.epochs and train.steps: neither is set, and exactly one gives the length of "
            "training. Set one, e.g. --config.train.epochs=50."
        )
    folds, fold = flat["data.folds"], flat["data.fold"]
    if fold >= (folds or 1):
        there = f"data.folds is {fields.show(folds)}"
        raise UserError(
            f"data.fold: {fold}, but {there}. Choose one from 0 to data.folds - 1, or give "
            "--folds=K, which sets both."
        )
    if flat["data.placement"] == "host":
        for name, without in (("probe.instruments", "none"), ("optimizer.encoder_steps", 1)):
            if flat[name] != without:
                raise UserError(
                    f"data.placement: host streams the batches of training alone, and {name} "
                    f"({fields.show(flat[name])}) reads other examples too. Set it to "
                    f"{fields.show(without)}, or data.placement to device."
                )
    net, depth, width = flat["model.net"], flat["model.depth"], flat["model.width"]
    if net == "conv" and depth < 1:
        raise UserError(
            "model.depth: 0 with model.net conv, which needs a convolutional layer. "
            "Set model.depth to 1 or more, or model.net to mlp."
        )
    if isinstance(width, tuple) and len(width) != depth:
        raise UserError(
            f"model.width: {fields.show(width)} lists {len(width)} but model.depth is {depth}. "
            "Give one width per hidden layer, or one number for all of them."
        )
    residual = flat["model.residual"]
    if residual != "none" and net != "mlp":
        raise UserError(
            f"model.residual: {residual} needs model.net mlp, got {net}. "
            "Set model.residual to none or model.net to mlp."
        )
    if residual != "none" and isinstance(width, tuple) and len(set(width)) > 1:
        raise UserError(
            f"model.residual: {residual} adds a layer's input to its output, so all widths must be "
            f"equal, and model.width is {fields.show(width)}. Set model.width to one number, "
            "or model.residual to none."
        )
    if flat["model.latent_skip"] != "none" and (net != "mlp" or residual != "none"):
        raise UserError(
            f"model.latent_skip: {flat['model.latent_skip']} widens the layers of an mlp, to whose "
            f"input nothing can be added then: it needs model.net mlp, got {net}, and "
            f"model.residual none, got {residual}. Set these, or model.latent_skip to none."
        )
    scaling, binarization = flat["data.scaling"], flat["data.binarization"]
    if binarization != "none" and scaling != "unit":
        raise UserError(
            f"data.binarization: {binarization} reads pixels as probabilities in [0, 1], so it "
            f"needs data.scaling unit, got {scaling}. Set data.scaling to unit or "
            "data.binarization to none."
        )
    likelihood = flat["model.likelihood"]
    if likelihood in UNIT_LIKELIHOODS and scaling != "unit":
        raise UserError(
            f"model.likelihood: {likelihood} needs values in [0, 1], so data.scaling unit, got "
            f"{scaling}. Set data.scaling to unit or model.likelihood to one of the gaussian ones."
        )
    if likelihood in BYTE_LIKELIHOODS and binarization != "none":
        raise UserError(
            f"model.likelihood: {likelihood} is a distribution over the 256 values of a byte, and "
            f"data.binarization {binarization} leaves two. Set data.binarization to none or "
            "model.likelihood to bernoulli."
        )
    objective = flat["objective.name"]
    estimator = flat["objective.estimator"]
    no_rate = objective in NO_FREE_BITS or estimator in NO_FREE_BITS_ESTIMATORS
    if flat["objective.free_bits"] > 0 and (no_rate or flat["model.posterior"] in POINTS):
        raise UserError(
            f"objective.free_bits: {flat['objective.free_bits']}, but the loss of {objective} with "
            f"the estimator {estimator} has no rate of which a part could be free. Set "
            "objective.free_bits to 0, or objective.name to elbo and objective.estimator to "
            "reparameterization or stl."
        )
    if flat["objective.free_bits"] > 0 and flat["train.accumulate"] > 1:
        raise UserError(
            f"train.accumulate: {flat['train.accumulate']} parts of a batch, but which bits are "
            f"free (objective.free_bits {flat['objective.free_bits']}) is read off the mean of the "
            "whole batch. Set train.accumulate to 1, or objective.free_bits to 0."
        )
    instruments(flat["probe.instruments"])
    level = flat["objective.corruption_level"]
    if flat["objective.corruption"] == "mask" and level > 1:
        raise UserError(
            f"objective.corruption_level: {level} is the share of the values that mask sets to 0, "
            "at most 1. Make it smaller, or set objective.corruption to gaussian."
        )


def instruments(text: str) -> tuple[str, ...]:
    """The names in probe.instruments; () for none, all there are for all.

    Raises:
      UserError: one that is none.
    """
    if text in ("none", "all"):
        return () if text == "none" else fields.INSTRUMENTS
    names = tuple(name.strip() for name in text.split("+"))
    for name in names:
        if name not in fields.INSTRUMENTS:
            raise UserError(
                f"probe.instruments: there is no instrument {name}. Write none, all, or names "
                f"joined by +, of {', '.join(fields.INSTRUMENTS)}."
            )
    return names


def warn_of_length(flats: list[Mapping[str, Any]], num_steps: list[int]) -> None:
    """Warns once for each schedule that is longer than the training of some run.

    Args:
      flats: the flat config of each run. num_steps: training steps of each run.
    """
    for name, (switch, values) in LENGTHS.items():
        longer = [
            (flat[name], steps)
            for flat, steps in zip(flats, num_steps, strict=True)
            if (flat[name] or 0) > steps and (not switch or flat[switch] in values)
        ]
        if longer:
            logging.warning(
                "%s: %g is longer than the training of %d steps (%d of %d runs): the schedule does "
                "not come to its end.",
                name,
                *longer[0],
                len(longer),
                len(flats),
            )
