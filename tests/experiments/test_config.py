"""Config files, overrides, rules between fields, run ids."""

import copy
import json
import pathlib
import subprocess
import sys

import ml_collections
import pytest

from configs import default
from experiments import config, fields, sweep
from vae.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
DEFAULT = str(ROOT / "configs/default.py")


@pytest.fixture
def base():
    """The default config as a plain nested dict."""
    return default.get_config().to_dict()


@pytest.fixture
def write(tmp_path):
    """Writes a config file and returns its path."""

    def write_file(body, name="mine.py"):
        path = tmp_path / name
        path.write_text("from configs import default\nfrom experiments import sweep\n" + body)
        return str(path)

    return write_file


SWEPT = """
get_config = default.get_config
def get_sweep():
    return sweep.product(sweep.axis("objective.beta", [1, 2]), sweep.axis("seed", range(2)))
"""


# The command line.


def test_split_argv():
    overrides, rest = config.split_argv(
        "run --config=c.py --config.seed -1 --sweep seed=1 --config.data.dir=a=b "
        "-config.model.depth=3 --config.data.source= --workdir w -- --config.seed=1".split()
    )
    assert overrides == [
        ("seed", "-1"),
        ("data.dir", "a=b"),
        ("model.depth", "3"),
        ("data.source", ""),
    ]
    assert rest == (
        ["run", "--config=c.py", "--sweep", "seed=1", "--workdir", "w", "--", "--config.seed=1"]
    )
    assert config.split_argv([]) == ([], [])


@pytest.mark.parametrize("tail", [["--config.seed"], ["--config.seed", "--workdir=w"]])
def test_override_without_a_value(tail):
    with pytest.raises(UserError, match="^seed: no value given. Write --config.seed=VALUE"):
        config.split_argv(["run", *tail])


def test_overrides_and_sweeps():
    nested, runs = config.from_args(
        DEFAULT,
        [("model.width", "64,32"), ("optimizer.clip_norm", "1"), ("model.latent_dim", "2")],
        ["objective.beta=1,2", "seed=0:2"],
    )
    assert nested["model"]["width"] == (64, 32)
    assert nested["optimizer"]["clip_norm"] == 1.0
    assert runs == sweep.product(sweep.axis("objective.beta", [1, 2]), sweep.axis("seed", range(2)))
    assert config.from_args(DEFAULT, [("seed", "1"), ("seed", "2")], [])[0]["seed"] == 2
    assert config.from_args(DEFAULT, [], [])[1] == [{}]


def test_flag_sweeps_multiply_and_replace_the_configs_own(write):
    path = write(SWEPT)
    _, runs = config.from_args(path, [], ["model.depth=1,2,3"])
    assert len(runs) == 12
    _, runs = config.from_args(path, [], ["seed=7"])
    assert sweep.axes(runs) == {"objective.beta": [1.0, 2.0], "seed": [7]}
    assert len(runs) == 2
    _, runs = config.from_args(path, [], ["seed=7", "objective.beta=3"])
    assert runs == [{"seed": 7, "objective.beta": 3.0}]


def test_an_override_of_a_swept_field_says_to_sweep(write):
    path = write(SWEPT)
    with pytest.raises(UserError, match=r"^seed: .*sweeps it \(0, 1\).*Write --sweep seed=3"):
        config.from_args(path, [("seed", "3")], [])
    with pytest.raises(UserError, match="^seed: given by --config.seed and by --sweep"):
        config.from_args(DEFAULT, [("seed", "3")], ["seed=1"])


@pytest.mark.parametrize(
    ("overrides", "sweeps", "message"),
    [
        ([("model.latentdim", "3")], [], "model.latentdim.*Did you mean model.latent_dim"),
        ([("model.depth", "three")], [], "^model.depth: expected a whole number >= 0, got 'three'"),
        ([("train.batch_size", "0")], [], "^train.batch_size: expected a whole number >= 1"),
        ([("model.width", "-1")], [], "^model.width: expected"),
        ([], ["model.dept=1"], "model.dept: .*Did you mean model.depth"),
        ([], ["seed=1", "seed=2"], "^seed: two axes"),
        ([("train.steps", "10")], [], r"^train.epochs and train.steps: both are set \(50 and 10\)"),
        ([("train.epochs", "null")], [], "^train.epochs and train.steps: neither"),
        ([], ["train.steps=10,20"], r"both are set.*In the run train.steps=10"),
    ],
)
def test_bad_command_lines(overrides, sweeps, message):
    with pytest.raises(UserError, match=message):
        config.from_args(DEFAULT, overrides, sweeps)


def test_steps_instead_of_epochs():
    _, runs = config.from_args(DEFAULT, [("train.epochs", "null")], ["train.steps=10,20"])
    assert len(runs) == 2


