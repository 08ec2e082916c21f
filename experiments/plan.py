"""From a config and a sweep to populations: which runs share a compiled program.

config + overrides -> Run (resolved config, run_id)
runs with equal structural fields -> one group -> one or, if memory is short, more populations
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments import config as configs
from experiments import memory, rules
from experiments.fields import FIELDS, show
from vae import data, validity
from vae.errors import UserError
from vae.evaluate import IW_CHUNK
from vae.gradients import instruments
from vae.hparams import HParams, stack
from vae.likelihoods import LIKELIHOODS
from vae.nets import NETS
from vae.priors import PRIORS
from vae.spec import ModelSpec, ObjectiveSpec, OptimizerSpec, Spec

# On a CPU, matrices of this many parameters in all fill the cores by themselves: runs then go one
# after the other. `python -m experiments.benchmark packing` prints the measurement behind it; on
# two cores the two ways are even at 150,000 for 16 runs and at 600,000 for 4.
MAP_FROM_PARAMS = 300_000


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: its identity, what the sweep sets, and its resolved config (nested)."""

    run_id: str
    overrides: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def flat(self) -> dict[str, Any]:
        return configs.flatten(self.config)


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


@dataclasses.dataclass(frozen=True)
class PopulationPlan:
    """Runs that train as one program.

    Attributes:
      id: hash of the run ids. structure: the structural fields, flat. pack: `vmap` or `map`.
      num_params: parameters of one run. estimate: bytes, see `experiments.memory`.
    """

    id: str
    runs: tuple[Run, ...]
    structure: Mapping[str, Any]
    spec: Spec
    dataset: data.Dataset
    num_steps: int
    evaluation: EvalPlan
    probe: ProbePlan
    pack: str
    num_params: int
    estimate: memory.Estimate

    def hparams(self) -> list[HParams]:
        """The numbers of each run."""
        return [_hparams(run.flat, self.num_steps) for run in self.runs]

    def start(self) -> tuple[HParams, np.ndarray, np.ndarray | None]:
        """What `vae.train.init` takes beside the spec."""
        model, inputs = self.spec.model, None
        if PRIORS[model.prior].pseudo_inputs:
            inputs = self.dataset.some_inputs(model.prior_components)
        return stack(self.hparams()), self.dataset.train_mean, inputs


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that a command asks for. `base` is the config before the sweep, nested."""

    base: Mapping[str, Any]
    axes: Mapping[str, Sequence[Any]]
    runs: tuple[Run, ...]
    populations: tuple[PopulationPlan, ...]

    @property
    def groups(self) -> int:
        """Number of compiled trainings: populations that differ in structure."""
        return len({_key(p.structure) for p in self.populations})


def make(
    base: Mapping[str, Any],
    overrides: Sequence[Mapping[str, Any]],
    axes: Mapping[str, Sequence[Any]],
    *,
    budget: int | None = None,
    pack: str = "auto",
    packed: Sequence[Sequence[str]] | None = None,
) -> Plan:
    """Resolves the runs, loads their data, groups them, and packs the groups into populations.

    Args:
      base: nested config. overrides: one dict for each run. axes: swept fields and their values.
      budget: bytes that one population may take; None: most of what the device has.
      pack: `vmap`, `map`, or `auto`, which chooses by the model and the device.
      packed: run ids of each population of an earlier, interrupted execution, which then stand.

    Raises:
      UserError: a config that contradicts its data, or one run that is too large for the budget.
    """
    runs = []
    for override in overrides:
        resolved = configs.resolve(base, override)
        runs.append(Run(configs.run_id(resolved), dict(override), resolved))
    datasets: dict[str, data.Dataset] = {}
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_key(structure_of(run.flat)), []).append(run)
    budget = memory.default_budget() if budget is None else budget
    populations = []
    for group in groups.values():
        populations += _pack_group(group, datasets, budget, pack, packed)
    planned = [(run.flat, p.num_steps) for p in populations for run in p.runs]
    rules.warn_of_length([flat for flat, _ in planned], [steps for _, steps in planned])
    return Plan(base, axes, tuple(runs), tuple(populations))


def structure_of(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The structural part of a flat config; an optional number counts as there or not."""
    structure = {}
    for name, value in flat.items():
        if not FIELDS[name].numeric:
            structure[name] = value
        elif FIELDS[name].optional:
            structure[name] = None if value is None else "set"
    return structure


def differing(populations: Sequence[PopulationPlan]) -> list[str]:
    """The structural fields in which populations differ: the reason why they are several."""
    names = populations[0].structure if populations else {}
    return [n for n in names if len({_key(p.structure[n]) for p in populations}) > 1]


