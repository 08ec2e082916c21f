"""The study of infinite gradients: what it reads by NumPy, and verdicts on made-up numbers."""

import numpy as np
import pytest

from experiments.studies import infinite_gradients
from experiments.studies.cases import Case, Context, Found


def test_examples_have_the_rank_and_the_noise():
    for noise in (0.0, 0.01):
        x = infinite_gradients.examples(3, noise)
        found = np.linalg.eigvalsh(np.cov(x.T, ddof=0))[::-1]
        expected = np.concatenate([infinite_gradients.VARIANCES, np.zeros(15)]) + noise
        np.testing.assert_allclose(found, expected, atol=1e-13)
        # Each point that is not 0 has all values: it lies along no axis.
        assert np.count_nonzero(x) >= 20 * np.count_nonzero(np.abs(x).sum(1) > 1e-6)


def test_what_is_read_along_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(infinite_gradients, "READINGS", 20)
    arguments = {"noise": 0.0, "latents": 5, "wait": 3000, "seeds": 1}
    values = infinite_gradients.run(arguments, Context(tmp_path, None, None))
    values = {name: np.asarray(value)[0] for name, value in values.items()}
    gamma = np.exp(values["log_gamma"])
    assert np.all(np.diff(gamma) < 0) and gamma[-1] < 0.2
    # 2·NLL of the best model of the covariance, by NumPy; training is near to it, from above.
    best = 20 * np.log(2 * np.pi) + np.log(infinite_gradients.VARIANCES).sum() + 5
    room = values["twice_nll"] - best - 15 * values["log_gamma"]
    assert np.all(room > 0) and room[-1] < 0.1
    # The derivative is (d − r)/γ less what q's variances lag, 1% of which is argued there.
    np.testing.assert_allclose(gamma[-5:] * values["gradient"][-5:], 15, rtol=0.01)
    assert values["active_units"][-1] == 5


def test_slopes_are_read_below_the_limit_alone():
    x = np.log(np.array([[1.0, 0.1, 1e-3, 1e-4, 1e-5]]))
    y = np.where(x < np.log(1e-2), -2 * x + 1, 100.0)
    assert infinite_gradients.slopes(x, y) == [pytest.approx(-2)]
    assert np.isnan(infinite_gradients.slopes(x[:, :3], y[:, :3])[0])


def cases(slope=-1.0, derivative=15.0, units=5, floor=0.0, noise_gamma=0.01):
    """γ that falls to `floor` in three seeds, with a gradient of this slope; and noise."""
    readings = infinite_gradients.READINGS
    step = infinite_gradients.EVERY * infinite_gradients.LOG_GAMMA
    log_gamma = np.log(0.25) - 7.5 * step * np.arange(readings)
    if floor:
        log_gamma = np.log(np.exp(log_gamma) + floor)
    values = {
        "log_gamma": log_gamma,
        "twice_nll": derivative * log_gamma,
        "gradient": 15 * np.exp(slope * log_gamma),
        "active_units": np.full(readings, units),
    }
    found = []
    for arguments in infinite_gradients.cases("quick"):
        of = dict(values)
        if arguments["noise"]:
            of["log_gamma"] = np.full(readings, np.log(noise_gamma))
        found.append(Case(arguments, {k: np.tile(v, (3, 1)) for k, v in of.items()}, 1.0))
    return Found("quick", None, tuple(found))


def verdicts(**off):
    return [q.verdict for q in infinite_gradients.measure(cases(**off)) if q.asked]


def test_verdicts():
    good, bad = "reproduced", "not reproduced"
    assert verdicts() == [good] * 5
    assert verdicts(slope=-0.9) == [bad, good, good, good, good]
    assert verdicts(derivative=14) == [good, bad, good, good, good]
    assert verdicts(floor=1e-3)[2] == bad
    assert verdicts(units=6) == [good, good, good, bad, good]
    assert verdicts(noise_gamma=0.011) == [good] * 4 + [bad]
