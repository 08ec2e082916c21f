"""The study of linear dynamics: its solutions by quadrature, and verdicts on made-up numbers."""

import numpy as np
import pytest
from scipy.integrate import quad

from experiments.studies import linear_dynamics
from experiments.studies.cases import Case, Context, Found

STRENGTHS = linear_dynamics.STRENGTHS


@pytest.mark.parametrize("layers", [2, 3, 5])
def test_the_time_at_which_a_mode_is_somewhere_is_an_integral(layers):
    time = np.linspace(0, 6, 25)
    u = linear_dynamics.predicted(layers, 2.0, time)
    assert u[0] == pytest.approx(linear_dynamics.START)
    for t, end in zip(time[1:], u[1:], strict=True):
        if end < 1.999:  # beyond it the integral is of a pole
            integral = quad(lambda u: 1 / (layers * u ** (2 - 2 / layers) * (2 - u)), u[0], end)[0]
            assert integral == pytest.approx(t, rel=1e-6)


def test_two_layers_as_written():
    t, s, start = np.array([0.3, 1.1]), 3.0, 0.02
    written = s * np.exp(2 * s * t) / (np.exp(2 * s * t) - 1 + s / start)
    np.testing.assert_allclose(linear_dynamics.predicted(2, s, t, start), written, rtol=1e-13)


@pytest.mark.parametrize("layers", [2, 3])
def test_the_library_s_decoder_follows(layers, tmp_path, monkeypatch):
    monkeypatch.setattr(linear_dynamics, "READINGS", 40)
    arguments = {"layers": layers, "start": "apart", "seeds": 2}
    values = linear_dynamics.run(arguments, Context(tmp_path, None, None))
    values = {name: np.asarray(value) for name, value in values.items()}
    assert values["between"].shape == (2, 40, 4, 4)
    assert values["between"][0, -1, 0, 0] > 3.9  # it learns in that time
    (only,) = linear_dynamics.measure(Found("quick", None, (Case(arguments, values, 1.0),)))
    assert only.verdict == "reproduced" and only.measured < 1e-6


def case(start="apart", layers=2, error=0.0, between=0.0):
    time = np.linspace(0, 12, 481)
    strengths = np.stack([linear_dynamics.predicted(layers, s, time) for s in STRENGTHS], 1)
    maps = strengths[:, :, None] * np.eye(4)[None] * (1 + error) + between
    arguments = {"layers": layers, "start": start, "seeds": 3}
    return Case(arguments, {"time": time, "between": np.tile(maps, (3, 1, 1, 1))}, 1.0)


def test_verdicts():
    def verdict(**off):
        return linear_dynamics.measure(Found("quick", None, (case(**off),)))[0].verdict

    assert verdict() == verdict(error=5e-5) == "reproduced"
    assert verdict(error=1e-3) == verdict(between=1e-3) == "not reproduced"
    assert verdict(layers=3) == "reproduced"


def test_rises_are_reported_only():
    rows = linear_dynamics.measure(Found("quick", None, (case("random"),)))
    assert [q.verdict for q in rows] == ["–"] * 4
    # Between readings .025 apart, of a sigmoid.
    assert [q.measured for q in rows] == [pytest.approx(1, abs=0.01)] * 4
    never = case("random", error=-0.2)
    assert all(np.isnan(q.measured) for q in linear_dynamics.measure(Found("q", None, (never,))))
