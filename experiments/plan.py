"""From a config and a sweep to populations: which runs share a compiled program.

config + overrides -> Run (resolved config, run_id)
runs with equal structural fields -> one group -> one or, if memory is short, more populations
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import AbstractMesh, Mesh

from experiments import budget as budgets
from experiments import config as configs
from experiments import devices, memory, packs, rules, specs, structures
from experiments.fields import FIELDS, show
from vae import data, packed
from vae import mesh as meshes
from vae.data import stream
from vae.errors import UserError
from vae.evaluate import IW_CHUNK
from vae.hparams import HParams, stack
from vae.packing import Packing
from vae.priors import PRIORS
from vae.spec import Spec


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
class PopulationPlan:
    """Runs that train as one program.

    Attributes:
      id: hash of the run ids. structure: the structural fields, flat.
      pack: how the runs share a device, and the mesh where there is more than one; why: what chose
        how.
      placement: of the training examples, `device` or `host`.
      num_params: parameters of one run. estimate: bytes on a device, see `experiments.memory`.
    """

    id: str
    runs: tuple[Run, ...]
    structure: Mapping[str, Any]
    spec: Spec
    dataset: data.Dataset
    num_steps: int
    evaluation: specs.EvalPlan
    probe: specs.ProbePlan
    pack: Packing
    why: str
    num_params: int
    estimate: memory.Estimate
    placement: str = "device"

    @property
    def mesh(self) -> Mesh | None:
        return self.pack.mesh

    @property
    def together(self) -> int:
        """Runs that one device computes at the same time."""
        rows = meshes.padded(len(self.runs), self.mesh)
        return _together(rows, self.pack.how, self.mesh)

    def shared(self, batch: int) -> int:
        """The batch, made larger where devices could not share it equally."""
        sharing = self.mesh.shape[meshes.DATA] if self.mesh else 1
        return -(-batch // sharing) * sharing

    def hparams(self) -> list[HParams]:
        """The numbers of each run."""
        found = [specs.hparams_of(run.flat, self.num_steps) for run in self.runs]
        if not self.spec.model.packed:
            return found
        models = [self.own(run).model for run in self.runs]
        return [
            h.replace(latents=model.latent_dim, layers=model.depth)
            for h, model in zip(found, models, strict=True)
        ]

    def own(self, run: Run) -> Spec:
        """The spec of a run by itself, of which the population's may be a larger one."""
        if not self.spec.model.packed:
            return self.spec
        sizes = (run.flat[name] for name in structures.FIELDS)
        return dataclasses.replace(self.spec, model=packed.own(self.spec.model, *sizes))

    def stream(self) -> data.Stream | None:
        """Reads the batches of training, where the examples stay on the host."""
        if self.placement == "device":
            return None
        seeds = self.start()[0].seed
        raw, transform = self.dataset.train, self.dataset.transform
        return data.Stream(raw, transform, seeds, self.spec.batch_size, self.num_steps, self.mesh)

    def start(self) -> tuple[HParams, np.ndarray, np.ndarray | None]:
        """What `vae.train.init` takes beside the spec, host arrays.

        The axis `runs` is filled up with copies of the last run, at which nobody looks: their
        device would be idle.
        """
        model, inputs = self.spec.model, None
        if PRIORS[model.prior].pseudo_inputs:
            inputs = self.dataset.some_inputs(model.prior_components)
        hparams = self.hparams()
        hparams += hparams[-1:] * (meshes.padded(len(hparams), self.mesh) - len(hparams))
        return stack(hparams), self.dataset.train_mean, inputs


# (by way to go the population to train so, what the rule says) -> which it is to be.
TryOut = Callable[[Mapping[str, PopulationPlan], str], packs.Choice]


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
    pack_structures: str = "never",
    packed: Sequence[Mapping[str, Any]] | None = None,
    there: devices.Devices | None = None,
    try_out: TryOut | None = None,
) -> Plan:
    """Resolves the runs, loads their data, groups them, and packs the groups into populations.

    Args:
      base: nested config. overrides: one dict for each run. axes: swept fields and their values.
      budget: bytes that one population may take; None: most of what the device has.
      pack: `vmap`, `map`, or `auto`, see `experiments.packs`.
      pack_structures: whether runs of several latent dimensions and depths share a program, see
        `experiments.structures`: `never`; `always` where they can; `auto`, where that is quicker.
      packed: populations of an earlier, interrupted execution, which then stand: `runs`, their ids,
        and `pack`, unless another one is asked for.
      there: the devices of another machine, for which this plan is; None: it is for this one.
      try_out: measures the two ways to go; None: nothing is measured.

    Raises:
      UserError: a config that contradicts its data, or one run that is too large for the budget.
    """
    runs = []
    for override in overrides:
        resolved = configs.resolve(base, override)
        runs.append(Run(configs.run_id(resolved), dict(override), resolved))
    datasets: dict[str, data.Dataset] = {}
    budget = budgets.default_budget() if budget is None else budget
    populations = []
    for group in _groups(runs, datasets, pack_structures, packed):
        populations += _pack_group(group, datasets, budget, pack, packed, there, try_out)
    planned = [(run.flat, p.num_steps) for p in populations for run in p.runs]
    rules.warn_of_length([flat for flat, _ in planned], [steps for _, steps in planned])
    return Plan(base, axes, tuple(runs), tuple(populations))


