"""Rates of BatchNorm's explosion: the formula, small nets, and verdicts on made-up cases."""

import math

import numpy as np
import pytest

from experiments.studies import batchnorm_explosion as study
from experiments.studies.cases import Case, Found
from vae.spec import ModelSpec


@pytest.mark.parametrize(
    "batch, rate",
    [(8, 1.788), (16, 1.590), (32, 1.522), (64, 1.493), (128, 1.480), (math.inf, 1.467)],
)
def test_the_published_rates(batch, rate):
    assert study.rate("batch", "relu", batch) == pytest.approx(rate, abs=6e-4)


def test_other_rates():
    assert study.rate("batch", "relu", 1e7) == pytest.approx(math.pi / (math.pi - 1), rel=1e-5)
    assert study.rate("batch", "identity", 8) == 6 / 5
    assert study.rate("layer", "relu", 8) == study.rate("none", "relu", 8) == 1


def test_the_slope_is_of_the_layers_asked():
    layers = np.exp(-0.3 * np.arange(12.0))
    layers[[0, 11]] = 5.0
    assert study.slope(np.stack([layers, 7 * layers]), 1, 10) == pytest.approx([math.exp(0.3)] * 2)


@pytest.mark.parametrize("norm, rate", [("batch", 1.788), ("none", 1.0)])
def test_small_nets(norm, rate):
    """Within noise of 5·4/n a net, and terms of 1/n."""
    spec = ModelSpec((96,), depth=9, width=96, norm=norm, init="he")
    found = study.second_moments(spec, batch=8, seeds=1, nets=24)
    error = math.sqrt(math.expm1(5 * 4 / 96) / 24) / 4
    assert study.slope(found, 3, 7)[0] == pytest.approx(rate, rel=4 * error + 5 / 96)


def test_vaes(monkeypatch):
    monkeypatch.setattr(study, "VAE_DEPTH", 2)
    monkeypatch.setattr(study, "VAE_WIDTH", 8)
    monkeypatch.setattr(study, "NETS", 2)
    found = study.run({"what": "vae", "norm": "batch", "seeds": 2}, None)
    assert found["encoder"].shape == found["decoder"].shape == (2, 2)
    assert (found["encoder"] > 0).all()


def made_up(factor, vae=None):
    rng = np.random.default_rng(0)
    cases = []
    for arguments in study.cases("quick"):
        noise = 1 + 1e-4 * rng.normal(size=(arguments["seeds"], 1))
        if arguments["what"] == "net":
            rate = study.rate(*(arguments[n] for n in ("norm", "activation", "batch")))
            values = {"second_moment": (factor * rate * noise) ** np.arange(study.DEPTH)[::-1]}
        else:
            rate = (vae or factor) * study.rate(arguments["norm"], "relu", study.VAE_BATCH)
            layers = (rate * noise) ** np.arange(study.VAE_DEPTH)[::-1]
            values = {"encoder": layers, "decoder": layers}
        cases.append(Case(arguments, values, 1.0))
    return Found("quick", cases=tuple(cases))


def test_verdicts():
    rows = study.measure(made_up(1.0))
    assert len(rows) == 6 + 6 and {row.verdict for row in rows} == {"reproduced"}
    # The root, as if the rate were of norms.
    wrong = study.measure(made_up(0.8))
    assert {row.verdict for row in wrong} == {"not reproduced"} and not any(r.note for r in wrong)
    rows = study.measure(made_up(1.0, vae=1.1))
    assert {row.verdict for row in rows[:6]} == {"reproduced"}
    assert {row.verdict for row in rows[6:]} == {"not reproduced"} and all(r.note for r in rows[6:])


def test_figure():
    assert len(study.figure(made_up(1.0)).axes) == 3