def test_runs_that_are_the_same_in_other_words(write):
    path = write(
        "get_config = default.get_config\n"
        "def get_sweep():\n"
        "    return sweep.chain(sweep.axis('seed', [0, 1]), sweep.axis('objective.beta', [1, 2]))\n"
    )
    with pytest.raises(UserError, match="seed=0 and objective.beta=1.0 are the same config"):
        config.from_args(path, [], [])


# Config files.


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", r"has no function get_config\(\)"),
        ("get_config = 3", r"has no function get_config\(\)"),
        ("def get_config(): return {}", "returned dict, not a ConfigDict"),
        ("def get_config(", "importing .* failed in line 3: SyntaxError"),
        ("import no_such_module", "importing .* line 3 .*No module named 'no_such_module'"),
        ("def get_config(): return 1 / 0", r"get_config\(\) of .* line 3 .*ZeroDivisionError"),
        (
            "def get_config():\n    c = default.get_config()\n    c.model.lattent_dim = 3\n",
            "line 5 .*no field lattent_dim. Did you mean model.latent_dim",
        ),
        (
            "def get_config():\n    c = default.get_config()\n    c.model.depth = 'x'\n",
            r"line 5 \(c.model.depth = 'x'\): TypeError",
        ),
        (SWEPT + "    1 / 0\nget_sweep = lambda: 1 / 0", r"get_sweep\(\) of .*ZeroDivisionError"),
        (SWEPT + "get_sweep = lambda: []", r"get_sweep\(\) of .*has no runs"),
        (SWEPT + "get_sweep = lambda: [{'sed': 1}]", "Did you mean seed"),
        (SWEPT + "get_sweep = lambda: {'seed': [1]}", "expected a list of dicts"),
        (SWEPT + "get_sweep = lambda: sweep.axis('seed', [])", "seed: the axis has no values"),
    ],
)
def test_bad_config_files(write, body, message):
    path = write(body)
    with pytest.raises(UserError, match=message) as caught:
        config.load(path)
    assert str(caught.value).startswith("--config: ")
    assert path in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("configs/minst.py", "does not exist. Did you mean configs/mnist.py?"),
        ("configs/ablation/beta.py", "Did you mean configs/ablations/beta.py?"),
        ("nowhere/x.py", "There are .*configs/quickstart.py"),
        ("configs", "is a directory"),
    ],
)
def test_a_missing_config_file_lists_those_there_are(monkeypatch, path, message):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=message):
        config.load(path)


def test_a_missing_config_file_where_there_are_none(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="x.py does not exist. Give the path of a config file"):
        config.load("x.py")


def test_a_quick_edit_is_seen_and_nothing_is_written_beside_the_file(write, tmp_path):
    body = "def get_config():\n    c = default.get_config()\n    c.seed = {}\n    return c\n"
    # Same size, within one second: Python's bytecode cache could not tell them apart.
    assert config.load(write(body.format(1)))[0].seed == 1
    assert config.load(write(body.format(2)))[0].seed == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_fields_that_the_table_does_not_know_or_that_lack(write, base):
    path = write(
        "def get_config():\n    c = default.get_config()\n    c.unlock()\n"
        "    c.model.dropout = 0.1\n    return c\n"
    )
    with pytest.raises(UserError, match="^model.dropout: no such field"):
        config.from_args(path, [], [])
    del base["model"]["depth"]
    with pytest.raises(UserError, match="^model.depth: missing from the config"):
        config.resolve(base, {})
    with pytest.raises(UserError, match="^model: a section, not a field"):
        config.resolve({**base, "model": 3}, {})


# Rules between fields.


@pytest.mark.parametrize(
    "overrides",
    [
        {"model.depth": 0},
        {"model.depth": 2, "model.width": [64, 32]},
        {"model.depth": 2, "model.width": [64, 64], "model.residual": "plain"},
        {"model.net": "conv", "model.depth": 2, "model.width": [16, 32]},
        {"model.net": "conv", "model.depth": 1, "model.width": 16},
        {"data.binarization": "none"},
        {
            "data.binarization": "none",
            "data.scaling": "standardize",
            "model.likelihood": "gaussian",
        },
        {"train.epochs": None, "train.steps": 1},
    ],
)
def test_allowed_combinations(base, overrides):
    flat = config.flatten(config.resolve(base, overrides))
    assert flat.items() >= {n: fields.check(n, v) for n, v in overrides.items()}.items()


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"train.steps": 5}, ["train.epochs", "train.steps"]),
        ({"train.epochs": None}, ["train.epochs", "train.steps"]),
        ({"model.width": [64]}, ["model.width", "model.depth"]),
        ({"model.depth": 0, "model.width": [64]}, ["model.width", "model.depth"]),
        ({"model.net": "conv", "model.depth": 0}, ["model.depth", "model.net"]),
        ({"model.net": "conv", "model.width": [1, 2, 3]}, ["model.width", "model.depth"]),
        ({"model.net": "conv", "model.residual": "plain"}, ["model.residual", "model.net"]),
        ({"model.width": [64, 32], "model.residual": "scaled"}, ["model.residual", "model.width"]),
        ({"data.scaling": "symmetric"}, ["data.binarization", "data.scaling"]),
        (
            {"data.scaling": "symmetric", "data.binarization": "none"},
            ["model.likelihood", "data.scaling"],
        ),
        (
            {"data.scaling": "none", "model.likelihood": "gaussian"},
            ["data.binarization", "data.scaling"],
        ),
    ],
)
def test_forbidden_combinations_name_both_fields(base, overrides, named):
    with pytest.raises(UserError) as caught:
        config.resolve(base, overrides)
    assert all(name in str(caught.value) for name in named)


