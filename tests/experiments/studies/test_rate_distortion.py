"""The study of the rate–distortion plane: I by NumPy, and verdicts on made-up numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies import linear, rate_distortion
from experiments.studies.cases import Case, Context, Found

WIDTH = rate_distortion.WIDTH


def test_information_is_that_of_a_joint_gaussian():
    rng = np.random.default_rng(0)
    u, logvar, variances = rng.normal(size=(4, 3)), rng.normal(size=3), np.array([2, 1, 0.5, 0.1])
    of_z = u.T @ np.diag(variances) @ u + np.diag(np.exp(logvar))
    across = np.diag(variances) @ u
    joint = np.block([[np.diag(variances), across], [across.T, of_z]])
    logdets = [np.linalg.slogdet(a)[1] for a in (np.diag(variances), of_z, joint)]
    with jax.enable_x64(True):
        encoder = {"mean": {"kernel": jnp.asarray(u)}, "scale": {"bias": jnp.asarray(logvar)}}
        found = float(rate_distortion.information({"encoder": encoder}, variances))
    assert found == pytest.approx(0.5 * (logdets[0] + logdets[1] - logdets[2]), rel=1e-12)


def test_training_keeps_to_the_bounds_and_comes_to_the_curve(tmp_path, monkeypatch):
    monkeypatch.setattr(rate_distortion, "READINGS", np.array([1, 100, 1000, 40_000]))
    arguments = {"modes": 4, "eta2": 0.25, "beta": 1.0, "seeds": 2}
    values = rate_distortion.run(arguments, Context(tmp_path, None, None))
    values = {name: np.asarray(value) for name, value in values.items()}
    assert values["rate"].shape == (3, 2, 4)
    rows = rate_distortion.measure(Found("quick", None, (Case(arguments, values, 1.0),)))
    assert [q.verdict for q in rows] == ["reproduced"] * 4
    # The bounds have room before the end: what is measured is no identity.
    room = values["information"] + values["distortion"] - rate_distortion.entropy(4)
    assert np.all(room[:, :, 0] > 1) and np.all(
        (values["rate"] - values["information"])[:, :, 0] > 0
    )


def case(beta=2.0, modes=8, eta2=0.3, off=0.0, excess=0.0, slope=1.0):
    """On the curve at the end and above it before; D off by `off`, R − I by `excess`."""
    points = [linear.optimum(b, eta2, linear.VARIANCES[:modes]) for b in _around(beta)]
    rate = np.array([p.rate for p in points])
    distorted = np.array([rate_distortion.distortion(p.error, modes, eta2) for p in points])
    distorted = distorted[1] + slope * (distorted - distorted[1]) + off
    each = {"rate": rate, "distortion": distorted, "information": rate - excess}
    values = {name: np.tile(v[:, None, None], (1, 3, 2)) for name, v in each.items()}
    values["distortion"][:, :, 0] += 1
    arguments = {"modes": modes, "eta2": eta2, "beta": beta, "seeds": 3}
    return Case(arguments, values, 1.0)


def _around(beta):
    return beta * np.array([1 - WIDTH, 1, 1 + WIDTH])


def verdicts(*cases):
    return [q.verdict for q in rate_distortion.measure(Found("quick", None, cases))]


def test_verdicts():
    few = {"modes": 4, "eta2": 0.25, "beta": 1.0}
    good, bad = "reproduced", "not reproduced"
    assert verdicts(*(case(beta) for beta in rate_distortion.BETAS), case(**few)) == [good] * 13
    # Slope, curve, R − I, I − (H − D).
    assert verdicts(case(slope=1.02)) == [bad, good, good, good]
    assert verdicts(case(off=1e-4)) == [good, bad, good, good]
    assert verdicts(case(excess=-1e-3)) == [good, good, bad, good]
    assert verdicts(case(excess=10.0)) == [good, good, good, bad]
    # Below the diagonal D = H − R, which no model can be.
    assert verdicts(case(**few, off=-0.1)) == [bad, good, bad, bad]
