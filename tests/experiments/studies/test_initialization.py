"""Factors of back-propagated variance: the law of one net, and verdicts on made-up cases."""

import math

import numpy as np
import pytest

from experiments.studies import initialization
from experiments.studies.cases import Case, Found
from vae.spec import ModelSpec


def test_rates():
    assert initialization.rate("he", "relu") == 1
    assert initialization.rate("uniform", "identity") == pytest.approx(1 / 3)
    assert initialization.rate("glorot", "relu") == 0.5


def test_deeper_nets_need_a_smaller_error_of_the_whole_but_vary_more():
    for depth in initialization.DEPTHS:
        count, layers = initialization.nets(depth), depth - 1
        spread = math.sqrt(math.expm1(5 * layers / initialization.WIDTH) / count)
        assert spread / layers <= initialization.ERROR < 1.3 * spread / layers


@pytest.mark.parametrize("init", ["he", "uniform"])
def test_factors_of_small_nets(init):
    spec = ModelSpec((8,), depth=4, width=32, init=init)
    count = 400
    found = initialization.second_moments(spec, 5, 0, count)
    assert found.shape == (count, 4)
    error = math.sqrt(math.expm1(5 * 3 / 32) / count) / 3
    expected = initialization.rate(init, "relu")
    assert initialization.factor(found.mean(axis=0)) == pytest.approx(expected, rel=4 * error)


def test_the_law_of_one_net():
    """Against draws of (2/n)·χ²_K; and, to first order, −b/2 and b."""
    n, layers, draws = 64, 16, 200_000
    rng = np.random.default_rng(0)
    found = np.log(2 / n * rng.chisquare(rng.binomial(n, 0.5, draws)))
    mean, variance = initialization.log_normal(n, layers)
    assert mean == pytest.approx(layers * found.mean(), abs=4 * layers * found.std() / draws**0.5)
    # A variance estimated from N draws is off by √(2/N) or a little more.
    assert variance == pytest.approx(layers * found.var(), rel=5 * math.sqrt(2 / draws))
    mean, variance = initialization.log_normal(4096, layers)
    b = 5 * layers / 4096
    assert mean == pytest.approx(-b / 2, rel=0.01) and variance == pytest.approx(b, rel=0.01)


def test_layers_of_either_part(monkeypatch):
    monkeypatch.setattr(initialization, "WIDTH", 16)
    monkeypatch.setattr(initialization, "nets", lambda depth, width=16: 3)
    arguments = {"what": "layers", "part": "decoder", "activation": "identity", "depth": 3}
    found = initialization.run({**arguments, "seeds": 2}, None)
    assert {name: values.shape for name, values in found.items()} == {
        "glorot": (2, 3),
        "uniform": (2, 3),
    }
    widths = initialization.run({"what": "widths", "seeds": 2}, None)
    assert widths["to_wide"].shape == widths["to_narrow"].shape == (2,)


def test_the_own_loss_of_small_vaes(monkeypatch):
    monkeypatch.setattr(initialization, "WIDTH", 8)
    monkeypatch.setattr(initialization, "RUNS", 2)
    found = initialization.run({"what": "loss", "init": "glorot", "depth": 2, "seeds": 2}, None)
    assert found["encoder"].shape == found["decoder"].shape == (2, 2)
    for part in ("encoder", "decoder"):
        assert (found[part] > 0).all() and (np.abs(found[f"{part}_cosine"]) <= 1).all()


def made_up(factor, own=None):
    """Every case, with factors that are `factor` times the claim's (`own` times, by own loss)."""
    rng = np.random.default_rng(0)
    cases = []
    for arguments in initialization.cases("quick"):
        seeds = arguments["seeds"]
        noise = 1 + 1e-4 * rng.normal(size=seeds)
        if arguments["what"] == "layers":
            back = np.arange(arguments["depth"])[::-1]
            values = {
                init: (factor * noise[:, None] * initialization.rate(init, arguments["activation"]))
                ** back
                for init in initialization.MADE_FOR[arguments["activation"]]
            }
        elif arguments["what"] == "widths":
            values = {"to_wide": factor * 2 / 3 * noise, "to_narrow": factor * 4 / 3 * noise}
        elif arguments["what"] == "spread":
            mean, variance = initialization.log_normal(64, 16)
            values = {"log_growth": factor * rng.normal(mean, variance**0.5, (seeds, 4000))}
        else:
            own = factor if own is None else own
            rate = own * initialization.rate(arguments["init"], "relu")
            values = {}
            for part in ("encoder", "decoder"):
                values[part] = (rate * noise[:, None]) ** np.arange(arguments["depth"])[::-1]
                values[f"{part}_cosine"] = np.full(seeds, 0.3)
        cases.append(Case(arguments, values, 1.0))
    return Found("quick", cases=tuple(cases))


def test_verdicts():
    rows = initialization.measure(made_up(1.0))
    assert len(rows) == 10 + 2 + 2 + 6
    assert {row.verdict for row in rows} == {"reproduced"} and not any(row.note for row in rows)
    wrong = initialization.measure(made_up(1.5))
    assert {row.verdict for row in wrong} == {"not reproduced"}


def test_an_own_loss_that_departs_says_why():
    rows = {row.name: row for row in initialization.measure(made_up(1.0, own=1.1))}
    row = rows["decoder, He, relu, under the VAE's own loss: factor per layer"]
    assert row.verdict == "not reproduced"
    assert "cosine of 0.30" in row.note and "1.000 at the same depth" in row.note
    assert rows["decoder, He, relu: factor per layer"].verdict == "reproduced"


def test_figure():
    assert len(initialization.figure(made_up(1.0)).axes) == 3
