"""Sweep algebra and the ``--sweep`` flag."""

import numpy as np
import pytest

from experiments import sweep
from vae.errors import UserError

BETAS = sweep.axis("objective.beta", [0.5, 1])
SEEDS = sweep.axis("seed", range(3))


def values(text):
    """The values that a ``--sweep`` flag gives, whatever the field."""
    return [value for run in sweep.parse_axis(text) for value in run.values()]


def test_axis_checks_and_canonicalises():
    assert BETAS == [{"objective.beta": 0.5}, {"objective.beta": 1.0}]
    assert all(type(run["objective.beta"]) is float for run in BETAS)


def test_product_varies_the_last_axis_fastest():
    runs = sweep.product(BETAS, SEEDS)
    assert [(r["objective.beta"], r["seed"]) for r in runs] == [
        (b, s) for b in (0.5, 1.0) for s in (0, 1, 2)
    ]


def test_product_is_associative_and_has_a_neutral_element():
    depths = sweep.axis("model.depth", [1, 2])
    left = sweep.product(sweep.product(BETAS, SEEDS), depths)
    assert left == sweep.product(BETAS, sweep.product(SEEDS, depths))
    assert left == sweep.product(BETAS, SEEDS, depths)
    assert sweep.product([{}], BETAS) == BETAS == sweep.product(BETAS, [{}]) == sweep.product(BETAS)


def test_zip_pairs_runs():
    widths = sweep.axis("model.width", [[8], [8, 4]])
    depths = sweep.axis("model.depth", [1, 2])
    assert sweep.zip_(depths, widths) == [
        {"model.depth": 1, "model.width": (8,)},
        {"model.depth": 2, "model.width": (8, 4)},
    ]
    with pytest.raises(UserError, match=r"zip_.*2 \(objective.beta\), 3 \(seed\).*equally long"):
        sweep.zip_(BETAS, SEEDS)


def test_chain_concatenates():
    low, high = sweep.axis("seed", [0, 1]), sweep.axis("seed", [2])
    assert sweep.chain(low, high) == SEEDS
    with pytest.raises(UserError, match="runs 0 and 2 are the same .seed=0"):
        sweep.chain(low, sweep.axis("seed", [0]))


def test_axes_inverts_product():
    assert sweep.axes(sweep.product(BETAS, SEEDS)) == {
        "objective.beta": [0.5, 1.0],
        "seed": [0, 1, 2],
    }
    assert sweep.axes([{}]) == {}