def _pack_group(
    group: list[Run],
    datasets: dict[str, data.Dataset],
    budget: int,
    pack: str,
    packed: Sequence[Sequence[str]] | None,
) -> list[PopulationPlan]:
    flat = group[0].flat
    dataset = _dataset(flat, datasets)
    spec, num_steps = spec_of(flat, dataset), steps_of(flat, dataset)
    evaluation = _eval_plan(flat, dataset, num_steps)
    probes = _probe_plan(flat, spec, dataset, num_steps)
    num_params = memory.num_params(spec)
    if pack == "auto":
        heavy = NETS[spec.model.net].images or num_params >= MAP_FROM_PARAMS
        pack = "map" if heavy and jax.default_backend() == "cpu" else "vmap"

    def estimate(num_runs: int) -> memory.Estimate:
        return memory.estimate(
            spec,
            dataset,
            evaluation.train_limit,
            rows_per_example=max(evaluation.samples, min(evaluation.iw_samples, IW_CHUNK)),
            num_runs=num_runs,
            pack=pack,
        )

    per_run = estimate(1)
    if per_run.total > budget:
        raise UserError(
            f"model.width: one run needs about {memory.gib(per_run.total)}, more than the "
            f"{memory.gib(budget)} there are ({per_run.describe()}). Make model.width, "
            "model.depth or train.batch_size smaller, or raise --memory_gib if that is wrong."
        )
    by_id = {run.run_id: run for run in group}
    parts = [[by_id[i] for i in ids] for ids in packed or () if set(ids) <= set(by_id)]
    if sum(map(len, parts)) != len(group):
        parts = _split(group, memory.max_runs(estimate, budget, len(group)))
    populations = []
    for part in parts:
        ids = [run.run_id for run in part]
        populations.append(
            PopulationPlan(
                id=hashlib.sha256(" ".join(ids).encode()).hexdigest()[:10],
                runs=tuple(part),
                structure=structure_of(flat),
                spec=spec,
                dataset=dataset,
                num_steps=num_steps,
                evaluation=evaluation,
                probe=probes,
                pack=pack,
                num_params=num_params,
                estimate=estimate(len(part)),
            )
        )
    return populations


def _split(runs: list[Run], limit: int) -> list[list[Run]]:
    """As few parts as the limit allows, of sizes that differ by at most one."""
    count = -(-len(runs) // limit)
    size, rest = divmod(len(runs), count)
    starts = [i * size + min(i, rest) for i in range(count + 1)]
    return [runs[a:b] for a, b in zip(starts[:-1], starts[1:], strict=True)]


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
            **_of(ModelSpec, "model", flat, "example_shape", "latent_dim", "stochastic"),
        ),
        objective=ObjectiveSpec(
            **_of(ObjectiveSpec, "objective", flat, "num_examples", "free_bits_groups"),
            num_examples=dataset.num_train,
            free_bits_groups=flat["objective.free_bits_groups"] or 0,
        ),
        optimizer=OptimizerSpec(
            **_of(OptimizerSpec, "optimizer", flat, "plateau_window", "ema", "skip"),
            plateau_window=flat["optimizer.plateau_window"] or _steps_per_epoch(flat, dataset),
            ema=flat["optimizer.ema_decay"] is not None,
            skip=flat["optimizer.skip_norm"] is not None,
        ),
        batch_size=flat["train.batch_size"],
    )
    validity.check(spec)
    return spec


def _of(kind: type, section: str, flat: Mapping[str, Any], *but: str) -> dict[str, Any]:
    """The fields of a part of the spec, but for those named, from the section of its name."""
    names = [field.name for field in dataclasses.fields(kind) if field.name not in but]
    return {name: flat[f"{section}.{name}"] for name in names}


def steps_of(flat: Mapping[str, Any], dataset: data.Dataset) -> int:
    """Training steps; an epoch is ⌊N / batch size⌋ of them."""
    return flat["train.steps"] or flat["train.epochs"] * _steps_per_epoch(flat, dataset)


def _steps_per_epoch(flat: Mapping[str, Any], dataset: data.Dataset) -> int:
    return dataset.num_train // flat["train.batch_size"]


def _eval_plan(flat: Mapping[str, Any], dataset: data.Dataset, num_steps: int) -> EvalPlan:
    limit = flat["eval.train_limit"] or dataset.num_test
    return EvalPlan(
        every=flat["eval.every"] or max(1, num_steps // 20),
        samples=flat["eval.samples"],
        # Without densities there are no importance weights.
        iw_samples=0 if flat["model.posterior"] in rules.POINTS else flat["eval.iw_samples"],
        train_limit=min(limit, dataset.num_train),
    )


def _probe_plan(
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


def _hparams(flat: Mapping[str, Any], num_steps: int) -> HParams:
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


def _dataset(flat: Mapping[str, Any], datasets: dict[str, data.Dataset]) -> data.Dataset:
    arguments = {n.removeprefix("data."): v for n, v in flat.items() if n.startswith("data.")}
    key = _key(arguments)
    if key not in datasets:
        datasets[key] = data.load(**arguments)
    return datasets[key]


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def describe(plan: Plan, workdir: pathlib.Path) -> str:
    """The plan in words and a table, as `--dry_run` prints it."""
    counts = ((len(plan.runs), "run"), (len(plan.populations), "population"))
    runs, populations = (f"{n} {noun}{'s' * (n != 1)}" for n, noun in counts)
    lines = [f"{runs} in {populations} -> {workdir}"]
    for name, values in plan.axes.items():
        kind = "numeric: vmapped" if FIELDS[name].numeric else "structural: compiled apart"
        lines.append(f"  {name} = {', '.join(map(show, values))}  ({kind})")
    reasons = differing(plan.populations)
    if len(plan.populations) > plan.groups:
        lines.append("  Some groups are split to fit the memory; their results are the same.")
    rows = [("population", "runs", "steps", "parameters", "memory", "runs are", "because of")]
    for p in plan.populations:
        why = ", ".join(f"{n}={show(p.structure[n])}" for n in reasons) or "one structure"
        packed = "together (vmap)" if p.pack == "vmap" else "in turn (map)"
        rows.append(
            (p.id, str(len(p.runs)), str(p.num_steps), f"{p.num_params:,}")
            + (memory.gib(p.estimate.total), packed if len(p.runs) > 1 else "alone", why)
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)
