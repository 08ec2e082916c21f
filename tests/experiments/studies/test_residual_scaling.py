"""Growth through residual layers: recursions against simulation, verdicts on made-up cases."""

import math

import jax
import numpy as np
import pytest

from experiments.studies import residual_scaling as study
from experiments.studies.cases import Case, Found
from vae.spec import ModelSpec


def test_growth():
    assert study.growth("plain", 20) == 2**20 and study.growth("zero_init", 20) == 1
    assert study.growth("scaled", 20) == pytest.approx(2.6533, abs=1e-4)


@pytest.mark.parametrize("residual", ["plain", "scaled"])
def test_the_recursion_of_relu_branches(residual):
    """Against nets of NumPy: the same recursion is nowhere in them."""
    n, depth, nets = 400, 4, 30
    rng = np.random.default_rng(0)
    share = 1.0 if residual == "plain" else 1 / math.sqrt(depth)
    squares = np.zeros((nets, depth + 1))
    for net in range(nets):
        h = rng.normal(size=n)
        h = (h - h.mean()) / h.std()
        squares[net, 0] = 1.0
        for layer in range(depth):
            weights = rng.normal(size=(n, n)) * math.sqrt(2 / n)
            h = h + share * np.maximum(weights @ h, 0)
            squares[net, layer + 1] = np.mean(h**2)
    error = squares.std(axis=0, ddof=1) / math.sqrt(nets)
    expected = study.relu_growth(residual, depth)
    assert np.all(np.abs(squares.mean(axis=0) - expected) <= 4 * error + 2 / n * expected)
    assert expected[-1] > study.growth(residual, depth)


def test_the_librarys_layers():
    keys = jax.random.split(jax.random.key(0), 30)
    for residual in study.SCALINGS:
        spec = ModelSpec(
            (64,), depth=4, width=64, activation="identity", init="lecun", residual=residual
        )
        forward, backward = (np.asarray(v) for v in study._moments(spec, keys))
        expected = study.growth(residual, 4)
        # ln of one input's growth varies by about 2L/n; sixteen inputs and thirty nets share it.
        error = math.sqrt(2 * 4 / 64 / len(keys))
        assert forward[:, -1].mean() == pytest.approx(expected, rel=4 * error)
        assert backward[:, 0].mean() == pytest.approx(expected, rel=4 * error)
        if residual == "zero_init":
            np.testing.assert_allclose(forward, 1, rtol=1e-6)


def made_up(factor):
    rng = np.random.default_rng(0)
    cases = []
    for arguments in study.cases("quick"):
        residual, identity = arguments["residual"], arguments["activation"] == "identity"
        noise = 1 + 1e-7 * rng.normal(size=(arguments["seeds"], 1))
        layers = study.growth(residual) ** (np.arange(study.DEPTH + 1) / study.DEPTH)
        forward = layers if identity else study.relu_growth(residual)
        values = {"forward": factor * forward * noise, "backward": factor * layers[::-1] * noise}
        cases.append(Case(arguments, values, 1.0))
    return Found("quick", cases=tuple(cases))


def test_verdicts():
    rows = study.measure(made_up(1.0))
    assert len(rows) == 12
    assert [row.verdict for row in rows if row.asked] == ["reproduced"] * 10
    # relu's gradients are reported beside the limit, and nothing is asked of them.
    open_rows = [row for row in rows if not row.asked]
    assert len(open_rows) == 2
    assert all(row.note.startswith("1 times what wide nets have") for row in open_rows)
    wrong = [row.verdict for row in study.measure(made_up(1.3)) if row.asked]
    assert set(wrong) == {"not reproduced"}


def test_figure():
    assert len(study.figure(made_up(1.0)).axes) == 2
