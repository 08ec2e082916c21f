"""The configs that come with the package: complete, documented, and each of their runs valid."""

import json
import math
import pathlib
import re

import pytest

from configs import default
from experiments import config, fields, plan, sweep
from tests.experiments import launch

ROOT = pathlib.Path(__file__).parents[2]
SHIPPED = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "configs").rglob("*.py")
    if path.name != "__init__.py"
)


def test_default_has_exactly_the_fields():
    base = default.get_config().to_dict()
    assert config.flatten(base).keys() == fields.FIELDS.keys()


def test_default_is_locked_and_its_empty_fields_can_be_set():
    settings = default.get_config()
    with pytest.raises(AttributeError, match="lattent"):
        settings.model.lattent = 3
    settings.optimizer.clip_norm = 1
    settings.train.epochs = None
    settings.train.steps = 10
    settings.model.width = [64, 32]
    resolved = config.resolve(settings.to_dict(), {})
    assert resolved["optimizer"]["clip_norm"] == 1.0
    assert resolved["train"]["steps"] == 10
    assert resolved["model"]["width"] == (64, 32)


def comments():
    """The comment above each field in configs/default.py; empty where there is none."""
    found, block = {}, []
    for line in (ROOT / "configs/default.py").read_text().splitlines():
        text = line.strip()
        if text.startswith("# "):
            block.append(text.removeprefix("# "))
            continue
        name = text.split(" = ")[0].removeprefix("config.").replace("evaluation.", "eval.")
        if name in fields.FIELDS:
            found[name] = " ".join(block)
        block = []
    return found


@pytest.mark.parametrize("name", fields.FIELDS)
def test_default_documents_the_field(name):
    comment = comments()[name]
    row = fields.FIELDS[name]
    assert len(comment) > 10
    assert comment.startswith("N") == row.numeric
    assert ("null" in comment) == row.allows_none
    assert all(choice in comment for choice in row.choices)


def test_the_configs_to_ship_are_there():
    names = {"default", "quickstart", "mnist", "fashion_mnist"}
    ablations = {"beta", "latent_dim", "depth", "init_norm", "objectives"}
    expected = {f"configs/{n}.py" for n in names} | {f"configs/ablations/{n}.py" for n in ablations}
    assert expected <= set(SHIPPED)


def resolved(path):
    """The flat config of each run."""
    nested, runs = config.from_args(str(ROOT / path), [], [])
    return [config.flatten(config.resolve(nested, run)) for run in runs]


OBJECTIVES = [path for path in SHIPPED if path.startswith("configs/objectives/")]
# Two losses, and their codes, are there as they were printed.
PRINTED = [path for path in SHIPPED if path.startswith("configs/seeds/")]


@pytest.mark.parametrize(
    "name",
    [
        "objective.name",
        "objective.estimator",
        "model.posterior",
        "model.posterior_scale",
        "model.prior",
    ],
)
def test_each_objective_has_a_config(name):
    used = {flat[name] for path in OBJECTIVES + PRINTED for flat in resolved(path)}
    # Of the scales, these are ways to write the same family.
    assert used | {"softplus", "softplus_ln2", "soft_clamp"} >= set(fields.FIELDS[name].choices)


@pytest.mark.parametrize("path", OBJECTIVES)
def test_a_config_of_an_objective_is_one_program_of_three_seeds_on_the_digits(path):
    flats = resolved(path)
    structures = {json.dumps(plan.structure_of(flat), sort_keys=True) for flat in flats}
    assert len(structures) == 1
    assert {flat["data.source"] for flat in flats} == {"digits"}
    settings = {json.dumps(flat | {"seed": None}, sort_keys=True) for flat in flats}
    assert len(flats) == 3 * len(settings)
    assert {flat["seed"] for flat in flats} == {0, 1, 2}


