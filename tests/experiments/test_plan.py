"""From a config and a sweep to populations: what shares a program, and what is said of it."""

import dataclasses
import math
import subprocess

import numpy as np
import pytest

from configs import default
from experiments import config as configs
from experiments import memory, packs, specs, sweep
from experiments import plan as plans
from experiments.fields import FIELDS
from tests.experiments import launch
from vae import data
from vae.errors import UserError

BASE = default.get_config().to_dict()
PLENTY = 2**40


def make(*axes, base=None, **options):
    """The plan of a product of axes over the default config, with changes {field: value}."""
    nested = configs.unflatten(configs.flatten(BASE) | (base or {}))
    runs = sweep.product(*axes) if axes else [{}]
    return plans.make(nested, runs, sweep.axes(runs), **{"budget": PLENTY} | options)


def two_values(name):
    """Two values of a number that are both allowed."""
    field = FIELDS[name]
    if field.type is int:
        return [3, 4]
    low = max(v for v in (field.above, field.at_least, 0) if v is not None)
    high = min(v for v in (field.below, field.at_most, low + 1) if v is not None)
    return [low + 0.25 * (high - low), low + 0.75 * (high - low)]


NUMERIC = [name for name, field in FIELDS.items() if field.numeric]


@pytest.mark.parametrize("name", NUMERIC)
def test_numbers_are_one_population_and_reach_their_run(name):
    values = two_values(name)
    plan = make(sweep.axis(name, values))
    (population,) = plan.populations
    assert [getattr(h, FIELDS[name].hparam) for h in population.hparams()] == values
    others = [
        [getattr(h, f.name) for h in population.hparams()]
        for f in dataclasses.fields(population.hparams()[0])
        if f.name != FIELDS[name].hparam
    ]
    assert all(first == second for first, second in others)


STRUCTURAL = {
    "data.binarization": ["static", "dynamic"],
    "data.seed": [0, 1],
    "data.folds": [None, 3],
    "model.net": ["mlp", "conv"],
    "model.latent_dim": [2, 3],
    "model.depth": [1, 2],
    "model.width": [16, (16, 8)],
    "model.activation": ["relu", "tanh"],
    "model.norm": ["none", "layer"],
    "model.likelihood": ["bernoulli", "gaussian"],
    "objective.beta_schedule": ["constant", "linear"],
    "objective.samples": [1, 2],
    "optimizer.name": ["adam", "sgd"],
    "optimizer.ema_decay": [None, 0.9],
    "train.batch_size": [64, 128],
    "train.precision": ["float32", "bfloat16"],
    "train.accumulate": [1, 2],
    "train.remat": ["none", "layers"],
    "eval.iw_samples": [0, 8],
}


@pytest.mark.sampled
@pytest.mark.parametrize("name", STRUCTURAL)
def test_shapes_and_names_are_groups_of_their_own(name):
    plan = make(sweep.axis(name, STRUCTURAL[name]), sweep.axis("seed", range(3)))
    assert plan.groups == len(plan.populations) == 2
    assert [len(p.runs) for p in plan.populations] == [3, 3]
    assert plans.differing(plan.populations) == [name]
    for population, value in zip(plan.populations, STRUCTURAL[name], strict=True):
        assert {run.flat[name] for run in population.runs} == {value}


def test_every_run_is_in_one_population():
    plan = make(
        sweep.axis("model.depth", [1, 2, 3]),
        sweep.axis("objective.beta", [0.5, 1.0]),
        sweep.axis("model.latent_dim", [2, 4]),
        sweep.axis("seed", [0, 1]),
    )
    assert plan.groups == len(plan.populations) == 6
    assert {len(p.runs) for p in plan.populations} == {4}
    packed = [run.run_id for p in plan.populations for run in p.runs]
    assert sorted(packed) == sorted(run.run_id for run in plan.runs)
    assert len(set(packed)) == 24
    assert len({p.id for p in plan.populations}) == 6


def test_an_average_of_parameters_is_structural_and_its_decay_is_not():
    plan = make(sweep.axis("optimizer.ema_decay", [None, 0.9, 0.99]))
    without, with_average = plan.populations
    assert [len(without.runs), len(with_average.runs)] == [1, 2]
    assert (without.spec.optimizer.ema, with_average.spec.optimizer.ema) == (False, True)
    assert [h.ema_decay for h in with_average.hparams()] == [0.9, 0.99]


@pytest.mark.parametrize(("values", "decays"), [([0.0], False), ([0.0, 1e-4], True)])
def test_weights_decay_where_any_run_asks_for_it(values, decays):
    (population,) = make(sweep.axis("optimizer.weight_decay", values)).populations
    assert population.spec.optimizer.decays == decays


