"""From a flat config to what the library and the launcher take: spec, numbers, lengths."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments import memory, rules
from experiments.fields import FIELDS
from vae import data, validity
from vae.errors import UserError
from vae.gradients import instruments
from vae.hparams import HParams
from vae.likelihoods import LIKELIHOODS
from vae.nets import NETS
from vae.spec import ModelSpec, ObjectiveSpec, OptimizerSpec, Spec


@dataclasses.dataclass(frozen=True)
class EvalPlan:
    """How runs are evaluated; see `eval.*` in configs/default.py."""

    every: int
    samples: int
    iw_samples: int
    train_limit: int


@dataclasses.dataclass(frozen=True)
class ProbePlan:
    """What is looked at, and when; see `probe.*` in configs/default.py.

    Attributes:
      instruments: of `vae.gradients.instruments.INSTRUMENTS`; () for none.
      layers: the layers to write down; () for all.
    """

    instruments: tuple[str, ...]
    every: int
    settings: instruments.Settings
    layers: tuple[str, ...]


def spec_of(flat: Mapping[str, Any], dataset: data.Dataset) -> Spec:
    """The static part of a run, for the library.

    Raises:
      UserError: the model contradicts the data.
    """
    likelihood = flat["model.likelihood"]
    low, high = dataset.value_range()
    least, most = LIKELIHOODS[likelihood].support
    if low < least or high > most:
        raise UserError(
            f"model.likelihood: {likelihood} needs data in [{least:g}, {most:g}], and those of "
            f"{dataset.name} span [{low:g}, {high:g}]. Set data.scaling to unit, or "
            "model.likelihood to one of the gaussian ones."
        )
    net = flat["model.net"]
    if NETS[net].images and len(dataset.example_shape) != 3:
        raise UserError(
            f"model.net: {net} needs images [H, W, C], and an example of {dataset.name} has shape "
            f"{list(dataset.example_shape)}. Set model.net to mlp."
        )
    if flat["train.batch_size"] > dataset.num_train:
        raise UserError(
            f"train.batch_size: {flat['train.batch_size']} is more than the {dataset.num_train} "
            f"training examples of {dataset.name}. Make it smaller."
        )
    if LIKELIHOODS[likelihood].levels and not dataset.bytes:
        raise UserError(
            f"model.likelihood: {likelihood} is a distribution over the 256 values of a byte, and "
            f"those of {dataset.name} are not bytes scaled to [0, 1]. Use uint8 data with "
            "data.scaling unit and data.binarization none, or another model.likelihood."
        )
    dims = flat["model.latent_dim"]
    layers = dims if isinstance(dims, tuple) else ()
    spec = Spec(
        model=ModelSpec(
            example_shape=dataset.example_shape,
            latent_dim=sum(layers) or dims,
            stochastic=layers,
            **_of(ModelSpec, "model", flat, *_OF_DATA),
        ),
        objective=ObjectiveSpec(
            **_of(ObjectiveSpec, "objective", flat, "num_examples", "free_bits_groups"),
            num_examples=dataset.num_train,
            free_bits_groups=flat["objective.free_bits_groups"] or 0,
        ),
        optimizer=OptimizerSpec(
            **_of(OptimizerSpec, "optimizer", flat, "plateau_window", "ema", "skip", "decays"),
            plateau_window=flat["optimizer.plateau_window"] or _steps_per_epoch(flat, dataset),
            ema=flat["optimizer.ema_decay"] is not None,
            skip=flat["optimizer.skip_norm"] is not None,
        ),
        batch_size=flat["train.batch_size"],
        precision=flat["train.precision"],
        accumulate=flat["train.accumulate"],
        remat=flat["train.remat"],
    )
    validity.check(spec)
    return spec


# What a ModelSpec has beside the fields of its section.
_OF_DATA = ("example_shape", "latent_dim", "stochastic", "precision", "remat", "packed")


def _of(kind: type, section: str, flat: Mapping[str, Any], *but: str) -> dict[str, Any]:
    """The fields of a part of the spec, but for those named, from the section of its name."""
    names = [field.name for field in dataclasses.fields(kind) if field.name not in but]
    return {name: flat[f"{section}.{name}"] for name in names}


def steps_of(flat: Mapping[str, Any], dataset: data.Dataset) -> int:
    """Training steps; an epoch is ⌊N / batch size⌋ of them."""
    return flat["train.steps"] or flat["train.epochs"] * _steps_per_epoch(flat, dataset)


def _steps_per_epoch(flat: Mapping[str, Any], dataset: data.Dataset) -> int:
    return dataset.num_train // flat["train.batch_size"]


def eval_plan(flat: Mapping[str, Any], dataset: data.Dataset, num_steps: int) -> EvalPlan:
    limit = flat["eval.train_limit"] or dataset.num_test
    return EvalPlan(
        every=flat["eval.every"] or max(1, num_steps // 20),
        samples=flat["eval.samples"],
        # Without densities there are no importance weights.
        iw_samples=0 if flat["model.posterior"] in rules.POINTS else flat["eval.iw_samples"],
        train_limit=min(limit, dataset.num_train),
    )


def probe_plan(
    flat: Mapping[str, Any], spec: Spec, dataset: data.Dataset, num_steps: int
) -> ProbePlan:
    """Raises UserError where an instrument, a number of examples or a layer makes no sense."""
    names = rules.instruments(flat["probe.instruments"])
    if flat["probe.instruments"] == "all":
        names = instruments.fitting(spec)
    instruments.check(spec, names)
    count = flat["probe.examples"] or spec.batch_size
    if names and count > dataset.num_train:
        raise UserError(
            f"probe.examples: {count} is more than the {dataset.num_train} training examples of "
            f"{dataset.name}. Make it smaller."
        )
    layers = tuple(part.strip() for part in (flat["probe.layers"] or "").split("+") if part.strip())
    if layers:
        instruments.check_layers(memory.parameters(spec), layers)
    every = flat["probe.every"] or max(1, num_steps // 5)
    return ProbePlan(names, every, instruments.Settings(count, flat["probe.draws"]), layers)


def hparams_of(flat: Mapping[str, Any], num_steps: int) -> HParams:
    values: dict[str, Any] = {"total_steps": num_steps}
    for name, field in FIELDS.items():
        if field.hparam:
            value = flat[name]
            if value is None:  # the rule of the table: a stand-in, no leaf at all, or all steps
                value = field.none_value
                if value is None:
                    value = 0.0 if field.optional else num_steps
            values[field.hparam] = value
    return HParams(**values)