def structure_of(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The structural part of a flat config; an optional number counts as there or not.

    Without how a run is made, which is the same for all runs of a command.
    """
    structure = {}
    for name, value in flat.items():
        if FIELDS[name].how:
            continue
        if not FIELDS[name].numeric:
            structure[name] = value
        elif FIELDS[name].optional:
            structure[name] = None if value is None else "set"
    return structure


def _groups(
    runs: Sequence[Run],
    datasets: dict[str, data.Dataset],
    mode: str,
    earlier: Sequence[Mapping[str, Any]] | None,
) -> list[list[Run]]:
    """The runs that share a program: of one structure, or of several that masks tell apart."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_key(structure_of(run.flat)), []).append(run)
    if mode == "never":
        return list(groups.values())
    families: dict[str, list[list[Run]]] = {}
    for key, group in groups.items():
        if all(structures.admits(run.flat) for run in group):
            structure = structure_of(group[0].flat)
            key = _key({n: v for n, v in structure.items() if n not in structures.FIELDS})
        families.setdefault(key, []).append(group)
    found = []
    for family in families.values():
        share = len(family) > 1 and _share(family, datasets, mode, earlier)
        found += [sum(family, [])] if share else family
    return found


def _share(
    family: list[list[Run]],
    datasets: dict[str, data.Dataset],
    mode: str,
    earlier: Sequence[Mapping[str, Any]] | None,
) -> bool:
    """Whether structures are to share a program; an earlier execution has said so, or not."""
    ids = [{run.run_id for run in group} for group in family]
    spans = [sum(1 for own in ids if own & set(part["runs"])) for part in earlier or ()]
    if mode == "always" or any(spans):
        return mode == "always" or max(spans) > 1
    flats = [run.flat for group in family for run in group]
    dataset = _dataset(flats[0], datasets)
    return structures.pays(flats, specs.steps_of(flats[0], dataset), dataset.num_test)


def differing(populations: Sequence[PopulationPlan]) -> list[str]:
    """The structural fields in which populations differ: the reason why they are several."""
    names = populations[0].structure if populations else {}
    return [n for n in names if len({_key(p.structure[n]) for p in populations}) > 1]


def _pack_group(
    group: list[Run],
    datasets: dict[str, data.Dataset],
    budget: int,
    asked: str,
    earlier: Sequence[Mapping[str, Any]] | None,
    there: devices.Devices | None,
    try_out: TryOut | None,
) -> list[PopulationPlan]:
    flats = [run.flat for run in group]
    dataset = _dataset(flats[0], datasets)
    structure = structure_of(flats[0])
    distinct = {_key(structure_of(flat)): specs.spec_of(flat, dataset) for flat in flats}
    flat, (spec, *others) = flats[0], distinct.values()
    if others:  # one program, of the largest
        flat = flat | structures.largest(flats)
        spec, names = specs.spec_of(flat, dataset), structures.FIELDS
        structure |= {name: sorted({of[name] for of in flats}) for name in names}
        latents = tuple(structure["model.latent_dim"])
        spec = dataclasses.replace(spec, model=dataclasses.replace(spec.model, packed=latents))
    # Of the population, not the run: a sweep over 0 and other values is one program.
    decays = any(of["optimizer.weight_decay"] for of in flats)
    spec = dataclasses.replace(spec, optimizer=dataclasses.replace(spec.optimizer, decays=decays))
    num_steps = specs.steps_of(flat, dataset)
    evaluation = specs.eval_plan(flat, dataset, num_steps)
    probes = specs.probe_plan(flat, spec, dataset, num_steps)
    num_params = memory.num_params(spec)
    by_id = {run.run_id: run for run in group}
    before = [part for part in earlier or () if set(part["runs"]) <= set(by_id)]
    lengths = [len(part["runs"]) for part in before]
    fits = sum(lengths) == len(group)
    largest = max(lengths) if fits else len(group)
    work = devices.Work(largest, spec.batch_size, memory.step_flops(spec), num_steps)
    at_hand = there or devices.here()
    mesh = _mesh(at_hand, work, flat["mesh.runs"], flat["mesh.data"], abstract=there is not None)
    streamed = None
    if flat["data.placement"] == "host":
        seeds = len({run.flat["seed"] for run in group})
        streamed = stream.held_bytes(dataset.train, spec.batch_size, seeds, num_steps)

    def estimate(num_runs: int, pack: str) -> memory.Estimate:
        rows = meshes.padded(num_runs, mesh)
        axes = mesh.shape if mesh else {meshes.RUNS: 1, meshes.DATA: 1}
        of_device = memory.estimate(
            spec,
            dataset,
            evaluation.train_limit,
            rows_per_example=max(evaluation.samples, min(evaluation.iw_samples, IW_CHUNK)),
            num_runs=rows // axes[meshes.RUNS],
            together=_together(rows, pack, mesh),
            sharing=axes[meshes.DATA],
            streamed=streamed,
        )
        # The cores of a CPU share its memory.
        return of_device.times(mesh.size) if mesh and at_hand.cores else of_device

    if at_hand.cores and flat["mesh.runs"] is None and estimate(1, "map").total > budget:
        mesh = None  # not a run for each core at a time
    per_run = estimate(1, "map")
    if per_run.total > budget:
        raise UserError(
            f"model.width: one run needs about {memory.gib(per_run.total)}, more than the "
            f"{memory.gib(budget)} there are ({per_run.describe()}). Make model.width, "
            "model.depth or train.batch_size smaller, or raise --memory_gib if that is wrong."
        )

    def population(part: Sequence[Run], choice: packs.Choice) -> PopulationPlan:
        ids = [run.run_id for run in part]
        return PopulationPlan(
            id=hashlib.sha256(" ".join(ids).encode()).hexdigest()[:10],
            runs=tuple(part),
            structure=structure,
            spec=spec,
            dataset=dataset,
            num_steps=num_steps,
            evaluation=evaluation,
            probe=probes,
            pack=Packing(choice.pack, mesh),
            why=choice.why,
            num_params=num_params,
            estimate=estimate(len(part), choice.pack),
            placement=flat["data.placement"],
        )

    def split(choice: packs.Choice) -> list[PopulationPlan]:
        of = functools.partial(estimate, pack=choice.pack)
        parts = _split(group, memory.max_runs(of, budget, len(group)))
        return [population(part, choice) for part in parts]

    def trial(expected: str) -> packs.Choice:
        ways = {way: split(packs.Choice(way, ""))[0] for way in ("vmap", "map")}
        return try_out(ways, expected)

    def choose() -> packs.Choice:
        # What a trial trains is here, and so is its data.
        can = try_out and there is None and streamed is None
        on_each = -(-len(group) // (mesh.shape[meshes.RUNS] if mesh else 1))
        sizes = num_params, num_steps, on_each
        return packs.choose(asked, spec, *sizes, trial if can else None)

    if not fits:
        return split(choose())
    if asked != "auto" or not all(part.get("pack") for part in before):
        choices = [choose()] * len(before)
    else:
        choices = [packs.Choice(part["pack"], "as before") for part in before]
    parts = [[by_id[i] for i in part["runs"]] for part in before]
    return [population(part, choice) for part, choice in zip(parts, choices, strict=True)]


def _mesh(
    at_hand: devices.Devices, work: devices.Work, runs: int | None, data: int | None, abstract: bool
) -> Mesh | AbstractMesh | None:
    """The mesh for so much work; None where it is a single device."""
    shape = devices.choose(at_hand, work, runs, data)
    if shape == (1, 1):
        return None
    return AbstractMesh(shape, (meshes.RUNS, meshes.DATA)) if abstract else meshes.make(*shape)


def _together(rows: int, how: str, mesh: Mesh | None) -> int:
    return rows // (mesh.shape[meshes.RUNS] if mesh else 1) if how == "vmap" else 1


def _split(runs: list[Run], limit: int) -> list[list[Run]]:
    """As few parts as the limit allows, of sizes that differ by at most one."""
    count = -(-len(runs) // limit)
    size, rest = divmod(len(runs), count)
    starts = [i * size + min(i, rest) for i in range(count + 1)]
    return [runs[a:b] for a, b in zip(starts[:-1], starts[1:], strict=True)]


def _dataset(flat: Mapping[str, Any], datasets: dict[str, data.Dataset]) -> data.Dataset:
    arguments = {
        name.removeprefix("data."): value
        for name, value in flat.items()
        if name.startswith("data.") and not FIELDS[name].how
    }
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
        if any(p.spec.model.packed for p in plan.populations) and name in structures.FIELDS:
            kind = "structural: in one program, masked"
        lines.append(f"  {name} = {', '.join(map(show, values))}  ({kind})")
    reasons = differing(plan.populations)
    if len(plan.populations) > plan.groups:
        lines.append("  Some groups are split to fit the memory; their results are the same.")
    heads = ("population", "runs", "steps", "parameters", "memory", "devices", "runs are")
    rows = [(*heads, "because of")]
    for p in plan.populations:
        why = ", ".join(f"{n}={show(p.structure[n])}" for n in reasons) or "one structure"
        packed = f"{'together' if p.pack.how == 'vmap' else 'in turn'} ({p.pack.how}), {p.why}"
        rows.append(
            (p.id, str(len(p.runs)), str(p.num_steps), f"{p.num_params:,}")
            + (memory.gib(p.estimate.total), _devices(p.mesh))
            + (packed if len(p.runs) > 1 else "alone", why)
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def _devices(mesh: Mesh | None) -> str:
    """1, or 8 = 4 runs x 2 data."""
    if mesh is None:
        return "1"
    runs, data = mesh.shape[meshes.RUNS], mesh.shape[meshes.DATA]
    return f"{mesh.size} = {runs} runs x {data} data"