@pytest.mark.parametrize("path", [*OBJECTIVES, "configs/ablations/objectives.py"])
def test_it_says_paper_command_time_and_numbers(path):
    docstring = (ROOT / path).read_text().split('"""')[1]
    name = pathlib.Path(path).stem
    assert re.search(r"\b(19|20)\d\d\b", docstring)
    assert re.search(rf"--workdir=results/{name}$", docstring, re.MULTILINE)
    text = " ".join(docstring.split())
    assert re.search(r"takes about \d+ (s|minutes?)\b", text)
    measured = text.partition("In a run on two CPU cores with JAX 0.10.2")[2]
    assert re.search(r"−?\d+\.\d", measured)


@pytest.mark.sampled
@pytest.mark.parametrize("name", ["factor_vae", "vq_vae", "wae_mmd"])
def test_it_runs(name, tmp_path):
    """By the real command: a discriminator, statistics that are no BatchNorm's, and no rate."""
    nested, _ = config.from_args(str(ROOT / f"configs/objectives/{name}.py"), [], [])
    flags = (f"--config=configs/objectives/{name}.py", "--config.train.steps=20", "--sweep=seed=1")
    launch.run(tmp_path / "results", *flags)
    rows = launch.rows(tmp_path / "results").values()
    assert rows and all(row["status"] == "ok" and row["seed"] == "1" for row in rows)
    has_rate = nested["model"]["posterior"] != "point"
    for row in rows:
        assert math.isfinite(float(row["test/distortion"]))
        assert bool(row["test/elbo"]) == bool(row.get("test/nll")) == has_rate
        reading = launch.readings(tmp_path / "results", row["run_id"])[-1]
        own = {"factor_vae": "total_correlation", "vq_vae": "perplexity", "wae_mmd": "mmd"}[name]
        assert math.isfinite(reading[f"train/{own}"])


@pytest.mark.parametrize("path", SHIPPED)
def test_every_shipped_config_resolves_each_of_its_runs(path):
    nested, runs = config.from_args(str(ROOT / path), [], [])
    ids = {config.run_id(config.resolve(nested, run)) for run in runs}
    assert len(ids) == len(runs) >= 1
    docstring = (ROOT / path).read_text().split('"""')[1]
    assert f"--config={path}" in docstring


@pytest.mark.parametrize("path", SHIPPED)
def test_each_run_survives_its_file_and_the_command_line(path):
    nested, runs = config.from_args(str(ROOT / path), [], [])
    for run in runs[::4]:  # of each row of a sweep over three seeds one in its turn
        made = config.resolve(nested, run)
        kept = json.loads(json.dumps(made))  # as in runs/RUN_ID/config.json
        assert config.run_id(config.resolve(kept, {})) == config.run_id(made)
        texts = [(name, fields.show(value)) for name, value in config.flatten(made).items()]
        again, _ = config.from_args(str(ROOT / "configs/default.py"), texts, [])
        assert config.resolve(again, {}) == made


def test_quickstart_is_the_ablation_of_the_front_page():
    nested, runs = config.from_args(str(ROOT / "configs/quickstart.py"), [], [])
    assert sweep.axes(runs) == {
        "objective.beta": [0.25, 0.5, 1.0, 2.0, 4.0],
        "model.latent_dim": [2, 8, 16],
        "model.depth": [1, 2],
        "seed": [0, 1, 2],
    }
    assert len(runs) >= 81
    assert nested["data"]["source"] == "digits"


def test_mnist_is_the_published_model():
    nested, _ = config.from_args(str(ROOT / "configs/mnist.py"), [], [])
    flat = config.flatten(nested)
    expected = {
        "data.source": "tfds:mnist",
        "data.binarization": "dynamic",
        "model.depth": 1,
        "model.width": 500,
        "model.latent_dim": 20,
        "train.batch_size": 128,
        "train.epochs": 20,
        "optimizer.name": "adam",
        "optimizer.learning_rate": 1e-3,
        "eval.iw_samples": 5000,
    }
    assert {name: flat[name] for name in expected} == expected
