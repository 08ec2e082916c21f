"""The configs that come with the package: complete, documented, and each of their runs valid."""

import pathlib

import pytest

from configs import default
from experiments import config, fields, sweep

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
    ablations = {"beta", "latent_dim", "depth", "init_norm"}
    expected = {f"configs/{n}.py" for n in names} | {f"configs/ablations/{n}.py" for n in ablations}
    assert expected <= set(SHIPPED)


@pytest.mark.parametrize("path", SHIPPED)
def test_every_shipped_config_resolves_each_of_its_runs(path):
    nested, runs = config.from_args(str(ROOT / path), [], [])
    ids = {config.run_id(config.resolve(nested, run)) for run in runs}
    assert len(ids) == len(runs) >= 1
    docstring = (ROOT / path).read_text().split('"""')[1]
    assert f"--config={path}" in docstring


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