def test_no_clipping_is_a_bound_that_nothing_exceeds():
    (population,) = make(sweep.axis("optimizer.clip_norm", [None, 1.0])).populations
    assert [h.clip_norm for h in population.hparams()] == [math.inf, 1.0]


def test_decay_over_all_steps_is_their_number():
    base = {"train.epochs": 5, "train.batch_size": 100}  # 14 steps an epoch: 38 images left out
    plan = make(sweep.axis("optimizer.decay_steps", [None, 7.0]), base=base)
    (population,) = plan.populations
    assert population.num_steps == 70
    assert [h.lr_decay_steps for h in population.hparams()] == [70, 7.0]
    assert {h.total_steps for h in population.hparams()} == {70}


def test_lengths_that_follow_from_the_data():
    steps = {"train.epochs": None, "train.steps": 90}
    (population,) = make(base=steps).populations
    assert population.num_steps == 90
    # A twentieth, and as many training examples as the test split has.
    assert population.evaluation == specs.EvalPlan(4, 1, 100, 359)
    (short,) = make(base={"train.epochs": None, "train.steps": 3}).populations
    assert short.evaluation.every == 1
    (limited,) = make(base={"eval.train_limit": 10**6, "eval.every": 7}).populations
    assert (limited.evaluation.train_limit, limited.evaluation.every) == (1438, 7)
    plateau = {"optimizer.schedule": "plateau"}
    (epoch,) = make(base=plateau).populations
    assert epoch.spec.optimizer.plateau_window == 1438 // 128
    (window,) = make(base=plateau | {"optimizer.plateau_window": 5}).populations
    assert window.spec.optimizer.plateau_window == 5


def test_a_run_is_named_by_its_config_wherever_it_stands():
    alone = make(base={"objective.beta": 2.0, "seed": 3}).runs[0]
    swept = make(sweep.axis("seed", [1, 3]), sweep.axis("objective.beta", [1.0, 2.0])).runs[-1]
    assert swept.run_id == alone.run_id == configs.run_id(swept.config)
    assert swept.config == alone.config
    assert (swept.overrides, alone.overrides) == ({"seed": 3, "objective.beta": 2.0}, {})


def test_data_is_loaded_once_for_all_groups(monkeypatch):
    loaded = []
    monkeypatch.setattr(
        plans.data, "load", lambda *a, load=data.load, **k: loaded.append(k) or load(*a, **k)
    )
    axes = sweep.axis("model.depth", [1, 2, 3]), sweep.axis("data.binarization", ["none", "static"])
    plan = make(*axes)
    assert len(plan.populations) == 6
    assert [k["binarization"] for k in loaded] == ["none", "static"]


# Packing ------------------------------------------------------------------------------------------