# Plain dicts and identities.


def test_flatten_and_unflatten_are_inverse(base):
    assert config.unflatten(config.flatten(base)) == base
    assert config.flatten({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}


def test_resolve_leaves_its_arguments_alone_and_is_idempotent(base):
    before = copy.deepcopy(base)
    overrides = {"model.width": [64, 32]}
    resolved = config.resolve(base, overrides)
    assert base == before and overrides == {"model.width": [64, 32]}
    assert config.resolve(resolved, {}) == resolved
    assert type(resolved["model"]) is dict


def test_a_config_survives_json(base):
    resolved = config.resolve(base, {"model.width": (64, 32)})
    read = json.loads(json.dumps(resolved))
    assert config.resolve(read, {}) == resolved
    assert config.run_id(read) == config.run_id(resolved)
    assert config.difference(read, resolved) == []


def test_run_id_is_ten_hexadecimal_digits(base):
    name = config.run_id(base)
    assert len(name) == 10 and int(name, 16) >= 0


def reverse(tree):
    """The same nested dict with the keys in the opposite order."""
    return {k: reverse(v) if isinstance(v, dict) else v for k, v in reversed(tree.items())}


def test_run_id_depends_on_the_settings_only(base):
    name = config.run_id(config.resolve(base, {}))
    assert config.run_id(reverse(base)) == name
    assert config.run_id(config.resolve(base, {"objective.beta": 1})) == name
    assert config.run_id(config.resolve(base, {"objective.beta": 1.0, "seed": 0})) == name
    assert config.run_id(ml_collections.ConfigDict(base).to_dict()) == name
    one = config.run_id(config.resolve(base, {"model.width": [8, 4], "objective.free_bits": -0.0}))
    two = config.run_id(config.resolve(base, {"objective.free_bits": 0, "model.width": (8, 4)}))
    assert one == two != name


def test_run_id_does_not_depend_on_the_order_of_the_table(base, monkeypatch):
    name = config.run_id(base)
    monkeypatch.setattr(fields, "FIELDS", dict(reversed(fields.FIELDS.items())))
    assert config.run_id(base) == name


# For each field a value other than the default, so that every field is seen to count.
OTHER = {
    int: [1, 2, 3],
    float: [0.25, 0.75, 2.0],
    tuple: [3],
}


@pytest.mark.parametrize("name", fields.FIELDS)
def test_every_field_counts_for_the_run_id(base, name):
    row = fields.FIELDS[name]
    now = config.flatten(base)[name]
    values = row.choices or (["other"] if row.type is str else OTHER[row.type])
    for value in values:
        try:
            fields.check(name, value)
        except UserError:
            continue
        if value != now:
            changed = config.unflatten({**config.flatten(base), name: value})
            if row.how:  # the same run, made in another way
                assert config.run_id(changed) == config.run_id(base)
                assert config.difference(base, changed) == []
                return
            assert config.run_id(changed) != config.run_id(base)
            assert config.difference(base, changed) == [
                f"{name}: {fields.show(now)} -> {fields.show(fields.check(name, value))}"
            ]
            return
    assert row.choices == (now,)  # a field with a single choice has nothing else to be


def test_difference(base):
    other = copy.deepcopy(base)
    other["objective"]["beta"] = 4.0
    other["model"]["width"] = [64, 32]
    other["model"]["dropout"] = 0.1
    del other["seed"]
    assert config.difference(base, other) == [
        "model.dropout: (absent) -> 0.1",
        "model.width: 128 -> [64,32]",
        "objective.beta: 1.0 -> 4.0",
        "seed: 0 -> (absent)",
    ]
    assert config.difference(base, base) == []
    # A field that is null is not one that is missing.
    assert config.difference({"a": None}, {}) == ["a: null -> (absent)"]


def test_the_config_layer_starts_without_jax():
    """A typo is reported before anything heavy is imported."""
    code = "import sys, experiments.config, configs.default; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
