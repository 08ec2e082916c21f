"""The study of STL and DReG: small cases against closed forms, verdicts on made-up numbers."""

import numpy as np
import pytest

from experiments.studies import path_gradients
from experiments.studies.cases import Case, Context, Found
from experiments.studies.quantity import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED

SIZES = {"seeds": 2, "points": 64}


def run(tmp_path, **arguments):
    return path_gradients.run(arguments | SIZES, Context(tmp_path, None, None))


def test_means_and_bias_are_the_closed_forms(tmp_path):
    found = run(tmp_path, what="moments", samples=100, draws=4000)
    # 40 draws of 64 gradients: along its mean DReG's is known to SNR⁻¹/√(40·20), 0.5%, and STL's to
    # less; reparameterisation's to about as much as it is. The next order is of 1%.
    np.testing.assert_allclose(found["along"][:, 1:], 1, atol=0.03)
    np.testing.assert_allclose(found["bias"], found["bias_expected"], rtol=0.05)
    expected = found["norms_expected"]
    np.testing.assert_allclose(found["signal"][:, 1:], expected, rtol=0.05)
    snr = found["signal"] / found["noise"]
    assert np.all(snr[:, 1] > snr[:, 2])


@pytest.mark.thorough
def test_one_sample_and_tests(tmp_path):
    # Rounding alone, of float32.
    assert np.all(run(tmp_path, what="same", samples=1, draws=1)["difference"] < 1e-6)
    p = run(tmp_path, what="test", samples=10, draws=64)["p"]
    assert p.shape == (2, 2) and np.all(p[:, 0] < 1e-3) and np.all(p[:, 1] > 1e-4)


def made_up(dreg=0.5, along=1.0, bias=1.0, difference=1e-7, p=(1e-6, 0.5)):
    """DReG's SNR with this slope, its mean and STL's bias by these factors."""
    seeds, cases = np.linspace(0.98, 1.02, 5), []
    for arguments in path_gradients.cases("quick"):
        k = arguments["samples"]
        noise = np.array([k**-0.5, k**-0.5, k ** (-1 - dreg)])
        signal = seeds[:, None] * np.array([1.0, 1.0, 1 / k])
        values = {
            "moments": {
                "signal": signal,
                "noise": np.tile(noise, (5, 1)),
                "bias": 0.6 * k * bias * seeds,
                "bias_expected": 0.6 * k * seeds,
                "along": np.array([1, 1, along]) * np.ones((5, 3)),
                "norms_expected": signal[:, 1:],
            },
            "same": {"difference": np.full(5, difference)},
            "test": {"p": np.tile(p, (5, 1))},
        }[arguments["what"]]
        cases.append(Case(arguments, values, 1.0))
    return Found("quick", None, tuple(cases))


def verdicts(**changes):
    rows = path_gradients.measure(made_up(**changes))
    return {q.name: q.verdict for q in rows if q.asked}


def test_true_claims_are_reproduced():
    assert set(verdicts().values()) == {REPRODUCED} and len(verdicts()) == 10


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"dreg": 0.0}, "SNR in ln K, DReG"),
        ({"along": 1.2}, "mean of DReG"),
        ({"bias": 1.2}, "the same over its closed form"),
        ({"bias": 0.5}, "at K = 100"),
        ({"difference": 1e-3}, "of one sample, K = 1"),
        ({"p": (1e-6, 1e-4)}, "DReG: smallest p"),
        ({"p": (0.3, 0.5)}, "STL: largest p"),
    ],
)
def test_false_claims_are_not(changes, part):
    rows = verdicts(**changes)
    assert [rows[name] for name in rows if part in name] == [NOT_REPRODUCED]
    assert INCONCLUSIVE not in rows.values()


def test_bias_without_offset():
    # K(2s² − s_p²)/(s²(1 + χ²)) − 1 of the leading orders, χ² + 1 = 1.907 in 20 dimensions.
    s2, p2, k = 2 / 3, 1 / 2, 10_000
    chi = (s2 / np.sqrt(p2 * (2 * s2 - p2))) ** 20
    expected = k * (2 * s2 - p2) / (s2 * chi) - 1
    assert path_gradients._without_offset(k) == pytest.approx(expected, rel=1e-2)


def test_figure():
    assert all(len(panel.lines) >= 10 for panel in path_gradients.figure(made_up()).axes)