def test_populations_are_split_evenly_to_fit():
    axis = sweep.axis("seed", range(10))
    (whole,) = make(axis, pack="vmap").populations
    one = make(pack="vmap").populations[0].estimate.total
    seen = set()
    for budget in range(one, whole.estimate.total, (whole.estimate.total - one) // 6):
        plan = make(axis, pack="vmap", budget=budget)
        sizes = [len(p.runs) for p in plan.populations]
        assert sum(sizes) == 10 and max(sizes) - min(sizes) <= 1
        assert all(p.estimate.total <= budget for p in plan.populations)
        # As few as possible: the same runs in one population less would not fit.
        if len(sizes) > 1:
            larger = -(-10 // (len(sizes) - 1))
            (tight,) = make(sweep.axis("seed", range(larger)), pack="vmap").populations
            assert tight.estimate.total > budget
        assert [r.run_id for p in plan.populations for r in p.runs] == [
            r.run_id for r in whole.runs
        ]
        assert plan.groups == 1
        seen.add(len(sizes))
    assert {1, 10} & seen != seen  # some budgets were between one and ten populations


def test_a_run_that_does_not_fit_is_refused():
    one = make().populations[0].estimate.total
    assert len(make(budget=one).populations) == 1
    with pytest.raises(UserError) as caught:
        make(budget=one // 2)
    said = str(caught.value)
    assert said.startswith(f"model.width: one run needs about {memory.gib(one)}, more than the")
    assert memory.gib(one // 2) in said and "--memory_gib" in said and "train.batch_size" in said


def test_the_packing_of_an_earlier_execution_stands():
    axis = sweep.axis("seed", range(6))
    plan = make(axis)
    ids = [run.run_id for run in plan.runs]
    packed = [{"runs": ids[:2]}, {"runs": ids[2:]}]
    again = make(axis, packed=packed, budget=PLENTY)
    assert [[r.run_id for r in p.runs] for p in again.populations] == [ids[:2], ids[2:]]
    assert len(make(axis, budget=PLENTY).populations) == 1
    # Runs that it does not know, or not all of them: packed as if for the first time.
    for other in ([["0" * 10]], [ids[:2]], [ids[:2], ids[2:] + ["0" * 10]]):
        assert len(make(axis, packed=[{"runs": runs} for runs in other]).populations) == 1


def test_small_nets_go_side_by_side_and_large_ones_in_turn_on_a_cpu(monkeypatch):
    small, large = {"model.width": 16}, {"model.width": 600}
    conv = {"model.net": "conv", "model.width": 8}
    monkeypatch.setattr(packs.jax, "default_backend", lambda: "cpu")
    assert [make(base=b).populations[0].pack.how for b in (small, large, conv)] == [
        "vmap",
        "map",
        "map",
    ]
    assert make(base=large, pack="vmap").populations[0].pack.how == "vmap"
    assert make(base=small, pack="map").populations[0].pack.how == "map"
    monkeypatch.setattr(packs.jax, "default_backend", lambda: "gpu")
    assert {make(base=b).populations[0].pack.how for b in (small, large, conv)} == {"vmap"}


# What contradicts the data ------------------------------------------------------------------------


def digits(**arguments):
    return data.load("digits", **arguments)


def flat(**changes):
    names = {name.replace(".", "_"): name for name in FIELDS}
    return configs.flatten(BASE) | {names[k]: v for k, v in changes.items()}


def vectors():
    rows = np.random.default_rng(0).uniform(size=(50, 6)).astype(np.float32)
    return data.load(lambda: {"train": rows, "test": rows[:10]})


@pytest.mark.parametrize(
    "dataset, changes, message",
    [
        (lambda: digits(scaling="symmetric"), {}, r"model\.likelihood: bernoulli .* \[-1, 1\]"),
        (vectors, {"model_net": "conv", "train_batch_size": 5}, r"model\.net: conv .* \[6\]"),
        (vectors, {}, r"train\.batch_size: 128 is more than the 50"),
    ],
    ids=["range", "shape", "size"],
)
def test_a_model_that_contradicts_its_data(dataset, changes, message):
    with pytest.raises(UserError, match=message):
        specs.spec_of(flat(**changes), dataset())


# What is said -------------------------------------------------------------------------------------


def test_the_plan_in_words(tmp_path):
    plan = make(sweep.axis("model.depth", [1, 2]), sweep.axis("optimizer.clip_norm", [None, 1.0]))
    lines = plans.describe(plan, tmp_path).splitlines()
    assert lines[0] == f"4 runs in 2 populations -> {tmp_path}"
    assert lines[1].split() == "model.depth = 1, 2 (structural: compiled apart)".split()
    assert lines[2].split() == "optimizer.clip_norm = null, 1.0 (numeric: vmapped)".split()
    header, *table = lines[3:]
    assert header.split()[:5] == ["population", "runs", "steps", "parameters", "memory"]
    for population, line in zip(plan.populations, table, strict=True):
        depth = population.structure["model.depth"]
        expected = [population.id, "2", str(50 * 11), f"{population.num_params:,}"]
        assert line.split()[:4] == expected
        assert memory.gib(population.estimate.total) in line
        assert line.endswith(f"model.depth={depth}")
    # Parameters counted by hand: 64-128-2×8 and 8-128-64, each with its biases.
    by_hand = 64 * 128 + 128 + 2 * (128 * 8 + 8) + 8 * 128 + 128 + 128 * 64 + 64
    assert plan.populations[0].num_params == by_hand


def test_a_plan_of_one_run_in_words(tmp_path):
    lines = plans.describe(make(), tmp_path).splitlines()
    assert lines[0].startswith("1 run in 1 population ->")
    assert lines[-1].endswith("alone     one structure")


def test_a_split_is_said(tmp_path):
    axis = sweep.axis("seed", range(4))
    packed = [{"runs": [run.run_id]} for run in make(axis).runs]
    assert "split to fit the memory" in plans.describe(make(axis, packed=packed), tmp_path)
    assert "to fit" not in plans.describe(make(axis), tmp_path)


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path):
    flags = ("--dry_run", "--sweep=model.norm=none,layer", "--sweep=objective.beta=1,4")
    done = launch.run(tmp_path / "results", *flags)
    assert done.stdout.startswith(f"4 runs in 2 populations -> {tmp_path / 'results'}\n")
    assert "model.norm=layer" in done.stdout and "MiB" in done.stdout
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_dry_run_needs_no_workdir():
    words = [w for w in launch.command("", "--dry_run") if not w.startswith("--workdir")]
    done = subprocess.run(
        words, cwd=launch.REPOSITORY, env=launch.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout.startswith("1 run in 1 population")