@pytest.mark.parametrize("combine", [sweep.product, sweep.zip_])
def test_two_axes_over_one_field(combine):
    with pytest.raises(UserError, match="^seed: two axes"):
        combine(SEEDS, sweep.axis("seed", [7, 8, 9]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sweep.axis("seed", []), "^seed: the axis has no values"),
        (lambda: sweep.axis("seed", "012"), "^seed: an axis takes a list"),
        (lambda: sweep.axis("seed", 3), "^seed: an axis takes a list"),
        (lambda: sweep.axis("seed", [1, 1]), "^seed: .* 1 twice"),
        (lambda: sweep.axis("objective.beta", [1, 1.0]), "^objective.beta: .* 1.0 twice"),
        (lambda: sweep.axis("objective.bta", [1]), "Did you mean objective.beta"),
        (lambda: sweep.axis("objective.bta", []), "Did you mean objective.beta"),
        (lambda: sweep.axis("objective.beta", ["a"]), "^objective.beta: expected"),
        (lambda: sweep.product(), "product: no sweeps"),
        (lambda: sweep.product([]), "it has no runs"),
        (lambda: sweep.chain(), "it has no runs"),
        (lambda: sweep.check({"seed": [1]}), "expected a list of dicts"),
        (lambda: sweep.check([1]), "expected a list of dicts"),
        (lambda: sweep.check(None), "expected a list of dicts"),
        (lambda: sweep.check([{3: 1}]), "3: no such field"),
        (lambda: sweep.check([{"model.width": [8]}, {"model.width": (8,)}]), "are the same"),
        (lambda: sweep.linspace(0, 1, 0), "count of 1 or more"),
    ],
)
def test_bad_sweeps(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_huge_products_are_refused_before_they_are_built():
    thousand = sweep.axis("seed", range(1000))
    with pytest.raises(UserError, match="1000000000 runs, more than"):
        sweep.product(
            thousand,
            sweep.axis("data.seed", range(1000)),
            sweep.axis("eval.every", range(1, 1001)),
        )


def test_spaces():
    # The ends are exact and simple fractions print as such.
    assert sweep.linspace(0, 1, 11) == [i / 10 for i in range(11)]
    assert sweep.linspace(2, 7, 1) == [2.0]
    assert sweep.logspace(-2, 2, 5) == [0.01, 0.1, 1.0, 10.0, 100.0]
    np.testing.assert_allclose(sweep.logspace(-1, 1, 7), np.logspace(-1, 1, 7), rtol=1e-14)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("objective.beta=0.5,1,2", [0.5, 1.0, 2.0]),
        (" objective.beta = 0.5 , 1 ", [0.5, 1.0]),
        ("objective.beta=logspace(-1,1,3)", [0.1, 1.0, 10.0]),
        ("objective.beta=0,logspace(-1, 1, 3),50", [0.0, 0.1, 1.0, 10.0, 50.0]),
        ("objective.beta=linspace(0,1,3)", [0.0, 0.5, 1.0]),
        ("objective.beta=0:3", [0.0, 1.0, 2.0]),
        ("seed=0:5", [0, 1, 2, 3, 4]),
        ("seed=0:10:4", [0, 4, 8]),
        ("seed=3:0:-1", [3, 2, 1]),
        ("seed=7,0:2", [7, 0, 1]),
        ("eval.iw_samples=logspace(0,3,4)", [1, 10, 100, 1000]),
        ("optimizer.clip_norm=null,1", [None, 1.0]),
        ("model.norm=none,layer", ["none", "layer"]),
        ("data.source=tfds:mnist,npz:/a/b=c.npz,1:3", ["tfds:mnist", "npz:/a/b=c.npz", "1:3"]),
        ("model.width=64,128", [64, 128]),
        ("model.width=16:65:16", [16, 32, 48, 64]),
        ("model.width=64,64;128,64", [(64, 64), (128, 64)]),
        ("model.width=64,64;128", [(64, 64), 128]),
        ("model.width=[64,64],128,(32,)", [(64, 64), 128, (32,)]),
        ("model.width=[64,64];[32,16]", [(64, 64), (32, 16)]),
        ("model.width=[64,64]", [(64, 64)]),
        ("model.width=1:3;64,64", [1, 2, (64, 64)]),
    ],
)
def test_parse_axis(text, expected):
    read = values(text)
    assert read == expected
    assert [type(v) for v in read] == [type(v) for v in expected]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("objective.beta", "expected FIELD=V1,V2"),
        ("", "expected FIELD=V1,V2"),
        ("=1", "no such field"),
        ("objective.bta=1", "Did you mean objective.beta"),
        ("objective.beta=", "^objective.beta: --sweep gives no values"),
        ("objective.beta=1,", "^objective.beta: .*empty value"),
        ("objective.beta=,", "^objective.beta: .*empty value"),
        ("objective.beta=1,x", "^objective.beta: expected a number >= 0, got 'x'"),
        ("objective.beta=1,1.0", "^objective.beta: .*twice"),
        ("objective.beta=-1:2", "^objective.beta: expected a number >= 0, got -1"),
        ("objective.beta=logspace(1,2)", "^objective.beta: cannot read logspace"),
        ("objective.beta=logspace(a,2,3)", "^objective.beta: cannot read logspace"),
        ("objective.beta=logspace(nan,2,3)", "^objective.beta: cannot read logspace"),
        ("objective.beta=logspace(0,2,2.5)", "^objective.beta: cannot read logspace"),
        ("objective.beta=linspace(0,1,0)", "^objective.beta: .*count of 1 or more"),
        ("objective.beta=linspace(0,1,999999999)", "^objective.beta: .*more than"),
        ("objective.beta=logspace(0,999,2)", "^objective.beta: .*too large"),
        ("objective.beta=logspace(0,1,3", "^objective.beta: the brackets"),
        ("seed=5:0", "^seed: the range 5:0 is empty"),
        ("seed=0:5:0", "^seed: .* step 0"),
        ("seed=0:1000000000", "^seed: 1000000000 runs, more than"),
        ("seed=0:" + "9" * 5000, "^seed: .*too many digits"),
        ("seed=0:" + "9" * 50, "^seed: .*more than"),
        ("seed=linspace(0,1,3)", "^seed: expected a whole number .* got 0.5"),
        ("seed=__import__('os').getpid()", "^seed: expected a whole number"),
        ("model.width=64,64;", "^model.width: .*empty value"),
        ("model.width=[64,64", "^model.width: the brackets"),
        ("model.width=64]", "^model.width: the brackets"),
        ("model.norm=none,null", "^model.norm: expected one of"),
    ],
)
def test_parse_axis_refuses(text, message):
    with pytest.raises(UserError, match=message):
        sweep.parse_axis(text)


def test_describe():
    assert sweep.describe({"objective.beta": 1.0, "model.width": (8, 4)}) == (
        "objective.beta=1.0, model.width=[8,4]"
    )
    assert sweep.describe({}) == "the base config"


def test_how_runs_are_made_is_not_swept():
    with pytest.raises(UserError, match="mesh.runs: .*compare nothing.*--config.mesh.runs=VALUE"):
        sweep.parse_axis("mesh.runs=1,2")
